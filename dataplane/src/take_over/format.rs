//! What an entry's words mean, and what they meant to versions of xskiff before this one, so that flows
//! outlive an upgrade.
//!
//! Who changes a meaning adds a [`Format`], and says in [`Format::translate`] how flows of the one before it
//! become such: flows of all former formats then do, one step after the other. A table of a former format is
//! moved to a new one, so that its index, its hashes and what its fingerprint was do not matter. What an older
//! version finds of a newer one it cannot read.

use flow_table::Hasher;

use crate::conntrack::FlowDirection;
use crate::flow::{FlowView, write_flow};
use crate::flows::TableKey;
use crate::nat::endpoint;

/// What entries' words mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// An end point has one mapping for each protocol, which stands alone for its far end.
    OneMapping,
    /// An end point has a mapping for each address that it is mapped to.
    MappingByAddress,
}

impl Format {
    /// What this version writes.
    pub const CURRENT: Self = Self::MappingByAddress;

    /// As it stands in a table's header.
    #[must_use]
    pub fn number(self) -> u64 {
        match self {
            Self::OneMapping => 2,
            Self::MappingByAddress => 3,
        }
    }

    /// The one of this number; `None` for one that came after this version, or before all that are read.
    #[must_use]
    pub fn of(number: u64) -> Option<Self> {
        [Self::OneMapping, Self::MappingByAddress].into_iter().find(|own| own.number() == number)
    }

    /// A flow's words as this version writes them.
    pub(super) fn translate<K: TableKey<W>, const W: usize>(
        self,
        hasher: &Hasher,
        mut words: [u64; W],
    ) -> [u64; W] {
        if self < Self::MappingByAddress {
            name_address_of_mapping::<K, W>(hasher, &mut words);
        }
        words
    }
}

/// From [`Format::OneMapping`] to [`Format::MappingByAddress`].
fn name_address_of_mapping<K: TableKey<W>, const W: usize>(hasher: &Hasher, words: &mut [u64; W]) {
    let atomic = words.map(std::sync::atomic::AtomicU64::new);
    let view = FlowView::<K>::new(&atomic);
    let [original, reply] = [FlowDirection::Original, FlowDirection::Reply]
        .map(|direction| view.tuple(direction).generic());
    let Some(named) = endpoint::with_address_named(hasher, &original, &reply) else { return };
    let (Some(original), Some(reply)) = (K::from_generic(&named.0), K::from_generic(&named.1))
    else {
        return;
    };
    let counted = [4, 5].map(|after| words[K::AFTER_ADDRESSES + after]);
    write_flow(&original, &reply, view.life(), view.route(), view.origin(), words);
    [words[K::AFTER_ADDRESSES + 4], words[K::AFTER_ADDRESSES + 5]] = counted;
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
