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
///
/// In the tuples of a flow that changes family ([`crate::nat64`]) IPv4 addresses stand in the form
/// of RFC 4291, 2.5.5.2, which no packet carries as far as the flow table.
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
    /// An IPv4 tuple in IPv4-mapped addresses.
    #[must_use]
    pub fn mapped(key: &FlowKey4) -> Self {
        Self {
            source: MAPPED | u128::from(key.source()),
            destination: MAPPED | u128::from(key.destination()),
            source_port: key.source_port(),
            destination_port: key.destination_port(),
            protocol: key.protocol,
        }
    }

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

/// The prefix of IPv4-mapped addresses, ::ffff:0:0/96.
const MAPPED: u128 = 0xffff << 32;

fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => MAPPED | u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
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

    /// The same whose end points may be of two families: then it is an IPv6 tuple in which the IPv4
    /// address is mapped, as of a packet on its way through a translation.
    fn across(protocol: Protocol, source: (IpAddr, u16), destination: (IpAddr, u16)) -> Self {
        Self::new(protocol, source, destination).unwrap_or_else(|| {
            Self::V6(FlowKey6 {
                source: bits_of(source.0),
                destination: bits_of(destination.0),
                source_port: source.1,
                destination_port: destination.1,
                protocol,
            })
        })
    }

    /// An IPv6 tuple of mapped addresses alone as the IPv4 tuple that packets carry.
    #[must_use]
    pub fn canonical(self) -> Self {
        let source = (self.source(), self.source_port());
        Self::across(self.protocol(), source, (self.destination(), self.destination_port()))
    }

    /// Source address; a mapped one is the IPv4 address that it stands for.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        match self {
            Self::V4(key) => Ipv4Addr::from_bits(key.source()).into(),
            Self::V6(key) => Ipv6Addr::from_bits(key.source).to_canonical(),
        }
    }

    /// Destination address, likewise.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        match self {
            Self::V4(key) => Ipv4Addr::from_bits(key.destination()).into(),
            Self::V6(key) => Ipv6Addr::from_bits(key.destination).to_canonical(),
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

    /// The same of another protocol.
    #[must_use]
    pub fn with_protocol(self, protocol: Protocol) -> Self {
        match self {
            Self::V4(key) => Self::V4(FlowKey4 { protocol, ..key }),
            Self::V6(key) => Self::V6(FlowKey6 { protocol, ..key }),
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

    /// The same toward another end point, of either family. An ICMP query keeps its identifier.
    #[must_use]
    pub fn with_destination(self, address: IpAddr, l4_port: u16) -> Self {
        let l4_port = if self.is_icmp() { self.destination_port() } else { l4_port };
        Self::across(self.protocol(), (self.source(), self.source_port()), (address, l4_port))
    }

    /// The same from another end point, of either family. An ICMP query takes `l4_port` as its
    /// identifier; protocols without ports ignore it, and so does SCTP, whose other paths are told
    /// apart by nothing else.
    #[must_use]
    pub fn with_source(self, address: IpAddr, l4_port: u16) -> Self {
        let (source, destination) = match self.protocol() {
            Protocol::ICMP | Protocol::ICMPV6 => (l4_port, l4_port),
            Protocol::TCP | Protocol::UDP => (l4_port, self.destination_port()),
            _ => (self.source_port(), self.destination_port()),
        };
        Self::across(self.protocol(), (address, source), (self.destination(), destination))
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
pub(crate) fn mix(word: u64) -> u64 {
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
        let out = ping.with_source(Ipv4Addr::new(10, 0, 0, 1).into(), 61_000);
        assert_eq!((out.source_port(), out.destination_port()), (61_000, 61_000));
    }

    #[test]
    fn tuple_that_changes_family_shows_its_ipv4_end_as_ipv4() {
        let client = key("10.0.0.1:1234", "10.0.0.2:80");
        let backend = "fd00::9".parse().expect("an address");
        let translated = client.with_destination(backend, 8080);
        assert_eq!(translated.to_string(), "tcp 10.0.0.1:1234 -> [fd00::9]:8080");
        assert_eq!(translated.source(), client.source());
        let node = "fd00::1".parse().expect("an address");
        let outgoing = translated.with_source(node, 61_000);
        assert_eq!(outgoing, key("[fd00::1]:61000", "[fd00::9]:8080"));
        let FlowKey::V4(own) = client else { unreachable!("two IPv4 addresses") };
        let mapped = FlowKey::V6(FlowKey6::mapped(&own));
        assert_eq!((mapped.to_string(), mapped.canonical()), (client.to_string(), client));
        assert_eq!(outgoing.canonical(), outgoing);
    }
}
