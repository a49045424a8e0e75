//! The live picture: rates per port and worker, flows per backend, drops by reason, and the last
//! verdicts with the rule that decided. It knows only what the node says over its admin socket.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use control::admin::status::{PortStatus, WorkerStatus};
use control::admin::{FlowFilter, FlowRecord, Reply, Request, Status, StreamItem};

use super::scene::{self, PODS};
use super::screen::{self, Screen};
use super::{DemoError, SharedScreen};
use crate::cli::client::{Client, ClientError};
use crate::cli::table::{Table, grouped};
use crate::lab::LabError;

/// How often the picture is drawn.
const PERIOD: Duration = Duration::from_millis(500);

/// Verdicts shown.
const VERDICTS: usize = 4;

/// How long to wait before a node that does not answer is asked again.
const RETRY: Duration = Duration::from_millis(200);

/// Draws until it is dropped.
#[derive(Debug)]
pub struct Painter {
    stop: Arc<AtomicBool>,
    screen: SharedScreen,
}

/// The last verdicts, newest last.
type Verdicts = Arc<Mutex<VecDeque<String>>>;

impl Painter {
    /// Begins to ask the node at `socket`, and to draw on `screen`.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(socket: &Path, screen: &SharedScreen) -> Result<Self, DemoError> {
        let stop = Arc::new(AtomicBool::new(false));
        let verdicts = Verdicts::default();
        let follow = {
            let (socket, stop, verdicts) = (socket.to_owned(), stop.clone(), verdicts.clone());
            move || follow(&socket, &stop, &verdicts)
        };
        let paint = {
            let (socket, stop, screen) = (socket.to_owned(), stop.clone(), screen.clone());
            move || paint(&socket, &stop, &verdicts, &screen)
        };
        start_thread("demo-verdicts", follow)?;
        start_thread("demo-picture", paint)?;
        Ok(Self { stop, screen: screen.clone() })
    }
}

impl Drop for Painter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        screen::lock(&self.screen).clear();
    }
}

fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), DemoError> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(work);
    thread.map(drop).map_err(|source| {
        LabError::Io { what: "start a thread for", object: name.into(), source }.into()
    })
}

fn follow(socket: &Path, stop: &AtomicBool, verdicts: &Verdicts) {
    while !stop.load(Ordering::Relaxed) {
        let followed = Client::connect(socket).and_then(|mut client| {
            let request = Request::Flows { filter: FlowFilter::default(), follow: true };
            client.stream(request, |item| {
                if let StreamItem::Flow(record) = item {
                    remember(verdicts, &record);
                }
                Ok::<_, ClientError>(!stop.load(Ordering::Relaxed))
            })
        });
        // A node that was killed answers again once it is started again.
        if followed.is_err() {
            std::thread::sleep(RETRY);
        }
    }
}

fn remember(verdicts: &Verdicts, record: &FlowRecord) {
    // Ends of flows would push out the verdicts that began them.
    if record.verdict == "closed" {
        return;
    }
    let Ok(mut verdicts) = verdicts.lock() else { return };
    let line = verdict_line(record);
    if verdicts.back() == Some(&line) {
        return;
    }
    verdicts.push_back(line);
    while verdicts.len() > VERDICTS {
        verdicts.pop_front();
    }
}

fn verdict_line(record: &FlowRecord) -> String {
    let name = |endpoint: &Option<String>, peer: Option<String>| {
        endpoint.clone().or(peer).unwrap_or_else(|| "?".into())
    };
    let from = name(&record.source_endpoint, record.source.map(|peer| peer.address.to_string()));
    let to = record.service.clone().or_else(|| record.destination.map(|peer| peer.to_string()));
    let protocol = record.protocol.as_deref().unwrap_or("?");
    let reason = record.reason.as_deref().map(|reason| format!(" {reason}")).unwrap_or_default();
    let rule = record.rule.as_deref().unwrap_or("no rule");
    let to = name(&to, None);
    format!("{}{reason}: {protocol} {from} -> {to} by {rule}", record.verdict)
}

/// What the node said at one time.
struct Snapshot {
    at: Instant,
    status: Status,
    flows: Vec<(&'static str, u64)>,
}

fn snapshot(socket: &Path) -> Result<Snapshot, ClientError> {
    let mut status = None;
    if let Reply::Status(answer) = Client::connect(socket)?.ask(Request::Status)? {
        status = Some(*answer);
    }
    let status = status.ok_or(ClientError::Silent)?;
    let backends = PODS.iter().filter(|plan| plan.serves);
    let flows = backends.map(|plan| {
        let counts = plan.addresses.map(|own| {
            let address = Some(scene::address(own));
            let filter = FlowFilter { address, ..FlowFilter::default() };
            Client::connect(socket)?.ask(Request::CtCount { filter })
        });
        let count = |reply: &Result<Reply, ClientError>| match reply {
            Ok(Reply::Count(count)) => *count,
            _ => 0,
        };
        (plan.name, counts.iter().map(count).sum())
    });
    Ok(Snapshot { at: Instant::now(), flows: flows.collect(), status })
}

fn paint(socket: &Path, stop: &AtomicBool, verdicts: &Verdicts, screen: &Mutex<Screen>) {
    let mut before: Option<Snapshot> = None;
    while !stop.load(Ordering::Relaxed) {
        let now = snapshot(socket);
        let (picture, plain) = match (&before, &now) {
            (Some(before), Ok(now)) => {
                let verdicts = verdicts.lock().map(|kept| kept.clone()).unwrap_or_default();
                (draw(before, now, &verdicts), plain(before, now))
            }
            (None, Ok(_)) => (vec!["node     answers".into()], "the node answers".into()),
            (_, Err(_)) => (vec!["node     does not answer".into()], "no answer".into()),
        };
        // Asked again: the screen may have been cleared while the node was thinking.
        if !stop.load(Ordering::Relaxed) {
            screen::lock(screen).show(picture, &plain);
        }
        before = now.ok();
        std::thread::sleep(PERIOD);
    }
}

/// Change a second; a counter that went back belongs to a process that was started again.
fn rate(before: u64, now: u64, passed: Duration) -> u64 {
    let change = u128::from(now.saturating_sub(before));
    u64::try_from(change * 1000 / passed.as_millis().max(1)).unwrap_or(u64::MAX)
}

fn draw(before: &Snapshot, now: &Snapshot, verdicts: &VecDeque<String>) -> Vec<String> {
    let passed = now.at.saturating_duration_since(before.at);
    let verdict = &now.status.verdict;
    let mut lines = vec![String::new(), format!("node     {}", verdict.summary)];
    lines.extend(ports(&before.status.ports, &now.status.ports, passed));
    lines.extend(now.status.workers.iter().map(|worker| {
        let old = before.status.workers.iter().find(|old| old.worker == worker.worker);
        worker_line(old, worker, passed)
    }));
    let flows: Vec<_> = now.flows.iter().map(|(name, count)| format!("{name} {count}")).collect();
    lines.push(format!("flows    {}", flows.join("   ")));
    lines.push(format!("drops    {}", drops(&now.status)));
    lines.extend(verdicts.iter().map(|verdict| format!("verdict  {verdict}")));
    lines
}

fn ports(before: &[PortStatus], now: &[PortStatus], passed: Duration) -> Vec<String> {
    let old: BTreeMap<_, _> = before.iter().map(|port| (&port.interface, port)).collect();
    let mut table =
        Table::new(&["port    ", ">received/s", ">sent/s", ">Mbit/s in", ">Mbit/s out"]);
    for port in now {
        let Some(old) = old.get(&port.interface) else { continue };
        let rate = |old, new| rate(old, new, passed);
        table.row([
            port.interface.clone(),
            grouped(rate(old.received_packets, port.received_packets)),
            grouped(rate(old.transmitted_packets, port.transmitted_packets)),
            grouped(rate(old.received_bytes, port.received_bytes) / 125_000),
            grouped(rate(old.transmitted_bytes, port.transmitted_bytes) / 125_000),
        ]);
    }
    table.to_string().lines().map(str::to_owned).collect()
}

fn worker_line(before: Option<&WorkerStatus>, now: &WorkerStatus, passed: Duration) -> String {
    let rate =
        |pick: fn(&WorkerStatus) -> u64| grouped(rate(before.map_or(0, pick), pick(now), passed));
    let core = now.core.map(|core| format!(" on core {core}")).unwrap_or_default();
    format!(
        "worker {}{core}: {} packets/s, {} flows/s, {} handed over/s",
        now.worker,
        rate(|worker| worker.received),
        rate(|worker| worker.flows_created),
        rate(|worker| worker.handed_out),
    )
}

fn drops(status: &Status) -> String {
    let counted = status.drops.iter().filter(|drop| drop.packets > 0);
    let words: Vec<_> =
        counted.map(|drop| format!("{} {}", drop.reason, grouped(drop.packets))).collect();
    if words.is_empty() { "none".into() } else { words.join("   ") }
}

fn plain(before: &Snapshot, now: &Snapshot) -> String {
    let passed = now.at.saturating_duration_since(before.at);
    let received = |status: &Status| status.workers.iter().map(|worker| worker.received).sum();
    let packets = rate(received(&before.status), received(&now.status), passed);
    let flows: Vec<_> = now.flows.iter().map(|(name, count)| format!("{name} {count}")).collect();
    format!(
        "         {} packets/s; flows {}; drops {}",
        grouped(packets),
        flows.join(", "),
        drops(&now.status)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(at: Instant, received: u64) -> Snapshot {
        let port = PortStatus {
            interface: "uplink".into(),
            received_packets: received,
            received_bytes: received * 1000,
            ..PortStatus::default()
        };
        let worker = WorkerStatus { received, core: Some(1), ..WorkerStatus::default() };
        let status = Status { ports: vec![port], workers: vec![worker], ..Status::default() };
        Snapshot { at, status, flows: vec![("web-1", 7)] }
    }

    #[test]
    fn rates_are_per_second_and_never_negative() {
        assert_eq!(rate(100, 200, Duration::from_millis(500)), 200);
        assert_eq!(rate(200, 100, Duration::from_millis(500)), 0);
        assert_eq!(rate(0, 1, Duration::ZERO), 1000);
    }

    #[test]
    fn the_picture_has_ports_workers_backends_drops_and_verdicts() {
        let begin = Instant::now();
        let (before, now) = (snapshot(begin, 0), snapshot(begin + Duration::from_secs(1), 1250));
        let verdicts = VecDeque::from(["dropped policy-ingress: tcp a -> b by c".to_owned()]);
        let picture = draw(&before, &now, &verdicts).join("\n");
        for part in ["uplink", "1 250", "worker 0 on core 1", "web-1 7", "drops    none", "by c"] {
            assert!(picture.contains(part), "{part} is missing in\n{picture}");
        }
    }
}
