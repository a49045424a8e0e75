use std::collections::VecDeque;

use proptest::prelude::*;

use super::queue::{PACED_MAX, Paced, QueueId, Waiting};
use super::*;
use crate::buffer::Buffer;
use crate::memory::HeapBuffer;
use crate::worker::Received;

const SECOND: u64 = 1_000_000_000;

/// Sends packets of these sizes as fast as the limit lets them, and answers the nanoseconds from
/// the first departure to when the limit is free again.
fn saturate(limit: &Limit, sizes: impl Iterator<Item = usize>) -> u64 {
    let start = Nanos(SECOND);
    let mut now = start;
    // Uses up the burst.
    while limit.outlook(now).is_some_and(|next| next <= now) {
        limit.charge(now, 1514);
    }
    let mut first = None;
    for bytes in sizes {
        now = limit.charge(now, bytes).max(now);
        first = first.or(Some(now));
    }
    let free_again = limit.charge(now, 0);
    free_again.since(first.unwrap()).as_nanos().try_into().unwrap()
}

#[test]
fn a_rate_is_exact_over_a_long_time_whatever_the_sizes_and_never_exceeded() {
    for bits in [10_000_000, 100_000_000, 1_000_000_000, 7_777_777, 25_000_000_000, 100_000_000_000]
    {
        for sizes in [&[1514][..], &[60], &[60, 1514, 590, 9014], &[65_226]] {
            let limit = Limit::new(Rate::of(bits));
            let sent = sizes.iter().copied().cycle().take(100_000);
            let bytes = sent.clone().sum::<usize>() as u128;
            let took = u128::from(saturate(&limit, sent));
            let meant = bytes * 8 * u128::from(SECOND) / u128::from(bits);
            // The shortest frame at 100 Gbit/s lasts 4.8 ns, and is rounded up by a 32nd.
            assert!(took + 1 >= meant && took <= meant + meant / 100 + 1, "{bits} {sizes:?}");
            if bits <= 1_000_000_000 {
                assert!(took <= meant + meant / 10_000 + 1, "{bits} {sizes:?}: {took} {meant}");
            }
        }
    }
}

#[test]
fn after_a_pause_the_burst_goes_at_once_and_no_more() {
    for (burst_bits, packets) in [(Some(8 * 15_140), 11), (Some(8), 1), (None, 3)] {
        let limit = Limit::new(Rate { bits_per_second: 10_000_000, burst_bits });
        for pause in [1, 3600] {
            let now = Nanos(pause * SECOND);
            let at_once = (0..100).filter(|_| limit.charge(now, 1514) <= now).count();
            assert_eq!(at_once, packets, "burst of {burst_bits:?} bits");
        }
    }
}

#[test]
fn what_a_runtime_says_that_knows_no_burst_is_none() {
    let rate = Rate::of(10_000_000);
    assert_eq!(rate.with_burst(0), rate);
    assert_eq!(rate.with_burst(BURST_BITS_MAX), rate);
    assert_eq!(rate.with_burst(80_000).burst_bits, Some(80_000));
    assert_eq!(Rate::of(0).bits_per_second, RATE_BITS_MIN);
    assert_eq!(Rate::of(u64::MAX).bits_per_second, RATE_BITS_MAX);
}

#[test]
fn beyond_the_horizon_nothing_is_let_in_and_the_horizon_is_some_packets_long_at_least() {
    for (bits, longest) in [
        (1_000_000_000, HORIZON),
        (100_000_000, HORIZON),
        (1_000_000, Duration::from_micros(262_145)),
        (1_000, WAIT_MAX),
    ] {
        let limit = Limit::new(Rate::of(bits));
        let now = Nanos(SECOND);
        let mut last = now;
        for _ in 0..10_000 {
            if limit.outlook(now).is_none() {
                break;
            }
            last = limit.charge(now, 1514);
        }
        assert_eq!(limit.outlook(now), None, "{bits}");
        assert!(last.since(now) <= longest, "{bits}: {:?}", last.since(now));
        // In time it takes packets again.
        assert!(limit.outlook(now.after(Duration::from_secs(40))).is_some());
    }
}

#[test]
fn workers_that_share_a_limit_get_times_of_their_own_and_one_rate() {
    const PACKETS: usize = 20_000;
    const WORKERS: usize = 4;
    let limit = Limit::new(Rate { bits_per_second: 1_000_000_000, burst_bits: Some(8) });
    let now = Nanos(SECOND);
    let mut all: Vec<Nanos> = std::thread::scope(|scope| {
        let worker = || (0..PACKETS).map(|_| limit.charge(now, 1500)).collect::<Vec<_>>();
        let threads: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    all.sort_unstable();
    let apart = all.windows(2).map(|pair| pair[1].since(pair[0]).as_nanos());
    assert!(apart.clone().all(|apart| (12_000..=12_001).contains(&apart)), "1500 bytes: 12 us");
    assert_eq!(all.len(), PACKETS * WORKERS);
}

#[test]
fn limits_are_found_by_port_and_direction_and_none_at_all_is_told() {
    let limit = |bits| Some(Arc::new(Limit::new(Rate::of(bits))));
    assert!(Limits::of([(PortId(3), PortLimits::default())]).is_none());
    let limits = Limits::of([
        (PortId(7), PortLimits { ingress: limit(2000), egress: None }),
        (PortId(2), PortLimits { ingress: limit(3000), egress: limit(4000) }),
    ])
    .unwrap();
    let bits = |port, direction| {
        limits.get(PortId(port), direction).map(|limit| limit.rate().bits_per_second)
    };
    assert_eq!(bits(7, Direction::Ingress), Some(2000));
    assert_eq!(bits(7, Direction::Egress), None);
    assert_eq!(bits(2, Direction::Egress), Some(4000));
    let concern = |from, to| limits.concern(PortId(from), PortId(to));
    assert!(concern(1, 7) && concern(2, 1) && !concern(7, 1) && !concern(900, 3));
    assert_eq!((bits(3, Direction::Egress), bits(900, Direction::Ingress)), (None, None));
}

fn waiting(number: u16, bytes: usize, departure: u64) -> Waiting<HeapBuffer> {
    let mut packet = vec![0; bytes];
    packet[..2].copy_from_slice(&number.to_be_bytes());
    let packet = Received { port: PortId(0), buffer: HeapBuffer::new(&packet) };
    Waiting { packet, out: PortId(1), departure: Nanos(departure) }
}

fn number(waiting: &Waiting<HeapBuffer>) -> u16 {
    let bytes = waiting.packet.buffer.bytes();
    u16::from_be_bytes([bytes[0], bytes[1]])
}

fn queue(port: u16, direction: Direction) -> QueueId {
    QueueId::of(PortId(port), direction).unwrap()
}

#[test]
fn one_limit_may_have_half_of_the_memory_and_many_leave_some_until_all_is_taken() {
    let mut paced = Paced::new(8);
    let one = queue(5, Direction::Egress);
    let mut keep = |queue, number| paced.keep(queue, waiting(number, 1514, 10)).map_err(|e| e.0);
    for number in 0..4 {
        assert_eq!(keep(one, number), Ok(()));
    }
    assert_eq!(keep(one, 4), Err(DropReason::BandwidthEgress));
    let others = [(6, 2), (7, 1), (8, 1)];
    for (port, room) in others {
        let other = queue(port, Direction::Ingress);
        for number in 0..room {
            assert_eq!(keep(other, number), Ok(()), "{port}");
        }
        let full = if port == 8 { DropReason::PacingFull } else { DropReason::BandwidthIngress };
        assert_eq!(keep(other, 9), Err(full), "{port}");
    }
    assert_eq!(keep(one, 4), Err(DropReason::PacingFull));
    assert_eq!((paced.packets(), paced.frames()), (8, 8));
    assert_eq!(QueueId::of(PortId(1024), Direction::Egress), None);
}

#[test]
fn a_packet_of_several_frames_takes_so_much_room() {
    let mut paced = Paced::new(8);
    let one = queue(0, Direction::Egress);
    assert!(paced.keep(one, waiting(0, 9 * 1792, 5)).is_err());
    assert!(paced.keep(one, waiting(1, 5000, 5)).is_ok());
    assert_eq!((paced.packets(), paced.frames()), (1, 3));
    assert!(paced.take_due(Nanos(5)).is_some());
    assert_eq!((paced.packets(), paced.frames()), (0, 0));
}

#[test]
fn without_memory_nothing_waits() {
    let mut paced = Paced::new(0);
    let refused = paced.keep(queue(0, Direction::Egress), waiting(1, 60, 5)).map_err(|e| e.0);
    assert_eq!(refused, Err(DropReason::PacingFull));
    assert!(paced.is_empty() && paced.take_due(Nanos(9)).is_none());
    assert_eq!(
        Paced::<HeapBuffer>::new(1 << 20).check_room(queue(0, Direction::Egress), 1792 * 512),
        Ok(())
    );
    assert_eq!(PACED_MAX, 1024);
}

/// What a history of packets does.
#[derive(Debug, Clone)]
enum Step {
    Keep { port: u16, bytes: usize, after: u64 },
    TakeDue { after: u64 },
    TakeOf { port: u16 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..6u16, 60..4000usize, 0..50u64)
            .prop_map(|(port, bytes, after)| Step::Keep { port, bytes, after }),
        4 => (0..40u64).prop_map(|after| Step::TakeDue { after }),
        1 => (0..6u16).prop_map(|port| Step::TakeOf { port }),
    ]
}

proptest! {
    /// Against plain queues: nothing is lost, each limit's packets leave in order, no packet before
    /// its time, and the memory taken is that of what waits.
    #[test]
    fn queues_are_what_plain_ones_are(steps in prop::collection::vec(step(), 1..400)) {
        let mut paced = Paced::new(24);
        let mut model = vec![VecDeque::<(u16, u64, usize)>::new(); 6];
        let (mut now, mut numbers) = (0, 0..);
        let id = |port: u16| {
            queue(port / 2, if port.is_multiple_of(2) { Direction::Ingress } else { Direction::Egress })
        };
        for step in steps {
            match step {
                Step::Keep { port, bytes, after } => {
                    let number_of = numbers.next().unwrap();
                    let plain = &mut model[usize::from(port)];
                    if paced.keep(id(port), waiting(number_of, bytes, now + after)).is_ok() {
                        plain.push_back((number_of, now + after, bytes));
                    }
                }
                Step::TakeDue { after } => {
                    now += after;
                    let heads = model.iter().filter_map(|plain| plain.front());
                    let first = heads.map(|(_, departure, _)| *departure).min();
                    prop_assert_eq!(paced.next_departure(), first.map(Nanos));
                    match paced.take_due(Nanos(now)) {
                        None => prop_assert!(first.is_none_or(|first| first > now)),
                        Some((_, taken)) => {
                            prop_assert_eq!(Some(taken.departure.0), first);
                            prop_assert!(taken.departure.0 <= now, "before its time");
                            let of = |plain: &&mut VecDeque<(u16, u64, usize)>| {
                                plain.front().is_some_and(|head| head.0 == number(&taken))
                            };
                            let plain = model.iter_mut().find(of);
                            prop_assert!(plain.is_some_and(|plain| plain.pop_front().is_some()));
                        }
                    }
                }
                Step::TakeOf { port } => {
                    while let Some(taken) = paced.take_of(id(port)) {
                        let head = model[usize::from(port)].pop_front();
                        prop_assert_eq!(head.map(|head| head.0), Some(number(&taken)));
                    }
                    prop_assert!(model[usize::from(port)].is_empty());
                }
            }
            let frames = |bytes: usize| bytes.div_ceil(1792);
            let all = model.iter().flatten();
            prop_assert_eq!(paced.packets(), all.clone().count());
            prop_assert_eq!(paced.frames(), all.map(|one| frames(one.2)).sum::<usize>());
            for port in 0..6 {
                prop_assert_eq!(paced.has_waiting(id(port)), !model[usize::from(port)].is_empty());
            }
        }
    }

    /// In any time a limited sender gets its rate, its burst and one packet at most.
    #[test]
    fn no_time_carries_more_than_rate_and_burst(
        bits in 1_000_000..10_000_000_000u64,
        burst in 8..1_000_000u64,
        packets in prop::collection::vec((60..1515usize, 0..2_000_000u64), 1..200),
    ) {
        let limit = Limit::new(Rate { bits_per_second: bits, burst_bits: Some(burst) });
        let mut now = Nanos(SECOND);
        let mut sent = Vec::new();
        for (bytes, pause) in packets {
            now = Nanos(now.0 + pause);
            if limit.outlook(now).is_some() {
                sent.push((limit.charge(now, bytes).max(now), bytes));
            }
        }
        for (from, (began, _)) in sent.iter().enumerate() {
            let mut carried = 0;
            for (departure, bytes) in &sent[from..] {
                carried += *bytes as u64;
                let time = u64::try_from(departure.since(*began).as_nanos()).unwrap();
                let allowed = u128::from(time + 2) * u128::from(bits) / u128::from(8 * SECOND);
                prop_assert!(u128::from(carried) <= allowed + u128::from(burst / 8) + 2 * 1515);
            }
        }
    }
}
