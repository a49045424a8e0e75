//! Why an Event is written: the words that people and alerts go by, and what is done about it.

use super::super::strip::ANNOTATIONS;
use crate::decode::Decoded;

/// A reason, as Events state it (Kubernetes API, `events.k8s.io/v1` Event, `reason`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reason {
    /// CamelCase, the same in every version.
    pub name: &'static str,
    /// What was being done about it (`action`).
    pub action: &'static str,
    /// `Warning` or `Normal`.
    pub type_: &'static str,
    /// Whether it is true of the object until the object changes or goes, or happened at a time.
    pub lasts: bool,
}

const fn warning(name: &'static str, action: &'static str, lasts: bool) -> Reason {
    Reason { name, action, type_: "Warning", lasts }
}

/// A NetworkPolicy has a field that nodes do not know: what it stands in allows nothing.
pub const UNKNOWN_FIELD: Reason = warning("UnknownField", "Close", true);
/// A NetworkPolicy has an invalid CIDR, selector, port or the like: what that stands in allows
/// nothing, where no version before it was better.
pub const INVALID_POLICY: Reason = warning("InvalidPolicy", "Close", true);
/// Any other object has a value that cannot work: its last good version stays in force.
pub const INVALID_OBJECT: Reason = warning("InvalidObject", "Refuse", true);
/// An annotation of ours cannot be read, and is not followed.
pub const UNREADABLE_ANNOTATION: Reason = warning("UnreadableAnnotation", "Ignore", true);
/// Two pods that live claim one address: who gets its traffic is anybody's guess.
pub const ADDRESS_CLAIMED_TWICE: Reason = warning("AddressClaimedTwice", "Resolve", true);
/// A list lost more than is believed at once: what it lost stays until a second list.
pub const LIST_HELD: Reason = warning("ListHeld", "Hold", false);
/// The second list is taken for the truth.
pub const LIST_TAKEN: Reason =
    Reason { name: "ListTaken", action: "Take", type_: "Normal", lasts: false };

/// What is wrong with an object as nodes read it, and why; `None`: nothing.
pub(in crate::relay) fn of(decoded: &Decoded) -> Option<(Reason, String)> {
    use control::model::Object;
    match decoded {
        Decoded::Good(object) => {
            if let Object::Pod(pod) = object {
                let why = pod.bandwidth.iter().flat_map(|bandwidth| bandwidth.complaints());
                let why: Vec<String> = why.collect();
                return (!why.is_empty()).then(|| (UNREADABLE_ANNOTATION, why.join("; ")));
            }
            let mode = match object {
                Object::NetworkPolicy(policy) => &policy.mode,
                Object::Namespace(namespace) => &namespace.mode,
                Object::Node(node) => &node.mode,
                _ => return None,
            };
            mode.complaint().map(|why| (UNREADABLE_ANNOTATION, why))
        }
        Decoded::Closed { why, .. } => Some((UNKNOWN_FIELD, why.clone())),
        Decoded::Unreadable { why, .. } => Some((INVALID_POLICY, why.clone())),
        Decoded::Refused { why, .. } if why.contains(ANNOTATIONS) => {
            Some((UNREADABLE_ANNOTATION, why.clone()))
        }
        Decoded::Refused { why, .. } => Some((INVALID_OBJECT, why.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_words_of_their_own() {
        let all = [
            UNKNOWN_FIELD,
            INVALID_POLICY,
            INVALID_OBJECT,
            UNREADABLE_ANNOTATION,
            ADDRESS_CLAIMED_TWICE,
            LIST_HELD,
            LIST_TAKEN,
        ];
        let names: std::collections::BTreeSet<_> = all.iter().map(|own| own.name).collect();
        assert_eq!(names.len(), all.len());
        for name in names {
            let is_camel = name.starts_with(|own: char| own.is_ascii_uppercase())
                && name.chars().all(|own| own.is_ascii_alphabetic());
            assert!(is_camel, "{name}");
        }
    }
}
