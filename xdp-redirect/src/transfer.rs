//! Packets that leave by a socket of another region than the one they lie in: the kernel sends only
//! what lies in the socket's own, so they are copied.

use crate::frame::Frame;
use crate::pool::FramePool;

/// Copies a packet, all of its chunks, into frames of another region; `None` when that has none left.
///
/// Chunks of all regions are equally long, so each piece keeps its place in its chunk, and with it
/// the room in front.
pub(crate) fn copy(frame: &Frame, to: &mut FramePool) -> Option<Frame> {
    let mut pieces = frame.live_pieces();
    let (offset, bytes) = pieces.next()?;
    let mut whole = copy_piece(offset, bytes, to)?;
    for (offset, bytes) in pieces {
        let appended = match copy_piece(offset, bytes, to) {
            Some(part) => whole.append(part).map_err(|part| to.release(part)),
            None => Err(()),
        };
        if appended.is_err() {
            to.release(whole);
            return None;
        }
    }
    Some(whole)
}

#[inline]
fn copy_piece(offset: u16, bytes: &[u8], to: &mut FramePool) -> Option<Frame> {
    let mut part = to.allocate()?;
    if part.put(offset, bytes) {
        return Some(part);
    }
    to.release(part);
    None
}
