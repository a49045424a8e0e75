//! How a service's flows are dealt out, as annotations say.

use std::collections::BTreeMap;

use dataplane::lb::Choice;

/// The annotation of a Pod that says how many flows it gets beside the other backends of its services:
/// a number from 1 to 1000.
pub const SERVICE_WEIGHT: &str = "xskiff.io/service-weight";
/// The weight of a Pod that says nothing, and of what is no Pod.
pub const WEIGHT_DEFAULT: u16 = 100;
const WEIGHTS: std::ops::RangeInclusive<u16> = 1..=1000;

/// The annotation of a Service that says how it chooses the backend of a new flow: `maglev`,
/// `random` or `least-connections`.
pub const LOAD_BALANCING: &str = "xskiff.io/load-balancing";

type Annotations = BTreeMap<String, String>;

/// A Pod's weight; `None` for what is none.
pub(super) fn weight(annotations: Option<&Annotations>) -> Option<u16> {
    let text = annotations.and_then(|all| all.get(SERVICE_WEIGHT));
    let Some(text) = text else { return Some(WEIGHT_DEFAULT) };
    text.parse().ok().filter(|weight| WEIGHTS.contains(weight))
}

/// How a Service chooses; `None` for a word that means nothing.
pub(super) fn choice(annotations: Option<&Annotations>) -> Option<Choice> {
    match annotations.and_then(|all| all.get(LOAD_BALANCING)).map(String::as_str) {
        None | Some("maglev") => Some(Choice::Maglev),
        Some("random") => Some(Choice::Random),
        Some("least-connections") => Some(Choice::LeastConnections),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_read_and_what_they_cannot_mean_is_told_apart() {
        let of = |key: &str, text: &str| Some(Annotations::from([(key.into(), text.into())]));
        assert_eq!((weight(None), choice(None)), (Some(100), Some(Choice::Maglev)));
        for (text, read) in [
            ("1", Some(1)),
            ("1000", Some(1000)),
            ("0", None),
            ("1001", None),
            ("-1", None),
            ("a tenth", None),
            ("", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(weight(of(SERVICE_WEIGHT, text).as_ref()), read, "{text}");
        }
        for (text, read) in [
            ("maglev", Some(Choice::Maglev)),
            ("random", Some(Choice::Random)),
            ("least-connections", Some(Choice::LeastConnections)),
            ("Random", None),
            ("", None),
        ] {
            assert_eq!(choice(of(LOAD_BALANCING, text).as_ref()), read, "{text}");
        }
    }
}
