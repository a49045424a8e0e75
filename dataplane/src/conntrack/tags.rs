//! Verification tags of an SCTP association (RFC 9260, 8.5): each end chooses one, and every packet
//! to it carries that. Who does not see the association cannot know them, so that a packet with
//! another is forged, or of an association that is no more.
//!
//! INIT carries none, and anybody can send it. On an association that stands the tags of a handshake
//! are therefore kept beside those in force, and replace them when COOKIE ACK tells that the other
//! end took the cookie back (5.2.4): a forged INIT changes nothing. Of an association whose beginning
//! was not seen, the first packet to each end tells that end's tag.

use std::sync::atomic::{AtomicU64, Ordering};

use super::details::halves;
use super::sctp::Chunks;
use crate::DropReason;

/// What is known of one end: the tag in force, and that of a handshake under way; 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tags {
    in_force: u32,
    next: u32,
}

impl Tags {
    fn load(word: &AtomicU64) -> Self {
        let [in_force, next] = halves(word.load(Ordering::Relaxed));
        Self { in_force, next }
    }

    /// Replaces them by `new`, unless another worker was faster: then it has seen a later packet.
    fn replace(self, word: &AtomicU64, new: Self) {
        let pack = |tags: Self| u64::from(tags.in_force) << 32 | u64::from(tags.next);
        if new != self {
            let order = Ordering::Relaxed;
            let _ = word.compare_exchange(pack(self), pack(new), order, order);
        }
    }

    /// With the tag that its end asks for; of an association that `stands`, beside the one in force.
    fn asking(self, tag: u32, stands: bool) -> Self {
        match self.in_force {
            0 if !stands => Self { in_force: tag, ..self },
            in_force if in_force == tag => self,
            _ => Self { next: tag, ..self },
        }
    }

    /// After the handshake.
    fn agreed(self) -> Self {
        let in_force = if self.next == 0 { self.in_force } else { self.next };
        Self { in_force, next: 0 }
    }
}

/// Checks the tag of a packet, and learns from it. `sender` and `receiver` are the words of the two
/// ends of an association that `stands` or not.
///
/// # Errors
/// [`DropReason::SctpWrongTag`]; then nothing was learnt.
pub(super) fn check(
    sender: &AtomicU64,
    receiver: &AtomicU64,
    stands: bool,
    chunks: &Chunks,
) -> Result<(), DropReason> {
    let (own, other) = (Tags::load(sender), Tags::load(receiver));
    if !chunks.is_init() && !is_right(own, other, chunks) {
        return Err(DropReason::SctpWrongTag);
    }
    if let Some(tag) = chunks.initiate_tag {
        own.replace(sender, own.asking(tag, stands));
    } else if chunks.accepts_cookie() && chunks.tag == other.next {
        own.replace(sender, own.agreed());
        other.replace(receiver, other.agreed());
        return Ok(());
    }
    let tells = !chunks.is_init() && !chunks.ends() && chunks.tag != other.next;
    if tells && other.in_force == 0 {
        other.replace(receiver, Tags { in_force: chunks.tag, ..other });
    }
    Ok(())
}

fn is_right(own: Tags, other: Tags, chunks: &Chunks) -> bool {
    // RFC 9260, 8.5.1 B and C: in want of the other's tag the sender's own is sent back.
    if chunks.is_reflected && own.in_force != 0 {
        return [own.in_force, own.next].contains(&chunks.tag);
    }
    let is_of_handshake =
        chunks.is_init_ack() || chunks.echoes_cookie() || chunks.accepts_cookie() || chunks.ends();
    let is_next = is_of_handshake && chunks.tag == other.next;
    chunks.is_reflected || other.in_force == 0 || chunks.tag == other.in_force || is_next
}

#[cfg(test)]
#[path = "tags_tests.rs"]
mod tests;
