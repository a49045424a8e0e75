//! An object's labels in one piece of memory: a large cluster has a million of them.

use std::collections::BTreeMap;
use std::fmt;

/// Longest key or value that is kept, in bytes; a label's are at most 317 (Kubernetes, "Labels and
/// Selectors").
const LONGEST_PART: usize = 0xd7ff;

/// Labels of an object, ordered by key.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Labels {
    /// Key and value in turn, each after a character that is as many as it has bytes: whoever looks
    /// for a label need not read the others.
    text: Box<str>,
}

/// Labels that are being put together, one after the other.
#[derive(Debug, Default)]
pub struct LabelsBuilder {
    text: String,
}

impl LabelsBuilder {
    /// Adds a label. Keys have to come in order, each once. What is too long to be a label is left
    /// out.
    pub fn push(&mut self, key: &str, value: &str) {
        let length = |part: &str| {
            let length = u32::try_from(part.len()).ok().filter(|_| part.len() <= LONGEST_PART)?;
            char::from_u32(length)
        };
        let (Some(of_key), Some(of_value)) = (length(key), length(value)) else { return };
        self.text.reserve(key.len() + value.len() + of_key.len_utf8() + of_value.len_utf8());
        for (length, part) in [(of_key, key), (of_value, value)] {
            self.text.push(length);
            self.text.push_str(part);
        }
    }

    /// All that were added.
    #[must_use]
    pub fn finish(self) -> Labels {
        Labels { text: self.text.into() }
    }
}

/// The part that `text` begins with, and what follows it.
fn first_part(text: &str) -> Option<(&str, &str)> {
    let mut chars = text.chars();
    let length = usize::try_from(u32::from(chars.next()?)).ok()?;
    chars.as_str().split_at_checked(length)
}

impl Labels {
    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(own, _)| *own == key).map(|(_, value)| value)
    }

    /// All of them as they lie in memory, to be kept elsewhere and given to [`Self::from_packed`].
    #[must_use]
    pub fn packed(&self) -> &str {
        &self.text
    }

    /// What [`Self::packed`] gave; `None` for a text that no labels give.
    #[must_use]
    pub fn from_packed(text: &str) -> Option<Self> {
        let (mut rest, mut last) = (text, None);
        while !rest.is_empty() {
            let (key, after_key) = first_part(rest)?;
            let (_, after_value) = first_part(after_key)?;
            if last.is_some_and(|last| last >= key) {
                return None;
            }
            (rest, last) = (after_value, Some(key));
        }
        Some(Self { text: text.into() })
    }

    /// Every key and value, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut rest = &*self.text;
        std::iter::from_fn(move || {
            let (key, after_key) = first_part(rest)?;
            let (value, after_value) = first_part(after_key)?;
            rest = after_value;
            Some((key, value))
        })
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
    fn from(labels: BTreeMap<String, String>) -> Self {
        let mut builder = LabelsBuilder::default();
        labels.iter().for_each(|(key, value)| builder.push(key, value));
        builder.finish()
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
    }

    #[test]
    fn labels_come_back_from_what_they_are_kept_as_and_from_nothing_else() {
        let labels = Labels::from([("a", ""), ("b", "zwei"), ("c", "3")]);
        let packed = labels.packed();
        assert_eq!(Labels::from_packed(packed), Some(labels.clone()));
        assert_eq!(Labels::from_packed(""), Some(Labels::default()));
        let wholes = ["\u{1}a\u{0}", "\u{1}a\u{0}\u{1}b\u{4}zwei"];
        for length in 1..packed.len() {
            let cut = &packed[..length];
            assert_eq!(Labels::from_packed(cut).is_some(), wholes.contains(&cut), "{cut:?}");
        }
        let [ordered, twice, turned] =
            ["\u{1}a\u{0}\u{1}b\u{0}", "\u{1}a\u{0}\u{1}a\u{0}", "\u{1}b\u{0}\u{1}a\u{0}"];
        assert!(Labels::from_packed(ordered).is_some());
        assert_eq!((Labels::from_packed(twice), Labels::from_packed(turned)), (None, None));
    }

    #[test]
    fn a_part_of_any_length_is_found_again_or_left_out_with_its_other_half() {
        for length in [1, 127, 128, 317, 2047, 2048, LONGEST_PART] {
            let long = "l".repeat(length);
            let labels = Labels::from([("a", &*long), (&*long, "b"), ("z", "last")]);
            let found = (labels.get("a"), labels.get(&long), labels.get("z"), labels.len());
            assert_eq!(found, (Some(&*long), Some("b"), Some("last"), 3));
        }
        let too_long = "l".repeat(LONGEST_PART + 1);
        let labels = Labels::from([("a", &*too_long), (&*too_long, "b"), ("z", "last")]);
        assert_eq!(labels, Labels::from([("z", "last")]));
    }
}
