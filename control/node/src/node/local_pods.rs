//! Pods' interfaces become ports and stop being them; those of the process before are taken over.

use std::net::IpAddr;
use std::time::Duration;

use control::admin::{AdminError, EndpointAdd};
use control::model::ObjectName;
use dataplane::lpm::Prefix;
use dataplane::mailbox::{Command, FlushFilter};
use dataplane::port::{Checksums, PortId, PortKind};

use super::endpoint_record::Recorded;
use super::endpoints::{Admission, Endpoint, EndpointSpec};
use super::reconcile::add_port;
use super::{Node, check_mtu};
use crate::host_port::sysctl;
use crate::ports::PortRequest;

/// What errors about the record are called.
const RECORD: &str = "record of endpoints";

impl Node {
    /// Makes an interface a pod's port, and remembers it.
    pub(super) async fn add_endpoint(&mut self, spec: EndpointSpec) -> Result<(), AdminError> {
        if self.bring_up(spec.clone())? == Admission::New {
            // It was waited for, perhaps.
            self.awaited.retain(|waits| waits.endpoint.name != spec.name.to_string());
            self.reconcile(false).await;
            self.record_endpoints();
        }
        Ok(())
    }

    /// Makes the port; tables come after.
    fn bring_up(&mut self, spec: EndpointSpec) -> Result<Admission, AdminError> {
        let view = self.follower.view();
        let addresses = self.node_addresses(&view);
        if self.endpoints.admit(&spec, &addresses)? == Admission::Present {
            return Ok(Admission::Present);
        }
        let failed = |detail: String| AdminError::Failed { detail };
        let interface = &spec.interface;
        let mtu = crate::ports::mtu(interface).map_err(|error| failed(error.to_string()))?;
        check_mtu(&self.settings, mtu)
            .map_err(|detail| failed(format!("interface {interface}: {detail}")))?;
        let source_validation = sysctl::loosen_source_validation(&spec.interface)
            .map_err(|error| failed(error.to_string()))?;
        let checksums = match &spec.netns {
            Some(netns) => finish_checksums(netns, &spec.addresses),
            None => Checksums::Unknown,
        };
        let request = PortRequest {
            interface: spec.interface.clone(),
            kind: PortKind::Pod,
            mode: self.settings.pod_mode,
            sockets: self.settings.pod_sockets,
            everything: false,
        };
        match add_port(&mut self.ports, &self.workers, &request) {
            Ok(port) => {
                self.endpoints.insert(Endpoint { spec, port, checksums, source_validation });
                Ok(Admission::New)
            }
            Err(error) => {
                restore_source_validation(&spec.interface, source_validation);
                Err(failed(error.to_string()))
            }
        }
    }

    /// Takes a pod's port away: tables first, so that nothing is sent to it any more, then its
    /// flows, then the port.
    pub(super) async fn remove_endpoint(&mut self, name: &ObjectName) -> bool {
        let waiting = self.awaited.len();
        self.awaited.retain(|waits| waits.endpoint.name != name.to_string());
        let was_awaited = self.awaited.len() < waiting;
        if was_awaited {
            self.errors.clear(&format!("endpoint {name}"));
            self.record_endpoints();
        }
        let Some(endpoint) = self.endpoints.remove(name) else { return was_awaited };
        self.record_endpoints();
        self.reconcile(false).await;
        self.flush_addresses(&endpoint.spec.addresses);
        self.ports.remove(&self.workers, endpoint.port);
        self.seen.remove(&endpoint.port);
        restore_source_validation(&endpoint.spec.interface, endpoint.source_validation);
        // The port is out of the tables now, too.
        self.reconcile(false).await;
        true
    }

    /// Takes the endpoints of the process before over, as far as their interfaces are there still.
    pub(super) fn take_over_endpoints(&mut self) {
        match self.record.read() {
            Ok(recorded) => self.awaited = recorded,
            Err(error) => self.errors.note(RECORD, error),
        }
        self.bring_up_awaited();
    }

    /// Tries those again that could not be taken over yet.
    pub(super) async fn retry_awaited(&mut self) {
        if !self.awaited.is_empty() && self.bring_up_awaited() {
            self.reconcile(false).await;
        }
    }

    /// Answers whether any became a port.
    fn bring_up_awaited(&mut self) -> bool {
        let mut any = false;
        for recorded in std::mem::take(&mut self.awaited) {
            let name = recorded.endpoint.name.clone();
            let object = format!("endpoint {name}");
            let interface = &recorded.endpoint.interface;
            if crate::ports::index(interface) != Some(recorded.ifindex) {
                tracing::info!(endpoint = name, interface, "not taken over: its interface is gone");
                self.errors.clear(&object);
                continue;
            }
            let spec = EndpointSpec::try_from(recorded.endpoint.clone());
            match spec.and_then(|spec| self.bring_up(spec)) {
                Ok(_) => {
                    any = true;
                    tracing::info!(endpoint = name, interface, "taken over");
                    self.errors.clear(&object);
                }
                Err(error) => {
                    self.errors.note(object, error);
                    self.awaited.push(recorded);
                }
            }
        }
        self.record_endpoints();
        any
    }

    /// Remembers what there is now.
    pub(super) fn record_endpoints(&mut self) {
        if self.is_ending {
            return;
        }
        let ports = &self.ports;
        let recorded = |endpoint: &Endpoint| {
            let ifindex = ports.get(endpoint.port)?.attachment.ifindex;
            Some(Recorded { endpoint: EndpointAdd::from(&endpoint.spec), ifindex })
        };
        let mut all: Vec<Recorded> = self.endpoints.iter().filter_map(recorded).collect();
        all.extend(self.awaited.iter().cloned());
        match self.record.write(all) {
            Ok(()) => self.errors.clear(RECORD),
            Err(error) => self.errors.note(RECORD, error),
        }
    }

    pub(super) fn flush_addresses_of_port(&mut self, port: PortId) {
        let tables = self.publisher.tables();
        let addresses = tables.port(port).map(|port| port.addresses.to_vec()).unwrap_or_default();
        self.flush_addresses(&addresses);
    }

    fn flush_addresses(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            let filter = FlushFilter { address: Some(Prefix::host(*address)) };
            let refused = self.workers.send(|| Command::Flush(filter.clone()));
            if refused > 0 {
                let message = format!("{refused} workers could not be told to end its flows");
                self.errors.note(format!("address {address}"), message);
            }
        }
    }
}

fn restore_source_validation(interface: &str, value: Option<String>) {
    if let Some(value) = value {
        // The interface is gone in most cases, and its settings with it.
        let _ = sysctl::write(&format!("net/ipv4/conf/{interface}/rp_filter"), &value);
    }
}

/// Turns transmit offloads off at the pod's end, so that its frames' checksums are finished and
/// no segment is larger than the MTU. Where that fails the pipeline finishes them itself.
fn finish_checksums(netns: &str, addresses: &[IpAddr]) -> Checksums {
    match crate::pod_netns::turn_offloads_off(netns, addresses, Duration::from_secs(5)) {
        Ok(()) => Checksums::Complete,
        Err(error) => {
            tracing::warn!(netns, %error, "offloads stay on; checksums are finished here");
            Checksums::Unknown
        }
    }
}
