use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn wanted(seed: u64) -> Wanted {
    Wanted { destination: 7, seed, own: 1000, keeps_parity: false }
}

/// A keyed hash in small: all bits of the number matter.
fn mixed(number: u64) -> u64 {
    number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31)
}

#[test]
fn flow_keeps_its_own_port_where_it_is_free_and_ours_to_give() {
    let mut ports = NatPorts::new(Some(61_000..=61_999));
    let own = Wanted { own: 61_234, ..wanted(0) };
    let free = |_| PortUse::Free;
    assert_eq!(ports.choose(&own, Nanos(0), free).map(|choice| choice.l4_port), Ok(61_234));
    let taken = |l4_port| if l4_port == 61_234 { PortUse::Taken } else { PortUse::Free };
    let other = ports.choose(&own, Nanos(0), taken).expect("one is free");
    assert_ne!(other.l4_port, 61_234);
    let foreign = ports.choose(&wanted(0), Nanos(0), free).expect("all are free");
    assert!((61_000..=61_999).contains(&foreign.l4_port));
}

#[test]
fn parity_is_kept_while_a_port_of_it_is_free_and_given_up_before_a_flow_is() {
    for first in [61_000, 61_001] {
        let mut ports = NatPorts::new(Some(first..=first + 199));
        let mut used = BTreeSet::new();
        for number in 0..200 {
            let wanted = Wanted { own: 5001, keeps_parity: true, ..wanted(mixed(number)) };
            let choice = ports.choose(&wanted, Nanos(0), |l4_port| {
                if used.contains(&l4_port) { PortUse::Taken } else { PortUse::Free }
            });
            let l4_port = choice.expect("one is free").l4_port;
            assert_eq!(l4_port % 2 == 1, number < 100, "flow {number} got {l4_port}");
            used.insert(l4_port);
        }
    }
}

#[test]
fn every_port_is_found_and_few_are_looked_at_however_crowded_the_destination_is() {
    let mut ports = NatPorts::new(Some(61_000..=65_535));
    let mut used = BTreeSet::new();
    let mut lookups = 0;
    for number in 0..4536 {
        let mut once = 0;
        // One in some dozens is refused while its destination's bitmap is new.
        for again in 0..3 {
            let wanted = wanted(mixed(number ^ again << 40));
            let choice = ports.choose(&wanted, Nanos(0), |l4_port| {
                once += 1;
                if used.contains(&l4_port) { PortUse::Taken } else { PortUse::Free }
            });
            if let Ok(choice) = choice {
                assert!(used.insert(choice.l4_port));
                break;
            }
        }
        assert!(once <= 3 * (1 + 8 + 64), "{once} look-ups for flow {number}");
        lookups += once;
    }
    assert_eq!(used.len(), 4536);
    assert!(lookups < 4 * 4536, "{lookups} look-ups in all");
    // Full, and known to be: a port that is given back is found at once.
    while ports.choose(&wanted(3), Nanos(0), |_| PortUse::Taken).is_err() {
        if ports.crowded.iter().any(|one| one.in_vain > 0) {
            break;
        }
    }
    let mut once = 0;
    ports.release(7, 62_001);
    let choice = ports.choose(&wanted(3), Nanos(0), |_| {
        once += 1;
        PortUse::Free
    });
    assert_eq!((choice.map(|choice| choice.l4_port), once), (Ok(62_001), 1));
}

fn exhausted() -> NatPorts {
    let mut ports = NatPorts::new(Some(61_000..=61_099));
    while ports.choose(&wanted(0), Nanos(0), |_| PortUse::Taken).is_err() {
        if ports.crowded.iter().any(|one| one.rests_until > Nanos(0)) {
            return ports;
        }
    }
    unreachable!("nothing is free");
}

#[test]
fn ports_taken_toward_the_most_crowded_destination_are_counted() {
    let mut ports = exhausted();
    let all = count(ports.share().unwrap());
    assert_eq!(ports.taken_most(), all);
    let first = *ports.share().unwrap().start();
    ports.release(7, first);
    ports.release(7, first);
    ports.release(8, first);
    assert_eq!(ports.taken_most(), all - 1);
    ports.take(7, first);
    ports.take(7, first);
    assert_eq!(ports.taken_most(), all);
}

#[test]
fn exhausted_destination_refuses_and_looks_again_only_after_a_rest() {
    let mut ports = exhausted();
    let mut once = 0;
    let mut look = |_| {
        once += 1;
        PortUse::Taken
    };
    let refused = Err(DropReason::NatPortsExhausted);
    assert_eq!(ports.choose(&wanted(0), Nanos(SECOND - 1), &mut look), refused);
    assert_eq!(ports.choose(&wanted(0), Nanos(SECOND), &mut look), refused);
    assert_eq!(once, 16);
}

#[test]
fn only_what_is_over_gives_way_and_only_when_no_port_is_free() {
    let table = flow_table_handle();
    let closed = |l4_port| match l4_port {
        61_050 => PortUse::Closed(table),
        _ => PortUse::Taken,
    };
    let mut ports = NatPorts::new(Some(61_000..=61_099));
    let mut refused = 0;
    let choice = loop {
        match ports.choose(&wanted(0), Nanos(0), closed) {
            Ok(choice) => break choice,
            Err(_) => refused += 1,
        }
        assert!(refused < 20);
    };
    assert_eq!((choice.l4_port, choice.instead_of, choice.evicts), (61_050, Some(table), true));
    let with_room = |l4_port| if l4_port == 61_051 { PortUse::Free } else { closed(l4_port) };
    let mut ports = NatPorts::new(Some(61_000..=61_099));
    let first = (0..20).find_map(|_| ports.choose(&wanted(0), Nanos(0), with_room).ok());
    assert_eq!(first.map(|choice| choice.l4_port), Some(61_051));
}

fn flow_table_handle() -> Handle {
    use flow_table::{Memory, Quiescence, Shape, Table};
    let quiescence = Quiescence::new(1).expect("one worker");
    let shape = Shape { capacity: 64, committed: 64, capacity_max: 64, owners: 1, details: false };
    let (_, mut owners) = Table::<8>::new(Memory::Heap, shape, quiescence).expect("memory");
    let tcp = crate::address::Protocol::TCP;
    let key = crate::flow_key::FlowKey4::new(tcp, (1, 3), (2, 4));
    owners[0].insert((1, key), None, &[0; 8]).expect("room")
}

#[test]
fn without_a_share_every_flow_is_refused() {
    let mut ports = NatPorts::new(None);
    let refused = ports.choose(&wanted(0), Nanos(0), |_| PortUse::Free);
    assert_eq!(refused, Err(DropReason::NatPortsExhausted));
    ports.release(7, 61_000);
}

proptest! {
    /// Against a plain set: nothing is given twice, and what is refused for ever has no room.
    #[test]
    fn ports_are_given_once_and_all_of_them(
        first in 1024u16..60_000,
        span in 0u16..300,
        steps in proptest::collection::vec((any::<u64>(), 0u64..40, any::<bool>()), 1..400),
    ) {
        let share = first..=first + span;
        let mut ports = NatPorts::new(Some(share.clone()));
        let mut used = BTreeSet::<(u64, u16)>::new();
        for (seed, destination, gives_back) in steps {
            if gives_back {
                let any = used.iter().cycle().nth(usize::from(seed.to_be_bytes()[0])).copied();
                if let Some((destination, l4_port)) = any {
                    used.remove(&(destination, l4_port));
                    ports.release(destination, l4_port);
                }
                continue;
            }
            let destination = destination % 3;
            let wanted = Wanted { destination, seed, own: first, keeps_parity: seed % 2 == 0 };
            let mut tries = 0;
            let choice = loop {
                let choice = ports.choose(&wanted, Nanos(0), |l4_port| {
                    assert!(share.contains(&l4_port));
                    let is_used = used.contains(&(destination, l4_port));
                    if is_used { PortUse::Taken } else { PortUse::Free }
                });
                tries += 1;
                if choice.is_ok() || tries == 40 {
                    break choice;
                }
            };
            match choice {
                Ok(choice) => prop_assert!(used.insert((destination, choice.l4_port))),
                Err(_) => {
                    let taken = used.iter().filter(|(to, _)| *to == destination).count();
                    prop_assert_eq!(taken, usize::from(span) + 1);
                }
            }
        }
    }
}
