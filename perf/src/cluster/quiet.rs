//! `quiet/1M-flows`: established flows while pods and endpoints that none of them concerns come and go.
//!
//! One thread forwards, as in `pipeline`; another does what a control thread does of each event:
//! compiles it in a cluster of full size, asks which flows may be concerned, and publishes the next
//! root. None is an end of any flow here, and a service's endpoints are chosen for new flows only, so
//! that no flow's next packet need ask whether its decision still holds. Events come at
//! [`EVENTS_PER_SECOND`] by the wall clock, and the forwarding thread spends about half of its time
//! on making packets, so a forwarded packet meets twice as many of them.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use control::compile::{Compiled, NodeView};
use control::model::Object;
use control::store::Change;
use dataplane::epochs::Epochs;
use dataplane::flow_ends::{Adoption, Census};
use dataplane::identity::Identity;
use dataplane::lb::{Service, ServiceId, ServiceTable};
use dataplane::tables::Tables;
use dataplane::time::Nanos;
use pinning::CpuId;

use super::synthetic::Size;
use crate::figure::Figure;
use crate::pipeline::node::{Node, Traffic, flow_tables};
use crate::report::Report;
use crate::spread::{Random, Spread};
use crate::workload::Cluster;

const EVENTS_PER_SECOND: u32 = 100;
/// Flow entries that are looked at for their ends with each event.
const CENSUS_ENTRIES: u32 = 1 << 14;
/// Numbers of services that the workload does not use, and where the identities begin that it does
/// not use.
const UNUSED: u32 = 1 << 20;
/// Where pods of the cluster are, away from the workload's.
const ELSEWHERE: u32 = 0x6440_0000;

/// What the flows are and how long they are forwarded.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Flows.
    pub flows: u64,
    /// Packets of a sample.
    pub packets: u64,
    /// Samples of each kind.
    pub runs: u32,
}

/// Roots on their way to the worker, and back to be freed.
#[derive(Default)]
struct Mail {
    published: Mutex<VecDeque<Arc<Tables>>>,
    retired: Mutex<Vec<Arc<Tables>>>,
    adopted: AtomicU64,
    events: AtomicU64,
    /// Events after which every flow had to ask.
    concerning: AtomicU64,
    is_quiet: AtomicBool,
    is_over: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Measures with and without events in turns; the control thread runs on `core`.
pub fn measure(
    bench: &'static str,
    (size, node, compiled): (Size, &NodeView, &mut Compiled),
    load: Load,
    core: CpuId,
    report: &mut Report,
) -> Result<()> {
    report.progress(&format!("{} flows, and events that concern none", load.flows));
    let cluster = Cluster::default();
    let (flow_tables, hold) = flow_tables(load.flows)?;
    let census = Census::of(&flow_tables, Nanos(1));
    let traffic = Traffic::Established(Spread::Uniform);
    let mut worker = Node::with_flows(&cluster, traffic, load.flows, hold);
    worker.establish(&cluster, load.flows)?;
    let mail = Mail { is_quiet: AtomicBool::new(true), ..Mail::default() };
    let mut control = Control::new(size, &cluster, compiled, census)?;
    worker.adopt(Arc::clone(&control.tables));
    let [mut alone, mut disturbed, mut events] = [(); 3].map(|()| Vec::new());
    std::thread::scope(|scope| -> Result<()> {
        let thread = scope.spawn(|| {
            pinning::apply::pin_current_thread(core)?;
            control.go_on(&mail, compiled, node)
        });
        let mut in_turns = || -> Result<()> {
            for _ in 0..load.runs {
                mail.is_quiet.store(true, Ordering::Relaxed);
                alone.push(forward(&mut worker, load.packets, &mail)?);
                mail.is_quiet.store(false, Ordering::Relaxed);
                let (before, began) = (mail.events.load(Ordering::Relaxed), Instant::now());
                disturbed.push(forward(&mut worker, load.packets, &mail)?);
                let came = mail.events.load(Ordering::Relaxed) - before;
                events.push(came as f64 / began.elapsed().as_secs_f64());
            }
            Ok(())
        };
        let outcome = in_turns();
        mail.is_over.store(true, Ordering::Relaxed);
        match thread.join() {
            Ok(ended) => ended.and(outcome),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    let all = mail.events.load(Ordering::Relaxed).max(1) as f64;
    let concerning = [100.0 * mail.concerning.load(Ordering::Relaxed) as f64 / all];
    let rates: Vec<f64> =
        alone.iter().zip(&disturbed).map(|(alone, with)| 100.0 * alone / with).collect();
    for (subject, unit, samples) in [
        ("undisturbed", "ns/packet", &alone),
        ("disturbed", "ns/packet", &disturbed),
        ("rate of undisturbed", "%", &rates),
        ("events", "events/s", &events),
    ] {
        report.add(Figure::of(bench, "quiet/1M-flows", subject, unit, samples))?;
    }
    // What the filter errs in.
    report.add(Figure::of(bench, "quiet/1M-flows", "events that concern", "%", &concerning))?;
    Ok(())
}

/// The mean of all packets: an event may cost only a few of them much.
fn forward(worker: &mut Node, packets: u64, mail: &Mail) -> Result<f64> {
    let mut spent = worker.run_each(packets, |worker| {
        // One at a time, as a worker reads its mail between bursts.
        let next = lock(&mail.published).pop_front();
        if let Some(tables) = next {
            lock(&mail.retired).push(worker.adopt(tables));
            mail.adopted.fetch_add(1, Ordering::Release);
        }
    })?;
    let count = spent.len() as f64;
    Ok(spent.drain(..).sum::<f64>() / count)
}

/// What a control thread has in hand.
struct Control {
    size: Size,
    tables: Arc<Tables>,
    census: Census,
    random: Random,
    /// A service to be put anew, as one is whose endpoints changed.
    service: Option<Arc<Service>>,
}

impl Control {
    /// The workload's tables, in a cluster of full size.
    fn new(size: Size, cluster: &Cluster, compiled: &Compiled, census: Census) -> Result<Self> {
        let mut tables = Tables::clone(cluster.tables());
        let mut identities = (*tables.identities).clone();
        let all = compiled
            .identities
            .exact
            .iter()
            .map(|(_, own)| Identity(UNUSED + own.identity.0).into());
        identities.exact.extend((ELSEWHERE..).map(at).zip(all));
        tables.identities = Arc::new(identities);
        let mut services = (*tables.services).clone();
        add_services(&mut services, compiled);
        tables.services = Arc::new(services);
        tables.epochs = Some(Arc::new(Epochs::beginning_at(tables.generation)));
        let service = compiled.services.services.values().next().cloned();
        ensure!(
            tables.identities.exact.len() >= compiled.identities.exact.len(),
            "addresses clash"
        );
        Ok(Self { size, tables: Arc::new(tables), census, random: Random::new(1), service })
    }

    fn go_on(&mut self, mail: &Mail, compiled: &mut Compiled, node: &NodeView) -> Result<()> {
        let began = Instant::now();
        let pause = Duration::from_secs(1) / EVENTS_PER_SECOND;
        let mut next = Instant::now();
        while !mail.is_over.load(Ordering::Relaxed) {
            next = (next + pause).max(Instant::now());
            if !mail.is_quiet.load(Ordering::Relaxed) {
                self.event(mail, compiled, node);
                lock(&mail.published).push_back(Arc::clone(&self.tables));
                mail.events.fetch_add(1, Ordering::Relaxed);
                let given = mail.events.load(Ordering::Relaxed);
                let worker = Adoption { given, adopted: mail.adopted.load(Ordering::Acquire) };
                let now = Nanos(1).after(began.elapsed());
                let concerned = self.census.tend(now, CENSUS_ENTRIES, &[worker]);
                ensure!(concerned.is_empty(), "flows have ends that none should: {concerned:?}");
            }
            lock(&mail.retired).clear();
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    /// A pod or the endpoints of a service, in turns.
    fn event(&mut self, mail: &Mail, compiled: &mut Compiled, node: &NodeView) {
        let mut tables = Tables::clone(&self.tables);
        if self.random.below(2) == 0 {
            let pod = self.size.pod(self.random.below(self.size.pods), &mut self.random);
            let address = at(ELSEWHERE + self.random.below(self.size.pods) as u32);
            compiled.take(Change::Set(Object::from(pod)));
            compiled.compile(node);
            let other = Identity(UNUSED + self.random.below(1 << 10) as u32);
            Arc::make_mut(&mut tables.identities).exact.insert(address, other.into());
            let (generation, epochs) = self.census.next(&self.tables, [address].into());
            let is_new = generation != tables.generation;
            mail.concerning.fetch_add(u64::from(is_new), Ordering::Relaxed);
            (tables.generation, tables.epochs) = (generation, Some(epochs));
        } else {
            for object in self.size.service(self.random.below(self.size.services), &mut self.random)
            {
                compiled.take(Change::Set(object));
            }
            compiled.compile(node);
            let services = Arc::make_mut(&mut tables.services);
            let number = ServiceId(UNUSED + self.random.below(self.size.services) as u32);
            if let Some(service) = &self.service {
                services.services.insert(number, Arc::new(Service::clone(service)));
            }
        }
        self.tables = Arc::new(tables);
    }
}

fn at(bits: u32) -> IpAddr {
    Ipv4Addr::from_bits(bits).into()
}

fn add_services(table: &mut ServiceTable, compiled: &Compiled) {
    for (number, service) in compiled.services.services.iter() {
        table.services.insert(ServiceId(UNUSED + number.0), Arc::clone(service));
    }
    for (frontend, (number, kind)) in compiled.services.frontends.iter() {
        table.frontends.insert(*frontend, (ServiceId(UNUSED + number.0), *kind));
    }
}
