//! What clients ask of tracked connections as a whole: who has them, how many, and to end some.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use control::admin::reply::{CtCounts, CtTopRow};
use control::admin::{AdminError, FlowFilter, Reply, StreamItem, TopBy, parse_protocol};
use dataplane::DropReason;
use dataplane::conntrack::FlowState;
use dataplane::event::{EventKind, FlowEvent};
use dataplane::lb::ServiceId;
use dataplane::lpm::Prefix;
use dataplane::mailbox::{Command, FlushFilter};
use tokio::sync::mpsc;

use super::Node;
use super::filter::Matcher;
use super::flow_log::FOLLOWERS_MAX;
use crate::workers::monotonic_now;

/// Rows of one answer about who has how many.
const TOP_ROWS: usize = 1000;
/// Commands that one request makes at most: each end of an endpoint with each port of a service.
const FLUSHES_AT_ONCE: usize = 32;

impl Node {
    /// How many flows there are, and how both tables stand.
    pub(super) fn ct_counts(&self) -> CtCounts {
        let workers = self.worker_statuses();
        let mut evicted: Vec<(String, u64)> = Vec::new();
        for (class, flows) in workers.iter().flat_map(|worker| &worker.evicted) {
            match evicted.iter_mut().find(|(known, _)| known == class) {
                Some((_, sum)) => *sum += flows,
                None => evicted.push((class.clone(), *flows)),
            }
        }
        let counters = (0..workers.len()).filter_map(|number| self.workers.counters(number));
        CtCounts {
            flows: self.ct_count(&Matcher::default()),
            tables: self.flow_table_statuses(),
            evicted,
            refused_for_endpoint: counters.map(|of| of.dropped(DropReason::EndpointFlows)).sum(),
        }
    }

    /// Who has how many flows, the most first.
    pub(super) fn ct_top(&self, by: TopBy) -> Vec<CtTopRow> {
        let flows = self.workers.flows();
        let bound = u64::from(self.settings.workers.capacities.per_endpoint);
        let mut rows: BTreeMap<Option<u32>, CtTopRow> = BTreeMap::new();
        flows.for_each(monotonic_now(), |flow| {
            let whose = match by {
                TopBy::Pod => flows.charges.port(flow.charge).map(|port| port.0.into()),
                TopBy::Service => flow.origin.service.map(|service| service.0),
            };
            let row = rows.entry(whose).or_default();
            row.flows += 1;
            let is_open = matches!(flow.life.state(), FlowState::Opening | FlowState::Answered);
            row.half_open += u64::from(is_open);
            row.packets += flow.packets.0 + flow.packets.1;
        });
        let named = rows.into_iter().map(|(whose, row)| {
            let name = whose.map(|number| self.name_of(by, number));
            let has_bound = by == TopBy::Pod && name.is_some() && bound > 0;
            CtTopRow { name, flows_max: has_bound.then_some(bound), ..row }
        });
        let mut rows: Vec<CtTopRow> = named.collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.flows));
        rows.truncate(TOP_ROWS);
        rows
    }

    fn name_of(&self, by: TopBy, number: u32) -> String {
        let named = match by {
            TopBy::Pod => {
                let mut endpoints = self.endpoints.iter();
                let found = endpoints.find(|endpoint| u32::from(endpoint.port.0) == number);
                found.map(|endpoint| endpoint.spec.name.to_string())
            }
            TopBy::Service => self.service_name(ServiceId(number)),
        };
        named.unwrap_or_else(|| format!("number {number} (gone)"))
    }

    /// Ends the flows that match, as workers come by them: within two rounds of their sweeps.
    pub(super) fn ct_flush(&mut self, filter: &FlowFilter) -> Result<Reply, AdminError> {
        if filter.verdict.is_some() || filter.reason.is_some() {
            let detail = "flows have no verdict and no reason: those are of decisions";
            return Err(AdminError::invalid("filter", detail));
        }
        let count = self.ct_count(&self.matcher(filter)?);
        let filters = self.flush_filters(filter)?;
        if filters.len() > FLUSHES_AT_ONCE {
            let detail =
                format!("it means more than {FLUSHES_AT_ONCE} addresses and ports: filter");
            return Err(AdminError::invalid("filter", detail));
        }
        for filter in filters {
            let refused = self.workers.send(|| Command::Flush(filter.clone()));
            if refused > 0 {
                let detail = format!("{refused} workers have stalled and could not be told");
                return Err(AdminError::Failed { detail });
            }
        }
        Ok(Reply::Count(count))
    }

    /// As workers take them: one address and one service each.
    fn flush_filters(&self, filter: &FlowFilter) -> Result<Vec<FlushFilter>, AdminError> {
        let addresses: Vec<Option<Prefix>> = match (&filter.endpoint, filter.address) {
            (Some(_), Some(_)) => {
                let detail = "give --address or --endpoint, which stands for its addresses";
                return Err(AdminError::invalid("filter", detail));
            }
            (Some(name), None) => {
                let own = self.endpoint_addresses_of(name).into_iter().flatten();
                own.map(|address: IpAddr| Some(Prefix::host(address))).collect()
            }
            (None, address) => vec![address.map(Prefix::host)],
        };
        let services: Vec<Option<ServiceId>> = match &filter.service {
            None => vec![None],
            Some(wanted) => self.services_named(wanted).into_iter().map(Some).collect(),
        };
        let protocol = filter.protocol.as_deref().map(parse_protocol).transpose()?;
        let l4_port = filter.l4_port;
        let of = |address| {
            let with = move |service| FlushFilter {
                address,
                l4_port,
                protocol,
                service,
                is_pod_gone: false,
            };
            services.iter().copied().map(with)
        };
        Ok(addresses.into_iter().flat_map(of).collect())
    }

    /// The services that `namespace/name` or `namespace/name:port` means.
    fn services_named(&self, wanted: &str) -> BTreeSet<ServiceId> {
        let services = self.publisher.tables().services.services.iter();
        let is_meant = |name: &str| {
            name == wanted || name.split_once(':').is_some_and(|(name, _)| name == wanted)
        };
        let meant = services.filter(|(_, service)| is_meant(&service.name));
        meant.map(|(id, _)| *id).collect()
    }

    /// Shows flows to a client as they begin, change and end.
    pub(super) fn watch_flows(
        &mut self,
        filter: &FlowFilter,
        reply: &mpsc::Sender<Reply>,
    ) -> Result<Option<Reply>, AdminError> {
        let matcher = self.matcher(filter)?;
        self.log_events();
        if !self.flows.is_watched() {
            self.watch.begin(self.workers.flows(), monotonic_now());
            self.workers.watch(true);
        }
        if self.flows.watch(matcher, reply.clone()) {
            return Ok(None);
        }
        let limit = FOLLOWERS_MAX as u64;
        Err(AdminError::Busy { what: "clients that follow flows".into(), limit })
    }

    /// Tells those who watch of flows that have changed, while there are any.
    pub(super) fn look_at_watched(&mut self) {
        if !self.flows.is_watched() {
            return;
        }
        for (key, state) in self.watch.look(self.workers.flows()) {
            let mut event = FlowEvent::new(monotonic_now(), EventKind::Opened, FlowEvent::NO_PORT);
            event.key = Some(key);
            let mut record = self.flow_record(&event);
            record.verdict = "changed".into();
            record.state = Some(state.label().into());
            self.flows.show_watched(&event, &record);
        }
    }

    /// Tells those who follow or watch what they have lost, and forgets them when they are gone.
    pub(super) fn tend_followers(&mut self) {
        let counters = (0..self.workers.count()).filter_map(|number| self.workers.counters(number));
        let lost: u64 = counters.map(|of| of.events_lost.get()).sum();
        self.flows.tell_lost(lost + self.watch.left_out());
        let was_watched = self.flows.is_watched();
        self.flows.forget_gone();
        if was_watched && !self.flows.is_watched() {
            self.watch.end();
            self.workers.watch(false);
        }
    }
}

/// An item that says how many more decisions or flows were lost on the way to a client.
pub(super) fn lost(more: u64) -> Reply {
    Reply::Item(StreamItem::Lost(more))
}
