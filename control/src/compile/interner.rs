//! Numbers for things that are counted: equal ones have one number for as long as any is used.

use std::hash::Hash;
use std::sync::Arc;

use hashbrown::HashMap;

/// Gives equal keys one number, and counts its users. A number that fell out of use is not handed
/// out again until all others were, so that what is cached under it elsewhere does not take on a
/// new meaning.
#[derive(Debug, Clone)]
pub(super) struct Interner<K> {
    numbers: HashMap<Arc<K>, u32>,
    used: HashMap<u32, Used<K>>,
    first: u32,
    next: u32,
}

#[derive(Debug, Clone)]
struct Used<K> {
    key: Arc<K>,
    users: usize,
}

impl<K: Eq + Hash> Interner<K> {
    /// An empty interner whose numbers begin at `first`.
    pub(super) fn starting_at(first: u32) -> Self {
        Self { numbers: HashMap::new(), used: HashMap::new(), first, next: first }
    }

    /// One more user of `key`: its number, and whether it is a new one.
    pub(super) fn acquire(&mut self, key: K) -> (u32, bool) {
        if let Some(number) = self.numbers.get(&key).copied() {
            if let Some(used) = self.used.get_mut(&number) {
                used.users += 1;
            }
            return (number, false);
        }
        let (number, key) = (self.fresh(), Arc::new(key));
        self.numbers.insert(Arc::clone(&key), number);
        self.used.insert(number, Used { key, users: 1 });
        (number, true)
    }

    /// One more user of the key that has `number`.
    pub(super) fn acquire_again(&mut self, number: u32) {
        if let Some(used) = self.used.get_mut(&number) {
            used.users += 1;
        }
    }

    /// One user less; the key when that was the last.
    pub(super) fn release(&mut self, number: u32) -> Option<Arc<K>> {
        let used = self.used.get_mut(&number)?;
        used.users -= 1;
        if used.users > 0 {
            return None;
        }
        let gone = self.used.remove(&number)?.key;
        self.numbers.remove(&gone);
        Some(gone)
    }

    /// The next number that nobody uses. Terminates: memory ends long before 2^32 keys.
    fn fresh(&mut self) -> u32 {
        loop {
            let number = self.next;
            self.next = number.checked_add(1).unwrap_or(self.first);
            if !self.used.contains_key(&number) {
                return number;
            }
        }
    }

    pub(super) fn get(&self, key: &K) -> Option<u32> {
        self.numbers.get(key).copied()
    }

    pub(super) fn key(&self, number: u32) -> Option<&Arc<K>> {
        self.used.get(&number).map(|used| &used.key)
    }

    /// Every number in use, in no particular order.
    pub(super) fn in_use(&self) -> impl Iterator<Item = u32> {
        self.used.keys().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_while_they_are_used_and_are_not_reused_at_once() {
        let mut interner = Interner::starting_at(10);
        assert_eq!(interner.acquire("a"), (10, true));
        assert_eq!(interner.acquire("b"), (11, true));
        assert_eq!(interner.acquire("a"), (10, false));
        assert_eq!(interner.release(10), None);
        assert_eq!(interner.get(&"a"), Some(10));
        assert_eq!(interner.release(10).as_deref(), Some(&"a"));
        assert_eq!((interner.get(&"a"), interner.key(10), interner.len()), (None, None, 1));
        assert_eq!(interner.acquire("c"), (12, true));
        assert_eq!(interner.acquire("a"), (13, true));
        assert_eq!(interner.key(13).map(|key| **key), Some("a"));
    }

    #[test]
    fn numbers_wrap_around_past_those_in_use() {
        let mut interner = Interner::starting_at(u32::MAX - 1);
        assert_eq!(interner.acquire("a"), (u32::MAX - 1, true));
        assert_eq!(interner.acquire("b"), (u32::MAX, true));
        interner.release(u32::MAX);
        assert_eq!(interner.acquire("c"), (u32::MAX, true));
    }
}
