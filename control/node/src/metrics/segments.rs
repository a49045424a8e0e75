//! Metrics of TCP segments longer than the MTU: the third way out of a port, and what is cut.

use control::admin::Status;
use control::admin::status::SegmentsStatus;

use super::families::{counter, one};
use super::{Family, Sample};

type Count = (&'static str, &'static str, fn(&SegmentsStatus) -> u64);

const COUNTS: [Count; 8] = [
    (
        "xskiff_segments_whole_packets",
        "TCP segments longer than the MTU that left as they came",
        |segments| segments.whole_packets,
    ),
    (
        "xskiff_segments_joined_segments",
        "Segments made of packets of one TCP stream, which left the same way",
        |segments| segments.joined_segments,
    ),
    ("xskiff_segments_joined_packets", "Packets that those were made of", |segments| {
        segments.joined_packets
    }),
    (
        "xskiff_segments_following_packets",
        "Other packets that left the same way, since they followed one or might have been joined",
        |segments| segments.following_packets,
    ),
    ("xskiff_segments_calls", "Calls that sent both", |segments| segments.calls),
    ("xskiff_segments_cut_packets", "TCP segments longer than the MTU that were cut", |segments| {
        segments.cut_packets
    }),
    ("xskiff_segments_cut_pieces", "Packets that they were cut into, and that left", |segments| {
        segments.cut_pieces
    }),
    (
        "xskiff_segments_lost_pieces",
        "Pieces lost for want of packet memory or of room to transmit",
        |segments| segments.lost_pieces,
    ),
];

pub(super) fn families(status: &Status) -> Vec<Family> {
    let segments = &status.segments;
    let refused = [
        ("header", segments.refused_header_packets),
        ("memory", segments.refused_memory_packets),
        ("gone", segments.abandoned_packets),
    ];
    let refused = refused
        .map(|(reason, value)| Sample { labels: vec![("reason", reason.into())], value })
        .to_vec();
    let mut families: Vec<Family> = COUNTS
        .iter()
        .map(|(name, help, value)| counter(name, help, one(value(segments))))
        .collect();
    families.push(counter(
        "xskiff_segments_refused_packets",
        "Packets that the kernel did not take that way, and that are lost",
        refused,
    ));
    families
}
