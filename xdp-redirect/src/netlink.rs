//! Two questions to rtnetlink that the XDP attachment needs: what is attached, and detach it.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::loader::RunningMode;

/// `IFLA_XDP` and the attributes nested in it (`linux/if_link.h`).
const IFLA_XDP: u16 = 43;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_FLAGS: u16 = 3;
const IFLA_XDP_PROG_ID: u16 = 4;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

const XDP_ATTACHED_DRV: u8 = 1;
const XDP_ATTACHED_SKB: u8 = 2;
const XDP_ATTACHED_HW: u8 = 3;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

const HEADER: usize = mem::size_of::<libc::nlmsghdr>();
const LINK_MESSAGE: usize = 16;
/// A link's description is a few kilobytes; with many virtual functions some dozen.
const ANSWER_MAX: usize = 256 * 1024;

/// What the kernel says about XDP on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttachedProgram {
    pub mode: RunningMode,
    /// 0 when several programs are attached at once.
    pub program_id: u32,
}

/// Asks what is attached to the interface.
pub(crate) fn attached(ifindex: u32) -> io::Result<Option<AttachedProgram>> {
    let answer = exchange(&link_request(libc::RTM_GETLINK, ifindex, &[]))?;
    let Some(attributes) = answer.get(HEADER + LINK_MESSAGE..) else {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    };
    let Some(xdp) = attribute(attributes, IFLA_XDP) else { return Ok(None) };
    let mode = match attribute(xdp, IFLA_XDP_ATTACHED).and_then(|value| value.first().copied()) {
        Some(XDP_ATTACHED_DRV) => RunningMode::Native,
        Some(XDP_ATTACHED_SKB) => RunningMode::Generic,
        Some(XDP_ATTACHED_HW) => RunningMode::Hardware,
        _ => return Ok(None),
    };
    let program_id = attribute(xdp, IFLA_XDP_PROG_ID)
        .and_then(|value| value.first_chunk::<4>())
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes));
    Ok(Some(AttachedProgram { mode, program_id }))
}

/// Detaches a program that netlink attached. One that a BPF link holds is refused with `EBUSY`
/// (kernel: "Can't replace active BPF XDP link").
pub(crate) fn detach(ifindex: u32, mode: RunningMode) -> io::Result<()> {
    let flags = match mode {
        RunningMode::Native => XDP_FLAGS_DRV_MODE,
        RunningMode::Generic => XDP_FLAGS_SKB_MODE,
        RunningMode::Hardware => 1 << 3,
    };
    let mut nested = Vec::new();
    push_attribute(&mut nested, IFLA_XDP_FD, &(-1i32).to_ne_bytes());
    push_attribute(&mut nested, IFLA_XDP_FLAGS, &flags.to_ne_bytes());
    let mut attributes = Vec::new();
    push_attribute(&mut attributes, IFLA_XDP | NLA_F_NESTED, &nested);
    exchange(&link_request(libc::RTM_SETLINK, ifindex, &attributes)).map(|_| ())
}

fn push_attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn link_request(kind: u16, ifindex: u32, attributes: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + LINK_MESSAGE + attributes.len());
    let length = u32::try_from(HEADER + LINK_MESSAGE + attributes.len()).unwrap_or(u32::MAX);
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap_or(0);
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence and port: one request per socket
    // struct ifinfomsg: family, padding, type, index, flags, change mask.
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&ifindex.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(attributes);
    message
}

fn exchange(request: &[u8]) -> io::Result<Vec<u8>> {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: pointer and length are those of a live slice; an unconnected netlink socket sends
    // to the kernel.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = vec![0u8; ANSWER_MAX];
    // SAFETY: pointer and length are those of a live buffer.
    let received =
        unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    answer.truncate(received);
    let kind = answer.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    if kind.map(i32::from) == Some(libc::NLMSG_ERROR) {
        let error = answer.get(HEADER..HEADER + 4).and_then(|bytes| bytes.first_chunk::<4>());
        let errno = error.map_or(-libc::EPROTO, |bytes| i32::from_ne_bytes(*bytes));
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(-errno));
        }
    }
    Ok(answer)
}

/// The value of the first attribute of a kind.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let header = attributes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let found = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = attributes.get(4..length)?;
        if found == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_attributes_are_found_and_truncated_ones_are_not() {
        let mut nested = Vec::new();
        push_attribute(&mut nested, IFLA_XDP_ATTACHED, &[XDP_ATTACHED_SKB]);
        push_attribute(&mut nested, IFLA_XDP_PROG_ID, &7u32.to_ne_bytes());
        let mut outer = Vec::new();
        push_attribute(&mut outer, 3, b"lo\0");
        push_attribute(&mut outer, IFLA_XDP | NLA_F_NESTED, &nested);
        let xdp = attribute(&outer, IFLA_XDP).expect("nested attribute");
        assert_eq!(attribute(xdp, IFLA_XDP_ATTACHED), Some(&[XDP_ATTACHED_SKB][..]));
        assert_eq!(attribute(xdp, IFLA_XDP_PROG_ID), Some(&7u32.to_ne_bytes()[..]));
        for cut in 0..outer.len() {
            assert_ne!(attribute(&outer[..cut], IFLA_XDP), Some(&nested[..]));
        }
        assert_eq!(attribute(&[0, 0, 43, 0], IFLA_XDP), None);
    }

    #[test]
    fn nothing_is_attached_to_loopback() {
        assert_eq!(attached(1).expect("loopback is interface 1"), None);
    }
}
