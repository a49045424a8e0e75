//! An object's labels in one piece of memory: a large cluster has a million of them, and most are
//! looked at once.

use std::collections::BTreeMap;
use std::fmt;

/// Ends every key and every value; no label can contain it.
const END: char = '\0';

/// Labels of an object, ordered by key.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Labels {
    /// Key and value in turn, each with its end.
    text: Box<str>,
}

impl Labels {
    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(own, _)| *own == key).map(|(_, value)| value)
    }

    /// Every key and value, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut parts = self.text.split_terminator(END);
        std::iter::from_fn(move || Some((parts.next()?, parts.next()?)))
    }

    /// Sets the value of `key`.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<String>) {
        let own = self.iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut all: BTreeMap<String, String> = own.collect();
        all.insert(key.into(), value.into());
        *self = all.into();
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

impl From<BTreeMap<String, String>> for Labels {
    /// What has the end in it could be no label, and is left out.
    fn from(labels: BTreeMap<String, String>) -> Self {
        let mut text = String::new();
        for (key, value) in labels {
            if key.contains(END) || value.contains(END) {
                continue;
            }
            text.reserve_exact(key.len() + value.len() + 2);
            for part in [key, value] {
                text.push_str(&part);
                text.push(END);
            }
        }
        Self { text: text.into() }
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let ordered = labels.into_iter().map(|(key, value)| (key.into(), value.into()));
        ordered.collect::<BTreeMap<String, String>>().into()
    }
}

impl<K: Into<String>, V: Into<String>, const N: usize> From<[(K, V); N]> for Labels {
    fn from(labels: [(K, V); N]) -> Self {
        labels.into_iter().collect()
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_ordered_and_the_last_of_a_key_counts() {
        let mut labels = Labels::from([("b", "2"), ("a", ""), ("b", "3")]);
        assert_eq!(labels.iter().collect::<Vec<_>>(), [("a", ""), ("b", "3")]);
        labels.insert("aa", "4");
        assert_eq!(
            (labels.get("a"), labels.get("aa"), labels.get("c")),
            (Some(""), Some("4"), None)
        );
        assert_eq!(labels, Labels::from([("b", "3"), ("aa", "4"), ("a", "")]));
        assert!(Labels::default().is_empty() && Labels::default().iter().next().is_none());
        assert!(Labels::from([("a\0b", "c")]).is_empty());
    }
}
