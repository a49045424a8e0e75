//! The node process: starts everything in order, keeps tables in step with the cluster and the
//! kernel, answers clients, and takes everything away again.
//!
//! Reading order: [`launch`] (`xskiff run`), [`settings`] (what it is told), this file (start and end),
//! [`prepared`] and [`hand_over`] (before and from the process before), [`control_loop`] (what happens in
//! between), [`reconcile`] (what changed becomes tables, rules and routes), [`publisher`] (pure: when is
//! what published), [`arrivals`], [`local_pods`], [`attachments`], [`admitted`], [`running_pods`] and [`bypassed_rules`] (pods come and go), [`requests`], [`report`] and [`usage`] (what
//! clients are told), [`verdict`] (how the node stands). [`cluster_source`], [`from_config`],
//! [`configuration`], [`capacity`], [`manifests`], [`policies`], [`reconciles`], [`audit`], [`endpoints`], [`endpoint_record`], [`unread_record`], [`endpoint_state`],
//! [`flow_log`], [`flow_tables`], [`flow_watch`], [`connections`], [`captures`],
//! [`socket_audit`], [`kube_proxy_audit`], [`health`], [`services`], [`service_ranges`], [`host_routes`], [`host_backends`], [`source_nat`], [`filter`], [`fitting`], [`trace`], [`caught`] and
//! [`error_log`] are its parts, [`worker_health`] sees to workers that fail, [`faults`] makes things fail
//! by order, and [`supervised`] tells the service manager.
//!
//! One thread runs all of this. Workers never wait for it: while it hangs or panics, packets go on by
//! the tables in force.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cluster::feed;
use control::admin::cni::{ChainStatus, CniStatus};
use control::admin::reply::Reply;
use control::admin::status::HandedOn;
use control::config::{Config, OnExit};
use dataplane::port::PortId;
use dataplane::tables::Tables;
use dataplane::time::Nanos;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use xdp_redirect::rules::OnStall;

use crate::admin_server::{AdminServer, Call, RunDirectory};
use crate::host_port::HostPort;
use crate::http::{self, HttpServer, Listening, Readiness, StatusRequest};
use crate::netlink::Follower;
use crate::ours::RulesInForce;
use crate::ports::PortTable;
use crate::workers::flow_memory::Beginning;
use crate::workers::{Workers, monotonic_now};

mod admitted;
mod arrivals;
mod attachments;
mod audit;
mod bandwidth;
mod bypassed_rules;
mod capacity;
pub mod captures;
pub(crate) mod caught;
mod clock;
pub mod cluster_source;
pub mod configuration;
mod connections;
mod control_loop;
pub mod detach;
mod direct;
pub mod endpoint_record;
mod endpoint_state;
pub mod endpoints;
mod error;
pub mod error_log;
mod explain;
mod faults;
pub mod filter;
mod fitting;
pub mod flow_log;
mod flow_tables;
pub mod flow_watch;
pub mod from_config;
mod hand_over;
mod health;
mod host_backends;
mod host_routes;
mod host_way;
mod kube_proxy_audit;
pub mod launch;
mod local_pods;
pub mod manifests;
mod nat_ports;
mod network_claim;
mod policies;
mod prepared;
mod privileges;
mod programs;
pub mod publisher;
mod reconcile;
mod reconciles;
mod report;
mod requests;
mod running_pods;
mod service_ranges;
mod services;
pub mod settings;
mod socket_audit;
mod source_nat;
mod supervised;
pub mod trace;
mod unread_record;
pub mod usage;
pub mod verdict;
mod worker_health;

pub use arrivals::{ARRIVALS_MAX, UNDER_WAY_MAX};
pub use capacity::{mappings_allowed, too_few_mappings};
pub use error::NodeError;
pub use fitting::packet_bytes_max;
pub use hand_over::Predecessor;
pub use prepared::Preparing;
pub use settings::Settings;

use admitted::AdmittedPods;
use arrivals::Arrivals;
use audit::Audit;
use captures::Capture;
use clock::Clock;
use configuration::InForce;
use control_loop::ControlRestarts;
use endpoint_record::{EndpointRecord, Recorded};
use endpoints::{Endpoint, Endpoints};
use error_log::ErrorLog;
use fitting::{check_mtu, check_uplinks, lower_first};
use flow_log::FlowLog;
use flow_watch::FlowWatch;
use hand_over::Claims;
use health::Health;
use host_backends::HostBackends;
use host_way::make_host_port;
use kube_proxy_audit::KubeProxyAudit;
use network_claim::NetworkClaim;
use prepared::Prepared;
use publisher::Publisher;
use reconciles::{Reconcile, Reconciles};
use running_pods::RunningPods;
use service_ranges::KnownRanges;
use socket_audit::SocketAudit;
use source_nat::{Inside, RuleAddresses};
use supervised::{Supervised, stalled_workers};
use unread_record::UnreadRecord;
use worker_health::WorkerHealth;

/// Status requests under way from the HTTP thread.
const STATUS_REQUESTS_MAX: usize = 8;

/// The configuration file as last read.
#[derive(Debug, Clone, Default)]
pub struct ConfigUpdate {
    /// The last good content; `None` for a node that was made without a file.
    pub config: Option<Arc<Config>>,
    /// Why the file's present content is refused, with its path.
    pub refused: Option<(String, String)>,
}

/// What a node is told while it runs. A sender that is dropped leaves what was last sent in force.
#[derive(Debug)]
pub struct Sources {
    /// What was taken of the cluster already.
    pub publisher: Publisher,
    /// The cluster.
    pub cluster: feed::Receiver,
    /// The configuration file.
    pub config: watch::Receiver<ConfigUpdate>,
    /// The configuration that the settings were made from; `None` without a file.
    pub in_force: Option<InForce>,
    /// The CNI plugin's place in the runtime's configuration; `None` when nobody looks after it.
    pub chain: Option<watch::Receiver<ChainStatus>>,
}

/// The host port with its number.
struct HostWay {
    pair: HostPort,
    port: PortId,
}

/// Sources that say no more.
#[derive(Debug, Clone, Copy, Default)]
struct Unfollowed {
    cluster: bool,
    config: bool,
}

/// The running node.
pub struct Node {
    settings: Settings,
    started: Instant,
    /// When the flow tables began without some flows of the process before, on the workers' clock.
    flows_began: Option<Nanos>,
    // Workers stop before the ports they serve are closed.
    workers: Workers,
    ports: PortTable,
    follower: Follower,
    host: Option<HostWay>,
    arrivals: Arrivals,
    endpoints: Endpoints,
    /// Those that were removed and whose ports' sockets are not closed yet.
    leaving: Vec<Endpoint>,
    record: EndpointRecord,
    /// Endpoints of the process before that could not be taken over yet.
    awaited: Vec<Recorded>,
    unread: UnreadRecord,
    admitted: AdmittedPods,
    running_pods: RunningPods,
    /// How the CNI plugin's endpoints fared.
    attached: CniStatus,
    chain: Option<watch::Receiver<ChainStatus>>,
    /// XDP programs of the process before that could not be taken over yet.
    programs_left: usize,
    /// Endpoints go only because the process does.
    is_ending: bool,
    /// The next process has asked for everything.
    is_handing_over: bool,
    /// What became of the sockets of the process before.
    handed_on: Option<HandedOn>,
    publisher: Publisher,
    ours: RulesInForce,
    /// What [`Self::ours`] was made of; `None` until the XDP program has taken it.
    told: Option<(Arc<Tables>, OnStall)>,
    host_routes: crate::host_port::HostRoutes,
    host_routes_of: Option<host_routes::MadeOf>,
    host_backends: HostBackends,
    cluster: feed::Receiver,
    config: watch::Receiver<ConfigUpdate>,
    in_force: Option<InForce>,
    unfollowed: Unfollowed,
    clock: Clock,
    audit: Audit,
    socket_audit: SocketAudit,
    kube_proxy_audit: KubeProxyAudit,
    rule_addresses: RuleAddresses,
    inside: Inside,
    known_ranges: KnownRanges,
    /// What direct server return needs.
    direct: direct::Known,
    /// Nanoseconds after which a silent worker has stalled, shared with the HTTP thread.
    stall_after_ns: Arc<AtomicU64>,
    asked: BTreeMap<(PortId, IpAddr), Instant>,
    /// Addresses of gone pods whose flows workers could not be told to end.
    unflushed: BTreeSet<IpAddr>,
    limits_in_force: bandwidth::LimitsInForce,
    /// Uplinks that are not there, as told.
    absent: BTreeSet<String>,
    /// Ports' interfaces whose MTU has outgrown packet memory, and what is wrong.
    wrong_mtus: BTreeMap<String, String>,
    errors: ErrorLog,
    reconciles: Reconciles,
    worker_health: WorkerHealth,
    control_restarts: ControlRestarts,
    flows: FlowLog,
    watch: FlowWatch,
    capture: Option<(Capture, u64)>,
    /// Waits for the end of a resize of the flow tables.
    resizing: Option<mpsc::Sender<Reply>>,
    /// Why a flow table cannot grow, as told.
    growth_refusals: [Option<String>; 2],
    /// Endpoints that have as many flows as they may, as told.
    full_endpoints: BTreeSet<String>,
    high_water: BTreeMap<&'static str, u64>,
    readiness: watch::Sender<Readiness>,
    supervised: Supervised,
    admin: AdminServer,
    calls: mpsc::Receiver<Call>,
    http: Option<HttpServer>,
    health: Health,
    status_requests: mpsc::Receiver<StatusRequest>,
    // Given up when everything else is.
    _network: NetworkClaim,
    _directory: RunDirectory,
}

/// SIGTERM and SIGINT, which end the process cleanly. Heard from its making on, so that none is lost between
/// two who wait for it: once heard, a signal does not end a process by itself any more.
#[derive(Debug)]
pub struct Termination {
    terminate: Signal,
    interrupt: Signal,
}

impl Termination {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`NodeError::System`].
    pub fn listen() -> Result<Self, NodeError> {
        let listen = |kind| {
            signal(kind).map_err(|source| NodeError::System { action: "listen to signals", source })
        };
        let terminate = listen(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits for either. May be dropped and called again.
    pub async fn told(&mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "ending");
    }
}

impl Node {
    /// Starts everything, the least intrusive first: nothing is touched before all that can be
    /// checked is and all is ready that can be, and nothing is taken from a `predecessor` before all is ready that can be. When it
    /// fails it leaves nothing attached and nothing behind.
    ///
    /// # Errors
    /// [`NodeError`], naming the thing and the way out.
    pub async fn start(
        preparing: Preparing,
        mut sources: Sources,
        predecessor: Option<Predecessor>,
    ) -> Result<Self, NodeError> {
        let nobody = predecessor.is_none();
        let claims = nobody.then(|| Claims::take(preparing.settings())).transpose()?;
        let prepared = Prepared::new(preparing, &mut sources).await?;
        let settings = &prepared.settings;
        let (claims, taken, listening) = match (claims, predecessor) {
            (None, Some(predecessor)) => {
                let listening = predecessor.try_what_may_fail(settings)?;
                // There is no way back from here.
                let (claims, taken) = predecessor.hand_over(settings, &prepared.regions).await?;
                (claims, Some(taken), listening)
            }
            (claims, _) => {
                let claims = claims.map_or_else(|| Claims::take(settings), Ok)?;
                (claims, None, settings.http.map(http::listen).transpose()?)
            }
        };
        let pair = make_host_port(settings, &prepared.follower.view(), taken.is_some()).await?;
        match Self::assemble(sources, claims, prepared, pair.as_ref(), listening) {
            Ok((mut node, port)) => {
                node.host = pair.zip(port).map(|(pair, port)| HostWay { pair, port });
                node.take_over_endpoints();
                node.begin_host_backends();
                node.reconcile().await;
                node.begin_to_receive();
                node.adopt_admitted().await;
                node.take_over_programs();
                node.end_hand_over(taken);
                node.hear_of_host_port().await;
                node.readiness.send_replace(Readiness::Ready);
                Ok(node)
            }
            Err(error) => {
                if let Some(pair) = pair
                    && let Err(second) = pair.remove().await
                {
                    tracing::warn!(error = %second, "removing the host port after a failed start");
                }
                Err(error)
            }
        }
    }

    fn assemble(
        told: Sources,
        Claims { directory, network }: Claims,
        prepared: Prepared,
        pair: Option<&HostPort>,
        listening: Option<Listening>,
    ) -> Result<(Self, Option<PortId>), NodeError> {
        let Prepared { settings, follower, redirect, unpinned, regions, live, publisher } =
            prepared;
        let workers = Workers::start(&settings.workers, &regions, &redirect, live.transmit())?;
        // Sockets of the process before may have packets, and there are no tables yet.
        workers.hold_back(true);
        let publisher = publisher.after(workers.tables());
        let is_whole = workers.beginnings().iter().all(Beginning::is_whole);
        let flows_began = (!is_whole).then(monotonic_now);
        let mut ports = PortTable::new(redirect, regions, live);
        let host = match pair {
            Some(_) => Some(reconcile::add_host_port(&mut ports, &workers, &settings)?),
            None => None,
        };
        for uplink in lower_first(&settings.uplinks) {
            // What may come later is looked for with every change of the kernel's.
            if !uplink.optional || crate::ports::index(&uplink.interface).is_some() {
                reconcile::add_uplink(&mut ports, &workers, &settings, uplink)?;
            }
        }
        let (readiness, ready) = watch::channel(Readiness::NotReady("starting".into()));
        let (status, status_requests) = mpsc::channel(STATUS_REQUESTS_MAX);
        let stall_after_ns = Arc::new(AtomicU64::new(nanoseconds(settings.stall_after)));
        let sources = http::Sources {
            stalled_workers: stalled_workers(&workers, &stall_after_ns),
            readiness: ready,
            status,
        };
        let health = Health::start(sources.stalled_workers.clone())?;
        let listening = match (listening, settings.http) {
            (None, Some(address)) => Some(http::listen(address)?),
            (listening, _) => listening,
        };
        let http = listening.map(|listening| http::start(listening, sources)).transpose()?;
        let (admin, calls) = AdminServer::start(&directory)?;
        let mut node = Self {
            started: Instant::now(),
            flows_began,
            workers,
            ports,
            follower,
            host: None,
            arrivals: Arrivals::new(),
            endpoints: Endpoints::default(),
            leaving: Vec::new(),
            record: EndpointRecord::new(directory.path()),
            awaited: Vec::new(),
            unread: UnreadRecord::default(),
            admitted: AdmittedPods::default(),
            running_pods: RunningPods::default(),
            attached: CniStatus::default(),
            chain: told.chain,
            programs_left: 0,
            is_ending: false,
            is_handing_over: false,
            handed_on: None,
            publisher,
            ours: RulesInForce::default(),
            told: None,
            host_routes: crate::host_port::HostRoutes::default(),
            host_routes_of: None,
            host_backends: HostBackends::default(),
            cluster: told.cluster,
            config: told.config,
            in_force: told.in_force,
            unfollowed: Unfollowed::default(),
            clock: Clock::default(),
            audit: Audit::default(),
            socket_audit: SocketAudit::default(),
            kube_proxy_audit: KubeProxyAudit::default(),
            rule_addresses: RuleAddresses::default(),
            inside: Inside::default(),
            known_ranges: KnownRanges::default(),
            direct: direct::Known::default(),
            stall_after_ns,
            asked: BTreeMap::new(),
            unflushed: BTreeSet::new(),
            limits_in_force: bandwidth::LimitsInForce::default(),
            absent: BTreeSet::new(),
            wrong_mtus: BTreeMap::new(),
            errors: ErrorLog::default(),
            reconciles: Reconciles::default(),
            worker_health: WorkerHealth::default(),
            control_restarts: ControlRestarts::default(),
            flows: FlowLog::default(),
            watch: FlowWatch::default(),
            capture: None,
            resizing: None,
            growth_refusals: [None, None],
            full_endpoints: BTreeSet::new(),
            high_water: BTreeMap::new(),
            readiness,
            supervised: Supervised::default(),
            admin,
            calls,
            http,
            health,
            status_requests,
            _network: network,
            _directory: directory,
            settings,
        };
        node.note_unpinned(unpinned);
        Ok((node, host))
    }

    /// Ends, `by_order` or because something failed: then what is attached stays where it can, as after
    /// a kill. The kernel's own stack would reset connections and pass policy by; the next start takes
    /// over.
    async fn end(mut self, by_order: bool) -> Result<(), NodeError> {
        // The next process is the service then, which goes on.
        if !self.is_handing_over {
            self.tell_supervisor_stopping();
        }
        self.readiness.send_replace(Readiness::NotReady("ending".into()));
        self.flows.end();
        self.stop_capture();
        self.is_ending = true;
        self.arrivals.end();
        // First, so that the flow tables are closed with all flows in them: those of pods go on
        // with the next process.
        if self.is_handing_over {
            self.hand_sockets_on().await;
        } else {
            self.workers.stop();
        }
        let may_stay = self.ports.redirect().pinned() > 0;
        let is_left = self.settings.on_exit == OnExit::Drop || self.is_handing_over;
        if is_left || !by_order && may_stay {
            let (stay, memory) = self.ports.leave();
            tracing::info!(interfaces = stay, "XDP programs stay for the next process");
            // What the next one takes, in turn: flow tables, sockets of ours that listen (closed by the
            // time the follower has ended), and last the claims. It goes on while the rest is freed,
            // which takes a while.
            drop((self.workers, self.admin, self.http));
            self.follower.stop().await;
            drop((self._network, self._directory));
            drop(memory);
            return Ok(());
        }
        let names: Vec<_> = self.endpoints.iter().map(|e| e.spec.name.clone()).collect();
        self.remove_endpoints(&names).await;
        self.leave_endpoints();
        self.follower.stop().await;
        // Dropping the port table detaches the program and closes what is left.
        drop(self.ports);
        match self.host {
            Some(host) => Ok(host.pair.remove().await?),
            None => Ok(()),
        }
    }

    /// When, by the wall clock, a worker's time was.
    fn unix_ns(time: Nanos) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let then = now.saturating_sub(monotonic_now().since(time));
        u64::try_from(then.as_nanos()).unwrap_or(u64::MAX)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
