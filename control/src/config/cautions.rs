//! What can be used and is probably not meant: told, and taken.

use std::fmt;

use super::{Config, OnStall, Segments, Timeouts};

/// A setting that works, at a price that should be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caution {
    /// Path of the field.
    pub field: String,
    /// Its value.
    pub value: String,
    /// What it costs, and what is recommended.
    pub reason: String,
}

impl fmt::Display for Caution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.field, self.value, self.reason)
    }
}

/// The least that an RFC asks of a time-out, in seconds, and what a shorter one breaks.
const MINIMA: [(&str, u32, &str); 9] = [
    ("tcp_syn_sent_seconds", 240, "RFC 5382, REQ-5 (a connection partially open)"),
    ("tcp_syn_recv_seconds", 240, "RFC 5382, REQ-5 (a connection partially open)"),
    ("tcp_established_seconds", 7440, "RFC 5382, REQ-5 (2 h 4 min: keep-alives come every 2 h)"),
    ("tcp_fin_wait_seconds", 240, "RFC 5382, REQ-5 (a connection closing)"),
    ("tcp_time_wait_seconds", 240, "RFC 5382, REQ-5 (a connection closing)"),
    ("tcp_close_seconds", 240, "RFC 5382, REQ-5 (a connection closing)"),
    ("udp_seconds", 120, "RFC 4787, REQ-5 (a UDP mapping)"),
    ("udp_stream_seconds", 120, "RFC 4787, REQ-5 (a UDP mapping)"),
    ("icmp_seconds", 60, "RFC 5508, REQ-2 (an ICMP query session)"),
];

/// Bytes of a frame that go well with segments of 64 KB.
const WHOLE_FRAME_BYTES: u32 = 4096;

impl Config {
    /// What is accepted and should be thought over; empty for the defaults.
    ///
    /// Linux's defaults, which are ours, lie under some of the RFCs' minima. They have proved
    /// themselves, so a caution is given for what is below both.
    #[must_use]
    pub fn cautions(&self) -> Vec<Caution> {
        let defaults = Timeouts::default();
        let given = self.timeouts.by_name().zip(defaults.by_name());
        let short =
            given.filter_map(|((name, seconds), (_, default))| short(name, seconds, default));
        short
            .chain(self.passes_nowhere())
            .chain(self.host_loses())
            .chain(self.takes_many_frames())
            .collect()
    }

    /// A segment takes 37 frames of the smaller kind, and a queue has as many of either.
    fn takes_many_frames(&self) -> Option<Caution> {
        let is_small = self.packet_memory.frame_bytes < WHOLE_FRAME_BYTES;
        (self.segments == Segments::Whole && is_small).then(|| Caution {
            field: "packet_memory.frame_bytes".into(),
            value: self.packet_memory.frame_bytes.to_string(),
            reason: format!(
                "whole segments take twice as many frames as of {WHOLE_FRAME_BYTES} bytes, so that bursts \
                 of several connections of a pod lose some: {WHOLE_FRAME_BYTES} is recommended"
            ),
        })
    }

    /// Only the pipeline can tell whose a fragment or an ICMP error is, and hands it on by the host
    /// port.
    fn host_loses(&self) -> Option<Caution> {
        (!self.host_port.enabled).then(|| Caution {
            field: "host_port.enabled".into(),
            value: "false".into(),
            reason: "the node's own fragments and ICMP errors (path MTU too) that arrive on \
                     uplinks are dropped, and its processes reach no service"
                .into(),
        })
    }

    /// The kernel's way to pods leads into the host port, whose worker stalls with the others.
    fn passes_nowhere(&self) -> Option<Caution> {
        let is_meant = self.stall.on_stall == OnStall::Pass && self.host_port.enabled;
        is_meant.then(|| Caution {
            field: "stall.on_stall".into(),
            value: "pass".into(),
            reason: "the kernel leads what is for pods into the host port, which stalls with the \
                     workers: it arrives only with host_port.enabled: false"
                .into(),
        })
    }
}

fn short(name: &str, seconds: u32, default: u32) -> Option<Caution> {
    let (_, minimum, source) = MINIMA.iter().find(|(field, ..)| *field == name)?;
    (seconds < *minimum && seconds < default).then(|| Caution {
        field: format!("timeouts.{name}"),
        value: format!("{seconds} s"),
        reason: format!(
            "{source} asks for at least {minimum} s, the default is {default} s: whoever is silent \
             for longer loses the connection"
        ),
    })
}
