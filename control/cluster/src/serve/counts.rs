//! What the server counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the start, and what is open now.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections open now.
    pub connections: AtomicU64,
    /// Connections closed at once, since there were too many.
    pub connections_refused: AtomicU64,
    /// Connections that could not be accepted.
    pub accept_failures: AtomicU64,
    /// TLS handshakes that failed or took too long.
    pub handshake_failures: AtomicU64,
    /// Connections ended because the client did not read.
    pub stalled: AtomicU64,
    /// Requests.
    pub requests: AtomicU64,
    /// Requests refused, whatever the reason.
    pub refusals: AtomicU64,
    /// Watches open now.
    pub watches: AtomicU64,
    /// Watches since the start.
    pub watches_begun: AtomicU64,
    /// Watches refused, since there were too many.
    pub watches_refused: AtomicU64,
    /// Watches ended because the history had left them behind.
    pub watches_behind: AtomicU64,
    /// Lists that were broken off for the same reason, or took too long.
    pub lists_broken: AtomicU64,
    /// Watches and lists from a resourceVersion that the history does not reach: 410.
    pub expired: AtomicU64,
    /// Events sent, bookmarks left out.
    pub events: AtomicU64,
    /// Bookmarks sent.
    pub bookmarks: AtomicU64,
    /// Bytes of lists.
    pub list_bytes: AtomicU64,
    /// Bytes of watches.
    pub watch_bytes: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

pub(super) fn one_less(counter: &AtomicU64) {
    counter.fetch_sub(1, Ordering::Relaxed);
}

impl Counts {
    /// Reads one of them.
    #[must_use]
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}
