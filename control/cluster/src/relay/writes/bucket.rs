//! A token bucket: so many at once, and then one in so long. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// How much may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// At once.
    pub burst: u32,
    /// Then one in so long.
    pub every: Duration,
}

/// Tokens that are left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    tokens: u32,
    /// Tokens are made from then on.
    since: Instant,
}

impl Bucket {
    pub(super) fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst, since: now }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let made = now.duration_since(self.since).as_nanos() / rate.every.as_nanos().max(1);
        let made = u32::try_from(made).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(made).min(rate.burst);
        // What a full bucket lets run over is no credit.
        self.since = match self.is_full(rate) {
            true => now,
            false => self.since + rate.every.saturating_mul(made),
        };
    }

    fn is_full(&self, rate: Rate) -> bool {
        self.tokens >= rate.burst
    }

    /// Takes a token.
    ///
    /// # Errors
    /// There is none, and so long until there is.
    pub(super) fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.refill(rate, now);
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                Ok(())
            }
            None => Err((self.since + rate.every).duration_since(now)),
        }
    }

    /// Gives one back that was taken.
    pub(super) fn give_back(&mut self) {
        self.tokens = self.tokens.saturating_add(1);
    }

    /// Whether it is as it was before the first token was taken.
    pub(super) fn is_refilled(&mut self, rate: Rate, now: Instant) -> bool {
        self.refill(rate, now);
        self.is_full(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_taken_at_once_and_the_rest_at_its_time() {
        let rate = Rate { burst: 3, every: Duration::from_secs(10) };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut bucket = Bucket::full(rate, start);
        assert!((0..3).all(|_| bucket.take(rate, start).is_ok()));
        assert_eq!(bucket.take(rate, at(4)), Err(Duration::from_secs(6)));
        assert_eq!(bucket.take(rate, at(10)), Ok(()));
        assert_eq!(bucket.take(rate, at(15)), Err(Duration::from_secs(5)));
        assert!(!bucket.is_refilled(rate, at(39)));
        assert!(bucket.is_refilled(rate, at(40)));
        // However long nobody asks, the burst does not grow.
        assert!((0..3).all(|_| bucket.take(rate, at(4000)).is_ok()));
        assert!(bucket.take(rate, at(4009)).is_err());
    }
}
