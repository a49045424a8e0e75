//! Ports made of queues in memory: what a simulated worker receives from and transmits to.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use dataplane::DropReason;
use dataplane::buffer::Buffer;
use dataplane::memory::HeapBuffer;
use dataplane::port::{PortId, Ports};
use dataplane::worker::{Received, RxBurst};

/// The wire of one simulated node: frames on their way in and out, shared by all its workers.
#[derive(Debug, Default)]
pub struct Wire {
    /// Frames to be received, by worker.
    incoming: BTreeMap<usize, VecDeque<(PortId, Vec<u8>)>>,
    /// Frames that were transmitted, in order.
    outgoing: Vec<(PortId, Vec<u8>)>,
    /// How the packet that was transmitted last is to be cut ([`Buffer::segment_size`]).
    pub segment_size: u16,
    /// Ports whose transmit path is full.
    full: Vec<PortId>,
    /// Frames to be transmitted by this port before the path panics, once.
    pub panics_after: Option<(PortId, usize)>,
    /// Whether packets pile up.
    pub is_pressed: bool,
    /// Frames that wait for their worker's flush, by worker.
    unflushed: BTreeMap<usize, usize>,
    /// The most of them that waited when their worker asked for others.
    pub unflushed_at_receive: usize,
    /// Buffers given back.
    pub released: usize,
}

impl Wire {
    /// Puts a frame into `worker`'s receive ring of `port`.
    pub fn deliver(&mut self, worker: usize, port: PortId, frame: &[u8]) {
        self.incoming.entry(worker).or_default().push_back((port, frame.to_vec()));
    }

    /// Everything transmitted since the last call.
    pub fn take_outgoing(&mut self) -> Vec<(PortId, Vec<u8>)> {
        std::mem::take(&mut self.outgoing)
    }

    /// Frames not received yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.incoming.values().map(VecDeque::len).sum()
    }

    /// Makes `port`'s transmit path refuse everything, or take it again.
    pub fn set_full(&mut self, port: PortId, full: bool) {
        self.full.retain(|other| *other != port);
        if full {
            self.full.push(port);
        }
    }
}

/// One worker's end of a [`Wire`].
#[derive(Debug, Clone)]
pub struct MemoryPorts {
    worker: usize,
    wire: Rc<RefCell<Wire>>,
}

impl MemoryPorts {
    /// The end of `worker`.
    #[must_use]
    pub fn new(worker: usize, wire: Rc<RefCell<Wire>>) -> Self {
        Self { worker, wire }
    }
}

impl Ports for MemoryPorts {
    type Buffer = HeapBuffer;

    fn receive(&mut self, burst: &mut RxBurst<HeapBuffer>) {
        let mut wire = self.wire.borrow_mut();
        let unflushed = wire.unflushed.get(&self.worker).copied().unwrap_or(0);
        wire.unflushed_at_receive = wire.unflushed_at_receive.max(unflushed);
        let Some(ring) = wire.incoming.get_mut(&self.worker) else { return };
        while burst.remaining_capacity() > 0 {
            let Some((port, frame)) = ring.pop_front() else { return };
            burst.push(Received { port, buffer: HeapBuffer::new(&frame) });
        }
    }

    fn transmit(
        &mut self,
        port: PortId,
        buffer: HeapBuffer,
    ) -> Result<(), (DropReason, HeapBuffer)> {
        let mut wire = self.wire.borrow_mut();
        if wire.full.contains(&port) {
            return Err((DropReason::TxRingFull, buffer));
        }
        if let Some((_, left)) = wire.panics_after.as_mut().filter(|(of, _)| *of == port) {
            let Some(fewer) = left.checked_sub(1) else {
                wire.panics_after = None;
                panic!("of this test");
            };
            *left = fewer;
        }
        wire.segment_size = buffer.segment_size();
        wire.outgoing.push((port, buffer.bytes().to_vec()));
        *wire.unflushed.entry(self.worker).or_default() += 1;
        Ok(())
    }

    fn flush(&mut self) {
        self.wire.borrow_mut().unflushed.remove(&self.worker);
    }

    fn is_pressed(&self) -> bool {
        self.wire.borrow().is_pressed
    }

    fn release(&mut self, _buffer: HeapBuffer) {
        self.wire.borrow_mut().released += 1;
    }
}
