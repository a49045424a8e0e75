//! Numbers for things, stable from one compilation to the next.

use std::hash::Hash;

use hashbrown::{HashMap, HashSet};

/// Gives equal keys one number, the predecessor's where it had one. A number that fell out of use
/// is not handed out again until all others were, so that what is cached under it elsewhere does
/// not take on a new meaning.
#[derive(Debug, Clone)]
pub(super) struct Interner<K> {
    numbers: HashMap<K, u32>,
    taken: HashSet<u32>,
    first: u32,
    next: u32,
}

impl<K: Eq + Hash + Clone> Interner<K> {
    /// An empty interner whose numbers begin at `first`.
    pub(super) fn starting_at(first: u32) -> Self {
        Self { numbers: HashMap::new(), taken: HashSet::new(), first, next: first }
    }

    /// An empty interner that goes on where `previous` stopped.
    pub(super) fn after(previous: &Self) -> Self {
        Self { next: previous.next, ..Self::starting_at(previous.first) }
    }

    /// The number of `key`, which `previous` may know already.
    pub(super) fn intern(&mut self, key: K, previous: &Self) -> u32 {
        if let Some(number) = self.numbers.get(&key) {
            return *number;
        }
        let number = match previous.numbers.get(&key) {
            Some(number) => *number,
            None => self.fresh(previous),
        };
        self.taken.insert(number);
        self.numbers.insert(key, number);
        number
    }

    /// The next number that neither interner uses. Terminates: memory ends long before 2^32 keys.
    fn fresh(&mut self, previous: &Self) -> u32 {
        loop {
            let number = self.next;
            self.next = number.checked_add(1).unwrap_or(self.first);
            if !self.taken.contains(&number) && !previous.taken.contains(&number) {
                return number;
            }
        }
    }

    pub(super) fn get(&self, key: &K) -> Option<u32> {
        self.numbers.get(key).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, u32)> {
        self.numbers.iter().map(|(key, number)| (key, *number))
    }

    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_with_their_keys_and_are_not_reused_at_once() {
        let none = Interner::starting_at(10);
        let mut first = Interner::after(&none);
        assert_eq!(first.intern("a", &none), 10);
        assert_eq!(first.intern("b", &none), 11);
        assert_eq!(first.intern("a", &none), 10);

        let mut second = Interner::after(&first);
        assert_eq!(second.intern("c", &first), 12);
        assert_eq!(second.intern("b", &first), 11);
        assert_eq!((second.get(&"a"), second.len()), (None, 2));

        let mut third = Interner::after(&second);
        assert_eq!(third.intern("a", &second), 13);
    }

    #[test]
    fn numbers_wrap_around_past_those_in_use() {
        let mut none = Interner::starting_at(u32::MAX - 1);
        assert_eq!(none.intern("a", &Interner::starting_at(0)), u32::MAX - 1);
        let mut next = Interner::after(&none);
        assert_eq!(next.intern("b", &none), u32::MAX);
        assert_eq!(next.intern("a", &none), u32::MAX - 1);
    }
}
