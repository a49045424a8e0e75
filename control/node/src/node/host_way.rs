//! The host port's part of a start: what it is made with.

use super::{NodeError, Settings};
use crate::host_port::{HostPort, HostPortPlan};
use crate::netlink::KernelView;

/// Largest MTU of the host port: a jumbo frame's IP packet.
const HOST_MTU_MAX: u32 = 9000;

/// Makes the host port, if there is to be one.
///
/// # Errors
/// [`NodeError::HostPort`].
pub(super) async fn make_host_port(
    settings: &Settings,
    view: &KernelView,
) -> Result<Option<HostPort>, NodeError> {
    match host_port_plan(settings, Some(view)) {
        Some(plan) => Ok(Some(HostPort::create(plan).await?)),
        None => Ok(None),
    }
}

/// How the host port is made, or was; how large its packets may be is of no matter without a view.
pub(super) fn host_port_plan(
    settings: &Settings,
    view: Option<&KernelView>,
) -> Option<HostPortPlan> {
    let numbers = settings.host_port?;
    let links = settings.uplinks.iter().filter_map(|uplink| view?.link_by_name(&uplink.interface));
    let largest = links.map(|(_, link)| link.mtu).max().unwrap_or(1500);
    Some(HostPortPlan {
        queues: u32::try_from(settings.workers.cores.len()).unwrap_or(1).max(1),
        mtu: u16::try_from(largest.min(HOST_MTU_MAX)).unwrap_or(1500),
        routing_table: numbers.routing_table,
        rule_priority: numbers.rule_priority,
        snat_l4_ports: settings.snat.l4_ports.clone(),
        state_directory: settings.run_directory.clone(),
    })
}
