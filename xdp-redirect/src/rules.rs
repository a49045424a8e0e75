//! What the XDP program is told: whose interface is whose, and what is ours.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, XskMap};
use dataplane::lpm::Prefix;
use dataplane::port::{PortId, PortKind};

use crate::cast::index;
use crate::error::{Error, io_error};
use crate::limits;

mod held;

pub use held::HeldRules;

/// What happens to traffic of ours while no live worker serves its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnStall {
    /// It is dropped: TCP retransmits.
    #[default]
    Drop,
    /// It goes to the kernel. Only what arrives on uplinks, for prefixes where neither translation
    /// nor policy applies.
    Pass,
}

/// What the program does with an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRule {
    /// Our number of the port, below [`limits::PORTS_MAX`].
    pub port: PortId,
    /// What stands at the other end.
    pub kind: PortKind,
    /// Receive queues of the interface, at most [`limits::QUEUES_MAX`].
    pub queues: u32,
    /// Redirect all IPv4 and IPv6 (host firewall on). Pods and the host port always do.
    pub everything: bool,
}

/// A destination prefix that is ours on every uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OurPrefix {
    /// The destinations.
    pub prefix: Prefix,
    /// Whether connections to it are translated (services, load balancer addresses).
    pub translated: bool,
    /// What happens without a live worker. [`OnStall::Pass`] is refused for translated prefixes.
    pub on_stall: OnStall,
}

/// L4 destination ports of the node's own addresses that are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L4Bitmap {
    /// TCP ports.
    Tcp,
    /// UDP ports.
    Udp,
    /// Identifiers of ICMP and ICMPv6 echo replies.
    Icmp,
    /// SCTP ports.
    Sctp,
    /// Protocols of IP, of which the others say nothing.
    Protocol,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct PortEntry {
    port: u16,
    kind: u8,
    flags: u8,
    queues: u32,
}
const _: () = assert!(size_of::<PortEntry>() == 8 && size_of::<Key<[u8; 16]>>() == 20);
// SAFETY: `repr(C)` integers without padding (2 + 1 + 1 + 4 bytes): any bytes are a value.
unsafe impl Pod for PortEntry {}

/// An address and the port of the pod that has it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Claim<const BYTES: usize> {
    port: u32,
    address: [u8; BYTES],
}
const _: () = assert!(size_of::<Claim<4>>() == 8 && size_of::<Claim<16>>() == 20);
// SAFETY: `repr(C)`, an integer and bytes whose number is a multiple of four, so that no padding
// follows: any bytes are a value.
unsafe impl Pod for Claim<4> {}
// SAFETY: as above.
unsafe impl Pod for Claim<16> {}

/// The program's maps, typed.
pub(crate) struct Rules {
    xsks: XskMap<MapData>,
    slot_worker: Array<MapData, u32>,
    ports: HashMap<MapData, u32, PortEntry>,
    prefixes4: LpmTrie<MapData, [u8; 4], u32>,
    prefixes6: LpmTrie<MapData, [u8; 16], u32>,
    node_addresses4: HashMap<MapData, [u8; 4], u8>,
    node_addresses6: HashMap<MapData, [u8; 16], u8>,
    pod_addresses4: HashMap<MapData, Claim<4>, u8>,
    pod_addresses6: HashMap<MapData, Claim<16>, u8>,
    l4_ports: Array<MapData, u64>,
    /// What `l4_ports` holds, so that a change writes the words it changes.
    l4_words: Box<[u64]>,
    stall_after: Array<MapData, u64>,
}

/// Turns one map of the program into its typed form.
pub(crate) fn typed<T>(ebpf: &mut aya::Ebpf, map: &'static str) -> Result<T, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    let found = ebpf
        .take_map(map)
        .ok_or_else(|| Error::Load { reason: format!("it has no map {map}"), errno: 0 })?;
    T::try_from(found).map_err(|error| map_error(map, &error))
}

pub(crate) fn map_error(map: &'static str, error: &MapError) -> Error {
    Error::Map { map, source: io_error(error) }
}

fn in_range(what: &'static str, value: u32, end: u32) -> Result<u32, Error> {
    if value < end {
        return Ok(value);
    }
    Err(Error::OutOfRange { what, value: value.into(), max: u64::from(end) - 1 })
}

/// Removing what is not there is no error.
fn removed(map: &'static str, result: Result<(), MapError>) -> Result<(), Error> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(error) => {
            let source = io_error(&error);
            if source.raw_os_error() == Some(libc::ENOENT) {
                return Ok(());
            }
            Err(Error::Map { map, source })
        }
    }
}

fn slot(port: PortId, queue: u32) -> Result<u32, Error> {
    let port = in_range("port", port.0.into(), limits::PORTS_MAX)?;
    Ok(port * limits::QUEUES_MAX + in_range("queue", queue, limits::QUEUES_MAX)?)
}

impl Rules {
    pub(crate) fn take(ebpf: &mut aya::Ebpf) -> Result<Self, Error> {
        let words = index(limits::BITMAPS * limits::L4_PORT_WORDS);
        Ok(Self {
            xsks: typed(ebpf, "xsks")?,
            slot_worker: typed(ebpf, "slot_worker")?,
            ports: typed(ebpf, "ports")?,
            prefixes4: typed(ebpf, "prefixes4")?,
            prefixes6: typed(ebpf, "prefixes6")?,
            node_addresses4: typed(ebpf, "node_addresses4")?,
            node_addresses6: typed(ebpf, "node_addresses6")?,
            pod_addresses4: typed(ebpf, "pod_addresses4")?,
            pod_addresses6: typed(ebpf, "pod_addresses6")?,
            l4_ports: typed(ebpf, "l4_ports")?,
            l4_words: vec![0; words].into_boxed_slice(),
            stall_after: typed(ebpf, "stall_after")?,
        })
    }

    pub(crate) fn set_port(&mut self, ifindex: u32, rule: &PortRule) -> Result<(), Error> {
        in_range("port", rule.port.0.into(), limits::PORTS_MAX)?;
        if rule.queues == 0 || rule.queues > limits::QUEUES_MAX {
            let max = limits::QUEUES_MAX.into();
            return Err(Error::OutOfRange {
                what: "number of queues",
                value: rule.queues.into(),
                max,
            });
        }
        let kind = match rule.kind {
            PortKind::Pod => limits::KIND_POD,
            PortKind::Uplink => limits::KIND_UPLINK,
            PortKind::Host => limits::KIND_HOST,
        };
        let flags = if rule.everything { limits::PORT_EVERYTHING } else { 0 };
        let entry = PortEntry { port: rule.port.0, kind, flags, queues: rule.queues };
        self.ports.insert(ifindex, entry, 0).map_err(|error| map_error("ports", &error))
    }

    pub(crate) fn remove_port(&mut self, ifindex: u32) -> Result<(), Error> {
        removed("ports", self.ports.remove(&ifindex))
    }

    pub(crate) fn set_socket(
        &mut self,
        port: PortId,
        queue: u32,
        worker: u32,
        socket: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let slot = slot(port, queue)?;
        let worker = in_range("worker", worker, limits::WORKERS_MAX)?;
        // The worker first: the program must not find a socket with a stranger's heartbeat.
        self.slot_worker.set(slot, worker, 0).map_err(|error| map_error("slot_worker", &error))?;
        self.xsks.set(slot, socket, 0).map_err(|error| map_error("xsks", &error))
    }

    pub(crate) fn remove_socket(&mut self, port: PortId, queue: u32) -> Result<(), Error> {
        removed("xsks", self.xsks.unset(slot(port, queue)?))
    }

    pub(crate) fn set_prefix(&mut self, ours: &OurPrefix) -> Result<(), Error> {
        if ours.translated && ours.on_stall == OnStall::Pass {
            return Err(Error::PassRefused {
                subject: format!("prefix {}", ours.prefix),
                reason: "its connections are translated, and the kernel would reset them",
            });
        }
        let translated = if ours.translated { limits::PREFIX_TRANSLATED } else { 0 };
        let pass = if ours.on_stall == OnStall::Pass { limits::PREFIX_PASS_ON_STALL } else { 0 };
        let (length, flags) = (ours.prefix.length().into(), translated | pass);
        match ours.prefix.address() {
            IpAddr::V4(a) => self
                .prefixes4
                .insert(&Key::new(length, a.octets()), flags, 0)
                .map_err(|error| map_error("prefixes4", &error)),
            IpAddr::V6(a) => self
                .prefixes6
                .insert(&Key::new(length, a.octets()), flags, 0)
                .map_err(|error| map_error("prefixes6", &error)),
        }
    }

    pub(crate) fn remove_prefix(&mut self, prefix: Prefix) -> Result<(), Error> {
        let length = prefix.length().into();
        match prefix.address() {
            IpAddr::V4(a) => {
                removed("prefixes4", self.prefixes4.remove(&Key::new(length, a.octets())))
            }
            IpAddr::V6(a) => {
                removed("prefixes6", self.prefixes6.remove(&Key::new(length, a.octets())))
            }
        }
    }

    pub(crate) fn set_node_address(&mut self, address: IpAddr) -> Result<(), Error> {
        match address {
            IpAddr::V4(a) => self
                .node_addresses4
                .insert(a.octets(), 1, 0)
                .map_err(|error| map_error("node_addresses4", &error)),
            IpAddr::V6(a) => self
                .node_addresses6
                .insert(a.octets(), 1, 0)
                .map_err(|error| map_error("node_addresses6", &error)),
        }
    }

    pub(crate) fn remove_node_address(&mut self, address: IpAddr) -> Result<(), Error> {
        match address {
            IpAddr::V4(a) => removed("node_addresses4", self.node_addresses4.remove(&a.octets())),
            IpAddr::V6(a) => removed("node_addresses6", self.node_addresses6.remove(&a.octets())),
        }
    }

    pub(crate) fn set_pod_address(&mut self, port: PortId, address: IpAddr) -> Result<(), Error> {
        let port = in_range("port", port.0.into(), limits::PORTS_MAX)?;
        match address {
            IpAddr::V4(a) => self
                .pod_addresses4
                .insert(Claim { port, address: a.octets() }, 1, 0)
                .map_err(|error| map_error("pod_addresses4", &error)),
            IpAddr::V6(a) => self
                .pod_addresses6
                .insert(Claim { port, address: a.octets() }, 1, 0)
                .map_err(|error| map_error("pod_addresses6", &error)),
        }
    }

    pub(crate) fn remove_pod_address(
        &mut self,
        port: PortId,
        address: IpAddr,
    ) -> Result<(), Error> {
        let port = port.0.into();
        match address {
            IpAddr::V4(a) => {
                let claim = Claim { port, address: a.octets() };
                removed("pod_addresses4", self.pod_addresses4.remove(&claim))
            }
            IpAddr::V6(a) => {
                let claim = Claim { port, address: a.octets() };
                removed("pod_addresses6", self.pod_addresses6.remove(&claim))
            }
        }
    }

    pub(crate) fn set_l4_ports(
        &mut self,
        bitmap: L4Bitmap,
        range: RangeInclusive<u16>,
        ours: bool,
    ) -> Result<(), Error> {
        let base = limits::L4_PORT_WORDS
            * match bitmap {
                L4Bitmap::Tcp => limits::BITMAP_TCP,
                L4Bitmap::Udp => limits::BITMAP_UDP,
                L4Bitmap::Icmp => limits::BITMAP_ICMP,
                L4Bitmap::Sctp => limits::BITMAP_SCTP,
                L4Bitmap::Protocol => limits::BITMAP_PROTOCOL,
            };
        if range.is_empty() {
            return Ok(());
        }
        let (first, last) = (u32::from(*range.start()), u32::from(*range.end()));
        for word in first / 64..=last / 64 {
            let low = if word == first / 64 { first % 64 } else { 0 };
            let high = if word == last / 64 { last % 64 } else { 63 };
            let mask = (u64::MAX << low) & (u64::MAX >> (63 - high));
            let at = base + word;
            let old = self.l4_words[index(at)];
            let new = if ours { old | mask } else { old & !mask };
            if new != old {
                self.l4_ports.set(at, new, 0).map_err(|error| map_error("l4_ports", &error))?;
                self.l4_words[index(at)] = new;
            }
        }
        Ok(())
    }

    pub(crate) fn set_stall_after(&mut self, limit: Duration) -> Result<(), Error> {
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX / 2);
        self.stall_after.set(0, nanos, 0).map_err(|error| map_error("stall_after", &error))
    }
}
