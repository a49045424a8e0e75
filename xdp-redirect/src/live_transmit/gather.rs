//! Which packets leave as live frames, and when.
//!
//! A call costs as much as some ten packets by AF_XDP, so packets of all ports that can take live
//! frames are gathered until the worker flushes, and go in one call when they are
//! [`super::sender::PACKETS_MIN`] or more, where those for a plain stack count half ([`LivePeer`]); fewer
//! leave by AF_XDP.
//!
//! **Order.** What a port was sent by AF_XDP is in its peer's ring when `sendto` returns, so live
//! frames may follow as soon as the transmit ring is empty. Not so the other way: the peer's poll
//! (`veth_xdp_rcv`) puts frames aside, up to 16, to make socket buffers of them together, while it
//! passes on at once what comes by AF_XDP. So a port that was sent live frames is *warm* for
//! [`SETTLE`]: nothing goes there by AF_XDP meanwhile. Fewer packets go in a small call then, and
//! after [`SMALL_CALLS_MAX`] of those in a row they wait, until they are enough for a call or the
//! port has settled.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use dataplane::buffer::Buffer;
use dataplane::port::PortId;

use super::LivePeer;
use super::counters::LiveCounters;
use super::sender::{BATCH, LiveSender};
use crate::cast::index;
use crate::frame::Frame;
use crate::limits::PORTS_MAX;
use crate::pools::Pools;
use crate::rings::Rings;
use crate::statistics::add;

/// How long after live frames nothing is sent to a port by AF_XDP. A full ring of 256 packets is
/// polled in less, at 2 us for each with all that a plain pod's stack does; a peer whose core is
/// kept from polling for longer may see packets overtake each other.
pub(crate) const SETTLE: Duration = Duration::from_millis(1);
/// Calls with fewer packets in a row: the end of a burst does not wait for the port to settle.
const SMALL_CALLS_MAX: u32 = 16;
/// What a packet counts toward a call, by the other end of its port.
const PROGRAM_WEIGHT: u8 = 2;
const STACK_WEIGHT: u8 = 1;
/// Packets of a port that is to leave this way that wait for it to settle.
const LEAVING_PACKETS_MAX: u16 = 128;
/// How long no call is made after one that the kernel refused.
const SUSPENSION: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Default)]
struct PortState {
    /// Packets gathered.
    waiting: u16,
    /// Of each.
    weight: u8,
    /// It is to use AF_XDP as soon as it has settled.
    is_leaving: bool,
    /// Nanoseconds since the start of the clock.
    settles_at: u64,
}

struct Packet {
    port: PortId,
    frame: Frame,
}

/// Where a packet goes at a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Live,
    Socket,
    Wait,
}

/// What is the same for all packets of a flush.
#[derive(Debug, Clone, Copy)]
struct Moment {
    now: u64,
    /// There are enough for a call.
    are_many: bool,
    is_suspended: bool,
    small_calls: u32,
}

impl Moment {
    #[inline]
    fn way(&self, state: &PortState, is_ring_empty: bool) -> Way {
        let is_warm = self.now < state.settles_at;
        let can_be_live = !state.is_leaving && !self.is_suspended && (is_warm || is_ring_empty);
        match (can_be_live, is_warm) {
            (true, _) if self.are_many => Way::Live,
            (true, true) if self.small_calls < SMALL_CALLS_MAX => Way::Live,
            (_, true) => Way::Wait,
            (_, false) => Way::Socket,
        }
    }
}

/// A worker's packets for live frames, from one flush to the next. Allocates nothing after it is
/// made.
pub(crate) struct Gather {
    sender: LiveSender,
    waiting: Vec<Packet>,
    /// Those of a call.
    batch: Vec<Packet>,
    /// Those that wait for the next flush.
    kept: Vec<Packet>,
    ports: Box<[PortState]>,
    small_calls: u32,
    suspended_until: u64,
    /// A flush was begun and is not over: after a panic.
    is_flushing: bool,
    clock: Instant,
    counters: Arc<LiveCounters>,
}

impl Gather {
    pub(crate) fn new(sender: LiveSender) -> Self {
        Self {
            sender,
            waiting: Vec::with_capacity(BATCH),
            batch: Vec::with_capacity(BATCH),
            kept: Vec::with_capacity(BATCH),
            ports: vec![PortState::default(); index(PORTS_MAX)].into_boxed_slice(),
            small_calls: 0,
            suspended_until: 0,
            is_flushing: false,
            clock: Instant::now(),
            counters: Arc::new(LiveCounters::default()),
        }
    }

    pub(crate) fn counters(&self) -> &Arc<LiveCounters> {
        &self.counters
    }

    /// Whether nothing waits.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Packets of `port` that wait, which need room in its transmit ring should they leave there.
    #[inline]
    pub(crate) fn waiting(&self, port: PortId) -> u16 {
        self.ports.get(usize::from(port.0)).map_or(0, |state| state.waiting)
    }

    /// The port may be sent live frames, for this peer, or is to leave this way.
    pub(crate) fn set_peer(&mut self, port: PortId, peer: Option<LivePeer>) {
        let Some(state) = self.ports.get_mut(usize::from(port.0)) else { return };
        state.is_leaving = peer.is_none();
        match peer {
            Some(LivePeer::Program) => state.weight = PROGRAM_WEIGHT,
            Some(LivePeer::Stack) => state.weight = STACK_WEIGHT,
            None => {}
        }
    }

    /// Whether a frame can leave this way.
    #[inline]
    pub(crate) fn takes(frame: &Frame) -> bool {
        frame.chunks() == 1 && LiveSender::fits(frame.bytes().len())
    }

    /// Gathers a packet for the next flush; gives it back when there is no room.
    #[inline]
    pub(crate) fn add(&mut self, port: PortId, frame: Frame) -> Result<(), Frame> {
        let Some(state) = self.ports.get_mut(usize::from(port.0)) else { return Err(frame) };
        let is_held_up = state.is_leaving && state.waiting >= LEAVING_PACKETS_MAX;
        if self.waiting.len() >= BATCH || is_held_up {
            return Err(frame);
        }
        state.waiting += 1;
        self.waiting.push(Packet { port, frame });
        Ok(())
    }

    /// Whether nothing of `port` waits and its peer has polled all that it was sent this way: what goes by
    /// AF_XDP overtakes nothing.
    #[cold]
    pub(crate) fn has_settled(&self, port: PortId) -> bool {
        let state = self.ports.get(usize::from(port.0));
        state.is_some_and(|state| state.waiting == 0 && self.now() >= state.settles_at)
    }

    /// Sends what waits, one way or the other.
    pub(crate) fn flush(&mut self, pools: &mut Pools, rings: &mut Rings<'_>) {
        if std::mem::replace(&mut self.is_flushing, true) {
            self.mend(pools);
        }
        self.flush_whole(pools, rings);
        self.is_flushing = false;
    }

    /// Begins anew after a flush that a panic cut short: what of its packets is left may have been sent.
    #[cold]
    fn mend(&mut self, pools: &mut Pools) {
        for packet in self.waiting.drain(..).chain(self.batch.drain(..)).chain(self.kept.drain(..))
        {
            add(&self.counters.abandoned_packets, 1);
            pools.release(packet.frame);
        }
        self.ports.iter_mut().for_each(|state| state.waiting = 0);
    }

    fn flush_whole(&mut self, pools: &mut Pools, rings: &mut Rings<'_>) {
        let now = self.now();
        let mut moment = Moment {
            now,
            are_many: true,
            is_suspended: now < self.suspended_until,
            small_calls: self.small_calls,
        };
        let packets_min = self.sender.packets_min();
        moment.are_many = self.waiting.len() >= packets_min && {
            let weights = self.waiting.iter().map(|packet| {
                let state = &self.ports[usize::from(packet.port.0)];
                match moment.way(state, rings.is_empty(packet.port)) {
                    Way::Live => usize::from(state.weight),
                    Way::Socket | Way::Wait => 0,
                }
            });
            weights.sum::<usize>() >= packets_min * usize::from(PROGRAM_WEIGHT)
        };
        self.sort(pools, moment, rings);
        if self.batch.is_empty() {
            return;
        }
        self.small_calls = if moment.are_many { 0 } else { self.small_calls.saturating_add(1) };
        if self.call(pools) {
            // What was refused need not wait for the next flush, where nothing is under way.
            moment.is_suspended = true;
            self.sort(pools, moment, rings);
        }
    }

    /// Puts packets into the batch of a call, gives them to AF_XDP, or keeps them. All of a port go
    /// one way: its ring, once something is put there, is not empty any more.
    fn sort(&mut self, pools: &mut Pools, moment: Moment, rings: &mut Rings<'_>) {
        self.sender.begin();
        for packet in self.waiting.drain(..) {
            let Packet { port, frame } = packet;
            let state = &mut self.ports[usize::from(port.0)];
            match moment.way(state, rings.is_empty(port)) {
                Way::Live if self.sender.put(port, frame.bytes()) => {
                    self.batch.push(Packet { port, frame });
                }
                Way::Live | Way::Wait => {
                    add(&self.counters.settling_packets, 1);
                    self.kept.push(Packet { port, frame });
                }
                Way::Socket => {
                    state.waiting -= 1;
                    match rings.send(pools, port, frame) {
                        Ok(()) => add(&self.counters.too_few_packets, 1),
                        Err((_, frame)) => {
                            add(&self.counters.abandoned_packets, 1);
                            pools.release(frame);
                        }
                    }
                    if std::mem::take(&mut state.is_leaving) {
                        rings.leave_live(port);
                    }
                }
            }
        }
        std::mem::swap(&mut self.waiting, &mut self.kept);
    }

    /// Makes the call; what it did not take waits again. Says whether the kernel refused.
    fn call(&mut self, pools: &mut Pools) -> bool {
        let (taken, error) = self.sender.send();
        add(&self.counters.calls, 1);
        let now = self.now();
        let settles_at = now.saturating_add(nanos(SETTLE));
        for (number, packet) in self.batch.drain(..).enumerate() {
            let state = &mut self.ports[usize::from(packet.port.0)];
            if number < taken && self.sender.is_sent(number) {
                state.settles_at = settles_at;
                state.waiting -= 1;
                self.counters.sent(packet.port);
                pools.release(packet.frame);
                continue;
            }
            if number < taken {
                // No interface: AF_XDP finds out what became of it.
                state.is_leaving = true;
                add(&self.counters.no_interface_packets, 1);
            } else {
                add(&self.counters.returned_packets, 1);
            }
            self.waiting.push(packet);
        }
        let Some(error) = error else { return false };
        let (counter, is_refusal): (&AtomicU64, bool) = match error.raw_os_error() {
            // A signal ends a call early, and nothing is wrong.
            Some(libc::EINTR | libc::EAGAIN) => return false,
            Some(libc::ENOSPC) => (&self.counters.refused_no_space, true),
            Some(libc::ENOMEM | libc::ENOBUFS) => (&self.counters.refused_no_memory, true),
            _ => (&self.counters.refused_otherwise, true),
        };
        add(counter, 1);
        self.suspended_until = now.saturating_add(nanos(SUSPENSION));
        is_refusal
    }

    /// Frees what waits for `port`, which is no port of the worker's any more.
    pub(crate) fn abandon(&mut self, port: PortId, pools: &mut Pools) {
        for packet in self.waiting.drain(..) {
            if packet.port == port {
                add(&self.counters.abandoned_packets, 1);
                pools.release(packet.frame);
            } else {
                self.kept.push(packet);
            }
        }
        std::mem::swap(&mut self.waiting, &mut self.kept);
        if let Some(state) = self.ports.get_mut(usize::from(port.0)) {
            *state = PortState::default();
        }
    }

    /// Frees all that waits.
    pub(crate) fn clear(&mut self, pools: &mut Pools) {
        for packet in self.waiting.drain(..) {
            pools.release(packet.frame);
        }
    }

    fn now(&self) -> u64 {
        nanos(self.clock.elapsed()).saturating_add(1)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 5_000_000;

    fn moment(are_many: bool) -> Moment {
        Moment { now: NOW, are_many, is_suspended: false, small_calls: 0 }
    }

    fn cold() -> PortState {
        PortState::default()
    }

    fn warm() -> PortState {
        PortState { settles_at: NOW + 1, ..PortState::default() }
    }

    #[test]
    fn many_packets_make_a_call_and_few_leave_by_af_xdp() {
        assert_eq!(moment(true).way(&cold(), true), Way::Live);
        assert_eq!(moment(false).way(&cold(), true), Way::Socket);
    }

    #[test]
    fn packets_that_wait_in_the_ring_are_not_overtaken_by_live_frames() {
        assert_eq!(moment(true).way(&cold(), false), Way::Socket);
    }

    #[test]
    fn live_frames_are_not_overtaken_while_the_peer_may_not_have_polled_them() {
        for are_many in [true, false] {
            for is_suspended in [true, false] {
                for small_calls in [0, SMALL_CALLS_MAX] {
                    for is_leaving in [true, false] {
                        let moment = Moment { is_suspended, small_calls, ..moment(are_many) };
                        let state = PortState { is_leaving, ..warm() };
                        assert_ne!(moment.way(&state, true), Way::Socket, "{moment:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn few_packets_to_a_warm_port_go_in_small_calls_and_then_wait() {
        assert_eq!(moment(false).way(&warm(), true), Way::Live);
        let tired = Moment { small_calls: SMALL_CALLS_MAX, ..moment(false) };
        assert_eq!(tired.way(&warm(), true), Way::Wait);
        assert_eq!(Moment { are_many: true, ..tired }.way(&warm(), true), Way::Live);
    }

    #[test]
    fn port_that_is_to_leave_waits_until_it_has_settled_and_then_goes_by_af_xdp() {
        let leaving = PortState { is_leaving: true, ..warm() };
        assert_eq!(moment(true).way(&leaving, true), Way::Wait);
        let settled = PortState { settles_at: NOW, ..leaving };
        assert_eq!(moment(true).way(&settled, true), Way::Socket);
    }

    #[test]
    fn nothing_is_called_while_calls_are_suspended() {
        let suspended = Moment { is_suspended: true, ..moment(true) };
        assert_eq!(suspended.way(&cold(), true), Way::Socket);
        assert_eq!(suspended.way(&warm(), true), Way::Wait);
    }
}
