//! Losses that are not believed at once.
//!
//! An API server that was restored from an old copy, or answers before it has read its store, lists
//! a part of what there is. Nodes would be told of each object as deleted, which they cannot doubt;
//! so the doubt is the relay's.

use std::collections::BTreeSet;

/// Losses that are always believed: fewer than these.
const HELD_MIN: usize = 10;
/// A larger part of what there was, in percent, is not believed at once.
const HELD_PERCENT: usize = 30;

/// Names that a list has lost, as long as nobody has confirmed it.
#[derive(Debug, Default)]
pub(super) struct Hold {
    lost: BTreeSet<String>,
}

impl Hold {
    /// Judges a list: which of the objects that are `known` and not `listed` are to be kept all the
    /// same, until the next list.
    pub(super) fn judge<'a>(
        &mut self,
        known: impl Iterator<Item = &'a str>,
        listed: &BTreeSet<&str>,
    ) -> BTreeSet<String> {
        let mut number = 0;
        let lost: BTreeSet<String> = known
            .inspect(|_| number += 1)
            .filter(|name| !listed.contains(name))
            .map(str::to_owned)
            .collect();
        let agreed: BTreeSet<String> = lost.intersection(&self.lost).cloned().collect();
        let doubted: BTreeSet<String> = lost.difference(&agreed).cloned().collect();
        if doubted.len() < HELD_MIN || doubted.len() * 100 <= number * HELD_PERCENT {
            self.lost.clear();
            return BTreeSet::new();
        }
        self.lost = lost;
        doubted
    }

    /// Whether a second list is to be asked for.
    pub(super) fn is_holding(&self) -> bool {
        !self.lost.is_empty()
    }

    /// How many objects are kept that the last list did not have.
    pub(super) fn len(&self) -> usize {
        self.lost.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(range: std::ops::Range<usize>) -> Vec<String> {
        range.map(|index| format!("p{index}")).collect()
    }

    fn judge(hold: &mut Hold, known: &[String], listed: &[String]) -> usize {
        let listed: BTreeSet<&str> = listed.iter().map(String::as_str).collect();
        hold.judge(known.iter().map(String::as_str), &listed).len()
    }

    #[test]
    fn a_large_loss_is_believed_when_a_second_list_agrees() {
        let (known, third) = (names(0..100), names(34..100));
        let mut hold = Hold::default();
        assert_eq!(judge(&mut hold, &known, &third), 34);
        assert!(hold.is_holding());
        assert_eq!(judge(&mut hold, &known, &third), 0);
        assert!(!hold.is_holding());
    }

    #[test]
    fn a_loss_that_the_second_list_does_not_have_was_none() {
        let known = names(0..100);
        let mut hold = Hold::default();
        assert_eq!(judge(&mut hold, &known, &names(50..100)), 50);
        assert_eq!(judge(&mut hold, &known, &known), 0);
        assert!(!hold.is_holding());
        // Another half is another loss, and needs a second list of its own.
        assert_eq!(judge(&mut hold, &known, &names(0..50)), 50);
        assert_eq!(judge(&mut hold, &known, &names(50..100)), 50);
    }

    #[test]
    fn a_small_loss_is_believed_at_once() {
        let mut hold = Hold::default();
        assert_eq!(judge(&mut hold, &names(0..100), &names(30..100)), 0);
        assert_eq!(judge(&mut hold, &names(0..12), &names(9..12)), 0);
    }
}
