//! How many flows the tables take: at first, at most, and what there is address range for.
//!
//! What the configuration does not say is derived from the machine's memory, or from its cgroup's
//! where that is less: see [`FlowCapacities::new`]. Pure.

use control::config::FlowTable;
use dataplane::flow_key::{FlowKey4, FlowKey6};

/// Memory of an IPv4 flow, in bytes: an entry, its state, and the index in both halves with two keys.
pub const IPV4_FLOW_BYTES: u64 = 121;
/// Memory of an IPv6 flow, in bytes.
pub const IPV6_FLOW_BYTES: u64 = 185;
/// What a second line for TCP windows and bytes adds to a flow of either family, in bytes.
const DETAILS_BYTES: u64 = 64;
/// Flows that a table can hold, by its handles of 28 bits.
const FLOWS_MAX: u64 = (1 << 28) - 1;

/// What is derived from the machine's memory for one family.
struct Derived {
    flow_bytes: u64,
    /// The part of the memory that the table may grow to.
    part: u64,
    /// Flows at most, whatever the part is.
    least: u64,
    most: u64,
}

/// Half a gigabyte and 4.4 million flows of 16 GiB; at least what a small machine's nodes need,
/// 16 MB of memory.
const IPV4: Derived =
    Derived { flow_bytes: IPV4_FLOW_BYTES, part: 32, least: 1 << 17, most: 1 << 24 };
const IPV6: Derived =
    Derived { flow_bytes: IPV6_FLOW_BYTES, part: 64, least: 1 << 16, most: 1 << 22 };
/// The part of what it may become that a table is at first.
const INITIAL_PART: u64 = 16;
/// Flows that a table begins with at least, where it may become so large.
const INITIAL_LEAST: u64 = 1 << 16;
/// The part of the machine's memory that there is address range for: the maximum can be raised so
/// far while the node runs.
const RANGE_PART: u64 = 2;
/// Segments of a table at most: each is looked at now and then.
const SEGMENTS: u64 = 1 << 16;
/// Segments that each of the workers gets at least, and their entries at most: the table's.
const SEGMENTS_EACH: u64 = 8;
const SEGMENT_ENTRIES: u64 = 1 << 12;

/// One family's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FamilyCapacity {
    /// Flows at first.
    pub initial: usize,
    /// Flows that the table grows to by itself.
    pub max: usize,
    /// Flows that there is address range for, which costs nothing.
    pub range: usize,
    /// Whether [`Self::max`] is derived from memory.
    pub is_derived: bool,
}

/// Flows that there is memory for soon after the start at least, as far as a table may grow: a smaller
/// one could be full before anybody looks whether it has doubled.
const MEMORY_LEAST: usize = 1 << 14;

impl FamilyCapacity {
    /// Flows that there is to be memory for while a table holds so many: for its next doubling.
    #[must_use]
    pub fn memory_ahead(capacity: usize, max: usize) -> usize {
        capacity.saturating_mul(2).max(MEMORY_LEAST).min(max)
    }

    /// A table that stays as large as it is.
    #[must_use]
    pub fn fixed(flows: usize) -> Self {
        Self { initial: flows, max: flows, range: flows, is_derived: false }
    }
}

/// Both families', and what one local endpoint may have of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowCapacities {
    /// IPv4 flows.
    pub v4: FamilyCapacity,
    /// IPv6 flows.
    pub v6: FamilyCapacity,
    /// Flows of both families that one local endpoint may have; 0: no bound.
    pub per_endpoint: u32,
    /// Memory that the rest was derived from, in bytes.
    pub memory_bytes: u64,
    /// Whether flows have a second line, for TCP windows and bytes.
    pub details: bool,
}

fn flows(number: u64) -> usize {
    usize::try_from(number.min(FLOWS_MAX)).unwrap_or(usize::MAX)
}

impl Derived {
    fn family(
        &self,
        given: (Option<u32>, Option<u32>),
        memory_bytes: u64,
        workers: usize,
    ) -> FamilyCapacity {
        let (initial, max) = (given.0.map(u64::from), given.1.map(u64::from));
        let derived = (memory_bytes / self.part / self.flow_bytes).clamp(self.least, self.most);
        let most = max.unwrap_or(derived.max(initial.unwrap_or(0)));
        let first = (most / INITIAL_PART).max(INITIAL_LEAST).min(most);
        let initial = initial.unwrap_or(first).min(most);
        // As the table divides what it begins with, so that it never has too many parts.
        let each = initial / (SEGMENTS_EACH * workers.max(1) as u64);
        let segment = 1 << each.checked_ilog2().unwrap_or(0);
        let divided = SEGMENTS.saturating_mul(SEGMENT_ENTRIES.min(segment));
        let range = (memory_bytes / RANGE_PART / self.flow_bytes).min(divided).max(most);
        FamilyCapacity {
            initial: flows(initial),
            max: flows(most),
            range: flows(range),
            is_derived: max.is_none(),
        }
    }
}

impl FlowCapacities {
    /// What `config` says on a machine of so much memory, with so many workers. Where it does not say,
    /// IPv4's table may grow to a 32nd of the memory, 131,072 to 16,777,216 flows, IPv6's to a 64th,
    /// 65,536 to 4,194,304 flows; each begins with a 16th of its maximum, at least 65,536 flows. One
    /// endpoint may have half of what IPv4's table may grow to: a node's only busy pod is hardly
    /// limited by that, and still leaves half to all others.
    #[must_use]
    pub fn new(config: &FlowTable, details: bool, memory_bytes: u64, workers: usize) -> Self {
        let v4 = (config.ipv4_flows, config.ipv4_flows_max);
        let v6 = (config.ipv6_flows, config.ipv6_flows_max);
        let with_details = |family: Derived| Derived {
            flow_bytes: family.flow_bytes + if details { DETAILS_BYTES } else { 0 },
            ..family
        };
        let v4 = with_details(IPV4).family(v4, memory_bytes, workers);
        let half = u32::try_from(v4.max / 2).unwrap_or(u32::MAX);
        let per_endpoint = config.flows_per_endpoint_max.unwrap_or(half);
        let v6 = with_details(IPV6).family(v6, memory_bytes, workers);
        Self { v4, v6, per_endpoint, memory_bytes, details }
    }

    /// Tables that stay as large as they are.
    #[must_use]
    pub fn fixed(v4: usize, v6: usize) -> Self {
        let (v4, v6) = (FamilyCapacity::fixed(v4), FamilyCapacity::fixed(v6));
        Self { v4, v6, per_endpoint: 0, memory_bytes: 0, details: false }
    }
}

/// What differs between the families' tables beside their keys.
pub trait Family {
    /// The table, as `xskiff status` names it.
    const TABLE: &'static str;
    /// Its file's name.
    const FILE: &'static str;
    /// The setting of its maximum.
    const MAX_SETTING: &'static str;
}

impl Family for FlowKey4 {
    const TABLE: &'static str = "flows_ipv4";
    const FILE: &'static str = "flows-ipv4";
    const MAX_SETTING: &'static str = "flow_table.ipv4_flows_max";
}

impl Family for FlowKey6 {
    const TABLE: &'static str = "flows_ipv6";
    const FILE: &'static str = "flows-ipv6";
    const MAX_SETTING: &'static str = "flow_table.ipv6_flows_max";
}

#[cfg(test)]
mod tests {
    use flow_table::{Shape, Table};

    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_flow_takes_the_memory_that_it_is_said_to() {
        let shape = Shape::fixed(1_000_000, 1);
        let bytes = |regions: flow_table::Regions| {
            regions.iter().map(|region| region.len() as u64).sum::<u64>() / 1_000_000
        };
        let v4 = bytes(Table::<8>::regions(&shape, 1_000_000).unwrap());
        let v6 = bytes(Table::<16>::regions(&shape, 1_000_000).unwrap());
        assert_eq!((v4 + 1, v6 + 1), (IPV4_FLOW_BYTES, IPV6_FLOW_BYTES));
    }

    #[test]
    fn what_is_not_configured_is_a_part_of_the_memory_within_bounds() {
        let derived = |gib| FlowCapacities::new(&FlowTable::default(), false, gib * GIB, 1);
        let of = |gib| (derived(gib).v4, derived(gib).v6);
        let (v4, v6) = of(16);
        assert_eq!((v4.max, v4.initial), (4_436_949, 277_309));
        assert_eq!((v6.max, v6.initial), (1_451_002, 90_687));
        assert!(v4.is_derived && v4.range > 15 * v4.max);
        let detailed = FlowCapacities::new(&FlowTable::default(), true, 16 * GIB, 1);
        assert!(detailed.details && detailed.v4.max < v4.max * 2 / 3);
        let (v4, v6) = of(0);
        assert_eq!((v4.max, v4.initial, v6.max), (131_072, 65_536, 65_536));
        let (v4, v6) = of(1024);
        assert_eq!((v4.max, v6.max), (1 << 24, 1 << 22));
    }

    #[test]
    fn what_is_configured_is_taken_and_the_rest_follows_from_it() {
        let of = |v4: Option<u32>, v4_max| {
            let table =
                FlowTable { ipv4_flows: v4, ipv4_flows_max: v4_max, ..FlowTable::default() };
            let v4 = FlowCapacities::new(&table, false, GIB, 2).v4;
            (v4.initial, v4.max, v4.is_derived)
        };
        assert_eq!(of(None, Some(1024)), (1024, 1024, false));
        assert_eq!(of(Some(64), Some(1024)), (64, 1024, false));
        assert_eq!(of(Some(1 << 20), None), (1 << 20, 1 << 20, true));
        assert_eq!(of(None, Some(3_200_000)), (200_000, 3_200_000, false));
        let per_endpoint = |flows_per_endpoint_max| {
            let ipv4_flows_max = Some(1000);
            let table =
                FlowTable { ipv4_flows_max, flows_per_endpoint_max, ..FlowTable::default() };
            FlowCapacities::new(&table, false, GIB, 2).per_endpoint
        };
        assert_eq!([None, Some(0), Some(70)].map(per_endpoint), [500, 0, 70]);
    }
}
