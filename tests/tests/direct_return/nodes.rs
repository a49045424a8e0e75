//! Two nodes of xskiff and a client on one link, a third where it is asked for, and a capture between them.
//!
//! ```text
//! client 192.0.2.2 --- bridge --- 192.0.2.1 node A, which has the frontends
//!                         |------ 192.0.2.3 node B --- pod 10.244.1.11
//!                         `------ 192.0.2.4 node C, which has the frontends too
//! ```

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use control::admin::status::{Level, WorkerStatus};
use control::admin::{Reply, Request};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;
use xskiff::cli::client::Client;
use xskiff::lab::link::{self, End};
use xskiff::lab::{Agent, Laboratory, Namespace, Process, wait_until};
use xskiff_tests::xskiff_binary::path;

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const CLIENT: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
pub const A: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
pub const B: [&str; 2] = ["192.0.2.3", "2001:db8::3"];
pub const C: [&str; 2] = ["192.0.2.4", "2001:db8::4"];
/// What all frontends are in.
pub const FRONTENDS: [&str; 2] = ["203.0.113.0/24", "2001:db8:113::/64"];
/// Of the service by pod and host together, in `stateless.yaml`.
pub const EDGE: [&str; 2] = ["203.0.113.70", "2001:db8:113::70"];
pub const POD: [&str; 2] = ["10.244.1.11", "fd00:10:244:1::11"];
/// Of the service with a pod, and of that with the host.
pub const BALANCER: [[&str; 2]; 2] =
    [["203.0.113.80", "2001:db8:113::80"], ["203.0.113.90", "2001:db8:113::90"]];
pub const EXTERNAL: [[&str; 2]; 2] =
    [["203.0.113.81", "2001:db8:113::81"], ["203.0.113.91", "2001:db8:113::91"]];
/// Debian's own, which python3-scapy is for.
const PYTHON: &str = "/usr/bin/python3";
const MANIFESTS: [(&str, &str); 2] = [
    ("cluster.yaml", include_str!("cluster.yaml")),
    ("stateless.yaml", include_str!("stateless.yaml")),
];
const QUEUES: u16 = 2;
const MTU: u16 = 1500;

/// A running node.
pub struct Node {
    process: Process,
    socket: PathBuf,
}

/// All of it. Processes go before their namespaces, and these before the laboratory.
pub struct Nodes {
    a: Node,
    b: Node,
    c: Option<Node>,
    _servers: [Agent; 2],
    pub client: Namespace,
    wire: Namespace,
    _pod: Namespace,
    _nodes: Vec<Namespace>,
    pub mac_of_a: String,
    pub mac_of_b: String,
    laboratory: Laboratory,
}

impl Nodes {
    /// Starts two with this way back, and waits until both say that all is well.
    pub fn start(form: &'static str) -> Self {
        Self::begin(&format!("dsr-{form}"), form, &["cluster.yaml"])
    }

    /// Starts the third as well, and a service that no flows are kept of.
    pub fn with_two_frontends(form: &'static str) -> Self {
        Self::begin(&format!("edge-{form}"), form, &["cluster.yaml", "stateless.yaml"])
    }

    fn begin(name: &str, form: &'static str, manifests: &[&str]) -> Self {
        let laboratory = Laboratory::new(name, path()).expect("a laboratory");
        let wire = laboratory.namespace("wire").expect("a namespace");
        wire.ip("link add br0 type bridge").expect("a bridge");
        wire.ip("link set br0 up").expect("up");
        let client = on_wire(&laboratory, &wire, "client", CLIENT);
        client.features("uplink", "tx off").expect("features");
        let [one, other] = [("node-a", A), ("node-b", B)]
            .map(|(name, own)| on_wire(&laboratory, &wire, name, own));
        let has_third = manifests.len() > 1;
        let third = has_third.then(|| on_wire(&laboratory, &wire, "node-c", C));
        for namespace in [&one, &other].into_iter().chain(&third) {
            let off = [("net/ipv4/ip_forward", "0"), ("net/ipv6/conf/all/forwarding", "0")];
            namespace.set(&off).expect("settings");
        }
        for (prefix, gateway) in FRONTENDS.into_iter().zip(A) {
            client.ip(&format!("route add {prefix} via {gateway}")).expect("a route");
        }
        for (prefix, gateway) in [("10.244.1.0/24", B[0]), ("fd00:10:244:1::/64", B[1])] {
            for namespace in [&one].into_iter().chain(&third) {
                namespace.ip(&format!("route add {prefix} via {gateway}")).expect("a route");
            }
        }
        let pod = laboratory.namespace("pod").expect("a namespace");
        let inner = End { namespace: &pod, interface: "eth0" };
        let outer = End { namespace: &other, interface: "web" };
        link::pair(inner, outer, QUEUES, MTU).expect("a link");
        let addresses = POD.map(|own| own.parse::<IpAddr>().expect("an address"));
        link::routed_pod(inner, outer, &addresses).expect("a pod");
        let macs =
            [&one, &other].map(|namespace| link::mac(End { namespace, interface: "uplink" }));
        let [mac_of_a, mac_of_b] = macs.map(|mac| mac.expect("a link address"));
        let servers = [
            pod.agent(&["serve", "--http=[::]:8080", "--udp=[::]:5353", "--name=pod"]),
            other.agent(&["serve", "--http=[::]:9080", "--udp=[::]:9053", "--name=host"]),
        ]
        .map(|agent| agent.expect("a server"));
        servers.iter().for_each(|server| server.wait_ready(PATIENCE).expect("it listens"));
        let a = Node::start(&laboratory, &one, ("node-a", form), manifests);
        let b = Node::start(&laboratory, &other, ("node-b", form), manifests);
        let c =
            third.as_ref().map(|own| Node::start(&laboratory, own, ("node-c", form), manifests));
        let socket = b.socket.to_string_lossy().into_owned();
        let netns = format!("/run/netns/{}", pod.system_name());
        let words = ["--socket", &socket, "endpoint", "add", "shop/web", "--interface", "web"];
        let more = ["--address", POD[0], "--address", POD[1], "--netns", &netns];
        let program = path().to_string_lossy();
        other.run(&program, &[&words[..], &more[..]].concat()).expect("added");
        for node in [&a, &b].into_iter().chain(&c) {
            let is_well = || node.level().is_some_and(|level| level == Level::Ok);
            assert!(wait_until(PATIENCE, is_well).is_some(), "{}", node.process.log_tail());
        }
        Self {
            a,
            b,
            c,
            _servers: servers,
            client,
            wire,
            _pod: pod,
            _nodes: [one, other].into_iter().chain(third).collect(),
            mac_of_a,
            mac_of_b,
            laboratory,
        }
    }

    /// Records what passes node B's end of the link.
    pub fn capture(&self) -> Capture {
        let file = self.laboratory.directory().join("wire.pcap");
        let name = file.to_string_lossy().into_owned();
        let words = ["-i", "node-b", "-U", "-Z", "root", "-B", "16384", "-w", &name];
        let process = self.wire.spawn("tcpdump", "tcpdump", &words).expect("tcpdump");
        let is_there = || std::fs::metadata(&file).is_ok_and(|file| file.len() >= 24);
        assert!(wait_until(PATIENCE, is_there).is_some(), "{}", process.log_tail());
        Capture { process, file, directory: self.laboratory.directory().to_owned() }
    }

    /// What both nodes say of dropped packets, for a test that fails.
    pub fn say(&self) -> String {
        let all = [&self.a, &self.b].into_iter().chain(&self.c);
        all.filter(|node| node.process.ended().is_none())
            .map(Node::drops)
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Node A and node C.
    pub fn frontends(&self) -> [&Node; 2] {
        [&self.a, self.c.as_ref().expect("it was asked for")]
    }

    /// Leads the client's packets to frontends by these nodes, each connection by one of them.
    pub fn lead_by(&self, gateways: &[[&str; 2]]) {
        for (family, prefix) in FRONTENDS.into_iter().enumerate() {
            let hops: Vec<String> =
                gateways.iter().map(|own| format!("nexthop via {}", own[family])).collect();
            self.client.ip(&format!("route del {prefix}")).expect("there was one");
            self.client.ip(&format!("route add {prefix} {}", hops.join(" "))).expect("a route");
        }
    }
}

fn on_wire(laboratory: &Laboratory, wire: &Namespace, name: &str, own: [&str; 2]) -> Namespace {
    let namespace = laboratory.namespace(name).expect("a namespace");
    let inner = End { namespace: &namespace, interface: "uplink" };
    link::pair(inner, End { namespace: wire, interface: name }, QUEUES, MTU).expect("a link");
    wire.ip(&format!("link set {name} master br0")).expect("on the bridge");
    wire.features(name, "tx off").expect("features");
    link::address(inner, &format!("{}/24", own[0])).expect("an address");
    link::address(inner, &format!("{}/64", own[1])).expect("an address");
    namespace
}

impl Node {
    fn start(
        laboratory: &Laboratory,
        namespace: &Namespace,
        (name, form): (&str, &str),
        of: &[&str],
    ) -> Self {
        let directory = laboratory.directory();
        let (run, manifests) = (directory.join(format!("run-{name}")), directory.join("manifests"));
        std::fs::create_dir_all(&manifests).expect("a folder");
        for (file, text) in MANIFESTS.into_iter().filter(|(file, _)| of.contains(file)) {
            std::fs::write(manifests.join(file), text).expect("written");
        }
        let balancing = match form {
            "snat" => "{mode: snat}".to_owned(),
            form => format!("{{mode: dsr, dispatch: {form}}}"),
        };
        let text = format!(
            "node_name: {name}\nrun_directory: {}\nbpf_filesystem: {}\n\
             uplinks: [{{interface: uplink}}]\nworkers: {{count: 2}}\n\
             flow_table: {{ipv4_flows_max: 65536, ipv6_flows_max: 65536}}\n\
             cluster: {{pod_cidrs: [10.244.0.0/16, \"fd00:10:244::/48\"], \
             service_cidrs: [10.96.0.0/16, \"fd00:10:96::/112\"]}}\n\
             load_balancing: {balancing}\n",
            run.display(),
            bpf_filesystem(directory).display(),
        );
        let configuration = directory.join(format!("{name}.yaml"));
        std::fs::write(&configuration, text).expect("written");
        let [configuration, manifests] =
            [configuration, manifests].map(|file| file.to_string_lossy().into_owned());
        let words = ["run", "--config", &configuration, "--manifests", &manifests];
        let program = path().to_string_lossy();
        let process = namespace.spawn(name, &program, &words).expect("started");
        let node = Self { process, socket: run.join("admin.sock") };
        let answers = || node.level().is_some() || node.process.ended().is_some();
        assert!(wait_until(PATIENCE, answers).is_some(), "{}", node.process.log_tail());
        assert!(node.process.ended().is_none(), "{}", node.process.log_tail());
        node
    }

    fn ask(&self, request: Request) -> Option<Reply> {
        Client::connect(&self.socket).ok()?.ask(request).ok()
    }

    /// What its workers count together.
    pub fn count(&self, of: impl Fn(&WorkerStatus) -> u64) -> u64 {
        match self.ask(Request::Status) {
            Some(Reply::Status(status)) => status.workers.iter().map(of).sum(),
            _ => panic!("it answers no more"),
        }
    }

    /// Kills it, as a node dies.
    pub fn kill(&self) {
        self.process.signal(Signal::SIGKILL).expect("it lives");
        self.process.wait(PATIENCE).expect("it ends");
    }

    fn level(&self) -> Option<Level> {
        match self.ask(Request::Status)? {
            Reply::Status(status) => Some(status.verdict.level),
            _ => None,
        }
    }

    fn drops(&self) -> String {
        let program = path().to_string_lossy();
        let words = ["--socket", &*self.socket.to_string_lossy(), "drops"];
        let output = Command::new(&*program).args(words).output().expect("asked");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// The laboratory's own, which both nodes may have: they pin under names of their own.
fn bpf_filesystem(directory: &Path) -> PathBuf {
    directory.join("run-bpf")
}

/// A capture that runs.
pub struct Capture {
    process: Process,
    file: PathBuf,
    directory: PathBuf,
}

impl Capture {
    /// Ends it, and lets scapy decode what there was.
    pub fn decode<T: DeserializeOwned>(self) -> Vec<T> {
        // Whatever was read of the ring by now is in the file; a busy machine reads late.
        let size = || std::fs::metadata(&self.file).map_or(0, |file| file.len());
        let mut before = 0;
        let is_still = || {
            std::thread::sleep(Duration::from_secs(2));
            std::mem::replace(&mut before, size()) == size()
        };
        assert!(wait_until(PATIENCE, is_still).is_some(), "{}", self.process.log_tail());
        self.process.signal(Signal::SIGTERM).expect("told");
        self.process.wait(PATIENCE).expect("ended");
        let script = self.directory.join("decode.py");
        std::fs::write(&script, include_str!("decode.py")).expect("written");
        let began = Instant::now();
        let output = Command::new(PYTHON).arg(&script).arg(&self.file).output().expect("python3");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        println!("decoded within {:?}", began.elapsed());
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().map(|line| serde_json::from_str(line).expect("a packet")).collect()
    }
}
