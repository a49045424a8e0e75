//! Whole lists of another server's, and what it costs to doubt one.
//!
//! While something is kept that a list did not have, nobody is told a resourceVersion at which that list
//! is the truth: a client that went on elsewhere from there would never hear that the rest is gone. What
//! is told meanwhile is told at the version before the list, or, where that list is of an older store,
//! at one that no server remembers, so that who goes elsewhere lists anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{HistoryLimits, Replaced, State};
use crate::resource::Resource;
use crate::serve::Encoded;

/// A resourceVersion that every server has forgotten.
const BEFORE_ALL: u64 = 1;

impl State {
    /// The version at which a change is told whose own is `version`, and that at which who has seen all
    /// up to it has seen the change.
    pub(super) fn told_at(&self, version: u64) -> (u64, u64) {
        let known = self.counts.version;
        match self.is_doubted {
            true => (known, version.max(known + 1)),
            false => (known.max(version), known.max(version)),
        }
    }

    pub(super) fn replace(
        &mut self,
        resource: &Resource,
        list: &[Encoded],
        version: u64,
        kept: &BTreeSet<String>,
        limits: HistoryLimits,
    ) -> Replaced {
        let known = self.counts.version;
        // Two lists of one version that differ: who has seen that version has seen either.
        let known_at = version.max(known + 1);
        let first = !self.filled;
        let reset = version < known;
        let mut replaced = Replaced { reset, ..Replaced::default() };
        self.is_doubted = !kept.is_empty();
        let told = match (self.is_doubted, reset) {
            (false, _) => version,
            (true, false) => known,
            (true, true) => BEFORE_ALL,
        };
        let listed: BTreeMap<String, &Encoded> =
            list.iter().map(|encoded| (encoded.key(), encoded)).collect();
        let is_gone = |key: &&Arc<str>| !listed.contains_key(&***key) && !kept.contains(&***key);
        let gone: Vec<Arc<str>> = self.objects.keys().filter(is_gone).cloned().collect();
        replaced.deleted = gone.len();
        for key in gone {
            // Not at the list's resourceVersion: a client that got only some of these and goes on
            // at another server from there would never hear of the rest.
            self.remove(resource, &key, known, known_at, limits);
        }
        let mut changed: Vec<&Encoded> = Vec::new();
        for (key, encoded) in &listed {
            match self.objects.get(key.as_str()) {
                Some(object) if object.version == encoded.version => {}
                Some(_) => {
                    replaced.modified += 1;
                    changed.push(encoded);
                }
                None => {
                    replaced.added += 1;
                    changed.push(encoded);
                }
            }
        }
        changed.sort_by_key(|encoded| encoded.version);
        for encoded in changed {
            let at = if self.is_doubted { told } else { known.max(encoded.version) };
            let known_at = if encoded.version > known { encoded.version } else { known_at };
            self.put(resource, encoded, at, known_at, limits);
        }
        self.counts.version = told;
        (self.filled, self.absent) = (true, false);
        if first || reset {
            self.forget(told);
            self.counts.resets += u64::from(reset);
        }
        replaced
    }
}
