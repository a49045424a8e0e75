//! The audit at work: a little of it in every turn of the control thread, the kernel's side and the
//! workers' at the end of each round; what differs is named, counted and mended.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use control::admin::reply::{AuditDifference, AuditReport, Reply};
use control::admin::status::AuditStatus;
use control::audit::{Audited, Auditor, Difference, Moment, Round, check_endpoint};
use control::store::Change;
use tokio::sync::mpsc;

use super::Node;
use super::reconciles::Reconcile;

/// Spent on it in each turn of [`super::DRAIN`]: a hundredth of the control thread's core.
const BUDGET: Duration = Duration::from_micros(100);
/// The same while somebody waits for the outcome.
const BUDGET_ASKED: Duration = Duration::from_millis(5);
/// From the end of a round to the next one's beginning.
const PAUSE: Duration = Duration::from_secs(10);
/// Clients that wait for a round, at most.
pub(super) const WAITING_MAX: usize = 16;
/// What its lines in the error log begin with.
const OBJECT: &str = "audit: ";

/// The audit, and what it has found since the process began.
#[derive(Default)]
pub(super) struct Audit {
    auditor: Auditor,
    /// When the round that runs began; `None` between rounds.
    begun: Option<Instant>,
    ended: Option<Instant>,
    /// Clients that wait for the round that runs.
    waiting: Vec<mpsc::Sender<Reply>>,
    rounds: u64,
    repairs: u64,
    last: Round,
    last_took: Duration,
    found: BTreeMap<Audited, u64>,
}

impl Audit {
    /// Notes what changes, before it is in force.
    pub(super) fn note(&mut self, change: &Change) {
        self.auditor.note(change);
    }
}

impl Node {
    /// Begins a round at once, in larger steps, and answers when it is over.
    pub(super) fn begin_audit(&mut self, client: &mpsc::Sender<Reply>) -> Option<Reply> {
        let audit = &mut self.audit;
        if audit.waiting.len() >= WAITING_MAX {
            let detail = format!("{WAITING_MAX} clients wait for an audit already: ask again");
            return Some(Reply::Error(control::admin::AdminError::Failed { detail }));
        }
        if audit.waiting.is_empty() {
            // One that runs may have passed by what the client asks about.
            (audit.auditor, audit.begun) = (Auditor::default(), Some(Instant::now()));
        }
        audit.waiting.push(client.clone());
        None
    }

    /// Goes on with the round that runs, or begins the next when it is time.
    pub(super) async fn audit_a_little(&mut self) {
        let audit = &mut self.audit;
        if audit.begun.is_none() {
            if audit.ended.is_some_and(|ended| ended.elapsed() < PAUSE) {
                return;
            }
            audit.begun = Some(Instant::now());
        }
        let budget = if audit.waiting.is_empty() { BUDGET } else { BUDGET_ASKED };
        let now = Instant::now();
        let compiled = self.publisher.compiled();
        let (state, node, tables) = (compiled.state(), compiled.node(), self.publisher.tables());
        let moment = Moment { state, node, compiled, tables };
        let over = audit.auditor.step(&moment, || now.elapsed() >= budget);
        if let Some(round) = over {
            self.end_round(round).await;
        }
    }

    async fn end_round(&mut self, mut round: Round) {
        self.audit_endpoints(&mut round);
        self.audit_workers(&mut round);
        let is_program_unlike = self.audit_rules(&mut round);
        let is_new = |object: &str| round.differences.iter().all(|one| one.object != object);
        for old in &self.audit.last.differences {
            if is_new(&old.object) {
                self.errors.clear(&format!("{OBJECT}{}", old.object));
            }
        }
        for one in &round.differences {
            *self.audit.found.entry(one.audited).or_default() += 1;
            let detail = format!("{} ({})", one.detail, one.audited.label());
            self.failed(one.audited.into(), format!("{OBJECT}{}", one.object), detail);
        }
        let report = AuditReport {
            checked: round.checked,
            found: round.found,
            differences: round
                .differences
                .iter()
                .map(|one| AuditDifference {
                    audited: one.audited.label().into(),
                    object: one.object.clone(),
                    detail: one.detail.clone(),
                })
                .collect(),
        };
        for client in std::mem::take(&mut self.audit.waiting) {
            // A client that hung up meanwhile is no matter.
            let _ = client.try_send(Reply::Audit(report.clone()));
        }
        let audit = &mut self.audit;
        // What making everything anew has not mended it will not mend: every flow would be judged
        // again in each round, for nothing.
        let (found, before) = (of_tables(&round), of_tables(&audit.last));
        let are_tables_unlike = !found.is_empty() && found != before;
        let some_lag = round.differences.iter().any(|one| one.audited == Audited::Workers);
        audit.rounds += 1;
        audit.last_took = audit.begun.take().map_or(Duration::ZERO, |begun| begun.elapsed());
        self.reconciles.ran(Reconcile::Audit, audit.last_took);
        audit.ended = Some(Instant::now());
        let absent = round.absent_targets.still(&audit.last.absent_targets);
        audit.last = round;
        audit.repairs += u64::from(are_tables_unlike || is_program_unlike);
        if are_tables_unlike {
            self.repair().await;
        } else if is_program_unlike {
            self.told = None;
            self.tell_program();
        }
        if some_lag {
            self.workers.maintain();
            self.workers.wake();
        }
        self.publisher.warn_of_targets(&absent);
        self.log_fresh_warnings();
    }

    /// Makes tables anew from what is known, and all that follows from them.
    async fn repair(&mut self) {
        self.publisher.begin_anew();
        self.told = None;
        self.reconcile().await;
    }

    /// Local endpoints: who may speak through their ports, and the ways to them.
    fn audit_endpoints(&self, round: &mut Round) {
        for endpoint in self.endpoints.iter() {
            round.checked += 1;
            let (tables, spec) = (self.publisher.tables(), &endpoint.spec);
            if let Err(detail) = check_endpoint(tables, endpoint.port, &spec.addresses) {
                round.note(Audited::Endpoints, format!("Pod {}", spec.name), detail);
            }
        }
    }

    /// Workers that have had time to adopt what was published last.
    fn audit_workers(&self, round: &mut Round) {
        for (worker, behind) in self.workers.behind(self.settings.stall_after).iter().enumerate() {
            round.checked += 1;
            if let Some(tables) = behind {
                let detail = format!("has not adopted {tables} of the tables published");
                round.note(Audited::Workers, format!("worker {worker}"), detail);
            }
        }
    }

    /// What the XDP program's maps hold, read back from the kernel; whether that is anything else than
    /// they were told. What was read is what is known of them from then on, so that they must be told
    /// again each time: no later round would find it.
    fn audit_rules(&mut self, round: &mut Round) -> bool {
        round.checked += 1;
        let told = self.ours.read_back(self.ports.redirect());
        let told = told.unwrap_or_else(|error| vec![error.to_string()]);
        let is_unlike = !told.is_empty();
        for detail in told {
            round.note(Audited::Kernel, "XDP rules", detail);
        }
        is_unlike
    }

    /// How the audit stands, for people and metrics.
    pub(super) fn audit_status(&self) -> AuditStatus {
        let audit = &self.audit;
        AuditStatus {
            rounds: audit.rounds,
            repairs: audit.repairs,
            checked: audit.last.checked,
            found: audit.last.found,
            seconds: audit.last_took.as_secs_f64(),
            seconds_since: audit.ended.map(|ended| ended.elapsed().as_secs()),
            differences: Audited::ALL
                .into_iter()
                .map(|one| (one.label().to_owned(), audit.found.get(&one).copied().unwrap_or(0)))
                .collect(),
        }
    }
}

/// Differences that making everything anew may mend. A worker that lags is told again, and so is the XDP
/// program: tables made anew would be more that it has not adopted.
fn of_tables(round: &Round) -> Vec<&Difference> {
    let is_of_tables = |audited| !matches!(audited, Audited::Workers | Audited::Kernel);
    round.differences.iter().filter(|one| is_of_tables(one.audited)).collect()
}
