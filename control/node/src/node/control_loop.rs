//! What the control thread does while the node runs: it waits for the next thing to happen and sees to
//! it. A panic on the way costs what it was at, not the node: everything is compiled anew from the
//! objects, while workers go on by the tables in force.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::time::{MissedTickBehavior, interval};

use super::arrivals::Brought;
use super::audit::Audit;
use super::caught::Panicked;
use super::reconciles::Reconcile;
use super::{Node, NodeError, nanoseconds};
use crate::admin_server::Call;
use crate::http::StatusRequest;
use crate::workers::monotonic_now;
use crate::workers::restarts::{Restarts, TOLD_FOR};

/// How often reports of workers are read: the longest a packet waits for its neighbour to be
/// asked for.
const DRAIN: Duration = Duration::from_millis(10);
/// How often it is looked whether workers have adopted a new port's tables, while one waits for it.
const LOOK: Duration = Duration::from_millis(1);
/// How often what needs no haste is looked after.
pub(super) const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Said of a source whose task is gone.
const UNFOLLOWED: &str = "is not followed any more (a defect; the log above says more): the last \
                          good state stays in force until `xskiff run` is started again";
/// What panics are told of.
const OBJECT: &str = "control thread";

/// How often this thread has gone on after a panic.
#[derive(Debug, Default)]
pub(super) struct ControlRestarts {
    allowed: Restarts,
    last: Option<Instant>,
    pub(super) count: u64,
}

/// Something to see to.
enum Event {
    /// The kernel's links, addresses, routes or neighbours changed.
    Kernel,
    /// The cluster did; false: nobody tells of it any more.
    Cluster(bool),
    /// The configuration file did; false likewise.
    Config(bool),
    /// A client asks.
    Call(Box<Call>),
    /// A thread has done its part of an endpoint's arrival.
    Brought(Box<Brought>),
    /// An arrival waits for what nobody tells of.
    Look,
    /// The HTTP server asks.
    Status(StatusRequest),
    /// It is time to read what workers report.
    Drain,
    /// It is time for what needs no haste.
    Housekeeping,
    /// After a panic.
    Anew,
}

impl Node {
    /// Runs until `stop` is ready (in a process, [`super::Termination::told`]), then takes everything away.
    ///
    /// # Errors
    /// What `stop` gave, or [`NodeError`] when workers, the follower or the control thread failed for
    /// good, or something could not be taken away.
    pub async fn run(
        mut self,
        stop: impl Future<Output = Result<(), NodeError>>,
    ) -> Result<(), NodeError> {
        let mut stop = std::pin::pin!(stop);
        let mut drain = interval(DRAIN);
        let mut housekeeping = interval(HOUSEKEEPING);
        drain.set_missed_tick_behavior(MissedTickBehavior::Delay);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut after_panic = None;
        let ended = loop {
            let event = match after_panic.take() {
                Some(event) => event,
                None => tokio::select! {
                    stopped = &mut stop => break stopped,
                    changed = self.follower.changed() => match changed {
                        Ok(_) => Event::Kernel,
                        Err(error) => break Err(error.into()),
                    },
                    changed = self.cluster.changed(), if !self.unfollowed.cluster => {
                        Event::Cluster(changed.is_ok())
                    }
                    changed = self.config.changed(), if !self.unfollowed.config => {
                        Event::Config(changed.is_ok())
                    }
                    Some(call) = self.calls.recv() => Event::Call(Box::new(call)),
                    Some(brought) = self.arrivals.outcome() => Event::Brought(Box::new(brought)),
                    _ = look.tick(), if self.arrivals.must_look() => Event::Look,
                    Some(request) = self.status_requests.recv() => Event::Status(request),
                    _ = drain.tick() => Event::Drain,
                    _ = housekeeping.tick() => Event::Housekeeping,
                },
            };
            match AssertUnwindSafe(self.see_to(event)).catch_unwind().await {
                Ok(Ok(())) if self.is_handing_over => break Ok(()),
                Ok(Ok(())) => {}
                Ok(Err(error)) => break Err(error),
                Err(panic) => match self.go_on_after(&*panic) {
                    Ok(()) => after_panic = Some(Event::Anew),
                    Err(error) => break Err(error),
                },
            }
        };
        if let Err(error) = &ended {
            tracing::error!(%error, "ending");
        }
        self.end(ended.is_ok()).await.and(ended)
    }

    async fn see_to(&mut self, event: Event) -> Result<(), NodeError> {
        match event {
            Event::Kernel | Event::Cluster(true) => self.reconcile().await,
            // A source that ended leaves the last good state in force.
            Event::Cluster(false) => self.note_unfollowed_cluster(),
            Event::Config(true) => self.reconfigure().await,
            Event::Config(false) => self.note_unfollowed_config(),
            Event::Call(call) => self.answer_calls(*call).await,
            Event::Brought(brought) => self.go_on(*brought).await,
            Event::Look => self.look_after_arrivals().await,
            Event::Status(request) => {
                // A client that gave up waiting is no matter.
                let _ = request.send(Box::new(self.status()));
            }
            // Half a node would drop half the connections for good, and look alive.
            Event::Drain => match self.workers.gone() {
                Some(gone) => return Err(gone.into()),
                None => self.drain().await,
            },
            Event::Housekeeping => self.housekeep().await?,
            Event::Anew => self.begin_anew().await,
        }
        Ok(())
    }

    /// Notes a panic of this thread; an error when there are too many.
    fn go_on_after(&mut self, panic: &(dyn Any + Send)) -> Result<(), NodeError> {
        let panicked = Panicked::of(panic);
        self.control_restarts.count += 1;
        self.control_restarts.last = Some(Instant::now());
        if !self.control_restarts.allowed.allow(monotonic_now()) {
            return Err(NodeError::ControlPanicked(panicked));
        }
        self.errors.note(OBJECT, format!("panicked, and began anew: {panicked}"));
        Ok(())
    }

    /// Trusts nothing that was derived, and makes it once more.
    async fn begin_anew(&mut self) {
        self.publisher.begin_anew();
        self.audit = Audit::default();
        self.running_pods.begin_anew();
        (self.told, self.host_routes_of) = (None, None);
        self.end_lost_arrivals();
        self.reconcile().await;
        self.go_on_with_lost_arrivals().await;
    }

    fn forget_control_restart(&mut self) {
        if self.control_restarts.last.is_some_and(|at| at.elapsed() > TOLD_FOR) {
            self.control_restarts.last = None;
            self.errors.clear(OBJECT);
        }
    }

    /// Takes over what a new configuration file changes live; a refused one changes nothing.
    async fn reconfigure(&mut self) {
        let began = Instant::now();
        let update = self.config.borrow_and_update().clone();
        if let Some((file, why)) = update.refused {
            self.reconciles.ran(Reconcile::Configuration, began.elapsed());
            return self.failed(Reconcile::Configuration, file, why);
        }
        let Some(config) = update.config else { return };
        self.tell_supervisor_reloading();
        let sizes = self.settings.workers.capacities;
        let transmit = self.settings.transmit;
        self.settings.apply_live(&config);
        if self.settings.transmit != transmit {
            self.ports.reconsider_live(self.settings.transmit, &self.workers);
        }
        let is_resized = self.resize_by_file(sizes);
        if let Some(in_force) = &mut self.in_force {
            in_force.take_live(&config, is_resized);
            if !in_force.waiting().is_empty() {
                let fields = in_force.waiting().join(", ");
                tracing::warn!(fields, "the configuration file differs until a restart");
            }
        }
        self.ports.regions().set_frames_max(self.settings.pod_memory.frames_max);
        self.stall_after_ns.store(nanoseconds(self.settings.stall_after), Ordering::Relaxed);
        match self.ports.redirect().set_stall_after(self.settings.stall_after) {
            Ok(()) => self.errors.clear("stall.after_ms"),
            Err(error) => self.failed(Reconcile::Configuration, "stall.after_ms", error),
        }
        self.errors.clear_prefix("configuration ");
        self.reconciles.ran(Reconcile::Configuration, began.elapsed());
        self.reconcile().await;
        self.tell_supervisor_ready();
    }

    /// A folder that is not followed any more must not look as if nothing had changed in it. A node
    /// without one never had a source.
    fn note_unfollowed_cluster(&mut self) {
        self.unfollowed.cluster = true;
        let report = self.cluster.report();
        let servers = report.kubernetes.map(|_| "the API servers".to_owned());
        if let Some(source) = report.manifests.folder.or(servers) {
            self.failed(Reconcile::Changes, source, UNFOLLOWED);
        }
    }

    fn note_unfollowed_config(&mut self) {
        self.unfollowed.config = true;
        if self.in_force.is_some() {
            self.failed(Reconcile::Configuration, "the configuration file", UNFOLLOWED);
        }
    }

    /// Reads what workers report.
    async fn drain(&mut self) {
        self.note_stalls();
        self.ports.collect(&self.workers);
        self.forget_left_endpoints();
        self.tend_flow_tables();
        self.log_events();
        self.look_at_watched();
        self.drain_capture();
        let mut asked = false;
        while let Some(request) = self.workers.next_neighbour_request() {
            asked |= self.ask_neighbour(request);
        }
        let concerned = self.workers.tend_census();
        let is_released = self.tend_host_backends();
        if asked || is_released || !concerned.is_empty() {
            self.publisher.concern(concerned);
            self.reconcile().await;
        }
        self.audit_a_little().await;
    }

    async fn housekeep(&mut self) -> Result<(), NodeError> {
        self.workers.maintain();
        self.ports.regions().tend();
        self.look_after_workers()?;
        self.ports.tend_live(self.settings.transmit, &self.workers);
        self.workers.growth_mut().note_rates();
        self.look_at_clock();
        self.note_full_endpoints();
        self.tend_followers();
        self.forget_silent_neighbours();
        self.tell_program();
        self.retry_programs();
        self.retry_flushes();
        self.retry_uplinks().await;
        self.retry_awaited().await;
        self.adopt_admitted().await;
        self.adopt_running_pods().await;
        self.look_after_unread();
        self.note_chain();
        self.follow_health_checks();
        self.mend_host_routes().await;
        self.audit_host_sockets().await;
        self.audit_kube_proxy().await;
        self.note_control_tables();
        self.forget_control_restart();
        self.tell_supervisor();
        Ok(())
    }
}
