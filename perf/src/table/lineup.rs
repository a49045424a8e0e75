//! Which subjects there are, and how each is made.

use anyhow::{Context, Result};
use pinning::CpuId;

use super::flow::Tuple;
use super::maps::{Dashmap, Hashbrown, Map, OneKey, Papaya, Rest, Scc, TwoKeys};
use super::rte_hash::{self, RteHash};
use super::subject::{Here, Subject, WORKERS};
use super::xskiff::{Room, Xskiff};

/// This project's table.
pub const XSKIFF: &str = "xskiff";
/// Two of them, each with half of the flows: only in `share`.
pub const SHARDED: &str = "xskiff-sharded";
/// All subjects, in the order of a round.
pub const NAMES: [&str; 7] =
    [XSKIFF, SHARDED, rte_hash::NAME, "hashbrown", "papaya", "dashmap", "scc"];

/// A subject behind its interface.
pub type Boxed<const K: usize> = Box<dyn Subject<K>>;

/// How tables are made.
#[derive(Debug, Clone, Copy)]
pub struct Make {
    /// Flows they have room for.
    pub room: Room,
    /// Whether every flow is found under both directions' tuples.
    pub two_keys: bool,
    /// Whether entries have a second line, where that is offered.
    pub details: bool,
    /// Where two threads run; the first is where one does.
    pub cores: [CpuId; WORKERS],
}

impl Make {
    /// The subject of this name, empty. `W` is the words of an entry, `R` those beside its key.
    ///
    /// # Errors
    /// There is no such subject, or not that much memory.
    pub fn subject<const K: usize, const W: usize, const R: usize>(
        &self,
        name: &'static str,
    ) -> Result<Boxed<K>> {
        let Self { room, two_keys, details, cores } = *self;
        match name {
            XSKIFF => Ok(Box::new(Here::new(name, Xskiff::<W>::new(room, two_keys, details)?))),
            rte_hash::NAME => Ok(Box::new(RteHash::start::<K>(room.flows, two_keys, cores)?)),
            "hashbrown" => {
                Ok(self
                    .map::<Hashbrown<Tuple<K>, Rest<R>>, Hashbrown<Tuple<K>, u32>, K, W, R>(name))
            }
            "papaya" => {
                Ok(self.map::<Papaya<Tuple<K>, Rest<R>>, Papaya<Tuple<K>, u32>, K, W, R>(name))
            }
            "dashmap" => {
                Ok(self.map::<Dashmap<Tuple<K>, Rest<R>>, Dashmap<Tuple<K>, u32>, K, W, R>(name))
            }
            "scc" => Ok(self.map::<Scc<Tuple<K>, Rest<R>>, Scc<Tuple<K>, u32>, K, W, R>(name)),
            _ => None.with_context(|| format!("there is no subject {name}")),
        }
    }

    /// A map, to entries or, with two keys, to their numbers.
    fn map<ToRest, ToNumber, const K: usize, const W: usize, const R: usize>(
        &self,
        name: &'static str,
    ) -> Boxed<K>
    where
        ToRest: Map<Tuple<K>, Rest<R>> + 'static,
        ToNumber: Map<Tuple<K>, u32> + 'static,
    {
        let flows = self.room.flows;
        if self.two_keys {
            Box::new(Here::new(name, TwoKeys::<ToNumber, W>::new::<K>(flows)))
        } else {
            Box::new(Here::new(name, OneKey::<ToRest, R>::new::<K>(flows)))
        }
    }
}
