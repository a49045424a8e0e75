//! Ordinary traffic: every way through the node, and the one that is forbidden.

use std::time::Duration;

use control::admin::{FlowFilter, PolicyQuestion, Reply, Request};
use nix::sys::signal::Signal;

use super::node::Node;
use super::scene::{
    BALANCER, BUYER, CLIENT, CLUSTER_IP, ECHO, HTTP, NODE, STRANGER, Scene, WEB_1, to,
};
use super::{DemoError, Seen, Stage, comparison, traffic};
use crate::lab::agent::report::{Held, Report};
use crate::lab::{Agent, ForwardCounters, LabError, wait_until};

/// The pods behind the service.
const BACKENDS: [&str; 2] = ["web-1", "web-2"];

/// The policy that decides about them, and the label of what it drops.
const POLICY: &str = "shop/web-customers";
const POLICY_DROP: &str = "policy-ingress";

/// Connections held while the node is stopped, and later while it is killed.
pub const HELD: u64 = 100;

/// How long held connections may take to open.
const HOLD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the node is stopped.
const STOPPED: Duration = Duration::from_secs(2);

/// Drives all of it; what fails is written down and the rest goes on.
pub fn run(scene: &Scene, node: &Node, upload_mib: u64, stage: &mut Stage) {
    services(scene, stage);
    pods(scene, stage);
    policy(scene, node, stage);
    for host in BALANCER {
        let name = format!("upload of {upload_mib} MiB to {host}");
        stage.expect(&name, "all of it, SHA-256 equal at both ends", || {
            traffic::upload(&scene.client, host, upload_mib << 20)
        });
    }
    comparison::download(scene, upload_mib, stage);
    stage.expect("the kernel's own forwarding", "off, and nothing forwarded", || kernel(scene));
    stage.expect(
        "the node stopped for 2 s (SIGSTOP)",
        "traffic stops with it, no connection breaks",
        || stop_and_go_on(scene, node),
    );
}

fn services(scene: &Scene, stage: &mut Stage) {
    let all = "20/20 in both families, by both backends";
    let (client, buyer) = (&scene.client, scene.pod(BUYER));
    stage.expect("outside -> load balancer address", all, || {
        traffic::http(client, BALANCER, HTTP[0], &BACKENDS, Some(CLIENT))
    });
    stage.expect("outside -> node port", all, || {
        traffic::http(client, NODE, HTTP[1], &BACKENDS, Some(CLIENT))
    });
    stage.expect("pod -> cluster address", all, || {
        traffic::http(buyer, CLUSTER_IP, HTTP[0], &BACKENDS, Some(BUYER.addresses))
    });
    stage.expect("the node's own process -> cluster address", all, || {
        traffic::http(&scene.node, CLUSTER_IP, HTTP[0], &BACKENDS, None)
    });
    stage.expect("UDP echo, outside -> load balancer address", "20/20 in both families", || {
        traffic::echo(client, BALANCER, ECHO)
    });
    stage.expect("UDP echo, pod -> cluster address", "20/20 in both families", || {
        traffic::echo(buyer, CLUSTER_IP, ECHO)
    });
}

fn pods(scene: &Scene, stage: &mut Stage) {
    let (client, buyer) = (&scene.client, scene.pod(BUYER));
    stage.expect("pod -> pod", "20/20 in both families", || {
        traffic::http(buyer, WEB_1.addresses, HTTP[2], &BACKENDS[..1], Some(BUYER.addresses))
    });
    stage.expect("pod -> outside, masqueraded", "20/20, seen as the node", || {
        traffic::http(buyer, CLIENT, HTTP[2], &["client"], Some(NODE))
    });
    let ping = "3/3 in both families";
    stage.expect("ping and ping6, outside -> pod", ping, || traffic::ping(client, BUYER.addresses));
    stage.expect("ping and ping6, pod -> outside", ping, || traffic::ping(buyer, CLIENT));
    stage.expect("ping and ping6, pod -> pod", ping, || traffic::ping(buyer, STRANGER.addresses));
}

fn policy(scene: &Scene, node: &Node, stage: &mut Stage) {
    stage.expect("forbidden: stranger -> cluster address", "timed out in both families", || {
        traffic::forbidden(scene.pod(STRANGER), CLUSTER_IP, HTTP[0])
    });
    let expected = format!("{POLICY_DROP} by {POLICY}");
    stage.expect("the drop is named (xskiff flows)", &expected, || named_drop(node));
    stage.expect("and predicted (xskiff policy explain)", "denied", || explained(node));
}

fn named_drop(node: &Node) -> Result<Seen, DemoError> {
    let filter = FlowFilter {
        endpoint: Some("market/stranger".into()),
        verdict: Some("dropped".into()),
        ..FlowFilter::default()
    };
    let records = node.flows(filter)?;
    let Some(last) = records.last() else {
        return Ok(Seen::when(false, "no decision about the stranger is listed"));
    };
    let (reason, rule) = (last.reason.as_deref().unwrap_or("-"), last.rule.as_deref());
    let rule = rule.unwrap_or("no rule");
    let ok = reason == POLICY_DROP && rule.contains(POLICY);
    Ok(Seen::when(ok, format!("{reason} by {rule}")))
}

fn explained(node: &Node) -> Result<Seen, DemoError> {
    let question = PolicyQuestion {
        from: "market/stranger".into(),
        to: "shop/web-1".into(),
        l4_port: HTTP[2],
        protocol: "tcp".into(),
    };
    Ok(match node.ask(Request::PolicyExplain(question))? {
        Reply::Policy(answer) => Seen::when(!answer.allowed, answer.summary),
        _ => Seen::when(false, "no explanation"),
    })
}

/// Whether the kernel of the node's namespace stayed out of it.
fn kernel(scene: &Scene) -> Result<Seen, DemoError> {
    let switches = scene
        .node
        .run("cat", &["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"])?;
    let off = switches.split_whitespace().all(|switch| switch == "0");
    let ForwardCounters { ipv4, ipv6 } = scene.node.forward_counters()?;
    let switch = if off { "off" } else { "ON" };
    let text = format!("{switch}, {ipv4} IPv4 and {ipv6} IPv6 packets forwarded");
    Ok(Seen::when(off && ipv4 == 0 && ipv6 == 0, text))
}

fn stop_and_go_on(scene: &Scene, node: &Node) -> Result<Seen, DemoError> {
    let held = hold(scene)?;
    node.signal(Signal::SIGSTOP)?;
    let during =
        traffic::fetch(&scene.client, &to(BALANCER[0], HTTP[0]), 1, &["--timeout-ms=1000"]);
    std::thread::sleep(STOPPED.saturating_sub(Duration::from_secs(1)));
    node.signal(Signal::SIGCONT)?;
    let trouble = during?.first().and_then(|answer| answer.error);
    // Retransmissions have waited for up to 2 s by now.
    let after = traffic::fetch(&scene.client, &to(BALANCER[0], HTTP[0]), 3, &[])?;
    let works = after.iter().all(|answer| answer.ok);
    let counts = end_hold(held)?;
    let stopped = traffic::word(trouble);
    let text = format!(
        "new connection {stopped} meanwhile, {} after; {} of {HELD} held answer, {} resets",
        if works { "works" } else { "fails" },
        counts.answered_last,
        counts.resets,
    );
    Ok(Seen::when(trouble.is_some() && works && counts.answered_last == HELD, text))
}

/// Connections from outside through the service, a tenth of them busy.
///
/// # Errors
/// They do not all open.
pub fn hold(scene: &Scene) -> Result<Agent, LabError> {
    let (connections, active) =
        (format!("--connections={HELD}"), format!("--active={}", HELD / 10));
    let agent = scene.client.agent(&["hold", &to(BALANCER[0], HTTP[0]), &connections, &active])?;
    agent.expect("open connections", HOLD_TIMEOUT, |report| match report {
        Report::Held(held) => (held.alive == HELD).then_some(()),
        _ => None,
    })?;
    Ok(agent)
}

/// How the held connections stand in the end.
///
/// # Errors
/// The agent does not say.
pub fn end_hold(agent: Agent) -> Result<Held, LabError> {
    let reports = agent.stop()?;
    let last = reports.into_iter().rev().find_map(|stamped| match stamped.report {
        Report::Held(held) => Some(held),
        _ => None,
    });
    Ok(last.unwrap_or_default())
}

/// The node's own end: clean, with nothing left attached, and no traffic without it.
pub fn end(scene: &Scene, node: Node, stage: &mut Stage) {
    stage.expect("the node's end (SIGTERM)", "exit 0, nothing left attached", || {
        let code = node.end()?;
        let left = leftovers(scene)?;
        let said = code.map_or_else(|| "no exit code".into(), |code| format!("exit {code}"));
        let text = if left.is_empty() { "nothing left".into() } else { left.join(", ") };
        Ok(Seen::when(code == Some(0) && left.is_empty(), format!("{said}, {text}")))
    });
    stage.expect("traffic without the node", "none", || {
        traffic::forbidden(&scene.client, BALANCER, HTTP[0])
    });
    stage.expect("the kernel's own forwarding, in the end", "off, and nothing forwarded", || {
        kernel(scene)
    });
}

/// XDP programs and interfaces of the node that are still there.
fn leftovers(scene: &Scene) -> Result<Vec<String>, LabError> {
    let mut left = Vec::new();
    // Detaching is finished by the kernel in its own time.
    let mut failed = None;
    wait_until(Duration::from_secs(1), || match scene.node.ip("-o link show") {
        Ok(links) => {
            left = links.lines().filter_map(left_behind).collect();
            left.is_empty()
        }
        Err(error) => {
            failed = Some(error);
            true
        }
    });
    failed.map_or(Ok(left), Err)
}

/// The name in a line of `ip -o link` if the interface is the node's own or carries a program.
fn left_behind(line: &str) -> Option<String> {
    let mut words = line.split_whitespace().skip(1);
    let name = words.next()?.trim_end_matches(':');
    let own = name.starts_with("xskiff");
    let attached = words.any(|word| word.starts_with("xdp") || word == "prog/xdp");
    (own || attached).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::left_behind;

    #[test]
    fn own_interfaces_and_attached_programs_are_left_behind_and_names_of_namespaces_are_not() {
        let plain = "7: web-1@if2: <UP> mtu 1500 qdisc noqueue link-netns xskiff-lab.1.demo-web-1";
        assert_eq!(left_behind(plain), None);
        let native = "7: web-1@if2: <UP> mtu 1500 xdp qdisc noqueue state UP";
        assert_eq!(left_behind(native).as_deref(), Some("web-1@if2"));
        let generic = "7: web-1@if2: <UP> mtu 1500 xdpgeneric qdisc noqueue";
        assert_eq!(left_behind(generic).as_deref(), Some("web-1@if2"));
        let own = "9: xskiff-host@xskiff-port: <UP> mtu 1500";
        assert_eq!(left_behind(own).as_deref(), Some("xskiff-host@xskiff-port"));
    }
}
