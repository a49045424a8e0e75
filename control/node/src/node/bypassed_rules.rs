//! Limits and filters that `tc` has at a pod's interface, such as the bandwidth plugin's: packets go past
//! them, since AF_XDP takes and gives them below. Nobody would notice, so they are named, unless the
//! node keeps a limit of that direction itself.

use control::model::ObjectName;
use dataplane::policy::Direction;
use dataplane::port::PortId;

use super::Node;
use super::endpoints::Endpoint;
use crate::netlink::queueing::Queueing;

/// An endpoint's interface, by its kernel index, where `tc` may have something.
#[derive(Debug, Clone)]
pub(super) struct Place {
    name: ObjectName,
    port: PortId,
    ifindex: u32,
}

/// What `tc` has at each of them; on any thread. What is gone, or cannot be read, is left out.
pub(super) fn look(places: Vec<Place>) -> Vec<(Place, Queueing)> {
    let looked = |place: Place| Queueing::at(place.ifindex).ok().map(|found| (place, found));
    places.into_iter().filter_map(looked).collect()
}

impl Node {
    /// Adds an endpoint, and says what its packets go past.
    pub(super) fn insert_endpoint(&mut self, endpoint: Endpoint) {
        warn_of(&endpoint);
        self.endpoints.insert(endpoint);
    }

    /// Where to look whether `tc` has something by now.
    pub(super) fn places_of_queueing(&self) -> Vec<Place> {
        let place = |endpoint: &Endpoint| {
            let ifindex = self.ports.get(endpoint.port)?.attachment.ifindex;
            Some(Place { name: endpoint.spec.name.clone(), port: endpoint.port, ifindex })
        };
        self.endpoints.iter().filter_map(place).collect()
    }

    /// Takes in what [`look`] found, and says what has come.
    pub(super) fn note_queueing(&mut self, looked: Vec<(Place, Queueing)>) {
        for (Place { name, port, .. }, queueing) in looked {
            if let Some(endpoint) = self.endpoints.note_queueing(&name, port, queueing) {
                warn_of(endpoint);
            }
        }
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

/// Its limits come with its tables: whether one stands in for a rule is told from then on.
fn warn_of(endpoint: &Endpoint) {
    let Endpoint { queueing, spec, .. } = endpoint;
    let kinds = [&queueing.sent, &queueing.received].into_iter().flatten();
    let kinds: Vec<&str> = kinds.map(String::as_str).collect();
    if !kinds.is_empty() {
        let (kinds, interface) = (kinds.join(", "), &spec.interface);
        tracing::warn!(
            endpoint = %spec.name,
            interface,
            kinds,
            "tc limits or filters there what goes past it now; `xskiff endpoint list` says whether the \
             node limits it instead"
        );
    }
}
