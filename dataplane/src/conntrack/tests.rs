//! States, marks and time-outs of flows.

use super::*;

const SECOND: u64 = 1_000_000_000;

#[test]
fn segment_limit_is_the_smaller_of_both_ends_and_changes_nothing_else() {
    let timeouts = Timeouts::default();
    let syn = Seen(Seen::SYN);
    let opened = Life::opened(Protocol::TCP, syn, Nanos(0), &timeouts);
    assert_eq!(opened.segment_limit(), SegmentLimit::LEAST);
    for (first, second) in (0..64).flat_map(|one| (0..64).map(move |other| (one, other))) {
        let [offer, answer] = [first, second].map(SegmentLimit::from_bits);
        let asked = opened.with_segment_limit(offer, Seen::SYN);
        assert_eq!(asked.segment_limit(), offer);
        let answered = asked.with_segment_limit(answer, Seen::SYN | Seen::ACK);
        assert_eq!(answered.segment_limit(), offer.min(answer));
        let (state, seen) = (answered.state(), answered.seen(FlowDirection::Original));
        assert_eq!((state, seen.has(Seen::SYN)), (opened.state(), true));
        let again = answered.with_segment_limit(SegmentLimit::LEAST, Seen::SYN);
        assert_eq!(again, opened, "nothing else changed");
        let reply = Seen(Seen::SYN | Seen::ACK | Seen::ANY);
        let advanced = answered.advanced(FlowDirection::Reply, reply, Nanos(0), &timeouts);
        let limit = advanced.map(Life::segment_limit);
        assert_eq!(limit, Some(offer.min(answer)), "packets do not change it");
    }
}

fn walk(steps: &[(FlowDirection, u8)]) -> Life {
    let timeouts = Timeouts::default();
    let mut life = Life::opened(Protocol::TCP, Seen::of(steps[0].1), Nanos(0), &timeouts);
    for (direction, flags) in &steps[1..] {
        life = life.advanced(*direction, Seen::of(*flags), Nanos(0), &timeouts).unwrap_or(life);
    }
    life
}

use FlowDirection::{Original, Reply};
const S: u8 = Seen::SYN;
const A: u8 = Seen::ACK;
const F: u8 = Seen::FIN;
const R: u8 = Seen::RST;

#[test]
fn handshake_goes_from_opening_through_answered_to_established() {
    assert_eq!(walk(&[(Original, S)]).state(), FlowState::Opening);
    assert_eq!(walk(&[(Original, S), (Reply, S | A)]).state(), FlowState::Answered);
    let life = walk(&[(Original, S), (Reply, S | A), (Original, A)]);
    assert_eq!(life.state(), FlowState::Established);
    assert_eq!(life.deadline_seconds(), 432_000);
}

#[test]
fn two_fins_lead_to_time_wait_and_a_reset_closes() {
    let open = [(Original, S), (Reply, S | A), (Original, A)];
    let one = [&open[..], &[(Reply, F | A)]].concat();
    assert_eq!(walk(&one).state(), FlowState::Closing);
    let both = [&one[..], &[(Original, F | A)]].concat();
    assert_eq!(walk(&both).state(), FlowState::TimeWait);
    let reset = [&open[..], &[(Reply, R)]].concat();
    assert_eq!(walk(&reset).state(), FlowState::Closed);
}

#[test]
fn syn_after_the_end_begins_another_connection_and_before_it_none() {
    let open = [(Original, S), (Reply, S | A), (Original, A)];
    let over = [&open[..], &[(Original, A | F), (Reply, F | A)]].concat();
    assert!(walk(&over).is_followed_by(S));
    assert!(!walk(&over).is_followed_by(S | A));
    assert!(!walk(&open).is_followed_by(S));
    assert!(walk(&open).admits(Original, S), "the peer answers with a challenge ACK");
    assert!(!walk(&open).admits(Reply, S));
    assert!(walk(&open[..1]).admits(Reply, S), "both may open at once");
}

#[test]
fn reset_connection_stands_again_when_both_ends_go_on() {
    let reset = [(Original, S), (Reply, S | A), (Original, A), (Reply, R)];
    let one = [&reset[..], &[(Original, A), (Original, A)]].concat();
    assert_eq!(walk(&one).state(), FlowState::Closed);
    let again = [&one[..], &[(Original, R), (Reply, A)]].concat();
    assert_eq!(walk(&again).state(), FlowState::Closed, "it was reset once more");
    let both = [&one[..], &[(Reply, A)]].concat();
    assert_eq!(walk(&both).state(), FlowState::Established);
    assert_eq!(walk(&both).deadline_seconds(), 432_000);
}

#[test]
fn steady_flow_becomes_what_any_flow_would() {
    let timeouts = Timeouts::default();
    let now = Nanos(7 * SECOND + 1);
    let protocols = [Protocol::TCP, Protocol::UDP, Protocol::ICMP, Protocol(47)];
    let mut steady = 0;
    for original in 0..=u8::MAX {
        for reply in 0..=u8::MAX {
            for (protocol, marks) in
                protocols.iter().flat_map(|p| [0, 1, 4, 8, 0x50, 128].map(|mark| (*p, mark)))
            {
                let life = Life::pack(9, (Seen(original), Seen(reply)), protocol, marks);
                for direction in [Original, Reply] {
                    let seen = life.seen(direction);
                    let Some(timeout) = life.steady_timeout(direction, seen, &timeouts) else {
                        continue;
                    };
                    steady += 1;
                    let fast = life.ending(deadline(now, timeout));
                    assert_eq!(fast, life.changed(direction, seen, now, &timeouts), "{life:?}");
                }
            }
        }
    }
    assert!(steady > 1000);
    let open = walk(&[(Original, S), (Reply, S | A), (Original, A), (Reply, A)]);
    assert!(open.steady_timeout(Original, Seen::of(A), &timeouts).is_some());
    assert!(open.steady_timeout(Original, Seen::of(F | A), &timeouts).is_none());
}

#[test]
fn retransmission_in_time_wait_does_not_prolong_it() {
    let life = walk(&[(Original, S), (Reply, S | A), (Original, A | F), (Reply, F | A)]);
    let later = Nanos(100 * SECOND);
    assert_eq!(life.advanced(Reply, Seen::of(F | A), later, &Timeouts::default()), None);
    assert!(life.expired(Nanos(120 * SECOND)));
}

#[test]
fn established_packet_within_the_same_second_writes_nothing() {
    let life = walk(&[(Original, S), (Reply, S | A), (Original, A)]);
    let timeouts = Timeouts::default();
    let life = life.advanced(Reply, Seen::of(A), Nanos(5), &timeouts).unwrap_or(life);
    assert_eq!(life.advanced(Reply, Seen::of(A), Nanos(900), &timeouts), None);
}

#[test]
fn udp_reply_lengthens_the_time_out() {
    let timeouts = Timeouts::default();
    let life = Life::opened(Protocol::UDP, Seen::of(0), Nanos(0), &timeouts);
    assert_eq!(life.deadline_seconds(), 30);
    let life = life.advanced(Reply, Seen::of(0), Nanos(SECOND), &timeouts).unwrap_or(life);
    assert_eq!((life.state(), life.deadline_seconds()), (FlowState::Established, 121));
}
