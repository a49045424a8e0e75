//! Pods' interfaces become ports and stop being them; those of the process before are taken over.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use control::admin::{AdminError, EndpointAdd};
use control::config::Segments;
use control::model::ObjectName;
use dataplane::lpm::Prefix;
use dataplane::mailbox::{Command, FlushFilter};
use dataplane::port::{Checksums, PortId, PortKind};
use xdp_redirect::ethtool::Offload;

use super::endpoint_record::{Changed, Recorded};
use super::endpoints::{Admission, Endpoint, EndpointSpec};
use super::fitting::check_link_layer;
use super::reconcile::add_port;
use super::reconciles::Reconcile;
use super::{Node, check_mtu};
use crate::host_port::sysctl;
use crate::offloads;
use crate::pod_netns;
use crate::ports::{self, PortRequest};

/// What errors about the record are called.
const RECORD: &str = "record of endpoints";
/// What an error about the record of the process before is called, until endpoints are added anew.
pub(super) const BEFORE: &str = "endpoints of the process before";
/// How long the kernel may take to answer inside a pod's namespace, where it takes a millisecond.
const INSIDE: Duration = Duration::from_secs(5);
/// How long workers and the kernel may take to let go of a port's sockets, where it takes some
/// hundredths of a second.
pub(super) const LETTING_GO: Duration = Duration::from_secs(4);
const LETTING_GO_PAUSE: Duration = Duration::from_millis(1);

impl Node {
    /// Makes an interface a pod's port on this thread, and remembers it: for what nobody waits for.
    pub(super) async fn add_endpoint(&mut self, spec: EndpointSpec) -> Result<(), AdminError> {
        // It was waited for, perhaps.
        let name = spec.name.to_string();
        let waits = self.awaited.iter().position(|waits| waits.endpoint.name == name);
        let waits = waits.map(|place| self.awaited.remove(place));
        let same = |waits: &Recorded| ports::index(&spec.interface) == Some(waits.ifindex);
        let mut changed = waits.filter(same).map(|waits| waits.changed).unwrap_or_default();
        self.wait_until_left(&spec.interface).await;
        match self.bring_up(&spec, &mut changed) {
            Ok(Admission::Present) => Ok(()),
            Ok(Admission::New) => {
                self.errors.clear(&format!("endpoint {name}"));
                self.errors.clear(BEFORE);
                self.record_endpoints();
                self.reconcile().await;
                Ok(())
            }
            Err(error) => {
                // Whoever asked is told; the log of errors is for what nobody asked for.
                let (object, message) = (format!("endpoint {name}"), error.to_string());
                tracing::warn!(object, error = message, "not added");
                self.reconciles.refused(Reconcile::Endpoints, &object, &message);
                give_back(&spec, &changed);
                self.record_endpoints();
                Err(error)
            }
        }
    }

    /// Waits until nothing is left of a port that the interface was, as long as workers take at most
    /// to let go of it. What is left then is told by whoever makes the port.
    async fn wait_until_left(&mut self, interface: &str) {
        let until = Instant::now() + LETTING_GO;
        while let Some(ifindex) = ports::index(interface)
            && self.ports.leaving().on(ifindex).is_some()
            && Instant::now() < until
        {
            tokio::time::sleep(LETTING_GO_PAUSE).await;
            self.ports.collect(&self.workers);
        }
    }

    /// Makes the port, and adds to `changed` what must be given back for it; tables come after.
    fn bring_up(
        &mut self,
        spec: &EndpointSpec,
        changed: &mut Changed,
    ) -> Result<Admission, AdminError> {
        let began = Instant::now();
        let brought = self.make_port(spec, changed);
        self.reconciles.ran(Reconcile::Endpoints, began.elapsed());
        brought
    }

    fn make_port(
        &mut self,
        spec: &EndpointSpec,
        changed: &mut Changed,
    ) -> Result<Admission, AdminError> {
        let view = self.follower.view();
        let addresses = self.node_addresses(&view);
        if self.endpoints.admit(spec, &addresses)? == Admission::Present {
            return Ok(Admission::Present);
        }
        let look = Look::at(spec, self.settings.segments)?;
        let found = self.judge(spec, &look)?;
        if !found.is_empty() {
            changed.add(&found);
            // First, so that it is known even if this process is killed before the next line.
            self.record_with(spec, changed);
        }
        let checksums = prepare(spec, look.offloads, self.settings.segments)?;
        let request = self.pod_port(spec);
        let port = add_port(&mut self.ports, &self.workers, &request)
            .map_err(|error| AdminError::Failed { detail: error.to_string() })?;
        let (spec, changed) = (spec.clone(), changed.clone());
        self.endpoints.insert(Endpoint { spec, port, checksums, changed });
        Ok(Admission::New)
    }

    /// Whether an interface that was looked at can be a port, and what is about to be changed for it.
    pub(super) fn judge(&self, spec: &EndpointSpec, look: &Look) -> Result<Changed, AdminError> {
        let interface = &spec.interface;
        check_mtu(&self.settings, look.mtu).map_err(|detail| AdminError::Failed {
            detail: format!("interface {interface}: {detail}"),
        })?;
        let labels = look.offloads.iter().flatten().map(|one| one.label().to_owned());
        let source_validation = look.source_validation.clone();
        Ok(Changed { source_validation, offloads: labels.collect() })
    }

    /// What a pod's port is to be.
    pub(super) fn pod_port(&self, spec: &EndpointSpec) -> PortRequest {
        PortRequest {
            interface: spec.interface.clone(),
            kind: PortKind::Pod,
            mode: self.settings.pod_mode,
            sockets: self.settings.pod_sockets,
            everything: false,
            takes_whole: self.settings.segments == Segments::Whole,
        }
    }

    /// Takes pods' ports away: tables first, so that nothing is sent to them any more, then their
    /// flows, then the ports. Answers of each whether there was one.
    pub(super) async fn remove_endpoints(&mut self, names: &[ObjectName]) -> Vec<bool> {
        let began = Instant::now();
        let mut removed = Vec::new();
        let mut gone = Vec::new();
        for name in names {
            let is_waited_for = self.forget_awaited(name);
            let endpoint = self.endpoints.remove(name);
            removed.push(is_waited_for || endpoint.is_some());
            gone.extend(endpoint);
        }
        if !gone.is_empty() {
            self.reconcile().await;
        }
        for endpoint in &gone {
            if !self.is_ending {
                self.flush_addresses(&endpoint.spec.addresses);
            }
            self.ports.remove(&self.workers, endpoint.port);
            self.seen.remove(&endpoint.port);
            give_back(&endpoint.spec, &endpoint.changed);
        }
        if removed.contains(&true) {
            // Last, so that whoever comes after a kill gives back what was not.
            self.record_endpoints();
        }
        if !gone.is_empty() {
            // The ports are out of the tables now, too.
            self.reconcile().await;
            self.reconciles.ran(Reconcile::Endpoints, began.elapsed());
        }
        removed
    }

    /// Gives back what was changed for an endpoint of the process before that could not be taken over.
    fn forget_awaited(&mut self, name: &ObjectName) -> bool {
        let waits = self.awaited.iter().position(|waits| waits.endpoint.name == name.to_string());
        let Some(waits) = waits.map(|place| self.awaited.remove(place)) else { return false };
        self.errors.clear(&format!("endpoint {name}"));
        if ports::index(&waits.endpoint.interface) == Some(waits.ifindex)
            && let Ok(spec) = EndpointSpec::try_from(waits.endpoint)
        {
            give_back(&spec, &waits.changed);
        }
        true
    }

    /// Takes the endpoints of the process before over, as far as their interfaces are there still.
    pub(super) fn take_over_endpoints(&mut self) {
        match self.record.read() {
            Ok(recorded) => self.awaited = recorded,
            Err(error) => self.failed(Reconcile::Endpoints, BEFORE, error),
        }
        self.bring_up_awaited();
    }

    /// The process ends; its endpoints, whose changes were given back, are the next one's.
    pub(super) fn leave_endpoints(&mut self) {
        let awaited = &self.awaited;
        if let Err(error) = self.record.forget_changes(|one| awaited.contains(one)) {
            tracing::warn!(%error, "ending");
        }
    }

    /// Tries those again that could not be taken over yet.
    pub(super) async fn retry_awaited(&mut self) {
        if !self.awaited.is_empty() && self.bring_up_awaited() {
            self.reconcile().await;
        }
    }

    /// Answers whether any became a port.
    fn bring_up_awaited(&mut self) -> bool {
        let mut any = false;
        // All of them stay in the record until their own turn is over.
        for mut recorded in self.awaited.clone() {
            let name = recorded.endpoint.name.clone();
            let object = format!("endpoint {name}");
            let interface = recorded.endpoint.interface.clone();
            let is_there = ports::index(&interface) == Some(recorded.ifindex);
            let outcome = is_there.then(|| {
                let spec = EndpointSpec::try_from(recorded.endpoint.clone())?;
                self.bring_up(&spec, &mut recorded.changed)
            });
            self.awaited.retain(|waits| waits.endpoint.name != name);
            match outcome {
                Some(Err(error)) => {
                    self.failed(Reconcile::Endpoints, object, error);
                    self.awaited.push(recorded);
                    continue;
                }
                Some(Ok(_)) => {
                    any = true;
                    tracing::info!(endpoint = name, interface, "taken over");
                }
                None => tracing::info!(endpoint = name, interface, "its interface is gone"),
            }
            self.errors.clear(&object);
        }
        self.record_endpoints();
        any
    }

    /// Remembers what there is now.
    pub(super) fn record_endpoints(&mut self) {
        let all = self.recorded();
        self.write_record(all);
    }

    /// Remembers what there is, and one that is about to be.
    fn record_with(&mut self, spec: &EndpointSpec, changed: &Changed) {
        let endpoint = EndpointAdd::from(spec);
        let mut all = self.recorded();
        all.retain(|other| other.endpoint.name != endpoint.name);
        if let Some(ifindex) = ports::index(&spec.interface) {
            all.push(Recorded { endpoint, ifindex, changed: changed.clone() });
        }
        self.write_record(all);
    }

    fn recorded(&self) -> Vec<Recorded> {
        let recorded = |endpoint: &Endpoint| {
            let ifindex = self.ports.get(endpoint.port)?.attachment.ifindex;
            let changed = endpoint.changed.clone();
            Some(Recorded { endpoint: EndpointAdd::from(&endpoint.spec), ifindex, changed })
        };
        let there = self.endpoints.iter().filter_map(recorded);
        let under_way = self.arrivals.recorded().cloned();
        there.chain(self.awaited.iter().cloned()).chain(under_way).collect()
    }

    fn write_record(&mut self, all: Vec<Recorded>) {
        if self.is_ending {
            return;
        }
        match self.record.write(all) {
            Ok(()) => self.errors.clear(RECORD),
            Err(error) => self.failed(Reconcile::Endpoints, RECORD, error),
        }
    }

    pub(super) fn flush_addresses_of_port(&mut self, port: PortId) {
        let tables = self.publisher.tables();
        let addresses = tables.port(port).map(|port| port.addresses.to_vec()).unwrap_or_default();
        self.flush_addresses(&addresses);
    }

    fn flush_addresses(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            let filter = FlushFilter::of_gone_pod(Prefix::host(*address));
            let refused = self.workers.send(|| Command::Flush(filter.clone()));
            if refused > 0 {
                let message = format!("{refused} workers could not be told to end its flows");
                self.failed(Reconcile::Endpoints, format!("address {address}"), message);
            }
        }
    }
}

/// What a pod's interface is before anything is changed.
pub(super) struct Look {
    mtu: u32,
    /// Its source validation, where that is to be loosened.
    source_validation: Option<String>,
    /// Offloads to be turned off; `None` when that cannot be known.
    pub offloads: Option<Vec<Offload>>,
}

impl Look {
    /// Asks the kernel, on any thread.
    pub fn at(spec: &EndpointSpec, segments: Segments) -> Result<Self, AdminError> {
        let failed = |detail: String| AdminError::Failed { detail };
        let interface = &spec.interface;
        check_link_layer(interface)
            .map_err(|detail| failed(format!("interface {interface}: {detail}")))?;
        let mtu = ports::mtu(interface).map_err(|error| failed(error.to_string()))?;
        let source_validation = sysctl::strict_source_validation(interface)
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { mtu, source_validation, offloads: unwanted_offloads(spec, segments) })
    }
}

/// Changes what must be changed, on any thread; what it was is recorded by then.
pub(super) fn prepare(
    spec: &EndpointSpec,
    offloads: Option<Vec<Offload>>,
    segments: Segments,
) -> Result<Checksums, AdminError> {
    sysctl::loosen_source_validation(&spec.interface)
        .map_err(|error| AdminError::Failed { detail: error.to_string() })?;
    let checksums = switch_off(spec, offloads);
    Ok(if segments == Segments::Whole { Checksums::Unknown } else { checksums })
}

/// Offloads that are on at the pod's end and leave to others what is not done here; `None` when that cannot
/// be known.
fn unwanted_offloads(spec: &EndpointSpec, segments: Segments) -> Option<Vec<Offload>> {
    let netns = spec.netns.as_ref()?;
    let unwanted = offloads::unwanted(segments);
    let on = pod_netns::offloads_on(netns, &spec.addresses, INSIDE, unwanted);
    on.inspect_err(|error| {
        tracing::warn!(netns, %error, "offloads are not known; checksums are finished here");
    })
    .ok()
}

/// Turns those offloads off, so that the pod's checksums are finished and no segment is larger than
/// the MTU. Where that fails the pipeline finishes them itself.
fn switch_off(spec: &EndpointSpec, on: Option<Vec<Offload>>) -> Checksums {
    let (Some(netns), Some(on)) = (&spec.netns, on) else { return Checksums::Unknown };
    if on.is_empty() {
        return Checksums::Complete;
    }
    match pod_netns::switch_offloads(netns, &spec.addresses, INSIDE, &on, false) {
        Ok(()) => Checksums::Complete,
        Err(error) => {
            tracing::warn!(netns, %error, "offloads stay on; checksums are finished here");
            Checksums::Unknown
        }
    }
}

/// Puts back what was changed for an endpoint. Its interface is gone in most cases, and with it
/// what there was to give back.
pub(super) fn give_back(spec: &EndpointSpec, changed: &Changed) {
    if let Some(value) = &changed.source_validation {
        let name = format!("net/ipv4/conf/{}/rp_filter", spec.interface);
        if let Err(error) = sysctl::write(&name, value) {
            tracing::debug!(%error, "not given back");
        }
    }
    let offloads: Vec<_> = changed.offloads().collect();
    if let Some(netns) = spec.netns.as_ref().filter(|_| !offloads.is_empty()) {
        let given = pod_netns::switch_offloads(netns, &spec.addresses, INSIDE, &offloads, true);
        if let Err(error) = given {
            tracing::debug!(netns, %error, "offloads not given back");
        }
    }
}
