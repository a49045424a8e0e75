//! Requests of clients, each answered by one reply or a stream.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use control::admin::{
    AdminError, CaptureDirection, CaptureRequest, ConfigDiff, FlowFilter, Reply, Request,
    StreamItem, decode_frame, parse_reason,
};
use control::config::Config;
use control::model::ObjectName;
use dataplane::capture::CaptureFilter;
use dataplane::mailbox::Command;
use dataplane::port::PortId;
use tokio::sync::mpsc;

use super::Node;
use super::arrivals::is_removal;
use super::captures::{Capture, Progress};
use super::configuration::InForce;
use super::filter::Matcher;
use super::flow_log::FOLLOWERS_MAX;
use super::trace::{Names, trace};
use crate::admin_server::{Call, REPLIES_MAX};
use crate::workers::monotonic_now;

/// Recent decisions in one answer: what fits the client's queue beside the stream's end.
const RECENT_MAX: usize = REPLIES_MAX - 1;

impl Node {
    /// Answers a call; of removals, all that have come, since tables are made once for them.
    pub(super) async fn answer_calls(&mut self, first: Call) {
        let (mut removals, mut next) = (Vec::new(), Some(first));
        while let Some(call) = next.take_if(|call| is_removal(&call.request)) {
            removals.push(call);
            next = self.calls.try_recv().ok();
        }
        if !removals.is_empty() {
            self.answer_removals(removals).await;
        }
        if let Some(call) = next {
            self.answer(call).await;
        }
    }

    /// Answers one call. Never waits for the client: what does not fit its queue is lost to it.
    pub(super) async fn answer(&mut self, call: Call) {
        if is_removal(&call.request) {
            return self.answer_removals(vec![call]).await;
        }
        let Call { request, reply, peer } = call;
        let answer = match request {
            Request::Flows { filter, follow } => self.stream_flows(&filter, follow, &reply),
            Request::Capture(request) => self.start_capture(&request, &reply),
            Request::CtWatch { filter } => self.watch_flows(&filter, &reply),
            Request::Audit => Ok(self.begin_audit(&reply)),
            Request::CtResize { v4, v6 } => self.resize_flow_tables((v4, v6), &reply),
            Request::Inject(fault) => self.inject(fault, &reply),
            Request::EndpointAdd(endpoint) => {
                self.begin_endpoint_add(endpoint, reply.clone()).await.map(|()| None)
            }
            Request::HandOver => Ok(Some(self.begin_hand_over(peer))),
            request => self.answer_once(request).await.map(Some),
        };
        let answer = answer.unwrap_or_else(|error| Some(Reply::Error(error)));
        if let Some(answer) = answer {
            // A client that hung up meanwhile is no matter.
            let _ = reply.try_send(answer);
        }
        self.note_control_tables();
    }

    async fn answer_once(&mut self, request: Request) -> Result<Reply, AdminError> {
        Ok(match request {
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::EndpointCheck(endpoint) => self.check_endpoint(endpoint)?,
            Request::EndpointRetain(retained) => self.retain_endpoints(&retained).await,
            Request::EndpointList => Reply::Endpoints(self.endpoint_infos()),
            Request::ServiceList => Reply::Services(self.services()),
            Request::ServiceShow { name } => Reply::Service(Box::new(self.service_show(&name)?)),
            Request::ServiceTrace(question) => Reply::ServiceTraced(self.service_trace(&question)?),
            Request::CtList { filter, limit } => {
                Reply::Ct(self.ct_list(&self.matcher(&filter)?, limit))
            }
            Request::CtTop { by } => Reply::CtTop(self.ct_top(by)),
            Request::CtCount { filter } if filter == FlowFilter::default() => {
                Reply::CtCounts(self.ct_counts())
            }
            Request::CtCount { filter } => Reply::Count(self.ct_count(&self.matcher(&filter)?)),
            Request::CtFlush { filter } => self.ct_flush(&filter)?,
            Request::IdentityList(page) => Reply::Identities(self.identity_list(&page)),
            Request::IdentityGet(question) => Reply::Identity(self.identity_get(&question)?),
            Request::PolicyList(page) => Reply::Policies(self.policy_list(&page)?),
            Request::PolicyStatus(question) => {
                Reply::PolicyStatus(Box::new(self.policy_status(&question)?))
            }
            Request::PolicyExplain(question) => Reply::Policy(self.explain(&question)?),
            Request::Drops => Reply::Drops(self.drops()),
            Request::Trace { frame, port } => self.trace_frame(&frame, &port)?,
            Request::ManifestsStatus => Reply::Manifests(self.manifests_status()),
            Request::ConfigShow => {
                let text = self.in_force()?.print();
                Reply::Config(
                    text.map_err(|error| AdminError::Failed { detail: error.to_string() })?,
                )
            }
            Request::ConfigDiff { candidate } => self.config_diff(&candidate)?,
            Request::EndpointAdd(_)
            | Request::EndpointRemove { .. }
            | Request::EndpointDetach(_)
            | Request::Flows { .. }
            | Request::CtWatch { .. }
            | Request::Audit
            | Request::Capture(_)
            | Request::Inject(_)
            | Request::CtResize { .. }
            | Request::HandOver => {
                let detail = "it has no answer at once".into();
                return Err(AdminError::Failed { detail });
            }
        })
    }

    fn in_force(&self) -> Result<&InForce, AdminError> {
        self.in_force.as_ref().ok_or_else(|| AdminError::Failed {
            detail: "this node was made without a configuration file".into(),
        })
    }

    fn config_diff(&self, candidate: &str) -> Result<Reply, AdminError> {
        let candidate = Config::parse(candidate)
            .map_err(|error| AdminError::invalid("candidate", error.to_string()))?;
        let changes = self.in_force()?.diff(&candidate);
        let shown = changes.into_iter().map(|change| ConfigDiff {
            setting: change.field,
            from: change.from,
            to: change.to,
            effect: change.effect.label().into(),
        });
        Ok(Reply::ConfigDiff(shown.collect()))
    }

    pub(super) fn endpoint_addresses_of(&self, name: &str) -> Option<BTreeSet<IpAddr>> {
        let endpoint = self.endpoints.get(&name.parse().ok()?)?;
        Some(endpoint.spec.addresses.iter().copied().collect())
    }

    pub(super) fn matcher(&self, filter: &FlowFilter) -> Result<Matcher, AdminError> {
        Matcher::new(filter, |name| self.endpoint_addresses_of(name))
    }

    fn trace_frame(&self, frame: &str, interface: &str) -> Result<Reply, AdminError> {
        let port = self.port_by_interface(interface)?;
        let names = Names {
            port: &|port| self.interface_name(port),
            decision: &|event| self.decision_stages(event),
        };
        let frame = decode_frame(frame)?;
        let report = trace(self.publisher.tables(), port, &frame, monotonic_now(), &names)
            .map_err(|error| AdminError::Failed { detail: error.to_string() })?;
        Ok(Reply::Trace(report))
    }

    fn port_by_interface(&self, interface: &str) -> Result<PortId, AdminError> {
        let port = self.ports.by_interface(interface).map(|port| port.port);
        port.ok_or_else(|| AdminError::NotFound {
            what: "port".into(),
            name: interface.into(),
            list_command: "xskiff status".into(),
        })
    }

    fn stream_flows(
        &mut self,
        filter: &FlowFilter,
        follow: bool,
        reply: &mpsc::Sender<Reply>,
    ) -> Result<Option<Reply>, AdminError> {
        let matcher = self.matcher(filter)?;
        self.log_events();
        for record in self.flows.recent(&matcher, RECENT_MAX) {
            // The queue is this long: nothing is refused before it is full.
            let _ = reply.try_send(Reply::Item(StreamItem::Flow(Box::new(record))));
        }
        if !follow {
            return Ok(Some(Reply::End { lost: 0 }));
        }
        if self.flows.follow(matcher, reply.clone()) {
            return Ok(None);
        }
        let limit = FOLLOWERS_MAX as u64;
        Err(AdminError::Busy { what: "clients that follow flows".into(), limit })
    }

    fn start_capture(
        &mut self,
        request: &CaptureRequest,
        reply: &mpsc::Sender<Reply>,
    ) -> Result<Option<Reply>, AdminError> {
        self.drain_capture();
        if self.capture.is_some() {
            return Err(AdminError::Busy { what: "captures".into(), limit: 1 });
        }
        let filter = self.capture_filter(request)?;
        let capture = Capture::new(request, reply.clone());
        let ring = Arc::clone(&capture.ring);
        let refused = self.workers.send(|| Command::StartCapture(filter, Arc::clone(&ring)));
        self.capture = Some((capture, self.captures_lost()));
        if refused > 0 {
            let object = "capture";
            self.errors.note(object, format!("{refused} workers have stalled and copy nothing"));
        }
        Ok(None)
    }

    fn capture_filter(&self, request: &CaptureRequest) -> Result<CaptureFilter, AdminError> {
        let port = match request.endpoint.as_deref() {
            None => None,
            Some(name) => {
                let endpoint = name.parse().ok().and_then(|name| self.endpoints.get(&name));
                match endpoint {
                    Some(endpoint) => Some(endpoint.port),
                    None => Some(self.port_by_interface(name)?),
                }
            }
        };
        Ok(CaptureFilter {
            port,
            received: request.direction.map(|way| way == CaptureDirection::Received),
            reason: request.reason.as_deref().map(parse_reason).transpose()?,
            dropped_only: false,
        })
    }

    fn captures_lost(&self) -> u64 {
        let all = (0..self.workers.count()).filter_map(|number| self.workers.counters(number));
        all.map(|counters| counters.captures_lost.get()).sum()
    }

    /// Sends on what workers have copied, and ends the capture at its bound.
    pub(super) fn drain_capture(&mut self) {
        let ports = &self.ports;
        let name = |port: PortId| {
            ports.get(port).map_or_else(|| format!("port{}", port.0), |port| port.interface.clone())
        };
        let progress = self.capture.as_mut().map(|(capture, _)| capture.drain(Self::unix_ns, name));
        if progress == Some(Progress::Ended) {
            self.stop_capture();
        }
    }

    pub(super) fn stop_capture(&mut self) {
        if let Some((capture, lost_before)) = self.capture.take() {
            // A worker that has no room for this now stops when the next capture begins.
            let _ = self.workers.send(|| Command::StopCapture);
            capture.end(self.captures_lost() - lost_before);
        }
    }
}

pub(super) fn parse_name(name: &str) -> Result<ObjectName, AdminError> {
    name.parse().map_err(|error: control::model::ObjectNameError| {
        AdminError::invalid("name", error.to_string())
    })
}
