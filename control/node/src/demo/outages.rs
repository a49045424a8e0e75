//! Three outages under a running download, each of whose bytes is checked as it arrives.

use std::time::{Duration, Instant};

use super::expectation::seconds;
use super::files::Files;
use super::node::Node;
use super::scene::{BALANCER, CLUSTER_IP, FLOOD_SOURCES, HTTP, STRANGER, Scene, to};
use super::{DemoError, Seen, Stage, steps, traffic};
use crate::lab::agent::report::{Fetched, Report, Trouble};
use crate::lab::{Agent, LabError, wait_until};

/// A download's speed, in bytes per second: enough to be hit in its middle by every outage.
const RATE: u64 = 8 << 20;

/// The table that the floods fill, as `xskiff status` names it.
const FLOWS_TABLE: &str = "flows_ipv4";

/// Longest time in which no new connection may work, in milliseconds.
const GAP_AFTER_KILL_MS: u64 = 8_000;
const GAP_MS: u64 = 3_000;

/// How long traffic may go on after the node has died.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the node stays dead before it is started again.
const DEAD: Duration = Duration::from_secs(1);

/// How long the manifests are gone.
const FOLDER_GONE: Duration = Duration::from_secs(3);

/// How long the node may take to complain about manifests, or to be content again.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(8);

/// How long a download may stand still: a server waits up to 3.2 s before it sends again what was
/// lost while the node was dead.
const PATIENCE_AFTER_KILL_MS: u64 = 8_000;
const PATIENCE_MS: u64 = 1_500;

/// How long an outage's download may take beyond its rate.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Drives all three; gives the node process that runs in the end.
///
/// # Errors
/// The node does not start again: nothing can be shown without it.
pub fn run(scene: &Scene, files: &Files, node: Node, stage: &mut Stage) -> Result<Node, DemoError> {
    stage.say("first outage: the node process is killed (SIGKILL) and started again");
    let node = killed(scene, files, node, stage)?;
    stage.say(
        "second outage: a SYN flood, first one that fits the flow table, then one that does not",
    );
    for flood in &FLOODS {
        flooded(scene, &node, flood, stage);
    }
    stage.say("third outage: the manifests folder is gone");
    folder_gone(scene, files, &node, stage);
    Ok(node)
}

/// What runs during an outage, and what of it remains to be asked.
struct Load {
    download: Agent,
    probe: Agent,
    bytes: u64,
}

impl Load {
    /// Starts a download that lasts for `lasting`, and attempts to connect anew all the time.
    fn start(scene: &Scene, lasting: Duration, patience_ms: u64) -> Result<Self, LabError> {
        let bytes = RATE * lasting.as_secs();
        let target = to(BALANCER[0], HTTP[0]);
        let (size, rate) = (format!("--download-bytes={bytes}"), format!("--rate={RATE}"));
        let patience = format!("--timeout-ms={patience_ms}");
        let download = scene.client.agent(&["fetch", &target, &size, &rate, &patience])?;
        download.expect("its first bytes", DOWNLOAD_TIMEOUT, |report| match report {
            Report::Progress { bytes } => (bytes > 0).then_some(()),
            _ => None,
        })?;
        let probe = scene.client.agent(&["probe", &target])?;
        turn(&probe, true, DOWNLOAD_TIMEOUT)?;
        Ok(Self { download, probe, bytes })
    }

    /// Waits for the download's end; gives it with the attempts, their failures and the longest
    /// gap in milliseconds.
    fn end(self) -> Result<(Fetched, Attempts), LabError> {
        let fetched = traffic::next_fetched(&self.download, DOWNLOAD_TIMEOUT)?;
        let reports = self.probe.stop()?;
        let attempts = reports.into_iter().rev().find_map(|stamped| match stamped.report {
            Report::ProbedInAll { attempts, failures, longest_gap_ms } => {
                Some(Attempts { made: attempts, failed: failures, longest_gap_ms })
            }
            _ => None,
        });
        Ok((fetched, attempts.unwrap_or_default()))
    }
}

/// New connections during an outage.
#[derive(Debug, Clone, Copy, Default)]
struct Attempts {
    made: u64,
    failed: u64,
    longest_gap_ms: u64,
}

impl Attempts {
    fn within(self, gap_ms: u64) -> Seen {
        let text = format!(
            "{} of {} worked, longest gap {}",
            self.made - self.failed,
            self.made,
            seconds(self.longest_gap_ms)
        );
        Seen::when(self.made > self.failed && self.longest_gap_ms <= gap_ms, text)
    }
}

/// Waits until new connections begin, or cease, to work; gives why they fail.
fn turn(probe: &Agent, wanted: bool, timeout: Duration) -> Result<Option<Trouble>, LabError> {
    probe.expect("a turn of new connections", timeout, |report| match report {
        Report::Probed { ok, error } => (ok == wanted).then_some(error),
        _ => None,
    })
}

/// The download must be whole, every byte right.
#[must_use]
pub fn whole(fetched: &Fetched, bytes: u64) -> Seen {
    let mib = fetched.bytes >> 20;
    if fetched.ok && fetched.bytes == bytes {
        return Seen::when(true, format!("{mib} MiB, every byte right"));
    }
    Seen::when(
        false,
        format!("{} after {mib} of {} MiB", traffic::word(fetched.error), bytes >> 20),
    )
}

fn killed(scene: &Scene, files: &Files, node: Node, stage: &mut Stage) -> Result<Node, DemoError> {
    let load = Load::start(scene, Duration::from_secs(8), PATIENCE_AFTER_KILL_MS)?;
    let held = steps::hold(scene)?;
    let bytes = load.bytes;
    let mut second = None;
    stage.expect("killed: started again", "ready again, traffic stopped in between", || {
        node.kill();
        let died = Instant::now();
        let stopped = turn(&load.probe, false, STOP_TIMEOUT);
        std::thread::sleep(DEAD.saturating_sub(died.elapsed()));
        let restart = Instant::now();
        second = Some(Node::start(scene, files));
        let ready = super::expectation::milliseconds(restart.elapsed());
        let works = turn(&load.probe, true, NOTICE_TIMEOUT).is_ok();
        let stopped_word = match &stopped {
            Ok(error) => traffic::word(*error),
            Err(_) => "traffic went on".into(),
        };
        let text = format!("{stopped_word} while dead, ready {} after its start", seconds(ready));
        Ok(Seen::when(stopped.is_ok() && works, text))
    });
    let second = second.transpose()?;
    let (fetched, attempts) = load.end()?;
    let new = format!("work again within {}", seconds(GAP_AFTER_KILL_MS));
    stage.expect("killed: new connections", &new, || Ok(attempts.within(GAP_AFTER_KILL_MS)));
    stage.expect("killed: the download's bytes", "none wrong", || {
        let right = fetched.error != Some(Trouble::Corrupted);
        Ok(Seen::when(right, format!("{} MiB arrived and were compared", fetched.bytes >> 20)))
    });
    stage.expect("killed: the established download", "whole, every byte right", || {
        Ok(whole(&fetched, bytes))
    });
    let name = format!("killed: {} held connections", steps::HELD);
    stage.expect(&name, "all go on, no reset", || {
        let counts = steps::end_hold(held)?;
        let (answer, resets) = (counts.answered_last, counts.resets);
        let text = format!("{answer} of {} answer, {resets} resets", steps::HELD);
        Ok(Seen::when(answer == steps::HELD && resets == 0, text))
    });
    second.ok_or_else(|| DemoError::NotReady {
        state: "was not started again".into(),
        within: Duration::ZERO,
        log: String::new(),
    })
}

/// A flood.
struct Flood {
    name: &'static str,
    rate: u64,
    count: u64,
}

/// The demo's flow table has room for 65,536 flows of a family (`deploy/demo/xskiff.yaml`): the
/// first flood fits, the second would fill it if half-open flows did not make room for others.
const FLOODS: [Flood; 2] = [
    Flood { name: "small flood", rate: 20_000, count: 40_000 },
    Flood { name: "large flood", rate: 30_000, count: 90_000 },
];

fn flooded(scene: &Scene, node: &Node, flood: &Flood, stage: &mut Stage) {
    let mut outcome = None;
    let name = |what: &str| format!("{}: {what}", flood.name);
    let lasting = flood.count / flood.rate;
    let expected = format!("{} SYN segments in {lasting} s", flood.count);
    stage.expect(&name("sent through the service"), &expected, || {
        let load = Load::start(scene, Duration::from_secs(lasting + 2), PATIENCE_MS)?;
        let begin = Instant::now();
        let sent = send_flood(scene, flood)?;
        let took = super::expectation::milliseconds(begin.elapsed());
        let bytes = load.bytes;
        outcome = Some((load.end()?, bytes));
        let tables = node.status()?.tables;
        let flows = tables.iter().find(|table| table.name == FLOWS_TABLE);
        let (used, capacity) = flows.map_or((0, 0), |table| (table.high_water, table.capacity));
        let text = format!("{sent} in {}; {used} of {capacity} flows", seconds(took));
        Ok(Seen::when(sent == flood.count, text))
    });
    let Some(((fetched, attempts), bytes)) = outcome else { return };
    stage.expect(&name("the established download"), "whole, every byte right", || {
        Ok(whole(&fetched, bytes))
    });
    let new = format!("no gap above {}", seconds(GAP_MS));
    stage.expect(&name("new connections"), &new, || Ok(attempts.within(GAP_MS)));
}

/// Sends it all; gives how many segments left.
fn send_flood(scene: &Scene, flood: &Flood) -> Result<u64, LabError> {
    let (rate, count) = (format!("--rate={}", flood.rate), format!("--count={}", flood.count));
    let sources = format!("--sources={FLOOD_SOURCES}");
    let target = to(BALANCER[0], HTTP[0]);
    let agent = scene.client.agent(&["flood", &target, &sources, &rate, &count])?;
    agent.expect("its end", DOWNLOAD_TIMEOUT, |report| match report {
        Report::Flooded { sent, refused } => (sent + refused >= flood.count).then_some(sent),
        _ => None,
    })
}

fn folder_gone(scene: &Scene, files: &Files, node: &Node, stage: &mut Stage) {
    let mut outcome = None;
    stage.expect("folder gone: the node says so", "an error in xskiff status", || {
        let load = Load::start(scene, Duration::from_secs(5), PATIENCE_MS)?;
        files.remove_manifests()?;
        let removed = Instant::now();
        let error = complaint(node, true);
        std::thread::sleep(FOLDER_GONE.saturating_sub(removed.elapsed()));
        let bytes = load.bytes;
        outcome = Some((load.end()?, bytes));
        Ok(match error {
            Some(text) => Seen::when(true, text),
            None => Seen::when(false, "no error is listed"),
        })
    });
    let Some(((fetched, attempts), bytes)) = outcome else { return };
    stage.expect("folder gone: the established download", "whole, every byte right", || {
        Ok(whole(&fetched, bytes))
    });
    stage.expect("folder gone: new connections", "as before, by the tables in force", || {
        Ok(attempts.within(GAP_MS))
    });
    stage.expect("folder gone: the forbidden connection", "still timed out", || {
        traffic::forbidden(scene.pod(STRANGER), CLUSTER_IP, HTTP[0])
    });
    stage.expect("folder back: the node says so", "no error any more", || {
        files.write_manifests()?;
        let error = complaint(node, false);
        Ok(Seen::when(error.is_none(), error.unwrap_or_else(|| "no error".into())))
    });
}

/// Waits until the node complains about its manifests, or no more; gives the complaint.
fn complaint(node: &Node, wanted: bool) -> Option<String> {
    let mut error = None;
    wait_until(NOTICE_TIMEOUT, || {
        let Ok(status) = node.status() else { return false };
        let first = status.manifests.errors.first();
        error = first.map(|error| format!("{}: {}", error.object, error.message));
        error.is_some() == wanted
    });
    error
}
