//! Frames as a test writes them, with checksums computed the naive way: a second view beside the
//! dataplane's own arithmetic, sharing none of its code.

use std::net::{IpAddr, SocketAddr};

/// Protocol numbers (IANA).
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// A frame being described.
#[derive(Debug, Clone)]
pub struct FrameBuilder {
    source: SocketAddr,
    destination: SocketAddr,
    transport: Transport,
    payload: Vec<u8>,
    ttl: u8,
    fragment: Option<(u32, u16, bool)>,
    partial_checksum: bool,
}

#[derive(Debug, Clone)]
enum Transport {
    Tcp { flags: u8, numbers: (u32, u32), window: u16, scale: Option<u8>, segment: Option<u16> },
    Udp,
    Echo { is_reply: bool, identifier: u16 },
    Error { kind: u8, code: u8, word: u32 },
    Raw(u8),
}

fn builder(source: SocketAddr, destination: SocketAddr, transport: Transport) -> FrameBuilder {
    assert_eq!(source.is_ipv4(), destination.is_ipv4(), "{source} and {destination}: two families");
    FrameBuilder {
        source,
        destination,
        transport,
        payload: Vec::new(),
        ttl: 64,
        fragment: None,
        partial_checksum: false,
    }
}

fn parse(end: &str) -> SocketAddr {
    end.parse().unwrap_or_else(|error| panic!("{end}: {error}"))
}

/// A TCP segment with these flags, by letter: `S`, `A`, `F`, `R`, `P`.
#[must_use]
pub fn tcp(source: &str, destination: &str, flags: &str) -> FrameBuilder {
    let bit = |letter| match letter {
        'F' => 1,
        'S' => 2,
        'R' => 4,
        'P' => 8,
        'A' => 16,
        other => panic!("no TCP flag {other}"),
    };
    let flags = flags.chars().map(bit).sum();
    let numbers = (1, 2);
    let transport = Transport::Tcp { flags, numbers, window: 0xffff, scale: None, segment: None };
    builder(parse(source), parse(destination), transport)
}

/// A UDP datagram.
#[must_use]
pub fn udp(source: &str, destination: &str) -> FrameBuilder {
    builder(parse(source), parse(destination), Transport::Udp)
}

fn hosts(source: IpAddr, destination: IpAddr, transport: Transport) -> FrameBuilder {
    builder(SocketAddr::new(source, 0), SocketAddr::new(destination, 0), transport)
}

/// An echo request.
#[must_use]
pub fn ping(source: IpAddr, destination: IpAddr, identifier: u16) -> FrameBuilder {
    hosts(source, destination, Transport::Echo { is_reply: false, identifier })
}

/// An echo reply.
#[must_use]
pub fn pong(source: IpAddr, destination: IpAddr, identifier: u16) -> FrameBuilder {
    hosts(source, destination, Transport::Echo { is_reply: true, identifier })
}

/// An ICMP or ICMPv6 error that quotes the IP packet of `frame`.
#[must_use]
pub fn icmp_error(
    source: IpAddr,
    destination: IpAddr,
    (kind, code, word): (u8, u8, u32),
    frame: &[u8],
) -> FrameBuilder {
    let quoted = &frame[14..frame.len().min(14 + 540)];
    hosts(source, destination, Transport::Error { kind, code, word }).payload(quoted)
}

/// An SCTP packet with this verification tag and chunks of (type, flags, value).
#[must_use]
pub fn sctp(source: &str, destination: &str, tag: u32, chunks: &[(u8, u8, &[u8])]) -> FrameBuilder {
    let (source, destination) = (parse(source), parse(destination));
    let mut packet = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    for (kind, flags, value) in chunks {
        let len = u16::try_from(4 + value.len()).expect("short chunk");
        packet.extend([*kind, *flags]);
        packet.extend(len.to_be_bytes());
        packet.extend(*value);
        packet.resize(packet.len().next_multiple_of(4), 0);
    }
    let checksum = naive_crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&checksum);
    raw(source.ip(), destination.ip(), SCTP).payload(&packet)
}

/// RFC 9260, appendix A, bit by bit.
fn naive_crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// An SCTP packet as its own checksum has it.
fn sctp_is_right(l4: &[u8]) -> bool {
    let mut zeroed = l4.to_vec();
    let Some(field) = zeroed.get_mut(8..12) else { return false };
    let found = u32::from_le_bytes(field.try_into().expect("4 bytes"));
    field.fill(0);
    found == naive_crc32c(&zeroed)
}

/// A packet of any other protocol.
#[must_use]
pub fn raw(source: IpAddr, destination: IpAddr, protocol: u8) -> FrameBuilder {
    hosts(source, destination, Transport::Raw(protocol))
}

impl FrameBuilder {
    /// Sets the payload.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Sets the sequence number, acknowledgement and window of a TCP segment.
    #[must_use]
    pub fn numbers(mut self, sequence: u32, acknowledgement: u32, window: u16) -> Self {
        let Transport::Tcp { flags, scale, segment, .. } = self.transport else {
            panic!("no TCP segment")
        };
        let numbers = (sequence, acknowledgement);
        self.transport = Transport::Tcp { flags, numbers, window, scale, segment };
        self
    }

    /// Offers a window scale, as a SYN does.
    #[must_use]
    pub fn offering_scale(mut self, offer: u8) -> Self {
        if let Transport::Tcp { scale, .. } = &mut self.transport {
            *scale = Some(offer);
        }
        self
    }

    /// Offers a largest segment, as a SYN does.
    #[must_use]
    pub fn offering_segment(mut self, bytes: u16) -> Self {
        if let Transport::Tcp { segment, .. } = &mut self.transport {
            *segment = Some(bytes);
        }
        self
    }

    /// Sets TTL or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Makes it a fragment at `offset` bytes; a later one carries its payload without L4 header.
    #[must_use]
    pub fn fragment(mut self, identification: u32, offset: u16, more: bool) -> Self {
        assert_eq!(offset % 8, 0, "fragment offsets count eight bytes");
        self.fragment = Some((identification, offset, more));
        self
    }

    /// Leaves the L4 checksum as Linux does for a device to finish.
    #[must_use]
    pub fn partial_checksum(mut self) -> Self {
        self.partial_checksum = true;
        self
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => TCP,
            Transport::Udp => UDP,
            Transport::Echo { .. } | Transport::Error { .. } if self.source.is_ipv4() => ICMP,
            Transport::Echo { .. } | Transport::Error { .. } => ICMPV6,
            Transport::Raw(protocol) => protocol,
        }
    }

    fn header(&self) -> Vec<u8> {
        let mut header = Vec::new();
        let ports = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()];
        match self.transport {
            Transport::Tcp { flags, numbers, window, scale, segment } => {
                let (sequence, acknowledgement) = numbers;
                let words = 5 + u8::from(scale.is_some()) + u8::from(segment.is_some());
                header.extend(ports.concat());
                header.extend(sequence.to_be_bytes());
                header.extend(acknowledgement.to_be_bytes());
                header.extend([words << 4, flags]);
                header.extend(window.to_be_bytes());
                header.extend([0; 4]);
                header.extend(scale.into_iter().flat_map(|scale| [3, 3, scale, 0]));
                let segment = segment.map(u16::to_be_bytes).into_iter();
                header.extend(segment.flat_map(|[high, low]| [2, 4, high, low]));
            }
            Transport::Udp => {
                header.extend(ports.concat());
                let len = u16::try_from(8 + self.payload.len()).expect("payload fits");
                header.extend(len.to_be_bytes());
                header.extend([0, 0]);
            }
            Transport::Echo { is_reply, identifier } => {
                let kind = match (self.source.is_ipv4(), is_reply) {
                    (true, false) => 8,
                    (true, true) => 0,
                    (false, false) => 128,
                    (false, true) => 129,
                };
                header.extend([kind, 0, 0, 0]);
                header.extend(identifier.to_be_bytes());
                header.extend([0, 1]);
            }
            Transport::Error { kind, code, word } => {
                header.extend([kind, code, 0, 0]);
                header.extend(word.to_be_bytes());
            }
            Transport::Raw(_) => {}
        }
        header
    }

    /// The frame.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let is_later = self.fragment.is_some_and(|(_, offset, _)| offset > 0);
        let mut l4 = if is_later { Vec::new() } else { self.header() };
        l4.extend(&self.payload);
        if let (Some(at), false) = (checksum_at(self.protocol()), is_later) {
            let pseudo = self.pseudo_header(l4.len());
            let sum = if self.partial_checksum {
                !naive_checksum(&[&pseudo])
            } else {
                match naive_checksum(&[&pseudo, &l4]) {
                    0 if self.protocol() == UDP => 0xffff,
                    sum => sum,
                }
            };
            l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let mut frame = vec![2, 0, 0, 0, 0, 0xfe, 2, 0, 0, 0, 0, 0xff];
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00]);
                frame.extend(self.ipv4_header(source.octets(), destination.octets(), l4.len()));
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd]);
                frame.extend(self.ipv6_header(source.octets(), destination.octets(), l4.len()));
            }
            _ => unreachable!("checked when the builder was made"),
        }
        frame.extend(l4);
        frame
    }

    fn ipv4_header(&self, source: [u8; 4], destination: [u8; 4], payload: usize) -> Vec<u8> {
        let len = u16::try_from(20 + payload).expect("packet fits").to_be_bytes();
        let (identification, field) = match self.fragment {
            None => (0, 0x4000),
            Some((identification, offset, more)) => {
                (identification, (offset / 8) | if more { 0x2000 } else { 0 })
            }
        };
        let [.., c, d] = identification.to_be_bytes();
        let [e, f] = u16::to_be_bytes(field);
        let mut header = vec![0x45, 0, len[0], len[1], c, d, e, f, self.ttl, self.protocol(), 0, 0];
        header.extend(source);
        header.extend(destination);
        let sum = naive_checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    fn ipv6_header(&self, source: [u8; 16], destination: [u8; 16], payload: usize) -> Vec<u8> {
        let extension = match self.fragment {
            None => Vec::new(),
            Some((identification, offset, more)) => {
                let mut extension = vec![self.protocol(), 0];
                extension.extend((offset | u16::from(more)).to_be_bytes());
                extension.extend(identification.to_be_bytes());
                extension
            }
        };
        let len = u16::try_from(extension.len() + payload).expect("packet fits").to_be_bytes();
        let next = if extension.is_empty() { self.protocol() } else { 44 };
        let mut header = vec![0x60, 0, 0, 0, len[0], len[1], next, self.ttl];
        header.extend(source);
        header.extend(destination);
        header.extend(extension);
        header
    }

    fn pseudo_header(&self, l4_len: usize) -> Vec<u8> {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(_), IpAddr::V4(_)) if self.protocol() == ICMP => Vec::new(),
            (source, destination) => {
                pseudo_header(&octets(source), &octets(destination), self.protocol(), l4_len)
            }
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn pseudo_header(source: &[u8], destination: &[u8], protocol: u8, len: usize) -> Vec<u8> {
    let len = u32::try_from(len).expect("packet fits").to_be_bytes();
    [source, destination, &[0, protocol], &len].concat()
}

fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        ICMP | ICMPV6 => Some(2),
        _ => None,
    }
}

/// RFC 1071, word by word.
fn naive_checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// A frame read back, for assertions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Destination link address.
    pub to: [u8; 6],
    /// Source address and L4 port or identifier.
    pub source: SocketAddr,
    /// Destination address and L4 port or identifier.
    pub destination: SocketAddr,
    /// Protocol number.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// First byte of the L4 header of ICMP (its type), 0 otherwise.
    pub icmp_type: u8,
    /// TCP flags, 0 otherwise.
    pub tcp_flags: u8,
    /// TCP sequence number, 0 otherwise.
    pub sequence: u32,
    /// TCP acknowledgement, 0 otherwise.
    pub acknowledgement: u32,
    /// Everything after the L4 header.
    pub payload: Vec<u8>,
}

/// Reads a frame without extension headers and checks every checksum in it.
///
/// # Errors
/// Which checksum is wrong, or what is missing.
pub fn read(frame: &[u8]) -> Result<Seen, String> {
    let to = frame.get(..6).and_then(|to| to.try_into().ok()).ok_or("no Ethernet header")?;
    let mut seen = read_packet(frame.get(14..).ok_or("no IP header")?, true)?;
    seen.to = to;
    Ok(seen)
}

/// Reads the packet that an ICMP error quotes; its own L4 checksum may be cut off and is not
/// checked.
///
/// # Errors
/// As [`read`].
pub fn read_quoted(seen: &Seen) -> Result<Seen, String> {
    read_packet(&seen.payload, false)
}

fn read_packet(packet: &[u8], check_l4: bool) -> Result<Seen, String> {
    let is_v4 = packet.first().ok_or("empty")? >> 4 == 4;
    let (source, destination, protocol, ttl, at, end) = if is_v4 {
        let header = packet.get(..20).ok_or("short IPv4 header")?;
        if naive_checksum(&[header]) != 0 {
            return Err("IPv4 header checksum is wrong".into());
        }
        let end = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let address =
            |at: usize| IpAddr::from(<[u8; 4]>::try_from(&header[at..at + 4]).expect("4"));
        (address(12), address(16), header[9], header[8], 20, end)
    } else {
        let header = packet.get(..40).ok_or("short IPv6 header")?;
        let end = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let address =
            |at: usize| IpAddr::from(<[u8; 16]>::try_from(&header[at..at + 16]).expect("16"));
        (address(8), address(24), header[6], header[7], 40, end)
    };
    let l4 = packet.get(at..end.min(packet.len())).ok_or("short packet")?;
    let mut ports = (0, 0);
    let mut header_len = 0;
    let word = |at: usize| {
        let word = l4.get(at..at + 4).filter(|_| protocol == TCP);
        word.map_or(0, |word| u32::from_be_bytes(word.try_into().expect("4")))
    };
    match protocol {
        TCP | UDP => {
            let ends = l4.get(..4).ok_or("short L4 header")?;
            ports =
                (u16::from_be_bytes([ends[0], ends[1]]), u16::from_be_bytes([ends[2], ends[3]]));
            header_len = if protocol == TCP { 20 } else { 8 };
        }
        SCTP => {
            let ends = l4.get(..4).ok_or("short L4 header")?;
            ports =
                (u16::from_be_bytes([ends[0], ends[1]]), u16::from_be_bytes([ends[2], ends[3]]));
            header_len = 12;
            if check_l4 && !sctp_is_right(l4) {
                return Err("SCTP's checksum is wrong".into());
            }
        }
        ICMP | ICMPV6 => {
            let identifier = l4.get(4..6).ok_or("short ICMP header")?;
            let identifier = u16::from_be_bytes([identifier[0], identifier[1]]);
            ports = (identifier, identifier);
            header_len = 8;
        }
        _ => {}
    }
    let pseudo = if protocol == ICMP {
        Vec::new()
    } else {
        pseudo_header(&octets(source), &octets(destination), protocol, l4.len())
    };
    let has_checksum = checksum_at(protocol).is_some_and(|at| {
        protocol != UDP || l4.get(at..at + 2).is_some_and(|field| field != [0, 0])
    });
    if check_l4 && has_checksum && naive_checksum(&[&pseudo, l4]) != 0 {
        return Err(format!("L4 checksum of protocol {protocol} is wrong"));
    }
    Ok(Seen {
        to: [0; 6],
        source: SocketAddr::new(source, ports.0),
        destination: SocketAddr::new(destination, ports.1),
        protocol,
        ttl,
        icmp_type: if matches!(protocol, ICMP | ICMPV6) { l4[0] } else { 0 },
        tcp_flags: l4.get(13).copied().filter(|_| protocol == TCP).unwrap_or_default(),
        sequence: word(4),
        acknowledgement: word(8),
        payload: l4.get(header_len..).unwrap_or_default().to_vec(),
    })
}
