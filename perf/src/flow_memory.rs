//! Flow tables for a node of one worker, on huge pages, all there before the first packet.

use anyhow::{Context, Result};
use dataplane::flows::{Capacities, FlowTables, WorkerFlows};
use flow_table::{Memory, Table};
use pinning::memory::{Prefault, map_words};

/// Any key: what is measured does not depend on it.
const HASH_KEY: [u64; 2] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344];

/// The tables, and the one worker's hold on them.
pub fn flow_tables(capacities: Capacities) -> Result<(FlowTables, WorkerFlows)> {
    let map = |bytes| -> Result<Memory> {
        Ok(Memory::Mapped(map_words(bytes, Prefault::Now)?.into_bytes()))
    };
    let memory = (
        map(Table::<8>::memory_bytes(&capacities.shapes(1).0)?)?,
        map(Table::<16>::memory_bytes(&capacities.shapes(1).1)?)?,
    );
    let (tables, mut holds) = FlowTables::new(capacities, memory, 1, HASH_KEY)?;
    let hold = holds.pop().context("one worker has one hold")?;
    Ok((tables, hold))
}
