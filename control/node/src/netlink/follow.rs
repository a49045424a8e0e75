//! The task that keeps a [`KernelView`] true.
//!
//! Notifications and answers come by sockets of their own. A socket that is not read in time loses
//! what comes next, and were that the answer to a request, the request would never end. Whatever
//! does not answer all the same is given up after [`ANSWER`], and the node never waits for the task.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dataplane::counters::Level;
use futures_util::{Stream, StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteHeader, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::neighbours::{NeighbourKey, Tracker};
use super::view::{Applied, KernelView, RouteEntry};
use super::{decode, main_table};

/// A burst of notifications is shown once, this long after its first.
const SETTLE: Duration = Duration::from_millis(2);
/// Routes are read again this long after the first notification of a burst.
const SETTLE_ROUTES: Duration = Duration::from_millis(20);
/// Everything is read again so often, so that nothing missed stays missed.
const RESYNC: Duration = Duration::from_secs(60);
/// How often neighbours are looked over.
const LOOK_OVER: Duration = Duration::from_millis(500);
/// Pause before a broken socket is opened anew.
const REOPEN: Duration = Duration::from_millis(500);
/// How long the kernel may take to answer a request, where it takes milliseconds.
const ANSWER: Duration = Duration::from_secs(5);
/// Requests under way from the node to the task.
pub const COMMANDS_MAX: usize = 1024;

/// Why the kernel's state cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("no netlink socket: {0}; the process needs AF_NETLINK (check seccomp filters)")]
    Socket(#[from] std::io::Error),
    /// A reading failed.
    #[error("reading {what} by netlink: {source}")]
    Read {
        /// What was being read.
        what: &'static str,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// No answer came.
    #[error("reading {what} by netlink: no answer for {} s", ANSWER.as_secs())]
    Silent {
        /// What was being read.
        what: &'static str,
    },
    /// The task is gone.
    #[error("the netlink task has ended")]
    Ended,
}

/// What the task counts.
#[derive(Debug, Default)]
pub struct FollowCounts {
    /// Full readings.
    pub resyncs: AtomicU64,
    /// Time of all of them together, and of the longest, in microseconds.
    pub resync_microseconds: AtomicU64,
    /// See there.
    pub longest_resync_microseconds: AtomicU64,
    /// Notifications lost by the kernel because we read too slowly (ENOBUFS).
    pub overruns: AtomicU64,
    /// Full readings that found something no notification had said.
    pub repairs: AtomicU64,
    /// Requests for neighbours.
    pub neighbour_requests: AtomicU64,
    /// Requests refused because too many are tracked.
    pub neighbour_requests_refused: AtomicU64,
    /// Failures of any kind.
    pub failures: AtomicU64,
    last_failure: Mutex<Option<Failure>>,
    /// Requests under way from the node to the task, of [`COMMANDS_MAX`].
    pub requests: Level,
}

/// What went wrong with the kernel's view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// With what: the netlink socket, or a neighbour.
    pub object: String,
    /// What.
    pub message: String,
    /// Since then.
    pub at: std::time::Instant,
    /// How often in a row.
    pub count: u64,
}

impl FollowCounts {
    /// A full reading that took so long.
    fn read(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        count(&self.resyncs);
        self.resync_microseconds.fetch_add(took, Ordering::Relaxed);
        self.longest_resync_microseconds.fetch_max(took, Ordering::Relaxed);
    }

    fn failed(&self, object: impl Into<String>, message: impl ToString) {
        count(&self.failures);
        let (object, message) = (object.into(), message.to_string());
        let mut last = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
        let same = last.take().filter(|last| last.object == object && last.message == message);
        let times = same.map_or(0, |last| last.count) + 1;
        let at = std::time::Instant::now();
        *last = Some(Failure { object, message, at, count: times });
    }

    /// The last failure.
    #[must_use]
    pub fn last_failure(&self) -> Option<Failure> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What fails as a whole.
const SOCKET: &str = "netlink socket";

enum Command {
    Ask(NeighbourKey),
    Stop,
}

/// The kernel's view, and the way to ask for neighbours.
#[derive(Debug)]
pub struct Follower {
    view: watch::Receiver<Arc<KernelView>>,
    commands: mpsc::Sender<Command>,
    gateways: watch::Sender<BTreeSet<NeighbourKey>>,
    counts: Arc<FollowCounts>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Reads everything once, then follows.
    ///
    /// # Errors
    /// [`NetlinkError`] when the first reading fails; later failures are retried for ever, counted
    /// and logged.
    pub async fn start() -> Result<Self, NetlinkError> {
        let session = Session::open()?;
        let began = Instant::now();
        let first = Arc::new(session.read_all().await?);
        let (publish, view) = watch::channel(first.clone());
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (gateways, kept) = watch::channel(BTreeSet::new());
        let counts = Arc::new(FollowCounts::default());
        counts.read(began.elapsed());
        let state = State {
            view: (*first).clone(),
            tracker: Tracker::default(),
            publish,
            commands: receiver,
            gateways: kept,
            counts: counts.clone(),
        };
        let task = tokio::spawn(state.run(session));
        Ok(Self { view, commands, gateways, counts, task })
    }

    /// The view as it is now.
    #[must_use]
    pub fn view(&self) -> Arc<KernelView> {
        self.view.borrow().clone()
    }

    /// Waits until the view differs from the one seen last. May be dropped and called again.
    ///
    /// # Errors
    /// [`NetlinkError::Ended`] when the task is gone, which is a defect.
    pub async fn changed(&mut self) -> Result<Arc<KernelView>, NetlinkError> {
        self.view.changed().await.map_err(|_| NetlinkError::Ended)?;
        Ok(self.view.borrow_and_update().clone())
    }

    /// Waits until the view is as `wanted`, for `within` at most, and says whether it is. What is seen
    /// meanwhile is news to [`Self::changed`] all the same.
    pub async fn shows(&self, wanted: impl Fn(&KernelView) -> bool, within: Duration) -> bool {
        let mut view = self.view.clone();
        timeout(within, view.wait_for(|view| wanted(view))).await.is_ok_and(|shown| shown.is_ok())
    }

    /// Asks the kernel to resolve a neighbour and keep it fresh. Never waits; a request beyond
    /// the bound is counted and lost (the packet that waits asks again).
    pub fn ask(&self, key: NeighbourKey) {
        if self.commands.try_send(Command::Ask(key)).is_err() {
            count(&self.counts.neighbour_requests_refused);
        }
        self.counts.requests.note(self.requests_waiting() as u64);
    }

    /// Requests that the task has not taken yet.
    #[must_use]
    pub fn requests_waiting(&self) -> usize {
        COMMANDS_MAX - self.commands.capacity()
    }

    /// Sets the neighbours to be kept resolved at all times. Never waits: the last set counts.
    pub fn set_gateways(&self, gateways: BTreeSet<NeighbourKey>) {
        self.gateways.send_if_modified(|kept| {
            let differs = *kept != gateways;
            *kept = gateways;
            differs
        });
    }

    /// The task's counters.
    #[must_use]
    pub fn counts(&self) -> &FollowCounts {
        &self.counts
    }

    /// Ends the task; the kernel forgets the neighbours it kept fresh for us.
    pub async fn stop(self) {
        let _ = self.commands.send(Command::Stop).await;
        let _ = self.task.await;
    }
}

type Messages = Box<
    dyn Stream<Item = (NetlinkMessage<RouteNetlinkMessage>, rtnetlink::sys::SocketAddr)>
        + Send
        + Sync
        + Unpin,
>;

/// The netlink sockets with their drivers: one for notifications, one for requests.
struct Session {
    handle: Handle,
    messages: Messages,
    drivers: [JoinHandle<()>; 2],
}

impl Drop for Session {
    fn drop(&mut self) {
        self.drivers.iter().for_each(JoinHandle::abort);
    }
}

impl Session {
    fn open() -> Result<Self, NetlinkError> {
        let (mut notified, _, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Neigh,
        ])?;
        let (mut connection, handle, _) = rtnetlink::new_connection()?;
        main_table::leave_out_others(notified.socket_mut().socket_mut())?;
        // Lists of the routes of one table are only of one table so (netlink(7)).
        connection.socket_mut().socket_mut().set_netlink_get_strict_chk(true)?;
        let drivers = [tokio::spawn(notified), tokio::spawn(connection)];
        Ok(Self { handle, messages: Box::new(messages), drivers })
    }

    async fn read_all(&self) -> Result<KernelView, NetlinkError> {
        answered("everything", self.read_each()).await
    }

    async fn read_each(&self) -> Result<KernelView, NetlinkError> {
        let mut view = KernelView::default();
        let links = self.handle.link().get().execute();
        apply_all(&mut view, "links", links.map_ok(RouteNetlinkMessage::NewLink)).await?;
        let addresses = self.handle.address().get().execute();
        apply_all(&mut view, "addresses", addresses.map_ok(RouteNetlinkMessage::NewAddress))
            .await?;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let neighbours = self.handle.neighbours().get().set_address_family(family).execute();
            let neighbours = neighbours.map_ok(RouteNetlinkMessage::NewNeighbour);
            apply_all(&mut view, "neighbours", neighbours).await?;
        }
        view.set_routes(self.routes().await?);
        Ok(view)
    }

    async fn read_routes(&self, view: &mut KernelView) -> Result<bool, NetlinkError> {
        Ok(view.set_routes(answered("routes", self.routes()).await?))
    }

    async fn routes(&self) -> Result<Vec<RouteEntry>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            request.header.table = RouteHeader::RT_TABLE_MAIN;
            let mut answers = std::pin::pin!(self.handle.route().get(request).execute());
            while let Some(answer) = answers.next().await {
                let message =
                    answer.map_err(|source| NetlinkError::Read { what: "routes", source })?;
                routes.extend(decode::decode_route(&message));
            }
        }
        Ok(routes)
    }

    async fn request_neighbour(&self, key: NeighbourKey) -> Result<(), rtnetlink::Error> {
        let (interface, address) = key;
        let mut request = self
            .handle
            .neighbours()
            .add(interface, address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        let managed = NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed);
        request.message_mut().attributes.push(managed);
        request.execute().await
    }

    async fn forget_neighbour(&self, key: NeighbourKey) {
        let mut request = self.handle.neighbours().add(key.0, key.1);
        let message = std::mem::take(request.message_mut());
        // It may be gone already, with its interface or by the kernel's own collection.
        let _ = timeout(ANSWER, self.handle.neighbours().del(message).execute()).await;
    }
}

/// What comes within [`ANSWER`].
async fn answered<T>(
    what: &'static str,
    reading: impl Future<Output = Result<T, NetlinkError>>,
) -> Result<T, NetlinkError> {
    timeout(ANSWER, reading).await.unwrap_or(Err(NetlinkError::Silent { what }))
}

async fn apply_all(
    view: &mut KernelView,
    what: &'static str,
    messages: impl Stream<Item = Result<RouteNetlinkMessage, rtnetlink::Error>>,
) -> Result<(), NetlinkError> {
    let mut messages = std::pin::pin!(messages);
    while let Some(message) = messages.next().await {
        let message = message.map_err(|source| NetlinkError::Read { what, source })?;
        view.apply(decode::change(&message));
    }
    Ok(())
}

struct State {
    view: KernelView,
    tracker: Tracker,
    publish: watch::Sender<Arc<KernelView>>,
    commands: mpsc::Receiver<Command>,
    gateways: watch::Receiver<BTreeSet<NeighbourKey>>,
    counts: Arc<FollowCounts>,
}

enum Ended {
    Stop,
    Broken,
}

impl State {
    async fn run(mut self, first: Session) {
        let mut session = first;
        loop {
            let error = match self.follow(&mut session).await {
                Ok(Ended::Stop) => break,
                Ok(Ended::Broken) => "it broke".to_owned(),
                Err(error) => error.to_string(),
            };
            tracing::warn!(error, "following the kernel failed; another socket is opened");
            self.counts.failed(SOCKET, error);
            session = self.reopen().await;
        }
        for key in self.tracker.tracked() {
            session.forget_neighbour(key).await;
        }
    }

    async fn reopen(&mut self) -> Session {
        loop {
            sleep(REOPEN).await;
            let opened = match Session::open() {
                Ok(session) => self.resync(&session).await.map(|()| session),
                Err(error) => Err(error),
            };
            match opened {
                Ok(session) => return session,
                Err(error) => {
                    tracing::warn!(%error, "the kernel's state cannot be read");
                    self.counts.failed(SOCKET, error);
                }
            }
        }
    }

    async fn follow(&mut self, session: &mut Session) -> Result<Ended, NetlinkError> {
        let mut look_over = interval(LOOK_OVER);
        look_over.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut resync_at = Instant::now() + RESYNC;
        let mut pending = Pending::default();
        loop {
            let deadline = pending.deadline().unwrap_or(resync_at).min(resync_at);
            tokio::select! {
                message = session.messages.next() => match message {
                    None => return Ok(Ended::Broken),
                    Some((message, _)) => match message.payload {
                        NetlinkPayload::Overrun(_) => {
                            count(&self.counts.overruns);
                            tracing::warn!("netlink overran; reading everything again");
                            resync_at = Instant::now();
                        }
                        NetlinkPayload::InnerMessage(message) => {
                            pending.note(self.view.apply(decode::change(&message)));
                        }
                        _ => {}
                    },
                },
                command = self.commands.recv() => match command {
                    Some(Command::Ask(key)) => {
                        if !self.tracker.ask(key, std::time::Instant::now()) {
                            count(&self.counts.neighbour_requests_refused);
                        }
                        self.ask_due(session).await?;
                    }
                    Some(Command::Stop) | None => return Ok(Ended::Stop),
                },
                // The node's end goes with the other one of `commands`, which says so.
                Ok(()) = self.gateways.changed() => {
                    let gateways = self.gateways.borrow_and_update().clone();
                    self.tracker.set_gateways(gateways);
                    self.ask_due(session).await?;
                }
                _ = look_over.tick() => {
                    for key in self.tracker.forget(&self.view, std::time::Instant::now()) {
                        session.forget_neighbour(key).await;
                    }
                    self.ask_due(session).await?;
                }
                () = sleep_until(deadline) => {
                    if Instant::now() >= resync_at {
                        self.resync(session).await?;
                        resync_at = Instant::now() + RESYNC;
                        pending = Pending::default();
                    } else if pending.routes_stale {
                        session.read_routes(&mut self.view).await?;
                        pending = Pending::default();
                        self.show();
                    } else {
                        pending = Pending::default();
                        self.show();
                    }
                }
            }
        }
    }

    async fn resync(&mut self, session: &Session) -> Result<(), NetlinkError> {
        let began = Instant::now();
        let fresh = session.read_all().await?;
        self.counts.read(began.elapsed());
        if self.view != fresh {
            count(&self.counts.repairs);
            self.view = fresh;
        }
        self.show();
        Ok(())
    }

    fn show(&self) {
        self.publish.send_if_modified(|shown| {
            let differs = **shown != self.view;
            if differs {
                *shown = Arc::new(self.view.clone());
            }
            differs
        });
    }

    async fn ask_due(&mut self, session: &Session) -> Result<(), NetlinkError> {
        for key in self.tracker.due(&self.view, std::time::Instant::now()) {
            count(&self.counts.neighbour_requests);
            let asked = timeout(ANSWER, session.request_neighbour(key)).await;
            if let Err(error) = asked.map_err(|_| NetlinkError::Silent { what: "a neighbour" })? {
                let (interface, address) = key;
                tracing::debug!(interface, %address, %error, "neighbour request failed");
                self.counts.failed(format!("neighbour {address} on interface {interface}"), error);
            }
        }
        Ok(())
    }
}

/// Changes applied but not yet shown.
#[derive(Default)]
struct Pending {
    since: Option<Instant>,
    routes_stale: bool,
}

impl Pending {
    fn note(&mut self, applied: Applied) {
        if applied.changed || applied.routes_stale {
            self.since.get_or_insert_with(Instant::now);
            self.routes_stale |= applied.routes_stale;
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let settle = if self.routes_stale { SETTLE_ROUTES } else { SETTLE };
        self.since.map(|since| since + settle)
    }
}
