//! Requests to add an endpoint, from their arrival until the pod is reachable and policed.
//!
//! Each goes through steps: what waits for the kernel is done by the threads of a [`Pool`], what
//! touches the node's own state by the control thread, which never waits in between.
//!
//! | step | where |
//! |---|---|
//! | it waits, until fewer than [`UNDER_WAY_MAX`] are under way and none of them is in its way | |
//! | what is over is taken away, the rest may be in its way: refused; a number is taken | control |
//! | the interface is looked at ([`Look`]) | pool |
//! | what will be changed is recorded, for all that were looked at meanwhile by one write | control |
//! | offloads and source validation are changed, sockets bound | pool |
//! | workers and the program are given the sockets | control |
//! | the program is attached | pool |
//! | tables, XDP maps and routes are made, for all that were attached meanwhile at once | control |
//! | every worker has adopted them: whoever asked is answered | control |
//!
//! So many at once cost little more than a few, and none is refused for coming at a bad time. Requests
//! are begun in the order in which they came, but for those that must wait for another one: of the same
//! pod, interface or address, or for sockets that are being closed.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use control::admin::arrivals::ArrivalsStatus;
use control::admin::{AddStep, AdminError, EndpointAdd, Reply};
use control::config::Segments;
use dataplane::counters::PORTS_MAX;
use dataplane::port::PortId;
use tokio::sync::mpsc;
use xdp_redirect::loader::Attaching;

use super::Node;
use super::endpoint_record::{Changed, Recorded};
use super::endpoints::{Admission, Endpoint, EndpointSpec};
use super::local_pods::{BEFORE, LETTING_GO, Look, PodLook, Prepared, give_back, prepare};
use super::reconciles::Reconcile;
use crate::admin_server::Call;
use crate::netlink::queueing::Queueing;
use crate::pool::Pool;
use crate::ports::{self, Bound, PortError, PortRequest, Serving, Tools};
use crate::privileges;

mod asked;
mod lost;
mod removals;

pub(super) use asked::Asked;
pub(super) use removals::is_removal;

/// Requests that may wait: as many as there may be ports.
pub const ARRIVALS_MAX: usize = PORTS_MAX;
/// Requests that are carried out at once.
pub const UNDER_WAY_MAX: usize = 16;
/// Threads that look, bind and attach. Few of them compute at once: they wait for the kernel.
const THREADS: usize = 4;
/// How long workers may take to adopt a port's tables, where it takes them a tick; then whoever
/// asked is answered all the same, since a stalled worker's share is dropped by the XDP program.
const ADOPTING: Duration = Duration::from_secs(5);

/// What a thread of the pool brought.
enum Outcome {
    /// Nothing: it panicked.
    Lost,
    Looked(Result<Look, AdminError>),
    Bound(Result<(Prepared, Bound), AdminError>),
    Attached(Box<Serving>, Result<Attaching, PortError>),
}

/// Where a request is.
enum Step {
    /// In the hands of the control thread, which leaves none in them but by a panic.
    InHand,
    /// A thread has it, or it waits for one.
    Away,
    /// Tables with it are published: what each worker is to have adopted.
    Adopting(Vec<u64>, Instant),
}

/// A request.
struct Arrival {
    number: u64,
    spec: EndpointSpec,
    asked: mpsc::Sender<Reply>,
    came: Instant,
    begun: Option<Instant>,
    step: Step,
    port: Option<PortId>,
    changed: Changed,
    queueing: Queueing,
    prepared: Prepared,
    /// What the record says of it until it is an endpoint.
    recorded: Option<Recorded>,
}

impl Arrival {
    /// Whether the two cannot be carried out at the same time.
    fn is_in_the_way_of(&self, other: &EndpointSpec) -> bool {
        self.spec.name == other.name
            || self.spec.interface == other.interface
            || self.spec.addresses.iter().any(|own| other.addresses.contains(own))
    }
}

/// All requests that are not answered yet.
pub struct Arrivals {
    waiting: VecDeque<Arrival>,
    under_way: Vec<Arrival>,
    /// Requests about endpoints that are under way, until these are done.
    parked: VecDeque<Call>,
    /// `None` once the process ends.
    pool: Option<Pool>,
    sender: mpsc::Sender<(u64, Outcome)>,
    outcomes: mpsc::Receiver<(u64, Outcome)>,
    last_number: u64,
    /// Where the control thread is to panic, by order.
    pub fault: Option<AddStep>,
    /// Counted as things happen.
    pub counts: ArrivalsStatus,
}

impl Arrivals {
    /// None yet.
    pub fn new() -> Self {
        // One outcome of each that is under way at most: no thread waits for room.
        let (sender, outcomes) = mpsc::channel(UNDER_WAY_MAX);
        Self {
            waiting: VecDeque::new(),
            under_way: Vec::new(),
            parked: VecDeque::new(),
            pool: Some(Pool::new("endpoints", THREADS, privileges::settle)),
            sender,
            outcomes,
            last_number: 0,
            fault: None,
            counts: ArrivalsStatus::default(),
        }
    }

    /// What a thread brought next.
    pub async fn outcome(&mut self) -> Option<Brought> {
        self.outcomes.recv().await.map(Brought)
    }

    /// Whether something is waited for that nobody tells of: adoption, or the closing of sockets.
    pub fn must_look(&self) -> bool {
        !self.waiting.is_empty()
            || self.under_way.iter().any(|arrival| matches!(arrival.step, Step::Adopting(..)))
    }

    /// Requests that wait or are under way.
    pub fn lengths(&self) -> (usize, usize) {
        (self.waiting.len(), self.under_way.len())
    }

    /// What the record is to say of those under way.
    pub fn recorded(&self) -> impl Iterator<Item = &Recorded> {
        self.under_way.iter().filter_map(|arrival| arrival.recorded.as_ref())
    }

    /// Puts a request behind those that wait.
    fn let_wait(&mut self, spec: EndpointSpec, asked: mpsc::Sender<Reply>) {
        self.last_number += 1;
        self.waiting.push_back(Arrival {
            number: self.last_number,
            spec,
            asked,
            came: Instant::now(),
            begun: None,
            step: Step::Away,
            port: None,
            changed: Changed::default(),
            queueing: Queueing::default(),
            prepared: Prepared::default(),
            recorded: None,
        });
        let waiting = self.waiting.len() as u64;
        self.counts.waiting_most = self.counts.waiting_most.max(waiting);
    }

    /// Lets threads finish what they have begun, and undoes it. What was recorded stays so.
    pub fn end(&mut self) {
        self.waiting.clear();
        drop(self.pool.take());
        while self.outcomes.try_recv().is_ok() {}
        for arrival in self.under_way.drain(..) {
            give_back(&arrival.spec, &arrival.changed);
        }
    }

    fn give(&mut self, number: u64, job: impl FnOnce() -> Outcome + Send + 'static) {
        let sender = self.sender.clone();
        if let Some(arrival) = self.get_mut(number) {
            arrival.step = Step::Away;
        }
        if let Some(pool) = &self.pool {
            pool.give(move || {
                // One that panicked has told of it; whoever waits for it is told, too.
                let outcome = catch_unwind(AssertUnwindSafe(job)).unwrap_or(Outcome::Lost);
                // The node's end of it goes with the process.
                let _ = sender.try_send((number, outcome));
            });
        }
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut Arrival> {
        self.under_way.iter_mut().find(|arrival| arrival.number == number)
    }

    fn take(&mut self, number: u64) -> Option<Arrival> {
        let place = self.under_way.iter().position(|arrival| arrival.number == number)?;
        Some(self.under_way.swap_remove(place))
    }

    /// The next that can be begun; those whose client has gone are given up on the way.
    fn next(&mut self, is_held: impl Fn(&Arrival) -> bool) -> Option<Arrival> {
        let before = self.waiting.len();
        self.waiting.retain(|arrival| !arrival.asked.is_closed());
        self.counts.abandoned += (before - self.waiting.len()) as u64;
        if self.under_way.len() >= UNDER_WAY_MAX {
            return None;
        }
        let place = (0..self.waiting.len()).find(|place| {
            let arrival = &self.waiting[*place];
            let mut earlier = self.waiting.iter().take(*place).chain(&self.under_way);
            !earlier.any(|other| other.is_in_the_way_of(&arrival.spec)) && !is_held(arrival)
        })?;
        self.waiting.remove(place)
    }

    /// Answers those that wait for a port that is to be removed.
    fn give_up_waiting(&mut self, is_meant: impl Fn(&EndpointSpec) -> bool) -> bool {
        let mut any = false;
        self.waiting.retain(|arrival| {
            let is_meant = is_meant(&arrival.spec);
            if is_meant {
                any = true;
                let detail = format!("endpoint {}: removed before it was added", arrival.spec.name);
                // A client that hung up meanwhile is no matter.
                let _ = arrival.asked.try_send(Reply::Error(AdminError::Conflict { detail }));
                self.counts.abandoned += 1;
            }
            !is_meant
        });
        any
    }
}

/// What a thread of the pool brought, of which request.
pub struct Brought((u64, Outcome));

impl Node {
    /// Has an endpoint added; whoever asked is answered when its pod is reachable and policed.
    ///
    /// # Errors
    /// [`AdminError::Invalid`]; [`AdminError::Busy`] when more wait than there could be ports.
    pub(super) async fn begin_endpoint_add(
        &mut self,
        request: EndpointAdd,
        asked: mpsc::Sender<Reply>,
    ) -> Result<(), AdminError> {
        let spec = EndpointSpec::try_from(request)?;
        let arrivals = &mut self.arrivals;
        if arrivals.waiting.len() >= ARRIVALS_MAX {
            let limit = ARRIVALS_MAX as u64;
            return Err(AdminError::Busy { what: "endpoints to be added".into(), limit });
        }
        arrivals.let_wait(spec, asked);
        self.begin_arrivals().await;
        Ok(())
    }

    /// Begins what can be.
    pub(super) async fn begin_arrivals(&mut self) {
        while let Some(arrival) = {
            let leaving = self.ports.leaving();
            self.arrivals.next(|arrival| {
                ports::index(&arrival.spec.interface)
                    .and_then(|ifindex| leaving.on(ifindex))
                    .is_some_and(|held| held.since.elapsed() < LETTING_GO)
            })
        } {
            self.begin_arrival(arrival).await;
        }
    }

    async fn begin_arrival(&mut self, mut arrival: Arrival) {
        let begun = Instant::now();
        self.arrivals.counts.waited.note(begun - arrival.came);
        arrival.begun = Some(begun);
        arrival.step = Step::InHand;
        let (number, spec) = (arrival.number, arrival.spec.clone());
        let ways = self.settings.ways();
        self.arrivals.under_way.push(arrival);
        self.take_outlived_away(&spec).await;
        match self.admit_arrival(number, &spec) {
            Ok(Admission::Present) => self.answer_arrival(number),
            Ok(Admission::New) => {
                let before = self.arrivals.get_mut(number).map(|arrival| arrival.changed.clone());
                let before = before.unwrap_or_default();
                self.arrivals.give(number, move || Outcome::Looked(Look::at(&spec, ways, &before)));
            }
            Err(error) => self.fail_arrival(number, error),
        }
    }

    fn admit_arrival(&mut self, number: u64, spec: &EndpointSpec) -> Result<Admission, AdminError> {
        let addresses = self.node_addresses(&self.follower.view());
        let Some(arrival) = self.arrivals.get_mut(number) else { return Ok(Admission::Present) };
        // It was waited for, perhaps.
        let name = spec.name.to_string();
        let waits = self.awaited.iter().position(|waits| waits.endpoint.name == name);
        if let Some(waits) = waits.map(|place| self.awaited.remove(place))
            && ports::index(&spec.interface) == Some(waits.ifindex)
        {
            arrival.changed = waits.changed;
        }
        let admitted = self.endpoints.admit(spec, &addresses)?;
        if admitted == Admission::New {
            let reserved = self.ports.reserve(&spec.interface);
            arrival.port = Some(reserved.map_err(|error| port_failed(spec, &error))?);
        }
        Ok(admitted)
    }

    /// Goes on with what threads brought: all that is there, so that what is done for one is done
    /// for all.
    pub(super) async fn go_on(&mut self, first: Brought) {
        let mut brought = vec![first.0];
        while let Ok(more) = self.arrivals.outcomes.try_recv() {
            brought.push(more);
        }
        // Until each has gone on, so that those which a panic leaves are known.
        for (number, _) in &brought {
            if let Some(arrival) = self.arrivals.get_mut(*number) {
                arrival.step = Step::InHand;
            }
        }
        let (mut looked, mut attached) = (Vec::new(), Vec::new());
        for (number, outcome) in brought {
            self.arrivals.fail_by_order(&outcome);
            let Some(spec) = self.arrivals.get_mut(number).map(|arrival| arrival.spec.clone())
            else {
                continue;
            };
            let gone_on = match outcome {
                Outcome::Lost => {
                    self.lose_arrival(number, &spec);
                    continue;
                }
                Outcome::Looked(look) => look
                    .and_then(|look| self.note_look(number, &spec, look))
                    .map(|pod| looked.push((number, pod))),
                Outcome::Bound(bound) => {
                    bound.and_then(|bound| self.serve_arrival(number, &spec, bound))
                }
                Outcome::Attached(serving, outcome) => {
                    let finished = self.ports.finish(&self.workers, *serving, outcome);
                    finished
                        .map_err(|error| port_failed(&spec, &error))
                        .map(|port| attached.push((number, port)))
                }
            };
            if let Err(error) = gone_on {
                self.fail_arrival(number, error);
            }
        }
        self.bind_looked(looked);
        if !attached.is_empty() {
            self.publish_arrivals(&attached).await;
        }
        self.look_after_arrivals().await;
    }

    /// Notes what will be changed; answers what is to be switched at the pod's end.
    fn note_look(
        &mut self,
        number: u64,
        spec: &EndpointSpec,
        look: Look,
    ) -> Result<Option<PodLook>, AdminError> {
        let found = self.judge(spec, &look)?;
        let Some(arrival) = self.arrivals.get_mut(number) else { return Ok(None) };
        arrival.changed.add(&found);
        arrival.queueing = look.queueing;
        if !arrival.changed.is_empty()
            && let Some(ifindex) = ports::index(&spec.interface)
        {
            let (endpoint, changed) = (EndpointAdd::from(spec), arrival.changed.clone());
            arrival.recorded = Some(Recorded { endpoint, ifindex, changed });
        }
        Ok(look.pod)
    }

    /// Records what will be changed, and has it changed and sockets bound.
    fn bind_looked(&mut self, looked: Vec<(u64, Option<PodLook>)>) {
        if looked.is_empty() {
            return;
        }
        // First, so that it is known even if this process is killed before the next line.
        self.record_endpoints();
        let tools = self.ports.tools(&self.workers);
        let segments = self.settings.segments;
        for (number, pod) in looked {
            let Some(arrival) = self.arrivals.get_mut(number) else { continue };
            let (spec, tools) = (arrival.spec.clone(), tools.clone());
            let request = self.pod_port(&spec);
            self.arrivals.give(number, move || {
                let (tools, request) = (&tools, &request);
                Outcome::Bound(prepare_and_bind(&spec, (pod, segments), tools, request))
            });
        }
    }

    /// Hands a port's sockets to workers and program, and has the program attached.
    fn serve_arrival(
        &mut self,
        number: u64,
        spec: &EndpointSpec,
        (prepared, bound): (Prepared, Bound),
    ) -> Result<(), AdminError> {
        let arrival = self.arrivals.get_mut(number);
        let port = arrival.and_then(|arrival| {
            arrival.changed.note(&prepared.switched);
            arrival.prepared = prepared;
            arrival.port
        });
        let Some(port) = port else {
            return Err(AdminError::Failed { detail: "its port has no number".into() });
        };
        let request = self.pod_port(spec);
        let served = self.ports.serve(&self.workers, port, &request, bound);
        let serving = served.map_err(|error| port_failed(spec, &error))?;
        let tools = self.ports.tools(&self.workers);
        self.arrivals.give(number, move || {
            let attached = tools.attach(&request, serving.ifindex());
            Outcome::Attached(Box::new(serving), attached)
        });
        Ok(())
    }

    /// Makes tables, XDP maps and routes with the ports that came.
    async fn publish_arrivals(&mut self, attached: &[(u64, PortId)]) {
        let now = Instant::now();
        for (number, port) in attached {
            let Some(arrival) = self.arrivals.get_mut(*number) else { continue };
            (arrival.recorded, arrival.port) = (None, None);
            let taken = now - arrival.begun.unwrap_or(now);
            let endpoint = Endpoint {
                spec: arrival.spec.clone(),
                port: *port,
                checksums: arrival.prepared.checksums,
                mtu: arrival.prepared.mtu,
                queueing: arrival.queueing.clone(),
                changed: arrival.changed.clone(),
            };
            self.arrivals.counts.made.note(taken);
            self.reconciles.ran(Reconcile::Endpoints, taken);
            self.errors.clear(&format!("endpoint {}", endpoint.spec.name));
            self.insert_endpoint(endpoint);
        }
        self.errors.clear(BEFORE);
        self.record_endpoints();
        self.arrivals.fail_by_order_at(AddStep::Published);
        self.reconcile().await;
        let targets = self.workers.given();
        for arrival in &mut self.arrivals.under_way {
            if attached.iter().any(|(number, _)| *number == arrival.number) {
                arrival.step = Step::Adopting(targets.clone(), now);
            }
        }
    }

    /// Answers for those that every worker has adopted, and begins what can be now.
    pub(super) async fn look_after_arrivals(&mut self) {
        self.ports.collect(&self.workers);
        self.forget_left_endpoints();
        let mut adopted = Vec::new();
        for arrival in &self.arrivals.under_way {
            match &arrival.step {
                Step::Adopting(targets, since) if self.workers.have_adopted(targets) => {
                    self.arrivals.counts.adopted.note(since.elapsed());
                    adopted.push(arrival.number);
                }
                Step::Adopting(_, since) if since.elapsed() > ADOPTING => {
                    let name = arrival.spec.name.to_string();
                    tracing::warn!(endpoint = name, "a worker has not adopted it: it has stalled");
                    self.arrivals.counts.late += 1;
                    adopted.push(arrival.number);
                }
                _ => {}
            }
        }
        for number in adopted {
            self.answer_arrival(number);
        }
        // Also those whose endpoint failed to come.
        self.answer_parked().await;
        self.begin_arrivals().await;
        self.note_control_tables();
    }

    fn answer_arrival(&mut self, number: u64) {
        let Some(arrival) = self.arrivals.take(number) else { return };
        let name = &arrival.spec.name;
        let reply = match self.endpoints.get(name) {
            Some(endpoint) => {
                self.arrivals.counts.added += 1;
                Reply::Endpoint(self.endpoint_info(endpoint))
            }
            None => {
                self.arrivals.counts.failed += 1;
                let detail = format!("endpoint {name}: its interface went away while it was added");
                Reply::Error(AdminError::Failed { detail })
            }
        };
        // A client that hung up meanwhile is no matter: whoever asks again finds it there.
        let _ = arrival.asked.try_send(reply);
    }

    fn fail_arrival(&mut self, number: u64, error: AdminError) {
        let Some(arrival) = self.arrivals.take(number) else { return };
        // Whoever asked is told; the log of errors is for what nobody asked for.
        let (object, message) = (format!("endpoint {}", arrival.spec.name), error.to_string());
        tracing::warn!(object, error = message, "not added");
        self.arrivals.counts.failed += 1;
        self.reconciles.refused(Reconcile::Endpoints, &object, &message);
        if let Some(port) = arrival.port {
            self.ports.abandon(&self.workers, port);
        }
        give_back(&arrival.spec, &arrival.changed);
        self.record_endpoints();
        let _ = arrival.asked.try_send(Reply::Error(error));
    }

    /// How pods' ports come and go.
    pub(super) fn arrivals_status(&self) -> ArrivalsStatus {
        let (waiting, under_way) = self.arrivals.lengths();
        let leaving = self.ports.leaving();
        ArrivalsStatus {
            states: self.endpoint_states(),
            waiting: waiting as u64,
            under_way: under_way as u64,
            with_bypassed_rules: self.with_bypassed_rules(),
            closing_sockets: leaving.sockets() as u64,
            without_memory: self.ports.regions().usage().refused,
            closing_longest_us: u64::try_from(leaving.longest().as_micros()).unwrap_or(u64::MAX),
            ..self.arrivals.counts.clone()
        }
    }
}

fn port_failed(spec: &EndpointSpec, error: &PortError) -> AdminError {
    AdminError::Failed { detail: format!("port {}: {error}", spec.interface) }
}

fn prepare_and_bind(
    spec: &EndpointSpec,
    (pod, segments): (Option<PodLook>, Segments),
    tools: &Tools,
    request: &PortRequest,
) -> Result<(Prepared, Bound), AdminError> {
    let prepared = prepare(spec, pod, segments)?;
    let bound = tools.bind(request).map_err(|error| port_failed(spec, &error))?;
    Ok((prepared, bound))
}

#[cfg(test)]
#[path = "arrivals_tests.rs"]
mod tests;
