//! Flow tables that the process before this one has left in memory.
//!
//! An entry means the same to the next process as to the one before, if both write and hash flows
//! alike, and their clocks have one origin. [`Mark`] stands in the table's header to tell: flows of
//! another boot are not taken, and those that an earlier version wrote are moved, each translated
//! ([`format`]).
//!
//! What an entry caches of the tables in force (next hops, the rule that admitted it) is of the
//! process before. Its generation tells, as long as generations go on where that one stopped: so
//! each generation is noted before it is put in force, and every flow is judged anew.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use flow_table::{
    Entry, Hasher, InsertError, Keys, Owner, Quiescence, Shape, Table, TakeOverError, TakenOver,
};

use crate::address::Protocol;
use crate::conntrack::{FlowDirection, Life};
use crate::flow::{FlowRoute, FlowView, Origin, write_flow};
use crate::flow_key::{FlowKey4, FlowKey6};
use crate::flows::{FlowTables, TableKey, owner_of};
use crate::forwarding::NextHopId;
use crate::lb::ServiceId;
use crate::policy::RuleId;

pub mod format;

use format::Format;

/// What stands in a flow table's header for the next process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Names the origin of [`crate::time::Nanos`], which is another one after the next boot.
    pub boot: [u64; 2],
    /// What the table is hashed by.
    pub hash_key: [u64; 2],
    /// The last [`crate::tables::Tables::generation`] that was put in force.
    pub generation: u32,
    /// The process's number for [`crate::charge::Charges`].
    pub process: u16,
    /// What its words mean.
    pub format: Format,
}

/// The number of the tag's word that tells the generation.
const GENERATION: usize = 5;

impl Mark {
    /// As words of the header.
    #[must_use]
    pub fn tag(&self) -> flow_table::Tag {
        let (boot, key) = (self.boot, self.hash_key);
        let words = fingerprint(&Hasher::new(key));
        [
            self.format.number(),
            boot[0],
            boot[1],
            key[0],
            key[1],
            self.generation.into(),
            words,
            self.process.into(),
        ]
    }

    /// What the words tell; `None` when flows are written in a way that this version does not know.
    #[must_use]
    pub fn of(tag: &flow_table::Tag) -> Option<Self> {
        let mark = Self {
            boot: [tag[1], tag[2]],
            hash_key: [tag[3], tag[4]],
            generation: u32::try_from(tag[GENERATION]).ok()?,
            process: u16::try_from(tag[7]).ok()?,
            format: Format::of(tag[0])?,
        };
        (mark.format != Format::CURRENT || mark.tag() == *tag).then_some(mark)
    }
}

/// Differs when flows are written or hashed otherwise.
fn fingerprint(hasher: &Hasher) -> u64 {
    let v4 = |source: [u8; 4], source_port| {
        let source = Ipv4Addr::from(source).to_bits();
        let destination = Ipv4Addr::new(198, 51, 100, 7).to_bits();
        FlowKey4::new(Protocol::TCP, (source, source_port), (destination, 443))
    };
    let v6 = |source: u16, source_port| FlowKey6 {
        source: Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, source).to_bits(),
        destination: Ipv6Addr::new(0x2001, 0xdb8, 8, 7, 6, 5, 4, 3).to_bits(),
        source_port,
        destination_port: 443,
        protocol: Protocol::UDP,
    };
    let four = of_flow::<_, 8>(hasher, &v4([192, 0, 2, 1], 50_001), &v4([10, 1, 2, 3], 8_080));
    let six = of_flow::<_, 16>(hasher, &v6(1, 50_001), &v6(9, 8_080));
    four ^ six.rotate_left(1)
}

fn of_flow<K: TableKey<W>, const W: usize>(hasher: &Hasher, original: &K, reply: &K) -> u64 {
    let route = FlowRoute { generation: 3, hop: NextHopId(4), reverse_hop: NextHopId(5) };
    let origin = Origin { service: Some(ServiceId(6)), rule: RuleId(7) };
    let mut words = [0; W];
    write_flow(original, reply, Life(0x0102_0304_0506_0708), route, origin, &mut words);
    let hashes = [original, reply].map(|key| key.hash(hasher));
    words.iter().chain(&hashes).fold(0, |sum, word| hasher.hash(&[sum, *word]))
}

/// The keys of an entry that lies in memory.
fn keys<K: TableKey<W>, const W: usize>(hasher: &Hasher, entry: &Entry<W>) -> Keys<K> {
    let view = FlowView::<K>::new(entry.words());
    let [original, reply] =
        [FlowDirection::Original, FlowDirection::Reply].map(|direction| view.tuple(direction));
    let (first, second) = (original.hash(hasher), reply.hash(hasher));
    ((first, original), (first != second).then_some((second, reply)))
}

/// A family's table and its owners.
pub type Family<const W: usize> = (Arc<Table<W>>, Vec<Owner<W>>);

/// Goes on with the table of one family in `memory`, which is marked as of this boot.
///
/// # Errors
/// As [`Table::take_over`].
pub fn take_over<K: TableKey<W>, const W: usize>(
    memory: &'static mut [u8],
    shape: &Shape,
    hash_key: [u64; 2],
    quiescence: &Arc<Quiescence>,
) -> Result<(Family<W>, TakenOver), TakeOverError> {
    let hasher = Hasher::new(hash_key);
    let (table, owners, taken) =
        Table::take_over(memory, shape, quiescence, |entry| Some(keys::<K, W>(&hasher, entry)))?;
    Ok(((table, owners), taken))
}

/// Moves the flows of one family in `memory`, of this format, to another table, each to the worker whose
/// it is. Returns how many were moved, and how many found no room.
///
/// # Errors
/// As [`Table::salvage`]; then none was moved.
pub fn move_flows<K: TableKey<W>, const W: usize>(
    (memory, format): (&mut [u8], Format),
    owners: &mut [Owner<W>],
    hash_key: [u64; 2],
) -> Result<(u64, u64), TakeOverError> {
    let hasher = Hasher::new(hash_key);
    let workers = owners.len();
    let (mut moved, mut lost) = (0, 0);
    Table::<W>::salvage(memory, |words| {
        let words = format.translate::<K, W>(&hasher, words);
        let atomic = words.map(std::sync::atomic::AtomicU64::new);
        let view = FlowView::<K>::new(&atomic);
        let tuple = |direction| view.tuple(direction);
        let (original, reply) = (tuple(FlowDirection::Original), tuple(FlowDirection::Reply));
        let (first, second) = (original.hash(&hasher), reply.hash(&hasher));
        let alias = (first != second).then_some((second, reply));
        let inserted: Result<_, InsertError> = match owners.get_mut(owner_of(first, workers)) {
            Some(owner) => owner.insert((first, original), alias, &words),
            None => Err(InsertError::SlabFull),
        };
        match inserted {
            Ok(_) => moved += 1,
            Err(_) => lost += 1,
        }
    })?;
    Ok((moved, lost))
}

impl FlowTables {
    /// Marks both tables for the next process.
    pub fn mark(&self, mark: &Mark) {
        self.v4.set_tag(&mark.tag());
        self.v6.set_tag(&mark.tag());
    }

    /// Notes a generation of tables, before any worker has it.
    pub fn note_generation(&self, generation: u32) {
        self.v4.set_tag_word(GENERATION, generation.into());
        self.v6.set_tag_word(GENERATION, generation.into());
    }

    /// Closes both tables when no worker runs any more; `holds` are the workers'. False for a table
    /// that the next process will have to rebuild.
    pub fn close(&self, holds: Vec<crate::flows::WorkerFlows>) -> [bool; 2] {
        let (v4, v6) = holds.into_iter().map(|hold| (hold.v4.owner, hold.v6.owner)).unzip();
        [self.v4.close(v4), self.v6.close(v6)]
    }
}

#[cfg(test)]
#[path = "take_over_tests.rs"]
mod tests;
