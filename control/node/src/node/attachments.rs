//! Endpoints as a container runtime's CNI plugin names them: added, checked and taken away.
//!
//! Two containers of one pod may overlap: a pod's sandbox is made anew under the same name, perhaps
//! before the older one is removed. The newer one is served, and the older one's removal finds
//! nothing.

use std::time::Duration;

use control::admin::{AdminError, Attachment, EndpointAdd, Reply, Retained};
use control::model::ObjectName;

use super::Node;
use super::endpoints::{Endpoint, EndpointSpec};
use super::reconciles::Reconcile;
use crate::ports;

impl Node {
    /// Takes away what a request to add `spec` shows to be over, and notes whose it is.
    pub(super) async fn take_outlived_away(&mut self, spec: &EndpointSpec) {
        let over = self.endpoints.outlived_by(spec, |endpoint| self.has_lost_interface(endpoint));
        for name in &over {
            tracing::info!(endpoint = %name, by = ?spec.attachment, "outlived");
            self.attached.outlived += 1;
        }
        self.remove_endpoints(&over).await;
        if self.endpoints.name_attachment(spec) {
            self.record_endpoints();
            // Its limits may be others.
            self.reconcile().await;
        }
    }

    /// Whether its interface is not there any more, or another one has its name.
    fn has_lost_interface(&self, endpoint: &Endpoint) -> bool {
        let ifindex = self.ports.get(endpoint.port).map(|port| port.attachment.ifindex);
        ifindex.is_none() || ports::index(&endpoint.spec.interface) != ifindex
    }

    /// The endpoint of an attachment, also one that is to be taken over.
    pub(super) fn name_of_attachment(&self, attachment: &Attachment) -> Option<ObjectName> {
        let there = self.endpoints.by_attachment(attachment).map(|there| there.spec.name.clone());
        let is_its = |endpoint: &EndpointAdd| endpoint.attachment.as_ref() == Some(attachment);
        there.or_else(|| {
            let waits = self.awaited.iter().find(|waits| is_its(&waits.endpoint))?;
            waits.endpoint.name.parse().ok()
        })
    }

    /// Whether an endpoint is there as it was added, and served.
    pub(super) fn check_endpoint(&self, request: EndpointAdd) -> Result<Reply, AdminError> {
        let spec = EndpointSpec::try_from(request)?;
        let Some(present) = self.endpoints.get(&spec.name) else {
            return Err(AdminError::NotFound {
                what: "endpoint".into(),
                name: spec.name.to_string(),
                list_command: "xskiff endpoint list".into(),
            });
        };
        let mut differences = Vec::new();
        let mut compare = |what: &str, is: String, wanted: String| {
            if is != wanted {
                differences.push(format!("its {what} is {is} and not {wanted}"));
            }
        };
        let own = &present.spec;
        compare("interface", own.interface.clone(), spec.interface.clone());
        compare("addresses", format!("{:?}", own.addresses), format!("{:?}", spec.addresses));
        compare("link address", shown(own.mac), shown(spec.mac));
        let id = |spec: &EndpointSpec| {
            spec.attachment.as_ref().map_or("none".to_owned(), Attachment::file_name)
        };
        compare("attachment", id(own), id(&spec));
        if let Some(wanted) = spec.bandwidth.filter(|wanted| own.bandwidth != Some(*wanted)) {
            let is = own.bandwidth.unwrap_or_default();
            compare("bandwidth", format!("{is:?}"), format!("{wanted:?}"));
        }
        if self.has_lost_interface(present) {
            differences.push(format!("interface {} is gone", own.interface));
        } else if let Some(reason) = self.degradation(present) {
            differences.push(reason);
        }
        if differences.is_empty() {
            return Ok(Reply::Endpoint(self.endpoint_info(present)));
        }
        let detail = format!("endpoint {}: {}", spec.name, differences.join("; "));
        Err(AdminError::Conflict { detail })
    }

    /// Takes the ports of attachments away that the runtime does not know any more.
    pub(super) async fn retain_endpoints(&mut self, retained: &Retained) -> Reply {
        let is_over = |attachment: &Option<Attachment>| {
            attachment.as_ref().is_some_and(|attachment| !retained.keeps(attachment))
        };
        let there = self.endpoints.iter().filter(|there| is_over(&there.spec.attachment));
        let mut over: Vec<ObjectName> = there.map(|there| there.spec.name.clone()).collect();
        let waiting = self.awaited.iter().filter(|waits| is_over(&waits.endpoint.attachment));
        over.extend(waiting.filter_map(|waits| waits.endpoint.name.parse().ok()));
        for name in &over {
            tracing::info!(endpoint = %name, network = retained.network, "collected");
        }
        self.remove_endpoints(&over).await;
        self.attached.collected += over.len() as u64;
        Reply::RemovedEndpoints(over.iter().map(ToString::to_string).collect())
    }

    /// Takes over how the plugin's place in the runtime's configuration fares.
    pub(super) fn note_chain(&mut self) {
        let Some(chain) = &mut self.chain else { return };
        // Whoever looks after it ends with the process.
        if !chain.has_changed().unwrap_or(false) {
            return;
        }
        let status = chain.borrow_and_update().clone();
        let object = format!("CNI configuration in {}", status.directory);
        self.reconciles.ran(Reconcile::CniChain, Duration::ZERO);
        match status.error {
            Some(error) => self.failed(Reconcile::CniChain, object, error),
            None => self.errors.clear(&object),
        }
    }
}

fn shown(mac: Option<dataplane::address::MacAddr>) -> String {
    mac.map_or("unknown".to_owned(), |mac| mac.to_string())
}
