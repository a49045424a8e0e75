//! Later fragments that came before their first one.
//!
//! A network that reorders, and senders that send the last fragment first, are no reason to lose a
//! packet: its fragments wait for the first one, which shows where they go, and follow it in order
//! of arrival. They occupy packet memory that others need, so they are few, for a short time, and
//! no sender has most of the room. What waits in vain is dropped as
//! [`DropReason::FragmentUnknown`], what finds no room as [`DropReason::FragmentsFull`].

use std::net::IpAddr;
use std::time::Duration;

use super::FragmentKey;
use crate::DropReason;
use crate::buffer::Buffer;
use crate::port::PortId;
use crate::time::Nanos;
use crate::worker::Received;

/// Fragments that may wait for their first, per worker.
pub const WAITING_MAX: usize = 128;
/// Bytes that may wait, per worker: as many fragments of a 1,500 byte MTU.
pub const WAITING_BYTES_MAX: usize = 192 * 1024;
/// Fragments of one source that may wait: a datagram of 64 KiB has 45 at an MTU of 1,500, all of
/// which come before the first where it is sent last.
pub const WAITING_OF_SOURCE_MAX: usize = 48;
/// Bytes of one source that may wait: a datagram of 64 KiB with the headers of its fragments.
pub const WAITING_BYTES_OF_SOURCE_MAX: usize = 72 * 1024;
/// Fragments that may wait of all that came in by one port: from outside, where every source can
/// be made up, they do not take what pods need.
pub const WAITING_OF_PORT_MAX: usize = WAITING_MAX / 2;
/// How long a fragment waits. What a network reorders lies milliseconds apart; whoever lost the
/// first one waits in vain.
pub const WAIT: Duration = Duration::from_secs(1);

const _: () = assert!(WAITING_OF_SOURCE_MAX <= WAITING_OF_PORT_MAX);

struct Fragment<B> {
    packet: Received<B>,
    key: FragmentKey,
    until: Nanos,
}

/// What waits, in order of arrival. Its memory is taken at the start.
pub struct Waiting<B> {
    fragments: Vec<Fragment<B>>,
}

impl<B: Buffer> Default for Waiting<B> {
    fn default() -> Self {
        Self { fragments: Vec::with_capacity(WAITING_MAX) }
    }
}

/// What of a kind waits.
#[derive(Default)]
struct Share {
    fragments: usize,
    bytes: usize,
}

impl<B: Buffer> Waiting<B> {
    /// Keeps a fragment of the packet `key` until its first comes.
    ///
    /// # Errors
    /// [`DropReason::FragmentsFull`], with the fragment, when a bound would be exceeded.
    pub fn keep(
        &mut self,
        packet: Received<B>,
        key: FragmentKey,
        now: Nanos,
    ) -> Result<(), (DropReason, Received<B>)> {
        if !self.has_room(packet.port, key.source, packet.buffer.len()) {
            return Err((DropReason::FragmentsFull, packet));
        }
        self.fragments.push(Fragment { packet, key, until: now.after(WAIT) });
        Ok(())
    }

    fn has_room(&self, port: PortId, source: IpAddr, bytes: usize) -> bool {
        let all = self.share(|_| true);
        let of_source = self.share(|one| one.key.source == source);
        let of_port = self.share(|one| one.packet.port == port);
        all.fragments < WAITING_MAX
            && all.bytes + bytes <= WAITING_BYTES_MAX
            && of_source.fragments < WAITING_OF_SOURCE_MAX
            && of_source.bytes + bytes <= WAITING_BYTES_OF_SOURCE_MAX
            && of_port.fragments < WAITING_OF_PORT_MAX
    }

    fn share(&self, which: impl Fn(&Fragment<B>) -> bool) -> Share {
        self.fragments.iter().filter(|one| which(one)).fold(Share::default(), |share, one| Share {
            fragments: share.fragments + 1,
            bytes: share.bytes + one.packet.buffer.len(),
        })
    }

    /// The fragment that came first of those whose first one `is_known`.
    pub fn take_ready(&mut self, is_known: impl Fn(&FragmentKey) -> bool) -> Option<Received<B>> {
        let place = self.fragments.iter().position(|one| is_known(&one.key))?;
        Some(self.fragments.remove(place).packet)
    }

    /// A fragment that has waited long enough.
    pub fn take_late(&mut self, now: Nanos) -> Option<Received<B>> {
        // All wait equally long: the one that came first is the first to be late.
        let is_late = self.fragments.first().is_some_and(|one| one.until <= now);
        is_late.then(|| self.fragments.remove(0).packet)
    }

    /// Fragments that wait now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.fragments.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fragments.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::address::Protocol;
    use crate::memory::HeapBuffer;

    fn key(source: u8, identification: u32) -> FragmentKey {
        FragmentKey {
            source: Ipv4Addr::new(10, 0, 0, source).into(),
            destination: Ipv4Addr::new(10, 0, 1, 1).into(),
            protocol: Protocol::UDP,
            identification,
        }
    }

    fn packet(port: u16, len: usize, mark: u8) -> Received<HeapBuffer> {
        Received { port: PortId(port), buffer: HeapBuffer::new(&vec![mark; len]) }
    }

    fn mark(packet: &Received<HeapBuffer>) -> u8 {
        packet.buffer.bytes()[0]
    }

    #[test]
    fn fragments_follow_their_first_in_order_of_arrival_and_others_stay() {
        let mut waiting = Waiting::default();
        for (mark, identification) in [(0, 7), (1, 8), (2, 7), (3, 7)] {
            assert!(waiting.keep(packet(2, 100, mark), key(1, identification), Nanos(0)).is_ok());
        }
        let is_known = |other: &FragmentKey| *other == key(1, 7);
        let ready = std::iter::from_fn(|| waiting.take_ready(is_known));
        assert_eq!(ready.map(|packet| mark(&packet)).collect::<Vec<_>>(), [0, 2, 3]);
        assert_eq!(waiting.len(), 1);
    }

    #[test]
    fn fragment_that_waited_long_enough_goes_and_a_younger_one_stays() {
        let mut waiting = Waiting::default();
        let later = Nanos(500_000_000);
        assert!(waiting.keep(packet(2, 100, 0), key(1, 7), Nanos(0)).is_ok());
        assert!(waiting.keep(packet(2, 100, 1), key(1, 8), later).is_ok());
        let end = Nanos(0).after(WAIT);
        assert!(waiting.take_late(Nanos(end.0 - 1)).is_none());
        assert_eq!(waiting.take_late(end).map(|packet| mark(&packet)), Some(0));
        assert!(waiting.take_late(end).is_none());
        assert_eq!(waiting.len(), 1);
    }

    /// Keeps as many as there is room for, of `len` bytes each.
    fn fill(waiting: &mut Waiting<HeapBuffer>, port: u16, source: u8, len: usize) -> usize {
        (0..1000)
            .take_while(|number| {
                waiting.keep(packet(port, len, 0), key(source, *number), Nanos(0)).is_ok()
            })
            .count()
    }

    #[test]
    fn one_source_one_port_and_all_together_have_their_bounds() {
        let mut waiting = Waiting::default();
        assert_eq!(fill(&mut waiting, 2, 1, 100), WAITING_OF_SOURCE_MAX);
        // Other sources by the same port, as from outside.
        let more: usize = (2..200).map(|source| fill(&mut waiting, 2, source, 100)).sum();
        assert_eq!(WAITING_OF_SOURCE_MAX + more, WAITING_OF_PORT_MAX);
        let others: usize = (3..10).map(|port| fill(&mut waiting, port, 200, 100)).sum();
        assert_eq!(others, WAITING_OF_SOURCE_MAX, "one source by many ports is one source");
        for source in 201..220 {
            fill(&mut waiting, 20 + u16::from(source), source, 100);
        }
        assert_eq!(waiting.len(), WAITING_MAX);
        let refused = waiting.keep(packet(90, 100, 0), key(250, 1), Nanos(0));
        assert_eq!(refused.err().map(|(reason, _)| reason), Some(DropReason::FragmentsFull));
    }

    #[test]
    fn bytes_are_bounded_for_jumbo_frames() {
        let mut waiting = Waiting::default();
        assert_eq!(fill(&mut waiting, 2, 1, 9000), WAITING_BYTES_OF_SOURCE_MAX / 9000);
        let all: usize = (2..20).map(|n| fill(&mut waiting, n.into(), n, 9000)).sum();
        assert_eq!(WAITING_BYTES_OF_SOURCE_MAX / 9000 + all, WAITING_BYTES_MAX / 9000);
    }
}
