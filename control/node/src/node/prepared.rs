//! What a start makes ready before it takes anything: all of it touches nothing of the host's, and takes
//! the most of the time.

use caps::Capability;
use control::compile::NodeView;
use xdp_redirect::{Error, Redirect, Regions};

use super::endpoint_record::EndpointRecord;
use super::publisher::Publisher;
use super::reconcile::view_of_node;
use super::{NodeError, Settings, Sources, capacity, check_uplinks, programs};
use crate::host_port::HOST_INTERFACE;
use crate::live_ways::LiveWays;
use crate::netlink::Follower;
use crate::privileges;

/// Ready to serve.
pub(super) struct Prepared {
    pub follower: Follower,
    pub redirect: Redirect,
    /// Why the program would end with this process, if it would.
    pub unpinned: Option<Error>,
    pub regions: Regions,
    pub live: LiveWays,
    /// The cluster, compiled with the endpoints of the process before.
    pub publisher: Publisher,
}

impl Prepared {
    pub async fn new(settings: &mut Settings, sources: &mut Sources) -> Result<Self, NodeError> {
        let follower = Follower::start().await?;
        check_uplinks(settings, &follower.view())?;
        let (redirect, unpinned) = programs::load(settings)?;
        // A kernel before 6.6 takes no frames of several buffers, whatever was asked for.
        settings.umem.multi_buffer = redirect.multi_buffer();
        check_uplinks(settings, &follower.view())?;
        capacity::plan_packet_memory(settings)?;
        let (whole, pods, workers) =
            (settings.umem, &settings.pod_memory, settings.workers.cores.len());
        let regions =
            privileges::with(Capability::CAP_IPC_LOCK, || Regions::new(whole, pods, workers))?;
        let live = programs::load_live(settings);
        let mut publisher = std::mem::take(&mut sources.publisher);
        publisher.take(sources.cluster.take());
        publisher.compile(&first_view(settings, &follower), |_| {});
        Ok(Self { follower, redirect, unpinned, regions, live, publisher })
    }
}

/// The node as it will be, as far as can be known: what turns out otherwise is compiled as a change.
fn first_view(settings: &Settings, follower: &Follower) -> NodeView {
    // What is wrong with it is told when it is taken over.
    let recorded = EndpointRecord::new(&settings.run_directory).read().unwrap_or_default();
    let endpoints = recorded.into_iter().filter_map(|recorded| {
        let endpoint = recorded.endpoint;
        Some((endpoint.name.parse().ok()?, endpoint.addresses.into_iter().collect()))
    });
    let view = follower.view();
    let stack = view.link_by_name(HOST_INTERFACE).map(|(index, _)| index);
    view_of_node(settings, &view, stack, endpoints.collect())
}
