//! The objects of one kind that are in force, as bytes, and which of them the list that is being
//! read has named so far.

use std::collections::BTreeMap;

use control::model::{Kind, Object, ObjectName};

use crate::compact;

/// `namespace/name`, or `name` for kinds of the cluster.
pub(crate) type Key = Box<str>;

/// The key of a name.
pub(crate) fn key(name: &ObjectName) -> Key {
    key_of(&name.namespace, &name.name)
}

fn key_of(namespace: &str, name: &str) -> Key {
    match namespace {
        "" => name.into(),
        _ => [namespace, "/", name].concat().into(),
    }
}

/// The name of a key.
pub(crate) fn name(key: &str) -> ObjectName {
    match key.split_once('/') {
        Some((namespace, name)) => ObjectName::new(namespace, name),
        None => ObjectName::new("", key),
    }
}

struct Entry {
    bytes: Box<[u8]>,
    /// The list that named it last.
    listed: u32,
}

/// What [`Known::set`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Set {
    New,
    Changed,
    Same,
}

/// The objects of one kind.
pub(crate) struct Known {
    kind: Kind,
    entries: BTreeMap<Key, Entry>,
    list: u32,
}

impl Known {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, entries: BTreeMap::new(), list: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Whether the object is in force as `bytes` have it.
    pub(super) fn is(&self, key: &str, bytes: &[u8]) -> bool {
        self.entries.get(key).is_some_and(|entry| *entry.bytes == *bytes)
    }

    /// The object, as it is in force.
    pub(super) fn get(&self, key: &str) -> Option<Object> {
        // What we encoded ourselves, or what was checked when it was restored.
        compact::decode(self.kind, &self.entries.get(key)?.bytes).ok()
    }

    pub(crate) fn set(&mut self, key: Key, bytes: Box<[u8]>) -> Set {
        let listed = self.list;
        match self.entries.get_mut(&key) {
            Some(entry) => {
                entry.listed = listed;
                if entry.bytes == bytes {
                    return Set::Same;
                }
                entry.bytes = bytes;
                Set::Changed
            }
            None => {
                self.entries.insert(key, Entry { bytes, listed });
                Set::New
            }
        }
    }

    /// Takes what a snapshot has instead of what there is. Those are in the order of their keys, in
    /// which nothing has to be looked for.
    pub(super) fn restore<'a>(
        &mut self,
        objects: impl Iterator<Item = (&'a str, &'a str, &'a [u8])>,
    ) {
        let listed = self.list;
        let entry = |(namespace, name, bytes): (&str, &str, &[u8])| {
            (key_of(namespace, name), Entry { bytes: bytes.into(), listed })
        };
        self.entries = objects.map(entry).collect();
    }

    pub(super) fn remove(&mut self, key: &str) -> bool {
        self.entries.remove(key).is_some()
    }

    /// A list begins: what it does not name until it ends is missing from it.
    pub(super) fn begin_list(&mut self) {
        self.list = self.list.wrapping_add(1);
    }

    /// The list that is being read names this object, in whatever state.
    pub(super) fn mark(&mut self, key: &str) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.listed = self.list;
        }
    }

    /// What the list that was read does not name.
    pub(super) fn missing(&self) -> Vec<Key> {
        let missing = self.entries.iter().filter(|(_, entry)| entry.listed != self.list);
        missing.map(|(key, _)| key.clone()).collect()
    }

    /// All of them, in the order of their keys.
    pub(super) fn objects(&self) -> impl Iterator<Item = Object> {
        self.entries.values().filter_map(|entry| compact::decode(self.kind, &entry.bytes).ok())
    }

    /// All of them, as bytes.
    pub(crate) fn bytes(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.entries.values().map(|entry| &*entry.bytes)
    }
}
