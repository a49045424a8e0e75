//! Session affinity: one client's connections go to one backend, whichever worker they come by, while it
//! is usable and for the time after the last of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use dataplane::handoff::HandoffCause;
use dataplane::lb::{Choice, FrontendKind, ServiceId};
use dataplane::lpm::Prefix;
use dataplane::mailbox::{Command, FlushFilter};
use dataplane::time::Seconds;
use xskiff_tests::packet_builder::{FrameBuilder, read, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, pod_port, pod4, pod6};

const SERVICE: ServiceId = ServiceId(0);
const TIMEOUT: Seconds = Seconds(600);

/// A service of eight pods here, or of as many in the other family.
struct Case {
    client: &'static str,
    vip: &'static str,
    pods: fn(u8) -> IpAddr,
}

const CASES: [Case; 4] = [
    Case { client: "192.0.2.7", vip: "198.51.100.1", pods: pod4 },
    Case { client: "2001:db8::7", vip: "2001:db8:1::1", pods: pod6 },
    Case { client: "192.0.2.7", vip: "198.51.100.1", pods: pod6 },
    Case { client: "2001:db8::7", vip: "2001:db8:1::1", pods: pod4 },
];

fn backends(pods: fn(u8) -> IpAddr, which: impl IntoIterator<Item = u8>) -> Vec<(IpAddr, u16)> {
    which.into_iter().map(|n| (pods(n), 8080)).collect()
}

fn world(case: &Case) -> World {
    let all = backends(case.pods, 1..=8);
    World::with_pods(8)
        .with_service(FrontendKind::LoadBalancer, case.vip, 80, &all)
        .with_affinity(SERVICE, TIMEOUT)
}

fn end(address: &str, l4_port: u16) -> String {
    SocketAddr::new(address.parse().expect("an address"), l4_port).to_string()
}

fn packet(case: &Case, client: &str, l4_port: u16, protocol: u8) -> FrameBuilder {
    let (from, to) = (end(client, l4_port), end(case.vip, 80));
    if protocol == 6 { tcp(&from, &to, "S") } else { udp(&from, &to) }
}

/// Where a new connection goes that comes to this worker.
fn open(node: &mut Simulation, worker: usize, packet: &FrameBuilder) -> IpAddr {
    let out = node.pass_to(worker, UPLINK, &packet.build());
    assert_eq!(out.len(), 1, "{}", node.moved_counters());
    read(&out[0].1).expect("a well-formed frame").destination.ip()
}

#[test]
fn connections_of_a_client_go_to_one_backend_by_every_worker_and_protocol_of_a_port() {
    for case in &CASES {
        for workers in [1, 4] {
            let mut node = Simulation::new(workers, 4096, &world(case).tables());
            let mut used = BTreeMap::<IpAddr, u32>::new();
            for client in 1..40u8 {
                let client = match case.client.contains(':') {
                    true => format!("2001:db8::{client}"),
                    false => format!("192.0.2.{client}"),
                };
                let first = open(&mut node, 0, &packet(case, &client, 1000, 6));
                for l4_port in 1001..1012u16 {
                    let worker = usize::from(l4_port) % workers;
                    let protocol = if l4_port % 2 == 0 { 6 } else { 17 };
                    let packet = packet(case, &client, l4_port, protocol);
                    assert_eq!(open(&mut node, worker, &packet), first, "{client}:{l4_port}");
                }
                *used.entry(first).or_default() += 1;
            }
            assert!(used.len() >= 5, "clients are spread: {used:?}");
            assert_eq!(node.sum(|counters| counters.affinities_created.get()), 39);
            assert_eq!(node.sum(|counters| counters.affinities_refused.get()), 0);
            let handed = node.sum(|counters| counters.handed_for(HandoffCause::Affinity));
            assert_eq!(handed > 0, workers > 1);
            assert_eq!(node.flows().len(), 39 * 12, "what is remembered is no flow");
        }
    }
}

#[test]
fn client_stays_with_its_backend_while_others_come_and_go_and_moves_when_its_own_does() {
    for case in &CASES {
        let mut node = Simulation::new(3, 4096, &world(case).tables());
        let clients: Vec<String> = (1..30u8)
            .map(|n| {
                if case.client.contains(':') {
                    format!("2001:db8::{n}")
                } else {
                    format!("192.0.2.{n}")
                }
            })
            .collect();
        let mut at = BTreeMap::new();
        for client in &clients {
            at.insert(client.clone(), open(&mut node, 0, &packet(case, client, 1000, 6)));
        }
        // Half of the backends go; the hash alone would move nearly all others' clients.
        let left = backends(case.pods, [2, 4, 6, 8]);
        let fewer = world(case).with_backends_of(SERVICE, &left, &[]);
        node.publish(&fewer.tables());
        let usable = |ip: &IpAddr| left.iter().any(|one| one.0 == *ip);
        for (turn, client) in clients.iter().enumerate() {
            let before = at[client];
            let now = open(&mut node, turn % 3, &packet(case, client, 2000, 6));
            assert!(usable(&now));
            assert!(!usable(&before) || now == before, "{client} was moved without need");
            at.insert(client.clone(), now);
        }
        // They come back: whoever moved stays where it is now.
        node.publish(&world(case).tables());
        for client in &clients {
            assert_eq!(open(&mut node, 1, &packet(case, client, 3000, 6)), at[client]);
        }
    }
}

#[test]
fn each_new_connection_begins_the_time_anew_and_after_it_the_choice_is_free() {
    let case = &CASES[0];
    let mut node = Simulation::single(&world(case).tables());
    let other = |before: IpAddr| {
        backends(case.pods, 1..=8).into_iter().map(|one| one.0).find(|ip| *ip != before)
    };
    let before = open(&mut node, 0, &packet(case, case.client, 1000, 6));
    // A set from which the hash alone would choose another one.
    let alone = other(before).expect("another backend");
    let both = [before, alone].map(|ip| (ip, 8080));
    let mut both = both.to_vec();
    both.sort_unstable();
    node.publish(&world(case).with_backends_of(SERVICE, &both, &[]).tables());
    for round in 0..4u16 {
        node.wait(Duration::from_secs(500));
        let now = open(&mut node, 0, &packet(case, case.client, 1001 + round, 6));
        assert_eq!(now, before, "a connection each 500 s keeps what lasts for 600");
    }
    assert_eq!(node.sum(|counters| counters.affinities_created.get()), 1);
    node.wait(Duration::from_secs(601));
    open(&mut node, 0, &packet(case, case.client, 2000, 6));
    assert_eq!(node.sum(|counters| counters.affinities_created.get()), 2, "made anew");
}

#[test]
fn affinity_is_a_services_own_and_of_those_that_want_it() {
    let all = backends(pod4, 1..=8);
    let world = World::with_pods(8)
        .with_service(FrontendKind::LoadBalancer, "198.51.100.1", 80, &all)
        .with_service(FrontendKind::LoadBalancer, "198.51.100.2", 80, &all)
        .with_affinity(SERVICE, TIMEOUT);
    let mut node = Simulation::new(2, 4096, &world.tables());
    let plain = |node: &mut Simulation, l4_port: u16| {
        let packet = tcp(&end("192.0.2.7", l4_port), "198.51.100.2:80", "S");
        open(node, 0, &packet)
    };
    let used: std::collections::BTreeSet<IpAddr> =
        (1000..1100).map(|l4_port| plain(&mut node, l4_port)).collect();
    assert!(used.len() > 4, "{used:?}");
    assert_eq!(node.sum(|counters| counters.affinities_created.get()), 0);
    assert_eq!(node.sum(|counters| counters.handed_for(HandoffCause::Affinity)), 0);
}

/// The table doubles while clients come; each is known as before, until its time is over.
#[test]
fn clients_are_remembered_while_the_table_grows_and_forgotten_after_their_time() {
    const CLIENTS: u16 = 2000;
    for case in &CASES[..2] {
        let mut node = Simulation::growing(3, (256, 16_384), &world(case).tables());
        let capacity = |node: &Simulation| match case.client.contains(':') {
            true => node.flow_tables().v6.capacity(),
            false => node.flow_tables().v4.capacity(),
        };
        let before = capacity(&node);
        let client = |n: u16| match case.client.contains(':') {
            true => format!("2001:db8::2:{n}"),
            false => format!("100.64.{}.{}", n / 250, 1 + n % 250),
        };
        // Each other client comes again while the table grows.
        let mut at = BTreeMap::new();
        for n in 0..CLIENTS {
            let worker = usize::from(n) % 3;
            at.insert(n, open(&mut node, worker, &packet(case, &client(n), 1000, 6)));
            let again = open(&mut node, worker, &packet(case, &client(n / 2), 2000 + n, 17));
            assert_eq!(again, at[&(n / 2)], "{}", client(n / 2));
        }
        assert!(capacity(&node) >= 16 * before, "{} of {before}", capacity(&node));
        let created = |node: &Simulation| node.sum(|counters| counters.affinities_created.get());
        assert_eq!(created(&node), u64::from(CLIENTS));
        assert_eq!(node.sum(|counters| counters.affinities_refused.get()), 0);
        assert_eq!(node.sum(|counters| counters.flows_evicted.get()), 0);

        // By the hash alone half of them would go elsewhere now.
        let left = backends(case.pods, [2, 4, 6, 8]);
        node.publish(&world(case).with_backends_of(SERVICE, &left, &[]).tables());
        let stays = |ip: &IpAddr| left.iter().any(|one| one.0 == *ip);
        let staying: Vec<u16> = (0..CLIENTS).filter(|n| stays(&at[n])).collect();
        for n in &staying {
            let now = open(&mut node, usize::from(*n) % 3, &packet(case, &client(*n), 3000, 6));
            assert_eq!(now, at[n], "{}", client(*n));
        }
        assert_eq!(created(&node), u64::from(CLIENTS));
        node.wait(Duration::from_secs(601));
        let moved = staying
            .iter()
            .filter(|n| open(&mut node, 0, &packet(case, &client(**n), 4000, 6)) != at[n]);
        let moved = moved.count();
        assert!(4 * moved > staying.len(), "{moved} of {} choose anew", staying.len());
        assert_eq!(created(&node), u64::from(CLIENTS) + staying.len() as u64);
    }
}

#[test]
fn full_table_takes_no_more_and_the_choice_by_the_clients_address_remains() {
    let case = &CASES[0];
    let mut node = Simulation::new(1, 64, &world(case).tables());
    let mut chosen = BTreeMap::new();
    for client in 1..=200u8 {
        let client = format!("192.0.2.{client}");
        let out = node.pass(UPLINK, &packet(case, &client, 1000, 17).build());
        if let Some((_, frame)) = out.first() {
            chosen.insert(client, read(frame).expect("a frame").destination.ip());
        }
    }
    let given_up = node.sum(|counters| counters.evicted_short_lived.get());
    let refused = node.sum(|counters| counters.affinities_refused.get());
    assert!(given_up + refused > 0, "{}", node.moved_counters());
    node.wait(Duration::from_secs(700));
    for (client, before) in chosen {
        let now = open(&mut node, 0, &packet(case, &client, 2000, 17));
        assert_eq!(now, before, "of the same backends the same is chosen");
        node.wait(Duration::from_secs(40));
    }
}

#[test]
fn flush_of_a_gone_pod_forgets_what_led_to_it_and_gives_no_l4_port_back() {
    let case = &CASES[0];
    let mut node = Simulation::new(2, 4096, &world(case).tables());
    let before = open(&mut node, 0, &packet(case, case.client, 1000, 17));
    node.send(|| Command::Flush(FlushFilter::of_gone_pod(Prefix::host(before))));
    (0..400).for_each(|_| node.tick());
    assert!(node.flows().is_empty());
    open(&mut node, 0, &packet(case, case.client, 1001, 17));
    assert_eq!(node.sum(|counters| counters.affinities_created.get()), 2);
    assert_eq!(node.sum(|counters| counters.snat_l4_ports.most()), 0);
}

#[test]
fn a_service_that_chooses_by_chance_gives_one_tuple_several_backends() {
    let all = backends(pod4, 1..=8);
    let world = World::with_pods(8)
        .with_service(FrontendKind::ClusterIp, "10.2.0.1", 80, &all)
        .with_choice(SERVICE, Choice::Random);
    let mut node = Simulation::single(&world.tables());
    let mut used = BTreeMap::<IpAddr, u32>::new();
    for _ in 0..400 {
        node.now = node.now.after(Duration::from_micros(7));
        let (_, frame) = node.forward(pod_port(1), &udp("10.1.0.1:1000", "10.2.0.1:80").build());
        *used.entry(read(&frame).expect("a frame").destination.ip()).or_default() += 1;
        node.send(|| Command::Flush(FlushFilter::default()));
        (0..4).for_each(|_| node.tick());
    }
    assert_eq!(used.len(), 8, "{used:?}");
    assert!(used.values().all(|share| (20..90).contains(share)), "{used:?}");
}
