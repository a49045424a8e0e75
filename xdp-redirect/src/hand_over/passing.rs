//! A message and its descriptors through a Unix stream socket (unix(7), `SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::message::{HEADER_BYTES, Header, Message, MessageError};

/// Descriptors that go with one byte: the kernel takes 253 (`SCM_MAX_FD`).
const BATCH: usize = 250;
/// Bytes of the control message for a batch.
const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(BATCH));

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
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(batch)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    sendmsg(to, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_batch(from: &UnixStream, fds: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    // Closes what is not taken out of it.
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let parts = &mut [IoSliceMut::new(&mut byte)];
    let received = recvmsg(from, parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other(
            "descriptors were lost on the way: this process may open no more",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use super::*;

    /// Set in the process that may open few descriptors.
    const FEW: &str = "XSKIFF_TEST_FEW_DESCRIPTORS";
    const MAY_OPEN: usize = 5;

    fn open_now() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn descriptors_arrive_in_order_a_batch_at_a_time() {
        let (sender, receiver) = UnixStream::pair().unwrap();
        let files: Vec<_> = (0..BATCH).map(|_| tempfile()).collect();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        send_batch(&sender, &fds).unwrap();
        send_batch(&sender, &fds[..3]).unwrap();
        let mut received = Vec::new();
        receive_batch(&receiver, &mut received).unwrap();
        assert_eq!(received.len(), BATCH);
        receive_batch(&receiver, &mut received).unwrap();
        let inodes = |of: Vec<BorrowedFd<'_>>| -> Vec<u64> {
            of.into_iter().map(|fd| rustix::fs::fstat(fd).unwrap().st_ino).collect()
        };
        let wanted = inodes(fds.iter().chain(&fds[..3]).copied().collect());
        assert_eq!(inodes(received.iter().map(AsFd::as_fd).collect()), wanted);
        // Whoever hangs up has sent none.
        drop(sender);
        receive_batch(&receiver, &mut received).unwrap();
        assert_eq!(received.len(), BATCH + 3);
    }

    fn tempfile() -> std::fs::File {
        rustix::fs::memfd_create("descriptor", rustix::fs::MemfdFlags::CLOEXEC).unwrap().into()
    }

    /// Those that did arrive would stay open, and their sockets bound, so that none could be bound anew.
    #[test]
    fn where_no_more_may_be_opened_it_is_an_error_and_nothing_stays_open() {
        if std::env::var_os(FEW).is_none() {
            // The limit is a process's.
            let own = std::env::current_exe().unwrap();
            let name = std::thread::current().name().unwrap().to_owned();
            let few = Command::new(own).args(["--exact", &name]).env(FEW, "1").output().unwrap();
            let said = String::from_utf8_lossy(&few.stdout).into_owned();
            assert!(few.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let (sender, receiver) = UnixStream::pair().unwrap();
        send_batch(&sender, &[sender.as_fd(); 3 * MAY_OPEN]).unwrap();
        let before = open_now();
        // `open_now` has one open itself.
        let most = libc::rlim_t::try_from(before - 1 + MAY_OPEN).unwrap();
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: a request that lives through the call.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
        let mut received = Vec::new();
        let error = receive_batch(&receiver, &mut received).unwrap_err().to_string();
        assert!(error.contains("may open no more"), "{error}");
        drop(received);
        assert_eq!(open_now(), before);
    }
}
