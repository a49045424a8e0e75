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
}

impl Pressure {
    /// Notes how they are at `now`; says whether they have been pressed for [`SUSTAINED`]. A moment
    /// in between, of less than that, changes nothing.
    #[inline]
    pub(super) fn note(&mut self, now: Nanos, is_pressed: bool) -> bool {
        let Some((since, _)) = self.seen.filter(|(_, last)| now.since(*last) < SUSTAINED) else {
            self.seen = is_pressed.then_some((now, now));
            return false;
        };
        if is_pressed {
            self.seen = Some((since, now));
        }
        now.since(since) >= SUSTAINED
    }

    /// Whether it may still be what was noted last: nothing pressed has been seen for longer than
    /// [`SUSTAINED`] otherwise, since nothing comes any more, for one.
    #[inline]
    pub(super) fn lasts(&self, now: Nanos) -> bool {
        self.seen.is_some_and(|(_, last)| now.since(last) < SUSTAINED)
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
        assert!(pressure.lasts(at(39)) && !pressure.lasts(at(40)));
        assert!(!pressure.note(at(41), false), "a burst long ago");
    }
}
