//! How each endpoint stands.

use control::admin::EndpointInfo;
use control::admin::arrivals::ENDPOINT_STATES;

use super::Node;
use super::endpoints::Endpoint;

const ARRIVING: &str = ENDPOINT_STATES[0];
const WAITING: &str = ENDPOINT_STATES[1];
const READY: &str = ENDPOINT_STATES[2];
const DEGRADED: &str = ENDPOINT_STATES[3];
const LEAVING: &str = ENDPOINT_STATES[4];

impl Node {
    /// Why an endpoint that has a port is not served, if it is not.
    pub(super) fn degradation(&self, endpoint: &Endpoint) -> Option<String> {
        let view = self.follower.view();
        let Some(port) = self.ports.get(endpoint.port) else {
            return Some("its interface is gone".into());
        };
        // One that is newer than the view is not missing.
        let link = view.links.get(&port.attachment.ifindex);
        if link.is_some_and(|link| !link.up) {
            return Some("its link is down at one of its ends".into());
        }
        let limit = self.settings.stall_after;
        let stalled = (0..self.workers.count()).find(|one| !self.workers.is_alive(*one, limit));
        stalled.map(|worker| format!("worker {worker} has stalled"))
    }

    /// How an endpoint that has a port stands, and why when it is not ready.
    pub(super) fn endpoint_state(&self, endpoint: &Endpoint) -> (&'static str, Option<String>) {
        if let Some(why) = self.degradation(endpoint) {
            return (DEGRADED, Some(why));
        }
        if !self.publisher.cluster().pods.contains_key(&endpoint.spec.name) {
            let until = self.settings.unknown_pods.explanation();
            return (WAITING, Some(format!("no Pod object of its name has come; {until}")));
        }
        (READY, None)
    }

    /// Every endpoint, and those whose port is being taken away.
    pub(super) fn endpoint_infos(&self) -> Vec<EndpointInfo> {
        let there = self.endpoints.iter().map(|endpoint| self.endpoint_info(endpoint));
        let leaving = self.leaving.iter().map(|endpoint| EndpointInfo {
            state: LEAVING.into(),
            state_reason: Some("removed; its sockets are not closed yet".into()),
            ..self.endpoint_info(endpoint)
        });
        there.chain(leaving).collect()
    }

    /// Forgets endpoints that have left: the kernel has closed the last socket of each one's port.
    pub(super) fn forget_left_endpoints(&mut self) {
        let ports = self.ports.leaving();
        self.leaving.retain(|endpoint| ports.has(endpoint.port));
    }

    /// How many endpoints are in each state.
    pub(super) fn endpoint_states(&self) -> Vec<(String, u64)> {
        let (waiting, under_way) = self.arrivals.lengths();
        let count = |state: &str| match state {
            ARRIVING => waiting + under_way,
            LEAVING => self.leaving.len(),
            state => {
                let endpoints = self.endpoints.iter();
                endpoints.filter(|endpoint| self.endpoint_state(endpoint).0 == state).count()
            }
        };
        ENDPOINT_STATES.map(|state| (state.to_owned(), count(state) as u64)).to_vec()
    }
}
