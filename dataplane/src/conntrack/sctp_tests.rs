use super::super::{FlowDirection, Life};
use super::*;
use crate::address::Protocol;
use crate::time::Nanos;

const TAG: u32 = 0x0102_0304;

/// A common header with this tag, and chunks of (type, flags, value).
fn packet(tag: u32, chunks: &[(u8, u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0x13, 0x88, 0x13, 0x89];
    bytes.extend(tag.to_be_bytes());
    bytes.extend([0; 4]);
    for (kind, flags, value) in chunks {
        let len = u16::try_from(4 + value.len()).unwrap();
        bytes.extend([*kind, *flags]);
        bytes.extend(len.to_be_bytes());
        bytes.extend(*value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn read(bytes: &[u8]) -> Result<Chunks, DropReason> {
    Chunks::read(bytes, 0, bytes.len(), true)
}

/// The value of an INIT that asks for this tag.
fn init(tag: u32) -> Vec<u8> {
    let mut value = tag.to_be_bytes().to_vec();
    value.extend([0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1]);
    value
}

#[test]
fn control_chunks_are_read_in_front_of_data_and_no_further() {
    let chunks = [(11, 0, &[][..]), (3, 0, &[0; 12]), (0, 3, &[0; 14]), (6, 0, &[])];
    let shown = read(&packet(TAG, &chunks)).unwrap();
    assert_eq!(shown, Chunks { tag: TAG, shown: COOKIE_ACK, ..Chunks::default() });
    assert_eq!(read(&packet(TAG, &[(0, 3, &[0; 4])])).unwrap().shown, 0);
    let abort = read(&packet(TAG, &[(6, 1, &[])])).unwrap();
    assert!(abort.shown == ABORT && abort.is_reflected);
    let opening = read(&packet(0, &[(1, 0, &init(7))])).unwrap();
    assert_eq!((opening.initiate_tag, opening.is_init()), (Some(7), true));
}

#[test]
fn packets_that_rfc_9260_has_silently_discarded_are_refused() {
    let beside: &[(u8, u8, &[u8])] = &[(11, 0, &[]), (14, 0, &[])];
    for (bytes, reason) in [
        (packet(0, &[(1, 0, &init(0))]), DropReason::Malformed),
        (packet(0, &[(1, 0, &[0, 0, 0, 7])]), DropReason::Malformed),
        (packet(0, &[(1, 0, &init(7)), (0, 0, &[0; 4])]), DropReason::Malformed),
        (packet(TAG, beside), DropReason::Malformed),
        (packet(TAG, &[(1, 0, &init(7))]), DropReason::SctpWrongTag),
        (packet(0, &[(2, 0, &init(7))]), DropReason::SctpWrongTag),
        (packet(0, &[(0, 0, &[0; 4])]), DropReason::SctpWrongTag),
        (packet(TAG, &[])[..11].to_vec(), DropReason::Truncated),
    ] {
        assert_eq!(read(&bytes), Err(reason), "{bytes:02x?}");
    }
    let mut lying = packet(TAG, &[(6, 0, &[])]);
    lying[15] = 3;
    assert_eq!(read(&lying), Err(DropReason::Malformed), "shorter than its own header");
    lying[15] = 5;
    assert_eq!(read(&lying), Err(DropReason::Malformed), "longer than the packet");
    assert!(Chunks::read(&lying, 0, lying.len(), false).is_ok(), "the rest is in other fragments");
}

fn shows(kind: u8) -> Seen {
    Seen(shown_by(kind) | Seen::ANY)
}

fn walk(steps: &[(FlowDirection, u8)]) -> Life {
    let timeouts = Timeouts::default();
    let first = steps[0];
    assert_eq!(first.0, FlowDirection::Original);
    let opened = Life::opened(Protocol::SCTP, shows(first.1), Nanos(0), &timeouts);
    steps[1..].iter().fold(opened, |life, (direction, kind)| {
        life.advanced(*direction, shows(*kind), Nanos(0), &timeouts).unwrap_or(life)
    })
}

use FlowDirection::{Original, Reply};

const OPEN: [(FlowDirection, u8); 4] = [
    (Original, chunk::INIT),
    (Reply, chunk::INIT_ACK),
    (Original, chunk::COOKIE_ECHO),
    (Reply, chunk::COOKIE_ACK),
];

#[test]
fn association_goes_through_linux_states_with_their_times() {
    let closing = [
        (Original, chunk::SHUTDOWN),
        (Reply, chunk::SHUTDOWN_ACK),
        (Original, chunk::SHUTDOWN_COMPLETE),
    ];
    let all = [&OPEN[..], &closing].concat();
    let states = [
        (FlowState::Opening, 3),
        (FlowState::Opening, 3),
        (FlowState::Answered, 3),
        (FlowState::Established, 210),
        (FlowState::Closing, 3),
        (FlowState::TimeWait, 3),
        (FlowState::Closed, 10),
    ];
    for (steps, (state, seconds)) in (1..).zip(states) {
        let life = walk(&all[..steps]);
        assert_eq!((life.state(), life.deadline_seconds()), (state, seconds), "step {steps}");
    }
    let received = walk(&[&OPEN[..], &[(Reply, chunk::SHUTDOWN)]].concat());
    assert_eq!(received.state(), FlowState::Closing);
}

#[test]
fn association_of_another_address_is_opened_by_a_heartbeat() {
    let sent = walk(&[(Original, 4)]);
    assert_eq!((sent.state(), sent.deadline_seconds()), (FlowState::Opening, 30));
    let answered = walk(&[(Original, 4), (Reply, 5)]);
    assert_eq!((answered.state(), answered.deadline_seconds()), (FlowState::Established, 210));
}

#[test]
fn init_on_an_association_that_stands_changes_nothing_and_after_its_end_begins_another() {
    for open in [&OPEN[..], &[(Original, 0), (Reply, 3)]] {
        let again = [open, &[(Original, chunk::INIT)]].concat();
        assert_eq!(walk(&again), walk(open));
        assert!(!walk(open).is_followed_by(INIT));
        // Whoever was opened to does not open by the same flow.
        assert!(!walk(open).admits(Reply, INIT));
    }
    let aborted = walk(&[&OPEN[..], &[(Reply, chunk::ABORT)]].concat());
    assert!(aborted.is_followed_by(INIT) && !aborted.is_followed_by(INIT_ACK));
    assert!(walk(&OPEN[..1]).admits(Reply, INIT), "both may open at once");
}

#[test]
fn association_on_which_both_ends_speak_after_an_abort_was_not_aborted() {
    let aborted = [&OPEN[..], &[(Original, chunk::ABORT), (Original, 0), (Reply, 3)]].concat();
    assert_eq!(walk(&aborted[..6]).state(), FlowState::Closed);
    assert_eq!(walk(&aborted).state(), FlowState::Established);
}
