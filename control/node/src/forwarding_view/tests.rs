use dataplane::DropReason;
use dataplane::forwarding::Resolved;

use super::*;
use crate::netlink::view::{Change, InterfaceAddress, Neighbour};

const UPLINK: PortId = PortId(0);
const HOST: PortId = PortId(1);
const POD: PortId = PortId(2);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix::new(ip(address), length.parse().unwrap()).unwrap()
}

fn ports() -> Vec<ForwardingPort> {
    [(UPLINK, PortKind::Uplink, 10), (HOST, PortKind::Host, 11), (POD, PortKind::Pod, 12)]
        .map(|(port, kind, interface)| ForwardingPort {
            port,
            kind,
            interface,
            mac: mac(u8::try_from(interface).unwrap()),
            mtu: 1500,
        })
        .to_vec()
}

fn hop(interface: u32, gateway: Option<&str>) -> RouteHop {
    RouteHop { interface, gateway: gateway.map(ip), dead: false }
}

fn unicast(to: &str, metric: u32, hops: Vec<RouteHop>) -> RouteEntry {
    RouteEntry { prefix: prefix(to), metric, kind: RouteKind::Unicast(hops), mtu: None }
}

fn know(view: &mut KernelView, interface: u32, address: &str, last: u8) {
    let neighbour =
        Neighbour { mac: Some(mac(last)), failed: false, kept_fresh: true, stale: false };
    view.apply(Change::Neighbour(interface, ip(address), neighbour));
}

fn node() -> KernelView {
    let mut view = KernelView::default();
    let own = InterfaceAddress {
        address: ip("192.0.2.2"),
        prefix_length: 24,
        broadcast: Some("192.0.2.255".parse().unwrap()),
        usable: true,
    };
    view.apply(Change::Address(10, own));
    view.set_routes(vec![
        unicast("0.0.0.0/0", 0, vec![hop(10, Some("192.0.2.1"))]),
        unicast("192.0.2.0/24", 0, vec![hop(10, None)]),
    ]);
    view
}

struct World {
    view: KernelView,
    ports: Vec<ForwardingPort>,
    endpoints: Vec<EndpointAddress>,
    asked: BTreeSet<(PortId, IpAddr)>,
    builder: ForwardingBuilder,
}

impl World {
    fn new() -> Self {
        let endpoint = EndpointAddress { address: ip("10.1.0.5"), port: POD, mac: Some(mac(5)) };
        Self {
            view: node(),
            ports: ports(),
            endpoints: vec![endpoint],
            asked: BTreeSet::new(),
            builder: ForwardingBuilder::default(),
        }
    }

    fn build(&mut self) -> Built {
        let host =
            HostWay { port: HOST, mac: mac(0xaa), address: ip("169.254.7.2"), stack_interface: 13 };
        self.builder.build(&Inputs {
            view: &self.view,
            ports: &self.ports,
            endpoints: &self.endpoints,
            host: Some(host),
            asked: &self.asked,
        })
    }
}

fn hop_to(built: &Built, destination: &str) -> NextHop {
    match built.forwarding.resolve(ip(destination)) {
        Ok(Resolved::NextHop(id)) => *built.forwarding.next_hop(id).unwrap(),
        other => panic!("{destination}: {other:?}"),
    }
}

#[test]
fn a_pod_the_node_and_the_world_have_their_ways() {
    let mut world = World::new();
    know(&mut world.view, 10, "192.0.2.1", 1);
    let built = world.build();
    assert_eq!(
        (hop_to(&built, "10.1.0.5").port, hop_to(&built, "10.1.0.5").destination),
        (POD, Some(mac(5)))
    );
    assert_eq!(hop_to(&built, "192.0.2.2").destination, Some(mac(0xaa)));
    let world = hop_to(&built, "203.0.113.9");
    assert_eq!((world.port, world.destination), (UPLINK, Some(mac(1))));
}

#[test]
fn an_on_link_destination_nobody_asked_for_is_unresolved_then_pending_then_known() {
    let mut world = World::new();
    let built = world.build();
    let unresolved = Ok(Resolved::Unresolved(UPLINK, ip("192.0.2.50")));
    assert_eq!(built.forwarding.resolve(ip("192.0.2.50")), unresolved);
    world.asked.insert((UPLINK, ip("192.0.2.50")));
    let built = world.build();
    assert_eq!(hop_to(&built, "192.0.2.50").destination, None);
    assert_eq!(built.affected, Affected::Nothing, "a neighbour that was asked for judges no flow");
    know(&mut world.view, 10, "192.0.2.50", 50);
    let built = world.build();
    assert_eq!(hop_to(&built, "192.0.2.50").destination, Some(mac(50)));
    assert_eq!(built.affected, Affected::Nothing);
}

#[test]
fn a_gateway_that_changes_its_link_address_keeps_its_number_and_affects_no_flow() {
    let mut world = World::new();
    know(&mut world.view, 10, "192.0.2.1", 1);
    let before = world.build().forwarding.resolve(ip("203.0.113.9")).unwrap();
    know(&mut world.view, 10, "192.0.2.1", 99);
    let built = world.build();
    assert_eq!(built.forwarding.resolve(ip("203.0.113.9")), Ok(before));
    assert_eq!(hop_to(&built, "203.0.113.9").destination, Some(mac(99)));
    assert_eq!(built.affected, Affected::Nothing);
}

#[test]
fn another_gateway_affects_every_flow_and_leaves_other_numbers_alone() {
    let mut world = World::new();
    let before = world.build();
    assert_eq!(before.affected, Affected::Everything);
    world.view.set_routes(vec![unicast("0.0.0.0/0", 0, vec![hop(10, Some("192.0.2.7"))])]);
    let after = world.build();
    assert_eq!(after.affected, Affected::Everything);
    assert_eq!(before.forwarding.resolve(ip("10.1.0.5")), after.forwarding.resolve(ip("10.1.0.5")));
    assert_eq!(hop_to(&after, "203.0.113.9").neighbour, ip("192.0.2.7"));
    assert_eq!(world.build().affected, Affected::Nothing);
}

#[test]
fn the_first_living_hop_by_a_port_of_ours_is_taken() {
    let mut world = World::new();
    let dead = RouteHop { dead: true, ..hop(10, Some("192.0.2.1")) };
    let hops = vec![hop(77, Some("198.51.100.1")), dead, hop(10, Some("192.0.2.3"))];
    world.view.set_routes(vec![unicast("0.0.0.0/0", 0, hops)]);
    assert_eq!(hop_to(&world.build(), "203.0.113.9").neighbour, ip("192.0.2.3"));
}

#[test]
fn the_lowest_metric_wins_even_when_it_leaves_by_a_foreign_interface() {
    let mut world = World::new();
    world.view.set_routes(vec![
        unicast("0.0.0.0/0", 200, vec![hop(10, Some("192.0.2.1"))]),
        unicast("0.0.0.0/0", 100, vec![hop(77, Some("198.51.100.1"))]),
    ]);
    let resolved = world.build().forwarding.resolve(ip("203.0.113.9"));
    assert_eq!(resolved, Err(DropReason::NoRoute));
}

#[test]
fn unreachable_blackhole_and_broadcast_are_refused() {
    let mut world = World::new();
    let mut routes = world.view.routes.clone();
    let refuse = RouteKind::Refuse;
    routes.push(RouteEntry { prefix: prefix("198.18.0.0/15"), metric: 0, kind: refuse, mtu: None });
    world.view.set_routes(routes);
    let built = world.build();
    for destination in ["198.18.0.1", "192.0.2.255"] {
        assert_eq!(built.forwarding.resolve(ip(destination)), Err(DropReason::NoRoute));
    }
}

#[test]
fn a_routes_own_mtu_makes_a_next_hop_of_its_own() {
    let mut world = World::new();
    let mut narrow = unicast("198.51.100.0/24", 0, vec![hop(10, Some("192.0.2.1"))]);
    narrow.mtu = Some(1280);
    let mut routes = world.view.routes.clone();
    routes.push(narrow);
    world.view.set_routes(routes);
    let built = world.build();
    assert_eq!(hop_to(&built, "198.51.100.1").mtu, 1280);
    assert_eq!(hop_to(&built, "203.0.113.9").mtu, 1500);
}

#[test]
fn a_pod_without_a_given_link_address_is_asked_for_it() {
    let mut world = World::new();
    world.endpoints[0].mac = None;
    let built = world.build();
    assert!(built.gateways.contains(&(12, ip("10.1.0.5"))));
    assert_eq!(hop_to(&built, "10.1.0.5").destination, None);
    know(&mut world.view, 12, "10.1.0.5", 5);
    assert_eq!(hop_to(&world.build(), "10.1.0.5").destination, Some(mac(5)));
}

#[test]
fn a_removed_port_leaves_next_hops_that_lead_nowhere_and_others_keep_their_numbers() {
    let mut world = World::new();
    let before = world.build();
    world.ports.retain(|port| port.port != POD);
    world.endpoints.clear();
    let after = world.build();
    assert_eq!(
        after.affected,
        Affected::Addresses([ip("10.1.0.5")].into()),
        "and no other's flows"
    );
    assert_eq!(
        before.forwarding.resolve(ip("203.0.113.9")),
        after.forwarding.resolve(ip("203.0.113.9"))
    );
    let Ok(Resolved::NextHop(old)) = before.forwarding.resolve(ip("10.1.0.5")) else {
        panic!("the pod had a way")
    };
    assert_eq!(after.forwarding.next_hop(old).unwrap().destination, None);
}

#[test]
fn numbers_of_the_dead_are_given_anew_only_when_there_is_no_room_and_affect_every_flow() {
    let mut world = World::new();
    let many = |from: usize| {
        (from..from + NEXT_HOPS_MAX - 100)
            .map(|number| (UPLINK, IpAddr::V4(u32::try_from(number).unwrap().into())))
            .collect()
    };
    world.asked = many(1 << 24);
    world.build();
    world.asked = many(2 << 24);
    let built = world.build();
    assert_eq!(built.affected, Affected::Everything);
    assert_eq!(built.left_out, 0);
    assert!(built.forwarding.next_hops.len() <= NEXT_HOPS_MAX);
    assert!(world.builder.next_hops_used() <= NEXT_HOPS_MAX);
}

/// Pods that come and go, each with another address, for as long as a node lives: they took a number each
/// until there were 32,768, and every table that was published was made of all of them.
#[test]
fn numbers_of_pods_that_are_gone_are_few_and_given_anew_to_the_concern_of_their_own_flows() {
    let mut world = World::new();
    let gateway_of = |built: &Built| built.forwarding.resolve(ip("203.0.113.9")).ok();
    let first = world.build();
    let [mut most, mut renumbered] = [0, 0];
    for pod in 0..4 * NEXT_HOPS_OF_GONE_PODS_MAX {
        let before = world.endpoints.clone();
        let address = IpAddr::V4((0x0a02_0000 + u32::try_from(pod).unwrap()).into());
        let endpoint = EndpointAddress { address, port: POD, mac: Some(mac(6)) };
        world.endpoints = vec![endpoint];
        let built = world.build();
        assert_eq!(hop_to(&built, &address.to_string()).neighbour, address);
        assert_eq!(gateway_of(&built), gateway_of(&first), "it keeps its number");
        most = most.max(built.forwarding.next_hops.len());
        let Affected::Addresses(whose) = &built.affected else { panic!("{:?}", built.affected) };
        assert!(whose.contains(&address) && whose.contains(&before[0].address));
        if built.renumbered {
            renumbered += 1;
            assert_eq!(whose.len(), NEXT_HOPS_OF_GONE_PODS_MAX + 2, "theirs, and of the newest");
        } else {
            assert_eq!(whose.len(), 2);
        }
    }
    assert!(most <= NEXT_HOPS_OF_GONE_PODS_MAX + 4, "{most}");
    assert_eq!(renumbered, 3);
}

/// A pod of ours that others reach by a route, too: its number may stand in anybody's flows.
#[test]
fn a_number_that_was_not_pods_alone_is_kept_until_there_is_no_room() {
    let mut world = World::new();
    let routes = || vec![unicast("0.0.0.0/0", 0, vec![hop(10, Some("192.0.2.1"))])];
    let routed = unicast("198.51.100.0/24", 0, vec![hop(12, Some("10.1.0.5"))]);
    world.view.set_routes([routes(), vec![routed]].concat());
    let built = world.build();
    let Ok(Resolved::NextHop(shared)) = built.forwarding.resolve(ip("198.51.100.1")) else {
        panic!("{:?}", built.forwarding.routes)
    };
    world.view.set_routes(routes());
    for pod in 0..2 * NEXT_HOPS_OF_GONE_PODS_MAX {
        let address = IpAddr::V4((0x0a02_0000 + u32::try_from(pod).unwrap()).into());
        world.endpoints = vec![EndpointAddress { address, port: POD, mac: Some(mac(6)) }];
        let built = world.build();
        assert_eq!(built.forwarding.next_hop(shared).unwrap().neighbour, ip("10.1.0.5"));
    }
}

#[test]
fn link_local_and_loopback_addresses_are_not_the_nodes() {
    let mut world = World::new();
    let all = [
        (1, "127.0.0.1"),
        (10, "fe80::1"),
        (13, "169.254.7.2"),
        (13, "fe80::7:2"),
        // On an interface that is no port, as a name server's on each node.
        (20, "169.254.20.10"),
    ];
    for (interface, address) in all {
        let own = InterfaceAddress {
            address: ip(address),
            prefix_length: 32,
            broadcast: None,
            usable: true,
        };
        world.view.apply(Change::Address(interface, own));
    }
    let forwarding = world.build().forwarding;
    assert_eq!(forwarding.node_addresses.len(), 1);
    // But it is the node that speaks from these by the host port.
    let mut spoken: Vec<IpAddr> = forwarding.link_addresses.keys().collect();
    spoken.sort_unstable();
    assert_eq!(spoken, ["169.254.7.2", "169.254.20.10", "fe80::7:2"].map(ip));
}
