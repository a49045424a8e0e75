//! Workers allocate nothing after their start, whatever they are sent and whoever they hand it to:
//! counted by the allocator.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dataplane::DropReason;
use dataplane::capture::{CaptureFilter, CaptureRing};
use dataplane::counters::WorkerCounters;
use dataplane::event::Reports;
use dataplane::flows::{Capacities, FlowTables};
use dataplane::handoff::{Handoff, Inboxes};
use dataplane::lb::FrontendKind;
use dataplane::mailbox::{Command, FlushFilter, Mailbox};
use dataplane::memory::HeapBuffer;
use dataplane::pacing::{Limit, PortLimits, Rate};
use dataplane::pipeline::Pipeline;
use dataplane::port::{PortId, Ports};
use dataplane::time::Nanos;
use dataplane::worker::{Received, RxBurst, Worker};
use flow_table::Memory;
use xskiff_tests::packet_builder::{icmp_error, ping, tcp, udp};
use xskiff_tests::random::Random;
use xskiff_tests::world::{UPLINK, World, pod_port, pod4};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Ports whose packets are made before the counting begins and go round for ever. Free buffers are
/// shared: what one worker received, another may transmit.
struct Pool {
    frames: Rc<[(PortId, Vec<u8>)]>,
    next: usize,
    free: Rc<RefCell<Vec<HeapBuffer>>>,
}

impl Ports for Pool {
    type Buffer = HeapBuffer;

    fn receive(&mut self, burst: &mut RxBurst<HeapBuffer>) {
        while burst.remaining_capacity() > 0 {
            let Some(mut buffer) = self.free.borrow_mut().pop() else { return };
            let (port, frame) = &self.frames[self.next];
            self.next = (self.next + 1) % self.frames.len();
            buffer.refill(frame);
            burst.push(Received { port: *port, buffer });
        }
    }

    fn transmit(
        &mut self,
        _port: PortId,
        buffer: HeapBuffer,
    ) -> Result<(), (DropReason, HeapBuffer)> {
        self.release(buffer);
        Ok(())
    }

    fn flush(&mut self) {}

    fn release(&mut self, buffer: HeapBuffer) {
        self.free.borrow_mut().push(buffer);
    }
}

/// Every kind of packet, more flows than the table holds, and more fragmented packets than are
/// followed at once.
fn frames() -> Vec<(PortId, Vec<u8>)> {
    let mut random = Random::new(3);
    let mut frames = Vec::new();
    for number in 0..30_000u32 {
        let from = format!("10.1.0.1:{}", 1000 + number % 20_000);
        let one = pod_port(1);
        let (port, frame) = match random.below(12) {
            0..3 => (one, tcp(&from, "10.1.0.2:80", "S")),
            3 => (one, tcp(&from, "10.1.0.2:80", "R")),
            4 => (one, udp(&from, "10.2.0.1:80")),
            5 => (one, tcp(&from, "192.0.2.7:80", "S")),
            6 => (one, udp("[fd01::1]:1", "[2001:db8::7]:53")),
            7 => (one, udp(&from, "10.1.0.2:53").ttl(1)),
            8 => (one, ping(pod4(1), pod4(2), u16::try_from(number).expect("small"))),
            9 => (one, udp("10.1.0.1:7", &format!("10.0.0.{}:1", 20 + number % 200))),
            10 => {
                let quoted = udp(&from, "10.1.0.2:53").build();
                (pod_port(2), icmp_error(pod4(2), pod4(1), (3, 3, 0), &quoted))
            }
            _ => {
                let offset = if random.one_in(2) { 0 } else { 64 };
                let datagram = udp("10.1.0.1:7", "10.1.0.2:7").payload(&[1; 56]);
                (one, datagram.fragment(number % 20_000, offset, true))
            }
        };
        frames.push((port, frame.build()));
    }
    for number in 0..10_000 {
        let first = udp("10.1.0.1:7", "10.1.0.2:7").payload(&[1; 56]).fragment(number, 0, true);
        frames.push((pod_port(1), first.build()));
    }
    frames.push((UPLINK, vec![0; 60]));
    frames
}

struct Running {
    worker: Worker<Pool>,
    counters: Arc<WorkerCounters>,
    reports: Arc<Reports>,
    mailbox: Arc<Mailbox>,
}

impl Running {
    fn tick(&mut self, now: Nanos) {
        self.worker.tick(now);
        while self.reports.events.pop().is_some() {}
        while self.reports.neighbours.pop().is_some() {}
        self.mailbox.free_retired();
    }
}

fn world() -> World {
    let backends = [(pod4(2), 8080), (pod4(3), 8080)];
    let limit = |bits| Some(Arc::new(Limit::new(Rate::of(bits))));
    World::with_pods(3)
        .with_service(FrontendKind::ClusterIp, "10.2.0.1", 80, &backends)
        .with_limits([
            (pod_port(1), PortLimits { ingress: limit(2_000_000), egress: limit(100_000_000) }),
            (pod_port(2), PortLimits { ingress: limit(5_000_000), egress: None }),
        ])
}

/// `count` workers that share flow tables, inboxes and `buffers` buffers.
fn start(count: usize, buffers: usize) -> Vec<Running> {
    let capacities = Capacities::fixed(4096, 512);
    let (_tables, holds) =
        FlowTables::new(capacities, (Memory::Heap, Memory::Heap), count, [1, 2]).expect("tables");
    let frames: Rc<[_]> = frames().into();
    let free = (0..buffers).map(|_| HeapBuffer::new(&[0; 1500])).collect();
    let free: Rc<RefCell<Vec<_>>> = Rc::new(RefCell::new(free));
    let inboxes = Inboxes::new(count);
    let tables = world().tables();
    let worker = |(index, hold)| {
        let counters = Arc::new(WorkerCounters::default());
        let (reports, mailbox) = (Arc::new(Reports::default()), Arc::new(Mailbox::default()));
        let pipeline = Pipeline::new(
            index,
            count,
            Arc::clone(&tables),
            hold,
            Arc::clone(&counters),
            Arc::clone(&reports),
        );
        let next = index * frames.len() / count;
        let ports = Pool { frames: Rc::clone(&frames), next, free: Rc::clone(&free) };
        let handoff = Handoff::new(Arc::clone(&inboxes), index);
        let worker = Worker::new(ports, pipeline, Arc::clone(&mailbox), handoff);
        Running { worker, counters, reports, mailbox }
    };
    holds.into_iter().enumerate().map(worker).collect()
}

/// Runs workers over everything there is; gives how many blocks were allocated meanwhile.
fn allocated_by(workers: &mut [Running], rounds: usize) -> u64 {
    let generations: Vec<_> = (0..8)
        .map(|generation| {
            (0..generation).fold(world(), |world, _| world.next_generation()).tables()
        })
        .collect();
    let captures: Vec<_> = (0..rounds / 1000).map(|_| Arc::new(CaptureRing::default())).collect();
    let profiler = dhat::Profiler::builder().testing().build();
    let before = dhat::HeapStats::get();
    let mut now = Nanos(1);
    for round in 0..rounds {
        if round % 1000 == 999 {
            let tables = &generations[round / 1000 % generations.len()];
            let ring = &captures[round / 1000];
            for running in &*workers {
                for command in [
                    Command::Publish(Arc::clone(tables)),
                    Command::Flush(FlushFilter::default()),
                    Command::StartCapture(CaptureFilter::default(), Arc::clone(ring)),
                ] {
                    assert!(running.mailbox.send(command).is_ok());
                }
            }
        }
        // For a while only the first runs, until the inboxes of the others are full.
        let awake = if round % 2000 < 400 { 1 } else { workers.len() };
        workers.iter_mut().take(awake).for_each(|running| running.tick(now));
        let pause = if round % 4000 == 0 { 1000 } else { 0 };
        now = now.after(Duration::from_secs(pause) + Duration::from_millis(7));
    }
    let after = dhat::HeapStats::get();
    drop(profiler);
    after.total_blocks - before.total_blocks
}

type Happening = (&'static str, fn(&WorkerCounters) -> u64);

/// What must have happened, or its absence would prove nothing.
const HAPPENINGS: [Happening; 12] = [
    ("flows created", |counters| counters.flows_created.get()),
    ("flows expired", |counters| counters.flows_expired.get()),
    ("flows judged again", |counters| counters.flows_rejudged.get()),
    ("flows deleted", |counters| counters.flows_deleted.get()),
    ("answers made", |counters| counters.originated.get()),
    ("packets held", |counters| counters.waiting_neighbours.most()),
    ("captures lost", |counters| counters.captures_lost.get()),
    ("fragments refused", |counters| counters.dropped(DropReason::FragmentsFull)),
    ("fragments unknown", |counters| counters.dropped(DropReason::FragmentUnknown)),
    ("packets paced", |counters| counters.paced_packets.get()),
    ("packets over their limit", |counters| counters.dropped(DropReason::BandwidthIngress)),
    ("neighbours unresolved", |counters| counters.dropped(DropReason::Unresolved)),
];

/// The same where there are others to hand packets to.
const BETWEEN_WORKERS: [Happening; 3] = [
    ("packets handed out", |counters| counters.handed_out.get()),
    ("packets handed in", |counters| counters.handed_in.get()),
    ("hand-offs refused", |counters| counters.dropped(DropReason::HandoffFull)),
];

/// One test for all: the allocator counts what the whole process does.
#[test]
fn workers_allocate_nothing_after_their_start_alone_or_handing_packets_to_each_other() {
    // More than the inboxes of all others hold, so that there is always something to receive.
    for (count, rounds, buffers) in [(1, 10_000, 512), (2, 6000, 10_000)] {
        let mut workers = start(count, buffers);
        let blocks = allocated_by(&mut workers, rounds);
        let between = if count > 1 { &BETWEEN_WORKERS[..] } else { &[] };
        for (what, counter) in HAPPENINGS.iter().chain(between) {
            let times: u64 = workers.iter().map(|running| counter(&running.counters)).sum();
            assert!(times > 0, "{count} workers: no {what}");
        }
        assert_eq!(blocks, 0, "blocks allocated by {count} workers");
    }
}
