//! Whether a worker has more to do than it can.

use std::time::Duration;

use crate::time::Nanos;

/// How long packets must pile up before new flows are shed. A burst that a ring takes is handled within
/// a fraction of this; what lasts longer is an overload.
pub const SUSTAINED: Duration = Duration::from_millis(10);

/// What was seen of a worker's ports lately.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// Since when, and until when, they were pressed.
    seen: Option<(Nanos, Nanos)>,
    /// Whether they were when they were last looked at.
    was_pressed: bool,
}

impl Pressure {
    /// Notes how they are at `now`; says whether they have been pressed for [`SUSTAINED`]. A moment
    /// in between, of less than that, changes nothing; nor does time in which nobody looked, between two
    /// looks that found them pressed: a worker that starves for a processor runs for a few milliseconds
    /// every now and then, and packets pile up all the while.
    #[inline]
    pub(super) fn note(&mut self, now: Nanos, is_pressed: bool) -> bool {
        let stayed = std::mem::replace(&mut self.was_pressed, is_pressed) && is_pressed;
        let lasts = |(_, last): &(Nanos, Nanos)| stayed || now.since(*last) < SUSTAINED;
        let Some((since, _)) = self.seen.filter(lasts) else {
            self.seen = is_pressed.then_some((now, now));
            return false;
        };
        if is_pressed {
            self.seen = Some((since, now));
        }
        now.since(since) >= SUSTAINED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_an_overload_and_a_burst_is_none() {
        let at = |millis: u64| Nanos(1).after(Duration::from_millis(millis));
        let mut pressure = Pressure::default();
        assert!(!pressure.note(at(0), true));
        assert!(!pressure.note(at(9), true));
        assert!(pressure.note(at(10), true));
        assert!(pressure.note(at(15), false), "a moment without is not the end of it");
        assert!(pressure.note(at(19), true));
        assert!(pressure.note(at(28), false));
        assert!(!pressure.note(at(29), false));
        assert!(!pressure.note(at(30), true), "it begins anew");
        assert!(!pressure.note(at(41), false), "a burst long ago");
    }

    /// It counted as a burst each time that the worker ran, and nothing was shed at all.
    #[test]
    fn a_worker_that_seldom_gets_a_processor_is_overloaded_too() {
        let at = |millis: u64| Nanos(1).after(Duration::from_millis(millis));
        let mut pressure = Pressure::default();
        assert!(!pressure.note(at(0), true));
        assert!(!pressure.note(at(3), true));
        assert!(pressure.note(at(80), true), "nobody looked meanwhile");
        assert!(pressure.note(at(83), true));
        assert!(!pressure.note(at(160), false), "it is over when somebody looks again");
        // One that slept, since there was nothing to do, is not.
        assert!(!pressure.note(at(400), true));
        assert!(!pressure.note(at(405), true));
    }
}
