//! Pods' interfaces become ports and stop being them; those of the process before are taken over.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use control::admin::{AdminError, EndpointAdd};
use control::config::{Segments, Transmit};
use control::model::ObjectName;
use dataplane::lpm::Prefix;
use dataplane::mailbox::{Command, FlushFilter};
use dataplane::port::{Checksums, PortId, PortKind};
use xdp_redirect::ethtool::Offload;

use super::endpoint_record::{Changed, Recorded, Remembered};
use super::endpoints::{Admission, Endpoint, EndpointSpec};
use super::fitting::check_link_layer;
use super::reconcile::add_port;
use super::reconciles::Reconcile;
use super::{Node, check_mtu};
use crate::host_port::sysctl;
use crate::netlink::queueing::Queueing;
use crate::offloads::{self, Switch, is_a_change};
use crate::pod_netns::{self, PodEnd};
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

impl Node {
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
        let mut look = Look::at(spec, self.settings.ways(), changed)?;
        let queueing = std::mem::take(&mut look.queueing);
        let found = self.judge(spec, &look)?;
        if !found.is_empty() {
            changed.add(&found);
            // First, so that it is known even if this process is killed before the next line.
            self.record_with(spec, changed);
        }
        let prepared = prepare(spec, look.pod, self.settings.segments)?;
        changed.note(&prepared.switched);
        let request = self.pod_port(spec);
        let port = add_port(&mut self.ports, &self.workers, &request)
            .map_err(|error| AdminError::Failed { detail: error.to_string() })?;
        if self.settings.segments == Segments::Whole {
            // Until now a program of the process before, in native mode, may have hidden what it masks.
            // What went wrong with that is told; the port is up.
            let look = Look::at(spec, self.settings.ways(), changed);
            let again = look.and_then(|look| prepare(spec, look.pod, Segments::Whole));
            changed.note(&again.unwrap_or_default().switched);
        }
        let (spec, changed) = (spec.clone(), changed.clone());
        let Prepared { checksums, mtu, .. } = prepared;
        self.insert_endpoint(Endpoint { spec, port, checksums, mtu, queueing, changed });
        Ok(Admission::New)
    }

    /// Whether an interface that was looked at can be a port, and what is about to be changed for it.
    pub(super) fn judge(&self, spec: &EndpointSpec, look: &Look) -> Result<Changed, AdminError> {
        let interface = &spec.interface;
        check_mtu(&self.settings, look.mtu).map_err(|detail| AdminError::Failed {
            detail: format!("interface {interface}: {detail}"),
        })?;
        if let Some(pod) = &look.pod
            && pod.mtu > look.mtu
        {
            let (own, others) = (look.mtu, pod.mtu);
            tracing::warn!(
                interface,
                own,
                others,
                "the pod's end has a larger MTU: what is longer is lost"
            );
        }
        let source_validation = look.source_validation.clone();
        let mut changed = Changed { source_validation, ..Changed::default() };
        let switches = look.pod.iter().flat_map(|pod| &pod.switches).copied();
        changed.note(&switches.filter(|one| is_a_change(*one)).collect::<Vec<_>>());
        Ok(changed)
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
        let is_any = !gone.is_empty();
        if is_any {
            self.reconcile().await;
        }
        for endpoint in gone {
            if !self.is_ending {
                self.flush_addresses(&endpoint.spec.addresses);
            }
            if let Some(port) = self.ports.remove(&self.workers, endpoint.port) {
                self.running_pods.leave_out([port.attachment.ifindex]);
            }
            give_back(&endpoint.spec, &endpoint.changed);
            self.leaving.push(endpoint);
        }
        if removed.contains(&true) {
            // Last, so that whoever comes after a kill gives back what was not.
            self.record_endpoints();
        }
        if is_any {
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
        self.read_record();
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
        let removed = self.running_pods.removed().clone();
        match self.record.write(Remembered { endpoints: all, removed }) {
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
            let object = format!("address {address}");
            if refused > 0 {
                let message = format!("{refused} workers could not be told to end its flows");
                self.failed(Reconcile::Endpoints, object, message);
                self.unflushed.insert(*address);
            } else if self.unflushed.remove(address) {
                self.errors.clear(&object);
            }
        }
    }

    /// Tells workers again to end flows of pods that are gone, where they took no word; not those of a pod that
    /// has the address by now.
    pub(super) fn retry_flushes(&mut self) {
        if self.unflushed.is_empty() {
            return;
        }
        let has = |address: &IpAddr| {
            self.endpoints.iter().any(|endpoint| endpoint.spec.addresses.contains(address))
        };
        let (anothers, nobodys): (Vec<IpAddr>, Vec<IpAddr>) =
            self.unflushed.iter().copied().partition(has);
        for address in anothers {
            self.unflushed.remove(&address);
            self.errors.clear(&format!("address {address}"));
        }
        self.flush_addresses(&nobodys);
    }
}

/// What a pod's interface is before anything is changed.
pub(super) struct Look {
    mtu: u32,
    /// Its source validation, where that is to be loosened.
    source_validation: Option<String>,
    /// What `tc` has there.
    pub queueing: Queueing,
    /// The pod's end; `None` when that cannot be known.
    pub pod: Option<PodLook>,
}

/// What a pod's end is, and what is to be switched there.
pub(super) struct PodLook {
    mtu: u32,
    switches: Vec<Switch>,
}

impl Look {
    /// Asks the kernel, on any thread; `changed` is what a process before has changed.
    pub fn at(
        spec: &EndpointSpec,
        ways: (Segments, Transmit),
        changed: &Changed,
    ) -> Result<Self, AdminError> {
        let failed = |detail: String| AdminError::Failed { detail };
        let interface = &spec.interface;
        check_link_layer(interface)
            .map_err(|detail| failed(format!("interface {interface}: {detail}")))?;
        let mtu = ports::mtu(interface).map_err(|error| failed(error.to_string()))?;
        let source_validation = sysctl::strict_source_validation(interface)
            .map_err(|error| failed(error.to_string()))?;
        let pod = look_at_pod(spec).map(|PodEnd { on, mtu }| {
            let changed: Vec<Offload> = changed.offloads().collect();
            PodLook { mtu, switches: offloads::switches(ways, &on, &changed) }
        });
        Ok(Self { mtu, source_validation, queueing: look_at_queueing(interface), pod })
    }
}

fn look_at_queueing(interface: &str) -> Queueing {
    // One that is gone is told by what comes next.
    let Some(ifindex) = ports::index(interface) else { return Queueing::default() };
    let queueing = Queueing::at(ifindex).inspect_err(|error| {
        tracing::warn!(interface, %error, "limits by tc, if there are any, are not known");
    });
    queueing.unwrap_or_default()
}

/// The pod's end; `None` when it cannot be known.
fn look_at_pod(spec: &EndpointSpec) -> Option<PodEnd> {
    let netns = spec.netns.as_ref()?;
    let end = pod_netns::look(netns, &spec.addresses, INSIDE);
    end.inspect_err(|error| {
        tracing::warn!(netns, %error, "offloads are not known; checksums are finished here");
    })
    .ok()
}

/// What a pod's port can rely on.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    /// Whether checksums are finished in frames that come from it.
    pub checksums: Checksums,
    /// Largest packet that the pod's end takes, where that is known.
    pub mtu: Option<u16>,
    /// What was switched at the pod's end.
    pub switched: Vec<Switch>,
}

impl Default for Prepared {
    /// On nothing.
    fn default() -> Self {
        Self { checksums: Checksums::Unknown, mtu: None, switched: Vec::new() }
    }
}

/// Changes what must be changed, on any thread; what it was is recorded by then.
pub(super) fn prepare(
    spec: &EndpointSpec,
    pod: Option<PodLook>,
    segments: Segments,
) -> Result<Prepared, AdminError> {
    sysctl::loosen_source_validation(&spec.interface)
        .map_err(|error| AdminError::Failed { detail: error.to_string() })?;
    let (Some(netns), Some(PodLook { mtu, switches })) = (&spec.netns, pod) else {
        return Ok(Prepared::default());
    };
    // Off: so that the pod's checksums are finished, and no segment is larger than the MTU. Where that
    // fails the pipeline finishes them itself.
    let (on, off): (Vec<Switch>, Vec<Switch>) = switches.iter().copied().partition(|one| one.1);
    let is_on = switch(spec, netns, &on, "a way out that needs them is not used");
    let is_off = switch(spec, netns, &off, "checksums are finished here");
    let checksums = match segments {
        Segments::Cut if is_off => Checksums::Complete,
        Segments::Cut | Segments::Whole => Checksums::Unknown,
    };
    let done = [(on, is_on), (off, is_off)].into_iter().filter(|(_, is_done)| *is_done);
    let switched = done.flat_map(|(switches, _)| switches).collect();
    Ok(Prepared { checksums, mtu: u16::try_from(mtu).ok(), switched })
}

fn switch(spec: &EndpointSpec, netns: &str, switches: &[Switch], otherwise: &str) -> bool {
    if switches.is_empty() {
        return true;
    }
    let switched = pod_netns::switch_offloads(netns, &spec.addresses, INSIDE, switches);
    let told = switched.inspect_err(|error| {
        tracing::warn!(netns, %error, "offloads stay as they are: {otherwise}");
    });
    told.is_ok()
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
    let switches = changed.back();
    if let Some(netns) = spec.netns.as_ref().filter(|_| !switches.is_empty()) {
        let given = pod_netns::switch_offloads(netns, &spec.addresses, INSIDE, &switches);
        if let Err(error) = given {
            tracing::debug!(netns, %error, "offloads not given back");
        }
    }
}
