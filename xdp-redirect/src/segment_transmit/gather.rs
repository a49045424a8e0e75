//! Packets that leave by the packet socket, from one flush to the next.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use dataplane::buffer::Buffer;
use dataplane::port::PortId;
use dataplane::segments::Layout;
use dataplane::segments::join::{Join, Piece};

use super::counters::SegmentCounters;
use super::sender::{BATCH, Header, SegmentSender};
use crate::cast::index;
use crate::frame::Frame;
use crate::limits::PORTS_MAX;
use crate::pools::Pools;
use crate::statistics::add;

/// Chunks of packets that wait, from which on they are sent before another one is added. Seven segments of
/// 64 KB are worth a call; more of them would keep memory that pods' queues need, and leave the processor's
/// caches before they are copied.
const CHUNKS_ENOUGH: usize = 256;

struct Packet {
    port: PortId,
    frame: Frame,
    /// What may be joined with others of its stream.
    piece: Option<Piece>,
    /// It leaves as part of one before it.
    is_joined: bool,
}

/// What one packet of a call is made of.
#[derive(Clone, Copy)]
enum Sent {
    /// A whole segment, as it came.
    Whole,
    /// So many packets of a link.
    Joined(u64),
    /// A packet of a link.
    Following,
}

/// A worker's packets for its packet socket. Allocates nothing after it is made.
pub(crate) struct Gather {
    sender: SegmentSender,
    waiting: Vec<Packet>,
    /// Of those that wait.
    chunks: usize,
    /// Of the packets of a call.
    sent: Vec<Sent>,
    /// Of ports that take whole segments; 0 for others.
    interfaces: Box<[u32]>,
    /// How many wait for each port.
    waiting_for: Box<[u16]>,
    /// A flush was begun and is not over: after a panic.
    is_flushing: bool,
    counters: Arc<SegmentCounters>,
}

impl Gather {
    pub(crate) fn new(sender: SegmentSender, counters: Arc<SegmentCounters>) -> Self {
        Self {
            sender,
            waiting: Vec::with_capacity(BATCH),
            chunks: 0,
            sent: Vec::with_capacity(BATCH),
            interfaces: vec![0; index(PORTS_MAX)].into_boxed_slice(),
            waiting_for: vec![0; index(PORTS_MAX)].into_boxed_slice(),
            is_flushing: false,
            counters,
        }
    }

    /// Whether nothing waits.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a packet to `port` waits.
    #[inline]
    pub(crate) fn has(&self, port: PortId) -> bool {
        self.waiting_for.get(usize::from(port.0)).is_some_and(|waiting| *waiting > 0)
    }

    /// Says by which interface whole segments to `port` leave; 0: by none.
    pub(crate) fn set_interface(&mut self, port: PortId, ifindex: u32) {
        if let Some(interface) = self.interfaces.get_mut(usize::from(port.0)) {
            *interface = ifindex;
        }
    }

    /// Adds a packet behind those that wait; sends those first when they are as many as a call takes, or as
    /// long.
    pub(crate) fn add(
        &mut self,
        port: PortId,
        frame: Frame,
        piece: Option<Piece>,
        pools: &mut Pools,
    ) {
        if self.waiting.len() >= BATCH || self.chunks >= CHUNKS_ENOUGH {
            self.flush(pools);
        }
        if let Some(waiting) = self.waiting_for.get_mut(usize::from(port.0)) {
            *waiting += 1;
        }
        self.chunks += usize::from(frame.chunks());
        self.waiting.push(Packet { port, frame, piece, is_joined: false });
    }

    /// Sends what waits. The kernel copies, so all is free again.
    pub(crate) fn flush(&mut self, pools: &mut Pools) {
        if std::mem::replace(&mut self.is_flushing, true) {
            self.mend(pools);
        }
        self.sender.begin();
        self.sent.clear();
        for first in 0..self.waiting.len() {
            if !self.waiting[first].is_joined {
                let sent = self.put(first);
                self.sent.push(sent);
            }
        }
        self.call();
        self.clear(pools);
        self.is_flushing = false;
    }

    /// Begins anew after a flush that a panic cut short: what waits may have been sent, or was made a part of
    /// another packet.
    #[cold]
    fn mend(&mut self, pools: &mut Pools) {
        add(&self.counters.abandoned_packets, self.waiting.len() as u64);
        self.clear(pools);
        self.waiting_for.fill(0);
    }

    /// Puts a packet, with what is joined to it, into the call.
    fn put(&mut self, first: usize) -> Sent {
        let (before, after) = self.waiting.split_at_mut(first + 1);
        let packet = &mut before[first];
        let ifindex = self.interfaces.get(usize::from(packet.port.0)).copied().unwrap_or(0);
        let size = packet.frame.segment_size();
        if size != 0 {
            let header = Layout::of(&packet.frame).map(|layout| {
                layout.leave_checksum(&mut packet.frame);
                Header::of(&layout, size)
            });
            // It was looked at when it was planned; without a header the kernel refuses it as too long.
            let parts = packet.frame.live_pieces().map(|(_, bytes)| bytes);
            self.sender.put(ifindex, header.unwrap_or_default(), parts);
            return Sent::Whole;
        }
        let join =
            packet.piece.and_then(Join::begin).map(|join| gather_stream(join, packet, after));
        match join.filter(|join| join.pieces() > 1) {
            Some(join) => {
                let layout = join.finish(&mut packet.frame);
                let own =
                    packet.frame.bytes().get(..layout.payload_offset + usize::from(join.size()));
                let others = after.iter().filter(|other| other.is_joined && other.follows(packet));
                let others = others.take(join.pieces() - 1).filter_map(Packet::payload);
                let parts = own.into_iter().chain(others);
                self.sender.put(ifindex, Header::of(&layout, join.size()), parts);
                Sent::Joined(join.pieces() as u64)
            }
            None => {
                let parts = packet.frame.live_pieces().map(|(_, bytes)| bytes);
                self.sender.put(ifindex, Header::default(), parts);
                Sent::Following
            }
        }
    }

    /// Makes the calls until all are taken or refused.
    fn call(&mut self) {
        let mut next = 0;
        while next < self.sent.len() {
            add(&self.counters.calls, 1);
            match self.sender.send(next) {
                Ok(0) => break,
                Ok(taken) => {
                    let taken = (next + taken).min(self.sent.len());
                    self.sent[next..taken].iter().for_each(|sent| self.count(*sent));
                    next = taken;
                }
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => {
                    let packets = self.sent[next].packets();
                    add(self.refused(&error), packets);
                    next += 1;
                }
            }
        }
    }

    fn count(&self, sent: Sent) {
        match sent {
            Sent::Whole => add(&self.counters.whole_packets, 1),
            Sent::Following => add(&self.counters.following_packets, 1),
            Sent::Joined(packets) => {
                add(&self.counters.joined_segments, 1);
                add(&self.counters.joined_packets, packets);
            }
        }
    }

    fn refused(&self, error: &io::Error) -> &AtomicU64 {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => {
                &self.counters.refused_memory_packets
            }
            Some(libc::EINVAL | libc::EMSGSIZE) => &self.counters.refused_header_packets,
            _ => &self.counters.abandoned_packets,
        }
    }

    /// Frees what waits for `port`, which is no port of the worker's any more.
    pub(crate) fn abandon(&mut self, port: PortId, pools: &mut Pools) {
        self.set_interface(port, 0);
        if let Some(waiting) = self.waiting_for.get_mut(usize::from(port.0)) {
            *waiting = 0;
        }
        for place in (0..self.waiting.len()).rev() {
            if self.waiting[place].port == port {
                add(&self.counters.abandoned_packets, 1);
                let frame = self.waiting.remove(place).frame;
                self.chunks -= usize::from(frame.chunks());
                pools.release(frame);
            }
        }
    }

    /// Frees all that waits.
    pub(crate) fn clear(&mut self, pools: &mut Pools) {
        self.chunks = 0;
        for packet in self.waiting.drain(..) {
            if let Some(waiting) = self.waiting_for.get_mut(usize::from(packet.port.0)) {
                *waiting = 0;
            }
            pools.release(packet.frame);
        }
    }
}

impl Sent {
    fn packets(self) -> u64 {
        match self {
            Self::Joined(packets) => packets,
            Self::Whole | Self::Following => 1,
        }
    }
}

impl Packet {
    /// Whether it is of the same stream to the same port.
    fn follows(&self, first: &Self) -> bool {
        let pieces = self.piece.as_ref().zip(first.piece.as_ref());
        self.port == first.port && pieces.is_some_and(|(own, first)| own.is_of_stream(first))
    }

    fn payload(&self) -> Option<&[u8]> {
        self.piece.as_ref().map(|piece| piece.payload(self.frame.bytes()))
    }
}

/// Joins to `first` what follows it in its stream, up to the first packet to its port that may be of that
/// stream and cannot be joined.
fn gather_stream(mut join: Join, first: &Packet, after: &mut [Packet]) -> Join {
    for other in after.iter_mut().filter(|other| other.port == first.port && !other.is_joined) {
        let Some(piece) = other.piece else { break };
        if !other.follows(first) {
            continue;
        }
        if !join.take(first.frame.bytes(), &piece, other.frame.bytes()) {
            break;
        }
        other.is_joined = true;
    }
    join
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::umem::{Umem, UmemConfig};

    #[test]
    fn flush_that_a_panic_cut_short_is_not_gone_on_with() {
        // Without CAP_NET_RAW there is no packet socket.
        let Ok(sender) = SegmentSender::new() else { return };
        let umem = Umem::new(UmemConfig { frames: 64, ..UmemConfig::default() }).expect("memory");
        let counters = Arc::new(SegmentCounters::default());
        let (mut pools, mut gather) =
            (Pools::new(&umem), Gather::new(sender, Arc::clone(&counters)));
        let port = PortId(7);
        for is_flushing in [true, false] {
            let frame = pools.of(0).allocate_with(&[7; 60]).expect("a frame");
            gather.add(port, frame, None, &mut pools);
            assert!(gather.has(port));
            gather.is_flushing = is_flushing;
            gather.flush(&mut pools);
            assert!(gather.is_empty() && !gather.has(port) && !gather.is_flushing);
        }
        // The first one was not sent; the second one found no interface.
        let statistics = counters.read();
        assert_eq!((statistics.calls, statistics.abandoned_packets), (1, 2), "{statistics:?}");
        drop((gather, pools));
        let census = umem.census();
        assert_eq!(census.free, census.total);
    }
}
