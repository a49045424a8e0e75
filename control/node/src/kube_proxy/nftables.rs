//! Lists nftables' chains by netlink (`linux/netfilter/nf_tables.h`): the node runs no tools. Chains
//! that `iptables-nft` has made are among them.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// `NFNL_SUBSYS_NFTABLES`, in the upper byte of a message's type.
const SUBSYSTEM: u16 = 10 << 8;
const MESSAGE_NEW_CHAIN: u16 = SUBSYSTEM | 3;
const MESSAGE_GET_CHAIN: u16 = SUBSYSTEM | 4;
/// `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
/// `struct nlmsghdr`, and `struct nfgenmsg` behind it.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
/// Messages of one reading of the socket, in bytes; the kernel sends no more than fit.
const READ_BYTES: usize = 64 << 10;

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// `ip`, `ip6`, `inet` and so on.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
}

/// Every chain of the caller's network namespace.
///
/// # Errors
/// The kernel's: EPERM without `CAP_NET_ADMIN`. A kernel without nftables has none.
pub fn chains() -> io::Result<Vec<Chain>> {
    let mut socket = match Socket::new(NETLINK_NETFILTER) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
        socket => socket?,
    };
    socket.bind_auto()?;
    socket.send_to(&request(), &SocketAddr::new(0, 0), 0)?;
    let mut chains = Vec::new();
    loop {
        let mut bytes = Vec::with_capacity(READ_BYTES);
        socket.recv_from(&mut bytes, 0)?;
        match read(&bytes, &mut chains) {
            Read::More => {}
            Read::Done => return Ok(chains),
            // No such subsystem.
            Read::Refused(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT) => return Ok(Vec::new()),
            Read::Refused(errno) => return Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

fn request() -> Vec<u8> {
    let length = u32::try_from(HEADER + FAMILY_HEADER).unwrap_or(0);
    let mut bytes = Vec::with_capacity(HEADER + FAMILY_HEADER);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(MESSAGE_GET_CHAIN.to_ne_bytes());
    bytes.extend(DUMP.to_ne_bytes());
    // Sequence and port; the family: any.
    bytes.extend([0; 8 + FAMILY_HEADER]);
    bytes
}

#[derive(Debug, PartialEq, Eq)]
enum Read {
    More,
    Done,
    Refused(i32),
}

fn read(mut bytes: &[u8], chains: &mut Vec<Chain>) -> Read {
    while let Some((kind, body, rest)) = message(bytes) {
        bytes = rest;
        match kind {
            DONE => return Read::Done,
            ERROR => {
                let errno = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                return if errno == 0 { Read::Done } else { Read::Refused(-errno) };
            }
            MESSAGE_NEW_CHAIN => chains.extend(chain(body)),
            _ => {}
        }
    }
    if bytes.is_empty() { Read::More } else { Read::Refused(libc::EBADMSG) }
}

/// Kind and body of the first message, and what is behind it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(aligned(length)..).unwrap_or_default()))
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn chain(body: &[u8]) -> Option<Chain> {
    let family = match *body.first()? {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "other",
    };
    let mut rest = body.get(FAMILY_HEADER..)?;
    let (mut table, mut name) = (None, None);
    while let Some(length) = rest.first_chunk() {
        let length = usize::from(u16::from_ne_bytes(*length));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let value = rest.get(4..length)?;
        match kind {
            CHAIN_TABLE => table = Some(text(value)),
            CHAIN_NAME => name = Some(text(value)),
            _ => {}
        }
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    Some(Chain { family, table: table?, name: name? })
}

/// Ends with a NUL.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, text: &str) -> Vec<u8> {
        let length = u16::try_from(4 + text.len() + 1).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(text.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn framed(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_dump_is_read_to_its_end_and_a_refusal_is_the_kernels() {
        let body = [vec![2, 0, 0, 0], attribute(CHAIN_TABLE, "nat"), attribute(9, "x")].concat();
        let body = [body, attribute(CHAIN_NAME, "KUBE-SERVICES")].concat();
        let mut chains = Vec::new();
        let two = [framed(MESSAGE_NEW_CHAIN, &body), framed(DONE, &[0; 4])].concat();
        assert_eq!(read(&two, &mut chains), Read::Done);
        let name = "KUBE-SERVICES".to_owned();
        assert_eq!(chains, [Chain { family: "ip", table: "nat".into(), name }]);
        let refused = framed(ERROR, &(-libc::EPERM).to_ne_bytes());
        assert_eq!(read(&refused, &mut chains), Read::Refused(libc::EPERM));
    }

    #[test]
    fn nothing_that_is_cut_short_is_read_beyond_its_end() {
        let body = [vec![2, 0, 0, 0], attribute(CHAIN_TABLE, "nat")].concat();
        let whole = framed(MESSAGE_NEW_CHAIN, &body);
        for length in 0..whole.len() {
            read(&whole[..length], &mut Vec::new());
            let mut lying = whole.clone();
            lying[length] = 0xff;
            read(&lying, &mut Vec::new());
        }
    }
}
