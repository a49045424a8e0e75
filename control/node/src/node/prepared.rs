//! What a start makes ready before it takes anything: all of it touches nothing of the host's, and takes
//! the most of the time. What needs no cluster ([`Preparing`]) is made while the cluster is read.

use std::thread::JoinHandle;

use caps::Capability;
use control::compile::NodeView;
use xdp_redirect::{Error, Redirect, Regions};

use super::endpoint_record::EndpointRecord;
use super::publisher::Publisher;
use super::reconcile::view_of_node;
use super::{NodeError, Settings, Sources, capacity, check_uplinks, nat_ports, programs};
use crate::host_port::HOST_INTERFACE;
use crate::live_ways::LiveWays;
use crate::netlink::Follower;
use crate::privileges;

/// The XDP programs and packet memory, which a thread makes ready.
#[derive(Debug)]
pub struct Preparing {
    settings: Settings,
    /// Gives the settings as the kernel lets them be.
    thread: Option<JoinHandle<Result<(Settings, Loaded), NodeError>>>,
}

/// Made ready.
struct Loaded {
    redirect: Redirect,
    unpinned: Option<Error>,
    regions: Regions,
    live: LiveWays,
}

impl Preparing {
    /// Begins, once all that can be checked without touching anything is.
    ///
    /// # Errors
    /// [`NodeError`]: privileges or settings that no node could start with, or no thread.
    pub fn begin(settings: Settings) -> Result<Self, NodeError> {
        super::privileges::check()?;
        nat_ports::check(&settings.snat.l4_ports)?;
        capacity::raise_open_files(settings.workers.cores.len());
        capacity::check_mappings(settings.workers.cores.len());
        let given = settings.clone();
        let thread = std::thread::Builder::new().name("xskiff-prepare".into());
        let thread = thread.spawn(move || Loaded::new(given));
        Ok(Self { settings, thread: Some(thread.map_err(no_thread)?) })
    }

    /// What the node is to be.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn loaded(mut self) -> Result<(Settings, Loaded), NodeError> {
        let thread = self.thread.take();
        let ended = thread.map(JoinHandle::join);
        ended
            .and_then(Result::ok)
            .unwrap_or_else(|| Err(no_thread(std::io::Error::other("it panicked"))))
    }
}

/// Waits for the thread: what it was about to load is gone, too.
impl Drop for Preparing {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn no_thread(source: std::io::Error) -> NodeError {
    NodeError::System { action: "load the XDP program in a thread", source }
}

impl Loaded {
    fn new(mut settings: Settings) -> Result<(Settings, Self), NodeError> {
        let (redirect, unpinned) = programs::load(&settings)?;
        // A kernel before 6.6 takes no frames of several buffers, whatever was asked for.
        settings.umem.multi_buffer = redirect.multi_buffer();
        capacity::plan_packet_memory(&mut settings)?;
        let (whole, pods, workers) =
            (settings.umem, &settings.pod_memory, settings.workers.cores.len());
        let regions =
            privileges::with(Capability::CAP_IPC_LOCK, || Regions::new(whole, pods, workers))?;
        let live = programs::load_live(&settings);
        Ok((settings, Self { redirect, unpinned, regions, live }))
    }
}

/// Ready to serve.
pub(super) struct Prepared {
    pub settings: Settings,
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
    pub async fn new(preparing: Preparing, sources: &mut Sources) -> Result<Self, NodeError> {
        let follower = Follower::start().await?;
        // Before what the kernel may have refused: the interface is the nearer cause.
        check_uplinks(preparing.settings(), &follower.view())?;
        let (settings, Loaded { redirect, unpinned, regions, live }) = preparing.loaded()?;
        check_uplinks(&settings, &follower.view())?;
        let mut publisher = std::mem::take(&mut sources.publisher);
        publisher.take(sources.cluster.take(), |_| {});
        publisher.compile(&first_view(&settings, &follower), |_| {});
        Ok(Self { settings, follower, redirect, unpinned, regions, live, publisher })
    }
}

/// The node as it will be, as far as can be known: what turns out otherwise is compiled as a change.
fn first_view(settings: &Settings, follower: &Follower) -> NodeView {
    // What is wrong with it is told when it is taken over.
    let found = EndpointRecord::new(&settings.run_directory).read().unwrap_or_default();
    let endpoints = found.remembered.endpoints.into_iter().filter_map(|recorded| {
        let endpoint = recorded.endpoint;
        Some((endpoint.name.parse().ok()?, endpoint.addresses.into_iter().collect()))
    });
    let view = follower.view();
    let stack = view.link_by_name(HOST_INTERFACE).map(|(index, _)| index);
    view_of_node(settings, &view, stack, endpoints.collect())
}
