//! Requests to remove endpoints, which must not meet one that is under way.

use std::collections::BTreeSet;

use control::admin::{Reply, Request};
use control::model::ObjectName;

use super::{EndpointSpec, Node};
use crate::admin_server::Call;
use crate::node::requests::parse_name;

impl Node {
    /// Answers requests that waited for an endpoint that was under way.
    pub(super) async fn answer_parked(&mut self) {
        // One after the other, so that a panic over one loses no other; those that are put back come
        // behind.
        for _ in 0..self.arrivals.parked.len() {
            if let Some(call) = self.arrivals.parked.pop_front() {
                Box::pin(self.answer(call)).await;
            }
        }
    }

    /// Answers a request to remove endpoints, and those that wait behind it. One about an endpoint that
    /// is under way waits until that is done; one that has not begun is given up.
    pub(in crate::node) async fn answer_removals(&mut self, calls: Vec<Call>) {
        let (mut names, mut asked) = (Vec::new(), Vec::new());
        for call in calls {
            let is_meant = |spec: &EndpointSpec| match &call.request {
                Request::EndpointRemove { name } => spec.name.to_string() == *name,
                Request::EndpointDetach(attachment) => spec.attachment.as_ref() == Some(attachment),
                _ => false,
            };
            if self.arrivals.under_way.iter().any(|arrival| is_meant(&arrival.spec)) {
                self.arrivals.parked.push_back(call);
                continue;
            }
            let was_waiting = self.arrivals.give_up_waiting(is_meant);
            let name = match &call.request {
                Request::EndpointRemove { name } => match parse_name(name) {
                    Ok(name) => Some(name),
                    Err(error) => {
                        let _ = call.reply.try_send(Reply::Error(error));
                        continue;
                    }
                },
                Request::EndpointDetach(attachment) => self.name_of_attachment(attachment),
                _ => None,
            };
            asked.push((call.reply, name.clone(), was_waiting));
            names.extend(name);
        }
        let names: Vec<ObjectName> =
            names.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        let removed = self.remove_endpoints(&names).await;
        self.arrivals.counts.removed += removed.iter().filter(|removed| **removed).count() as u64;
        for (reply, name, was_waiting) in asked {
            let place = name.and_then(|name| names.iter().position(|other| *other == name));
            let was_there = place.is_some_and(|place| removed[place]);
            let _ = reply.try_send(Reply::Removed(was_there || was_waiting));
        }
    }
}

/// Whether a request removes endpoints, by name or attachment.
pub(in crate::node) fn is_removal(request: &Request) -> bool {
    matches!(request, Request::EndpointRemove { .. } | Request::EndpointDetach(_))
}
