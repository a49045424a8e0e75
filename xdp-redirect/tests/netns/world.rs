//! Namespaces and veth pairs: `a0` in `a` to `left` in `node`, `right` in `node` to `b0` in `b`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dataplane::port::{PortId, PortKind, Ports};
use xdp_redirect::rules::PortRule;
use xdp_redirect::{Umem, WorkerPorts};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// What a world is made with.
#[derive(Clone, Copy)]
pub struct Plan {
    pub queues: u32,
    pub mtu: u32,
    pub has_ipv6: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self { queues: 1, mtu: 1500, has_ipv6: false }
    }
}

/// Three namespaces; the thread that made it is in `node` until it drops.
pub struct World {
    prefix: String,
    home: File,
}

/// Lets everything leave, and looks whether every frame is free again.
pub fn end_whole(mut ports: WorkerPorts, umem: &Umem) {
    while !ports.is_settled() {
        ports.flush();
    }
    drop(ports);
    let census = umem.census();
    assert_eq!(census.free, census.total, "frames were lost");
}

/// A world, or `None` where root tests are to be skipped.
pub fn world(plan: Plan) -> Option<World> {
    if std::env::var_os("XSKIFF_SKIP_ROOT_TESTS").is_some_and(|value| value == "1") {
        eprintln!("SKIPPED: XSKIFF_SKIP_ROOT_TESTS=1, nothing was tested against the kernel");
        return None;
    }
    // SAFETY: asks a number, has no arguments.
    let user = unsafe { libc::geteuid() };
    assert_eq!(user, 0, "this test makes network namespaces: run it as root");
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let prefix = format!("xr{}-{number}", std::process::id());
    let home = File::open("/proc/thread-self/ns/net").expect("a thread has a namespace");
    let world = World { prefix, home };
    for namespace in ["a", "b", "node"] {
        let name = world.name(namespace);
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        for scope in ["all", "default"] {
            let disabled = format!(
                "net.ipv6.conf.{scope}.disable_ipv6={}",
                u8::from(!plan.has_ipv6 || namespace == "node")
            );
            run("ip", &["netns", "exec", &name, "sysctl", "-qw", &disabled]);
        }
    }
    world.link("left", "a", "a0", plan);
    world.link("right", "b", "b0", plan);
    for (namespace, device, host) in [("a", "a0", 1), ("b", "b0", 2)] {
        let name = world.name(namespace);
        ip(&["-n", &name, "addr", "add", &format!("10.9.0.{host}/24"), "dev", device]);
        if plan.has_ipv6 {
            let address = format!("fd09::{host}/64");
            ip(&["-n", &name, "addr", "add", &address, "dev", device, "nodad"]);
        }
    }
    enter(&world.path("node"));
    Some(world)
}

impl World {
    pub fn name(&self, namespace: &str) -> String {
        format!("{}-{namespace}", self.prefix)
    }

    fn path(&self, namespace: &str) -> String {
        format!("/run/netns/{}", self.name(namespace))
    }

    fn link(&self, device: &str, namespace: &str, peer: &str, plan: Plan) {
        let (node, far) = (self.name("node"), self.name(namespace));
        let (queues, mtu) = (plan.queues.to_string(), plan.mtu.to_string());
        let size = ["numrxqueues", &queues, "numtxqueues", &queues];
        let mut arguments = vec!["-n", &node, "link", "add", device, "mtu", &mtu];
        arguments.extend(size);
        arguments.extend(["type", "veth", "peer", "name", peer, "netns", &far, "mtu", &mtu]);
        arguments.extend(size);
        ip(&arguments);
        let address = format!("02:00:00:00:00:0{namespace}");
        ip(&["-n", &far, "link", "set", peer, "address", &address]);
        ip(&["-n", &far, "link", "set", peer, "up"]);
        ip(&["-n", &node, "link", "set", device, "up"]);
        // The forwarder looks at nothing, so nothing may be left for a device to finish.
        let offloads = ["tx", "off", "tso", "off", "gso", "off"];
        let mut arguments = vec!["netns", "exec", &far, "ethtool", "-K", peer];
        arguments.extend(offloads);
        run("ip", &arguments);
    }

    /// Runs `work` in a thread that is in `namespace`.
    pub fn within<T: Send>(&self, namespace: &str, work: impl FnOnce() -> T + Send) -> T {
        let path = self.path(namespace);
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                enter(&path);
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // SAFETY: an open namespace file; the thread goes back where it came from.
        unsafe { libc::setns(self.home.as_raw_fd(), libc::CLONE_NEWNET) };
        for namespace in ["a", "b", "node"] {
            let name = self.name(namespace);
            drop(Command::new("ip").args(["netns", "del", &name]).status());
        }
    }
}

fn enter(path: &str) {
    let namespace = File::open(path).expect("the namespace was just made");
    // SAFETY: an open namespace file; only the calling thread changes.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "setns: {}", std::io::Error::last_os_error());
}

pub fn ip(arguments: &[&str]) {
    run("ip", arguments);
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} does not start: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// A rule as a pod's or an uplink's.
pub fn rule(port: u16, kind: PortKind) -> PortRule {
    PortRule { port: PortId(port), kind, queues: 1, everything: false }
}

/// Waits until `done`, two seconds at most; says whether it came true.
pub fn eventually(mut done: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(2) {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    done()
}
