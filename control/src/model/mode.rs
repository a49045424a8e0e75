//! Whether policy is enforced, or only watched.

use std::collections::BTreeMap;
use std::fmt;

use crate::shown::shortened;

/// The annotation of a NetworkPolicy, a Namespace (for all its policies) or a Node (for all that is
/// enforced there) that says how policy is meant: `audit` or `enforce`.
pub const POLICY_MODE: &str = "xskiff.io/policy-mode";

/// What becomes of packets that only this policy, this namespace's or this node's would refuse.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PolicyMode {
    /// They are dropped.
    #[default]
    Enforce,
    /// They pass, and are reported.
    Audit,
    /// They are dropped: the annotation says something else than the two words.
    Unreadable(Box<str>),
}

impl PolicyMode {
    /// Reads an object's annotations.
    #[must_use]
    pub fn of(annotations: Option<&BTreeMap<String, String>>) -> Self {
        let text = annotations.and_then(|annotations| annotations.get(POLICY_MODE));
        match text.map(String::as_str) {
            None | Some("enforce") => Self::Enforce,
            Some("audit") => Self::Audit,
            Some(other) => Self::Unreadable(shortened(other).into()),
        }
    }

    /// Whether it is [`Self::Audit`].
    #[must_use]
    pub fn is_audit(&self) -> bool {
        *self == Self::Audit
    }

    /// What is wrong with the annotation, if anything, and what to write.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let Self::Unreadable(text) = self else { return None };
        Some(format!(
            "annotation {POLICY_MODE} says {text:?}: write audit or enforce; it is enforced"
        ))
    }
}

impl fmt::Display for PolicyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_audit() { "audit" } else { "enforce" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotation_is_read_and_what_is_no_mode_is_enforced_and_told() {
        let of = |text: &str| PolicyMode::of(Some(&[(POLICY_MODE.into(), text.into())].into()));
        assert_eq!(PolicyMode::of(None), PolicyMode::Enforce);
        assert_eq!(of("enforce"), PolicyMode::Enforce);
        assert!(of("audit").is_audit() && of("audit").complaint().is_none());
        let slip = of("Audit");
        assert!(!slip.is_audit() && slip.to_string() == "enforce");
        assert!(slip.complaint().is_some_and(|told| told.contains("\"Audit\"")));
    }
}
