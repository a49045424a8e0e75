//! The demo's node, client and pods, with links and XDP modes of a test's choice.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use control::admin::status::{PortStatus, Status};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use serde_json::Value;
use xskiff::cli::client::Client;
use xskiff::demo::files::Files;
use xskiff::demo::node::Node;
use xskiff::demo::scene::{PODS, Scene};
use xskiff::lab::{ForwardCounters, Laboratory, Namespace, Process, wait_until};
pub use xskiff_tests::xskiff_binary::number_from;
use xskiff_tests::xskiff_binary::path;

/// How long anything may take that takes milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a world is made of.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Names its namespaces.
    pub label: &'static str,
    /// Of every link.
    pub mtu: u16,
    /// `native` or `generic`, of every port.
    pub xdp_mode: &'static str,
}

/// Where the node hears of the cluster, and how long it may take to know it whole.
#[derive(Debug, Clone)]
pub struct Source {
    pub words: Vec<String>,
    pub patience: Duration,
}

/// Everything but a node process.
pub struct Stage {
    pub scene: Scene,
    pub files: Files,
    pub source: Source,
}

/// A running node with its pods registered. The process goes before its namespaces.
pub struct World {
    pub node: Node,
    pub scene: Scene,
    pub files: Files,
    source: Source,
}

impl Stage {
    /// Builds it with a configuration that `edit` has changed, for a node that reads the folder of
    /// manifests.
    pub fn build(shape: Shape, edit: impl FnOnce(String) -> String) -> Self {
        let laboratory = Laboratory::new(shape.label, path()).expect("a laboratory");
        let scene = Scene::build(laboratory).expect("a scene");
        for (namespace, interface) in links(&scene) {
            let mtu = shape.mtu;
            namespace.ip(&format!("link set {interface} mtu {mtu}")).expect("the link's MTU");
        }
        let files = Files::write(scene.laboratory.directory()).expect("files");
        let words = vec!["--manifests".to_owned(), files.manifests.display().to_string()];
        let stage = Self { scene, files, source: Source { words, patience: PATIENCE } };
        stage.edit_configuration(|text| edit(with_mode(&text, shape.xdp_mode)));
        stage
    }

    pub fn edit_configuration(&self, edit: impl FnOnce(String) -> String) {
        let file = &self.files.configuration;
        let text = std::fs::read_to_string(file).expect("the configuration");
        std::fs::write(file, edit(text)).expect("written");
    }

    /// Starts the node process, and waits until it says that all is well.
    pub fn begin(self) -> World {
        let until = Instant::now() + self.source.patience;
        let world = self.begin_somehow(until);
        world.node.wait_well(until).unwrap_or_else(|error| panic!("{error}"));
        world
    }

    /// As [`Stage::begin`], behind words of another command line.
    pub fn begin_behind(self, before: &[&str]) -> World {
        let until = Instant::now() + self.source.patience;
        let world = self.start_behind(before, until);
        world.node.wait_well(until).unwrap_or_else(|error| panic!("{error}"));
        world
    }

    /// Starts the node process, and waits until it answers, however it is.
    pub fn begin_somehow(self, until: Instant) -> World {
        self.start_behind(&[], until)
    }

    fn start_behind(self, before: &[&str], until: Instant) -> World {
        let Self { scene, files, source } = self;
        let words: Vec<&str> = source.words.iter().map(String::as_str).collect();
        let node = Node::start_behind(&scene, &files, before, &words, until);
        let node = node.unwrap_or_else(|error| panic!("{error}"));
        World { node, scene, files, source }
    }
}

impl World {
    /// Builds it and waits until the node says that all is well.
    pub fn start(shape: Shape) -> Self {
        Self::start_edited(shape, |text| text)
    }

    /// As [`World::start`], with a configuration that `edit` has changed.
    pub fn start_edited(shape: Shape, edit: impl FnOnce(String) -> String) -> Self {
        Stage::build(shape, edit).begin()
    }

    /// Ends its node process, by SIGKILL or in order.
    pub fn end(self, kill: bool) -> Stage {
        let Self { node, scene, files, source } = self;
        if kill {
            node.kill();
        } else {
            assert_eq!(node.end().expect("ended"), Some(0));
        }
        Stage { scene, files, source }
    }

    /// Ends its node process, by SIGKILL or in order, and starts another one after `gone`.
    pub fn again(self, kill: bool, gone: Duration) -> Self {
        let stage = self.end(kill);
        std::thread::sleep(gone);
        stage.begin()
    }

    pub fn status(&self) -> Status {
        self.node.status().expect("the node answers")
    }

    /// What `xskiff --json COMMAND` prints in the node's namespace.
    pub fn ask(&self, command: &[&str]) -> String {
        let socket = self.files.socket.to_string_lossy();
        let words = [&["--socket", &*socket, "--json"], command].concat();
        let program = path().to_string_lossy();
        self.scene.node.run(&program, &words).unwrap_or_else(|error| panic!("{error}"))
    }

    /// What is said of a command that is refused.
    pub fn refusal(&self, command: &[&str]) -> String {
        let socket = self.files.socket.to_string_lossy();
        let words = [&["--socket", &*socket], command].concat();
        let program = path().to_string_lossy();
        let refused = self.scene.node.run(&program, &words);
        refused.expect_err("it is refused").to_string()
    }

    /// `/metrics`.
    pub fn metrics(&self) -> String {
        within(&self.scene.node, || {
            let mut stream = TcpStream::connect("127.0.0.1:9964").expect("the metrics' address");
            stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time limit");
            let request = "GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
            stream.write_all(request.as_bytes()).expect("asked");
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("answered");
            text
        })
    }

    /// Waits until the node process has ended by itself, not well; the end of its log.
    pub fn wait_for_failure(&self) -> String {
        let process = self.node.process();
        let status = process.wait(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(status.code(), Some(1), "{}", process.log_tail());
        process.log_tail()
    }

    /// As [`World::ask`], read.
    pub fn ask_json(&self, command: &[&str]) -> Value {
        serde_json::from_str(&self.ask(command)).expect("JSON")
    }

    /// Packets that were dropped for `reason`.
    pub fn dropped(&self, reason: &str) -> u64 {
        let drops = self.ask_json(&["drops"]);
        let mut rows = drops.as_array().expect("rows").iter();
        let row = rows.find(|row| row["reason"] == reason).expect("every reason is there");
        row["packets"].as_u64().expect("a number")
    }

    /// Ends the node by SIGKILL, and waits until it holds nothing any more.
    pub fn kill(&self) {
        let process = format!("/proc/{}", self.status().pid);
        self.node.signal(Signal::SIGKILL).expect("killed");
        // Its first thread may be gone while others still hold its files.
        let is_gone = || {
            let stat = std::fs::read_to_string(format!("{process}/stat")).unwrap_or_default();
            let threads = std::fs::read_dir(format!("{process}/task")).map_or(0, Iterator::count);
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z')) && threads <= 1
        };
        assert!(wait_until(PATIENCE, is_gone).is_some());
    }

    /// Ends the node process, or `another` that followed it, and waits until it is gone.
    pub fn end_process(&self, another: Option<Process>, signal: Signal) {
        match another {
            None if signal == Signal::SIGKILL => self.kill(),
            None => {
                self.node.signal(signal).expect("told");
                self.node.process().wait(PATIENCE).expect("ended");
            }
            Some(process) => {
                process.signal(signal).expect("told");
                process.wait(PATIENCE).expect("ended");
            }
        }
    }

    /// Starts the node again after it ended, without telling it of any pod.
    pub fn start_again(&self) -> Process {
        let process = self.spawn_node(&[]);
        let answers = || Client::connect(&self.files.socket).is_ok();
        assert!(wait_until(PATIENCE, answers).is_some(), "{}", process.log_tail());
        process
    }

    /// Starts another node process that takes over from the one that runs, and waits until it serves.
    pub fn take_over(&self) -> Process {
        self.take_over_behind(&[])
    }

    /// As [`World::take_over`], behind words of another command line.
    pub fn take_over_behind(&self, before: &[&str]) -> Process {
        let process = self.spawn_node_behind(before, &["--take-over"]);
        let serves = || self.node.status().is_ok_and(|status| status.pid == process.id());
        assert!(wait_until(PATIENCE, serves).is_some(), "{}", process.log_tail());
        process
    }

    /// Starts another node process, whatever becomes of it.
    pub fn spawn_node(&self, more: &[&str]) -> Process {
        self.spawn_node_behind(&[], more)
    }

    fn spawn_node_behind(&self, before: &[&str], more: &[&str]) -> Process {
        let program = path().to_string_lossy();
        let [configuration, manifests] =
            [&self.files.configuration, &self.files.manifests].map(|file| file.to_string_lossy());
        let run = [&*program, "run", "--config", &*configuration, "--manifests", &*manifests];
        let words = [before, &run, more].concat();
        self.scene.node.spawn("again", words[0], &words[1..]).expect("started")
    }

    /// Replaces `old` in the node's configuration.
    pub fn rewrite_configuration(&self, old: &str, new: &str) {
        let file = &self.files.configuration;
        let text = std::fs::read_to_string(file).expect("the configuration");
        assert!(text.contains(old), "{text}");
        std::fs::write(file, text.replace(old, new)).expect("written");
    }

    /// The same, and waits until the node has read it.
    pub fn change_configuration(&self, old: &str, new: &str) {
        self.rewrite_configuration(old, new);
        let is_read = || self.ask(&["config", "print"]).contains(new);
        assert!(wait_until(PATIENCE, is_read).is_some(), "{}", self.ask(&["config", "print"]));
        // What was read comes before the next question.
        self.status();
    }

    /// Puts one more file of manifests into the node's folder.
    pub fn add_manifests(&self, name: &str, text: &str) {
        std::fs::write(self.files.manifests.join(name), text).expect("written");
    }

    /// The port of an interface.
    pub fn port(&self, interface: &str) -> PortStatus {
        let mut ports = self.status().ports.into_iter();
        ports.find(|port| port.interface == interface).expect("the interface is a port")
    }

    /// The kernel of the node's namespace must have forwarded nothing by itself.
    pub fn assert_kernel_forwarded_nothing(&self) {
        let counters = self.scene.node.forward_counters().expect("counters");
        assert_eq!(counters, ForwardCounters { ipv4: 0, ipv6: 0 });
    }
}

/// Both ends of every link.
fn links(scene: &Scene) -> Vec<(&Namespace, &'static str)> {
    let mut links = vec![(&scene.client, "eth0"), (&scene.node, "uplink")];
    for plan in PODS {
        links.extend([(scene.pod(plan), "eth0"), (&scene.node, plan.name)]);
    }
    links
}

/// The configuration with one XDP mode for every port.
fn with_mode(configuration: &str, mode: &str) -> String {
    let uplink = "  - interface: uplink\n";
    assert!(configuration.contains(uplink), "{configuration}");
    let of_uplink = format!("{uplink}    xdp_mode: {mode}\n");
    let sockets = |name: &str, ring: u32| {
        let rings = format!("receive_ring: {ring}, transmit_ring: {ring}, fill_frames: {ring}");
        format!("{name}: {{xdp_mode: {mode}, {rings}}}\n")
    };
    let of_rest = sockets("pods", 512) + &sockets("uplink_sockets", 2048);
    configuration.replace(uplink, &of_uplink) + &of_rest
}

/// Runs `work` in a thread that is in the namespace.
pub fn within<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
    within_named(namespace.system_name(), work)
}

/// The same by the namespace's name in the system.
pub fn within_named<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let namespace = format!("/run/netns/{namespace}");
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            let file = File::open(&namespace).expect("the namespace is there");
            setns(file, CloneFlags::CLONE_NEWNET).expect("entered");
            work()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// TCP's own counters of a namespace (`/proc/net/snmp`).
pub fn tcp_counters(namespace: &Namespace) -> BTreeMap<String, i64> {
    let text = namespace.run("cat", &["/proc/net/snmp"]).expect("/proc/net/snmp");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, numbers) = (lines.next().expect("names"), lines.next().expect("numbers"));
    let names = names.split_whitespace().map(str::to_owned);
    names.zip(numbers.split_whitespace().map(|number| number.parse().expect("a number"))).collect()
}
