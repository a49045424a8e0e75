//! Two namespaces: the node's, with `uplink` and `pod1` and so on, and one with all other ends,
//! `source` and `in1` and so on. Nothing in them speaks by itself: no addresses, no IPv6.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

/// The node's end of the source's link.
pub const UPLINK: &str = "uplink";
/// The source's end.
pub const SOURCE: &str = "source";

const PREFIX: &str = "xskiff-perf-";
const NAMESPACES: &str = "/run/netns";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Namespaces and links of this process; the thread that made them is in the node's until they
/// drop, which removes them.
pub struct Network {
    prefix: String,
    home: File,
    pods: u16,
}

impl Network {
    /// Makes the links of `pods` pods and of a source, after removing what killed runs left.
    pub fn new(pods: u16) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run as root");
        remove_leftovers();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{PREFIX}{}-{number}-", std::process::id());
        let home = File::open("/proc/thread-self/ns/net").context("open this namespace")?;
        let network = Self { prefix, home, pods };
        for namespace in ["node", "far"] {
            ip(&["netns", "add", &network.name(namespace)], "")?;
        }
        for namespace in ["node", "far"] {
            network.within(namespace, || -> Result<()> {
                for scope in ["all", "default"] {
                    let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
                    // A kernel without IPv6 is as silent.
                    if Path::new(&path).exists() {
                        fs::write(&path, "1").with_context(|| path.clone())?;
                    }
                }
                Ok(())
            })??;
        }
        network.link()?;
        enter(&network.path("node"))?;
        Ok(network)
    }

    fn link(&self) -> Result<()> {
        let far = self.name("far");
        let (mut node, mut other) = (String::new(), String::new());
        let pods = (1..=self.pods).map(|pod| (pod_interface(pod), format!("in{pod}")));
        for (ours, theirs) in pods.chain([(UPLINK.into(), SOURCE.into())]) {
            let queues = "numrxqueues 1 numtxqueues 1";
            writeln!(
                node,
                "link add dev {ours} {queues} type veth peer name {theirs} netns {far} {queues}\n\
                 link set dev {ours} up"
            )?;
            writeln!(other, "link set dev {theirs} up")?;
        }
        ip(&["-n", &self.name("node"), "-batch", "-"], &node)?;
        ip(&["-n", &far, "-batch", "-"], &other)
    }

    fn name(&self, namespace: &str) -> String {
        format!("{}{namespace}", self.prefix)
    }

    fn path(&self, namespace: &str) -> String {
        format!("{NAMESPACES}/{}", self.name(namespace))
    }

    /// Runs `work` in a thread that is in the namespace.
    pub fn within<T: Send>(&self, namespace: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path(namespace);
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || -> Result<T> {
                enter(&path)?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Packets that arrived at all pods so far.
    pub fn delivered(&self) -> Result<u64> {
        let text = self.within("far", || fs::read_to_string("/proc/thread-self/net/dev"))??;
        let mut packets = 0;
        for (name, counters) in text.lines().filter_map(|line| line.trim().split_once(':')) {
            if name.starts_with("in") {
                let counter = counters.split_whitespace().nth(1);
                packets += counter.context("/proc/net/dev has no packets")?.parse::<u64>()?;
            }
        }
        Ok(packets)
    }
}

/// The node's end of a pod's link.
pub fn pod_interface(pod: u16) -> String {
    format!("pod{pod}")
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.home, CloneFlags::CLONE_NEWNET) {
            eprintln!("cannot go back to the first network namespace: {error}");
        }
        for namespace in ["node", "far"] {
            // One that was never made is as good as removed.
            drop(ip(&["netns", "del", &self.name(namespace)], ""));
        }
    }
}

fn enter(path: &str) -> Result<()> {
    let namespace = File::open(path).with_context(|| format!("open {path}"))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {path}"))
}

/// Removes namespaces of processes that are gone.
fn remove_leftovers() {
    for entry in fs::read_dir(NAMESPACES).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            drop(Command::new("ip").args(["netns", "del"]).arg(&name).status());
        }
    }
}

fn ip(arguments: &[&str], input: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("start `ip` (package iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).context("write to `ip`")?;
    }
    let output = child.wait_with_output().context("wait for `ip`")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
