//! The host port's part of a start: what it is made with, and that the kernel has told us of it.

use std::time::Duration;

use super::{Node, NodeError, Settings};
use crate::host_port::{HostPort, HostPortPlan};
use crate::netlink::KernelView;

/// Largest MTU of the host port: a jumbo frame's IP packet.
const HOST_MTU_MAX: u32 = 9000;
/// How long the kernel may take to tell of a link that is up.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// Makes the host port, if there is to be one, or goes on with that of a process that handed over.
///
/// # Errors
/// [`NodeError::HostPort`].
pub(super) async fn make_host_port(
    settings: &Settings,
    view: &KernelView,
    is_handed_over: bool,
) -> Result<Option<HostPort>, NodeError> {
    match host_port_plan(settings, Some(view)) {
        Some(plan) if is_handed_over => Ok(Some(HostPort::go_on(plan).await?)),
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
        segments: settings.segments,
        routing_table: numbers.routing_table,
        rule_priority: numbers.rule_priority,
        snat_l4_ports: settings.snat.l4_ports.clone(),
        state_directory: settings.run_directory.clone(),
    })
}

impl Node {
    /// Waits until the kernel has told that our end of the pair is up: it was brought up before, and
    /// a node that has not heard of it yet would say first of all that its own port is down.
    pub(super) async fn hear_of_host_port(&self) {
        let Some(host) = &self.host else { return };
        let port = self.ports.iter().find(|port| port.port == host.port);
        let Some(index) = port.map(|port| port.attachment.ifindex) else { return };
        let is_up = |view: &KernelView| view.links.get(&index).is_some_and(|link| link.up);
        if !self.follower.shows(is_up, TOLD_WITHIN).await {
            tracing::warn!("the host port does not come up");
        }
    }
}
