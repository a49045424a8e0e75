//! Packets that leave by the packet socket, from one flush to the next.

use std::sync::Arc;

use dataplane::buffer::Buffer;
use dataplane::port::PortId;

use super::counters::SegmentCounters;
use super::sender::{BATCH, SegmentSender};
use crate::cast::index;
use crate::frame::Frame;
use crate::limits::PORTS_MAX;
use crate::pools::Pools;
use crate::statistics::add;

struct Packet {
    port: PortId,
    frame: Frame,
}

/// A worker's packets for its packet socket. Allocates nothing after it is made.
pub(crate) struct Gather {
    sender: SegmentSender,
    waiting: Vec<Packet>,
    /// Of ports that take whole segments; 0 for others.
    interfaces: Box<[u32]>,
    counters: Arc<SegmentCounters>,
}

impl Gather {
    pub(crate) fn new(sender: SegmentSender, counters: Arc<SegmentCounters>) -> Self {
        Self {
            sender,
            waiting: Vec::with_capacity(BATCH),
            interfaces: vec![0; index(PORTS_MAX)].into_boxed_slice(),
            counters,
        }
    }

    /// Whether nothing waits.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a packet to `port` waits.
    pub(crate) fn has(&self, port: PortId) -> bool {
        self.waiting.iter().any(|packet| packet.port == port)
    }

    /// Says by which interface whole segments to `port` leave; 0: by none.
    pub(crate) fn set_interface(&mut self, port: PortId, ifindex: u32) {
        if let Some(interface) = self.interfaces.get_mut(usize::from(port.0)) {
            *interface = ifindex;
        }
    }

    /// Adds a packet behind those that wait; sends those first when they are as many as a call takes.
    pub(crate) fn add(&mut self, port: PortId, frame: Frame, pools: &mut Pools) {
        if self.waiting.len() >= BATCH {
            self.flush(pools);
        }
        self.waiting.push(Packet { port, frame });
    }

    /// Sends what waits. The kernel copies, so all is free again.
    pub(crate) fn flush(&mut self, pools: &mut Pools) {
        self.sender.begin();
        for packet in &mut self.waiting {
            let ifindex = self.interfaces.get(usize::from(packet.port.0)).copied().unwrap_or(0);
            // Whole segments were looked at when they were planned, and a batch is no larger than this.
            let is_put = self.sender.put(ifindex, &mut packet.frame);
            debug_assert!(is_put, "a planned packet, and room for it");
        }
        let (mut next, all) = (0, self.waiting.len());
        while next < all {
            add(&self.counters.calls, 1);
            match self.sender.send(next) {
                Ok(sent) if sent > 0 => {
                    for packet in &self.waiting[next..(next + sent).min(all)] {
                        let is_long = packet.frame.segment_size() != 0;
                        let counter = match is_long {
                            true => &self.counters.whole_packets,
                            false => &self.counters.following_packets,
                        };
                        add(counter, 1);
                    }
                    next += sent;
                }
                Ok(_) => break,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => {
                    let counter = match error.raw_os_error() {
                        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => {
                            &self.counters.refused_memory_packets
                        }
                        Some(libc::EINVAL | libc::EMSGSIZE) => {
                            &self.counters.refused_header_packets
                        }
                        _ => &self.counters.abandoned_packets,
                    };
                    add(counter, 1);
                    next += 1;
                }
            }
        }
        for packet in self.waiting.drain(..) {
            pools.release(packet.frame);
        }
    }

    /// Frees what waits for `port`, which is no port of the worker's any more.
    pub(crate) fn abandon(&mut self, port: PortId, pools: &mut Pools) {
        self.set_interface(port, 0);
        for place in (0..self.waiting.len()).rev() {
            if self.waiting[place].port == port {
                add(&self.counters.abandoned_packets, 1);
                pools.release(self.waiting.remove(place).frame);
            }
        }
    }

    /// Frees all that waits.
    pub(crate) fn clear(&mut self, pools: &mut Pools) {
        for packet in self.waiting.drain(..) {
            pools.release(packet.frame);
        }
    }
}
