//! The packets of the workloads: 60-byte UDP and TCP frames over IPv4, made by arithmetic of their
//! own, so that the dataplane's is not checked by itself.

use std::net::SocketAddrV4;

/// Length of every frame, in bytes, without the frame check sequence: Ethernet's smallest.
pub const FRAME_BYTES: usize = 60;
/// Where the IPv4 header begins.
const IP: usize = 14;
/// Where the UDP header begins.
const UDP: usize = 34;
/// Where the TCP header begins.
const TCP: usize = UDP;
/// Length of a TCP header without options.
const TCP_BYTES: u16 = 20;
const IP_BYTES: u16 = 46;
const UDP_BYTES: u16 = 26;
/// TTL of frames as they are sent.
pub const TTL: u8 = 64;

/// A frame on its way.
pub type Frame = [u8; FRAME_BYTES];

/// A frame with valid checksums and 18 bytes of payload.
pub fn udp(source: SocketAddrV4, destination: SocketAddrV4) -> Frame {
    let mut frame = to_ports(source, destination, IP_BYTES, 17);
    frame[UDP + 4..UDP + 6].copy_from_slice(&UDP_BYTES.to_be_bytes());
    frame[UDP + 8..].copy_from_slice(b"xskiff-perf payloa");
    let checksum = match !udp_sum(&frame) {
        0 => 0xffff,
        other => other,
    };
    frame[UDP + 6..UDP + 8].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// A TCP segment of these flags (RFC 9293, 3.1) without payload, padded to Ethernet's smallest frame.
pub fn tcp(source: SocketAddrV4, destination: SocketAddrV4, flags: u8) -> Frame {
    let mut frame = to_ports(source, destination, 20 + TCP_BYTES, 6);
    frame[TCP + 12] = 0x50;
    frame[TCP + 13] = flags;
    frame[TCP + 14..TCP + 16].copy_from_slice(&[0xff, 0xff]);
    let addresses = sum(&frame[IP + 12..IP + 20]);
    let end = TCP + usize::from(TCP_BYTES);
    let checksum = !folded(addresses + 6 + u32::from(TCP_BYTES) + sum(&frame[TCP..end]));
    frame[TCP + 16..TCP + 18].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// The headers up to the L4 ports; `ip_bytes` from the IPv4 header on.
fn to_ports(source: SocketAddrV4, destination: SocketAddrV4, ip_bytes: u16, protocol: u8) -> Frame {
    let mut frame = [0; FRAME_BYTES];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 0xfe, 2, 0, 0, 0, 0, 0xff]);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[IP] = 0x45;
    frame[IP + 2..IP + 4].copy_from_slice(&ip_bytes.to_be_bytes());
    frame[IP + 6] = 0x40;
    frame[IP + 8] = TTL;
    frame[IP + 9] = protocol;
    frame[IP + 12..IP + 16].copy_from_slice(&source.ip().octets());
    frame[IP + 16..IP + 20].copy_from_slice(&destination.ip().octets());
    let checksum = !folded(sum(&frame[IP..UDP]));
    frame[IP + 10..IP + 12].copy_from_slice(&checksum.to_be_bytes());
    frame[UDP..UDP + 2].copy_from_slice(&source.port().to_be_bytes());
    frame[UDP + 2..UDP + 4].copy_from_slice(&destination.port().to_be_bytes());
    frame
}

/// What a frame says, once its checksums are found right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Source address and port.
    pub source: SocketAddrV4,
    /// Destination address and port.
    pub destination: SocketAddrV4,
    /// TTL.
    pub ttl: u8,
}

/// Reads a frame of ours.
///
/// # Errors
/// What is wrong with it.
pub fn read(bytes: &[u8]) -> Result<Seen, String> {
    let frame: &Frame = bytes.try_into().map_err(|_| format!("{} bytes long", bytes.len()))?;
    if frame[12..15] != [8, 0, 0x45] || frame[IP + 9] != 17 {
        return Err("not UDP over IPv4".into());
    }
    if folded(sum(&frame[IP..UDP])) != 0xffff {
        return Err("the IPv4 header checksum is wrong".into());
    }
    if frame[UDP + 6..UDP + 8] == [0, 0] || udp_sum(frame) != 0xffff {
        return Err("the UDP checksum is wrong".into());
    }
    let end = |address: usize, port: usize| {
        let octets: [u8; 4] = std::array::from_fn(|index| frame[address + index]);
        SocketAddrV4::new(octets.into(), u16::from_be_bytes([frame[port], frame[port + 1]]))
    };
    Ok(Seen { source: end(IP + 12, UDP), destination: end(IP + 16, UDP + 2), ttl: frame[IP + 8] })
}

fn udp_sum(frame: &Frame) -> u16 {
    let addresses = sum(&frame[IP + 12..IP + 20]);
    folded(addresses + 17 + u32::from(UDP_BYTES) + sum(&frame[UDP..]))
}

/// RFC 1071; at most a frame, so 32 bits suffice.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
}

fn folded(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    (twice & 0xffff) as u16
}

#[cfg(test)]
mod tests {
    use super::{read, udp};

    #[test]
    fn a_frame_reads_back_and_a_flipped_bit_is_seen() {
        let source = "198.18.0.7:1024".parse().expect("address");
        let destination = "203.0.113.1:53".parse().expect("address");
        let frame = udp(source, destination);
        let seen = read(&frame).expect("valid");
        assert_eq!((seen.source, seen.destination, seen.ttl), (source, destination, 64));
        for byte in 14..60 {
            let mut damaged = frame;
            damaged[byte] ^= 4;
            assert!(read(&damaged).is_err(), "byte {byte}");
        }
    }
}
