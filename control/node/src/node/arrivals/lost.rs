//! Requests that a panic has left: of the control thread, in the middle of what it did for them, or of a
//! thread that did something for it. None stays under way for ever, nor do its number and what there was
//! of its port.

use std::time::Instant;

use control::admin::{AddStep, AdminError};
use dataplane::port::PortKind;

use super::{Arrivals, EndpointSpec, Node, Outcome, Step};

impl Arrivals {
    /// Requests that nobody is doing anything for.
    fn in_hand(&self) -> Vec<(u64, EndpointSpec)> {
        let left = self.under_way.iter().filter(|arrival| matches!(arrival.step, Step::InHand));
        left.map(|arrival| (arrival.number, arrival.spec.clone())).collect()
    }

    /// Panics where that was ordered.
    pub(super) fn fail_by_order(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Lost => {}
            Outcome::Looked(_) => self.fail_by_order_at(AddStep::Looked),
            Outcome::Bound(_) => self.fail_by_order_at(AddStep::Bound),
            Outcome::Attached(..) => self.fail_by_order_at(AddStep::Attached),
        }
    }

    #[allow(clippy::panic, reason = "it is what was asked for")]
    pub(super) fn fail_by_order_at(&mut self, step: AddStep) {
        if self.fault == Some(step) {
            self.fault = None;
            panic!("by order of `xskiff debug`, while an endpoint was added");
        }
    }
}

impl Node {
    /// After a panic: ends what cannot go on, and takes away what there is of its ports. Whoever asked
    /// is told to ask again.
    pub(in crate::node) fn end_lost_arrivals(&mut self) {
        for (number, spec) in self.arrivals.in_hand() {
            if self.is_there(&spec) {
                continue;
            }
            self.lose_arrival(number, &spec);
        }
        let known: Vec<_> = self.arrivals.under_way.iter().filter_map(|one| one.port).collect();
        let nobodys: Vec<_> = self.ports.making().filter(|port| !known.contains(port)).collect();
        for port in nobodys {
            self.ports.abandon(&self.workers, port);
        }
        let nobodys = self.ports.iter().filter(|port| {
            port.kind == PortKind::Pod && self.endpoints.by_port(port.port).is_none()
        });
        let nobodys: Vec<_> = nobodys.map(|port| (port.port, port.interface.clone())).collect();
        for (port, interface) in nobodys {
            tracing::warn!(interface, "its endpoint was lost in a panic; its port goes, too");
            self.flush_addresses_of_port(port);
            self.ports.remove(&self.workers, port);
        }
    }

    /// Those whose endpoint is there, and in the tables that were made since, are answered once every
    /// worker has adopted these.
    pub(in crate::node) async fn go_on_with_lost_arrivals(&mut self) {
        let targets = self.workers.given();
        for (number, _) in self.arrivals.in_hand() {
            if let Some(arrival) = self.arrivals.get_mut(number) {
                arrival.step = Step::Adopting(targets.clone(), Instant::now());
            }
        }
        self.look_after_arrivals().await;
    }

    /// Ends one that a panic has cut short. What the panic had of it is gone, but for a pinned program.
    pub(super) fn lose_arrival(&mut self, number: u64, spec: &EndpointSpec) {
        let port = self.arrivals.get_mut(number).and_then(|arrival| arrival.port);
        if let Some(port) = port {
            self.ports.detach_lost(port);
        }
        self.fail_arrival(number, lost(spec));
    }

    fn is_there(&self, spec: &EndpointSpec) -> bool {
        let endpoint = self.endpoints.get(&spec.name);
        endpoint.is_some_and(|endpoint| endpoint.spec == *spec)
    }
}

/// What whoever asked is told.
fn lost(spec: &EndpointSpec) -> AdminError {
    let detail = format!(
        "endpoint {}: the node panicked while it was added (its log says where), and nothing of it is \
         left; ask again",
        spec.name
    );
    AdminError::Failed { detail }
}
