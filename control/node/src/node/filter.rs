//! Which flows a client means: the words of a [`FlowFilter`] made comparable.

use std::collections::BTreeSet;
use std::net::IpAddr;

use control::admin::{AdminError, FlowFilter, parse_protocol, parse_reason};
use dataplane::DropReason;
use dataplane::address::Protocol;
use dataplane::event::{EventKind, FlowEvent};
use dataplane::flow_key::FlowKey;

/// A filter whose names are resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matcher {
    address: Option<IpAddr>,
    l4_port: Option<u16>,
    protocol: Option<Protocol>,
    /// Addresses of the endpoint that was named.
    endpoint: Option<BTreeSet<IpAddr>>,
    /// `namespace/name`, or with `:port`.
    service: Option<String>,
    verdict: Option<String>,
    reason: Option<DropReason>,
}

impl Matcher {
    /// Resolves `filter`; `endpoint` finds a local endpoint's addresses.
    ///
    /// # Errors
    /// [`AdminError`] for an endpoint that is not here, or a word that is none.
    pub fn new(
        filter: &FlowFilter,
        endpoint: impl Fn(&str) -> Option<BTreeSet<IpAddr>>,
    ) -> Result<Self, AdminError> {
        let addresses = match &filter.endpoint {
            None => None,
            Some(name) => Some(endpoint(name).ok_or_else(|| AdminError::NotFound {
                what: "endpoint".into(),
                name: name.clone(),
                list_command: "xskiff endpoint list".into(),
            })?),
        };
        Ok(Self {
            address: filter.address,
            l4_port: filter.l4_port,
            protocol: filter.protocol.as_deref().map(parse_protocol).transpose()?,
            endpoint: addresses,
            service: filter.service.clone(),
            verdict: filter.verdict.clone(),
            reason: filter.reason.as_deref().map(parse_reason).transpose()?,
        })
    }

    /// Whether a flow with these tuples, opened through `service`, is meant.
    #[must_use]
    pub fn matches_flow(&self, original: &FlowKey, reply: &FlowKey, service: Option<&str>) -> bool {
        self.verdict.is_none()
            && self.reason.is_none()
            && self.matches_ends(
                original.protocol(),
                &[
                    (original.source(), original.source_port()),
                    (original.destination(), original.destination_port()),
                    (reply.source(), reply.source_port()),
                    (reply.destination(), reply.destination_port()),
                ],
                service,
            )
    }

    /// Whether an event about `service` is meant.
    #[must_use]
    pub fn matches_event(&self, event: &FlowEvent, service: Option<&str>) -> bool {
        let verdict = verdict_label(event.kind);
        if self.verdict.as_deref().is_some_and(|wanted| wanted != verdict) {
            return false;
        }
        if let Some(wanted) = self.reason
            && event.kind != EventKind::Dropped(wanted)
        {
            return false;
        }
        let Some(key) = &event.key else {
            // What did not parse far enough to have ends matches no filter about ends.
            return self.address.is_none()
                && self.l4_port.is_none()
                && self.protocol.is_none()
                && self.endpoint.is_none()
                && self.service.is_none();
        };
        let mut ends =
            vec![(key.source(), key.source_port()), (key.destination(), key.destination_port())];
        ends.extend(event.backend);
        self.matches_ends(key.protocol(), &ends, service)
    }

    fn matches_ends(
        &self,
        protocol: Protocol,
        ends: &[(IpAddr, u16)],
        service: Option<&str>,
    ) -> bool {
        let any = |test: &dyn Fn(&(IpAddr, u16)) -> bool| ends.iter().any(test);
        self.protocol.is_none_or(|wanted| wanted == protocol)
            && self.address.is_none_or(|wanted| any(&|end| end.0 == wanted))
            && self.l4_port.is_none_or(|wanted| any(&|end| end.1 == wanted))
            && self.endpoint.as_ref().is_none_or(|wanted| any(&|end| wanted.contains(&end.0)))
            && self.service.as_deref().is_none_or(|wanted| {
                // Services are named `namespace/name:port`; the port may be left out.
                service.is_some_and(|name| {
                    name == wanted || name.split_once(':').is_some_and(|(name, _)| name == wanted)
                })
            })
    }
}

/// The word for what happened.
#[must_use]
pub fn verdict_label(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Opened => "opened",
        EventKind::Audited(_) => "audited",
        EventKind::Closed => "closed",
        EventKind::Dropped(_) => "dropped",
    }
}

#[cfg(test)]
mod tests {
    use dataplane::port::PortId;
    use dataplane::time::Nanos;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn key(source: &str, destination: &str, l4_port: u16) -> FlowKey {
        FlowKey::new(Protocol::TCP, (ip(source), 40_000), (ip(destination), l4_port)).unwrap()
    }

    fn matcher(filter: FlowFilter) -> Matcher {
        let endpoint = |name: &str| (name == "a/b").then(|| [ip("10.1.0.5")].into());
        Matcher::new(&filter, endpoint).unwrap()
    }

    #[test]
    fn a_flow_is_found_by_either_end_before_or_after_translation() {
        let original = key("10.1.0.5", "10.96.0.1", 80);
        let reply = key("10.1.0.9", "10.1.0.5", 40_000);
        let by = |address: &str| {
            matcher(FlowFilter { address: Some(ip(address)), ..FlowFilter::default() })
                .matches_flow(&original, &reply, None)
        };
        assert!(by("10.1.0.5") && by("10.96.0.1") && by("10.1.0.9"));
        assert!(!by("10.1.0.6"));
    }

    #[test]
    fn a_service_is_found_with_or_without_its_port() {
        let original = key("10.1.0.5", "10.96.0.1", 80);
        for (name, found) in [("shop/web", true), ("shop/web:http", true), ("shop/we", false)] {
            let filter = FlowFilter { service: Some(name.into()), ..FlowFilter::default() };
            let matched = matcher(filter).matches_flow(
                &original,
                &original.reversed(),
                Some("shop/web:http"),
            );
            assert_eq!(matched, found, "{name}");
        }
    }

    #[test]
    fn an_event_without_a_tuple_is_found_by_its_reason_alone() {
        let kind = EventKind::Dropped(DropReason::Truncated);
        let event = FlowEvent::new(Nanos(0), kind, PortId(0));
        let by_reason = FlowFilter { reason: Some("truncated".into()), ..FlowFilter::default() };
        assert!(matcher(by_reason).matches_event(&event, None));
        let by_port = FlowFilter { l4_port: Some(80), ..FlowFilter::default() };
        assert!(!matcher(by_port).matches_event(&event, None));
        let opened = FlowFilter { verdict: Some("opened".into()), ..FlowFilter::default() };
        assert!(!matcher(opened).matches_event(&event, None));
    }

    #[test]
    fn an_endpoint_that_is_not_here_is_named() {
        let filter = FlowFilter { endpoint: Some("a/c".into()), ..FlowFilter::default() };
        let error = Matcher::new(&filter, |_| None).unwrap_err();
        assert!(error.to_string().contains("a/c"), "{error}");
    }
}
