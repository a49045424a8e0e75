//! The kernel as a node: routing, conntrack, DNAT and policy by its rules, its receive processing in a
//! kernel thread on the node's core.

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use pinning::CpuId;
use socket2::{Domain, Protocol, Socket, Type};

use super::awake::{Awake, SpunTime};
use super::network::Links;
use super::rules::Rules;
use super::service::{CLIENT_BITS, CLIENTS, IDLE, Job, PODS_BITS, PODS_NETWORK, pod_address};

/// Conntrack entries allowed: the host's limit, for it counts in every namespace.
const CONNTRACK_MAX: u64 = 8 << 20;
/// Hash buckets: as many as entries may be at once in a case, so that chains stay short.
const CONNTRACK_BUCKETS: u64 = 2 << 20;
const CONNTRACK: &str = "/proc/sys/net/netfilter";

/// A setting of the host's, put back when dropped.
struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    /// Raises a number; one that is as high already stays.
    fn raise(name: &str, to: u64) -> Result<Option<Self>> {
        let path = PathBuf::from(CONNTRACK).join(name);
        let read = || fs::read_to_string(&path).with_context(|| path.display().to_string());
        let before = read()?.trim().to_owned();
        if before.parse::<u64>().is_ok_and(|before| before >= to) {
            return Ok(None);
        }
        fs::write(&path, to.to_string()).with_context(|| format!("raise {}", path.display()))?;
        Ok(Some(Self { path, before }))
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, &self.before) {
            eprintln!("cannot set {} back to {}: {error}", self.path.display(), self.before);
        }
    }
}

/// The host's conntrack limits, raised while this lives. To be made in the host's namespace.
pub struct Limits {
    _settings: [Option<Setting>; 2],
}

impl Limits {
    /// Raises them.
    pub fn raise() -> Result<Self> {
        let raised = || -> Result<[Option<Setting>; 2]> {
            // They go back in this order: the number of buckets may set the limit.
            let buckets = Setting::raise("nf_conntrack_buckets", CONNTRACK_BUCKETS)?;
            Ok([buckets, Setting::raise("nf_conntrack_max", CONNTRACK_MAX)?])
        };
        Ok(Self { _settings: raised().context("the kernel needs conntrack (nf_conntrack)")? })
    }
}

/// A node that is all kernel.
pub struct KernelNode {
    links: Links,
    awake: Awake,
}

impl KernelNode {
    /// Sets it up in its namespace.
    pub fn new(links: Links, core: CpuId, rules: Rules, job: &Job) -> Result<Self> {
        let (uplink, pod) = (&links.uplink, &links.pod);
        let gateway = "10.0.0.2";
        let mut commands = format!(
            "address add 10.0.0.1/24 dev {uplink}\n\
             neigh replace {gateway} lladdr {} dev {uplink} nud permanent\n\
             route add {CLIENTS}/{} via {gateway}\n\
             route add {PODS_NETWORK}/{PODS_BITS} dev {pod}\n",
            links.client_mac(),
            32 - CLIENT_BITS,
        );
        for number in job.pods() {
            let (address, mac) = (pod_address(number), links.server_mac());
            commands += &format!("neigh replace {address} lladdr {mac} dev {pod} nud permanent\n");
        }
        links.ip(&commands)?;
        let seconds = IDLE.0;
        links.shell(&format!(
            "echo 1 >/proc/sys/net/ipv4/ip_forward\n\
             for scope in all default {uplink} {pod}; do \
             echo 0 >/proc/sys/net/ipv4/conf/$scope/rp_filter; done\n\
             ethtool -K {uplink} gro on\n\
             echo 1 >/sys/class/net/{uplink}/threaded"
        ))?;
        rules.load(&links, job)?;
        // These files come with the namespace's first use of conntrack.
        links.shell(&format!(
            "echo {seconds} >{CONNTRACK}/nf_conntrack_udp_timeout\n\
             echo {seconds} >{CONNTRACK}/nf_conntrack_udp_timeout_stream"
        ))?;
        pin_receiver(uplink, core)?;
        Ok(Self { links, awake: Awake::new(core)? })
    }

    /// Keeps its core awake, or lets it rest.
    pub fn set_active(&self, is_active: bool) {
        self.awake.set_active(is_active);
    }

    /// Processor time that keeping it awake took.
    pub fn spun_time(&self) -> SpunTime {
        self.awake.spun_time()
    }

    /// Forgets every connection.
    pub fn flush(&self) -> Result<()> {
        thread::scope(|scope| {
            let flush = scope.spawn(|| self.links.enter().and_then(|()| flush_conntrack()));
            flush.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .context("flush the kernel's conntrack")
    }
}

/// Pins the kernel thread that receives for `interface`, whose name no other namespace has.
///
/// # Errors
/// There is none: its NAPI is not threaded.
pub fn pin_receiver(interface: &str, core: CpuId) -> Result<()> {
    let prefix = format!("napi/{interface}-");
    // The thread is made by the write to `threaded`, and named a little later.
    for _ in 0..50 {
        for entry in fs::read_dir("/proc")?.flatten() {
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if !comm.starts_with(&prefix) {
                continue;
            }
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let mut cpus = CpuSet::new();
            cpus.set(usize::from(core.0))?;
            return sched_setaffinity(Pid::from_raw(pid), &cpus)
                .with_context(|| format!("pin kernel thread {}", comm.trim()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("the kernel has no thread that receives for {interface}: threaded NAPI needs Linux 5.12")
}

/// `IPCTNL_MSG_CT_DELETE` without a tuple, for both families (`linux/netfilter/nfnetlink*.h`).
fn flush_conntrack() -> Result<()> {
    const NETLINK: i32 = 16;
    const NETFILTER: i32 = 12;
    const LENGTH: u32 = 20;
    const CT_DELETE: u16 = 1 << 8 | 2;
    const REQUEST_AND_ACK: u16 = 1 | 4;
    const ERROR: u16 = 2;
    let domain = Domain::from(NETLINK);
    let mut socket = Socket::new(domain, Type::RAW, Some(Protocol::from(NETFILTER)))?;
    let mut message = Vec::new();
    message.extend(LENGTH.to_ne_bytes());
    message.extend(CT_DELETE.to_ne_bytes());
    message.extend(REQUEST_AND_ACK.to_ne_bytes());
    message.extend([0; 12]);
    socket.send(&message)?;
    let mut answer = [0; 256];
    let length = socket.read(&mut answer)?;
    let kind = answer.get(4..6).map(|kind| u16::from_ne_bytes([kind[0], kind[1]]));
    let errno = answer[..length].get(16..20).and_then(|errno| errno.try_into().ok());
    match (kind, errno.map(i32::from_ne_bytes)) {
        (Some(ERROR), Some(0)) => Ok(()),
        (Some(ERROR), Some(errno)) => Err(std::io::Error::from_raw_os_error(-errno).into()),
        _ => bail!("an answer that is no acknowledgement"),
    }
}
