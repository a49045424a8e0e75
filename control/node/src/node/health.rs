//! What this node tells those who ask how its services stand ([`crate::health_checks`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use dataplane::address::Protocol;
use dataplane::lb::ServiceTable;

use super::{Node, NodeError};
use crate::health_checks::{HealthChecks, Wanted};
use crate::http::StalledWorkers;

/// The server, and what it was last told.
pub(super) struct Health {
    server: HealthChecks,
    /// Whose port cannot be listened on, and why.
    failures: BTreeMap<String, String>,
    /// What it answers by, and the tables that were asked whose ports are whose.
    followed: Option<(Wanted, Arc<ServiceTable>)>,
}

impl Health {
    pub(super) fn start(stalled_workers: StalledWorkers) -> Result<Self, NodeError> {
        let server = HealthChecks::start(stalled_workers).map_err(|source| NodeError::System {
            action: "start the thread that answers health checks",
            source,
        })?;
        Ok(Self { server, failures: BTreeMap::new(), followed: None })
    }

    pub(super) fn server(&self) -> &HealthChecks {
        &self.server
    }
}

impl Node {
    /// Answers as services and the node are now; tells whose port cannot be listened on.
    pub(super) fn follow_health_checks(&mut self) {
        let compiled = self.publisher.compiled();
        let restricted = !self.settings.node_port_addresses.is_empty();
        let wanted = Wanted {
            proxy: self.settings.proxy_http,
            checks: Arc::clone(compiled.health_checks()),
            addresses: restricted.then(|| compiled.node().node_port_addresses.clone()),
            is_eligible: compiled.is_eligible(),
        };
        let services = &self.publisher.tables().services;
        let is_same = self
            .health
            .followed
            .as_ref()
            .is_some_and(|(before, then)| Arc::ptr_eq(then, services) && *before == wanted);
        // What failed is tried again.
        if is_same && self.health.failures.is_empty() {
            return self.health.server.hear();
        }
        self.health.followed = Some((wanted.clone(), Arc::clone(services)));
        let translated = &self.settings.snat.l4_ports;
        let is_taken = |l4_port: u16| {
            let holder = services.node_ports.get(&(Protocol::TCP, l4_port));
            let holder = holder.and_then(|id| services.get(*id));
            let by = holder.map(|holder| {
                format!("port {l4_port} is {}'s on this node; give it another", holder.name)
            });
            by.or_else(|| {
                let text = "is in the range that sources are translated to (nat.l4_port_first)";
                translated.contains(&l4_port).then(|| format!("port {l4_port} {text}"))
            })
        };
        let told = self.health.server.follow(wanted, is_taken);
        let failures: BTreeMap<String, String> = told
            .into_iter()
            .filter_map(|(subject, told)| Some((subject.to_string(), told.err()?)))
            .collect();
        for (object, _) in self.health.failures.iter().filter(|one| !is_in(&failures, one)) {
            self.errors.clear(object);
        }
        for (object, why) in failures.iter().filter(|one| !is_in(&self.health.failures, one)) {
            self.errors.note(object.as_str(), why);
        }
        self.health.failures = failures;
    }
}

fn is_in(all: &BTreeMap<String, String>, (object, why): &(&String, &String)) -> bool {
    all.get(*object) == Some(*why)
}
