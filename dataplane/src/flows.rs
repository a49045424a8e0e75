//! The flow tables of a node, and one worker's hold on them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arrayvec::ArrayVec;
use flow_table::{
    Entry, Handle, Hasher, Hashes, Hit, InsertError, Key, Memory, Owner, Quiescence, SetupError,
    Shape, Table,
};

use crate::affinity::is_affinity;
use crate::charge::{Charge, Charges};
use crate::conntrack::details::Details;
use crate::conntrack::{FlowDirection, Life};
use crate::eviction::Eviction;
use crate::expiry::Pace;
use crate::flow::{FlowFamily, FlowRoute, FlowView, Origin, write_above_counts, write_flow};
use crate::flow_ends::FlowEnds;
use crate::flow_key::{FlowKey, FlowKey4, FlowKey6};
use crate::identity::PodTag;
use crate::nat::endpoint;
use crate::time::Nanos;
use crate::worker::BURST;

/// A key that can be looked up in a table of `W`-word entries.
pub trait TableKey<const W: usize>: FlowFamily + Key<W, Match = FlowDirection> {
    /// What is hashed of it.
    type HashWords: Copy;

    /// The same for both directions of a tuple.
    fn words(&self) -> Self::HashWords;

    /// The hashes of many.
    fn hash_burst(words: &[Self::HashWords], hasher: &Hasher, hashes: &mut [u64]);

    /// Its own hash.
    fn hash(&self, hasher: &Hasher) -> u64;
}

impl Key<8> for FlowKey4 {
    type Match = FlowDirection;

    #[inline(always)]
    fn matches(&self, entry: &Entry<8>) -> Option<FlowDirection> {
        FlowView::new(entry.words()).direction_of(self)
    }
}

impl Key<16> for FlowKey6 {
    type Match = FlowDirection;

    #[inline(always)]
    fn matches(&self, entry: &Entry<16>) -> Option<FlowDirection> {
        FlowView::new(entry.words()).direction_of(self)
    }
}

impl TableKey<8> for FlowKey4 {
    type HashWords = [u64; 2];

    #[inline(always)]
    fn words(&self) -> [u64; 2] {
        self.hash_words()
    }

    #[inline(always)]
    fn hash_burst(words: &[[u64; 2]], hasher: &Hasher, hashes: &mut [u64]) {
        hasher.hash_burst(words, hashes);
    }

    #[inline(always)]
    fn hash(&self, hasher: &Hasher) -> u64 {
        hasher.hash(&self.words())
    }
}

impl TableKey<16> for FlowKey6 {
    type HashWords = [u64; 5];

    #[inline(always)]
    fn words(&self) -> [u64; 5] {
        self.hash_words()
    }

    #[inline(always)]
    fn hash_burst(words: &[[u64; 5]], hasher: &Hasher, hashes: &mut [u64]) {
        hasher.hash_burst(words, hashes);
    }

    #[inline(always)]
    fn hash(&self, hasher: &Hasher) -> u64 {
        hasher.hash(&self.words())
    }
}

/// The worker, of so many, whose a flow with this hash is.
#[must_use]
pub fn owner_of(hash: u64, workers: usize) -> usize {
    // Multiply-shift over the middle bits; the table uses the others.
    let bits = (hash >> 16) & 0xffff_ffff;
    usize::try_from((bits * workers as u64) >> 32).unwrap_or(0)
}

/// One worker's hold on one family's table.
#[derive(Debug)]
pub struct Flows<const W: usize> {
    /// Everybody's.
    pub table: Arc<Table<W>>,
    /// The part this worker inserts into and sweeps.
    pub owner: Owner<W>,
    /// What it gives up when that part fills.
    pub eviction: Eviction,
    /// Whom flows are charged to, of both families and all workers.
    pub charges: Arc<Charges>,
    /// Where the ends of new flows are noted, as shared.
    pub ends: Arc<FlowEnds>,
    pub(crate) pace: Pace,
}

/// Where and how a flow was found.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// Its entry.
    pub handle: Handle,
    /// The way the packet goes.
    pub direction: FlowDirection,
}

/// A flow to insert.
#[derive(Debug, Clone, Copy)]
pub struct NewFlow<K> {
    /// Tuple of the original direction, as received.
    pub original: K,
    /// Tuple of the reply direction, as received.
    pub reply: K,
    /// State of its first packet.
    pub life: Life,
    /// Next hops.
    pub route: FlowRoute,
    /// Service and rule.
    pub origin: Origin,
    /// Whom it is charged to.
    pub charge: Charge,
    /// Which pod its backend is, of a flow to a service.
    pub pod: PodTag,
}

impl<const W: usize> Flows<W> {
    /// Inserts `flow` under its `hashes` ([`hashes_of`]): that of its original tuple, and of its
    /// reply tuple where the two differ. No two flows ever have a tuple in common.
    ///
    /// # Errors
    /// As [`Owner::insert`]: `Exists` when the original tuple is another flow's, `AliasExists` when
    /// the reply tuple is.
    pub fn insert<K: TableKey<W>>(
        &mut self,
        flow: &NewFlow<K>,
        hashes: Hashes,
    ) -> Result<Handle, InsertError> {
        let mut words = [0u64; W];
        write_flow(&flow.original, &flow.reply, flow.life, flow.route, flow.origin, &mut words);
        write_above_counts::<K>(flow.charge, flow.pod, &mut words);
        let tuples = EitherTuple(flow.original, flow.reply);
        let alias = hashes.alias.map(|hash| (hash, tuples));
        let inserted = self.owner.insert((hashes.original, tuples), alias, &words);
        if inserted.is_ok() {
            self.charges.take(flow.charge);
            self.ends
                .note([flow.original, flow.reply].map(|tuple| tuple.generic().source().into()));
        }
        inserted.map_err(|error| match error {
            InsertError::Exists(other) if !self.has_tuple(other, &flow.original) => {
                InsertError::AliasExists(other)
            }
            error => error,
        })
    }

    fn has_tuple<K: TableKey<W>>(&self, handle: Handle, tuple: &K) -> bool {
        self.table.entry(handle).is_some_and(|entry| tuple.matches(entry).is_some())
    }

    /// Removes one of this worker's entries; `false` when it is not this worker's.
    pub fn remove<K: TableKey<W>>(&mut self, hasher: &Hasher, handle: Handle) -> bool {
        let Some(entry) = self.table.entry(handle) else { return false };
        let view = FlowView::<K>::new(entry.words());
        let charge = view.charge();
        let removed = self.owner.remove(handle, hashes_of_flow(hasher, &view)).is_ok();
        if removed {
            // Whoever found it earlier in this burst sees that it is over.
            view.end();
            self.charges.give_back(charge);
        }
        removed
    }
}

/// Both tuples of a flow, for finding others that have one of them: the two tuples of a flow that
/// is not translated have one hash, under which a translated flow's reply tuple may lie as well.
#[derive(Clone, Copy)]
struct EitherTuple<K>(K, K);

impl<K: Key<W>, const W: usize> Key<W> for EitherTuple<K> {
    type Match = K::Match;

    fn matches(&self, entry: &Entry<W>) -> Option<K::Match> {
        self.0.matches(entry).or_else(|| self.1.matches(entry))
    }
}

/// The hashes a flow lies under.
pub fn hashes_of_flow<const W: usize, K: TableKey<W>>(
    hasher: &Hasher,
    flow: &FlowView<'_, K>,
) -> Hashes {
    hashes_of(hasher, &flow.tuple(FlowDirection::Original), &flow.tuple(FlowDirection::Reply))
}

/// The hashes that a flow of these tuples lies under.
pub fn hashes_of<const W: usize, K: TableKey<W>>(
    hasher: &Hasher,
    original: &K,
    reply: &K,
) -> Hashes {
    two_hashes(original.hash(hasher), reply.hash(hasher))
}

/// The same from the tuples' hashes.
pub(crate) fn two_hashes(original: u64, reply: u64) -> Hashes {
    Hashes { original, alias: (original != reply).then_some(reply) }
}

/// How many flows a table has room for, at first, by itself and at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// At first.
    pub now: usize,
    /// What it grows to by itself, since there is memory for so many.
    pub committed: usize,
    /// What there can ever be, once there is memory for it.
    pub max: usize,
}

/// How many flows of each family a node has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacities {
    /// IPv4 flows.
    pub v4: Capacity,
    /// IPv6 flows.
    pub v6: Capacity,
    /// Whether flows have a second line ([`crate::conntrack::details`]): 64 bytes more each.
    pub details: bool,
}

impl Capacities {
    /// Tables that stay as large as they are, without details.
    #[must_use]
    pub fn fixed(v4: usize, v6: usize) -> Self {
        let fixed = |flows| Capacity { now: flows, committed: flows, max: flows };
        Self { v4: fixed(v4), v6: fixed(v6), details: false }
    }

    /// The shapes of the IPv4 and the IPv6 table for so many workers.
    #[must_use]
    pub fn shapes(&self, workers: usize) -> (Shape, Shape) {
        let shape = |capacity: Capacity| Shape {
            capacity: capacity.now,
            committed: capacity.committed,
            capacity_max: capacity.max,
            owners: workers,
            details: self.details,
        };
        (shape(self.v4), shape(self.v6))
    }
}

/// Both tables, as everybody may read them.
#[derive(Debug, Clone)]
pub struct FlowTables {
    /// IPv4.
    pub v4: Arc<Table<8>>,
    /// IPv6.
    pub v6: Arc<Table<16>>,
    /// Hash of both.
    pub hasher: Hasher,
    /// When removed entries may be used again.
    pub quiescence: Arc<Quiescence>,
    /// Whom flows are charged to.
    pub charges: Arc<Charges>,
    /// Which addresses may be ends of flows.
    pub ends: Arc<FlowEnds>,
}

/// What one worker holds of both tables.
#[derive(Debug)]
pub struct WorkerFlows {
    /// IPv4.
    pub v4: Flows<8>,
    /// IPv6.
    pub v6: Flows<16>,
    /// Hash of both.
    pub hasher: Hasher,
    /// Where the worker announces that it holds no entry.
    pub quiescence: Arc<Quiescence>,
}

impl WorkerFlows {
    /// The hash of a tuple.
    #[inline(always)]
    pub(crate) fn hash(&self, key: &FlowKey) -> u64 {
        match key {
            FlowKey::V4(key) => key.hash(&self.hasher),
            FlowKey::V6(key) => key.hash(&self.hasher),
        }
    }

    /// Asks for the index line of a tuple with this hash.
    #[inline(always)]
    pub(crate) fn prefetch(&self, key: &FlowKey, hash: u64) {
        match key {
            FlowKey::V4(_) => self.v4.table.prefetch(hash),
            FlowKey::V6(_) => self.v6.table.prefetch(hash),
        }
    }

    /// Asks for what an insert writes beside that line, once it has come.
    #[inline(always)]
    pub(crate) fn prefetch_for_insert(&self, key: &FlowKey, hash: u64) {
        match key {
            FlowKey::V4(_) => self.v4.table.prefetch_for_insert(hash),
            FlowKey::V6(_) => self.v6.table.prefetch_for_insert(hash),
        }
    }
}

impl FlowTables {
    /// Tables for `workers` workers, each worker's hold beside them. `hash_key` must be random:
    /// who knows it can choose tuples that collide.
    ///
    /// # Errors
    /// As [`Table::new`].
    pub fn new(
        capacities: Capacities,
        memory: (Memory, Memory),
        workers: usize,
        hash_key: [u64; 2],
    ) -> Result<(Self, Vec<WorkerFlows>), SetupError> {
        let quiescence = Quiescence::new(workers)?;
        let shapes = capacities.shapes(workers);
        let v4 = Table::new(memory.0, shapes.0, quiescence.clone())?;
        let v6 = Table::new(memory.1, shapes.1, quiescence.clone())?;
        Ok(Self::join(v4, v6, (hash_key, Charges::default()), quiescence))
    }

    /// Two tables that are there already, for as many workers as they have owners, with what they are
    /// hashed by, and whom new flows are charged to.
    #[must_use]
    pub fn join(
        (v4, owners4): (Arc<Table<8>>, Vec<Owner<8>>),
        (v6, owners6): (Arc<Table<16>>, Vec<Owner<16>>),
        (hash_key, charges): ([u64; 2], Charges),
        quiescence: Arc<Quiescence>,
    ) -> (Self, Vec<WorkerFlows>) {
        let (hasher, charges) = (Hasher::new(hash_key), Arc::new(charges));
        let ends = Arc::new(FlowEnds::default());
        let tables = Self { v4, v6, hasher, quiescence, charges, ends };
        let holds = owners4
            .into_iter()
            .zip(owners6)
            .map(|(owner4, owner6)| WorkerFlows {
                v4: Flows {
                    table: tables.v4.clone(),
                    owner: owner4,
                    eviction: Eviction::default(),
                    charges: Arc::clone(&tables.charges),
                    ends: Arc::clone(&tables.ends),
                    pace: Pace::default(),
                },
                v6: Flows {
                    table: tables.v6.clone(),
                    owner: owner6,
                    eviction: Eviction::default(),
                    charges: Arc::clone(&tables.charges),
                    ends: Arc::clone(&tables.ends),
                    pace: Pace::default(),
                },
                hasher: tables.hasher.clone(),
                quiescence: Arc::clone(&tables.quiescence),
            })
            .collect();
        (tables, holds)
    }

    /// Calls `visit` with every live flow at `now` that is not denied. For listings: flows that come and go meanwhile
    /// may be missed or shown.
    pub fn for_each(&self, now: Nanos, mut visit: impl FnMut(FlowRecord)) {
        self.v4.for_each(self.v4.handles(), |handle, words| {
            let details = self.v4.details(handle).map(Details::new);
            show::<FlowKey4>(&words.map(AtomicU64::new), details, now, &mut visit);
        });
        self.v6.for_each(self.v6.handles(), |handle, words| {
            let details = self.v6.details(handle).map(Details::new);
            show::<FlowKey6>(&words.map(AtomicU64::new), details, now, &mut visit);
        });
    }
}

fn show<K: FlowFamily>(
    words: &[AtomicU64],
    details: Option<Details<'_>>,
    now: Nanos,
    visit: &mut impl FnMut(FlowRecord),
) {
    let view = FlowView::<K>::new(words);
    let original = view.tuple(FlowDirection::Original).generic();
    let is_shown =
        !view.life().is_denied() && !endpoint::is_mapping(&original) && !is_affinity(&original);
    if is_shown && !view.life().expired(now) {
        visit(FlowRecord {
            original: original.canonical(),
            reply: view.tuple(FlowDirection::Reply).generic().canonical(),
            life: view.life(),
            origin: view.origin(),
            packets: view.packets(),
            bytes: details.map(Details::bytes),
            charge: view.charge(),
        });
    }
}

/// One flow, copied out for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowRecord {
    /// Tuple of the original direction, as received.
    pub original: FlowKey,
    /// Tuple of the reply direction, as received.
    pub reply: FlowKey,
    /// Protocol, state, deadline.
    pub life: Life,
    /// Service and rule.
    pub origin: Origin,
    /// Packets in the original and the reply direction.
    pub packets: (u64, u64),
    /// Bytes of their IP packets, where flows have details; those of a flow that comes or goes at
    /// this moment may be another's.
    pub bytes: Option<(u64, u64)>,
    /// Whom it is charged to.
    pub charge: Charge,
}

/// What [`Lookups::locate`] finds out about a packet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Located {
    hash: u64,
    candidate: Option<Handle>,
}

impl Located {
    /// The packet's hash, when there is surely no flow yet.
    #[inline(always)]
    pub(crate) fn missed(&self) -> Option<u64> {
        self.candidate.is_none().then_some(self.hash)
    }

    /// The flow of the packet with this key.
    #[inline(always)]
    #[must_use]
    pub fn find<K: TableKey<W>, const W: usize>(&self, table: &Table<W>, key: &K) -> Option<Found> {
        let hit = self.hit(table, key)?;
        Some(Found { handle: hit.handle, direction: hit.matched })
    }

    /// The same with its entry.
    #[inline(always)]
    pub(crate) fn hit<'t, K: TableKey<W>, const W: usize>(
        &self,
        table: &'t Table<W>,
        key: &K,
    ) -> Option<Hit<'t, FlowDirection, W>> {
        table.confirm(self.hash, key, self.candidate)
    }
}

/// The lookups of one family in a burst, in steps with other work in between, so that memory
/// arrives meanwhile: [`fetch`](Self::fetch) asks for index lines, [`locate`](Self::locate) reads
/// them and asks for entries, [`Located::find`] reads those.
#[derive(Debug)]
pub struct Lookups<K: TableKey<W>, const W: usize> {
    /// What is hashed of each packet's key.
    words: ArrayVec<K::HashWords, BURST>,
    hashes: ArrayVec<u64, BURST>,
    /// Where in the burst each packet stands.
    places: ArrayVec<usize, BURST>,
}

impl<K: TableKey<W>, const W: usize> Default for Lookups<K, W> {
    fn default() -> Self {
        Self { words: ArrayVec::new(), hashes: ArrayVec::new(), places: ArrayVec::new() }
    }
}

impl<K: TableKey<W>, const W: usize> Lookups<K, W> {
    /// Adds the key of the packet at `place`; at most a burst of them.
    #[inline(always)]
    pub fn push(&mut self, place: usize, key: &K) {
        self.words.push(key.words());
        self.places.push(place);
    }

    /// Hashes the keys added since the last call, and asks for their index lines.
    #[inline(always)]
    pub fn fetch(&mut self, hasher: &Hasher, table: &Table<W>) {
        let new = &self.words[self.hashes.len()..];
        let mut hashes = [0; BURST];
        let hashes = &mut hashes[..new.len()];
        K::hash_burst(new, hasher, hashes);
        table.prefetch_burst(hashes);
        self.hashes.extend(hashes.iter().copied());
    }

    /// Writes to `located`, at each packet's place, where its flow is if there is one.
    #[inline(always)]
    pub fn locate(&self, table: &Table<W>, located: &mut [Located]) {
        if self.words.is_empty() {
            return;
        }
        let mut candidates = [None; BURST];
        table.candidates(&self.hashes, &mut candidates);
        for ((place, hash), candidate) in self.places.iter().zip(&self.hashes).zip(candidates) {
            located[*place] = Located { hash: *hash, candidate };
        }
        if table.has_details() {
            candidates.into_iter().flatten().for_each(|handle| table.prefetch_details(handle));
        }
    }
}
