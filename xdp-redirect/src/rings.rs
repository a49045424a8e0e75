//! The transmit rings of a worker's sockets.

use dataplane::DropReason;
use dataplane::port::PortId;

use crate::frame::Frame;
use crate::pools::Pools;
use crate::ports::TransmitPath;
use crate::ready::FlagPlace;
use crate::socket::Socket;
use crate::transfer;

/// A socket of a worker.
pub(crate) struct Entry {
    pub(crate) port: PortId,
    pub(crate) socket: Box<Socket>,
    /// The number of its region.
    pub(crate) region: u8,
    /// What the program raises for the queue.
    pub(crate) flag: FlagPlace,
    /// Has packets that may not be under way.
    pub(crate) is_dirty: bool,
}

/// The transmit rings of a worker's sockets, for packets that were gathered.
pub(crate) struct Rings<'a> {
    pub(crate) sockets: &'a mut Vec<Option<Entry>>,
    pub(crate) paths: &'a mut [TransmitPath],
    pub(crate) dirty: &'a mut Vec<u16>,
}

impl Rings<'_> {
    fn place(&self, port: PortId) -> Option<u16> {
        self.paths.get(usize::from(port.0))?.socket()
    }

    /// Whether all that `port` was given is under way.
    #[inline]
    pub(crate) fn is_empty(&self, port: PortId) -> bool {
        let entry = self.place(port).and_then(|place| self.sockets.get(usize::from(place)));
        entry.is_some_and(|entry| entry.as_ref().is_some_and(|entry| !entry.is_dirty))
    }

    /// Puts a packet on the ring of `port`, where there is room for what was gathered.
    ///
    /// # Errors
    /// Gives the packet back when the port is gone, or its link down, meanwhile.
    pub(crate) fn send(
        &mut self,
        pools: &mut Pools,
        port: PortId,
        buffer: Frame,
    ) -> Result<(), (DropReason, Frame)> {
        let Some(place) = self.place(port) else { return Err((DropReason::PortGone, buffer)) };
        match self.sockets.get_mut(usize::from(place)) {
            Some(Some(entry)) => put(entry, place, self.dirty, pools, buffer),
            _ => Err((DropReason::PortGone, buffer)),
        }
    }

    /// From now on everything leaves by the ring of `port`.
    pub(crate) fn leave_live(&mut self, port: PortId) {
        if let Some(path) = self.paths.get_mut(usize::from(port.0))
            && let Some(socket) = path.socket()
        {
            *path = TransmitPath::AfXdp { socket };
        }
    }
}

/// Puts a packet on a transmit ring, which then has to be flushed.
#[inline]
pub(crate) fn put(
    entry: &mut Entry,
    place: u16,
    dirty: &mut Vec<u16>,
    pools: &mut Pools,
    buffer: Frame,
) -> Result<(), (DropReason, Frame)> {
    let result = if buffer.region() == entry.region {
        entry.socket.transmit(pools.of(entry.region), buffer)
    } else {
        put_copy(entry, pools, buffer)
    };
    if !entry.is_dirty {
        // A full ring is dirty as well: its packets have to leave before another fits.
        entry.is_dirty = true;
        dirty.push(place);
    }
    result
}

/// Puts a copy of a packet on the ring of a socket whose region is another than the packet's, which is
/// freed.
#[inline(never)]
fn put_copy(
    entry: &mut Entry,
    pools: &mut Pools,
    buffer: Frame,
) -> Result<(), (DropReason, Frame)> {
    if let Err(reason) = entry.socket.has_room(u32::from(buffer.chunks())) {
        return Err((reason, buffer));
    }
    let pool = pools.of(entry.region);
    let Some(copied) = transfer::copy(&buffer, pool) else {
        return Err((DropReason::PacketMemory, buffer));
    };
    if let Err((reason, copied)) = entry.socket.transmit(pool, copied) {
        pool.release(copied);
        return Err((reason, buffer));
    }
    pools.release(buffer);
    Ok(())
}
