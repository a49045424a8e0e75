//! Two namespaces: the node's, with `uplink` and `pod1` and so on, and one with all other ends,
//! `source` and `in1` and so on. Nothing in them speaks by itself: no addresses, no IPv6.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::netns::{self, enter, run};

/// The node's end of the source's link.
pub const UPLINK: &str = "uplink";
/// The source's end.
pub const SOURCE: &str = "source";

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
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = netns::prefix(&number.to_string())?;
        let network = Self { prefix, home: netns::current()?, pods };
        for namespace in ["node", "far"] {
            run("ip", &["netns", "add", &network.name(namespace)], "")?;
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
        enter(&network.name("node"))?;
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
        run("ip", &["-n", &self.name("node"), "-batch", "-"], &node)?;
        run("ip", &["-n", &far, "-batch", "-"], &other)
    }

    fn name(&self, namespace: &str) -> String {
        format!("{}{namespace}", self.prefix)
    }

    /// Runs `work` in a thread that is in the namespace.
    pub fn within<T: Send>(&self, namespace: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        let name = self.name(namespace);
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || -> Result<T> {
                enter(&name)?;
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
        netns::go_back(&self.home);
        for namespace in ["node", "far"] {
            // One that was never made is as good as removed.
            drop(run("ip", &["netns", "del", &self.name(namespace)], ""));
        }
    }
}
