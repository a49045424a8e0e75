//! A flow as it lies in its slab entry: one 64-byte line for IPv4, two for IPv6.
//!
//! | words (IPv4 / IPv6) | content |
//! |---|---|
//! | 0..2 / 0..8 | original source and destination, reply source and destination |
//! | 2 / 8 | L4 ports: original source, destination, reply source, destination |
//! | 3 / 9 | [`Life`]: deadline, what was seen, protocol |
//! | 4 / 10 | [`Route`](FlowRoute): generation of the tables, next hops onward and back |
//! | 5 / 11 | [`Origin`]: service, rule |
//! | 6, 7 / 12, 13 | packets in each direction; in the top 16 bits of the first which pod the backend
//!   is ([`PodTag`]), of the second its [`Charge`] |
//!
//! The tuples are written once, before the entry is published. `Life` changes by compare-and-swap;
//! the others tolerate a lost update.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::address_hash::AddressHash;
use crate::charge::Charge;
use crate::conntrack::{FlowDirection, Life, Seen};
use crate::flow_key::{FlowKey, FlowKey4, FlowKey6, halves, low_half, ports_word};
use crate::forwarding::NextHopId;
use crate::identity::PodTag;
use crate::lb::ServiceId;
use crate::mss::SegmentLimit;
use crate::policy::RuleId;
use crate::tables::{Tables, Timeouts};
use crate::time::Nanos;

/// The cached way of both directions, and the generation of the tables it holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowRoute {
    /// [`crate::tables::Tables::generation`] it was decided under.
    pub generation: u32,
    /// Onward; for the original direction.
    pub hop: NextHopId,
    /// Back; [`FlowRoute::UNRESOLVED`] while not known.
    pub reverse_hop: NextHopId,
}

impl FlowRoute {
    /// Stands for a next hop that is not resolved yet.
    pub const UNRESOLVED: NextHopId = NextHopId(u16::MAX);

    /// What stands for `generation` in the route of a flow that changes family, or goes on to its
    /// backend's node: never the generation in force, so that nothing asks on the way of all others,
    /// where what is not decided under the tables in force leaves it. Generations are counted from 0,
    /// and 2^31 of them never come.
    #[must_use]
    pub fn generation_apart(generation: u32) -> u32 {
        !generation
    }

    fn pack(self) -> u64 {
        u64::from(self.generation) << 32
            | u64::from(self.hop.0) << 16
            | u64::from(self.reverse_hop.0)
    }

    fn unpack(word: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
        Self {
            generation: u32::from_be_bytes([a, b, c, d]),
            hop: NextHopId(u16::from_be_bytes([e, f])),
            reverse_hop: NextHopId(u16::from_be_bytes([g, h])),
        }
    }

    /// The next hop of packets that go in `direction`.
    #[must_use]
    pub fn hop_of(self, direction: FlowDirection) -> NextHopId {
        match direction {
            FlowDirection::Original => self.hop,
            FlowDirection::Reply => self.reverse_hop,
        }
    }
}

/// Why the flow exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The service it was opened through.
    pub service: Option<ServiceId>,
    /// The rule that admitted it.
    pub rule: RuleId,
}

impl Origin {
    fn pack(self) -> u64 {
        let service = self.service.map_or(u32::MAX, |id| id.0);
        u64::from(service) << 32 | u64::from(self.rule.0)
    }

    fn unpack(word: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
        let service = u32::from_be_bytes([a, b, c, d]);
        Self {
            service: (service != u32::MAX).then_some(ServiceId(service)),
            rule: RuleId(u32::from_be_bytes([e, f, g, h])),
        }
    }
}

/// What differs between the two families' entries.
pub trait FlowFamily: Copy + Eq {
    /// Words of an entry.
    const WORDS: usize;
    /// First word after the addresses.
    const AFTER_ADDRESSES: usize;

    /// Writes the addresses of both tuples.
    fn write_addresses(original: &Self, reply: &Self, words: &mut [u64]);
    /// Reads the addresses of `direction`'s tuple as (source, destination), and makes a key of them.
    fn read_tuple(words: &[AtomicU64], direction: FlowDirection, ports: u32, life: Life) -> Self;
    /// The hashes of what was its source and of what answers it, of the flow with these words: the
    /// two ends that policy and routes are asked about.
    fn ends(words: &[AtomicU64]) -> [AddressHash; 2];
    /// Which direction's tuple this is, of the flow with these words.
    fn direction_in(&self, words: &[AtomicU64]) -> Option<FlowDirection>;
    /// The L4 ports in one word: source in the upper half, destination in the lower.
    fn ports_word(&self) -> u32;
    /// As a key of either family.
    fn generic(self) -> FlowKey;
    /// Of a key of either family; `None` for an IPv6 tuple where IPv4 is asked for.
    fn from_generic(key: &FlowKey) -> Option<Self>;
}

impl FlowFamily for FlowKey4 {
    const WORDS: usize = 8;
    const AFTER_ADDRESSES: usize = 2;

    fn write_addresses(original: &Self, reply: &Self, words: &mut [u64]) {
        words[0] = original.addresses();
        words[1] = reply.addresses();
    }

    #[inline(always)]
    fn read_tuple(words: &[AtomicU64], direction: FlowDirection, ports: u32, life: Life) -> Self {
        let addresses = words[index_of(direction)].load(Ordering::Relaxed);
        Self::of_words(addresses, ports, life.protocol())
    }

    #[inline(always)]
    fn ends(words: &[AtomicU64]) -> [AddressHash; 2] {
        let source = |word: usize| low_half(words[word].load(Ordering::Relaxed) >> 32);
        [0, 1].map(|word| AddressHash::of_v4(source(word)))
    }

    /// Compares whole words as they are packed: field by field, a tuple is five branches.
    #[inline(always)]
    fn direction_in(&self, words: &[AtomicU64]) -> Option<FlowDirection> {
        let [original, reply, ports, life] =
            [0, 1, 2, 3].map(|word: usize| words[word].load(Ordering::Relaxed));
        let (addresses, own) = (self.addresses(), u64::from(self.ports()));
        let protocol = u64::from(Life(life).protocol().0 ^ self.protocol.0);
        if (original ^ addresses) | (ports >> 32 ^ own) | protocol == 0 {
            Some(FlowDirection::Original)
        } else if (reply ^ addresses) | (ports & 0xffff_ffff ^ own) | protocol == 0 {
            Some(FlowDirection::Reply)
        } else {
            None
        }
    }

    #[inline(always)]
    fn ports_word(&self) -> u32 {
        self.ports()
    }

    #[inline(always)]
    fn generic(self) -> FlowKey {
        FlowKey::V4(self)
    }

    fn from_generic(key: &FlowKey) -> Option<Self> {
        if let FlowKey::V4(key) = key { Some(*key) } else { None }
    }
}

impl FlowFamily for FlowKey6 {
    const WORDS: usize = 16;
    const AFTER_ADDRESSES: usize = 8;

    fn write_addresses(original: &Self, reply: &Self, words: &mut [u64]) {
        let addresses = [original.source, original.destination, reply.source, reply.destination];
        for (index, address) in addresses.into_iter().enumerate() {
            let (high, low) = halves(address);
            words[2 * index] = high;
            words[2 * index + 1] = low;
        }
    }

    fn read_tuple(words: &[AtomicU64], direction: FlowDirection, ports: u32, life: Life) -> Self {
        let [a, b, c, d] = ports.to_be_bytes();
        let base = 4 * index_of(direction);
        let whole = |index: usize| {
            u128::from(words[base + index].load(Ordering::Relaxed)) << 64
                | u128::from(words[base + index + 1].load(Ordering::Relaxed))
        };
        Self {
            source: whole(0),
            destination: whole(2),
            source_port: u16::from_be_bytes([a, b]),
            destination_port: u16::from_be_bytes([c, d]),
            protocol: life.protocol(),
        }
    }

    #[inline(always)]
    fn ends(words: &[AtomicU64]) -> [AddressHash; 2] {
        let word = |index: usize| words[index].load(Ordering::Relaxed);
        [0, 4].map(|source: usize| AddressHash::of_v6(word(source), word(source + 1)))
    }

    #[inline(always)]
    fn direction_in(&self, words: &[AtomicU64]) -> Option<FlowDirection> {
        let view = FlowView::<Self>::new(words);
        [FlowDirection::Original, FlowDirection::Reply]
            .into_iter()
            .find(|direction| view.tuple(*direction) == *self)
    }

    fn ports_word(&self) -> u32 {
        ports_word(self.source_port, self.destination_port)
    }

    #[inline(always)]
    fn generic(self) -> FlowKey {
        FlowKey::V6(self)
    }

    /// An IPv4 tuple is one of a flow that changes family.
    fn from_generic(key: &FlowKey) -> Option<Self> {
        Some(match key {
            FlowKey::V4(key) => Self::mapped(key),
            FlowKey::V6(key) => *key,
        })
    }
}

fn index_of(direction: FlowDirection) -> usize {
    match direction {
        FlowDirection::Original => 0,
        FlowDirection::Reply => 1,
    }
}

/// The words of a new flow.
pub fn write_flow<K: FlowFamily>(
    original: &K,
    reply: &K,
    life: Life,
    route: FlowRoute,
    origin: Origin,
    words: &mut [u64],
) {
    K::write_addresses(original, reply, words);
    let rest = &mut words[K::AFTER_ADDRESSES..];
    rest[0] = u64::from(original.ports_word()) << 32 | u64::from(reply.ports_word());
    rest[1] = life.0;
    rest[2] = route.pack();
    rest[3] = origin.pack();
    // The packet that opens it is counted as it leaves.
    (rest[4], rest[5]) = (0, 0);
}

/// Where in the last two words what is above counts of packets stands: a count takes a year at ten
/// million a second.
const ABOVE_COUNT: u32 = 48;
const COUNT: u64 = (1 << ABOVE_COUNT) - 1;

/// Charges a flow whose words were written, and notes which pod its backend is.
pub(crate) fn write_above_counts<K: FlowFamily>(charge: Charge, pod: PodTag, words: &mut [u64]) {
    words[K::AFTER_ADDRESSES + 4] |= above(number_of(pod));
    words[K::AFTER_ADDRESSES + 5] |= above(charge.0);
}

fn above(number: u16) -> u64 {
    u64::from(number) << ABOVE_COUNT
}

fn number_of(pod: PodTag) -> u16 {
    match pod {
        PodTag::Unknown => 0,
        PodTag::Of(number) => number,
    }
}

/// The backend a flow leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BackendPod {
    /// This pod, or nobody knows which.
    Tagged(PodTag),
    /// One that left this node.
    Gone,
}

/// Stands for [`BackendPod::Gone`]: above every tag.
const GONE: u16 = u16::MAX;
const _: () = assert!(PodTag::GREATEST < GONE);

/// A live entry, read and advanced in place.
#[derive(Debug)]
pub struct FlowView<'a, K> {
    words: &'a [AtomicU64],
    family: std::marker::PhantomData<K>,
}

impl<K> Clone for FlowView<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for FlowView<'_, K> {}

impl<'a, K: FlowFamily> FlowView<'a, K> {
    /// A view of an entry's words; `words` holds [`FlowFamily::WORDS`] of them.
    #[must_use]
    pub fn new(words: &'a [AtomicU64]) -> Self {
        Self { words, family: std::marker::PhantomData }
    }

    fn word(&self, offset: usize) -> &'a AtomicU64 {
        &self.words[K::AFTER_ADDRESSES + offset]
    }

    /// Which direction of this flow `key` is; `None` when it is another flow.
    #[inline(always)]
    #[must_use]
    pub fn direction_of(&self, key: &K) -> Option<FlowDirection> {
        key.direction_in(self.words)
    }

    /// The tuple of packets that go in `direction`, as received.
    #[inline(always)]
    #[must_use]
    pub fn tuple(&self, direction: FlowDirection) -> K {
        let ports = self.word(0).load(Ordering::Relaxed);
        let ports = match direction {
            FlowDirection::Original => ports >> 32,
            FlowDirection::Reply => ports,
        };
        K::read_tuple(self.words, direction, low_half(ports), self.life())
    }

    /// Its two ends' hashes, each by its own family: [`FlowFamily::ends`] takes less time, and takes an
    /// IPv4 end of a flow that changes family for an IPv6 one.
    pub(crate) fn ends(&self) -> [AddressHash; 2] {
        let end = |direction| self.tuple(direction).generic().source().into();
        [end(FlowDirection::Original), end(FlowDirection::Reply)]
    }

    /// Whether its packets never go the straight way: their route bears
    /// [`FlowRoute::generation_apart`].
    pub(crate) fn stands_apart(&self) -> bool {
        self.life().is_dispatched() || self.changes_family()
    }

    /// Whether its ends are of two families.
    pub(crate) fn changes_family(&self) -> bool {
        let of = |direction| self.tuple(direction).generic().source().is_ipv4();
        of(FlowDirection::Original) != of(FlowDirection::Reply)
    }

    /// Protocol, deadline and what was seen.
    #[inline(always)]
    #[must_use]
    pub fn life(&self) -> Life {
        Life(self.word(1).load(Ordering::Relaxed))
    }

    /// Records a packet: counts it, and advances the state when it shows something new.
    #[inline(always)]
    pub fn advance(&self, direction: FlowDirection, seen: Seen, now: Nanos, timeouts: &Timeouts) {
        self.count(direction);
        let life = self.word(1);
        let mut current = life.load(Ordering::Relaxed);
        // Bounded: another worker can win only as often as it has packets of this very flow.
        for _ in 0..4 {
            let Some(next) = Life(current).advanced(direction, seen, now, timeouts) else { return };
            match life.compare_exchange_weak(current, next.0, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(other) => current = other,
            }
        }
    }

    /// Counts a packet that shows nothing.
    #[inline(always)]
    pub(crate) fn count(&self, direction: FlowDirection) {
        let counter = self.word(4 + index_of(direction));
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Ends the flow: the next lookup treats it as gone.
    pub fn end(&self) {
        self.change_life(|life| Life(life.0 & 0xffff_ffff));
    }

    /// Puts its end off to when `life` ends.
    pub(crate) fn renew(&self, life: Life) {
        self.change_life(|own| own.ending_with(life));
    }

    /// Notes what a SYN of it offers.
    #[inline]
    pub(crate) fn note_segment_limit(&self, limit: SegmentLimit, tcp_flags: u8) {
        self.change_life(|life| life.with_segment_limit(limit, tcp_flags));
    }

    /// Notes what its path takes.
    pub(crate) fn note_path_limit(&self, limit: SegmentLimit) {
        self.change_life(|life| life.with_segment_limit(limit, 0));
    }

    /// Makes `next` of what [`Self::life`] has answered; `false` when a packet came in between.
    pub(crate) fn replace_life(&self, life: Life, next: Life) -> bool {
        let word = self.word(1);
        word.compare_exchange(life.0, next.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Marks the flow as denied by new tables.
    pub fn deny(&self) {
        self.change_life(Life::denied);
    }

    fn change_life(&self, change: impl Fn(Life) -> Life) {
        let life = self.word(1);
        let mut current = life.load(Ordering::Relaxed);
        for _ in 0..4 {
            let next = change(Life(current)).0;
            match life.compare_exchange_weak(current, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => current = other,
            }
        }
    }

    /// The cached ways.
    #[inline(always)]
    #[must_use]
    pub fn route(&self) -> FlowRoute {
        FlowRoute::unpack(self.word(2).load(Ordering::Relaxed))
    }

    /// Whether the cached ways hold under `tables`. Those found under others are made to, if
    /// nothing that concerns the flow changed since. Never so for a flow that stands apart.
    #[inline(always)]
    pub(crate) fn is_current(&self, tables: &Tables) -> bool {
        let route = self.route();
        if route.generation == tables.generation {
            return true;
        }
        let Some(epochs) = &tables.epochs else { return false };
        let holds = epochs.hold_since(route.generation, K::ends(self.words));
        if holds {
            self.set_route(FlowRoute { generation: tables.generation, ..route });
        }
        holds
    }

    /// Replaces the cached ways.
    pub fn set_route(&self, route: FlowRoute) {
        self.word(2).store(route.pack(), Ordering::Relaxed);
    }

    /// Service and rule.
    #[must_use]
    pub fn origin(&self) -> Origin {
        Origin::unpack(self.word(3).load(Ordering::Relaxed))
    }

    /// Replaces service and rule.
    pub fn set_origin(&self, origin: Origin) {
        self.word(3).store(origin.pack(), Ordering::Relaxed);
    }

    /// Replaces the rule by what `change` makes of it, and answers that; no change is lost.
    pub(crate) fn change_rule(&self, change: impl Fn(u32) -> u32) -> u32 {
        let changed = |word| {
            let origin = Origin::unpack(word);
            Origin { rule: RuleId(change(origin.rule.0)), ..origin }
        };
        let word = self.word(3);
        let update = |word| Some(changed(word).pack());
        // It always answers the word before.
        let before = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
        changed(before.unwrap_or_else(|before| before)).rule.0
    }

    /// Packets in the original and the reply direction; approximate when two workers saw one
    /// direction at once.
    #[must_use]
    pub fn packets(&self) -> (u64, u64) {
        let [onward, back] = [4, 5].map(|word| self.word(word).load(Ordering::Relaxed) & COUNT);
        (onward, back)
    }

    /// Whom it is charged to.
    #[inline(always)]
    #[must_use]
    pub fn charge(&self) -> Charge {
        Charge(self.above_count(5))
    }

    #[inline(always)]
    fn above_count(&self, word: usize) -> u16 {
        let [a, b, ..] = self.word(word).load(Ordering::Relaxed).to_be_bytes();
        u16::from_be_bytes([a, b])
    }

    fn set_above_count(&self, word: usize, number: u16) {
        let changed = |word: u64| Some(word & COUNT | above(number));
        let _ = self.word(word).fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed);
    }

    /// Which pod the backend is.
    pub(crate) fn pod(&self) -> BackendPod {
        match self.above_count(4) {
            GONE => BackendPod::Gone,
            0 => BackendPod::Tagged(PodTag::Unknown),
            number => BackendPod::Tagged(PodTag::Of(number)),
        }
    }

    /// Its backend left this node: whoever speaks next is told so. It is judged again at its next
    /// packet for good, and ends at `deadline_seconds` at the latest. A packet that is counted at the
    /// same instant may undo it.
    pub(crate) fn set_gone(&self, generation: u32, deadline_seconds: u32) {
        self.set_above_count(4, GONE);
        // So far in the past that no flow ever was decided then.
        let generation = match (generation.wrapping_sub(u32::MAX / 4), self.stands_apart()) {
            (past, false) => past,
            (past, true) => FlowRoute::generation_apart(past),
        };
        self.set_route(FlowRoute { generation, ..self.route() });
        self.change_life(|life| life.ending_by(deadline_seconds));
    }

    /// Charges it to another. A packet that is counted at the same instant may undo it.
    pub(crate) fn set_charge(&self, charge: Charge) {
        self.set_above_count(5, charge.0);
    }
}
