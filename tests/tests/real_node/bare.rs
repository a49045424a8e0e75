//! A node with uplinks and nothing behind them, for what `xskiff run` does by itself.

use std::path::PathBuf;

use xskiff::lab::link::{self, End};
use xskiff::lab::{Laboratory, Namespace, Process, wait_until};
use xskiff_tests::xskiff_binary::path;

use crate::world::PATIENCE;

/// A node with two uplinks and nothing behind them.
pub struct Bare {
    pub node: Namespace,
    /// At the other end of its links.
    pub outside: Namespace,
    pub laboratory: Laboratory,
}

impl Bare {
    /// Builds it and waits until its links are up.
    pub fn new(label: &str) -> Self {
        let laboratory = Laboratory::new(label, path()).expect("a laboratory");
        let node = laboratory.namespace("node").expect("a namespace");
        let outside = laboratory.namespace("outside").expect("a namespace");
        for (number, interface) in ["up0", "up1"].into_iter().enumerate() {
            let own = End { namespace: &node, interface };
            link::pair(End { namespace: &outside, interface }, own, 1, 1500).expect("a link");
            link::address(own, &format!("192.0.2.{}/28", 16 * number + 1)).expect("an address");
        }
        let bare = Self { node, outside, laboratory };
        // The kernel settles the state of links in its own time.
        let settled = || bare.state().matches("state UP").count() == 2;
        assert!(wait_until(PATIENCE, settled).is_some(), "{}", bare.state());
        bare
    }

    /// Waits until an interface has a carrier.
    pub fn settle(&self, interface: &str) {
        let link = || self.node.ip(&format!("link show {interface}")).expect("ip");
        assert!(wait_until(PATIENCE, || link().contains("state UP")).is_some(), "{}", link());
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

    /// A path in the laboratory's own directory, which is not made.
    pub fn directory(&self, name: &str) -> String {
        self.laboratory.directory().join(name).display().to_string()
    }

    /// Writes the configuration of a node on `interface`, with `more` lines of it.
    pub fn configuration(&self, interface: &str, run_directory: &str, more: &str) -> String {
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
    pub fn refused(&self, before: &[&str], configuration: &str) -> String {
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

    /// Starts `xskiff run` behind `before`.
    pub fn spawn(&self, before: &[&str], configuration: &str) -> Process {
        self.spawn_with(before, configuration, &[])
    }

    /// As [`Bare::spawn`], with further words behind.
    pub fn spawn_with(&self, before: &[&str], configuration: &str, behind: &[&str]) -> Process {
        let program = path().to_string_lossy();
        let run: &[&str] = &[&*program, "run", "--config", configuration];
        let words = [before, run, behind].concat();
        self.node.spawn("xskiff", words[0], &words[1..]).expect("started")
    }

    /// Waits until the process answers at `socket`.
    pub fn ready(&self, process: &Process, socket: &str) {
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
