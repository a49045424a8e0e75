//! What local stacks may leave to the interfaces that lead to us.

use control::config::Segments;
use xdp_redirect::ethtool::Offload;

/// Offloads that must be off at the other end of a port, since what they leave to be done is not done here.
#[must_use]
pub fn unwanted(segments: Segments) -> &'static [Offload] {
    match segments {
        Segments::Cut => &[Offload::TransmitChecksum, Offload::TcpSegmentation],
        // How long the datagrams are to be is told by nothing that AF_XDP shows.
        Segments::Whole => &[Offload::UdpSegmentation],
    }
}

/// Offloads that are to be on there, each after those that it needs.
#[must_use]
pub fn wanted(segments: Segments) -> &'static [Offload] {
    match segments {
        Segments::Cut => &[],
        Segments::Whole => &[Offload::TransmitChecksum, Offload::TcpSegmentation],
    }
}
