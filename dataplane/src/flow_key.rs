//! The tuple of a packet: what names a flow in one direction.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::address::Protocol;

/// An IPv4 tuple. For ICMP queries both L4 ports are the identifier, so that a request and its
/// reply are each other's reverse; for protocols without ports both are 0.
///
/// Kept as its words stand in a header, and in a flow's entry: what is done with it at every packet
/// is done with whole words.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey4 {
    /// Source address in the upper half, destination address in the lower.
    addresses: u64,
    /// Source L4 port in the upper half, destination L4 port in the lower.
    ports: u32,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// An IPv6 tuple; otherwise as [`FlowKey4`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey6 {
    /// Source address.
    pub source: u128,
    /// Destination address.
    pub destination: u128,
    /// Source L4 port.
    pub source_port: u16,
    /// Destination L4 port.
    pub destination_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl FlowKey4 {
    /// The tuple of (address, L4 port) pairs.
    #[must_use]
    pub fn new(protocol: Protocol, source: (u32, u16), destination: (u32, u16)) -> Self {
        Self {
            addresses: u64::from(source.0) << 32 | u64::from(destination.0),
            ports: ports_word(source.1, destination.1),
            protocol,
        }
    }

    /// The tuple of these words.
    #[inline(always)]
    pub(crate) fn of_words(addresses: u64, ports: u32, protocol: Protocol) -> Self {
        Self { addresses, ports, protocol }
    }

    /// Source and destination address in one word, as they stand in a header.
    #[inline(always)]
    pub(crate) fn addresses(&self) -> u64 {
        self.addresses
    }

    /// Source and destination L4 port, likewise.
    #[inline(always)]
    pub(crate) fn ports(&self) -> u32 {
        self.ports
    }

    /// Source address.
    #[inline(always)]
    #[must_use]
    pub fn source(&self) -> u32 {
        low_half(self.addresses >> 32)
    }

    /// Destination address.
    #[inline(always)]
    #[must_use]
    pub fn destination(&self) -> u32 {
        low_half(self.addresses)
    }

    /// Source L4 port.
    #[inline(always)]
    #[must_use]
    pub fn source_port(&self) -> u16 {
        let [a, b, ..] = self.ports.to_be_bytes();
        u16::from_be_bytes([a, b])
    }

    /// Destination L4 port.
    #[inline(always)]
    #[must_use]
    pub fn destination_port(&self) -> u16 {
        let [.., a, b] = self.ports.to_be_bytes();
        u16::from_be_bytes([a, b])
    }

    /// The tuple of the opposite direction.
    #[inline(always)]
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            addresses: self.addresses.rotate_left(32),
            ports: self.ports.rotate_left(16),
            protocol: self.protocol,
        }
    }

    /// Input of the flow hash: the same for both directions, the lower end point first.
    #[inline(always)]
    #[must_use]
    pub fn hash_words(&self) -> [u64; 2] {
        let (addresses, ports) = (self.addresses, u64::from(self.ports));
        let one = (addresses >> 32) << 16 | ports >> 16;
        let other = (addresses & 0xffff_ffff) << 16 | ports & 0xffff;
        let (low, high) = (one.min(other), one.max(other));
        [low, high ^ u64::from(self.protocol.0) << 56]
    }
}

impl fmt::Debug for FlowKey4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&FlowKey::V4(*self), f)
    }
}

impl FlowKey6 {
    /// The tuple of the opposite direction.
    #[inline(always)]
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }

    /// Input of the flow hash: the same for both directions, the lower end point first.
    #[inline(always)]
    #[must_use]
    pub fn hash_words(&self) -> [u64; 5] {
        let one = (self.source, self.source_port);
        let other = (self.destination, self.destination_port);
        let (low, high) = (one.min(other), one.max(other));
        let (a, b) = halves(low.0);
        let (c, d) = halves(high.0);
        let ports = u64::from(low.1) << 16 | u64::from(high.1);
        [a, b, c, d, ports ^ u64::from(self.protocol.0) << 56]
    }
}

/// Two L4 ports in one word, as they stand in a header.
#[inline(always)]
pub(crate) fn ports_word(source: u16, destination: u16) -> u32 {
    u32::from(source) << 16 | u32::from(destination)
}

/// The lower half.
#[inline(always)]
pub(crate) fn low_half(word: u64) -> u32 {
    let [.., a, b, c, d] = word.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// The upper and the lower half.
#[inline(always)]
#[must_use]
pub fn halves(address: u128) -> (u64, u64) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.to_be_bytes();
    (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u64::from_be_bytes([i, j, k, l, m, n, o, p]))
}

/// A tuple of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowKey {
    /// IPv4.
    V4(FlowKey4),
    /// IPv6.
    V6(FlowKey6),
}

impl FlowKey {
    /// A tuple of two end points; `None` when their families differ.
    #[must_use]
    pub fn new(
        protocol: Protocol,
        source: (IpAddr, u16),
        destination: (IpAddr, u16),
    ) -> Option<Self> {
        let (source_port, destination_port) = (source.1, destination.1);
        match (source.0, destination.0) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Some(Self::V4(FlowKey4::new(
                protocol,
                (source.to_bits(), source_port),
                (destination.to_bits(), destination_port),
            ))),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Some(Self::V6(FlowKey6 {
                source: source.to_bits(),
                destination: destination.to_bits(),
                source_port,
                destination_port,
                protocol,
            })),
            _ => None,
        }
    }

    /// Source address.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        match self {
            Self::V4(key) => Ipv4Addr::from_bits(key.source()).into(),
            Self::V6(key) => Ipv6Addr::from_bits(key.source).into(),
        }
    }

    /// Destination address.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        match self {
            Self::V4(key) => Ipv4Addr::from_bits(key.destination()).into(),
            Self::V6(key) => Ipv6Addr::from_bits(key.destination).into(),
        }
    }

    /// Source L4 port, ICMP identifier, or 0.
    #[must_use]
    pub fn source_port(&self) -> u16 {
        match self {
            Self::V4(key) => key.source_port(),
            Self::V6(key) => key.source_port,
        }
    }

    /// Destination L4 port, ICMP identifier, or 0.
    #[must_use]
    pub fn destination_port(&self) -> u16 {
        match self {
            Self::V4(key) => key.destination_port(),
            Self::V6(key) => key.destination_port,
        }
    }

    /// Transport protocol.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::V4(key) => key.protocol,
            Self::V6(key) => key.protocol,
        }
    }

    /// The tuple of the opposite direction.
    #[inline(always)]
    #[must_use]
    pub fn reversed(self) -> Self {
        match self {
            Self::V4(key) => Self::V4(key.reversed()),
            Self::V6(key) => Self::V6(key.reversed()),
        }
    }

    /// The same with these L4 ports.
    #[must_use]
    pub fn with_l4_ports(self, source: u16, destination: u16) -> Self {
        match self {
            Self::V4(key) => Self::V4(FlowKey4 { ports: ports_word(source, destination), ..key }),
            Self::V6(key) => {
                Self::V6(FlowKey6 { source_port: source, destination_port: destination, ..key })
            }
        }
    }

    /// The same toward another end point; `None` when the families differ. An ICMP query keeps
    /// its identifier.
    #[must_use]
    pub fn with_destination(self, address: IpAddr, l4_port: u16) -> Option<Self> {
        let l4_port = if self.is_icmp() { self.destination_port() } else { l4_port };
        Self::new(self.protocol(), (self.source(), self.source_port()), (address, l4_port))
    }

    /// The same from another end point; `None` when the families differ. An ICMP query takes
    /// `l4_port` as its identifier; protocols without ports ignore it, and so does SCTP, whose
    /// checksum (a CRC over its ports) is not computed here.
    #[must_use]
    pub fn with_source(self, address: IpAddr, l4_port: u16) -> Option<Self> {
        let (source, destination) = match self.protocol() {
            Protocol::ICMP | Protocol::ICMPV6 => (l4_port, l4_port),
            Protocol::TCP | Protocol::UDP => (l4_port, self.destination_port()),
            _ => (self.source_port(), self.destination_port()),
        };
        Self::new(self.protocol(), (address, source), (self.destination(), destination))
    }

    fn is_icmp(&self) -> bool {
        matches!(self.protocol(), Protocol::ICMP | Protocol::ICMPV6)
    }

    /// A hash that is the same on every node and at every start, and differs by direction: for the
    /// choice of a backend. Not for tables that strangers can fill.
    #[must_use]
    pub fn stable_hash(&self) -> u64 {
        let ports = u64::from(self.source_port()) << 32
            | u64::from(self.destination_port()) << 16
            | u64::from(self.protocol().0);
        let add = |hash: u64, word| mix(hash.rotate_left(23) ^ word);
        match self {
            Self::V4(key) => add(mix(ports), key.addresses()),
            Self::V6(key) => {
                let ((a, b), (c, d)) = (halves(key.source), halves(key.destination));
                [a, b, c, d].into_iter().fold(mix(ports), add)
            }
        }
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number
/// Generators", 2014): every input bit reaches every output bit.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

impl fmt::Display for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |address: IpAddr, port: u16| match address {
            _ if port == 0 => address.to_string(),
            IpAddr::V4(v4) => format!("{v4}:{port}"),
            IpAddr::V6(v6) => format!("[{v6}]:{port}"),
        };
        let source = end(self.source(), self.source_port());
        write!(
            f,
            "{} {source} -> {}",
            self.protocol(),
            end(self.destination(), self.destination_port())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(source: &str, destination: &str) -> FlowKey {
        let end = |text: &str| {
            let at: std::net::SocketAddr = text.parse().expect("socket address");
            (at.ip(), at.port())
        };
        FlowKey::new(Protocol::TCP, end(source), end(destination)).expect("one family")
    }

    #[test]
    fn flow_hash_input_is_the_same_both_ways_and_stable_hash_is_not() {
        for key in [key("10.0.0.1:1", "10.0.0.2:2"), key("[fd00::1]:1", "[fd00::2]:2")] {
            match (key, key.reversed()) {
                (FlowKey::V4(a), FlowKey::V4(b)) => assert_eq!(a.hash_words(), b.hash_words()),
                (FlowKey::V6(a), FlowKey::V6(b)) => assert_eq!(a.hash_words(), b.hash_words()),
                _ => unreachable!("reversal keeps the family"),
            }
            assert_ne!(key.stable_hash(), key.reversed().stable_hash());
        }
    }

    #[test]
    fn tuples_print_as_people_write_them() {
        assert_eq!(
            key("10.0.0.1:1234", "10.0.0.2:80").to_string(),
            "tcp 10.0.0.1:1234 -> 10.0.0.2:80"
        );
        assert_eq!(
            key("[fd00::1]:9", "[fd00::2]:80").to_string(),
            "tcp [fd00::1]:9 -> [fd00::2]:80"
        );
    }

    #[test]
    fn masquerading_a_ping_changes_its_identifier_both_ways() {
        let ping = FlowKey::new(
            Protocol::ICMP,
            (Ipv4Addr::new(10, 1, 0, 1).into(), 7),
            (Ipv4Addr::new(192, 0, 2, 1).into(), 7),
        )
        .expect("one family");
        let out = ping.with_source(Ipv4Addr::new(10, 0, 0, 1).into(), 61_000).expect("one family");
        assert_eq!((out.source_port(), out.destination_port()), (61_000, 61_000));
    }
}
