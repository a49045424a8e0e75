//! Sockets of the node's own processes on L4 ports that are ours.
//!
//! What comes for a port of the SNAT range is taken for translated traffic, and finds no flow when
//! it is not: a host process there is deaf. `ip_local_reserved_ports` keeps the kernel from
//! choosing such a port, not a process from asking for it, nor one that had it before.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

/// Where the kernel lists sockets of the caller's network namespace (proc_net(5)).
const LISTS: [(&str, &str); 4] = [
    ("tcp", "/proc/thread-self/net/tcp"),
    ("tcp", "/proc/thread-self/net/tcp6"),
    ("udp", "/proc/thread-self/net/udp"),
    ("udp", "/proc/thread-self/net/udp6"),
];
/// `TCP_TIME_WAIT` and `TCP_NEW_SYN_RECV` (net/tcp_states.h): nobody's sockets, no longer or not
/// yet.
const NOBODYS: [&str; 2] = ["06", "0C"];

/// A socket, and who has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostSocket {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// What it is bound to.
    pub local: SocketAddr,
    /// Its process, where one can be found.
    pub process: Option<Process>,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name, as `ps` shows it.
    pub name: String,
}

impl fmt::Display for HostSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of ", self.protocol, self.local)?;
        match &self.process {
            Some(process) => write!(f, "{} (process {})", process.name, process.pid),
            None => f.write_str("a process that cannot be seen from here"),
        }
    }
}

/// Sockets of the caller's network namespace on a port of `range` that may be spoken to from
/// outside, in order. Takes a millisecond for every thousand sockets there are.
///
/// # Errors
/// The list that cannot be read, and why.
pub fn within(range: &RangeInclusive<u16>) -> Result<Vec<HostSocket>, (&'static str, io::Error)> {
    let mut found = Vec::new();
    for (protocol, path) in LISTS {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err((path, error)),
        };
        let sockets = text.lines().filter_map(listed);
        found.extend(
            sockets
                .filter(|(local, _)| range.contains(&local.port()) && !is_loopback(local.ip()))
                .map(|(local, inode)| (protocol, local, inode)),
        );
    }
    let owners = if found.is_empty() { BTreeMap::new() } else { owners(&found) };
    let named = found.into_iter().map(|(protocol, local, inode)| HostSocket {
        protocol,
        local,
        process: owners.get(&inode).cloned(),
    });
    let mut named: Vec<HostSocket> = named.collect();
    named.sort();
    named.dedup();
    Ok(named)
}

/// The local end and the inode of one line; `None` for the heading and what is nobody's.
fn listed(line: &str) -> Option<(SocketAddr, u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    if NOBODYS.contains(state) {
        return None;
    }
    let (address, l4_port) = local.split_once(':')?;
    let l4_port = u16::from_str_radix(l4_port, 16).ok()?;
    Some((SocketAddr::new(address_of(address)?, l4_port), inode.parse().ok()?))
}

/// The kernel prints addresses as 32-bit words of the machine's own byte order.
fn address_of(text: &str) -> Option<IpAddr> {
    let words: Option<Vec<[u8; 4]>> = (0..text.len())
        .step_by(8)
        .map(|at| Some(u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?.to_ne_bytes()))
        .collect();
    match words?[..] {
        [v4] => Some(IpAddr::V4(Ipv4Addr::from(v4))),
        [a, b, c, d] => {
            let octets: [u8; 16] = [a, b, c, d].concat().try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(octets)))
        }
        _ => None,
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Processes by the sockets they have open, of those in `wanted`.
fn owners(wanted: &[(&'static str, SocketAddr, u64)]) -> BTreeMap<u64, Process> {
    let mut owners = BTreeMap::new();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    for process in processes {
        let Ok(pid) = process.file_name().to_string_lossy().parse() else { continue };
        // Whatever cannot be read belongs to a process that has just ended, or is not ours to see.
        let files = std::fs::read_dir(process.path().join("fd")).into_iter().flatten();
        for file in files.filter_map(Result::ok) {
            let Ok(target) = std::fs::read_link(file.path()) else { continue };
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            let Some(inode) = inode.and_then(|inode| inode.parse().ok()) else { continue };
            if wanted.iter().any(|(.., other)| *other == inode) {
                let name = std::fs::read_to_string(process.path().join("comm"));
                let name = name.unwrap_or_default().trim().to_owned();
                owners.entry(inode).or_insert(Process { pid, name });
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADING: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when \
                           retrnsmt   uid  timeout inode";

    /// A line as the kernel of this machine's byte order would print it.
    fn line(words: &[u32], l4_port: u16, state: &str) -> String {
        let address: String = words
            .iter()
            .map(|word| format!("{:08X}", u32::from_ne_bytes(word.to_be_bytes())))
            .collect();
        format!(
            "   3: {address}:{l4_port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 \
             00000000     0        0 4711 1 0000000000000000 100 0 0 10 0"
        )
    }

    #[test]
    fn the_kernels_lists_are_read_in_both_families() {
        assert_eq!(listed(HEADING), None);
        let v4 = listed(&line(&[0xc000_0201], 61_234, "0A"));
        assert_eq!(v4, Some(("192.0.2.1:61234".parse().unwrap(), 4711)));
        let v6 = listed(&line(&[0x2001_0db8, 0, 0, 7], 61_235, "07"));
        assert_eq!(v6, Some(("[2001:db8::7]:61235".parse().unwrap(), 4711)));
        for state in NOBODYS {
            assert_eq!(listed(&line(&[0xc000_0201], 61_234, state)), None);
        }
    }

    #[test]
    fn what_only_the_node_itself_can_reach_is_none_of_our_business() {
        for (address, is_own) in [
            ("127.0.0.53", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("0.0.0.0", false),
            ("::", false),
            ("192.0.2.1", false),
        ] {
            assert_eq!(is_loopback(address.parse().unwrap()), is_own, "{address}");
        }
    }

    #[test]
    fn a_socket_is_found_with_the_process_that_has_it() {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let own = socket.local_addr().unwrap();
        let found = within(&(own.port()..=own.port())).unwrap();
        let mine = found.iter().find(|socket| socket.protocol == "udp").expect("it is listed");
        assert_eq!(mine.process.as_ref().map(|process| process.pid), Some(std::process::id()));
        assert!(mine.to_string().contains(&format!("process {}", std::process::id())), "{mine}");
    }

    proptest! {
        #[test]
        fn no_line_makes_the_reader_panic(line in "[ 0-9A-F:\\-é]{0,120}") {
            let _ = listed(&line);
        }
    }
}
