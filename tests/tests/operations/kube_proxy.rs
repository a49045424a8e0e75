//! `xskiff kube-proxy`: what there is of kube-proxy is named, and cleaning takes that and nothing else.

use std::io::{Read, Write};
use std::net::TcpListener;

use nix::sched::{CloneFlags, setns};
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::{Machine, err, json, out};

/// Rules as kube-proxy, the kubelet and an administrator leave them, to both interfaces of iptables.
const RULES: &str = r#"
for tool in iptables-legacy iptables-nft ip6tables-nft; do
  $tool-restore --noflush <<RULES
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-TCOU7JCQXEZGVUNU - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:MINE - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -p tcp -j KUBE-SVC-TCOU7JCQXEZGVUNU
-A PREROUTING -p tcp --dport 1 -j MINE
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A INPUT -j KUBE-FIREWALL
COMMIT
RULES
done
nft add table ip kube-proxy
nft add chain ip kube-proxy services
nft add table inet mine
nft add chain inet mine services
"#;

fn rules(machine: &Machine) -> String {
    let saves = "for tool in iptables-legacy iptables-nft ip6tables-nft; do $tool-save; done; \
                 nft list tables";
    let text = machine.shell(saves);
    // Comments have the time, and counters count.
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(" [").next().unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

#[test]
fn left_over_rules_are_named_and_cleaned_and_nothing_else_is_touched() {
    if !root_or_skip("kube-proxy's rules") {
        return;
    }
    let machine = Machine::new("kubeproxy");
    let clean = machine.xskiff(&["kube-proxy", "status"]);
    assert_eq!(clean.status.code(), Some(0), "{clean:?}");
    assert!(out(&clean).contains("nothing of kube-proxy"), "{clean:?}");

    machine.shell(RULES);
    machine.namespace.ip("link add kube-ipvs0 type veth peer name other").expect("a link");
    let before = rules(&machine);
    let status = machine.xskiff(&["kube-proxy", "status"]);
    assert_eq!(status.status.code(), Some(1), "{status:?}");
    for word in [
        "iptables-legacy, table nat: 2 chains, 2 rules",
        "iptables-nft, table filter: 1 chains, 1 rules",
        "ip6tables-nft, table nat",
        "nftables table ip kube-proxy",
        "interface kube-ipvs0",
    ] {
        assert!(out(&status).contains(word), "{word}: {}", out(&status));
    }

    let dry = machine.xskiff(&["kube-proxy", "clean"]);
    assert_eq!(dry.status.code(), Some(0), "{dry:?}");
    for word in ["would run: iptables-legacy-restore --noflush", "-X KUBE-SERVICES", "nft delete"] {
        assert!(out(&dry).contains(word), "{word}: {}", out(&dry));
    }
    assert!(out(&dry).contains("ip link del kube-ipvs0"), "{}", out(&dry));
    assert_eq!(rules(&machine), before, "a dry run changed something");

    let done = machine.xskiff(&["--json", "kube-proxy", "clean", "--yes"]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert_eq!(json(&done)["removals"].as_array().map(Vec::len), Some(4), "{done:?}");
    let after = rules(&machine);
    for gone in ["KUBE-SERVICES", "KUBE-SVC-", "KUBE-FORWARD", "kube-proxy"] {
        assert!(!after.contains(gone), "{gone}: {after}");
    }
    for (kept, times) in [
        ("-A INPUT -j KUBE-FIREWALL", 3),
        (":KUBE-KUBELET-CANARY", 3),
        ("--dport 1 -j MINE", 3),
        ("table inet mine", 1),
    ] {
        assert_eq!(after.matches(kept).count(), times, "{kept}: {after}");
    }
    machine.namespace.ip("link del kube-ipvs0").expect("by hand");
    let status = machine.xskiff(&["kube-proxy", "status"]);
    assert_eq!(status.status.code(), Some(0), "{status:?}");
}

/// Answers at kube-proxy's own port, once for each of `times`.
fn play_kube_proxy(machine: &Machine, times: usize) -> std::thread::JoinHandle<()> {
    let namespace = format!("/run/netns/{}", machine.namespace.system_name());
    let (up, is_up) = std::sync::mpsc::channel();
    let playing = std::thread::spawn(move || {
        let file = std::fs::File::open(namespace).expect("the namespace");
        setns(file, CloneFlags::CLONE_NEWNET).expect("entered");
        let listener = TcpListener::bind("127.0.0.1:10249").expect("its port");
        up.send(()).expect("somebody waits");
        for _ in 0..times {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut asked = [0; 1024];
            let length = stream.read(&mut asked).expect("asked");
            assert!(asked[..length].starts_with(b"GET /proxyMode "));
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\niptables").expect("told");
        }
    });
    is_up.recv().expect("it is up");
    playing
}

#[test]
fn while_a_kube_proxy_runs_nothing_is_removed() {
    if !root_or_skip("a kube-proxy that runs") {
        return;
    }
    let machine = Machine::new("kubeproxyruns");
    machine.shell(RULES);
    let before = rules(&machine);
    let playing = play_kube_proxy(&machine, 2);
    let status = machine.xskiff(&["kube-proxy", "status"]);
    assert!(out(&status).contains("kube-proxy runs (mode iptables)"), "{status:?}");
    let refused = machine.xskiff(&["kube-proxy", "clean", "--yes"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(err(&refused).contains("end it first"), "{refused:?}");
    assert_eq!(rules(&machine), before);
    playing.join().expect("it was asked twice");
}

#[test]
fn a_node_names_what_is_left_in_its_verdict_its_log_and_a_metric_until_it_is_gone() {
    if !root_or_skip("a node beside kube-proxy's rules") {
        return;
    }
    let machine = Machine::new("kubeproxynode");
    machine.namespace.ip("link add up0 type veth peer name far0").expect("a link");
    for link in ["up0", "far0"] {
        machine.namespace.ip(&format!("link set {link} up")).expect("up");
    }
    machine.shell("nft add table ip kube-proxy; nft add chain ip kube-proxy services");
    // Its rules may as well be where only the tool sees them, as may anybody's.
    machine.shell("iptables-legacy -t nat -N KUBE-SERVICES; ip6tables-legacy -t filter -N MINE");
    // Rules of others that packets pass by are named, and nothing is wrong because of them.
    machine.shell("for name in cali-FORWARD cali-INPUT MINE; do iptables-nft -N $name; done");
    let directory = machine.laboratory.directory();
    let (run, file) = (directory.join("run"), directory.join("xskiff.yaml"));
    let text = format!(
        "run_directory: {}\nuplinks:\n  - interface: up0\n    xdp_mode: generic\n\
         flow_table: {{ipv4_flows_max: 1024, ipv6_flows_max: 1024}}\n",
        run.display()
    );
    std::fs::write(&file, text).expect("written");
    let program = xskiff_tests::xskiff_binary::path().to_string_lossy();
    let file = file.display().to_string();
    let node = machine.namespace.spawn("node", &program, &["run", "--config", &file]);
    let node = node.expect("started");
    let socket = run.join("admin.sock").display().to_string();
    let status = || out(&machine.xskiff(&["--socket", &socket, "status"]));
    let metric = |kind: &str| {
        let page = machine.namespace.run("curl", &["-sS", "http://127.0.0.1:9964/metrics"]);
        let page = page.unwrap_or_default();
        let line = page.lines().find_map(|line| {
            let value =
                line.strip_prefix("xskiff_kube_proxy_traces{kind=\"")?.strip_prefix(kind)?;
            value.strip_prefix("\"} ").map(str::to_owned)
        });
        line.unwrap_or_default()
    };
    let patience = std::time::Duration::from_secs(60);
    let named = || status().contains("kube-proxy is in the way of services: nftables table ip");
    assert!(wait_until(patience, named).is_some(), "{}\n{}", status(), node.log_tail());
    assert_eq!([metric("nftables"), metric("legacy-tables")], ["1", "1"]);
    assert!(
        status().contains("host rules that packets go past: 2 chains of Calico"),
        "{}",
        status()
    );
    let legacy = "iptables-legacy has tables (ip nat, ip6 filter): `xskiff kube-proxy status`";
    assert!(status().contains(legacy), "{}", status());
    let log = std::fs::read_to_string(node.log()).expect("its log");
    assert!(log.contains("nftables table ip kube-proxy"), "{log}");

    let done = machine.xskiff(&["kube-proxy", "clean", "--yes"]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert!(wait_until(patience, || metric("nftables") == "0").is_some(), "{}", status());
    assert!(!status().contains("kube-proxy is in the way of services"), "{}", status());
    assert_eq!(
        metric("legacy-tables"),
        "1",
        "they are there still, and nothing is wrong because of it"
    );
}
