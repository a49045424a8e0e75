//! Flows to a service whose backend is gone, or serves no longer: TCP is reset once the pod is gone and
//! stays for as long as it is not, UDP is given another backend once its own does not serve.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dataplane::DropReason;
use dataplane::lb::{FrontendKind, ServiceId};
use dataplane::lpm::Prefix;
use dataplane::mailbox::{Command, FlushFilter};
use dataplane::port::PortId;
use xskiff_tests::packet_builder::{FrameBuilder, Seen, read, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, address, pod_port, pod4, pod6};

/// A service of pods elsewhere, in both families.
const REMOTE: [(&str, &str, &str, &str); 2] = [
    ("10.1.0.1:1000", "10.2.0.1:80", "10.1.9.9", "10.1.9.10"),
    ("[fd01::1]:1000", "[fd02::1]:80", "fd01::909", "fd01::910"),
];

fn seen(frame: &[u8]) -> Seen {
    read(frame).expect("a well-formed frame with right checksums")
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("socket address")
}

/// Pods 1 and 2 here, pods 11 and 12 elsewhere behind the service.
fn remote_world(vip: &str, backends: [&str; 2]) -> World {
    let all: Vec<(IpAddr, u16)> = backends.iter().map(|text| (address(text), 8080)).collect();
    World::with_pods(2)
        .with_service(FrontendKind::ClusterIp, at(vip).ip().to_string().as_str(), 80, &all)
        .with_pod_at(backends[0], Some((11, 0)))
        .with_pod_at(backends[1], Some((12, 0)))
}

/// The segment's answer, which must be a reset.
fn reset_of(node: &mut Simulation, port: PortId, segment: &FrameBuilder) -> Seen {
    let before = node.dropped(DropReason::BackendGone);
    let (back, frame) = node.forward(port, &segment.build());
    assert_eq!((back, node.dropped(DropReason::BackendGone)), (port, before + 1));
    let reset = seen(&frame);
    assert!(reset.tcp_flags & 4 != 0, "a reset: {reset:?}");
    reset
}

/// Opens a connection from pod 1; gives its backend.
fn connect(node: &mut Simulation, client: &str, vip: &str) -> SocketAddr {
    let (port, frame) = node.forward(pod_port(1), &tcp(client, vip, "S").build());
    let backend = seen(&frame).destination;
    node.forward(port, &tcp(&backend.to_string(), client, "SA").build());
    node.forward(pod_port(1), &tcp(client, vip, "A").build());
    backend
}

#[test]
fn connection_to_a_deleted_pod_is_reset_at_its_clients_next_segment() {
    for (client, vip, one, other) in REMOTE {
        let world = remote_world(vip, [one, other]);
        let mut node = Simulation::single(&world.tables());
        let backend = connect(&mut node, client, vip).ip().to_string();
        let world = world.with_pod_at(&backend, None).next_generation_for(&[&backend]);
        node.publish(&world.tables());
        // RFC 9293, 3.5.2: what the segment acknowledges is the number that its sender expects next.
        let data = tcp(client, vip, "PA").numbers(7000, 9000, 100).payload(b"hello");
        let reset = reset_of(&mut node, pod_port(1), &data);
        assert_eq!((reset.source, reset.destination), (at(vip), at(client)));
        assert_eq!((reset.tcp_flags, reset.sequence), (4, 9000), "nothing else is set");
        // Whatever was under way behind it, too; but never a reset of a reset.
        reset_of(&mut node, pod_port(1), &data);
        node.expect_drop(pod_port(1), &tcp(client, vip, "R").build(), DropReason::BackendGone);
        assert_eq!(node.sum(|counters| counters.flows_reset.get()), 1);
    }
}

#[test]
fn connection_whose_backends_address_another_pod_has_is_reset_both_ways() {
    for (client, vip, one, other) in REMOTE {
        let world = remote_world(vip, [one, other]);
        let mut node = Simulation::single(&world.tables());
        let backend = connect(&mut node, client, vip);
        let ip = backend.ip().to_string();
        let world = world.with_pod_at(&ip, Some((11, 1))).next_generation_for(&[&ip]);
        node.publish(&world.tables());
        let stale = tcp(&backend.to_string(), client, "A").numbers(1, 500, 9);
        let reset = reset_of(&mut node, UPLINK, &stale);
        assert_eq!((reset.source, reset.destination), (at(client), backend));
        assert_eq!(reset.sequence, 500);
        reset_of(&mut node, pod_port(1), &tcp(client, vip, "A"));
    }
}

#[test]
fn connection_stays_while_its_pod_is_merely_unready_or_in_no_slice() {
    for (client, vip, one, other) in REMOTE {
        let world = remote_world(vip, [one, other]);
        let mut node = Simulation::single(&world.tables());
        let backend = connect(&mut node, client, vip);
        // The service has the other one alone, and everything is judged again.
        let left = if backend.ip() == address(one) { other } else { one };
        let world = world
            .with_backends_of(ServiceId(0), &[(address(left), 8080)], &[])
            .next_generation_for(&[one, other]);
        node.publish(&world.tables());
        let (_, frame) = node.forward(pod_port(1), &tcp(client, vip, "A").build());
        assert_eq!(seen(&frame).destination, backend);
        let (port, _) = node.forward(UPLINK, &tcp(&backend.to_string(), client, "A").build());
        assert_eq!((port, node.dropped(DropReason::BackendGone)), (pod_port(1), 0));
    }
}

#[test]
fn backend_that_is_no_pod_is_never_gone() {
    let (client, vip) = ("10.1.0.1:1000", "10.2.0.1:80");
    let backends = [(address("192.0.2.9"), 8080)];
    let world =
        World::with_pods(1).with_service(FrontendKind::ClusterIp, "10.2.0.1", 80, &backends);
    let mut node = Simulation::single(&world.tables());
    let (_, frame) = node.forward(pod_port(1), &tcp(client, vip, "S").build());
    let outside = seen(&frame);
    let world = world.with_backends_of(ServiceId(0), &[], &[]).next_generation_for(&["192.0.2.9"]);
    node.publish(&world.tables());
    let reply = tcp("192.0.2.9:8080", &outside.source.to_string(), "SA").build();
    assert_eq!(node.forward(UPLINK, &reply).0, pod_port(1));
    let (_, frame) = node.forward(pod_port(1), &tcp(client, vip, "A").build());
    assert_eq!(seen(&frame).destination, at("192.0.2.9:8080"));
}

#[test]
fn nothing_is_gone_while_no_pod_was_told_of() {
    let (client, vip, one, other) = REMOTE[0];
    let world = remote_world(vip, [one, other]);
    let mut node = Simulation::single(&world.tables());
    let backend = connect(&mut node, client, vip);
    let world = world.without_pods_told().next_generation();
    node.publish(&world.tables());
    let (_, frame) = node.forward(pod_port(1), &tcp(client, vip, "A").build());
    assert_eq!(seen(&frame).destination, backend);
}

#[test]
fn reset_connection_can_be_followed_by_another_from_the_same_port() {
    let (client, vip, one, other) = REMOTE[0];
    for first in ["A", "S"] {
        let world = remote_world(vip, [one, other]);
        let mut node = Simulation::single(&world.tables());
        let backend = connect(&mut node, client, vip).ip().to_string();
        let left = if backend == one { other } else { one };
        let world = world
            .with_pod_at(&backend, None)
            .with_backends_of(ServiceId(0), &[(address(left), 8080)], &[])
            .next_generation_for(&[&backend]);
        node.publish(&world.tables());
        if first == "A" {
            reset_of(&mut node, pod_port(1), &tcp(client, vip, "A"));
        }
        let (_, frame) = node.forward(pod_port(1), &tcp(client, vip, "S").build());
        assert_eq!(seen(&frame).destination.ip(), address(left), "a new connection, after {first}");
    }
}

#[test]
fn nobody_resets_anothers_connection_by_pretending_to_be_its_end() {
    let (client, vip, one, other) = REMOTE[0];
    let world = remote_world(vip, [one, other]);
    let mut node = Simulation::single(&world.tables());
    let backend = connect(&mut node, client, vip).ip().to_string();
    let world = world.with_pod_at(&backend, None).next_generation_for(&[&backend]);
    node.publish(&world.tables());
    let forged = tcp(client, vip, "A").build();
    node.expect_drop(pod_port(2), &forged, DropReason::Spoofed);
    node.expect_drop(UPLINK, &forged, DropReason::LocalAddressFromUplink);
    assert_eq!(node.sum(|counters| counters.flows_reset.get()), 0);
}

/// Pods 2 and 3 here behind a node port, with a client outside.
#[test]
fn connection_to_a_pod_that_left_this_node_is_reset_and_its_charge_given_back() {
    for (outside, vip, pods) in [
        ("192.0.2.7:999", "10.0.0.1:30080", [pod4(2), pod4(3)]),
        ("[2001:db8::7]:999", "[fd00::1]:30080", [pod6(2), pod6(3)]),
    ] {
        let backends = pods.map(|pod| (pod, 8080));
        let world = World::with_pods(3).with_service(FrontendKind::NodePort, "", 30_080, &backends);
        let mut node = Simulation::new(2, 4096, &world.tables());
        let (port, frame) = node.forward(UPLINK, &tcp(outside, vip, "S").build());
        let backend = seen(&frame).destination;
        node.forward(port, &tcp(&backend.to_string(), outside, "SA").build());
        node.forward(UPLINK, &tcp(outside, vip, "A").build());
        // A flow that its pod opened by itself ends as ever.
        let own = udp(&SocketAddr::new(backend.ip(), 5).to_string(), outside).build();
        node.forward(port, &own);
        assert_eq!((node.flows().len(), node.flow_tables().charges.flows(port)), (2, 2));

        // The pod's port goes, and its flows; its Pod object is there for a moment yet.
        let world = world.without_endpoint(backend.ip());
        let world = world.next_generation_for(&[&backend.ip().to_string()]);
        node.publish(&world.tables());
        let prefix = Prefix::host(backend.ip());
        node.send(|| Command::Flush(FlushFilter::of_gone_pod(prefix)));
        (0..400).for_each(|_| node.tick());
        assert_eq!((node.flows().len(), node.flow_tables().charges.flows(port)), (1, 0));

        let segment = tcp(outside, vip, "A").numbers(5, 77, 1);
        for worker in [0, 1] {
            let out = node.pass_to(worker, UPLINK, &segment.build());
            let reset = seen(&out.first().expect("an answer").1);
            assert_eq!((reset.tcp_flags, reset.sequence), (4, 77));
            assert_eq!((reset.source, reset.destination), (at(vip), at(outside)));
        }
    }
}

#[test]
fn udp_is_given_another_backend_once_its_own_serves_no_longer() {
    for (client, vip, one, other) in REMOTE {
        for workers in [1, 3] {
            let world = remote_world(vip, [one, other]);
            let mut node = Simulation::new(workers, 4096, &world.tables());
            let request = udp(client, vip).build();
            let backend = seen(&node.forward(pod_port(1), &request).1).destination;
            let reply = udp(&backend.to_string(), client).build();
            node.forward(UPLINK, &reply);

            // It ends, and serves on: its flows are left to it.
            let left = if backend.ip() == address(one) { other } else { one };
            let both = [(address(left), 8080)];
            let ending = world.with_backends_of(ServiceId(0), &both, &[(backend.ip(), 8080)]);
            let ending = ending.next_generation_for(&[one, other]);
            node.publish(&ending.tables());
            for _ in 0..3 {
                assert_eq!(seen(&node.forward(pod_port(1), &request).1).destination, backend);
            }
            let fresh = udp(&client.replace("1000", "1001"), vip).build();
            let chosen = seen(&node.forward(pod_port(1), &fresh).1).destination;
            assert_eq!(chosen.ip(), address(left), "new flows go elsewhere");

            let ended = ending.with_backends_of(ServiceId(0), &both, &[]);
            let ended = ended.next_generation_for(&[&backend.ip().to_string()]);
            node.publish(&ended.tables());
            // A late answer still comes to its client, and changes nothing.
            assert_eq!(node.forward(UPLINK, &reply).0, pod_port(1));
            for _ in 0..3 {
                let (_, frame) = node.forward(pod_port(1), &request);
                assert_eq!(seen(&frame).destination.ip(), address(left));
            }
            assert_eq!(node.sum(|counters| counters.flows_chosen_anew.get()), 1);
            let reply = udp(&format!("{}", SocketAddr::new(address(left), 8080)), client).build();
            let (port, frame) = node.forward(UPLINK, &reply);
            assert_eq!((port, seen(&frame).source), (pod_port(1), at(vip)));
        }
    }
}

/// A client that asked before the Service was there (a name server's, a collector's) and never fell silent
/// went past it for good.
#[test]
fn udp_that_went_past_a_frontend_is_served_by_it_once_it_has_a_backend() {
    for (client, vip, one, other) in REMOTE {
        let world = remote_world(vip, [one, other]);
        let nobody = world.clone().without_services();
        let mut node = Simulation::single(&nobody.tables());
        let (request, segment) = (udp(client, vip).build(), tcp(client, vip, "S").build());
        for frame in [&request, &segment] {
            assert_eq!(seen(&node.forward(pod_port(1), frame).1).destination, at(vip));
        }
        // Beside it, by another port and address.
        let stranger = udp(client, &vip.replace(":80", ":81")).build();
        let passing = seen(&node.forward(pod_port(1), &stranger).1).destination;

        let address = at(vip).ip().to_string();
        let empty = world.clone().with_backends_of(ServiceId(0), &[], &[]);
        node.publish(&empty.next_generation_for(&[&address]).tables());
        assert_eq!(seen(&node.forward(pod_port(1), &request).1).destination, at(vip));
        let served = world.next_generation().next_generation_for(&[&address]);
        node.publish(&served.tables());
        for _ in 0..2 {
            let to = seen(&node.forward(pod_port(1), &request).1).destination;
            assert!([one, other].contains(&to.ip().to_string().as_str()), "{to}");
        }
        assert_eq!(node.sum(|counters| counters.flows_chosen_anew.get()), 1);
        let again = tcp(client, vip, "S").build();
        assert_eq!(seen(&node.forward(pod_port(1), &again).1).destination, at(vip), "TCP stays");
        assert_eq!(passing.port(), 81);
    }
}

#[test]
fn udp_flows_of_a_service_that_is_gone_are_left_to_their_end() {
    let (client, vip, one, other) = REMOTE[0];
    let world = remote_world(vip, [one, other]);
    let mut node = Simulation::single(&world.tables());
    let request = udp(client, vip).build();
    let backend = seen(&node.forward(pod_port(1), &request).1).destination;
    node.publish(&world.without_services().next_generation_for(&[one, other]).tables());
    assert_eq!(seen(&node.forward(pod_port(1), &request).1).destination, backend);
}

#[test]
fn ten_thousand_connections_to_one_backend_are_all_reset_in_time() {
    let (_, vip, one, other) = REMOTE[0];
    let world = remote_world(vip, [one, other]).with_backends_of(
        ServiceId(0),
        &[(address(one), 8080)],
        &[],
    );
    let mut node = Simulation::new(1, 30_000, &world.tables());
    let client = |number: u16| format!("10.1.0.1:{}", 10_000 + number);
    for number in 0..20_000 {
        node.deliver(0, pod_port(1), &tcp(&client(number), vip, "S").build());
        if number % 200 == 0 {
            node.settle();
        }
    }
    node.settle();
    assert_eq!(node.take_outgoing().len(), 20_000);
    let world = world.with_pod_at(one, None).next_generation_for(&[one]);
    node.publish(&world.tables());
    let mut reset = 0;
    for _ in 0..3 {
        for number in 0..20_000 {
            node.deliver(0, pod_port(1), &tcp(&client(number), vip, "A").build());
            if number % 200 == 0 {
                node.settle();
            }
        }
        node.settle();
        reset += node.take_outgoing().len();
        node.now = node.now.after(std::time::Duration::from_secs(1));
    }
    assert_eq!(reset, 30_000, "ten thousand a second, at most");
    assert_eq!(node.sum(|counters| counters.flows_reset.get()), 20_000);
    assert_eq!(node.sum(|counters| counters.replies_suppressed.get()), 30_000);
}

#[test]
fn a_service_serves_by_its_backends_and_by_those_that_linger() {
    let world = remote_world("10.2.0.1:80", ["10.1.9.9", "10.1.9.10"]).with_backends_of(
        ServiceId(0),
        &[(address("10.1.9.9"), 8080)],
        &[(address("10.1.9.10"), 8080)],
    );
    let tables = world.tables();
    let service = Arc::clone(tables.services.get(ServiceId(0)).expect("the service"));
    for (text, l4_port, serves) in
        [("10.1.9.9", 8080, true), ("10.1.9.10", 8080, true), ("10.1.9.9", 8081, false)]
    {
        assert_eq!(service.serves_by((address(text), l4_port)), serves, "{text}:{l4_port}");
    }
}
