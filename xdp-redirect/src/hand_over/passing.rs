//! A message and its descriptors through a Unix stream socket (unix(7), `SCM_RIGHTS`).

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use super::message::{HEADER_BYTES, Header, Message, MessageError};

/// Descriptors that go with one byte: the kernel takes 253 (`SCM_MAX_FD`).
const BATCH: usize = 250;
/// Bytes of the control message for a batch.
// SAFETY: both compute a size from a size.
const CONTROL_BYTES: usize =
    unsafe { libc::CMSG_SPACE((BATCH * size_of::<RawFd>()) as u32) } as usize;

/// Room for control messages, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// Why nothing whole came.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The connection broke, or nothing came in time.
    #[error(transparent)]
    Broken(#[from] io::Error),
    /// What came is no message.
    #[error("what came cannot be used: {0}")]
    Message(#[from] MessageError),
}

/// Sends a message and its descriptors.
///
/// # Errors
/// The kernel's; the receiver then takes nothing.
pub fn send(mut to: &UnixStream, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    to.write_all(&message.encode())?;
    for batch in fds.chunks(BATCH) {
        send_batch(to, batch)?;
    }
    Ok(())
}

/// Receives what [`send`] sent.
///
/// # Errors
/// [`ReceiveError`].
pub fn receive(mut from: &UnixStream) -> Result<(Message, Vec<OwnedFd>), ReceiveError> {
    let mut bytes = vec![0; HEADER_BYTES];
    from.read_exact(&mut bytes)?;
    let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(MessageError::Length)?;
    let body_bytes = Header::parse(header)?.body_bytes;
    bytes.resize(HEADER_BYTES + body_bytes, 0);
    from.read_exact(&mut bytes[HEADER_BYTES..])?;
    let message = Message::parse(&bytes)?;
    let wanted = message.descriptors();
    let mut fds = Vec::with_capacity(wanted);
    while fds.len() < wanted {
        let before = fds.len();
        receive_batch(from, &mut fds)?;
        if fds.len() == before {
            return Err(MessageError::Length.into());
        }
    }
    if fds.len() > wanted {
        return Err(MessageError::Length.into());
    }
    Ok((message, fds))
}

fn send_batch(to: &UnixStream, batch: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut control = Control([0; CONTROL_BYTES]);
    let mut byte = 0u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let length = u32::try_from(size_of_val(batch)).map_err(io::Error::other)?;
    // SAFETY: an all-zero `msghdr` is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: computes a size from a size, which a batch keeps small.
    header.msg_controllen = unsafe { libc::CMSG_SPACE(length) } as usize;
    // SAFETY: the buffer is aligned and longer than one header; a batch of descriptors fits behind it.
    unsafe {
        let first = libc::CMSG_FIRSTHDR(&raw const header);
        (*first).cmsg_level = libc::SOL_SOCKET;
        (*first).cmsg_type = libc::SCM_RIGHTS;
        (*first).cmsg_len = libc::CMSG_LEN(length) as usize;
        let data = libc::CMSG_DATA(first).cast::<RawFd>();
        for (place, fd) in batch.iter().enumerate() {
            data.add(place).write_unaligned(fd.as_raw_fd());
        }
    }
    // SAFETY: header, part and buffer live through the call.
    let sent = unsafe { libc::sendmsg(to.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn receive_batch(from: &UnixStream, fds: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut control = Control([0; CONTROL_BYTES]);
    let mut byte = 0u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: an all-zero `msghdr` is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_BYTES;
    // SAFETY: header, part and buffer live through the call.
    let received =
        unsafe { libc::recvmsg(from.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has written whole control messages into the buffer, and says how long they
    // are; descriptors in them are open, and nobody else's.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&raw const header);
        while !message.is_null() {
            if (*message).cmsg_level == libc::SOL_SOCKET && (*message).cmsg_type == libc::SCM_RIGHTS
            {
                let bytes = (*message).cmsg_len - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(message).cast::<RawFd>();
                for place in 0..bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(place).read_unaligned()));
                }
            }
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::other(
            "descriptors were lost on the way: this process may open no more",
        ));
    }
    Ok(())
}
