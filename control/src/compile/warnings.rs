//! What is in force otherwise than it was probably meant, by what it comes from, so that a change
//! looks at its own warnings alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use hashbrown::HashMap;

use super::services::Owner;
use crate::model::ObjectName;

/// Warnings that are kept for a log until they are taken.
const FRESH_MAX: usize = 64;

/// Something that is in force otherwise than it was probably meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// Kind, namespace and name.
    pub object: String,
    /// What, and what to do.
    pub message: String,
}

impl Warning {
    pub(super) fn new(object: impl Into<String>, message: impl Into<String>) -> Self {
        Self { object: object.into(), message: message.into() }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.message)
    }
}

/// What is looked at as a whole, and warned about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Address(IpAddr),
    Endpoint(ObjectName),
    Namespace(String),
    Policy(ObjectName),
    OwnNode,
    Frontends(Owner),
    Weight(ObjectName),
    /// Pods that slices name in vain.
    Targets,
    Frontend(dataplane::lb::Frontend),
}

/// What sources are warned about from now on.
pub(super) type Told = Vec<(Source, BTreeSet<Warning>)>;

/// All warnings; sorted, each once.
#[derive(Debug, Clone, Default)]
pub struct Warnings {
    by_source: HashMap<Source, BTreeSet<Warning>>,
    /// How many sources say it.
    all: BTreeMap<Warning, usize>,
    /// What nobody said before, until it is taken.
    fresh: Vec<Warning>,
    /// How many more there were.
    fresh_left_out: usize,
}

impl Warnings {
    /// Every one, sorted.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Warning> {
        self.all.keys()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What came since the last time, for a log; at most [`FRESH_MAX`], and how many more.
    pub fn take_fresh(&mut self) -> (Vec<Warning>, usize) {
        (std::mem::take(&mut self.fresh), std::mem::take(&mut self.fresh_left_out))
    }

    /// What `source` is warned about now.
    pub(super) fn of(&self, source: &Source) -> impl Iterator<Item = &Warning> + use<'_> {
        self.by_source.get(source).into_iter().flatten()
    }

    /// What `source` is warned about from now on.
    pub(super) fn set(&mut self, source: Source, warnings: BTreeSet<Warning>) {
        for warning in warnings.iter().filter(|warning| !self.all.contains_key(*warning)) {
            if self.fresh.len() < FRESH_MAX {
                self.fresh.push(warning.clone());
            } else {
                self.fresh_left_out += 1;
            }
        }
        for warning in self.by_source.remove(&source).into_iter().flatten() {
            if let Some(sources) = self.all.get_mut(&warning) {
                *sources -= 1;
                if *sources == 0 {
                    self.all.remove(&warning);
                }
            }
        }
        if warnings.is_empty() {
            return;
        }
        for warning in &warnings {
            *self.all.entry(warning.clone()).or_default() += 1;
        }
        self.by_source.insert(source, warnings);
    }
}
