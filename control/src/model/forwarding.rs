//! How a service's packets come back, and whether their flows are kept on the way there, as annotations
//! say.

use std::collections::BTreeMap;

/// The annotation of a Service that says how clients from outside are answered by backends on other nodes:
/// `snat`, by the node that they addressed, or `dsr`, by the backend's node.
pub const FORWARDING_MODE: &str = "xskiff.io/forwarding-mode";

/// What it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForwardingMode {
    /// Nothing: the node's configuration decides.
    #[default]
    AsConfigured,
    /// `snat`.
    Snat,
    /// `dsr`.
    Dsr,
    /// Another word, which counts as nothing.
    Unreadable,
}

impl ForwardingMode {
    pub(super) fn of(annotations: Option<&BTreeMap<String, String>>) -> Self {
        let text = annotations.and_then(|all| all.get(FORWARDING_MODE));
        match text.map(String::as_str) {
            None => Self::AsConfigured,
            Some("snat") => Self::Snat,
            Some("dsr") => Self::Dsr,
            Some(_) => Self::Unreadable,
        }
    }

    /// Whether backends answer clients themselves, where the node's configuration says `configured`.
    #[must_use]
    pub fn is_direct(self, configured: bool) -> bool {
        match self {
            Self::AsConfigured | Self::Unreadable => configured,
            Self::Snat => false,
            Self::Dsr => true,
        }
    }
}

/// The annotation of a Service that says whether nodes with its frontends are to keep no flows of what
/// goes on to other nodes: `true` or `false`.
pub const STATELESS: &str = "xskiff.io/stateless";

/// What it says; `None` where that is neither.
pub(super) fn stateless(annotations: Option<&BTreeMap<String, String>>) -> Option<bool> {
    match annotations.and_then(|all| all.get(STATELESS)).map(String::as_str) {
        None | Some("false") => Some(false),
        Some("true") => Some(true),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotation_goes_before_the_configuration_unless_it_means_nothing() {
        let of =
            |text: &str| ForwardingMode::of(Some(&[(FORWARDING_MODE.into(), text.into())].into()));
        for configured in [false, true] {
            assert!(of("dsr").is_direct(configured) && !of("snat").is_direct(configured));
            assert_eq!(ForwardingMode::of(None).is_direct(configured), configured);
            assert_eq!(of("DSR").is_direct(configured), configured);
        }
        assert_eq!(of("DSR"), ForwardingMode::Unreadable);
    }

    #[test]
    fn flows_are_kept_unless_an_annotation_says_true() {
        let of = |text: &str| stateless(Some(&[(STATELESS.into(), text.into())].into()));
        assert_eq!(
            (stateless(None), of("false"), of("true")),
            (Some(false), Some(false), Some(true))
        );
        assert_eq!((of("True"), of(""), of("yes")), (None, None, None));
    }
}
