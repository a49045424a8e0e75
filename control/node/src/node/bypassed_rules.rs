//! Limits and filters that `tc` has at a pod's interface, such as the bandwidth plugin's: packets go past
//! them, since AF_XDP takes and gives them below. Nobody would notice, so they are named, unless the
//! node keeps a limit of that direction itself.

use dataplane::policy::Direction;

use super::Node;
use super::endpoints::Endpoint;

impl Node {
    /// Adds an endpoint, and says what its packets go past.
    pub(super) fn insert_endpoint(&mut self, endpoint: Endpoint) {
        let name = endpoint.spec.name.clone();
        // Its limits come with its tables: whether one stands in for a rule is told from then on.
        let queueing = &endpoint.queueing;
        let kinds: Vec<&str> = [&queueing.sent, &queueing.received]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        if !kinds.is_empty() {
            let (kinds, interface) = (kinds.join(", "), &endpoint.spec.interface);
            tracing::warn!(
                endpoint = %name,
                interface,
                kinds,
                "tc limits or filters there what goes past it now; `xskiff endpoint list` says whether \
                 the node limits it instead"
            );
        }
        self.endpoints.insert(endpoint);
    }

    /// What of `tc` an endpoint's packets go past, and nothing stands in for.
    pub(super) fn bypassed_rules(&self, endpoint: &Endpoint) -> Vec<String> {
        let (interface, queueing) = (&endpoint.spec.interface, &endpoint.queueing);
        let limits = self.publisher.tables().limits.as_deref();
        let is_limited = |direction: Direction| {
            limits.is_some_and(|limits| limits.get(endpoint.port, direction).is_some())
        };
        let sent = queueing.sent.as_ref().filter(|_| !is_limited(Direction::Ingress));
        let received = queueing.received.as_ref().filter(|_| !is_limited(Direction::Egress));
        let sent = sent.map(|kind| format!("{kind} on {interface}, of what goes to the pod"));
        let received =
            received.map(|kind| format!("filters of {kind} on {interface}, of what the pod sends"));
        sent.into_iter().chain(received).collect()
    }

    /// Endpoints that have such.
    pub(super) fn with_bypassed_rules(&self) -> u64 {
        let bypassing = |endpoint: &&Endpoint| !self.bypassed_rules(endpoint).is_empty();
        self.endpoints.iter().filter(bypassing).count() as u64
    }
}
