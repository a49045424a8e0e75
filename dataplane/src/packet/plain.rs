//! What nearly every packet is, whole TCP or UDP over IPv4 without options, read in one go.
//!
//! The careful way of the parent module says the same about these packets, with a reason for what
//! is wrong, and eight times slower: its results travel through memory between the layers.

use arrayvec::ArrayVec;

use super::{Packet, PacketKind, Turn};
use crate::DropReason;
use crate::address::Protocol;
use crate::flow_key::{FlowKey, FlowKey4};
use crate::wire::checksum::Sum;
use crate::wire::{ETHERNET_LEN, ETHERTYPE_IPV4, FRAME_LEN_MIN, IPV4_LEN, TCP_LEN, UDP_LEN};

const L4: usize = ETHERNET_LEN + IPV4_LEN;
/// Bytes looked at. A shorter frame, though it may hold UDP, goes the careful way.
pub(crate) const BYTES: usize = L4 + TCP_LEN;

/// Appends the packet to `parsed` and answers its tuple, when it is a plain one and nothing is wrong
/// with it.
///
/// It is built where it stays. Returned, it would be built on the stack in small pieces and
/// copied in large ones, and a load that spans several stores waits until they have left the
/// processor's store buffer.
#[inline(always)]
pub(super) fn parse<const N: usize>(
    bytes: &[u8],
    len: usize,
    parsed: &mut ArrayVec<Result<Packet, DropReason>, N>,
) -> Option<FlowKey4> {
    let frame = bytes.first_chunk::<BYTES>()?;
    let header = frame[ETHERNET_LEN..].first_chunk::<IPV4_LEN>()?;
    let half = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let ip_len = usize::from(half(ETHERNET_LEN + 2));
    let end = ETHERNET_LEN + ip_len;
    let is_whole = half(ETHERNET_LEN + 6) & 0x3fff == 0;
    let is_ipv4 = half(12) == ETHERTYPE_IPV4 && header[0] == 0x45 && frame[0] & 1 == 0;
    if !is_ipv4 || !is_whole || !is_all(end, len) || Sum::default().bytes(header).fold() != 0xffff {
        return None;
    }
    let addresses = u64::from_be_bytes(*header[12..].first_chunk()?);
    if !is_host(header[12]) || !is_host(header[16]) {
        return None;
    }
    let (kind, l4_end, tcp_flags) = match Protocol(header[9]) {
        Protocol::UDP => {
            let udp_len = usize::from(half(L4 + 4));
            if udp_len < UDP_LEN {
                return None;
            }
            (PacketKind::Udp, L4 + udp_len, 0)
        }
        Protocol::TCP => {
            let header_len = usize::from(frame[L4 + 12] >> 4) * 4;
            let flags = frame[L4 + 13];
            if header_len < TCP_LEN || !super::is_sound(flags) {
                return None;
            }
            (PacketKind::Tcp, L4 + header_len, flags)
        }
        _ => return None,
    };
    if l4_end > end {
        return None;
    }
    let [a, b, c, d] = *frame[L4..].first_chunk()?;
    let ports = u32::from_be_bytes([a, b, c, d]);
    let key = FlowKey4::of_words(addresses, ports, Protocol(header[9]));
    parsed.push(Ok(Packet {
        key: FlowKey::V4(key),
        kind,
        l4_offset: L4,
        ip_len,
        is_long: false,
        may_be_whole: false,
        ttl: header[8],
        tcp_flags,
        turn: Turn::Neither,
    }));
    Some(key)
}

/// Whether a frame of `len` bytes holds the packet that ends at `end`, and nothing behind it but what a
/// short frame is padded with.
#[inline(always)]
fn is_all(end: usize, len: usize) -> bool {
    end == len || end < len && len <= FRAME_LEN_MIN
}

/// Whether an address that begins so can be a host's beyond this link.
#[inline(always)]
fn is_host(first: u8) -> bool {
    first != 0 && first != 127 && first < 224
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A valid UDP or TCP frame of 60 bytes without L4 checksum, which parsing does not read.
    fn frame(protocol: Protocol) -> Vec<u8> {
        let mut frame = vec![0; 60];
        frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        frame[16..24].copy_from_slice(&[0, 46, 0, 0, 0x40, 0, 64, protocol.0]);
        frame[26..34].copy_from_slice(&[10, 1, 0, 1, 10, 2, 0, 2]);
        frame[34..40].copy_from_slice(&[0x12, 0x34, 0, 80, 0, 26]);
        frame[46..48].copy_from_slice(&[0x50, 0x10]);
        frame
    }

    fn with_checksum(mut frame: Vec<u8>) -> Vec<u8> {
        frame[24..26].fill(0);
        let sum = Sum::default().bytes(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    proptest! {
        /// The short way refuses or agrees, whatever bytes changed, with a right checksum too.
        #[test]
        fn plain_packets_are_read_as_the_careful_way_reads_them(
            is_tcp: bool,
            changes in proptest::collection::vec((0usize..60, any::<u8>()), 0..4),
            cut in 0usize..8,
            mend: bool,
        ) {
            let protocol = if is_tcp { Protocol::TCP } else { Protocol::UDP };
            let mut bytes = with_checksum(frame(protocol));
            changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
            if mend {
                bytes = with_checksum(bytes);
            }
            bytes.truncate(60 - cut);
            let mut plain = ArrayVec::<_, 1>::new();
            let key = parse(&bytes, bytes.len(), &mut plain);
            let of_packet = plain.last().map(|packet| packet.map(|packet| packet.key));
            prop_assert_eq!(of_packet, key.map(|key| Ok(FlowKey::V4(key))));
            let mut longer = bytes.clone();
            longer.push(0);
            if longer.len() > FRAME_LEN_MIN {
                let ends_before = parse(&longer, longer.len(), &mut ArrayVec::<_, 1>::new());
                prop_assert_eq!(ends_before.map(|_| "what has to be cut off is left"), None);
            }
            if let Some(packet) = plain.pop() {
                prop_assert_eq!(Packet::parse_any(&bytes, bytes.len()), packet);
            } else if changes.is_empty() {
                prop_assert!(cut > 0, "a plain packet is taken for another");
            }
        }
    }
}
