//! How fast something fills, and when it will be full. Pure.

/// A smoothed change per second, noted once a second.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rate {
    last: Option<u64>,
    /// In thousandths per second.
    milli: i64,
}

/// The newest second counts for one in so many: what was a minute ago counts little.
const SECONDS: i64 = 20;
/// Thousandths per second below which there is no trend: three in a minute.
const TREND_MIN: i64 = 50;

impl Rate {
    /// Notes how much there is now.
    pub fn note(&mut self, now: u64) {
        if let Some(last) = self.last.replace(now) {
            let difference = i64::try_from(now.abs_diff(last)).unwrap_or(i64::MAX);
            let change = if now < last { -difference } else { difference };
            let away = change.saturating_mul(1000).saturating_sub(self.milli);
            self.milli = self.milli.saturating_add(away / SECONDS);
        }
    }

    /// Seconds until there are `most`, at this pace; `None` while nothing is added.
    #[must_use]
    pub fn seconds_until(&self, now: u64, most: u64) -> Option<u64> {
        let milli = u64::try_from(self.milli).ok().filter(|_| self.milli >= TREND_MIN)?;
        Some(most.saturating_sub(now).saturating_mul(1000) / milli)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_fills_steadily_is_full_when_it_says() {
        let mut rate = Rate::default();
        (0..200).for_each(|second| rate.note(1000 + 50 * second));
        let left = rate.seconds_until(10_950, 20_950).unwrap();
        assert!((198..=202).contains(&left), "{left}");
        assert_eq!(rate.seconds_until(30_000, 20_000), Some(0));
    }

    #[test]
    fn a_table_that_does_not_fill_is_never_full() {
        let mut rate = Rate::default();
        assert_eq!(rate.seconds_until(5, 10), None);
        (0..100).for_each(|_| rate.note(7));
        assert_eq!(rate.seconds_until(7, 10), None);
        (0..100).for_each(|second| rate.note(100 - second));
        assert_eq!(rate.seconds_until(7, 10), None);
    }
}
