//! Fragmentation of a sender and reassembly of a receiver, both naive.

use std::collections::BTreeMap;

use dataplane::port::PortId;

const LINK: usize = 14;

fn is_v4(frame: &[u8]) -> bool {
    frame[12..14] == [8, 0]
}

/// The sum of an IPv4 header, written where it belongs.
fn finish_header(header: &mut [u8]) {
    header[10..12].fill(0);
    let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded twice");
    header[10..12].copy_from_slice(&(!sum).to_be_bytes());
}

/// Cuts a whole frame behind the first `at` bytes of its IP payload, a multiple of eight.
pub fn fragments(frame: &[u8], identification: u16, at: usize) -> [Vec<u8>; 2] {
    let header_len = if is_v4(frame) { 20 } else { 40 };
    let (headers, payload) = frame.split_at(LINK + header_len);
    [(0, &payload[..at], true), (at, &payload[at..], false)].map(|(offset, part, more)| {
        let mut piece = headers.to_vec();
        let offset = u16::try_from(offset).expect("short frame");
        let len = u16::try_from(part.len()).expect("short frame");
        if is_v4(frame) {
            piece[16..18].copy_from_slice(&(len + 20).to_be_bytes());
            piece[18..20].copy_from_slice(&identification.to_be_bytes());
            let field = (offset / 8) | if more { 0x2000 } else { 0 };
            piece[20..22].copy_from_slice(&field.to_be_bytes());
            finish_header(&mut piece[LINK..LINK + 20]);
        } else {
            piece[18..20].copy_from_slice(&(len + 8).to_be_bytes());
            let protocol = std::mem::replace(&mut piece[20], 44);
            piece.extend([protocol, 0]);
            piece.extend((offset | u16::from(more)).to_be_bytes());
            piece.extend([0, 0]);
            piece.extend(identification.to_be_bytes());
        }
        piece.extend(part);
        piece
    })
}

/// What a fragment is a part of: port, addresses, identification.
type Whole = (PortId, Vec<u8>, u32);

/// Puts fragments together again.
#[derive(Default)]
pub struct Reassembly(BTreeMap<Whole, BTreeMap<u16, (Vec<u8>, bool)>>);

impl Reassembly {
    /// The whole frame that `frame` is or completes.
    pub fn accept(&mut self, port: PortId, frame: &[u8]) -> Option<Vec<u8>> {
        let (identification, offset, more, payload) = if is_v4(frame) {
            let field = u16::from_be_bytes([frame[20], frame[21]]);
            let identification = u32::from(u16::from_be_bytes([frame[18], frame[19]]));
            (identification, (field & 0x1fff) * 8, field & 0x2000 != 0, &frame[LINK + 20..])
        } else if frame[20] == 44 {
            let field = u16::from_be_bytes([frame[56], frame[57]]);
            let identification = u32::from_be_bytes([frame[58], frame[59], frame[60], frame[61]]);
            (identification, field & 0xfff8, field & 1 != 0, &frame[LINK + 48..])
        } else {
            return Some(frame.to_vec());
        };
        if offset == 0 && !more {
            return Some(frame.to_vec());
        }
        let addresses = if is_v4(frame) { &frame[26..34] } else { &frame[22..54] };
        let whole = (port, addresses.to_vec(), identification);
        let parts = self.0.entry(whole.clone()).or_default();
        parts.insert(offset, (payload.to_vec(), more));
        let mut joined = Vec::new();
        for (at, (part, _)) in parts.iter() {
            if usize::from(*at) != joined.len() {
                return None;
            }
            joined.extend(part);
        }
        let (_, (_, more_to_come)) = parts.last_key_value()?;
        if *more_to_come {
            return None;
        }
        self.0.remove(&whole);
        Some(rebuild(frame, &joined))
    }
}

/// The frame without its being a fragment, with `payload`.
fn rebuild(frame: &[u8], payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).expect("short frame");
    let mut whole = if is_v4(frame) {
        let mut whole = frame[..LINK + 20].to_vec();
        whole[16..18].copy_from_slice(&(len + 20).to_be_bytes());
        whole[20..22].fill(0);
        finish_header(&mut whole[LINK..]);
        whole
    } else {
        let mut whole = frame[..LINK + 40].to_vec();
        whole[18..20].copy_from_slice(&len.to_be_bytes());
        whole[20] = frame[54];
        whole
    };
    whole.extend(payload);
    whole
}
