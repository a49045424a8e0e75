//! Bandwidth limits of pods in a simulated node: what leaves, when, in which order, and what becomes
//! of the rest. Conservation is checked at every tick.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use dataplane::DropReason;
use dataplane::mailbox::Command;
use dataplane::pacing::{Limit, PortLimits, Rate};
use dataplane::port::PortId;
use dataplane::time::Nanos;
use xskiff_tests::packet_builder::udp;
use xskiff_tests::random::Random;
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, pod_port};

const MBIT: u64 = 1_000_000;
/// Of a frame that [`Sender`] sends.
const FRAME_BYTES: usize = 1514;
const TICK: Duration = Duration::from_micros(100);

fn limit(mbit: u64) -> Option<Arc<Limit>> {
    Some(Arc::new(Limit::new(Rate::of(mbit * MBIT))))
}

fn egress(mbit: u64) -> PortLimits {
    PortLimits { egress: limit(mbit), ingress: None }
}

fn ingress(mbit: u64) -> PortLimits {
    PortLimits { ingress: limit(mbit), egress: None }
}

/// Sends numbered datagrams from one pod to another at a rate of its own.
struct Sender {
    from: u8,
    to: u8,
    mbit: u64,
    sent: u32,
    /// When the next is due.
    due: Nanos,
}

impl Sender {
    fn new(from: u8, to: u8, mbit: u64) -> Self {
        Self { from, to, mbit, sent: 0, due: Nanos::default() }
    }

    fn frame(&self) -> Vec<u8> {
        let mut payload = vec![0; FRAME_BYTES - 14 - 20 - 8];
        payload[..4].copy_from_slice(&self.sent.to_be_bytes());
        let (from, to) = (self.from, self.to);
        udp(&format!("10.1.0.{from}:7"), &format!("10.1.0.{to}:9")).payload(&payload).build()
    }

    fn send(&mut self, node: &mut Simulation, workers: usize) {
        if self.due == Nanos::default() {
            self.due = node.now;
        }
        while self.due <= node.now {
            let worker = self.sent as usize % workers;
            node.deliver(worker, pod_port(self.from), &self.frame());
            self.sent += 1;
            let nanos = FRAME_BYTES as u64 * 8 * 1000 / self.mbit;
            self.due = self.due.after(Duration::from_nanos(nanos));
        }
    }
}

/// Datagrams that arrived, by the pod they are from, in order.
#[derive(Default)]
struct Arrived(Vec<(u8, u32)>);

impl Arrived {
    fn take(&mut self, node: &mut Simulation) {
        for (_, frame) in node.take_outgoing() {
            let number = u32::from_be_bytes(frame[42..46].try_into().expect("four bytes"));
            self.0.push((frame[29], number));
        }
    }

    fn of(&self, pod: u8) -> Vec<u32> {
        self.0.iter().filter(|one| one.0 == pod).map(|one| one.1).collect()
    }

    fn mbit(&self, pod: u8, time: Duration) -> f64 {
        (self.of(pod).len() * FRAME_BYTES * 8) as f64 / time.as_secs_f64() / 1e6
    }
}

fn run(node: &mut Simulation, workers: usize, senders: &mut [Sender], time: Duration) -> Arrived {
    let mut arrived = Arrived::default();
    let until = node.now.after(time);
    while node.now < until {
        for sender in &mut *senders {
            sender.send(node, workers);
        }
        node.tick();
        arrived.take(node);
        node.now = node.now.after(TICK);
    }
    arrived
}

fn assert_near(what: &str, is: f64, wanted: f64) {
    assert!((is / wanted - 1.0).abs() < 0.01, "{what}: {is} instead of {wanted}");
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_limited_pod_gets_its_rate_either_way_in_order_and_the_rest_is_dropped_by_name() {
    for mbit in [10, 100, 1000] {
        for (limits, reason) in [
            ((pod_port(1), egress(mbit)), DropReason::BandwidthEgress),
            ((pod_port(2), ingress(mbit)), DropReason::BandwidthIngress),
        ] {
            let world = World::with_pods(2).with_limits([limits]);
            let mut node = Simulation::single(&world.tables());
            let mut senders = [Sender::new(1, 2, 2 * mbit)];
            let arrived = run(&mut node, 1, &mut senders, SECOND);
            assert_near(&format!("{reason} {mbit}"), arrived.mbit(1, SECOND), mbit as f64);
            assert!(arrived.of(1).is_sorted(), "packets overtook each other");
            let (dropped, held) = (node.dropped(reason), node.sum(|one| one.held.get()));
            let all = arrived.0.len() as u64 + dropped + held;
            assert_eq!(all, u64::from(senders[0].sent), "{}", node.moved_counters());
            let port = |one: &dataplane::counters::WorkerCounters| {
                let counters = [pod_port(1), pod_port(2)].map(|port| one.port(port).unwrap());
                counters.map(|one| {
                    one.egress_limit.dropped_packets.get() + one.ingress_limit.dropped_packets.get()
                })
            };
            assert_eq!(node.sum(|one| port(one).iter().sum()), dropped);
            assert!(node.sum(|one| one.paced_bytes.get()) > 0);
        }
    }
}

#[test]
fn who_stays_below_the_limit_or_has_none_waits_for_nothing() {
    let world = World::with_pods(4).with_limits([(pod_port(1), egress(100))]);
    let mut node = Simulation::single(&world.tables());
    let mut senders = [Sender::new(1, 2, 90), Sender::new(3, 4, 3000)];
    run(&mut node, 1, &mut senders, SECOND);
    assert_eq!(node.sum(|one| one.paced_packets.get()), 0);
    assert_eq!(node.sum(|one| one.dropped_total()), 0);
}

#[test]
fn several_workers_share_one_limit() {
    for workers in [2, 3, 8] {
        let world = World::with_pods(2).with_limits([(pod_port(1), egress(100))]);
        let mut node = Simulation::new(workers, 1000, &world.tables());
        let arrived = run(&mut node, workers, &mut [Sender::new(1, 2, 400)], SECOND);
        assert_near(&format!("{workers} workers"), arrived.mbit(1, SECOND), 100.0);
    }
}

#[test]
fn a_slow_sender_takes_of_its_receivers_rate_no_more_than_it_sends() {
    let world =
        World::with_pods(3).with_limits([(pod_port(1), egress(10)), (pod_port(3), ingress(100))]);
    let mut node = Simulation::single(&world.tables());
    // The first has as much waiting as can wait.
    let mut senders = [Sender::new(1, 3, 50), Sender::new(2, 3, 80)];
    let arrived = run(&mut node, 1, &mut senders, SECOND);
    assert_near("the slow one", arrived.mbit(1, SECOND), 10.0);
    assert_near("the other", arrived.mbit(2, SECOND), 80.0);
}

#[test]
fn what_the_senders_limit_lets_go_passes_the_receivers_as_well() {
    let world =
        World::with_pods(2).with_limits([(pod_port(1), egress(50)), (pod_port(2), ingress(10))]);
    let mut node = Simulation::single(&world.tables());
    let arrived = run(&mut node, 1, &mut [Sender::new(1, 2, 200)], SECOND);
    assert_near("both", arrived.mbit(1, SECOND), 10.0);
    assert!(arrived.of(1).is_sorted(), "packets overtook each other");
    for reason in [DropReason::BandwidthEgress, DropReason::BandwidthIngress] {
        assert!(node.dropped(reason) > 1000, "{}", node.moved_counters());
    }
}

#[test]
fn an_answer_goes_by_the_limit_of_the_pod_it_goes_to() {
    let world = World::with_pods(2).with_limits([(pod_port(1), ingress(1))]);
    let mut node = Simulation::single(&world.tables());
    for number in 0..20 {
        let expired = udp(&format!("10.1.0.1:{}", 1000 + number), "10.1.0.2:9");
        node.deliver(0, pod_port(1), &expired.payload(&[0; 1000]).ttl(1).build());
    }
    node.settle();
    let at_once = node.take_outgoing().len();
    assert!(at_once < 20, "{at_once}");
    assert_eq!(node.sum(|one| one.held.get()) as usize, 20 - at_once);
    node.now = node.now.after(SECOND);
    node.settle();
    assert_eq!(node.take_outgoing().len(), 20 - at_once);
}

/// A node in which pod 1, limited to 10 Mbit/s, has packets that wait.
fn with_waiting(world: &World) -> (Simulation, Vec<u32>, usize) {
    let limited = world.clone().with_limits([(pod_port(1), egress(10))]);
    let mut node = Simulation::single(&limited.tables());
    let arrived = run(&mut node, 1, &mut [Sender::new(1, 2, 100)], Duration::from_millis(10));
    let held = usize::try_from(node.sum(|one| one.held.get())).expect("few");
    assert!(held > 2, "{}", node.moved_counters());
    assert!(node.next_departure(0).is_some());
    (node, arrived.of(1), held)
}

#[test]
fn what_waits_for_a_port_that_goes_is_dropped_and_its_memory_given_back() {
    let world = World::with_pods(2);
    let (mut node, _, held) = with_waiting(&world);
    let released = node.wire().borrow().released;
    node.publish(&world.without_port(pod_port(1)).tables());
    assert_eq!(node.dropped(DropReason::PortGone) as usize, held);
    assert_eq!(node.wire().borrow().released - released, held);
    assert_eq!((node.sum(|one| one.held.get()), node.next_departure(0)), (0, None));
    assert_eq!(node.sum(|one| one.paced_frames.get()), 0);
}

#[test]
fn what_waits_for_a_limit_that_goes_leaves_at_once_before_all_that_comes_later() {
    let world = World::with_pods(2);
    let (mut node, mut numbers, held) = with_waiting(&world);
    let mut later = Sender::new(1, 2, 100);
    later.sent = 1_000_000;
    later.due = node.now;
    later.send(&mut node, 1);
    node.publish(&world.tables());
    let mut arrived = Arrived::default();
    arrived.take(&mut node);
    assert_eq!(arrived.0.len(), held + 1);
    numbers.extend(arrived.of(1));
    assert!(numbers.is_sorted(), "{numbers:?}");
}

#[test]
fn a_rate_that_changes_holds_from_then_on_and_nothing_is_overtaken() {
    for mbit in [1, 50, 1000] {
        let world = World::with_pods(2);
        let (mut node, mut numbers, _) = with_waiting(&world);
        node.publish(&world.with_limits([(pod_port(1), egress(mbit))]).tables());
        let mut arrived = Arrived::default();
        arrived.take(&mut node);
        numbers.extend(arrived.of(1));
        let mut sender = Sender::new(1, 2, 2 * mbit);
        sender.sent = 1_000_000;
        let arrived = run(&mut node, 1, std::slice::from_mut(&mut sender), 2 * SECOND);
        numbers.extend(arrived.of(1));
        assert!(numbers.is_sorted(), "packets overtook each other");
        let arrived = run(&mut node, 1, &mut [sender], 2 * SECOND);
        assert_near(&format!("{mbit}"), arrived.mbit(1, 2 * SECOND), mbit as f64);
    }
}

#[test]
fn many_pods_that_wait_share_the_memory_and_an_unlimited_one_passes() {
    let limits = (1..=200u8).map(|pod| (pod_port(pod), egress(10)));
    let world = World::with_pods(202).with_limits(limits);
    let mut node = Simulation::single(&world.tables());
    let mut senders: Vec<Sender> = (1..=200).map(|pod| Sender::new(pod, 201, 40)).collect();
    senders.push(Sender::new(202, 201, 100));
    run(&mut node, 1, &mut senders, Duration::from_millis(50));
    let time = Duration::from_millis(200);
    let arrived = run(&mut node, 1, &mut senders, time);
    for pod in 1..=200 {
        let mbit = arrived.mbit(pod, time);
        assert!((9.5..10.5).contains(&mbit), "pod {pod}: {mbit}");
    }
    assert_near("the unlimited one", arrived.mbit(202, time), 100.0);
    let most = node.sum(|one| one.paced_frames.most());
    assert!((900..=1024).contains(&most), "{most}");
}

/// Ports, limits and rates change all the time, under traffic both ways and with several workers:
/// nothing is lost track of, and after a second of quiet nothing is held.
#[test]
fn no_packet_is_lost_track_of_whatever_becomes_of_limits_and_ports() {
    for seed in 0..20 {
        let mut random = Random::new(seed);
        let workers = 1 + random.below(3);
        let mut node = Simulation::new(workers, 1000, &World::with_pods(6).tables());
        for _ in 0..600 {
            if random.one_in(10) {
                let mut world = World::with_pods(6);
                let mut limits = Vec::new();
                for pod in 1..=6 {
                    let mut one = || match random.below(3) {
                        0 => None,
                        _ => limit([1, 10, 100, 1000][random.below(4)]),
                    };
                    let (ingress, egress) = (one(), one());
                    limits.push((pod_port(pod), PortLimits { ingress, egress }));
                }
                if random.one_in(3) {
                    let gone = pod_port(1 + u8::try_from(random.below(6)).expect("small"));
                    world = world.without_port(gone);
                    limits.retain(|(port, _)| *port != gone);
                }
                if random.one_in(5) {
                    limits.clear();
                }
                let tables = world.with_limits(limits).tables();
                node.post(|| Command::Publish(tables.clone()));
            }
            for _ in 0..random.below(30) {
                let [from, to] = [0; 2].map(|_| 1 + random.below(6));
                let payload = vec![0; random.below(1400)];
                let (port, frame) = match random.below(8) {
                    0 => (UPLINK, udp("192.0.2.7:53", &format!("10.1.0.{to}:9"))),
                    1 => (from_port(from), udp(&format!("10.1.0.{from}:9"), "192.0.2.7:53")),
                    2 => {
                        let expired = udp(&format!("10.1.0.{from}:9"), "10.1.0.1:7");
                        (from_port(from), expired.ttl(1))
                    }
                    _ => (
                        from_port(from),
                        udp(&format!("10.1.0.{from}:9"), &format!("10.1.0.{to}:9")),
                    ),
                };
                let worker = random.below(workers);
                node.deliver(worker, port, &frame.payload(&payload).build());
            }
            node.tick();
            node.now = node.now.after(Duration::from_micros(random.below(2000) as u64));
            drop((node.take_outgoing(), node.take_events(), node.take_neighbour_requests()));
        }
        node.settle();
        for _ in 0..30 {
            node.now = node.now.after(Duration::from_millis(200));
            node.settle();
        }
        assert_eq!(node.sum(|one| one.held.get()), 0, "seed {seed}:\n{}", node.moved_counters());
        assert!(node.sum(|one| one.paced_packets.get()) > 0, "seed {seed}");
    }
}

fn from_port(pod: usize) -> PortId {
    pod_port(u8::try_from(pod).expect("small"))
}
