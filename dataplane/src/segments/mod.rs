//! Packets that are longer than their link takes: whole segments of a TCP stream, as a pod's stack gives
//! them to an interface that promises to cut them (TCP segmentation offload).
//!
//! The pipeline decides about such a packet once, and notes on its buffer how it is to be cut
//! ([`Buffer::segment_size`]). Where it leaves it stays whole if its receiver takes it so, which is told the
//! size; else it is cut there ([`Layout::write`]). Its checksum means nothing meanwhile: the sender left it
//! to the interface, so rewrites need not keep it right, and it is written where the packet leaves.
//!
//! How the sender wanted it cut is told by its socket buffer, which AF_XDP does not show. A stream has no
//! boundaries, so any size is right that both links take, and that the receiver does
//! ([`crate::mss::SegmentLimit`]). Datagrams have boundaries, and those are lost: what is not TCP is dropped.

pub mod join;

use crate::DropReason;
use crate::address::Protocol;
use crate::buffer::Buffer;
use crate::conntrack::Seen;
use crate::flow_key::FlowKey;
use crate::mss::SegmentLimit;
use crate::packet::{Packet, PacketKind};
use crate::rewrite::finish_checksum;
use crate::wire::checksum::{Sum, pseudo_header};
use crate::wire::{self, ETHERNET_LEN, IPV4_LEN, TCP_LEN};

/// Flags of which only the last segment bears what the whole one did (RFC 9293, 3.1).
const OF_THE_LAST: u8 = Seen::FIN | 0x08;
/// The flag that answers an echo of congestion, once (RFC 3168, 6.1.2).
const CWR: u8 = 0x80;
/// In the byte before the flags: with it CWR is a part of a number that every segment bears (AccECN, RFC 9768,
/// 3.2.2). Such numbers without it cannot be told from flags; who sends them cuts by itself, since that
/// offload is off in pods.
const AE: u8 = 0x01;
/// Where the checksum is in a TCP header.
pub const CHECKSUM_AT: usize = 16;
/// Payload of a segment at least: a link that takes less is not one that TCP works on.
const SIZE_MIN: usize = 8;

/// Notes on a long packet, which was rewritten, how it is to be cut for a link that takes `mtu` bytes.
///
/// # Errors
/// [`DropReason::Uncuttable`] for what is not TCP, and where the link takes no segment at all.
#[cold]
pub(crate) fn plan<B: Buffer>(
    buffer: &mut B,
    mtu: u16,
    limit: SegmentLimit,
) -> Result<(), DropReason> {
    let (layout, packet) = Layout::read(buffer).ok_or(DropReason::Uncuttable)?;
    let headers = layout.payload_offset - ETHERNET_LEN;
    let options = layout.payload_offset - layout.l4_offset - TCP_LEN;
    // What an end says it takes is without options (RFC 9293, 3.7.1).
    let taken = usize::from(limit.bytes()).saturating_sub(options);
    let size = usize::from(mtu).saturating_sub(headers).min(taken);
    if size < SIZE_MIN {
        return Err(DropReason::Uncuttable);
    }
    if layout.payload <= size {
        layout.leave_checksum(buffer);
        finish_checksum(&packet, buffer);
        return Ok(());
    }
    buffer.set_segment_size(u16::try_from(size).map_err(|_| DropReason::Uncuttable)?)
}

/// Where the parts of a TCP packet lie, and how long they are, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Whether it is IPv4; else IPv6.
    pub is_ipv4: bool,
    /// Where the TCP header begins.
    pub l4_offset: usize,
    /// Where the payload begins.
    pub payload_offset: usize,
    /// Length of the payload.
    pub payload: usize,
    /// Whether it bears CWR as a flag, which only its first segment may.
    pub has_cwr: bool,
}

impl Layout {
    /// Of a buffer that has a segment size; `None` when it does not hold a TCP packet with its headers in
    /// the first chunk.
    #[must_use]
    pub fn of<B: Buffer>(buffer: &B) -> Option<Self> {
        Self::read(buffer).map(|(layout, _)| layout)
    }

    fn read<B: Buffer>(buffer: &B) -> Option<(Self, Packet)> {
        let bytes = buffer.bytes();
        let packet = Packet::parse(bytes, buffer.len()).ok()?;
        let l4_offset = packet.l4_offset;
        let header: &[u8; TCP_LEN] = wire::array_at(bytes, l4_offset)?;
        let payload_offset = l4_offset + usize::from(header[12] >> 4) * 4;
        let payload = (ETHERNET_LEN + packet.ip_len).checked_sub(payload_offset)?;
        let is_sound = packet.kind == PacketKind::Tcp && payload_offset <= bytes.len();
        let layout = Self {
            is_ipv4: matches!(packet.flow_key(), FlowKey::V4(_)),
            l4_offset,
            payload_offset,
            payload,
            has_cwr: header[13] & CWR != 0 && header[12] & AE == 0,
        };
        is_sound.then_some((layout, packet))
    }

    /// Packets that it is cut into, of `size` bytes of payload each.
    #[must_use]
    pub fn segments(&self, size: u16) -> usize {
        self.payload.div_ceil(usize::from(size).max(1))
    }

    /// Writes the sum of the pseudo-header where the checksum is, as whoever finishes it expects
    /// (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    pub fn leave_checksum<B: Buffer>(&self, buffer: &mut B) {
        let len = self.payload_offset - self.l4_offset + self.payload;
        let bytes = buffer.bytes_mut();
        let Some(sum) = self.pseudo_sum(bytes, len) else { return };
        if let Some(field) = wire::array_at_mut(bytes, self.l4_offset + CHECKSUM_AT) {
            *field = sum.fold().to_be_bytes();
        }
    }

    fn pseudo_sum(&self, bytes: &[u8], len: usize) -> Option<Sum> {
        let addresses = match self.is_ipv4 {
            true => bytes.get(ETHERNET_LEN + 12..ETHERNET_LEN + IPV4_LEN),
            false => bytes.get(ETHERNET_LEN + 8..ETHERNET_LEN + wire::IPV6_LEN),
        };
        Some(pseudo_header(addresses?, Protocol::TCP.0, len))
    }

    /// Makes `segment` the one of this number, from 0 on, that `whole` is cut into.
    ///
    /// # Errors
    /// [`DropReason::NoRoom`] when the segment's buffer is too short; [`DropReason::Uncuttable`] when there
    /// is none of that number.
    pub fn write<B: Buffer, S: Buffer>(
        &self,
        whole: &B,
        number: usize,
        segment: &mut S,
    ) -> Result<(), DropReason> {
        let size = usize::from(whole.segment_size());
        let from = number * size;
        let payload = self.payload.saturating_sub(from).min(size);
        let headers = whole.bytes().get(..self.payload_offset);
        let (Some(headers), true) = (headers, payload > 0) else {
            return Err(DropReason::Uncuttable);
        };
        segment.set_len(self.payload_offset + payload)?;
        let bytes = segment.bytes_mut();
        let (own_headers, own_payload) = bytes.split_at_mut(self.payload_offset);
        own_headers.copy_from_slice(headers);
        copy_range(whole, self.payload_offset + from, own_payload);
        let is_last = from + payload == self.payload;
        self.write_headers(own_headers, (number, from, payload), is_last);
        let len = self.payload_offset - self.l4_offset + payload;
        let sum = self.pseudo_sum(bytes, len).unwrap_or_default();
        let sum = sum.bytes(bytes.get(self.l4_offset..).unwrap_or_default());
        if let Some(field) = wire::array_at_mut(bytes, self.l4_offset + CHECKSUM_AT) {
            *field = sum.checksum().to_be_bytes();
        }
        Ok(())
    }

    fn write_headers(
        &self,
        headers: &mut [u8],
        (number, from, payload): (usize, usize, usize),
        is_last: bool,
    ) {
        let half = |number: usize| u16::try_from(number & 0xffff).unwrap_or(0);
        let ip_len = self.payload_offset - ETHERNET_LEN + payload;
        if self.is_ipv4 {
            let ip = headers.get_mut(ETHERNET_LEN..self.l4_offset).unwrap_or_default();
            put(ip, 2, half(ip_len));
            let identification = wire::u16_at(ip, 4).unwrap_or(0);
            put(ip, 4, identification.wrapping_add(half(number)));
            put(ip, 10, 0);
            let sum = Sum::default().bytes(ip).checksum();
            put(ip, 10, sum);
        } else {
            put(headers, ETHERNET_LEN + 4, half(ip_len - wire::IPV6_LEN));
        }
        let tcp = headers.get_mut(self.l4_offset..).unwrap_or_default();
        if let Some(field) = wire::array_at_mut::<4>(tcp, 4) {
            let sequence = u32::from_be_bytes(*field);
            let from = u32::try_from(from).unwrap_or(0);
            *field = sequence.wrapping_add(from).to_be_bytes();
        }
        if let Some(flags) = tcp.get_mut(13) {
            *flags &= if is_last { 0xff } else { !OF_THE_LAST };
            *flags &= if number > 0 && self.has_cwr { !CWR } else { 0xff };
        }
        // Its own sum begins with none.
        put(tcp, CHECKSUM_AT, 0);
    }
}

fn put(bytes: &mut [u8], at: usize, word: u16) {
    if let Some(field) = wire::array_at_mut(bytes, at) {
        *field = word.to_be_bytes();
    }
}

/// Copies bytes of a packet from `from` on, until `into` is full.
fn copy_range<B: Buffer>(whole: &B, from: usize, into: &mut [u8]) {
    let (mut position, to) = (0, from + into.len());
    whole.for_each_chunk(&mut |chunk| {
        let first = from.saturating_sub(position).min(chunk.len());
        let last = to.saturating_sub(position).min(chunk.len());
        if first < last {
            let at = position + first - from;
            into[at..at + last - first].copy_from_slice(&chunk[first..last]);
        }
        position += chunk.len();
    });
}

#[cfg(test)]
mod tests;
