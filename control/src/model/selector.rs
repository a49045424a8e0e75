//! Label selectors (Kubernetes API, `meta/v1` LabelSelector).

use std::collections::BTreeSet;
use std::fmt;

use super::Labels;

/// How a label's value is compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// Present, with one of the values.
    In(BTreeSet<String>),
    /// Absent, or with none of the values.
    NotIn(BTreeSet<String>),
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// The condition.
    pub operator: Operator,
}

impl Requirement {
    /// Whether `labels` fulfil it, whatever others there are.
    fn surely_matches(&self, labels: &Labels) -> bool {
        let is_known = labels.get(&self.key).is_some();
        let denies = matches!(self.operator, Operator::NotIn(_) | Operator::DoesNotExist);
        (is_known || !denies) && self.matches(labels)
    }

    fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// All conditions of a selector; without any it matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelSelector {
    /// Sorted and free of repetition, so that selectors that say the same are equal.
    requirements: BTreeSet<Requirement>,
}

impl LabelSelector {
    /// One that matches nothing.
    #[must_use]
    pub fn nothing() -> Self {
        let operator = Operator::In(BTreeSet::new());
        [Requirement { key: String::new(), operator }].into_iter().collect()
    }

    /// Its conditions, in order.
    pub fn requirements(&self) -> impl ExactSizeIterator<Item = &Requirement> {
        self.requirements.iter()
    }

    /// Whether `labels` fulfil every condition.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(labels))
    }

    /// The same of labels beside which there may be others that nobody has told of.
    #[must_use]
    pub fn surely_matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.surely_matches(labels))
    }

    /// Whether it has no condition, and so matches everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
}

impl FromIterator<Requirement> for LabelSelector {
    fn from_iter<I: IntoIterator<Item = Requirement>>(requirements: I) -> Self {
        Self { requirements: requirements.into_iter().collect() }
    }
}

impl fmt::Display for LabelSelector {
    /// As `kubectl --selector` writes it; `(all)` when empty.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("(all)");
        }
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            let key = &requirement.key;
            let list = |values: &BTreeSet<String>| {
                values.iter().map(String::as_str).collect::<Vec<_>>().join(",")
            };
            match &requirement.operator {
                Operator::In(values) if values.is_empty() => f.write_str("(none)")?,
                Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", list(values))?,
                Operator::In(values) => write!(f, "{key} in ({})", list(values))?,
                Operator::NotIn(values) => write!(f, "{key} notin ({})", list(values))?,
                Operator::Exists => write!(f, "{key}")?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn selector(key: &str, operator: Operator) -> LabelSelector {
        [Requirement { key: key.into(), operator }].into_iter().collect()
    }

    fn values(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn an_empty_selector_matches_everything() {
        assert!(LabelSelector::default().matches(&labels(&[])));
        assert!(LabelSelector::default().matches(&labels(&[("a", "b")])));
    }

    #[test]
    fn a_selector_of_nothing_matches_nothing() {
        assert!(!LabelSelector::nothing().matches(&labels(&[])));
        assert!(!LabelSelector::nothing().matches(&labels(&[("", ""), ("a", "b")])));
        assert_eq!(LabelSelector::nothing().to_string(), "(none)");
    }

    #[test]
    fn in_wants_the_label_and_not_in_is_content_without_it() {
        let has = selector("tier", Operator::In(values(&["web", "db"])));
        let lacks = selector("tier", Operator::NotIn(values(&["web", "db"])));
        assert!(has.matches(&labels(&[("tier", "db")])));
        assert!(!has.matches(&labels(&[])));
        assert!(lacks.matches(&labels(&[])));
        assert!(lacks.matches(&labels(&[("tier", "cache")])));
        assert!(!lacks.matches(&labels(&[("tier", "web")])));
    }

    #[test]
    fn exists_and_does_not_exist_ignore_the_value() {
        let some = labels(&[("tier", "")]);
        assert!(selector("tier", Operator::Exists).matches(&some));
        assert!(!selector("tier", Operator::DoesNotExist).matches(&some));
        assert!(selector("tier", Operator::DoesNotExist).matches(&labels(&[])));
    }
}
