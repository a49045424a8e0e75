//! Forwards between pairs of sockets and looks at nothing: what AF_XDP costs by itself.

use std::os::fd::AsRawFd;
use std::time::Duration;

use arrayvec::ArrayVec;

use crate::frame::Frame;
use crate::pool::FramePool;
use crate::socket::Socket;
use crate::umem::Umem;

/// Packets moved at once.
const BURST: usize = 64;
const BURST_DESCRIPTORS: u32 = 64;

/// What a forwarder did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forwarded {
    /// Packets taken in.
    pub received: u64,
    /// Of those, packets that could not leave.
    pub dropped: u64,
}

/// A forwarder between pairs of sockets: whatever enters by one leaves by the other.
pub struct Forwarder {
    pairs: Vec<[Socket; 2]>,
    pool: FramePool,
    forwarded: Forwarded,
}

impl Forwarder {
    /// A forwarder between sockets of `umem`.
    #[must_use]
    pub fn new(umem: &Umem, pairs: Vec<[Socket; 2]>) -> Self {
        Self { pairs, pool: FramePool::new(umem), forwarded: Forwarded::default() }
    }

    /// What it did so far.
    #[must_use]
    pub fn forwarded(&self) -> Forwarded {
        self.forwarded
    }

    /// One burst in each direction of each pair; returns the packets taken in.
    pub fn turn(&mut self) -> usize {
        let mut packets = 0;
        for [left, right] in &mut self.pairs {
            packets += one_way(left, right, &mut self.pool, &mut self.forwarded);
            packets += one_way(right, left, &mut self.pool, &mut self.forwarded);
        }
        packets
    }

    /// Sleeps until a packet waits, or for `limit`.
    pub fn wait(&self, limit: Duration) {
        let sockets = self.pairs.iter().flatten();
        let poll = |socket: &Socket| libc::pollfd {
            fd: socket.fd().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut fds: Vec<libc::pollfd> = sockets.map(poll).collect();
        let count = libc::nfds_t::try_from(fds.len()).unwrap_or(0);
        let millis = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the array lives through the call and has the length that is passed.
        unsafe { libc::poll(fds.as_mut_ptr(), count, millis) };
    }
}

#[inline]
fn one_way(
    from: &mut Socket,
    to: &mut Socket,
    pool: &mut FramePool,
    forwarded: &mut Forwarded,
) -> usize {
    to.complete(pool);
    // Room first: what cannot leave stays in the receive ring, and the kernel counts it there.
    let room = usize::try_from(to.transmit_room(BURST_DESCRIPTORS)).unwrap_or(BURST);
    let mut burst = ArrayVec::<Frame, BURST>::new();
    let received = from.receive(pool, room.min(BURST), |frame| burst.push(frame));
    for frame in burst {
        if let Err((_, frame)) = to.transmit(pool, frame) {
            forwarded.dropped += 1;
            pool.release(frame);
        }
    }
    forwarded.received += received as u64;
    to.flush(pool);
    received
}
