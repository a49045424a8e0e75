//! A worker allocates nothing after its start, whatever it is sent: counted by the allocator.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use dataplane::DropReason;
use dataplane::buffer::Buffer;
use dataplane::counters::WorkerCounters;
use dataplane::event::Reports;
use dataplane::flows::{Capacities, FlowTables};
use dataplane::handoff::{Handoff, Inboxes};
use dataplane::lb::FrontendKind;
use dataplane::mailbox::{Command, FlushFilter, Mailbox};
use dataplane::memory::HeapBuffer;
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

/// Ports whose packets are made before the counting begins and go round for ever.
struct Pool {
    frames: Vec<(PortId, Vec<u8>)>,
    next: usize,
    free: Vec<HeapBuffer>,
    /// Bytes that left.
    transmitted: u64,
}

impl Ports for Pool {
    type Buffer = HeapBuffer;

    fn receive(&mut self, burst: &mut RxBurst<HeapBuffer>) {
        while burst.remaining_capacity() > 0 {
            let Some(mut buffer) = self.free.pop() else { return };
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
        self.transmitted += buffer.len() as u64;
        self.free.push(buffer);
        Ok(())
    }

    fn flush(&mut self) {}

    fn release(&mut self, buffer: HeapBuffer) {
        self.free.push(buffer);
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
    for number in 0..6000 {
        let first = udp("10.1.0.1:7", "10.1.0.2:7").payload(&[1; 56]).fragment(number, 0, true);
        frames.push((pod_port(1), first.build()));
    }
    frames.push((UPLINK, vec![0; 60]));
    frames
}

#[test]
fn worker_allocates_nothing_after_its_start() {
    let backends = [(pod4(2), 8080), (pod4(3), 8080)];
    let world =
        || World::with_pods(3).with_service(FrontendKind::ClusterIp, "10.2.0.1", 80, &backends);
    let capacities = Capacities::fixed(4096, 512);
    let (_tables, mut holds) =
        FlowTables::new(capacities, (Memory::Heap, Memory::Heap), 1, [1, 2]).expect("tables");
    let counters = Arc::new(WorkerCounters::default());
    let reports = Arc::new(Reports::default());
    let mailbox = Arc::new(Mailbox::default());
    let hold = holds.remove(0);
    let pipeline =
        Pipeline::new(0, 1, world().tables(), hold, Arc::clone(&counters), Arc::clone(&reports));
    let ports = Pool {
        frames: frames(),
        next: 0,
        free: (0..512).map(|_| HeapBuffer::new(&[0; 1500])).collect(),
        transmitted: 0,
    };
    let handoff = Handoff::new(Inboxes::new(1), 0);
    let mut worker = Worker::new(ports, pipeline, Arc::clone(&mailbox), handoff);
    let generations: Vec<_> = (0..8)
        .map(|generation| {
            (0..generation).fold(world(), |world, _| world.next_generation()).tables()
        })
        .collect();

    let profiler = dhat::Profiler::builder().testing().build();
    let before = dhat::HeapStats::get();
    let mut now = Nanos(1);
    for round in 0..20_000usize {
        if round % 1000 == 999 {
            let tables = Arc::clone(&generations[round / 1000 % generations.len()]);
            assert!(mailbox.send(Command::Publish(tables)).is_ok());
            assert!(mailbox.send(Command::Flush(FlushFilter::default())).is_ok());
        }
        worker.tick(now);
        while reports.events.pop().is_some() {}
        while reports.neighbours.pop().is_some() {}
        let pause = if round % 4000 == 0 { 1000 } else { 0 };
        now = now.after(Duration::from_secs(pause) + Duration::from_millis(7));
    }
    let after = dhat::HeapStats::get();
    drop(profiler);

    let happened = [
        counters.flows_created.get(),
        counters.flows_expired.get(),
        counters.flows_rejudged.get(),
        counters.flows_deleted.get(),
        counters.originated.get(),
        counters.held.get(),
        counters.dropped(DropReason::FragmentsFull),
        counters.dropped(DropReason::FragmentUnknown),
        counters.dropped(DropReason::Unresolved),
    ];
    assert!(happened.iter().all(|times| *times > 0), "too little happened: {happened:?}");
    assert_eq!(after.total_blocks, before.total_blocks, "blocks allocated in {now:?}");
}
