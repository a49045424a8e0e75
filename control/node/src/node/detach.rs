//! Taking away what a process has left behind: `xskiff detach`.

use xdp_redirect::pins::Pins;

use super::endpoint_record::{EndpointRecord, Found, RecordError, Remembered, Unread};
use super::endpoints::EndpointSpec;
use super::host_way::host_port_plan;
use super::local_pods::give_back;
use super::network_claim::NetworkClaim;
use super::{NodeError, Settings, privileges};
use crate::admin_server::RunDirectory;
use crate::host_port::HostPort;
use crate::ports;

/// What there was to take away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Detached {
    /// Interfaces that had the XDP program.
    pub interfaces: usize,
    /// Pods' interfaces that got back what was changed on them.
    pub endpoints: usize,
}

/// Takes the XDP program off every interface of this network namespace where a process has left it,
/// gives back what it changed for pods, and removes the host port. What it knew (endpoints, flows)
/// stays for the next one.
///
/// # Errors
/// [`NodeError`], the first of all: that a node process runs. That its record of endpoints cannot be read keeps
/// nothing else from being taken away.
pub async fn detach(settings: &Settings) -> Result<Detached, NodeError> {
    privileges::check()?;
    let directory = RunDirectory::claim(&settings.run_directory)?;
    let _network = NetworkClaim::claim()?;
    let mut detached = Detached::default();
    let pins = Pins::open(&settings.bpf_filesystem)?;
    for ifindex in pins.interfaces() {
        detached.interfaces += usize::from(pins.detach(ifindex)?);
    }
    let mut record = EndpointRecord::new(directory.path());
    let given_back = give_back_all(&mut record, &mut detached);
    if let Some(plan) = host_port_plan(settings, None) {
        HostPort::remove_left(plan).await?;
    }
    // Last: it keeps nothing else from being taken away.
    given_back?;
    Ok(detached)
}

/// Gives back what was changed for pods, as far as the record can be read, and notes that it was.
fn give_back_all(record: &mut EndpointRecord, detached: &mut Detached) -> Result<(), RecordError> {
    let Found { mut remembered, unread } = record.read()?;
    for Unread { object, why } in &unread {
        tracing::warn!(object, why, "what was changed for it is not given back");
    }
    for recorded in &mut remembered.endpoints {
        let changed = std::mem::take(&mut recorded.changed);
        let is_there = ports::index(&recorded.endpoint.interface) == Some(recorded.ifindex);
        let spec = EndpointSpec::try_from(recorded.endpoint.clone()).ok();
        if let Some(spec) = spec.filter(|_| is_there) {
            give_back(&spec, &changed);
            detached.endpoints += usize::from(!changed.is_empty());
        }
    }
    if !unread.is_empty() {
        record.keep_aside()?;
    }
    if remembered != Remembered::default() { record.write(remembered) } else { Ok(()) }
}
