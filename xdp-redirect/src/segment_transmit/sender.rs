//! The packet socket, and the call that sends many packets of many pieces.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use dataplane::segments::{CHECKSUM_AT, Layout};

use crate::error::Error;
use crate::frame::CHUNKS_MAX;

/// Packets of one call at most: those of four bursts.
pub(crate) const BATCH: usize = 128;
/// Parts of one packet: its header, and its chunks.
pub(super) const PARTS: usize = 1 + CHUNKS_MAX as usize;
/// Bytes that may be under way in receivers' queues, before the kernel refuses more.
const SEND_BUFFER: libc::c_int = 32 << 20;

/// `struct virtio_net_hdr` (`linux/virtio_net.h`), in this machine's byte order (packet(7)).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}
const _: () = assert!(size_of::<Header>() == 10);
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

impl Header {
    /// Of a packet with this layout that is to be cut into pieces of `size`.
    pub(super) fn of(layout: &Layout, size: u16) -> Self {
        let half = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
        let family = if layout.is_ipv4 { GSO_TCPV4 } else { GSO_TCPV6 };
        Self {
            flags: NEEDS_CSUM,
            gso_type: family | if layout.has_cwr { GSO_ECN } else { 0 },
            hdr_len: half(layout.payload_offset),
            gso_size: size,
            csum_start: half(layout.l4_offset),
            csum_offset: half(CHECKSUM_AT),
        }
    }
}

/// What a call hands to the kernel. Allocates nothing after it is made.
struct Parts {
    headers: Vec<Header>,
    addresses: Vec<libc::sockaddr_ll>,
    vectors: Vec<libc::iovec>,
    messages: Vec<libc::mmsghdr>,
}

// SAFETY: what it points to is its own, or memory of frames that whoever calls has; pointers are written
// before each call and read by none after it.
unsafe impl Send for Parts {}

/// One worker's packet socket. It receives nothing: it is bound to no protocol.
pub struct SegmentSender {
    socket: OwnedFd,
    parts: Parts,
}

impl SegmentSender {
    /// Opens the socket in this thread's network namespace. Needs CAP_NET_RAW, and CAP_NET_ADMIN for a send
    /// buffer beyond `net.core.wmem_max`.
    ///
    /// # Errors
    /// [`Error::PacketSocket`].
    pub fn new() -> Result<Self, Error> {
        let socket = open().map_err(|source| Error::PacketSocket { source })?;
        let parts = Parts {
            headers: Vec::with_capacity(BATCH),
            addresses: Vec::with_capacity(BATCH),
            vectors: Vec::with_capacity(BATCH * PARTS),
            messages: Vec::with_capacity(BATCH),
        };
        Ok(Self { socket, parts })
    }

    /// Begins a batch.
    pub(super) fn begin(&mut self) {
        let Parts { headers, addresses, vectors, messages } = &mut self.parts;
        headers.clear();
        addresses.clear();
        vectors.clear();
        messages.clear();
    }

    /// Puts a packet behind the others that consists of `parts`, the first of which begins with an Ethernet
    /// header. They must stay where they are until the batch is sent. At most [`BATCH`] packets, and
    /// [`PARTS`] parts for each frame that they lie in.
    pub(super) fn put<'a>(
        &mut self,
        ifindex: u32,
        header: Header,
        parts: impl Iterator<Item = &'a [u8]>,
    ) {
        let Parts { headers, addresses, vectors, messages } = &mut self.parts;
        debug_assert!(headers.len() < BATCH, "whoever gathers has no more places");
        let first = vectors.len();
        headers.push(header);
        let header = headers.last().map_or(std::ptr::null(), std::ptr::from_ref);
        vectors.push(vector(header.cast(), size_of::<Header>()));
        let mut ethernet: &[u8] = &[];
        for part in parts {
            if ethernet.is_empty() {
                ethernet = part;
            }
            vectors.push(vector(part.as_ptr(), part.len()));
        }
        addresses.push(address(ifindex, ethernet));
        let address = addresses.last().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: zero is a valid `mmsghdr`, with which all of its fields but these are unused.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_name = address.cast_mut().cast();
        message.msg_hdr.msg_namelen = socklen::<libc::sockaddr_ll>();
        message.msg_hdr.msg_iov = vectors[first..].as_mut_ptr();
        message.msg_hdr.msg_iovlen = vectors.len() - first;
        messages.push(message);
    }

    /// Sends the batch from packet `from` on. Answers how many were taken; none means that the first one
    /// was refused, for this reason.
    ///
    /// # Errors
    /// The kernel's, about packet `from`.
    pub(super) fn send(&mut self, from: usize) -> io::Result<usize> {
        let messages = self.parts.messages.get_mut(from..).unwrap_or_default();
        let count = libc::c_uint::try_from(messages.len()).unwrap_or(0);
        // SAFETY: the messages point at headers, addresses and vectors of this batch, whose vectors are not
        // changed before the next `begin` (they never grow beyond their capacity: `put`), and those at
        // frames that the caller has.
        let sent = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

fn vector(start: *const u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len }
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

/// Where a frame goes: the interface, and what its Ethernet header says it is.
fn address(ifindex: u32, bytes: &[u8]) -> libc::sockaddr_ll {
    // SAFETY: zero is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or(0);
    address.sll_ifindex = ifindex.cast_signed();
    if let Some([high, low]) = bytes.get(12..14) {
        // As it lies in memory (packet(7): network byte order).
        address.sll_protocol = u16::from_ne_bytes([*high, *low]);
    }
    address
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: opened just now, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    // Past the interface's queueing discipline, as AF_XDP goes.
    set(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
    let forced = set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER);
    forced.or_else(|_| set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER))?;
    Ok(socket)
}

fn set(
    socket: &OwnedFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the value lives through the call, which reads its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            socklen::<libc::c_int>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_refuses_one_header_and_takes_the_packets_behind_it() {
        // Without CAP_NET_RAW there is no packet socket.
        let Ok(mut sender) = SegmentSender::new() else { return };
        let ifindex = crate::loader::interface_index("lo").expect("it is everywhere");
        let mut frame = [0; 60];
        frame[12..14].copy_from_slice(&[0x88, 0xb5]);
        let without_size = Header { gso_type: GSO_TCPV4, ..Header::default() };
        sender.begin();
        for header in [Header::default(), without_size, Header::default()] {
            sender.put(ifindex, header, [&frame[..]].into_iter());
        }
        assert_eq!(sender.send(0).ok(), Some(1));
        let refused = sender.send(1).expect_err("it has no size").raw_os_error();
        assert_eq!(refused, Some(libc::EINVAL));
        assert_eq!(sender.send(2).ok(), Some(1));
    }
}
