//! The crate against a real kernel: veth pairs in network namespaces of their own.
//!
//! Needs root. `XSKIFF_SKIP_ROOT_TESTS=1` skips, loudly.

mod attaching;
mod forwarding;
mod handing_over;
mod live;
mod many_ports;
mod packets;
mod pinning;
mod redirecting;
mod regions;
mod segments;
mod sockets;
mod world;
