//! Flows of which this node sees the client's packets alone, since the backend's node answers
//! ([`crate::direct`]).
//!
//! What stands here can be known only half: a handshake that the client says is complete may be one that
//! it made up, and an end that the server makes is never seen. So such a connection is never among those
//! that nothing may evict, and it is remembered as long as RFC 5382, REQ-5 asks for at least and no
//! longer: what comes after that is led by its hash, to the same backend as long as backends are the same.

use super::{FlowState, Seen};
use crate::address::Protocol;
use crate::tables::Timeouts;
use crate::time::Seconds;

/// Idle time after which a connection is forgotten: 2 h 4 min (RFC 5382, REQ-5).
const CONNECTION: Seconds = Seconds(7440);

/// The state that follows from what the client has shown.
pub(super) fn state(protocol: Protocol, client: Seen) -> FlowState {
    match protocol {
        Protocol::TCP if client.has(Seen::RST) => FlowState::Closed,
        // The server may go on speaking, and be acknowledged.
        Protocol::TCP if client.has(Seen::FIN) => FlowState::Closing,
        Protocol::TCP if client.has(Seen::ACK) => FlowState::Answered,
        Protocol::TCP => FlowState::Opening,
        _ => FlowState::Established,
    }
}

/// Idle time after which a flow in this state ends.
pub(super) fn timeout(protocol: Protocol, state: FlowState, timeouts: &Timeouts) -> Seconds {
    match (protocol, state) {
        (Protocol::TCP, FlowState::Answered) => timeouts.tcp_established.min(CONNECTION),
        _ => state.timeout(protocol, timeouts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::{FlowDirection, Life};
    use crate::direct::Role;
    use crate::eviction::Pressure;
    use crate::time::Nanos;

    fn after(flags: &[u8]) -> Life {
        let timeouts = Timeouts::default();
        let opened = Life::opened(Protocol::TCP, Seen::of(flags[0]), Nanos(0), &timeouts);
        let opened = opened.with_role(Some(Role::Dispatches), Nanos(0), &timeouts);
        flags[1..].iter().fold(opened, |life, flags| {
            let seen = Seen::of(*flags);
            life.advanced(FlowDirection::Original, seen, Nanos(0), &timeouts).unwrap_or(life)
        })
    }

    #[test]
    fn state_follows_from_the_client_alone_and_the_role_is_kept() {
        const S: u8 = Seen::SYN;
        const A: u8 = Seen::ACK;
        for (flags, state, seconds) in [
            (&[S][..], FlowState::Opening, 120),
            (&[S, A], FlowState::Answered, 7440),
            (&[A], FlowState::Answered, 7440),
            (&[S, A, A, Seen::FIN | A], FlowState::Closing, 120),
            (&[S, A, Seen::FIN | A, A], FlowState::Closing, 120),
            (&[S, A, Seen::RST], FlowState::Closed, 10),
        ] {
            let life = after(flags);
            assert_eq!((life.state(), life.deadline_seconds()), (state, seconds), "{flags:?}");
            assert!(life.is_dispatched() && !life.answers_directly());
        }
        assert!(after(&[S, A, Seen::FIN | A]).is_followed_by(S));
        assert!(!after(&[S, A]).is_followed_by(S));
    }

    /// A handshake of one side alone may be made up, by as many as fill the table.
    #[test]
    fn connection_of_one_side_is_never_among_those_that_nothing_evicts() {
        let (life, later) = (after(&[Seen::SYN, Seen::ACK]), Nanos(3_000_000_000));
        assert!(Pressure::HalfOpen.evicts(life, later, &Timeouts::default()));
    }

    #[test]
    fn datagrams_of_one_side_count_as_answered() {
        let timeouts = Timeouts::default();
        let opened = Life::opened(Protocol::UDP, Seen::of(0), Nanos(0), &timeouts);
        let life = opened.with_role(Some(Role::Dispatches), Nanos(0), &timeouts);
        assert_eq!((life.state(), life.deadline_seconds()), (FlowState::Established, 120));
    }
}
