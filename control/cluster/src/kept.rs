//! How much of objects a relay passes on, by a number that it tells with every answer: a node of a later
//! version reads more, which a relay of an earlier one leaves out without a word in the object itself.
//!
//! Relays are upgraded before nodes, and rolled back after them. Where they are not, what a relay leaves out is
//! missing, and is told: by the log, `status` and a metric. What was listed of it is listed anew from the first
//! server that has more.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::client::server::Server;

/// Raised with each field that [`crate::relay::strip`] keeps newly.
pub const KEPT: u32 = 1;
/// What an API server keeps: everything.
pub(crate) const EVERYTHING: u32 = u32::MAX;
/// The header of a relay's answers that says it.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("xskiff-relay-keeps");

/// The header's value for this version.
pub(crate) fn value() -> HeaderValue {
    KEPT.into()
}

/// How much a server keeps that answers with these headers. Relays before the first that told say nothing.
pub(crate) fn told(server: &Server, headers: &HeaderMap) -> u32 {
    if !server.is_relay {
        return EVERYTHING;
    }
    let told = headers.get(HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
    told.unwrap_or(0)
}

/// Whether something is missing of what was listed, and a server that keeps `now` has more of it.
pub(crate) fn has_more(now: u32, listed: u32) -> bool {
    listed < KEPT && now > listed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_asked_for_anew_where_this_version_reads_more_than_it_had() {
        assert!(has_more(KEPT, KEPT - 1) && has_more(EVERYTHING, KEPT - 1));
        assert!(!has_more(KEPT - 1, KEPT - 1) && !has_more(KEPT - 1, KEPT));
        // Of all that this version reads nothing is missing.
        assert!(!has_more(EVERYTHING, KEPT) && !has_more(KEPT + 1, KEPT));
        assert_eq!(value(), KEPT.to_string());
    }
}
