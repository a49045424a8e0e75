//! Netlink messages to [`Change`]s and routes. Pure: what it cannot use is [`Change::Nothing`].

use std::net::IpAddr;

use dataplane::address::MacAddr;
use dataplane::lpm::Prefix;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::view::{Change, InterfaceAddress, Link, Neighbour, RouteEntry, RouteHop, RouteKind};

/// What a notification says.
#[must_use]
pub fn change(message: &RouteNetlinkMessage) -> Change {
    match message {
        RouteNetlinkMessage::NewLink(link) => {
            decode_link(link).map_or(Change::Nothing, |(index, link)| Change::Link(index, link))
        }
        RouteNetlinkMessage::DelLink(link) if is_plain(link.header.interface_family) => {
            Change::LinkGone(link.header.index)
        }
        RouteNetlinkMessage::NewAddress(address) => decode_address(address)
            .map_or(Change::Nothing, |(index, address)| Change::Address(index, address)),
        RouteNetlinkMessage::DelAddress(address) => decode_address(address)
            .map_or(Change::Nothing, |(index, address)| {
                Change::AddressGone(index, address.address)
            }),
        RouteNetlinkMessage::NewNeighbour(neighbour) => decode_neighbour(neighbour)
            .map_or(Change::Nothing, |(index, address, neighbour)| {
                Change::Neighbour(index, address, neighbour)
            }),
        RouteNetlinkMessage::DelNeighbour(neighbour) => decode_neighbour(neighbour)
            .map_or(Change::Nothing, |(index, address, _)| Change::NeighbourGone(index, address)),
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)
            if is_main_table(route) =>
        {
            Change::Routes
        }
        _ => Change::Nothing,
    }
}

/// Bridges announce their ports' state in link messages of their own family, whose removal does
/// not mean that the link is gone.
fn is_plain(family: AddressFamily) -> bool {
    family == AddressFamily::Unspec
}

/// The link, unless the message is another family's news of it.
#[must_use]
pub fn decode_link(message: &LinkMessage) -> Option<(u32, Link)> {
    if !is_plain(message.header.interface_family) {
        return None;
    }
    let flags = message.header.flags;
    let mut link = Link {
        name: String::new(),
        alias: None,
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::LowerUp),
        receive_queues: 1,
        virtual_kind: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::Address(bytes) => link.mac = ethernet(bytes),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::NumRxQueues(queues) => link.receive_queues = *queues,
            LinkAttribute::LinkInfo(infos) => {
                link.virtual_kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some((message.header.index, link))
}

/// The address. Point-to-point interfaces say the node's own in IFA_LOCAL and the peer's in
/// IFA_ADDRESS; IPv6 says its own in IFA_ADDRESS alone.
#[must_use]
pub fn decode_address(message: &AddressMessage) -> Option<(u32, InterfaceAddress)> {
    let (mut local, mut address, mut broadcast) = (None, None, None);
    let mut flags = AddressFlags::empty();
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(own) => local = Some(*own),
            AddressAttribute::Address(own) => address = Some(*own),
            AddressAttribute::Broadcast(own) => broadcast = Some(*own),
            AddressAttribute::Flags(own) => flags = *own,
            _ => {}
        }
    }
    let own = InterfaceAddress {
        address: local.or(address)?,
        prefix_length: message.header.prefix_len,
        broadcast,
        usable: !flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed)
            || flags.contains(AddressFlags::Optimistic),
    };
    Some((message.header.index, own))
}

/// The neighbour, unless it is a bridge's forwarding entry or a multicast mapping.
#[must_use]
pub fn decode_neighbour(message: &NeighbourMessage) -> Option<(u32, IpAddr, Neighbour)> {
    if !matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return None;
    }
    let (mut address, mut mac, mut managed) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(own)) => {
                address = Some(IpAddr::V4(*own));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(own)) => {
                address = Some(IpAddr::V6(*own));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = ethernet(bytes),
            NeighbourAttribute::ExtFlags(flags) => {
                managed = flags.contains(NeighbourExtFlags::Managed);
            }
            _ => {}
        }
    }
    let address = address.filter(|address| !address.is_multicast())?;
    let state = message.header.state;
    let unusable =
        matches!(state, NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None);
    let neighbour = Neighbour {
        mac: mac.filter(|_| !unusable),
        failed: state == NeighbourState::Failed,
        kept_fresh: managed || matches!(state, NeighbourState::Permanent | NeighbourState::Noarp),
        stale: state == NeighbourState::Stale,
    };
    Some((message.header.ifindex, address, neighbour))
}

fn ethernet(bytes: &[u8]) -> Option<MacAddr> {
    let octets: [u8; 6] = bytes.try_into().ok()?;
    // A device without an address, such as the loopback, says zeros.
    (octets != [0; 6]).then_some(MacAddr(octets))
}

fn table_of(message: &RouteMessage) -> u32 {
    let wide = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    wide.unwrap_or_else(|| u32::from(message.header.table))
}

fn is_main_table(message: &RouteMessage) -> bool {
    table_of(message) == u32::from(RouteHeader::RT_TABLE_MAIN)
}

/// The route, unless it belongs to another table, to the kernel's cache, or matches on more than
/// the destination (TOS, source prefix), which we do not route by.
#[must_use]
pub fn decode_route(message: &RouteMessage) -> Option<RouteEntry> {
    use rtnetlink::packet_route::route::RouteFlags;
    let header = &message.header;
    if !is_main_table(message)
        || header.flags.contains(RouteFlags::Cloned)
        || header.tos != 0
        || header.source_prefix_length != 0
    {
        return None;
    }
    let mut parts = RouteParts::default();
    for attribute in &message.attributes {
        parts.read(attribute);
    }
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let prefix =
        Prefix::new(parts.destination.unwrap_or(unspecified), header.destination_prefix_length)?;
    if prefix.address().is_multicast() {
        return None;
    }
    let dead = header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown);
    let kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast(parts.hops(dead)),
        RouteType::Local | RouteType::Anycast => RouteKind::Local,
        RouteType::Broadcast | RouteType::Multicast | RouteType::Throw => return None,
        _ => RouteKind::Refuse,
    };
    Some(RouteEntry { prefix, metric: parts.metric, kind, mtu: parts.mtu })
}

#[derive(Default)]
struct RouteParts {
    destination: Option<IpAddr>,
    metric: u32,
    mtu: Option<u32>,
    interface: Option<u32>,
    gateway: Option<IpAddr>,
    multipath: Vec<RouteHop>,
}

impl RouteParts {
    fn read(&mut self, attribute: &RouteAttribute) {
        match attribute {
            RouteAttribute::Destination(address) => self.destination = address_of(address),
            RouteAttribute::Priority(metric) => self.metric = *metric,
            RouteAttribute::Oif(interface) => self.interface = Some(*interface),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => {
                self.gateway = gateway_of(attribute);
            }
            RouteAttribute::Metrics(metrics) => {
                self.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            RouteAttribute::MultiPath(hops) => {
                self.multipath = hops.iter().map(multipath_hop).collect();
            }
            _ => {}
        }
    }

    fn hops(&mut self, dead: bool) -> Vec<RouteHop> {
        match self.interface {
            _ if !self.multipath.is_empty() => std::mem::take(&mut self.multipath),
            Some(interface) => vec![RouteHop { interface, gateway: self.gateway, dead }],
            None => Vec::new(),
        }
    }
}

fn multipath_hop(hop: &RouteNextHop) -> RouteHop {
    RouteHop {
        interface: hop.interface_index,
        gateway: hop.attributes.iter().find_map(gateway_of),
        dead: hop.flags.intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown),
    }
}

/// RTA_GATEWAY, or RTA_VIA where the gateway is of the other family (RFC 5549).
fn gateway_of(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => address_of(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::RouteMessageBuilder;

    use super::*;

    fn route(text: &str, length: u8) -> RouteMessageBuilder<IpAddr> {
        RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(text.parse().unwrap(), length)
            .unwrap()
    }

    #[test]
    fn a_plain_route_has_one_hop() {
        let message = route("10.0.0.0", 8)
            .gateway("192.0.2.1".parse().unwrap())
            .unwrap()
            .output_interface(7)
            .priority(100)
            .build();
        let entry = decode_route(&message).unwrap();
        assert_eq!(entry.metric, 100);
        let hop =
            RouteHop { interface: 7, gateway: Some("192.0.2.1".parse().unwrap()), dead: false };
        assert_eq!(entry.kind, RouteKind::Unicast(vec![hop]));
    }

    #[test]
    fn a_route_of_another_table_is_not_ours_even_when_its_number_needs_the_attribute() {
        assert_eq!(decode_route(&route("10.0.0.0", 8).table_id(1000).build()), None);
        let notification =
            RouteNetlinkMessage::NewRoute(route("10.0.0.0", 8).table_id(1000).build());
        assert_eq!(change(&notification), Change::Nothing);
    }

    #[test]
    fn blackhole_and_prohibit_refuse() {
        for kind in [RouteType::BlackHole, RouteType::Unreachable, RouteType::Prohibit] {
            let entry = decode_route(&route("10.0.0.0", 8).kind(kind).build()).unwrap();
            assert_eq!(entry.kind, RouteKind::Refuse);
        }
    }

    #[test]
    fn an_incomplete_or_failed_neighbour_has_no_usable_link_address() {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = 4;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet("192.0.2.7".parse().unwrap())),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 7]),
        ];
        for (state, known) in [
            (NeighbourState::Reachable, true),
            (NeighbourState::Stale, true),
            (NeighbourState::Probe, true),
            (NeighbourState::Permanent, true),
            (NeighbourState::Incomplete, false),
            (NeighbourState::Failed, false),
        ] {
            message.header.state = state;
            let (_, _, neighbour) = decode_neighbour(&message).unwrap();
            assert_eq!(neighbour.mac.is_some(), known, "{state:?}");
        }
    }

    #[test]
    fn a_bridge_port_leaving_its_bridge_is_not_a_lost_link() {
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Bridge;
        assert_eq!(change(&RouteNetlinkMessage::DelLink(message)), Change::Nothing);
    }
}
