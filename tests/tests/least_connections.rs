//! Services that choose by the number of connections: after any history each backend's count is that of
//! its flows, and what chooses by it evens them out.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use dataplane::connections::Connections;
use dataplane::conntrack::FlowState;
use dataplane::lb::{Choice, FrontendKind, ServiceId};
use dataplane::lpm::Prefix;
use dataplane::mailbox::{Command, FlushFilter};
use xskiff_tests::packet_builder::{FrameBuilder, read, tcp, udp};
use xskiff_tests::random::Random;
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, pod_port, pod4, pod6};

const SERVICE: ServiceId = ServiceId(0);
const PODS: u8 = 6;
const WORKERS: usize = 3;
/// Longer than a round of the sweep.
const ROUND: Duration = Duration::from_secs(9);

#[derive(Clone, Copy)]
struct Case {
    client: &'static str,
    vip: &'static str,
    pods: fn(u8) -> IpAddr,
}

const CASES: [Case; 3] = [
    Case { client: "192.0.2.7", vip: "198.51.100.1", pods: pod4 },
    Case { client: "2001:db8::7", vip: "2001:db8:1::1", pods: pod6 },
    Case { client: "192.0.2.7", vip: "198.51.100.1", pods: pod6 },
];

fn world(case: &Case, process: u16) -> World {
    let all: Vec<(IpAddr, u16)> = (1..=PODS).map(|n| ((case.pods)(n), 8080)).collect();
    World::with_pods(PODS)
        .with_service(FrontendKind::LoadBalancer, case.vip, 80, &all)
        .with_choice(SERVICE, Choice::LeastConnections)
        // The same backends by another service, whose flows are not counted.
        .with_service(FrontendKind::LoadBalancer, case.vip, 81, &all)
        .with_connections_counted_by(process, WORKERS)
}

fn connections(world: &World) -> std::sync::Arc<Connections> {
    world.tables().connections.clone().expect("they are counted")
}

fn end(address: &str, l4_port: u16) -> String {
    SocketAddr::new(address.parse().expect("an address"), l4_port).to_string()
}

/// Flows to the service that are not over, by backend.
fn living(node: &Simulation) -> BTreeMap<IpAddr, u32> {
    let mut counts = BTreeMap::new();
    for flow in node.flows() {
        if flow.origin.service == Some(SERVICE) && flow.life.state() < FlowState::TimeWait {
            *counts.entry(flow.reply.source()).or_default() += 1;
        }
    }
    counts
}

/// What is over is given back by the sweep's next round, and the next thing may be over meanwhile.
#[track_caller]
fn check(node: &mut Simulation, world: &World, case: &Case, when: &str) {
    let mut counted = BTreeMap::new();
    for _ in 0..6 {
        node.wait(ROUND);
        let all =
            (1..=PODS).map(|n| ((case.pods)(n), connections(world).of(((case.pods)(n), 8080))));
        counted = all.filter(|(_, count)| *count > 0).collect();
        if counted == living(node) {
            return;
        }
    }
    panic!("{when}: counted are {counted:?}, there are {:?}", living(node));
}

/// A client that plays at random.
struct Player {
    random: Random,
    case: Case,
    /// Open TCP connections with their backends, as the client sees them.
    open: Vec<(u16, SocketAddr)>,
    next: u16,
}

impl Player {
    fn packet(&self, l4_port: u16, flags: &str) -> FrameBuilder {
        tcp(&end(self.case.client, l4_port), &end(self.case.vip, 80), flags)
    }

    fn send(&mut self, node: &mut Simulation, frame: &FrameBuilder) -> Option<SocketAddr> {
        let worker = self.random.below(WORKERS);
        let out = node.pass_to(worker, UPLINK, &frame.build());
        out.first().map(|(_, frame)| read(frame).expect("a frame").destination)
    }

    fn turn(&mut self, node: &mut Simulation) {
        self.next += 1;
        let l4_port = 1000 + self.next;
        match self.random.below(8) {
            0..=2 => {
                let syn = self.packet(l4_port, "S");
                if let Some(backend) = self.send(node, &syn) {
                    self.open.push((l4_port, backend));
                }
            }
            3 => {
                let to = self.random.pick(&[80, 81]);
                let datagram = udp(&end(self.case.client, l4_port), &end(self.case.vip, *to));
                self.send(node, &datagram);
            }
            4 | 5 if !self.open.is_empty() => {
                let place = self.random.below(self.open.len());
                let (l4_port, _) = self.open.swap_remove(place);
                let flags: &&str = self.random.pick(&["R", "FA", "RA"]);
                let last = self.packet(l4_port, flags);
                self.send(node, &last);
            }
            6 => {
                let seconds = self.random.below(20) as u64;
                node.wait(Duration::from_secs(seconds));
            }
            _ => {
                // Somebody else's, which is not counted.
                let other = tcp(&end(self.case.client, l4_port), &end(self.case.vip, 81), "S");
                self.send(node, &other);
            }
        }
    }
}

#[test]
fn counts_are_those_of_living_flows_after_any_history_and_none_when_all_have_ended() {
    for seed in 0..6u64 {
        let case = CASES[usize::try_from(seed).expect("small") % CASES.len()];
        // Small ones are full at times, so that flows are evicted; others grow.
        let world = world(&case, 1);
        let mut node = match seed {
            0..=2 => Simulation::new(WORKERS, 64, &world.tables()),
            _ => Simulation::growing(WORKERS, (64, 4096), &world.tables()),
        };
        let mut player = Player { random: Random::new(seed), case, open: Vec::new(), next: 0 };
        for round in 0..12 {
            (0..60).for_each(|_| player.turn(&mut node));
            check(&mut node, &world, &case, &format!("seed {seed}, round {round}"));
            if round == 6 {
                let gone = Prefix::host((case.pods)(2));
                node.send(|| {
                    Command::Flush(FlushFilter { address: Some(gone), ..FlushFilter::default() })
                });
                (0..400).for_each(|_| node.tick());
                check(&mut node, &world, &case, &format!("seed {seed}, after a flush"));
            }
        }
        assert!(!living(&node).is_empty(), "seed {seed}");
        if seed < 3 {
            assert!(node.sum(|counters| counters.flows_evicted.get()) > 0, "seed {seed}");
        }
        node.send(|| Command::Flush(FlushFilter::default()));
        (0..400).for_each(|_| node.tick());
        check(&mut node, &world, &case, &format!("seed {seed}, at last"));
        assert!(node.flows().is_empty());
        for n in 1..=PODS {
            assert_eq!(connections(&world).of(((case.pods)(n), 8080)), 0, "seed {seed}");
        }
    }
}

/// Entries as another process finds them: marked as counted, by a process that is no more.
#[test]
fn the_next_process_counts_again_what_it_finds() {
    for case in &CASES {
        let before = world(case, 4);
        let mut node = Simulation::new(WORKERS, 4096, &before.tables());
        let mut player = Player { random: Random::new(9), case: *case, open: Vec::new(), next: 0 };
        (0..200).for_each(|_| player.turn(&mut node));
        check(&mut node, &before, case, "before");
        let found = living(&node);
        assert!(found.values().sum::<u32>() > 10, "{found:?}");
        let after = world(case, 5);
        node.publish(&after.tables());
        check(&mut node, &after, case, "after");
        (0..200).for_each(|_| player.turn(&mut node));
        check(&mut node, &after, case, "later");
        node.send(|| Command::Flush(FlushFilter::default()));
        (0..400).for_each(|_| node.tick());
        check(&mut node, &after, case, "at last");
        assert!((1..=PODS).all(|n| connections(&after).of(((case.pods)(n), 8080)) == 0));
    }
}

/// Anybody can forge a reset; a connection on which both ends go on was not reset.
#[test]
fn a_connection_that_was_reset_in_vain_is_counted_again_and_one_that_is_denied_is_not() {
    for case in &CASES[..2] {
        let world = world(case, 1);
        let mut node = Simulation::new(WORKERS, 4096, &world.tables());
        let client = end(case.client, 1000);
        let from_client = |flags| tcp(&client, &end(case.vip, 80), flags).build();
        let syn = node.pass(UPLINK, &from_client("S"));
        let backend = read(&syn[0].1).expect("a frame").destination;
        let number = (1..=PODS).find(|n| (case.pods)(*n) == backend.ip()).expect("a pod");
        let from_pod = |flags| tcp(&backend.to_string(), &client, flags).build();
        let of = || connections(&world).of((backend.ip(), backend.port()));
        node.pass(pod_port(number), &from_pod("SA"));
        node.pass(UPLINK, &from_client("A"));
        assert_eq!(of(), 1);
        for _ in 0..3 {
            node.pass(UPLINK, &from_client("R"));
            node.wait(Duration::from_secs(9));
            assert_eq!(of(), 0, "it is over, for all that is known");
            node.pass(pod_port(number), &from_pod("A"));
            node.pass(UPLINK, &from_client("A"));
            node.wait(ROUND);
            assert_eq!(of(), 1);
            assert_eq!(living(&node).values().sum::<u32>(), 1);
        }
        // Policy's change denies it; its entry stays for what both ends go on to send.
        let others = if number == 1 { 2 } else { 1 };
        let closed = world.clone().with_ingress_only_from(number, &[others], 8080..=8080);
        let closed = closed.next_generation();
        node.publish(&closed.tables());
        node.pass(UPLINK, &from_client("A"));
        node.wait(ROUND);
        assert_eq!((of(), node.sum(|counters| counters.flows_created.get())), (0, 1));
        node.publish(&world.clone().next_generation().next_generation().tables());
        node.pass(UPLINK, &from_client("A"));
        node.wait(ROUND);
        assert_eq!((of(), node.sum(|counters| counters.flows_created.get())), (1, 1));
    }
}

#[test]
fn a_backend_that_has_more_gets_fewer_until_all_have_alike() {
    let case = &CASES[0];
    let of = |which: &[u8]| -> Vec<(IpAddr, u16)> {
        which.iter().map(|n| ((case.pods)(*n), 8080)).collect()
    };
    let all = world(case, 1);
    let two = all.clone().with_backends_of(SERVICE, &of(&[1, 2]), &[]);
    let mut node = Simulation::new(WORKERS, 16_384, &two.tables());
    let open = |node: &mut Simulation, l4_port: u16| {
        let packet = tcp(&end(case.client, l4_port), &end(case.vip, 80), "S");
        let client = end(case.client, l4_port);
        let out = node.pass_to(usize::from(l4_port) % WORKERS, UPLINK, &packet.build());
        let to = read(&out[0].1).expect("a frame").destination;
        let port = pod_port(
            to.ip().to_string().rsplit('.').next().and_then(|n| n.parse().ok()).expect("a pod"),
        );
        node.pass(port, &tcp(&to.to_string(), &client, "SA").build());
        node.pass(UPLINK, &tcp(&client, &end(case.vip, 80), "A").build());
    };
    (0..600).for_each(|n| open(&mut node, 1000 + n));
    let counted = |n: u8| connections(&all).of(((case.pods)(n), 8080));
    assert!((270..=330).contains(&counted(1)), "{}", counted(1));
    // Four more come, which have none; chance alone would leave the two 200 ahead.
    node.publish(&all.tables());
    (0..1200).for_each(|n| open(&mut node, 2000 + n));
    let counts: Vec<u32> = (1..=PODS).map(counted).collect();
    assert_eq!(counts.iter().sum::<u32>(), 1800);
    assert!(counts.iter().all(|count| (260..=380).contains(count)), "{counts:?}");
}
