//! Idle time-outs of flows.

use dataplane::time::Seconds;
use serde::{Deserialize, Serialize};

/// Declares the settings once: as fields, with their defaults, by name and for the tables.
macro_rules! timeouts {
    ($($(#[doc = $doc:literal])+ $field:ident = $of:ident,)+) => {
        /// Idle time-outs, in seconds. Names and defaults are Linux conntrack's
        /// (`net.netfilter.nf_conntrack_*`), but for ICMP, which RFC 5508 wants at 60.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Timeouts {
            $($(#[doc = $doc])+ pub $field: u32,)+
        }

        impl Default for Timeouts {
            fn default() -> Self {
                let defaults = dataplane::tables::Timeouts::default();
                Self { $($field: defaults.$of.0,)+ }
            }
        }

        impl Timeouts {
            /// Every setting by its name, in seconds.
            pub(crate) fn by_name(&self) -> impl Iterator<Item = (&'static str, u32)> {
                [$((stringify!($field), self.$field),)+].into_iter()
            }

            /// As the pipeline takes them.
            #[must_use]
            pub fn for_tables(&self) -> dataplane::tables::Timeouts {
                dataplane::tables::Timeouts { $($of: Seconds(self.$field),)+ }
            }
        }
    };
}

timeouts! {
    /// TCP: SYN seen, no answer.
    tcp_syn_sent_seconds = tcp_syn_sent,
    /// TCP: SYN and SYN-ACK seen.
    tcp_syn_recv_seconds = tcp_syn_recv,
    /// TCP: handshake complete.
    tcp_established_seconds = tcp_established,
    /// TCP: a FIN was seen.
    tcp_fin_wait_seconds = tcp_fin_wait,
    /// TCP: both FINs seen.
    tcp_time_wait_seconds = tcp_time_wait,
    /// TCP: a reset was seen.
    tcp_close_seconds = tcp_close,
    /// UDP without a reply.
    udp_seconds = udp,
    /// UDP in both directions.
    udp_stream_seconds = udp_stream,
    /// ICMP queries.
    icmp_seconds = icmp,
    /// SCTP: ABORT or SHUTDOWN COMPLETE was seen.
    sctp_closed_seconds = sctp_closed,
    /// SCTP: INIT was seen, perhaps INIT ACK.
    sctp_cookie_wait_seconds = sctp_cookie_wait,
    /// SCTP: COOKIE ECHO was seen.
    sctp_cookie_echoed_seconds = sctp_cookie_echoed,
    /// SCTP: the association stands.
    sctp_established_seconds = sctp_established,
    /// SCTP: who opened it has sent SHUTDOWN.
    sctp_shutdown_sent_seconds = sctp_shutdown_sent,
    /// SCTP: the other side has sent SHUTDOWN.
    sctp_shutdown_recd_seconds = sctp_shutdown_recd,
    /// SCTP: SHUTDOWN ACK was seen.
    sctp_shutdown_ack_sent_seconds = sctp_shutdown_ack_sent,
    /// SCTP: one direction of an association whose beginning was not seen.
    sctp_heartbeat_sent_seconds = sctp_heartbeat_sent,
    /// Any other protocol.
    generic_seconds = generic,
}
