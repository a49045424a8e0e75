//! Packets that are longer than their port's link takes: they leave whole where the port's other end takes
//! them so ([`crate::segment_transmit`]), and in pieces elsewhere.

use dataplane::DropReason;
use dataplane::buffer::Buffer;
use dataplane::port::{PortId, Ports};
use dataplane::segments::Layout;
use dataplane::segments::join::{Join, Piece};

use super::{TransmitPath, WorkerPorts};
use crate::frame::{Frame, HEADROOM_BYTES};
use crate::statistics::add;

impl WorkerPorts {
    pub(super) fn set_whole(&mut self, port: PortId, ifindex: u32) {
        let (Some(segments), Some(path)) =
            (&mut self.segments, self.paths.get_mut(usize::from(port.0)))
        else {
            return;
        };
        match *path {
            TransmitPath::AfXdp { socket } if ifindex != 0 => {
                *path = TransmitPath::Whole { socket }
            }
            TransmitPath::Whole { socket } if ifindex == 0 => {
                // Commands are taken before a tick's packets leave: what waits has no other way, and what
                // follows must not overtake it.
                if segments.has(port) {
                    segments.flush(&mut self.pools);
                }
                *path = TransmitPath::AfXdp { socket }
            }
            _ => return,
        }
        segments.set_interface(port, ifindex);
    }

    /// Sends a packet to a port that takes whole segments, behind all that it was sent before.
    #[inline(never)]
    pub(super) fn by_either(
        &mut self,
        port: PortId,
        socket: u16,
        buffer: Frame,
    ) -> Result<(), (DropReason, Frame)> {
        let Some(segments) = &mut self.segments else { return self.by_socket(socket, buffer) };
        let piece = if buffer.segment_size() == 0 { Piece::of(&buffer) } else { None };
        let may_begin =
            buffer.segment_size() != 0 || piece.is_some_and(|one| Join::begin(one).is_some());
        if !may_begin && !segments.has(port) {
            return self.by_socket(socket, buffer);
        }
        let Some(Some(entry)) = self.sockets.get_mut(usize::from(socket)) else {
            return Err((DropReason::PortGone, buffer));
        };
        if entry.is_dirty && !segments.has(port) {
            entry.is_dirty = !entry.socket.flush(self.pools.of(entry.region));
            if entry.is_dirty {
                return Err((DropReason::TxRingFull, buffer));
            }
            self.dirty.retain(|other| *other != socket);
        }
        segments.add(port, buffer, piece, &mut self.pools);
        Ok(())
    }

    /// Cuts a packet, and sends its pieces by a port that takes no others. They lie where the port's socket
    /// sends from. What there is no memory or room for is lost, as on a wire.
    #[cold]
    pub(super) fn in_pieces(
        &mut self,
        port: PortId,
        socket: u16,
        mut buffer: Frame,
    ) -> Result<(), (DropReason, Frame)> {
        let Some(Some(entry)) = self.sockets.get(usize::from(socket)) else {
            return Err((DropReason::PortGone, buffer));
        };
        let chunk_bytes = entry.socket.umem.config().chunk_bytes;
        let Some(layout) = Layout::of(&buffer) else {
            return Err((DropReason::Uncuttable, buffer));
        };
        let room = usize::try_from(chunk_bytes - HEADROOM_BYTES).unwrap_or(0);
        let room = u16::try_from(room.saturating_sub(layout.payload_offset)).unwrap_or(u16::MAX);
        let size = buffer.segment_size().min(room);
        if size == 0 || buffer.set_segment_size(size).is_err() {
            return Err((DropReason::Uncuttable, buffer));
        }
        let pieces = layout.segments(size);
        let sent = (0..pieces)
            .take_while(|number| self.send_piece(port, socket, (&layout, &buffer), *number));
        let sent = sent.count();
        if sent == 0 {
            return Err((DropReason::TxRingFull, buffer));
        }
        let counters = &self.queues.segments;
        add(&counters.cut_packets, 1);
        add(&counters.cut_pieces, sent as u64);
        add(&counters.lost_pieces, (pieces - sent) as u64);
        self.pools.release(buffer);
        Ok(())
    }

    fn send_piece(
        &mut self,
        port: PortId,
        socket: u16,
        (layout, whole): (&Layout, &Frame),
        number: usize,
    ) -> bool {
        let mut allocated = self.allocate_piece(socket);
        if allocated.is_none() {
            self.drain(socket);
            allocated = self.allocate_piece(socket);
        }
        let Some(mut piece) = allocated else { return false };
        if layout.write(whole, number, &mut piece).is_err() {
            self.pools.release(piece);
            return false;
        }
        let sent = match self.transmit(port, piece) {
            Err((DropReason::TxRingFull, piece)) => {
                self.drain(socket);
                self.transmit(port, piece)
            }
            sent => sent,
        };
        sent.map_err(|(_, piece)| self.pools.release(piece)).is_ok()
    }

    fn allocate_piece(&mut self, socket: u16) -> Option<Frame> {
        let entry = self.sockets.get(usize::from(socket))?.as_ref()?;
        self.pools.of(entry.region).allocate()
    }

    /// Starts transmission of what is on a socket's ring, and takes back what has left. A burst of whole
    /// segments has more pieces than a ring has places, and the worker flushes at the end of its tick alone.
    fn drain(&mut self, socket: u16) {
        let Some(Some(entry)) = self.sockets.get_mut(usize::from(socket)) else { return };
        let pool = self.pools.of(entry.region);
        // It stays dirty, and is flushed again by the end of the tick.
        entry.socket.flush(pool);
        entry.socket.complete(pool);
    }
}
