//! Metrics of live XDP frames, the second way out of a port.

use control::admin::Status;
use control::admin::status::PortStatus;

use super::families::{Column, columns, counter, gauge, one};
use super::{Family, Sample};

const PORT_COLUMNS: &[Column<PortStatus>] = &[
    (
        "xskiff_port_transmits_live_frames",
        "1 while many packets at once leave by the port as live XDP frames",
        false,
        |port| u64::from(port.transmit == "live-frames"),
    ),
    (
        "xskiff_port_live_packets",
        "Packets that left as live XDP frames by a port of this number",
        true,
        |port| port.live_packets,
    ),
    (
        "xskiff_port_live_refused_packets",
        "Of those, packets that a full ring at the other end refused",
        true,
        |port| port.live_refused_packets,
    ),
    (
        "xskiff_port_live_vanished_packets",
        "Of those, packets that vanished since the other end had neither GRO nor an XDP program",
        true,
        |port| port.live_vanished_packets,
    ),
];

pub(super) fn families(status: &Status) -> Vec<Family> {
    let live = &status.live_frames;
    let labels = |port: &PortStatus| {
        vec![("interface", port.interface.clone()), ("kind", port.kind.clone())]
    };
    let refused = [
        ("no-space", live.refused_no_space),
        ("no-memory", live.refused_no_memory),
        ("other", live.refused_otherwise),
    ];
    let refused = refused
        .map(|(reason, value)| Sample { labels: vec![("reason", reason.into())], value })
        .to_vec();
    let mut families = columns(&status.ports, labels, PORT_COLUMNS);
    families.extend([
        gauge(
            "xskiff_live_frames_available",
            "1 when this kernel sends live XDP frames for the node",
            one(u64::from(live.unavailable.is_none())),
        ),
        counter("xskiff_live_calls", "Calls that sent live XDP frames", one(live.calls)),
        counter("xskiff_live_calls_refused", "Of those, refused by the kernel", refused),
        counter(
            "xskiff_live_returned_packets",
            "Packets that a call did not take, or without an interface, and AF_XDP was given",
            one(live.returned_packets),
        ),
        counter(
            "xskiff_live_abandoned_packets",
            "Packets lost while they waited, since their port was removed or its link went down",
            one(live.abandoned_packets),
        ),
    ]);
    families
}
