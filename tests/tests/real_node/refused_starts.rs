//! `xskiff run` that cannot work: it says what is wrong with which thing, and the way out, exits
//! non-zero, and leaves the node's interfaces, rules and settings as they were.

use std::path::PathBuf;

use nix::sys::signal::Signal;
use xskiff::lab::link::{self, End};
use xskiff::lab::{Laboratory, Namespace, Process, wait_until};
use xskiff_tests::xskiff_binary::{path, root_or_skip};

use crate::world::PATIENCE;

/// A node with two uplinks and nothing behind them.
struct Bare {
    node: Namespace,
    _outside: Namespace,
    laboratory: Laboratory,
}

impl Bare {
    fn new(label: &str) -> Self {
        let laboratory = Laboratory::new(label, path()).expect("a laboratory");
        let node = laboratory.namespace("node").expect("a namespace");
        let outside = laboratory.namespace("outside").expect("a namespace");
        for (number, interface) in ["up0", "up1"].into_iter().enumerate() {
            let own = End { namespace: &node, interface };
            link::pair(End { namespace: &outside, interface }, own, 1, 1500).expect("a link");
            link::address(own, &format!("192.0.2.{}/28", 16 * number + 1)).expect("an address");
        }
        let bare = Self { node, _outside: outside, laboratory };
        // The kernel settles the state of links in its own time.
        let settled = || bare.state().matches("state UP").count() == 2;
        assert!(wait_until(PATIENCE, settled).is_some(), "{}", bare.state());
        bare
    }

    /// All that a node process changes outside itself.
    fn state(&self) -> String {
        let ip = |what: &str| self.node.ip(what).expect("ip");
        let files = ["/proc/sys/net/ipv4/ip_local_reserved_ports", "/proc/sys/net/ipv4/ip_forward"];
        let settings = self.node.run("cat", &files).expect("settings");
        let validation = self.node.run("sh", &["-c", "cat /proc/sys/net/ipv4/conf/*/rp_filter"]);
        [
            ip("-details link show"),
            ip("rule show"),
            ip("-6 rule show"),
            ip("route show table all"),
            ip("-6 route show table all"),
            settings,
            validation.expect("settings"),
        ]
        .join("\n")
    }

    fn directory(&self, name: &str) -> String {
        self.laboratory.directory().join(name).display().to_string()
    }

    /// Writes the configuration of a node on `interface`, with `more` lines of it.
    fn configuration(&self, interface: &str, run_directory: &str, more: &str) -> String {
        let file: PathBuf = self.laboratory.directory().join("xskiff.yaml");
        let text = format!(
            "node_name: node-a\nrun_directory: {run_directory}\nuplinks:\n  - interface: \
             {interface}\nflow_table: {{ipv4_flows_max: 1024, ipv6_flows_max: 1024}}\n{more}\n"
        );
        std::fs::write(&file, text).expect("written");
        file.display().to_string()
    }

    /// Runs `xskiff run` behind `before` (words of another command line) to its end, which must
    /// come by itself; gives its words after checking that it failed and left nothing.
    fn refused(&self, before: &[&str], configuration: &str) -> String {
        let state = self.state();
        let process = self.spawn(before, configuration);
        let status = process.wait(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        let said = std::fs::read_to_string(process.log()).expect("its log");
        assert_eq!(status.code(), Some(1), "{said}");
        let mut changed = Vec::new();
        let as_before = || {
            changed = changes(&state, &self.state());
            changed.is_empty()
        };
        assert!(wait_until(PATIENCE, as_before).is_some(), "{said}\n{}", changed.join("\n"));
        said
    }

    fn spawn(&self, before: &[&str], configuration: &str) -> Process {
        let program = path().to_string_lossy();
        let words = [before, &[&*program, "run", "--config", configuration]].concat();
        self.node.spawn("xskiff", words[0], &words[1..]).expect("started")
    }

    fn ready(&self, process: &Process, socket: &str) {
        let program = path().to_string_lossy();
        let answers = || self.node.run(&program, &["--socket", socket, "status"]).is_ok();
        assert!(wait_until(PATIENCE, answers).is_some(), "{}", process.log_tail());
    }
}

/// Lines that only one of the two has, with a sign that says which.
fn changes(before: &str, after: &str) -> Vec<String> {
    let only = |sign: char, one: &str, other: &str| -> Vec<String> {
        let missing = one.lines().filter(|line| !other.lines().any(|twin| twin == *line));
        missing.map(|line| format!("{sign} {line}")).collect()
    };
    [only('-', before, after), only('+', after, before)].concat()
}

/// Each of `words` must be in what the process said.
fn assert_says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word:?} is missing: {said}");
    }
}

#[test]
fn an_interface_that_is_absent_or_not_ethernet_is_named() {
    if !root_or_skip("an absent interface") {
        return;
    }
    let bare = Bare::new("absent");
    let run = bare.directory("run");
    let said = bare.refused(&[], &bare.configuration("no-such0", &run, ""));
    assert_says(&said, &["no-such0", "ip link"]);
    let said = bare.refused(&[], &bare.configuration("lo", &run, ""));
    assert_says(&said, &["uplink lo", "Ethernet"]);
}

#[test]
fn an_mtu_that_packet_memory_cannot_hold_is_named_with_what_can() {
    if !root_or_skip("a large MTU") {
        return;
    }
    let bare = Bare::new("mtu");
    let run = bare.directory("run");
    bare.node.ip("link set up0 mtu 9000").expect("an MTU");
    let single = bare.configuration("up0", &run, "packet_memory: {jumbo: false}");
    assert_says(&bare.refused(&[], &single), &["up0", "9000", "jumbo"]);
    bare.node.ip("link set up0 mtu 65535").expect("an MTU");
    let said = bare.refused(&[], &bare.configuration("up0", &run, ""));
    assert_says(&said, &["up0", "65535", "packet_memory.frame_bytes", "lower the MTU to"]);
}

#[test]
fn a_missing_privilege_is_named_and_nothing_is_left_attached() {
    if !root_or_skip("missing privileges") {
        return;
    }
    let bare = Bare::new("privileges");
    let run = bare.directory("run");
    let configuration = bare.configuration("up0", &run, "");
    for (capabilities, word) in [
        ("-net_admin", "CAP_NET_ADMIN"),
        ("-net_raw", "CAP_NET_RAW"),
        ("-bpf,-sys_admin", "CAP_BPF"),
    ] {
        let before = ["setpriv", "--bounding-set", capabilities, "--inh-caps", capabilities];
        let said = bare.refused(&before, &configuration);
        assert_says(&said, &[word]);
        assert!(said.contains("root"), "{said}");
    }
}

#[test]
fn a_run_directory_that_cannot_be_written_is_named() {
    if !root_or_skip("a read-only run directory") {
        return;
    }
    let bare = Bare::new("readonly");
    // Root may write everywhere but to a file system that nobody may write to.
    let place = bare.directory("readonly");
    std::fs::create_dir(&place).expect("a directory");
    let run = format!("{place}/run");
    let script = format!("mount -t tmpfs -o ro none {place} && exec \"$@\"");
    let before = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let said = bare.refused(&before, &bare.configuration("up0", &run, ""));
    assert_says(&said, &[&run, "ead-only", "run_directory"]);
    std::fs::write(bare.directory("file"), "").expect("a file");
    let run = bare.directory("file/run");
    let said = bare.refused(&[], &bare.configuration("up0", &run, ""));
    assert_says(&said, &[&run]);
}

#[test]
fn a_second_node_on_the_same_interface_or_directory_is_refused_and_the_first_goes_on() {
    if !root_or_skip("a second node") {
        return;
    }
    let bare = Bare::new("second");
    let (run, socket) = (bare.directory("run"), bare.directory("run/admin.sock"));
    let first = bare.spawn(&[], &bare.configuration("up0", &run, ""));
    bare.ready(&first, &socket);
    let said = bare.refused(&[], &bare.configuration("up1", &run, ""));
    assert_says(&said, &[&run, "another node process"]);
    // Apart from the first in everything but the interface.
    let other = bare.directory("other");
    let more = "host_port: {enabled: false}\nhttp: {listen: null}";
    let said = bare.refused(&[], &bare.configuration("up0", &other, more));
    assert_says(&said, &["network namespace", &format!("process {}", first.id()), "stop it"]);
    bare.ready(&first, &socket);
    assert!(first.ended().is_none());
    // A process that stands still is there all the same.
    first.signal(Signal::SIGSTOP).expect("stopped");
    let said = bare.refused(&[], &bare.configuration("up0", &other, more));
    assert_says(&said, &["network namespace"]);
    first.signal(Signal::SIGCONT).expect("going on");
    // And one that was killed is not: the next begins at once.
    first.signal(Signal::SIGKILL).expect("killed");
    first.wait(PATIENCE).expect("ended");
    let next = bare.spawn(&[], &bare.configuration("up0", &other, ""));
    bare.ready(&next, &bare.directory("other/admin.sock"));
}
