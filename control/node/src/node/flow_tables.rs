//! The flow tables' size while the node runs: it grows before they fill, and is changed on request and
//! by the configuration file.

use control::admin::AdminError;
use std::collections::BTreeSet;

use control::admin::reply::Reply;
use control::admin::status::{FlowTableFill, FlowTableStatus};
use flow_table::Table;
use tokio::sync::mpsc;

use super::Node;
use crate::workers::capacity::{FamilyCapacity, FlowCapacities};
use crate::workers::flow_memory::Beginning;
use crate::workers::growth::{Resize, ResizeError, TableGrowth};

/// What the configuration file's resize is called where errors are.
const BY_FILE: &str = "flow_table";

fn refused(error: &ResizeError) -> AdminError {
    match error {
        ResizeError::Busy => AdminError::Conflict { detail: error.to_string() },
        _ => AdminError::Failed { detail: error.to_string() },
    }
}

fn size(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Node {
    /// Lets the tables grow, and says how a resize has ended. Every few milliseconds.
    pub(super) fn tend_flow_tables(&mut self) {
        if let Some(ended) = self.workers.growth_mut().tend() {
            let reply = match &ended {
                Ok(()) => Reply::CtTables(self.flow_table_statuses()),
                Err(error) => Reply::Error(refused(error)),
            };
            match (self.resizing.take(), ended) {
                // A client that hung up meanwhile is no matter.
                (Some(client), _) => drop(client.try_send(reply)),
                (None, Ok(())) => self.errors.clear(BY_FILE),
                (None, Err(error)) => self.errors.note(BY_FILE, error),
            }
        }
        let growth = self.workers.growth();
        let refusals = [
            ("table flows_ipv4", growth.v4.counts().last_refusal.clone()),
            ("table flows_ipv6", growth.v6.counts().last_refusal.clone()),
        ];
        for (told, (object, refusal)) in self.growth_refusals.iter_mut().zip(refusals) {
            if *told == refusal {
                continue;
            }
            match &refusal {
                Some(why) => self.errors.note(object, format!("it cannot grow: {why}")),
                None => self.errors.clear(object),
            }
            *told = refusal;
        }
    }

    /// Answers a resize: at once, or when the memory that it needs is there.
    pub(super) fn resize_flow_tables(
        &mut self,
        (v4, v6): (Option<u32>, Option<u32>),
        reply: &mpsc::Sender<Reply>,
    ) -> Result<Option<Reply>, AdminError> {
        let asked = Resize::to(v4.map(size), v6.map(size));
        let in_force = self.workers.growth_mut().resize(asked);
        if in_force.map_err(|error| refused(&error))? {
            return Ok(Some(Reply::CtTables(self.flow_table_statuses())));
        }
        self.resizing = Some(reply.clone());
        Ok(None)
    }

    /// Makes the tables as large as a new configuration says, where it says something else than
    /// `before`. False when they cannot be: then what was in force stays.
    pub(super) fn resize_by_file(&mut self, before: FlowCapacities) -> bool {
        let wanted = self.settings.workers.capacities;
        let changed = |before: FamilyCapacity, wanted: FamilyCapacity| {
            ((before.initial, before.max) != (wanted.initial, wanted.max))
                .then_some((wanted.initial, wanted.max))
        };
        let asked = Resize { v4: changed(before.v4, wanted.v4), v6: changed(before.v6, wanted.v6) };
        if asked == Resize::default() {
            // The file says again what is in force.
            self.errors.clear(BY_FILE);
            return true;
        }
        match self.workers.growth_mut().resize(asked) {
            Ok(_) => {
                self.errors.clear(BY_FILE);
                true
            }
            Err(error) => {
                self.settings.workers.capacities = before;
                self.errors.note(BY_FILE, error);
                false
            }
        }
    }

    /// Names the endpoints that have as many flows as they may, until they have a tenth fewer.
    pub(super) fn note_full_endpoints(&mut self) {
        let most = self.settings.workers.capacities.per_endpoint;
        let charges = &self.workers.flows().charges;
        let mut full = BTreeSet::new();
        for endpoint in self.endpoints.iter() {
            let object = format!("endpoint {}", endpoint.spec.name);
            let flows = charges.flows(endpoint.port);
            let was_full = self.full_endpoints.contains(&object);
            if most != 0 && (flows >= most || was_full && flows >= most - most / 10) {
                full.insert(object);
            }
        }
        for object in full.difference(&self.full_endpoints) {
            let message = format!(
                "it has as many flows as flow_table.flows_per_endpoint_max allows, {most}: new ones \
                 are dropped as endpoint-flows"
            );
            self.errors.note(object.as_str(), message);
        }
        for object in self.full_endpoints.difference(&full) {
            self.errors.clear(object);
        }
        self.full_endpoints = full;
    }

    /// How both tables began, and how they stand.
    pub(super) fn flow_table_statuses(&self) -> Vec<FlowTableStatus> {
        let (flows, growth) = (self.workers.flows(), self.workers.growth());
        let capacities = &self.settings.workers.capacities;
        let fills = [
            fill(&flows.v4, &growth.v4, &capacities.v4),
            fill(&flows.v6, &growth.v6, &capacities.v6),
        ];
        let beginnings = self.workers.beginnings().iter();
        beginnings.zip(fills).map(|(beginning, fill)| status(beginning, fill)).collect()
    }
}

fn status(beginning: &Beginning, fill: FlowTableFill) -> FlowTableStatus {
    FlowTableStatus {
        table: beginning.table.into(),
        file: beginning.file.as_ref().map(|file| file.display().to_string()),
        outcome: beginning.outcome.label().into(),
        flows: beginning.flows,
        lost: beginning.lost,
        reason: beginning.reason.clone(),
        fill,
    }
}

fn fill<const W: usize>(
    table: &Table<W>,
    growth: &TableGrowth<W>,
    configured: &FamilyCapacity,
) -> FlowTableFill {
    let statistics = table.statistics();
    FlowTableFill {
        used: statistics.used,
        high_water: statistics.used_high_water,
        waiting: statistics.retired_waiting,
        capacity: statistics.capacity,
        capacity_max: (growth.max() as u64).max(statistics.capacity),
        derived: configured.is_derived && growth.max() == configured.max,
        committed: growth.committed() as u64,
        memory_bytes: growth.memory_bytes(),
        taking_memory: growth.is_taking(),
        index_moving: table.is_resizing(),
        grown: growth.counts().grown,
        resized: growth.counts().resized,
        growth_refused: growth.counts().refused,
        growth_refusal: growth.counts().last_refusal.clone(),
        seconds_to_full: growth.seconds_to_full(),
        inserts_refused_full: statistics.slab_full,
        inserts_refused_index: statistics.index_full,
    }
}
