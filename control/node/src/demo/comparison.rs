//! A download by the node, and the same one forwarded by the kernel alone, so that its speed has something
//! to be compared with.
//!
//! ```text
//! kernel-client 192.0.2.2 ---- uplink 192.0.2.1 kernel-node ---- kernel-web 10.244.0.11
//! ```
//! Namespaces, links, MTU, client and server are made by the code that makes the node's, and rounds take
//! turns. The kernel forwards in a namespace of its own: in the node's it stays off. It routes, and where
//! `nft` is there translates the service's address, which is less than a node does: no policy, one pod. It is
//! measured with the offloads that the node has left to its pods, and with those that a pod begins with.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use control::config::Config;
use xdp_redirect::ethtool::Offload;

use super::files::CONFIGURATION;
use super::outages::whole;
use super::scene::{self, BALANCER, HTTP, PodPlan, SERVER_TIMEOUT, Scene, Server, WEB_1};
use super::{DemoError, Outcome, Seen, Stage, traffic};
use crate::lab::agent::report::Fetched;
use crate::lab::link::{self, End};
use crate::lab::{LabError, Laboratory, Namespace};
use crate::offloads::{self, Switch};

/// Each of them has every download once; the middle one counts.
const ROUNDS: usize = 3;
/// After this time no further round is begun.
const TIME_ENOUGH: Duration = Duration::from_secs(8);
/// Largest download, in MiB: a second and less each.
const DOWNLOAD_MIB_MAX: u64 = 128;

/// Who carries, in the order of a round.
const CARRIERS: [&str; 3] =
    ["xskiff", "the kernel", "the kernel with the offloads that pods begin with"];

/// The pod behind the kernel's router.
const POD: PodPlan = PodPlan { name: "kernel-web", ..WEB_1 };
const POD_INTERFACE: &str = "eth0";

/// The downloads of one round, as [`CARRIERS`].
type Round = [Fetched; 3];

/// Downloads up to `mib` MiB by the node and by the kernel.
pub fn download(scene: &Scene, mib: u64, stage: &mut Stage) {
    let mib = mib.min(DOWNLOAD_MIB_MAX);
    let name = format!("download of {mib} MiB, and the same by the kernel alone");
    stage.expect(&name, "all of it each time, every byte right", || {
        let kernel = Kernel::build(&scene.laboratory)?;
        let rounds = measure(scene, &kernel, mib << 20)?;
        let forwarded = kernel.router.forward_counters()?.ipv4;
        Ok(judge(&rounds, mib << 20, &kernel.job, forwarded))
    });
}

fn measure(scene: &Scene, kernel: &Kernel, bytes: u64) -> Result<Vec<Round>, DemoError> {
    let (mut rounds, begin) = (Vec::new(), Instant::now());
    let mut go_on = true;
    while go_on {
        let own = traffic::download(&scene.client, BALANCER[0], HTTP[0], bytes)?;
        kernel.switch(true)?;
        let same = kernel.download(bytes)?;
        kernel.switch(false)?;
        let round = [own, same, kernel.download(bytes)?];
        let is_whole = round.iter().all(|fetched| fetched.ok);
        rounds.push(round);
        go_on = is_whole && rounds.len() < ROUNDS && begin.elapsed() < TIME_ENOUGH;
    }
    Ok(rounds)
}

/// The speeds, if everything came as it was sent and the kernel did forward.
fn judge(rounds: &[Round], bytes: u64, job: &str, forwarded: u64) -> Seen {
    let all = rounds.iter().flat_map(|round| CARRIERS.iter().zip(round));
    for (carrier, fetched) in all {
        let seen = whole(fetched, bytes);
        if seen.outcome == Outcome::Differs {
            return Seen::when(false, format!("{carrier}: {}", seen.text));
        }
    }
    if forwarded == 0 {
        return Seen::when(false, "the kernel's router forwarded nothing");
    }
    let of = |carrier: usize| median(rounds.iter().map(|round| traffic::mbits(&round[carrier])));
    let hundredths = |other: usize| {
        let ratio = |round: &Round| {
            let (own, other) = (traffic::mbits(&round[0]), traffic::mbits(&round[other]).max(1));
            (own * 100 + other / 2) / other
        };
        let ratio = median(rounds.iter().map(ratio));
        format!("{}.{:02} of it", ratio / 100, ratio % 100)
    };
    let text = format!(
        "xskiff {} Mbit/s; the kernel ({job}) {}: {}; with the offloads that pods begin with {}: {}",
        of(0),
        of(1),
        hundredths(1),
        of(2),
        hundredths(2)
    );
    Seen::when(!rounds.is_empty(), text)
}

fn median(numbers: impl Iterator<Item = u64>) -> u64 {
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied().unwrap_or(0)
}

/// A router of the kernel's between a client and a pod, in the order in which it goes away.
struct Kernel {
    _server: Server,
    client: Namespace,
    pod: Namespace,
    router: Namespace,
    /// What the router does, in words.
    job: String,
    /// Where the client finds the server.
    target: (&'static str, u16),
    /// What the node does to its pods' offloads.
    switches: Vec<Switch>,
}

impl Kernel {
    fn build(laboratory: &Laboratory) -> Result<Self, LabError> {
        let router = laboratory.namespace("kernel-node")?;
        router.set(&[("net/ipv4/ip_forward", "1")])?;
        let client = scene::build_client(laboratory, &router, "kernel-client")?;
        let pod = scene::build_pod(laboratory, &router, &POD)?;
        let mac = link::mac(End { namespace: &pod, interface: POD_INTERFACE })?;
        let ([address, _], interface) = (POD.addresses, POD.name);
        router.ip(&format!("route add {address}/32 dev {interface}"))?;
        router
            .ip(&format!("neigh replace {address} lladdr {mac} dev {interface} nud permanent"))?;
        let server = scene::start_server(&pod, POD.name)?;
        server.agent.wait_ready(SERVER_TIMEOUT)?;
        let alone = (address, HTTP[2]);
        let (job, target) = if !is_there("nft") {
            ("routing alone, since nft is not installed".to_owned(), alone)
        } else if let Err(error) = router.run("nft", &[&translation()]) {
            (format!("routing alone, since {error}"), alone)
        } else {
            ("routing, nftables DNAT".to_owned(), (BALANCER[0], HTTP[0]))
        };
        let switches = switches();
        Ok(Self { _server: server, client, pod, router, job, target, switches })
    }

    /// Makes the pod's offloads as the node makes those of its own, or as they were.
    fn switch(&self, as_the_node: bool) -> Result<(), LabError> {
        self.switches.iter().try_for_each(|(offload, on)| {
            let word = if *on == as_the_node { "on" } else { "off" };
            self.pod.features(POD_INTERFACE, &format!("{} {word}", offload.label()))
        })
    }

    fn download(&self, bytes: u64) -> Result<Fetched, LabError> {
        let (host, l4_port) = self.target;
        traffic::download(&self.client, host, l4_port, bytes)
    }
}

fn is_there(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok()
}

/// What the demo's node does to the offloads of a pod that has them as the kernel makes them.
fn switches() -> Vec<Switch> {
    // A test reads the same text.
    let config = Config::parse(CONFIGURATION).unwrap_or_default();
    let as_made = [Offload::TransmitChecksum, Offload::TcpSegmentation, Offload::UdpSegmentation];
    offloads::switches((config.segments, config.transmit), &as_made, &[])
}

/// The service in nftables' words: its load balancer address leads to the pod.
fn translation() -> String {
    let ([balancer, _], [pod, _], [port, _, target]) = (BALANCER, POD.addresses, HTTP);
    format!(
        "table ip demo {{ chain services {{ type nat hook prerouting priority dstnat; policy accept; \
         ip daddr {balancer} tcp dport {port} dnat to {pod}:{target}; }}; }}"
    )
}

#[cfg(test)]
mod tests {
    use xdp_redirect::ethtool::Offload;

    use super::{CARRIERS, Fetched, Outcome, Round, judge, switches};
    use crate::lab::agent::report::Trouble;

    const BYTES: u64 = 100 << 20;

    fn fetched(took_ms: u64) -> Fetched {
        Fetched { ok: true, bytes: BYTES, took_ms, ..Fetched::default() }
    }

    fn round(own: u64, same: u64, as_made: u64) -> Round {
        [fetched(own), fetched(same), fetched(as_made)]
    }

    #[test]
    fn the_middle_round_is_told_and_its_ratio_to_the_kernel() {
        let rounds = [round(1000, 500, 100), round(400, 200, 100), round(500, 400, 100)];
        let seen = judge(&rounds, BYTES, "routing", 1);
        assert_eq!(seen.outcome, Outcome::Ok);
        for words in ["xskiff 1677 Mbit/s", "(routing) 2097: 0.50 of it", "8388: 0.20 of it"] {
            assert!(seen.text.contains(words), "{words}: {}", seen.text);
        }
    }

    #[test]
    fn a_transfer_that_is_broken_or_passed_by_the_router_is_a_difference_that_says_which() {
        for (broken, carrier) in CARRIERS.iter().enumerate() {
            let mut last = round(1, 1, 1);
            last[broken] =
                Fetched { error: Some(Trouble::Corrupted), bytes: 1, ..Fetched::default() };
            let seen = judge(&[round(1, 1, 1), last], BYTES, "routing", 1);
            assert_eq!(seen.outcome, Outcome::Differs);
            assert!(seen.text.starts_with(&format!("{carrier}: ")), "{}", seen.text);
        }
        let short = [[Fetched { bytes: BYTES - 1, ..fetched(1) }, fetched(1), fetched(1)]];
        assert_eq!(judge(&short, BYTES, "routing", 1).outcome, Outcome::Differs);
        assert_eq!(judge(&[round(1, 1, 1)], BYTES, "routing", 0).outcome, Outcome::Differs);
        assert_eq!(judge(&[], BYTES, "routing", 1).outcome, Outcome::Differs);
    }

    #[test]
    fn the_kernel_has_the_offloads_that_the_demos_node_leaves_to_pods() {
        assert!(switches().contains(&(Offload::TcpSegmentation, false)), "{:?}", switches());
    }
}
