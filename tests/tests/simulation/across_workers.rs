//! Packets that land on any worker, whoever owns their flows: none is lost, and each way between
//! workers is counted, as predicted packet by packet.

use std::net::SocketAddr;
use std::time::Duration;

use dataplane::DropReason;
use dataplane::flow_key::FlowKey;
use dataplane::flows::{TableKey, owner_of};
use dataplane::handoff::{HandoffCause, VECTORS_MAX};
use dataplane::lb::FrontendKind;
use dataplane::nat::Mapping;
use dataplane::packet::Packet;
use dataplane::port::PortId;
use flow_table::Table;
use xskiff_tests::packet_builder::{FrameBuilder, icmp_error, read, tcp, udp};
use xskiff_tests::random::Random;
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, address, pod_port, pod4, pod6};

/// How packets are dealt out to queues, which each worker has some of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spread {
    /// Each packet at random, as if the sender's hash changed all the time.
    Any,
    /// Requests by the first, replies by the last: receive-side scaling that is not symmetric.
    Asymmetric,
    /// All by one queue: none at all.
    OneQueue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Request,
    Reply,
}

/// What counters must say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Expected {
    packets: u64,
    misses: u64,
    foreign: u64,
}

struct Run {
    node: Simulation,
    random: Random,
    workers: usize,
    queues: usize,
    spread: Spread,
    expected: Expected,
}

/// One talk of a client by its port, with what the other side sees of it.
struct Talk {
    from: SocketAddr,
    to: SocketAddr,
    port: PortId,
    by_tcp: bool,
    seen: Option<(SocketAddr, SocketAddr, PortId)>,
}

fn world() -> World {
    World::with_pods(3)
        .with_service(FrontendKind::ClusterIp, "10.2.0.1", 80, &[(pod4(2), 8080), (pod4(3), 8080)])
        .with_service(FrontendKind::ClusterIp, "fd02::1", 80, &[(pod6(2), 8080), (pod6(3), 8080)])
        .with_service(FrontendKind::NodePort, "", 30_080, &[(pod4(2), 8080), (pod4(1), 8080)])
        .with_snat_rule(&["10.1.0.3/32"], &[], &["198.51.100.40"])
}

/// A talk of each kind for each number: direct, translated at one end or at both, of both families.
fn talks(number: u16) -> Vec<Talk> {
    let by_tcp = number.is_multiple_of(2);
    let one = |from: String, to: &str, port| Talk {
        from: from.parse().expect("an end point"),
        to: to.parse().expect("an end point"),
        port,
        by_tcp,
        seen: None,
    };
    let own = 1024 + number;
    vec![
        one(format!("10.1.0.1:{own}"), "10.1.0.2:9000", pod_port(1)),
        one(format!("10.1.0.1:{own}"), "10.2.0.1:80", pod_port(1)),
        one(format!("10.1.0.2:{own}"), "192.0.2.7:443", pod_port(2)),
        one(format!("10.1.0.3:{own}"), "192.0.2.7:443", pod_port(3)),
        one(format!("192.0.2.9:{own}"), "10.0.0.1:30080", UPLINK),
        one(format!("[fd01::1]:{own}"), "[fd01::3]:9000", pod_port(1)),
        one(format!("[fd01::1]:{own}"), "[fd02::1]:80", pod_port(1)),
        one(format!("[fd01::2]:{own}"), "[2001:db8::7]:443", pod_port(2)),
    ]
}

fn frame(by_tcp: bool, (from, to): (SocketAddr, SocketAddr), flags: &str) -> FrameBuilder {
    let (from, to) = (from.to_string(), to.to_string());
    if by_tcp { tcp(&from, &to, flags) } else { udp(&from, &to) }
}

/// Whose the flow of this tuple is, if there is one, and the owner of its hash.
fn whose(node: &Simulation, key: &FlowKey, workers: usize) -> (Option<usize>, usize) {
    fn of<K: TableKey<W>, const W: usize>(table: &Table<W>, key: &K, hash: u64) -> Option<usize> {
        table.holder(table.lookup(hash, key)?.handle)
    }
    let flows = node.flow_tables();
    let (holder, hash) = match key {
        FlowKey::V4(key) => {
            let hash = key.hash(&flows.hasher);
            (of(&flows.v4, key, hash), hash)
        }
        FlowKey::V6(key) => {
            let hash = key.hash(&flows.hasher);
            (of(&flows.v6, key, hash), hash)
        }
    };
    (holder, owner_of(hash, workers))
}

fn key_of(frame: &[u8]) -> FlowKey {
    Packet::parse(frame, frame.len()).expect("a whole packet").flow_key()
}

impl Run {
    fn new(workers: usize, queues: usize, spread: Spread, world: &World) -> Self {
        Self {
            node: Simulation::new(workers, 8192, &world.tables()),
            random: Random::new(u64::try_from(workers * 100 + queues).expect("small")),
            workers,
            queues,
            spread,
            expected: Expected::default(),
        }
    }

    fn worker(&mut self, way: Way) -> usize {
        let queue = match (self.spread, way) {
            (Spread::Any, _) => self.random.below(self.queues),
            (Spread::Asymmetric, Way::Reply) => self.queues - 1,
            (Spread::Asymmetric, Way::Request) | (Spread::OneQueue, _) => 0,
        };
        queue % self.workers
    }

    /// Delivers a frame to some worker, and notes what that must lead to.
    fn deliver(&mut self, way: Way, port: PortId, frame: &[u8]) {
        let worker = self.worker(way);
        let (holder, owner) = whose(&self.node, &key_of(frame), self.workers);
        self.expected.packets += 1;
        match holder {
            Some(holder) => self.expected.foreign += u64::from(holder != worker),
            None => self.expected.misses += u64::from(owner != worker),
        }
        self.node.deliver(worker, port, frame);
    }

    fn pass(&mut self, way: Way, port: PortId, frame: &[u8]) -> (PortId, Vec<u8>) {
        self.deliver(way, port, frame);
        self.node.settle();
        let mut out = self.node.take_outgoing();
        assert_eq!(out.len(), 1, "a packet is lost:\n{}", self.node.moved_counters());
        out.remove(0)
    }

    /// A request and its reply; each comes out where and as it must.
    fn round(&mut self, talk: &mut Talk, flags: [&str; 2]) {
        let request = frame(talk.by_tcp, (talk.from, talk.to), flags[0]).build();
        let (port, out) = self.pass(Way::Request, talk.port, &request);
        let seen = read(&out).expect("well-formed");
        let here = (seen.source, seen.destination, port);
        assert_eq!(*talk.seen.get_or_insert(here), here, "its translation has changed");
        let reply = frame(talk.by_tcp, (seen.destination, seen.source), flags[1]).build();
        let (port, back) = self.pass(Way::Reply, port, &reply);
        let back = read(&back).expect("well-formed");
        assert_eq!((port, back.source, back.destination), (talk.port, talk.to, talk.from));
    }

    /// Nothing was lost, and every packet that did not stay where it came was counted.
    fn assert_counted(&self) {
        let foreign = self.node.sum(|counters| counters.foreign_hits.get());
        assert_eq!(foreign, self.expected.foreign, "{}", self.node.moved_counters());
        self.assert_nothing_lost();
    }

    /// The same but for what full bursts only estimate.
    fn assert_nothing_lost(&self) {
        let node = &self.node;
        let sum = |cause| node.sum(|counters| counters.handed_for(cause));
        let expected = &self.expected;
        let counted = Expected {
            packets: node.sum(|counters| counters.transmitted.get()),
            misses: sum(HandoffCause::Miss),
            foreign: expected.foreign,
        };
        assert_eq!(counted, *expected, "{:?}:\n{}", self.spread, node.moved_counters());
        assert_eq!(node.sum(|counters| counters.received.get()), expected.packets);
        assert_eq!(node.sum(|counters| counters.dropped_total()), 0);
        assert_eq!(node.sum(|counters| counters.handed_in.get()), expected.misses);
        for cause in [HandoffCause::Mapping, HandoffCause::Holder, HandoffCause::Fragment] {
            assert_eq!(sum(cause), 0, "{}", cause.label());
        }
        for worker in 0..self.workers {
            let own = node.counters(worker);
            let finished = own.received.get() + own.handed_in.get() - own.handed_out.get();
            assert_eq!(own.transmitted.get(), finished, "worker {worker}");
        }
        let elsewhere = node.sum(|counters| counters.flows_with_alias_elsewhere.get());
        assert_eq!(elsewhere > 0, self.workers > 1, "translated flows' replies");
        assert_eq!(node.sum(|counters| counters.flows_opened_for_others.get()), 0);
    }
}

#[test]
fn packets_on_any_workers_queue_are_finished_or_handed_on_and_counted_once() {
    for workers in 1..=8 {
        for (queues, spread) in [
            (workers, Spread::Any),
            (1, Spread::Any),
            (3, Spread::Any),
            (16, Spread::Any),
            (workers, Spread::Asymmetric),
            (workers, Spread::OneQueue),
        ] {
            let mut run = Run::new(workers, queues, spread, &world());
            for number in 0..24 {
                for mut talk in talks(number) {
                    run.round(&mut talk, ["S", "SA"]);
                    for _ in 0..3 {
                        run.round(&mut talk, ["PA", "PA"]);
                    }
                }
            }
            run.assert_counted();
            let expected = &run.expected;
            assert_eq!(expected.packets, 24 * 8 * 8);
            let has_others = workers > 1;
            assert_eq!(expected.misses > 0, has_others);
            assert_eq!(expected.foreign > 0, has_others, "{workers} workers, {spread:?}");
        }
    }
}

/// As fast as they come: many of a burst are others', in both families.
#[test]
fn packets_of_full_bursts_are_neither_lost_nor_counted_far_from_what_they_are() {
    for workers in [1, 2, 5, 8] {
        let mut run = Run::new(workers, 16, Spread::Any, &world());
        let mut open: Vec<Talk> = (0..40).flat_map(talks).collect();
        open.iter_mut().for_each(|talk| run.round(talk, ["S", "SA"]));
        for _ in 0..40 {
            let before = run.expected.packets;
            for talk in &open {
                let request = frame(talk.by_tcp, (talk.from, talk.to), "PA").build();
                run.deliver(Way::Request, talk.port, &request);
                let (own, peer, port) = talk.seen.expect("it is open");
                run.deliver(Way::Reply, port, &frame(talk.by_tcp, (peer, own), "PA").build());
            }
            run.node.settle();
            let out = u64::try_from(run.node.take_outgoing().len()).expect("few");
            assert_eq!(out, run.expected.packets - before);
        }
        run.assert_nothing_lost();
        assert_eq!(run.expected.foreign > 1000, workers > 1);
        let foreign = run.node.sum(|counters| counters.foreign_hits.get());
        let near = run.expected.foreign * 3 / 4..=run.expected.foreign * 5 / 4;
        assert!(near.contains(&foreign), "{foreign} is far from {near:?}");
    }
}

/// An error is about a flow, whoever has it.
#[test]
fn icmp_error_is_finished_by_whichever_worker_it_comes_to() {
    for worker in 0..4 {
        let mut node = Simulation::new(4, 4096, &world().tables());
        let sent = node.forward(pod_port(1), &udp("10.1.0.1:9", "192.0.2.7:53").build()).1;
        let (holder, _) = whose(&node, &key_of(&sent).reversed(), 4);
        let before = node.sum(|counters| counters.foreign_hits.get());
        let own = read(&sent).expect("well-formed").source.ip();
        let error = icmp_error(address("192.0.2.254"), own, (3, 1, 0), &sent).build();
        assert_eq!(node.pass_to(worker, UPLINK, &error)[0].0, pod_port(1));
        let foreign = node.sum(|counters| counters.foreign_hits.get()) - before;
        assert_eq!(foreign, u64::from(holder != Some(worker)));
    }
}

/// One pod's flows to the outside are opened by one worker, and finished by all.
#[test]
fn flows_that_are_mapped_by_their_end_point_go_to_its_home() {
    for workers in 1..=8 {
        let world = world().with_mapping(Mapping::EndpointIndependent);
        let mut node = Simulation::new(workers, 4096, &world.tables());
        let mut random = Random::new(7);
        let mut homes = std::collections::BTreeSet::new();
        let mut handed = 0;
        for number in 0..60 {
            let there = udp(&format!("10.1.0.1:{}", 1000 + number), "192.0.2.7:53").build();
            let worker = random.below(workers);
            let out = node.pass_to(worker, pod_port(1), &there);
            assert_eq!(out.len(), 1, "{}", node.moved_counters());
            let (holder, _) = whose(&node, &key_of(&there), workers);
            handed += u64::from(holder != Some(worker));
            homes.extend(holder);
            let own = read(&out[0].1).expect("well-formed").source.to_string();
            let back = udp("192.0.2.7:53", &own).build();
            assert_eq!(node.pass_to(random.below(workers), UPLINK, &back)[0].0, pod_port(1));
        }
        assert_eq!(homes.len(), 1, "one home");
        assert_eq!(node.sum(|counters| counters.handed_for(HandoffCause::Mapping)), handed);
        assert_eq!(node.sum(|counters| counters.handed_for(HandoffCause::Miss)), 0);
        let for_others = node.sum(|counters| counters.flows_opened_for_others.get());
        assert_eq!(for_others > 0, workers > 1, "{}", node.moved_counters());
    }
}

/// A flow that began in fragments lies where they met. When it is over, whoever owns its hash
/// cannot remove it, and asks who can.
#[test]
fn flow_that_is_over_is_removed_by_its_holder_and_opened_by_its_owner() {
    let workers = 4;
    let mut seen = 0;
    for client in 1000..1200 {
        let mut node = Simulation::new(workers, 4096, &World::with_pods(2).tables());
        let from = format!("10.1.0.1:{client}");
        let piece = |offset, more| {
            udp(&from, "10.1.0.2:9000").payload(&[7; 64]).fragment(9, offset, more).build()
        };
        let whole = udp(&from, "10.1.0.2:9000").build();
        assert_eq!(node.pass_to(3, pod_port(1), &piece(0, true)).len(), 1);
        assert_eq!(node.pass_to(1, pod_port(1), &piece(72, false)).len(), 1);
        let (Some(holder), owner) = whose(&node, &key_of(&whole), workers) else {
            panic!("no flow:\n{}", node.moved_counters());
        };
        let fragments = node.sum(|counters| counters.handed_for(HandoffCause::Fragment));
        assert_eq!(fragments, u64::from(holder != 3) + u64::from(holder != 1), "where they meet");
        let for_others = node.sum(|counters| counters.flows_opened_for_others.get());
        assert_eq!(for_others, u64::from(holder != owner));
        // The owner's tick comes first, so that the holder has not swept it by then.
        if holder <= owner {
            continue;
        }
        node.now = node.now.after(Duration::from_secs(200));
        let out = node.pass_to(owner, pod_port(1), &whole);
        assert_eq!(out.len(), 1, "{}", node.moved_counters());
        let handed = |cause| node.sum(|counters| counters.handed_for(cause));
        assert_eq!([handed(HandoffCause::Holder), handed(HandoffCause::Miss)], [1, 1]);
        assert_eq!(whose(&node, &key_of(&whole), workers), (Some(owner), owner));
        seen += 1;
    }
    assert!(seen > 20, "{seen} flows had another holder");
}

/// The inbox comes before the receive rings: what was handed on is not overtaken by what its sender
/// sent after it, and a reply finds its flow under either tuple.
#[test]
fn packet_that_was_handed_on_goes_before_what_came_later_to_its_owner() {
    for client in 1000..1100 {
        let mut node = Simulation::new(2, 4096, &world().tables());
        let from = format!("10.1.0.2:{client}");
        let datagram = |text: &[u8]| udp(&from, "192.0.2.7:53").payload(text).build();
        let first = datagram(b"first");
        if whose(&node, &key_of(&first), 2).1 == 0 {
            continue;
        }
        node.deliver(0, pod_port(2), &first);
        node.tick_worker(0);
        assert!(node.take_outgoing().is_empty(), "it is on its way to its owner");
        node.deliver(1, pod_port(2), &datagram(b"second"));
        node.tick_worker(1);
        let out = node.take_outgoing();
        let seen: Vec<_> = out.iter().map(|(_, out)| read(out).expect("well-formed")).collect();
        let payloads: Vec<_> = seen.iter().map(|seen| &*seen.payload).collect();
        assert_eq!(payloads, [&b"first"[..], b"second"]);
        // Before anybody ticks again.
        let reply = udp("192.0.2.7:53", &seen[0].source.to_string()).build();
        node.deliver(0, UPLINK, &reply);
        node.tick_worker(0);
        assert_eq!(node.take_outgoing()[0].0, pod_port(2));
        let [miss, foreign] =
            [node.counters(0).handed_for(HandoffCause::Miss), node.counters(0).foreign_hits.get()];
        assert_eq!((miss, foreign), (1, 1), "{}", node.moved_counters());
    }
}

/// A worker that does not read its inbox costs others' packets, each with its reason, and nothing
/// that was handed on is lost when it reads again.
#[test]
fn full_inbox_drops_by_name_and_the_rest_arrives() {
    let mut node = Simulation::new(2, 4096, &World::with_pods(2).tables());
    let clients = (1000..3000u16).map(|client| format!("10.1.0.1:{client}"));
    let frames = clients.map(|from| udp(&from, "10.1.0.2:9000").build());
    let of_other = frames.filter(|frame| whose(&node, &key_of(frame), 2).1 == 1);
    let of_other: Vec<_> = of_other.take(VECTORS_MAX + 44).collect();
    assert_eq!(of_other.len(), VECTORS_MAX + 44);
    for frame in &of_other {
        node.deliver(0, pod_port(1), frame);
        node.tick_worker(0);
    }
    let own = node.counters(0);
    assert_eq!(own.handed_for(HandoffCause::Miss), 300);
    assert_eq!((own.handed_out.get(), own.dropped(DropReason::HandoffFull)), (256, 44));
    node.settle();
    assert_eq!(node.counters(1).handed_in.get(), 256);
    assert_eq!(node.take_outgoing().len(), 256);
}

/// What the worker that owns a flow sent for another waited for all that it received itself, while the
/// flow's next packets, which the other found an entry for by now, overtook it.
#[test]
fn packet_that_opens_a_flow_for_another_worker_leaves_before_more_is_received() {
    let mut handed = 0;
    for client in 1000..1020 {
        let mut node = Simulation::new(2, 4096, &World::with_pods(2).tables());
        let frame = udp(&format!("10.1.0.1:{client}"), "10.1.0.2:9000").build();
        node.deliver(0, pod_port(1), &frame);
        node.tick_worker(0);
        handed += node.sum(|counters| counters.handed_out.get());
        node.tick_worker(1);
        assert_eq!(node.take_outgoing().len(), 1);
        assert_eq!(node.wire().borrow().unflushed_at_receive, 0);
    }
    assert!(handed > 0, "each was the first worker's own");
}
