//! Every failure of the control side: a log line, a counter, and a line in `xskiff status` that
//! names the object. A failure that repeats is one line with a count.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use control::admin::status::{ERRORS_MAX, ObjectError};

/// The last failures, newest first.
#[derive(Debug, Default)]
pub struct ErrorLog {
    entries: VecDeque<ObjectError>,
    failures: u64,
}

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl ErrorLog {
    /// Notes that something failed with `object`, now.
    pub fn note(&mut self, object: impl Into<String>, message: impl ToString) {
        self.note_at(object.into(), message.to_string(), unix_ms(SystemTime::now()));
    }

    fn note_at(&mut self, object: String, message: String, time_unix_ms: u64) {
        self.failures += 1;
        let same = |entry: &ObjectError| entry.object == object && entry.message == message;
        let count = match self.entries.iter().position(same) {
            Some(index) => self.entries.remove(index).map_or(0, |entry| entry.count),
            None => 0,
        };
        // The first of a series is a warning; repetitions would only bury it.
        if count == 0 {
            tracing::warn!(object, error = message, "failed");
        } else {
            tracing::debug!(object, error = message, count, "failed again");
        }
        self.entries.truncate(ERRORS_MAX - 1);
        self.entries.push_front(ObjectError { object, message, time_unix_ms, count: count + 1 });
    }

    /// Forgets the failures of `object`: it is well again.
    pub fn clear(&mut self, object: &str) {
        self.entries.retain(|entry| entry.object != object);
    }

    /// Forgets the failures of every object whose name begins so.
    pub fn clear_prefix(&mut self, prefix: &str) {
        self.entries.retain(|entry| !entry.object.starts_with(prefix));
    }

    /// Newest first.
    #[must_use]
    pub fn entries(&self) -> Vec<ObjectError> {
        self.entries.iter().cloned().collect()
    }

    /// Entries now, at most [`ERRORS_MAX`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Failures since start.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_repeats_is_one_line_with_a_count_and_comes_first() {
        let mut log = ErrorLog::default();
        log.note_at("Service a/b".into(), "no port".into(), 1);
        log.note_at("interface eth0".into(), "gone".into(), 2);
        log.note_at("Service a/b".into(), "no port".into(), 3);
        let entries = log.entries();
        assert_eq!((entries[0].object.as_str(), entries[0].count), ("Service a/b", 2));
        assert_eq!((entries.len(), log.failures()), (2, 3));
        log.clear("Service a/b");
        assert_eq!(log.entries().len(), 1);
    }

    #[test]
    fn the_log_is_bounded_and_keeps_the_newest() {
        let mut log = ErrorLog::default();
        for number in 0..100 {
            log.note_at(format!("object {number}"), "bad".into(), number);
        }
        assert_eq!(log.entries().len(), ERRORS_MAX);
        assert_eq!(log.entries()[0].object, "object 99");
    }
}
