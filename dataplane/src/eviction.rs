//! Eviction: room is made before the flow table is full, and never at an established
//! connection's cost.
//!
//! The fuller a worker's part is, the more it gives up, in this order: half-open flows, flows that
//! are closing, flows of short-lived protocols. What is left then is established TCP, and new
//! flows are refused and counted. The sweep that looks for expired flows does it on its way, with
//! more entries at a time while that helps.

use flow_table::{Statistics, Table};

use crate::address::Protocol;
use crate::conntrack::{FlowState, Life, seconds};
use crate::tables::Timeouts;
use crate::time::Nanos;

/// Whole seconds that a half-open flow has to be answered before it may be evicted, at first and
/// when the part fills further, unless new flows are being refused already. A round trip around
/// the earth takes a third of one.
const HALF_OPEN_SECONDS: [u32; 2] = [2, 1];
/// Entries looked at per sweep under pressure, at least: enough to notice that there is something
/// to evict again, however fast flows come.
const ENTRIES_MIN: u32 = 16;
/// The same while new flows are refused.
const ENTRIES_WHEN_FULL: u32 = 64;
/// Entries looked at per sweep under pressure, at most. More than a tick can insert: a flood is overtaken.
const ENTRIES_MAX: u32 = 512;

/// How much a worker gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Pressure {
    /// Nothing: less than 7/8 of its part is in use.
    #[default]
    None,
    /// Half-open flows: 7/8 and more.
    HalfOpen,
    /// Flows that are closing, too: 15/16 and more.
    Closing,
    /// Flows of other protocols than TCP, too: 31/32 and more.
    ShortLived,
    /// The same, and half-open flows however young: a new flow was refused since the last sweep,
    /// so that sparing them would keep others out.
    Full,
}

impl Pressure {
    /// The pressure of a part of this fill, in which a new flow was `refused` lately or not.
    /// Entries that wait to be used again count as in use.
    #[must_use]
    pub fn of(statistics: &Statistics, refused: bool) -> Self {
        let taken = statistics.used + statistics.retired_waiting;
        // Compared without division: taken / capacity >= (n - 1) / n.
        let reaches = |n: u64| taken * n >= statistics.capacity * (n - 1);
        match () {
            () if refused => Self::Full,
            () if reaches(32) => Self::ShortLived,
            () if reaches(16) => Self::Closing,
            () if reaches(8) => Self::HalfOpen,
            () => Self::None,
        }
    }

    /// Whether a flow is given up at `now`.
    #[must_use]
    pub fn evicts(self, life: Life, now: Nanos, timeouts: &Timeouts) -> bool {
        let (protocol, state) = (life.protocol(), life.state());
        match state {
            FlowState::Opening | FlowState::Answered => match self {
                Self::None => false,
                Self::HalfOpen => age_seconds(life, now, timeouts) >= HALF_OPEN_SECONDS[0],
                Self::Closing | Self::ShortLived => {
                    age_seconds(life, now, timeouts) >= HALF_OPEN_SECONDS[1]
                }
                Self::Full => true,
            },
            FlowState::Closing | FlowState::TimeWait | FlowState::Closed => self >= Self::Closing,
            FlowState::Established => protocol != Protocol::TCP && self >= Self::ShortLived,
        }
    }
}

/// Seconds since the last packet that set the flow's deadline, rounded up.
pub(crate) fn age_seconds(life: Life, now: Nanos, timeouts: &Timeouts) -> u32 {
    let timeout = life.timeout(timeouts);
    let left = life.deadline_seconds().saturating_sub(seconds(now));
    timeout.0.saturating_sub(left)
}

/// One worker's search for what to give up, in one table.
#[derive(Debug, Default)]
pub struct Eviction {
    /// Entries evicted by the last sweep under pressure.
    evicted: u32,
    /// Inserts refused until the last sweep.
    refused: u64,
}

impl Eviction {
    /// The pressure on `owner`'s part of `table`.
    #[must_use]
    pub fn pressure<const W: usize>(&mut self, table: &Table<W>, owner: usize) -> Pressure {
        let Some(part) = table.statistics_of(owner) else { return Pressure::None };
        let pressure = Pressure::of(&part, part.slab_full > self.refused);
        self.refused = part.slab_full;
        pressure
    }

    /// Entries that the next sweep looks at under `pressure`, whether their turn has come or not:
    /// more while that helps.
    #[must_use]
    pub fn entries(&self, pressure: Pressure) -> u32 {
        let least = match pressure {
            Pressure::None => return 0,
            Pressure::Full => ENTRIES_WHEN_FULL,
            _ => ENTRIES_MIN,
        };
        self.evicted.saturating_mul(2).clamp(least, ENTRIES_MAX)
    }

    /// Remembers how many a sweep evicted.
    pub fn record(&mut self, evicted: u32) {
        self.evicted = evicted;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::{FlowDirection, Seen};

    fn fill(used: u64, retired_waiting: u64) -> Statistics {
        Statistics { capacity: 3200, used, retired_waiting, ..Statistics::default() }
    }

    #[test]
    fn pressure_grows_with_the_fill() {
        assert_eq!(Pressure::of(&fill(2799, 0), false), Pressure::None);
        assert_eq!(Pressure::of(&fill(2700, 100), false), Pressure::HalfOpen);
        assert_eq!(Pressure::of(&fill(3000, 0), false), Pressure::Closing);
        assert_eq!(Pressure::of(&fill(3100, 0), false), Pressure::ShortLived);
        assert_eq!(Pressure::of(&fill(3200, 0), true), Pressure::Full);
    }

    #[test]
    fn established_tcp_is_never_evicted_and_the_rest_goes_in_order() {
        let timeouts = Timeouts::default();
        let (start, later) = (Nanos(0), Nanos(3_000_000_000));
        let syn = Life::opened(Protocol::TCP, Seen::of(Seen::SYN), start, &timeouts);
        let advance = |life: Life, direction, flags| {
            life.advanced(direction, Seen::of(flags), start, &timeouts).unwrap_or(life)
        };
        let answered = advance(syn, FlowDirection::Reply, Seen::SYN | Seen::ACK);
        let open = advance(answered, FlowDirection::Original, Seen::ACK);
        let closing = advance(open, FlowDirection::Reply, Seen::FIN);
        let asked = Life::opened(Protocol::UDP, Seen::of(0), start, &timeouts);
        let talking = advance(asked, FlowDirection::Reply, 0);
        let gives_up = |pressure: Pressure, life| pressure.evicts(life, later, &timeouts);
        for (life, from) in [
            (syn, Some(Pressure::HalfOpen)),
            (answered, Some(Pressure::HalfOpen)),
            (asked, Some(Pressure::HalfOpen)),
            (closing, Some(Pressure::Closing)),
            (talking, Some(Pressure::ShortLived)),
            (open, None),
        ] {
            for pressure in
                [Pressure::None, Pressure::HalfOpen, Pressure::Closing, Pressure::ShortLived]
            {
                let expected = from.is_some_and(|from| pressure >= from);
                assert_eq!(gives_up(pressure, life), expected, "{life:?} under {pressure:?}");
            }
        }
        let young = Nanos(900_000_000);
        assert!(!Pressure::ShortLived.evicts(syn, young, &timeouts), "a second's grace");
        assert!(Pressure::Full.evicts(syn, young, &timeouts));
    }
}
