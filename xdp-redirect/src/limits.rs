//! Sizes that the XDP program and this crate must agree on.
//!
//! `build.rs` includes this file and hands every constant to clang, so there is one place to
//! change and no way to disagree.

/// Ports (interfaces) one program serves; a port's number is below this.
pub const PORTS_MAX: u32 = 2048;
/// Receive queues of one port; a queue's number is below this.
pub const QUEUES_MAX: u32 = 64;
/// Workers whose heartbeat the program can see; a worker's number is below this.
pub const WORKERS_MAX: u32 = 64;
/// Destination prefixes that are ours, per family.
pub const PREFIXES_MAX: u32 = 65_536;
/// The node's own addresses, per family.
pub const NODE_ADDRESSES_MAX: u32 = 1024;
/// Addresses that pods may claim on their links, per family: as many as prefixes of ours.
pub const POD_ADDRESSES_MAX: u32 = PREFIXES_MAX;
/// Interfaces that may be entered in the `ports` map.
pub const INTERFACES_MAX: u32 = PORTS_MAX;
/// Bytes between two workers' heartbeats: a cache line, so that workers do not share one.
pub const HEARTBEAT_STRIDE: u32 = 64;
/// 64-bit words of one bitmap over all L4 ports.
pub const L4_PORT_WORDS: u32 = 1024;

/// Packets of one call of the second way out, at most.
pub const LIVE_BATCH: u32 = 256;
/// Bytes of one of them, at most: with its header in the batch it fills half a page.
pub const LIVE_PACKET_BYTES: u32 = 2032;

/// Port kinds, as the program sees them.
pub const KIND_POD: u8 = 0;
/// See [`KIND_POD`].
pub const KIND_UPLINK: u8 = 1;
/// See [`KIND_POD`].
pub const KIND_HOST: u8 = 2;

/// Port flag: redirect all IPv4 and IPv6 (host firewall on).
pub const PORT_EVERYTHING: u8 = 1;

/// Prefix flag: its traffic is translated, so it never goes to the kernel.
pub const PREFIX_TRANSLATED: u32 = 1;
/// Prefix flag: what would find no live worker goes to the kernel.
pub const PREFIX_PASS_ON_STALL: u32 = 2;

/// Bitmap of TCP destination ports that are ours on node addresses.
pub const BITMAP_TCP: u32 = 0;
/// Bitmap of UDP destination ports that are ours on node addresses.
pub const BITMAP_UDP: u32 = 1;
/// Bitmap of ICMP and ICMPv6 echo identifiers that are ours on node addresses.
pub const BITMAP_ICMP: u32 = 2;
/// Bitmap of SCTP destination ports that are ours on node addresses.
pub const BITMAP_SCTP: u32 = 3;
/// Bitmap of protocols of IP that are ours on node addresses, beside those above.
pub const BITMAP_PROTOCOL: u32 = 4;
/// Number of bitmaps.
pub const BITMAPS: u32 = 5;

/// Counter: handed to a socket.
pub const COUNTER_REDIRECTED: u32 = 0;
/// Counter: left to the kernel.
pub const COUNTER_PASSED: u32 = 1;
/// Counter: ours, and no socket serves the queue.
pub const COUNTER_NO_SOCKET: u32 = 2;
/// Counter: ours, and the worker that serves the queue does not tick.
pub const COUNTER_STALLED: u32 = 3;
/// Counter: neither IP nor ARP, from a pod or the host's stack.
pub const COUNTER_NOT_IP: u32 = 4;
/// Counter: the frame ends before the headers it announces.
pub const COUNTER_MALFORMED: u32 = 5;
/// Counter: the interface is in no table; left to the kernel.
pub const COUNTER_UNKNOWN_INTERFACE: u32 = 6;
/// Counter: ours without a live worker, left to the kernel as configured.
pub const COUNTER_PASSED_ON_STALL: u32 = 7;
/// Counter: ours, and behind a priority tag on an uplink.
pub const COUNTER_TAGGED: u32 = 8;
/// Counter: begins a TCP connection, and the worker that serves the queue is late.
pub const COUNTER_LATE: u32 = 9;
/// Number of counters.
pub const COUNTERS: u32 = 10;
