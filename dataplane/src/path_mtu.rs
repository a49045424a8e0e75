//! What a router says that a connection's path takes, since segments that are longer are cut here
//! ([`crate::segments`]): the pod's stack hears of it and sends smaller packets, but its whole segments
//! would be cut as before, and lost at that router for ever.

use crate::address::Protocol;
use crate::conntrack::segment::Sequence;
use crate::flow_key::FlowKey;
use crate::mss::SegmentLimit;
use crate::packet::{Packet, quoted};
use crate::wire::{self, ICMP_LEN, IPV4_LEN, IPV6_LEN, TCP_LEN};

/// What every IPv6 link takes, in bytes: less is not believed (RFC 8201, 4). For IPv4 the least
/// segment is bound enough: who forges an error makes packets small, and no smaller.
const IPV6_MTU_MIN: u16 = 1280;

/// A TCP packet did not fit a link of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooBig {
    /// What does.
    pub(crate) limit: SegmentLimit,
    /// The packet's sequence number, which tells that whoever says so saw it.
    pub(crate) sequence: Sequence,
}

impl TooBig {
    /// What an ICMP error says: "fragmentation needed" (RFC 1191, 4) or "packet too big" (RFC 4443, 3.2),
    /// about TCP. `None` of any other.
    pub(crate) fn read(packet: &Packet, bytes: &[u8]) -> Option<Self> {
        let header: &[u8; ICMP_LEN] = wire::array_at(bytes, packet.l4_offset)?;
        let word = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let (mtu, headers) = match (packet.flow_key(), header[0], header[1]) {
            // A router that does not say what fits says 0.
            (FlowKey::V4(_), 3, 4) => (u16::from_be_bytes([header[6], header[7]]), IPV4_LEN),
            (FlowKey::V6(_), 2, _) => {
                (u16::try_from(word).unwrap_or(u16::MAX).max(IPV6_MTU_MIN), IPV6_LEN)
            }
            _ => return None,
        };
        let quote = quoted(packet, bytes).ok()?;
        let l4: &[u8; 8] = wire::array_at(bytes, quote.l4_offset)?;
        let segment = usize::from(mtu).saturating_sub(headers + TCP_LEN);
        (quote.key.protocol() == Protocol::TCP).then_some(Self {
            limit: SegmentLimit::of(u16::try_from(segment).unwrap_or(u16::MAX)),
            sequence: u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]),
        })
    }
}
