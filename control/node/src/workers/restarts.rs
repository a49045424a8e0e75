//! How often a thread may go on after a panic.

use std::time::Duration;

use dataplane::time::Nanos;

/// Within [`WITHIN`]; one more ends the thread, and with it the process. Each costs the buffers of a
/// burst or two, and a defect that comes back at once is not one to go on with.
pub const ALLOWED: u32 = 5;
/// See [`ALLOWED`].
pub const WITHIN: Duration = Duration::from_secs(60);
/// How long `xskiff status` tells of the last one.
pub const TOLD_FOR: Duration = Duration::from_secs(600);

/// The restarts of one thing.
#[derive(Debug, Default)]
pub struct Restarts {
    since: Nanos,
    count: u32,
}

impl Restarts {
    /// Whether it may go on once more at `now`.
    pub fn allow(&mut self, now: Nanos) -> bool {
        if self.count == 0 || now.since(self.since) > WITHIN {
            *self = Self { since: now, count: 0 };
        }
        self.count += 1;
        self.count <= ALLOWED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_in_a_minute_and_no_more() {
        let mut restarts = Restarts::default();
        let at = |second: u64| Nanos(7).after(Duration::from_secs(second));
        assert!((0..5).all(|second| restarts.allow(at(second))));
        assert!(!restarts.allow(at(6)));
        assert!(!restarts.allow(at(59)), "it stays so while the minute lasts");
        assert!(restarts.allow(at(61)));
    }
}
