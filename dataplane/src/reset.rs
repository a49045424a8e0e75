//! TCP resets that this node sends in place of a backend that is gone.

use crate::address::Protocol;
use crate::conntrack::Seen;
use crate::conntrack::segment::Segment;
use crate::packet::{Packet, PacketKind};
use crate::wire::checksum::{Sum, pseudo_header};
use crate::wire::{self, ETHERNET_LEN, ETHERTYPE_IPV4, IPV4_LEN, IPV6_LEN, TCP_LEN};

/// The longest frame that [`build_reset`] writes, in bytes.
pub const RESET_FRAME_MAX: usize = ETHERNET_LEN + IPV6_LEN + TCP_LEN;
/// TTL and hop limit of what this node sends (IANA "IP Parameters").
const DEFAULT_TTL: u8 = 64;

/// Writes the frame that resets the connection of `segment`'s sender, which came as `bytes`, back
/// over the link it came by; answers the frame's length. `None` where none may be sent: to a reset, to
/// what is no whole TCP segment, to or from a group.
///
/// RFC 9293, 3.5.2: "If the incoming segment has an ACK field, the reset takes its sequence number
/// from the ACK field of the segment; otherwise, the reset has sequence number zero and the ACK field
/// is set to the sum of the sequence number and segment length of the incoming segment."
pub fn build_reset(
    packet: &Packet,
    bytes: &[u8],
    frame: &mut [u8; RESET_FRAME_MAX],
) -> Option<usize> {
    let segment = Segment::read(packet, bytes)?;
    let link: &[u8; ETHERNET_LEN] = wire::array_at(bytes, 0)?;
    let is_whole = packet.kind == PacketKind::Tcp;
    if segment.flags & Seen::RST != 0 || !is_whole || (link[0] | link[6]) & 1 != 0 {
        return None;
    }
    frame[..6].copy_from_slice(&link[6..12]);
    frame[6..12].copy_from_slice(&link[..6]);
    frame[12..ETHERNET_LEN].copy_from_slice(&link[12..]);
    let ip = frame.get_mut(ETHERNET_LEN..)?;
    ip.fill(0);
    let ip_len = if wire::u16_at(bytes, 12) == Some(ETHERTYPE_IPV4) {
        let asked: &[u8; IPV4_LEN] = wire::array_at(bytes, ETHERNET_LEN)?;
        let (header, tcp) = ip.split_at_mut(IPV4_LEN);
        let ip_len = IPV4_LEN + TCP_LEN;
        header[0] = 0x45;
        header[2..4].copy_from_slice(&u16::try_from(ip_len).ok()?.to_be_bytes());
        // Never fragmented (RFC 6864, 4.1): it needs no identification.
        header[6] = 0x40;
        header[8] = DEFAULT_TTL;
        header[9] = Protocol::TCP.0;
        header[12..16].copy_from_slice(&asked[16..20]);
        header[16..20].copy_from_slice(&asked[12..16]);
        let checksum = Sum::default().bytes(header).checksum();
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        let pseudo = pseudo_header(&header[12..20], Protocol::TCP.0, TCP_LEN);
        write_segment(packet, &segment, pseudo, tcp.first_chunk_mut()?);
        ip_len
    } else {
        let asked: &[u8; IPV6_LEN] = wire::array_at(bytes, ETHERNET_LEN)?;
        let (header, tcp) = ip.split_at_mut(IPV6_LEN);
        header[0] = 0x60;
        header[4..6].copy_from_slice(&u16::try_from(TCP_LEN).ok()?.to_be_bytes());
        header[6] = Protocol::TCP.0;
        header[7] = DEFAULT_TTL;
        header[8..24].copy_from_slice(&asked[24..40]);
        header[24..40].copy_from_slice(&asked[8..24]);
        let pseudo = pseudo_header(&header[8..40], Protocol::TCP.0, TCP_LEN);
        write_segment(packet, &segment, pseudo, tcp.first_chunk_mut()?);
        IPV6_LEN + TCP_LEN
    };
    Some(ETHERNET_LEN + ip_len)
}

fn write_segment(packet: &Packet, to: &Segment, pseudo: Sum, tcp: &mut [u8; TCP_LEN]) {
    let key = packet.flow_key();
    tcp[..2].copy_from_slice(&key.destination_port().to_be_bytes());
    tcp[2..4].copy_from_slice(&key.source_port().to_be_bytes());
    match to.acknowledgement {
        Some(acknowledged) => {
            tcp[4..8].copy_from_slice(&acknowledged.to_be_bytes());
            tcp[13] = Seen::RST;
        }
        None => {
            tcp[8..12].copy_from_slice(&to.end.to_be_bytes());
            tcp[13] = Seen::RST | Seen::ACK;
        }
    }
    // Five words of header.
    tcp[12] = 5 << 4;
    let checksum = pseudo.bytes(tcp).checksum();
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SYN from 10.0.0.1:1000 with number 6999 and four octets of data; the checksum is nobody's.
    fn syn() -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        let mut ip = vec![0x45, 0, 0, 44, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let checksum = Sum::default().bytes(&ip).checksum();
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        frame.extend(ip);
        frame.extend([3, 232, 0, 80, 0, 0, 27, 87, 0, 0, 0, 0, 0x50, 2, 255, 255, 0, 0, 0, 0]);
        frame.extend(*b"data");
        frame
    }

    #[test]
    fn a_segment_without_ack_is_acknowledged_by_its_reset() {
        let frame = syn();
        let packet = Packet::parse(&frame, frame.len()).expect("a segment");
        let mut reset = [0; RESET_FRAME_MAX];
        let len = build_reset(&packet, &frame, &mut reset).expect("a reset");
        let answer = Packet::parse(&reset[..len], len).expect("a segment");
        assert_eq!(answer.flow_key(), packet.flow_key().reversed());
        let answer = Segment::read(&answer, &reset[..len]).expect("a segment");
        assert_eq!((answer.flags, answer.sequence), (Seen::RST | Seen::ACK, 0));
        assert_eq!(answer.acknowledgement, Some(6999 + 1 + 4), "SYN counts as one");
    }

    #[test]
    fn nobody_resets_a_group_nor_a_reset() {
        let mut reset = [0; RESET_FRAME_MAX];
        let mut to_group = syn();
        to_group[0] |= 1;
        let mut of_reset = syn();
        of_reset[14 + 20 + 13] = Seen::RST;
        // What is sent to a group is refused before there is a segment of it.
        for (parsed, frame) in [(syn(), to_group), (of_reset.clone(), of_reset)] {
            let packet = Packet::parse(&parsed, parsed.len()).expect("a segment");
            assert_eq!(build_reset(&packet, &frame, &mut reset), None);
        }
    }
}
