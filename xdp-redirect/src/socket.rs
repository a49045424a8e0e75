//! One AF_XDP socket: an interface's queue, with the four rings to and from the kernel.
//!
//! Made and closed on the control side (a bind takes milliseconds, and closing takes a lock);
//! moved to a worker in between, which alone receives, transmits and keeps the fill ring full.

use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;

use dataplane::DropReason;

use crate::bind::{Bound, Lease};
use crate::frame::{Chain, Frame, Piece};
use crate::hand_over::message::{Role, SocketRecord};
use crate::pool::FramePool;
use crate::ring::{CONTINUED, Consumer, Descriptor, Producer};
use crate::statistics::{Monitored, SocketCounters, SocketMonitor, add};
use crate::umem::Umem;

pub use crate::bind::{BusyPoll, SocketConfig};

/// Chunks the kernel sends as one packet at most: a linear part and `MAX_SKB_FRAGS` (17) pages,
/// less one it keeps free (`xsk_build_skb`).
pub const TRANSMIT_CHUNKS_MAX: u8 = 17;

/// Bursts of few packets in a row after which a queue keeps half of the frames: a busy stream brings a large
/// one sooner, and a pod that was busy once does not keep memory for good.
const QUIET_LOOKS: u32 = 1024;

/// Whether packets can leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// They can, as far as is known.
    Up,
    /// The interface is down; every flush tries again.
    Down,
    /// The interface is gone for good: remove the socket.
    Gone,
}

/// Whether the worker runs the queue's receive processing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Polling {
    /// The kernel does it, or cannot be made to by this socket.
    Off,
    /// Wanted, but the kernel has named no NAPI for the socket. Some kernels do so only with the
    /// first packet.
    Unconfirmed,
    /// The kernel has named one.
    On,
}

/// The receiving half, which the owner of the queue has.
pub(crate) struct Receiving {
    pub rx: Consumer<Descriptor>,
    pub fill: Producer<u64>,
    pub completion: Consumer<u64>,
    /// Frames to keep with the kernel at most, and when little comes.
    pub fill_frames: u32,
    pub idle_frames: u32,
    /// Frames to keep with the kernel now.
    pub wanted: u32,
    /// Frames that are.
    pub posted: u32,
    /// How often in a row little had come ([`Self::adapt`]).
    pub quiet: u32,
    /// Three quarters of what could have come had, when it was last looked at.
    pub is_crowded: bool,
    /// A packet whose last chunk has not come yet.
    pub partial: Option<Chain>,
    /// The rest of the packet under way is thrown away.
    pub discarding: bool,
}

/// A bound socket.
pub struct Socket {
    pub(crate) tx: Producer<Descriptor>,
    pub(crate) receiving: Option<Receiving>,
    pub(crate) link: LinkState,
    pub(crate) kicks_max: u32,
    pub(crate) polling: Polling,
    pub(crate) fd: RawFd,
    pub(crate) umem: Umem,
    pub(crate) monitor: SocketMonitor,
    /// Closes the socket when dropped; nothing above reaches the rings after.
    pub(crate) owner: Option<Bound>,
    /// Finds the socket's frames again when the last socket of the queue has dropped it.
    pub(crate) lease: Arc<Lease>,
}

impl Socket {
    /// The interface it is bound to.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.monitor.interface
    }

    /// The queue it is bound to.
    #[must_use]
    pub fn queue(&self) -> u32 {
        self.monitor.queue
    }

    /// Whether the kernel moves packets without copying, as it says itself.
    #[must_use]
    pub fn is_zero_copy(&self) -> bool {
        self.monitor.zero_copy
    }

    /// Whether packets can leave.
    #[must_use]
    pub fn link(&self) -> LinkState {
        self.link
    }

    /// For statistics, from any thread.
    #[must_use]
    pub fn monitor(&self) -> SocketMonitor {
        self.monitor.clone()
    }

    /// The file descriptor: readable when packets wait. For the program's table
    /// ([`crate::Redirect::set_socket`]) and for sleeping.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open as long as `self` has its owner, which is until it drops.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    /// Whether receive calls run the queue's receive processing ([`BusyPoll`]), as the kernel says
    /// itself: not when it has named no NAPI by the first packet, as it never does for veth.
    #[must_use]
    pub fn busy_polls(&self) -> bool {
        self.polling == Polling::On
    }

    /// What the next process needs of it: its worker and its interface's index are given. Shows the kernel
    /// all that was done so far, and nothing may be done after.
    pub(crate) fn record(&mut self, ifindex: u32, worker: u32) -> SocketRecord {
        self.tx.submit();
        let role = match &mut self.receiving {
            Some(receiving) => {
                receiving.rx.release();
                receiving.fill.submit();
                receiving.completion.release();
                Role::Receives {
                    receive_ring: receiving.rx.entries(),
                    posted: receiving.posted,
                    wanted: receiving.wanted,
                    // What came of it ends with the process.
                    discarding: receiving.discarding || receiving.partial.is_some(),
                }
            }
            None => Role::Transmits { worker },
        };
        SocketRecord {
            ifindex,
            queue: self.queue(),
            region: self.umem.region(),
            number: self.lease.number,
            transmit_ring: self.tx.entries(),
            role,
        }
    }

    fn counters(&self) -> &SocketCounters {
        let monitored: &Monitored = &self.monitor.monitored;
        &monitored.counters
    }

    /// Receives up to `packets_max` packets; returns how many. Takes completed transmissions back
    /// and keeps the fill ring full on the way.
    #[inline]
    pub fn receive(
        &mut self,
        pool: &mut FramePool,
        packets_max: usize,
        mut take: impl FnMut(Frame),
    ) -> usize {
        self.complete(pool);
        let mut packets = self.receive_ready(pool, packets_max, &mut take);
        if packets == 0 && self.wake_receiver() {
            packets = self.receive_ready(pool, packets_max, &mut take);
        }
        if packets > 0 && self.polling == Polling::Unconfirmed {
            // One system call in a socket's life spares one in each receive call from now on.
            self.polling = if has_napi(self.fd) { Polling::On } else { Polling::Off };
        }
        self.fill(pool);
        packets
    }

    #[inline(always)]
    fn receive_ready(
        &mut self,
        pool: &mut FramePool,
        packets_max: usize,
        take: &mut impl FnMut(Frame),
    ) -> usize {
        let Some(receiving) = &mut self.receiving else { return 0 };
        let counters = &self.monitor.monitored.counters;
        let waiting = receiving.rx.waiting();
        receiving.note_crowd(waiting);
        receiving.adapt(waiting, &self.umem);
        let from = (&self.umem, self.lease.number);
        let packets = receiving.take_packets(from, counters, pool, packets_max, take);
        if packets > 0 {
            add(&counters.received_packets, packets as u64);
        }
        packets
    }

    /// Makes the kernel look at an empty receive side where it waits to be told, or is to be
    /// polled; says whether it did.
    fn wake_receiver(&mut self) -> bool {
        let Some(receiving) = &self.receiving else { return false };
        if self.polling == Polling::Off && !receiving.fill.needs_wakeup() {
            return false;
        }
        // SAFETY: no buffer; AF_XDP's recvfrom only runs the queue (`xsk_recvmsg`).
        unsafe {
            libc::recvfrom(
                self.fd,
                std::ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
        true
    }

    /// Whether received packets wait. Looks at the kernel's index.
    #[inline]
    pub(crate) fn has_waiting(&self) -> bool {
        self.receiving.as_ref().is_some_and(|receiving| receiving.rx.waiting() > 0)
    }

    /// Whether three quarters of the packets that could wait did, when they were last looked at.
    #[inline]
    pub(crate) fn is_crowded(&self) -> bool {
        self.receiving.as_ref().is_some_and(|receiving| receiving.is_crowded)
    }

    /// Whether packets come only when they are asked for: by busy polling, or by a driver that
    /// waits to be woken (zero-copy).
    pub(crate) fn is_polled(&self) -> bool {
        self.polling != Polling::Off || self.is_zero_copy()
    }

    /// Keeps as many frames with the kernel as are wanted.
    #[inline]
    pub(crate) fn fill(&mut self, pool: &mut FramePool) {
        let number = self.lease.number;
        let Some(receiving) = &mut self.receiving else { return };
        if receiving.posted >= receiving.wanted {
            return;
        }
        receiving.shrink(&self.umem);
        let wanted = receiving.wanted.saturating_sub(receiving.posted);
        let room = receiving.fill.free(wanted).min(wanted);
        for _ in 0..room {
            let Some(chunk) = pool.take() else {
                add(&self.monitor.monitored.counters.fill_starved, 1);
                break;
            };
            receiving.fill.push(self.umem.post(chunk, number));
            receiving.posted += 1;
        }
        receiving.fill.submit();
    }

    /// Takes completed transmissions back.
    #[inline]
    pub(crate) fn complete(&mut self, pool: &mut FramePool) {
        let number = self.lease.number;
        let Some(receiving) = &mut self.receiving else { return };
        let mut completed = 0;
        while let Some(address) = receiving.completion.pop() {
            match self.umem.completed(address, number) {
                Some(chunk) => pool.put(chunk),
                None => add(&self.monitor.monitored.counters.bad_descriptors, 1),
            }
            completed += 1;
        }
        if completed > 0 {
            receiving.completion.release();
            add(&self.counters().completed_chunks, completed);
        }
    }

    /// Places free on the transmit ring: looks at the kernel's side when fewer than `wanted` are
    /// known.
    #[inline]
    pub fn transmit_room(&mut self, wanted: u32) -> u32 {
        self.tx.free(wanted)
    }

    /// Whether a packet of so many chunks can be put on the transmit ring; else why not.
    #[inline(always)]
    pub(crate) fn has_room(&mut self, chunks: u32) -> Result<(), DropReason> {
        if self.link != LinkState::Up {
            return Err(DropReason::PortGone);
        }
        if self.tx.free(chunks) < chunks {
            add(&self.counters().transmit_ring_full, 1);
            return Err(DropReason::TxRingFull);
        }
        Ok(())
    }

    /// Puts a packet on the transmit ring; it leaves with the next [`Self::flush`].
    ///
    /// # Errors
    /// Gives the frame back: the ring is full, the link down or gone, the frame empty, of more
    /// than [`TRANSMIT_CHUNKS_MAX`] chunks, or another region's.
    #[inline(always)]
    pub fn transmit(
        &mut self,
        pool: &mut FramePool,
        frame: Frame,
    ) -> Result<(), (DropReason, Frame)> {
        if let Err(reason) = self.has_room(u32::from(frame.chunks())) {
            return Err((reason, frame));
        }
        match frame.single() {
            Some(piece) => {
                let Some(chunk) = self.umem.chunk_of(piece.chunk) else {
                    return Err((DropReason::NoRoom, frame));
                };
                if piece.len == 0 {
                    return Err((DropReason::Truncated, frame));
                }
                self.push(chunk, piece, 0);
            }
            None => self.transmit_chain(pool, frame)?,
        }
        add(&self.counters().transmitted_packets, 1);
        Ok(())
    }

    #[cold]
    fn transmit_chain(
        &mut self,
        pool: &mut FramePool,
        frame: Frame,
    ) -> Result<(), (DropReason, Frame)> {
        // The kernel refuses empty descriptors in silence, and keeps them.
        let is_sound = |piece: &Piece| {
            self.umem.chunk_of(piece.chunk).is_some() && (piece.len > 0 || !piece.is_live)
        };
        if frame.chunks() > TRANSMIT_CHUNKS_MAX || !frame.pieces().all(|piece| is_sound(&piece)) {
            return Err((DropReason::NoRoom, frame));
        }
        let mut left = frame.chunks();
        for piece in frame.pieces() {
            let Some(chunk) = self.umem.chunk_of(piece.chunk) else { continue };
            if piece.is_live {
                left -= 1;
                self.push(chunk, piece, if left > 0 { CONTINUED } else { 0 });
            } else {
                pool.free_chunk(piece.chunk);
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn push(&mut self, chunk: u32, piece: Piece, options: u32) {
        let address = self.umem.post(chunk, self.lease.number) + u64::from(piece.offset);
        // There is room: the caller has looked.
        self.tx.push(Descriptor { address, length: piece.len.into(), options });
    }

    /// Starts transmission of everything queued, calling the kernel until its side of the ring is
    /// empty, it makes no progress, or it was called often enough. Says whether all is under way;
    /// if not, call again later.
    pub fn flush(&mut self, pool: &mut FramePool) -> bool {
        self.tx.submit();
        if !self.tx.needs_wakeup() {
            // The driver looks by itself.
            return true;
        }
        if self.link == LinkState::Down {
            self.kick();
        }
        let mut pending = self.tx.pending();
        let mut calls = 0;
        // While the link is not up nothing leaves; what is queued goes when it is back, or with it.
        while pending > 0 && self.link == LinkState::Up {
            if calls >= self.kicks_max {
                return false;
            }
            calls += 1;
            self.kick();
            let left = self.tx.pending();
            if left >= pending && self.link == LinkState::Up {
                // No progress: the completion ring is full, or so is the queue below.
                self.complete(pool);
                return false;
            }
            pending = left;
        }
        true
    }

    fn kick(&mut self) {
        add(&self.counters().transmit_kicks, 1);
        // SAFETY: no buffer and no address; the call only makes the kernel look at the ring.
        let sent = unsafe {
            libc::sendto(self.fd, std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0)
        };
        if sent >= 0 {
            self.link = LinkState::Up;
            return;
        }
        match std::io::Error::last_os_error().raw_os_error() {
            // EAGAIN: the budget of one call is spent, or the send buffer is; the ring tells.
            Some(libc::EAGAIN | libc::EINTR) => self.link = LinkState::Up,
            // EBUSY: the queue below dropped the packet; ENOBUFS: no memory for it now.
            Some(libc::EBUSY | libc::ENOBUFS | libc::ENOMEM) => {
                self.link = LinkState::Up;
                add(&self.counters().transmit_refusals, 1);
            }
            Some(libc::ENETDOWN) => self.link = LinkState::Down,
            _ => self.link = LinkState::Gone,
        }
    }
}

impl Receiving {
    /// Takes up to `packets_max` packets from the ring of socket `number`; returns how many.
    #[inline(always)]
    fn take_packets(
        &mut self,
        (umem, number): (&Umem, u16),
        counters: &SocketCounters,
        pool: &mut FramePool,
        packets_max: usize,
        take: &mut impl FnMut(Frame),
    ) -> usize {
        let mut packets = 0;
        while packets < packets_max {
            let Some(descriptor) = self.rx.pop() else { break };
            self.posted = self.posted.saturating_sub(1);
            let is_last = descriptor.options & CONTINUED == 0;
            let Some(frame) = umem.received(descriptor.address, descriptor.length, number) else {
                add(&counters.bad_descriptors, 1);
                self.discard(pool, is_last);
                continue;
            };
            if is_last && self.partial.is_none() && !self.discarding {
                take(frame);
                packets += 1;
            } else if let Some(whole) = self.assemble(pool, frame, is_last, counters) {
                take(whole);
                packets += 1;
            }
        }
        self.rx.release();
        packets
    }

    /// Throws the packet under way away, of which a part is missing or too much: what came of it, and what
    /// is to come.
    #[cold]
    fn discard(&mut self, pool: &mut FramePool, is_last: bool) {
        self.discarding = !is_last;
        if let Some(head) = self.partial.take() {
            pool.release(head.into_whole());
        }
    }

    /// Frames wanted with the kernel when little comes or the region is short.
    pub(crate) fn least(&self, umem: &Umem) -> u32 {
        match self.idle_frames < self.fill_frames {
            true => self.idle_frames.min(umem.share()),
            false => self.fill_frames,
        }
    }

    /// Notes whether packets fill most of the frames that the kernel had for them: of a queue that got
    /// few, since its region is short, no more than those can wait.
    #[inline]
    fn note_crowd(&mut self, waiting: u32) {
        self.is_crowded = 4 * u64::from(waiting) >= 3 * u64::from(self.posted.max(1));
    }

    /// Wants more frames with the kernel when a burst took half of them and the region has some, and fewer
    /// after less than an eighth was taken many times in a row.
    #[inline]
    fn adapt(&mut self, waiting: u32, umem: &Umem) {
        if self.idle_frames >= self.fill_frames {
            return;
        }
        if waiting >= self.wanted.div_ceil(2) {
            self.quiet = 0;
            if self.wanted < self.fill_frames && umem.has_plenty() {
                self.wanted = (self.wanted.max(1) * 2).min(self.fill_frames);
            }
        } else if waiting >= self.wanted / 8 {
            self.quiet = 0;
        } else if waiting > 0 {
            self.quiet += 1;
            if self.quiet >= QUIET_LOOKS {
                self.quiet = 0;
                self.want_fewer(umem);
            }
        }
    }

    fn want_fewer(&mut self, umem: &Umem) {
        self.wanted = (self.wanted / 2).max(self.least(umem)).min(self.wanted);
    }

    /// Wants fewer when the region has few. Frames the kernel has cannot be taken back: the next
    /// packets bring them.
    #[inline]
    fn shrink(&mut self, umem: &Umem) {
        if self.idle_frames < self.fill_frames && umem.is_short() {
            self.want_fewer(umem);
        }
    }

    #[cold]
    fn assemble(
        &mut self,
        pool: &mut FramePool,
        frame: Frame,
        is_last: bool,
        counters: &SocketCounters,
    ) -> Option<Frame> {
        if self.discarding {
            self.discarding = !is_last;
            pool.release(frame);
            return None;
        }
        match &mut self.partial {
            None => self.partial = Some(Chain::new(frame)),
            Some(head) => {
                if let Err(frame) = head.append(frame) {
                    add(&counters.too_many_chunks, 1);
                    pool.release(frame);
                    self.discard(pool, is_last);
                    return None;
                }
            }
        }
        if is_last { self.partial.take().map(Chain::into_whole) } else { None }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.monitor.monitored.close();
        let partial = self.receiving.as_mut().and_then(|receiving| receiving.partial.take());
        for piece in partial.iter().flat_map(|partial| partial.whole().pieces()) {
            if let Some(chunk) = self.umem.chunk_of(piece.chunk) {
                self.umem.pass_on(chunk, Some(self.lease.number));
            }
        }
        // Closed before the lease goes, which finds the frames again.
        self.owner = None;
    }
}

/// Whether the socket knows the NAPI of its queue, without which the kernel polls nothing and says
/// nothing (`sk_can_busy_loop`).
pub(crate) fn has_napi(fd: RawFd) -> bool {
    let id = get_option_of::<libc::c_uint>(fd, libc::SOL_SOCKET, libc::SO_INCOMING_NAPI_ID);
    id.is_ok_and(|id| id != 0)
}

/// Reads a socket option of `SOL_XDP`.
pub(crate) fn get_option<T: Copy>(fd: RawFd, option: libc::c_int) -> std::io::Result<T> {
    get_option_of(fd, libc::SOL_XDP, option)
}

fn get_option_of<T: Copy>(
    fd: RawFd,
    level: libc::c_int,
    option: libc::c_int,
) -> std::io::Result<T> {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let size = size_of::<T>();
    let mut length = libc::socklen_t::try_from(size).unwrap_or(0);
    // SAFETY: the value and its length live through the call, which writes at most the length.
    let result =
        unsafe { libc::getsockopt(fd, level, option, value.as_mut_ptr().cast(), &raw mut length) };
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: zeroed, then written by the kernel; only used for C structures of integers.
    Ok(unsafe { value.assume_init() })
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
