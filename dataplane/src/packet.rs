//! What a frame means: its tuple, its kind, and where its headers lie.
//!
//! Parsing promises that every offset in a [`Packet`] lies within the first chunk, so that later
//! stages never look beyond it; it never panics, whatever the bytes.

mod plain;
mod quoted;

use arrayvec::ArrayVec;
pub(crate) use plain::BYTES as PLAIN_LEN;
pub use quoted::{Quoted, quoted};

use crate::DropReason;
use crate::address::Protocol;
use crate::conntrack::sctp::Chunks;
use crate::conntrack::{FlowDirection, Seen};
use crate::flow_key::{FlowKey, FlowKey4, FlowKey6};
use crate::wire::checksum::Sum;
use crate::wire::{self, ETHERNET_LEN, Fragment, IPV4_LEN, IPV6_LEN};

/// What kind of packet it is, as far as the pipeline treats kinds differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PacketKind {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// An ICMP or ICMPv6 query (echo, timestamp), or the reply to one.
    IcmpQuery {
        /// Whether it is the reply.
        is_reply: bool,
    },
    /// An ICMP or ICMPv6 error; [`quoted`] reads what it is about.
    IcmpError,
    /// A first fragment: it carries the L4 header.
    FirstFragment {
        /// What all fragments of its packet share.
        identification: u32,
    },
    /// A later fragment: it carries no L4 header.
    LaterFragment {
        /// What all fragments of its packet share.
        identification: u32,
    },
    /// Neighbour discovery or multicast listener discovery: link business, never forwarded.
    NeighbourDiscovery,
    /// A router advertisement or a redirect.
    RouterAdvertisement,
    /// Another protocol: tracked by its address pair.
    Other,
}

/// A parsed packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    key: FlowKey,
    /// Its kind.
    pub kind: PacketKind,
    /// Where the L4 header begins, in bytes from the frame's start.
    pub l4_offset: usize,
    /// Length of the IP packet in bytes, without Ethernet header and padding.
    pub ip_len: usize,
    /// Whether it is longer than the link it came by takes ([`crate::segments`]), which parsing does not
    /// know.
    pub is_long: bool,
    /// Whether it is TCP that its stack may have left to an interface to cut though the link takes it: then
    /// its length tells nothing ([`crate::mss::SegmentLimit::is_exceeded_by`]). Parsing does not know that.
    pub may_be_whole: bool,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP flags (RFC 9293, 3.1), or what SCTP's chunks show in the same terms
    /// ([`crate::conntrack::sctp`]); 0 for other protocols.
    pub tcp_flags: u8,
    turn: Turn,
}

/// What an ICMP message, whole or in fragments, is of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Turn {
    /// Neither, as is everything but ICMP queries.
    #[default]
    Neither,
    /// The question.
    Query,
    /// The reply to it.
    Reply,
}

/// What stands between the IP header and the transport.
struct Transport {
    protocol: Protocol,
    offset: usize,
    /// End of the IP packet in the frame.
    end: usize,
    fragment: Option<Fragment>,
    is_ipv6: bool,
}

/// What the L4 header says.
#[derive(Default)]
struct Header {
    ports: (u16, u16),
    tcp_flags: u8,
    turn: Turn,
}

impl Packet {
    /// Parses a frame; `bytes` are its first chunk and `len` its whole length.
    ///
    /// # Errors
    /// The reason to drop it for.
    #[inline(always)]
    pub fn parse(bytes: &[u8], len: usize) -> Result<Self, DropReason> {
        let mut parsed = ArrayVec::<_, 1>::new();
        Self::parse_onto(bytes, len, &mut parsed);
        parsed.pop().unwrap_or(Err(DropReason::Malformed))
    }

    /// As [`Self::parse`], but appends the result to `parsed`, which must have room, and answers
    /// the packet's tuple if that names its flow, and what length the frame is to be cut to, if any
    /// ([`Self::end_of_frame`]).
    #[inline(always)]
    pub fn parse_onto<const N: usize>(
        bytes: &[u8],
        len: usize,
        parsed: &mut ArrayVec<Result<Self, DropReason>, N>,
    ) -> (Option<FlowKey>, Option<usize>) {
        if let Some(key) = plain::parse(bytes, len, parsed) {
            return (Some(FlowKey::V4(key)), None);
        }
        let packet = Self::parse_any(bytes, len);
        parsed.push(packet);
        let Ok(packet) = packet else { return (None, None) };
        let end = packet.end_of_frame();
        (packet.kind.has_tuple().then_some(packet.key), (end < len).then_some(end))
    }

    /// Where its frame ends. What lies behind the IP packet is the link's, which every forwarder cuts
    /// off; were it to go on, a frame could be longer than the packet that is judged, and than the links
    /// it leaves by. What pads a short frame stays.
    fn end_of_frame(&self) -> usize {
        (ETHERNET_LEN + self.ip_len).max(wire::FRAME_LEN_MIN)
    }

    /// The careful way, for everything that is not plain.
    #[inline(never)]
    fn parse_any(bytes: &[u8], len: usize) -> Result<Self, DropReason> {
        match wire::u16_at(bytes, 12) {
            Some(wire::ETHERTYPE_IPV4) => parse_ipv4(bytes, len),
            Some(wire::ETHERTYPE_IPV6) => parse_ipv6(bytes, len),
            Some(_) => Err(DropReason::NotIp),
            None => Err(DropReason::Truncated),
        }
    }

    /// Its tuple. Later fragments and ICMP errors have no L4 ports of their own: theirs are 0.
    #[inline(always)]
    #[must_use]
    pub fn flow_key(&self) -> FlowKey {
        self.key
    }

    /// The same in place.
    #[inline(always)]
    pub(crate) fn key(&self) -> &FlowKey {
        &self.key
    }

    /// Whether it is whole TCP or UDP over IPv4 without options: its headers, of which TCP's
    /// begin at least, lie in the first [`PLAIN_LEN`] bytes, if there are so many.
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.key, FlowKey::V4(_))
            && matches!(self.kind, PacketKind::Tcp | PacketKind::Udp)
            && self.l4_offset == ETHERNET_LEN + IPV4_LEN
    }

    /// What it is without `len` bytes of its header's options, with another tuple.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] when the header has no so many.
    #[cold]
    pub(crate) fn before_option(&self, key: FlowKey, len: usize) -> Result<Self, DropReason> {
        let l4_offset = self.l4_offset.checked_sub(len).filter(|at| *at >= ETHERNET_LEN + IPV4_LEN);
        let ip_len = self.ip_len.checked_sub(len).ok_or(DropReason::Malformed)?;
        Ok(Self { key, l4_offset: l4_offset.ok_or(DropReason::Malformed)?, ip_len, ..*self })
    }

    /// Notes that it came by a link that takes `mtu` bytes, from a stack that may have left it to be cut.
    #[inline(always)]
    pub(crate) fn came_by_link_of(&mut self, mtu: u16) {
        self.is_long = self.ip_len > usize::from(mtu);
        // Every host takes a segment of 536 bytes.
        let is_more = self.ip_len > IPV4_LEN + wire::TCP_LEN + 536;
        self.may_be_whole = !self.is_long && is_more && self.kind == PacketKind::Tcp;
    }

    /// Length of its TCP options and payload, in bytes.
    #[inline(always)]
    pub(crate) fn segment_len(&self) -> usize {
        (ETHERNET_LEN + self.ip_len).saturating_sub(self.l4_offset + wire::TCP_LEN)
    }

    /// What it shows of its flow's state.
    #[must_use]
    pub fn shows(&self) -> Seen {
        match self.key.protocol() {
            Protocol::SCTP => Seen(self.tcp_flags | Seen::ANY),
            _ => Seen::of(self.tcp_flags),
        }
    }

    /// Whether it may open a flow: the reply to an ICMP query may not, whole or in fragments.
    #[must_use]
    pub fn may_begin_flow(&self) -> bool {
        self.turn != Turn::Reply
    }

    /// Whether a packet of its kind goes in this direction of a flow: the question of an ICMP query in
    /// the one that the flow was opened in, the reply in the other.
    #[inline(always)]
    pub(crate) fn goes(&self, direction: FlowDirection) -> bool {
        match self.turn {
            Turn::Neither => true,
            Turn::Query => direction == FlowDirection::Original,
            Turn::Reply => direction == FlowDirection::Reply,
        }
    }
}

impl PacketKind {
    /// Whether the packet's own tuple names its flow.
    #[inline(always)]
    #[must_use]
    pub fn has_tuple(self) -> bool {
        matches!(
            self,
            Self::Tcp
                | Self::Udp
                | Self::Sctp
                | Self::IcmpQuery { .. }
                | Self::FirstFragment { .. }
                | Self::Other
        )
    }
}

#[inline(always)]
fn parse_ipv4(bytes: &[u8], len: usize) -> Result<Packet, DropReason> {
    let header: &[u8; IPV4_LEN] =
        wire::array_at(bytes, ETHERNET_LEN).ok_or(DropReason::Truncated)?;
    let header_len = match header[0] {
        0x45 => IPV4_LEN,
        _ => ipv4_options(bytes, header[0])?,
    };
    if ipv4_sum(bytes, header, header_len) != 0xffff {
        return Err(DropReason::BadHeaderChecksum);
    }
    let ip_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let end = ETHERNET_LEN + ip_len;
    if ip_len < header_len {
        return Err(DropReason::Malformed);
    }
    if end > len {
        return Err(DropReason::Truncated);
    }
    let source = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
    let destination = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
    // RFC 1122, 3.2.1.3: "this network" and loopback never leave a host, and neither they nor
    // groups are a source. RFC 1812, 5.3.4: nor is a link-layer broadcast forwarded.
    if matches!(source >> 24, 0 | 127 | 224..) || matches!(destination >> 24, 0 | 127) {
        return Err(DropReason::Malformed);
    }
    if destination >> 24 >= 224 || is_group_frame(bytes) {
        return Err(DropReason::Multicast);
    }
    let transport = Transport {
        protocol: Protocol(header[9]),
        offset: ETHERNET_LEN + header_len,
        end,
        fragment: Fragment::of_ipv4(header),
        is_ipv6: false,
    };
    let (kind, l4) = parse_transport(bytes, &transport)?;
    let (source, destination) = ((source, l4.ports.0), (destination, l4.ports.1));
    let key = FlowKey4::new(transport.protocol, source, destination);
    Ok(Packet {
        key: FlowKey::V4(key),
        kind,
        l4_offset: transport.offset,
        ip_len,
        is_long: false,
        may_be_whole: false,
        ttl: header[8],
        tcp_flags: l4.tcp_flags,
        turn: l4.turn,
    })
}

#[inline(always)]
fn ipv4_sum(bytes: &[u8], header: &[u8; IPV4_LEN], header_len: usize) -> u16 {
    if header_len == IPV4_LEN {
        Sum::default().bytes(header).fold()
    } else {
        let whole = bytes.get(ETHERNET_LEN..ETHERNET_LEN + header_len).unwrap_or_default();
        Sum::default().bytes(whole).fold()
    }
}

/// Whether the frame went to a link-layer group.
#[inline(always)]
fn is_group_frame(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|octet| octet & 1 != 0)
}

/// The length of a header with options, after refusing source routes (RFC 7126, 4.3 and 4.4).
#[cold]
fn ipv4_options(bytes: &[u8], first: u8) -> Result<usize, DropReason> {
    let header_len = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header_len < IPV4_LEN {
        return Err(DropReason::Malformed);
    }
    let mut options = bytes
        .get(ETHERNET_LEN + IPV4_LEN..ETHERNET_LEN + header_len)
        .ok_or(DropReason::Truncated)?;
    while let Some((kind, rest)) = options.split_first() {
        options = match (*kind, rest.first()) {
            (0, _) => break,
            (1, _) => rest,
            (131 | 137, _) => return Err(DropReason::SourceRouted),
            (_, Some(len)) if *len >= 2 => {
                options.get(usize::from(*len)..).ok_or(DropReason::Malformed)?
            }
            _ => return Err(DropReason::Malformed),
        };
    }
    Ok(header_len)
}

fn parse_ipv6(bytes: &[u8], len: usize) -> Result<Packet, DropReason> {
    let header: &[u8; IPV6_LEN] =
        wire::array_at(bytes, ETHERNET_LEN).ok_or(DropReason::Truncated)?;
    if header[0] >> 4 != 6 {
        return Err(DropReason::Malformed);
    }
    let ip_len = IPV6_LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let end = ETHERNET_LEN + ip_len;
    if end > len {
        return Err(DropReason::Truncated);
    }
    let source = wire::u128_at(header, 8);
    let destination = wire::u128_at(header, 24);
    let transport = wire::ipv6_extensions(bytes, header[6], ETHERNET_LEN + IPV6_LEN, end)?;
    let transport = Transport {
        protocol: transport.protocol,
        offset: transport.offset,
        end,
        fragment: transport.fragment,
        is_ipv6: true,
    };
    let (kind, l4) = parse_transport(bytes, &transport)?;
    let is_link_business =
        matches!(kind, PacketKind::NeighbourDiscovery | PacketKind::RouterAdvertisement);
    if !is_link_business {
        check_ipv6_addresses(source, destination)?;
        if destination >> 120 == 0xff || is_group_frame(bytes) {
            return Err(DropReason::Multicast);
        }
    }
    let key = FlowKey6 {
        source,
        destination,
        source_port: l4.ports.0,
        destination_port: l4.ports.1,
        protocol: transport.protocol,
    };
    Ok(Packet {
        key: FlowKey::V6(key),
        kind,
        l4_offset: transport.offset,
        ip_len,
        is_long: false,
        may_be_whole: false,
        ttl: header[7],
        tcp_flags: l4.tcp_flags,
        turn: l4.turn,
    })
}

/// RFC 4291, 2.5.2, 2.5.3 and 2.7: the unspecified address and loopback never leave a host, and
/// neither they nor groups are a source. Nor is an IPv4-mapped address (2.5.5.2): a socket that
/// serves both families would take it for an IPv4 peer that no policy has seen.
#[inline(always)]
fn check_ipv6_addresses(source: u128, destination: u128) -> Result<(), DropReason> {
    if source <= 1
        || destination <= 1
        || source >> 120 == 0xff
        || is_mapped(source)
        || is_mapped(destination)
    {
        return Err(DropReason::Malformed);
    }
    Ok(())
}

/// Whether it is an IPv4-mapped address.
#[inline(always)]
fn is_mapped(address: u128) -> bool {
    address >> 32 == 0xffff
}

#[inline(always)]
fn parse_transport(bytes: &[u8], at: &Transport) -> Result<(PacketKind, Header), DropReason> {
    if let Some(fragment) = at.fragment {
        return parse_fragment(bytes, at, fragment);
    }
    parse_whole(bytes, at)
}

#[inline(always)]
fn parse_whole(bytes: &[u8], at: &Transport) -> Result<(PacketKind, Header), DropReason> {
    match at.protocol {
        Protocol::TCP => Ok((PacketKind::Tcp, parse_tcp(bytes, at)?)),
        Protocol::UDP => Ok((PacketKind::Udp, parse_udp(bytes, at)?)),
        Protocol::ICMP if !at.is_ipv6 => parse_icmp(bytes, at),
        Protocol::ICMPV6 if at.is_ipv6 => parse_icmpv6(bytes, at),
        // One family's messages in the other's packets mean nothing.
        Protocol::ICMP | Protocol::ICMPV6 => Err(DropReason::Malformed),
        Protocol::SCTP => Ok((PacketKind::Sctp, parse_sctp(bytes, at)?)),
        _ => Ok((PacketKind::Other, Header::default())),
    }
}

#[cold]
fn parse_fragment(
    bytes: &[u8],
    at: &Transport,
    fragment: Fragment,
) -> Result<(PacketKind, Header), DropReason> {
    let payload_len = at.end - at.offset;
    // RFC 8200, 4.5: only the last may have a length that is no multiple of eight, and none may
    // reach beyond the longest packet. RFC 791 counts the same way.
    if (fragment.more && !payload_len.is_multiple_of(8))
        || usize::from(fragment.offset) + payload_len > usize::from(u16::MAX)
    {
        return Err(DropReason::Malformed);
    }
    let identification = fragment.identification;
    if !fragment.is_first() {
        // RFC 3128: it would write over the flags that the first one showed.
        if at.protocol == Protocol::TCP && fragment.offset == 8 {
            return Err(DropReason::Malformed);
        }
        return Ok((PacketKind::LaterFragment { identification }, Header::default()));
    }
    match parse_whole(bytes, at)? {
        // Errors fit into every MTU (RFC 1812, 4.3.2.3; RFC 4443, 2.4 c), and neighbour discovery
        // is not to be fragmented (RFC 6980).
        (
            PacketKind::IcmpError
            | PacketKind::NeighbourDiscovery
            | PacketKind::RouterAdvertisement,
            _,
        ) => Err(DropReason::Malformed),
        (_, header) => Ok((PacketKind::FirstFragment { identification }, header)),
    }
}

#[inline(always)]
fn parse_tcp(bytes: &[u8], at: &Transport) -> Result<Header, DropReason> {
    let tcp: &[u8; wire::TCP_LEN] = l4_header(bytes, at)?;
    let header_len = usize::from(tcp[12] >> 4) * 4;
    if header_len < wire::TCP_LEN || at.offset + header_len > at.end {
        return Err(DropReason::Malformed);
    }
    let flags = tcp[13];
    if !is_sound(flags) {
        return Err(DropReason::Malformed);
    }
    Ok(Header { ports: ports(tcp), tcp_flags: flags, turn: Turn::Neither })
}

/// Whether TCP has a use for these flags (RFC 9293, 3.10.7); scanners have for the others.
#[inline(always)]
fn is_sound(flags: u8) -> bool {
    let (fin, syn, rst, ack) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0, flags & 16 != 0);
    !(syn && (fin || rst)) && (syn || rst || ack)
}

#[inline(always)]
fn parse_udp(bytes: &[u8], at: &Transport) -> Result<Header, DropReason> {
    let udp: &[u8; wire::UDP_LEN] = l4_header(bytes, at)?;
    let udp_len = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
    let is_whole = at.fragment.is_none();
    if udp_len < wire::UDP_LEN || (is_whole && at.offset + udp_len > at.end) {
        return Err(DropReason::Malformed);
    }
    Ok(Header { ports: ports(udp), ..Header::default() })
}

/// SCTP's ports are rewritten where a service leads to another one, and never for masquerade: both
/// ends may be addresses of several associations that share them (RFC 9260, 3.1 and 6.4).
#[cold]
fn parse_sctp(bytes: &[u8], at: &Transport) -> Result<Header, DropReason> {
    let common: &[u8; wire::SCTP_LEN] = l4_header(bytes, at)?;
    let chunks = Chunks::read(bytes, at.offset, at.end, at.fragment.is_none())?;
    Ok(Header { ports: ports(common), tcp_flags: chunks.shown, turn: Turn::Neither })
}

#[inline(always)]
fn ports<const N: usize>(header: &[u8; N]) -> (u16, u16) {
    (u16::from_be_bytes([header[0], header[1]]), u16::from_be_bytes([header[2], header[3]]))
}

#[inline(always)]
fn l4_header<'a, const N: usize>(
    bytes: &'a [u8],
    at: &Transport,
) -> Result<&'a [u8; N], DropReason> {
    if at.offset + N > at.end {
        return Err(DropReason::Truncated);
    }
    wire::array_at(bytes, at.offset).ok_or(DropReason::Truncated)
}

fn query(icmp: &[u8; wire::ICMP_LEN], is_reply: bool) -> (PacketKind, Header) {
    let identifier = u16::from_be_bytes([icmp[4], icmp[5]]);
    let turn = if is_reply { Turn::Reply } else { Turn::Query };
    let header = Header { ports: (identifier, identifier), tcp_flags: 0, turn };
    (PacketKind::IcmpQuery { is_reply }, header)
}

fn parse_icmp(bytes: &[u8], at: &Transport) -> Result<(PacketKind, Header), DropReason> {
    let icmp = l4_header(bytes, at)?;
    Ok(match icmp[0] {
        // Echo, timestamp (RFC 792).
        0 | 14 => query(icmp, true),
        8 | 13 => query(icmp, false),
        // Destination unreachable, source quench, time exceeded, parameter problem.
        3 | 4 | 11 | 12 => (PacketKind::IcmpError, Header::default()),
        // Redirect (RFC 792), router advertisement (RFC 1256).
        5 | 9 => (PacketKind::RouterAdvertisement, Header::default()),
        _ => (PacketKind::Other, Header::default()),
    })
}

fn parse_icmpv6(bytes: &[u8], at: &Transport) -> Result<(PacketKind, Header), DropReason> {
    let icmp = l4_header(bytes, at)?;
    Ok(match icmp[0] {
        // RFC 4443: errors are below 128.
        1..=4 => (PacketKind::IcmpError, Header::default()),
        128 => query(icmp, false),
        129 => query(icmp, true),
        // Router advertisement, redirect (RFC 4861).
        134 | 137 => (PacketKind::RouterAdvertisement, Header::default()),
        // Listener discovery (RFC 2710, RFC 3810), solicitations and neighbour advertisements.
        130..=133 | 135 | 136 | 143 => (PacketKind::NeighbourDiscovery, Header::default()),
        _ => (PacketKind::Other, Header::default()),
    })
}
