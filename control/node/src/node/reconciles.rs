//! What brings one thing in step with another, and how each of those fares: runs, failures, time,
//! and the last error with its object.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use control::admin::kubernetes::KindStatus;
use control::admin::status::{ObjectError, ReconcileStatus};
use control::audit::Audited;
use control::compile::Stage;

use super::Node;
use super::error_log::unix_ms;
use crate::netlink::Failure;

/// What is brought in step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reconcile {
    /// The configuration file becomes settings.
    Configuration,
    /// Changes of the cluster are taken over from their source.
    Changes,
    /// All that is compiled, with the next three in it.
    Compile,
    /// Who an address is.
    Identities,
    /// Who may speak to whom.
    Policy,
    /// Frontends and backends.
    Services,
    /// Pods' interfaces become ports and stop being them.
    Endpoints,
    /// Uplinks and their MTU.
    Interfaces,
    /// To which addresses sources are translated.
    SourceNat,
    /// The kernel's routes and neighbours, with the endpoints, become next hops.
    Forwarding,
    /// Neighbours that the kernel is asked to keep.
    Neighbours,
    /// Tables reach the workers.
    Workers,
    /// The XDP program's maps.
    XdpMaps,
    /// The host's routes and rules that lead to us.
    HostRoutes,
    /// A round of the audit.
    Audit,
    /// Host processes on L4 ports of ours.
    HostSockets,
    /// A kube-proxy beside us, or what is left of one.
    KubeProxy,
    /// The CNI plugin is in the container runtime's chain.
    CniChain,
}

impl Reconcile {
    const ALL: [Self; 18] = [
        Self::Configuration,
        Self::Changes,
        Self::Compile,
        Self::Identities,
        Self::Policy,
        Self::Services,
        Self::Endpoints,
        Self::Interfaces,
        Self::SourceNat,
        Self::Forwarding,
        Self::Neighbours,
        Self::Workers,
        Self::XdpMaps,
        Self::HostRoutes,
        Self::Audit,
        Self::HostSockets,
        Self::KubeProxy,
        Self::CniChain,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Changes => "cluster-changes",
            Self::Compile => "compile",
            Self::Identities => "identities",
            Self::Policy => "policy",
            Self::Services => "services",
            Self::Endpoints => "endpoints",
            Self::Interfaces => "interfaces",
            Self::SourceNat => "source-nat",
            Self::Forwarding => "routes-neighbours",
            Self::Neighbours => "kernel-neighbours",
            Self::Workers => "workers",
            Self::XdpMaps => "xdp-maps",
            Self::HostRoutes => "host-routes",
            Self::Audit => "audit",
            Self::HostSockets => "host-sockets",
            Self::KubeProxy => "kube-proxy",
            Self::CniChain => "cni-chain",
        }
    }
}

impl From<Stage> for Reconcile {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Identities => Self::Identities,
            Stage::Policy => Self::Policy,
            Stage::Services => Self::Services,
        }
    }
}

impl From<Audited> for Reconcile {
    /// Whose table is wrong when the audit finds a difference.
    fn from(audited: Audited) -> Self {
        match audited {
            Audited::Identities => Self::Identities,
            Audited::Policy => Self::Policy,
            Audited::Services => Self::Services,
            Audited::Endpoints => Self::Endpoints,
            Audited::Workers => Self::Workers,
            Audited::Kernel => Self::XdpMaps,
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Count {
    runs: u64,
    failures: u64,
    all: Duration,
    longest: Duration,
    last_error: Option<ObjectError>,
}

/// How each fares, since start.
#[derive(Debug, Default)]
pub(super) struct Reconciles {
    counts: [Count; Reconcile::ALL.len()],
    /// Failures that are not in the log of errors.
    refused: u64,
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Reconciles {
    fn count(&mut self, what: Reconcile) -> &mut Count {
        let place = Reconcile::ALL.iter().position(|one| *one == what).unwrap_or(0);
        &mut self.counts[place]
    }

    /// One run is over, whatever came of it.
    pub(super) fn ran(&mut self, what: Reconcile, took: Duration) {
        let count = self.count(what);
        count.runs += 1;
        count.all += took;
        count.longest = count.longest.max(took);
    }

    /// It failed, with `object`.
    pub(super) fn failed(&mut self, what: Reconcile, object: &str, message: &str) {
        self.failed_at(what, object, message, unix_ms(SystemTime::now()));
    }

    fn failed_at(&mut self, what: Reconcile, object: &str, message: &str, time_unix_ms: u64) {
        let count = self.count(what);
        count.failures += 1;
        let last = count.last_error.take();
        let same = last.filter(|last| last.object == object && last.message == message);
        count.last_error = Some(ObjectError {
            object: object.to_owned(),
            message: message.to_owned(),
            time_unix_ms,
            count: same.map_or(0, |last| last.count) + 1,
        });
    }

    /// It failed, and whoever asked for it was told: no line in the log of errors.
    pub(super) fn refused(&mut self, what: Reconcile, object: &str, message: &str) {
        self.failed(what, object, message);
        self.refused += 1;
    }

    fn failures(&self) -> u64 {
        self.counts.iter().map(|count| count.failures).sum()
    }

    fn rows(&self) -> impl Iterator<Item = ReconcileStatus> {
        Reconcile::ALL.into_iter().zip(&self.counts).map(|(what, count)| ReconcileStatus {
            reconcile: what.label().to_owned(),
            runs: count.runs,
            failures: count.failures,
            microseconds: Some(microseconds(count.all)),
            longest_microseconds: Some(microseconds(count.longest)),
            last_error: count.last_error.clone(),
        })
    }
}

impl Node {
    /// Notes that bringing something in step failed with `object`: a log line, a counter, a line in
    /// `xskiff status`.
    pub(super) fn failed(
        &mut self,
        what: Reconcile,
        object: impl Into<String>,
        message: impl ToString,
    ) {
        let (object, message) = (object.into(), message.to_string());
        self.reconciles.failed(what, &object, &message);
        self.errors.note(object, message);
    }

    /// Takes down what is wrong now, by object, where it was not wrong `before`, and what is well again.
    pub(super) fn failed_anew(
        &mut self,
        what: Reconcile,
        before: &BTreeMap<String, String>,
        wrong: &BTreeMap<String, String>,
    ) {
        for (object, message) in before {
            if wrong.get(object) != Some(message) {
                self.errors.clear(object);
            }
        }
        for (object, message) in wrong {
            if before.get(object) != Some(message) {
                self.failed(what, object.as_str(), message);
            }
        }
    }

    /// How each fares: the node's own, those of the sources of its objects, and what is beside them.
    pub(super) fn reconcile_statuses(&self) -> Vec<ReconcileStatus> {
        let mut rows: Vec<ReconcileStatus> = self.reconciles.rows().collect();
        let follow = self.follower.counts();
        let load = |counter: &std::sync::atomic::AtomicU64| {
            counter.load(std::sync::atomic::Ordering::Relaxed)
        };
        rows.push(ReconcileStatus {
            reconcile: "kernel-view".into(),
            runs: load(&follow.resyncs),
            failures: load(&follow.failures),
            microseconds: Some(load(&follow.resync_microseconds)),
            longest_microseconds: Some(load(&follow.longest_resync_microseconds)),
            last_error: follow.last_failure().map(of_failure),
        });
        let report = self.cluster.report();
        let manifests = &report.manifests;
        if manifests.folder.is_some() {
            rows.push(ReconcileStatus {
                reconcile: "source-manifests".into(),
                runs: manifests.reads,
                failures: manifests.failures,
                microseconds: Some(manifests.read_microseconds),
                longest_microseconds: Some(manifests.longest_read_microseconds),
                last_error: manifests.errors.first().cloned(),
            });
        }
        if let Some(kubernetes) = report.kubernetes.map(|reporter| reporter.status()) {
            rows.extend(kubernetes.kinds.iter().map(of_kind));
            let snapshot = kubernetes.snapshot;
            let error = |message: String| ObjectError {
                object: snapshot.file.clone().unwrap_or_default(),
                message,
                time_unix_ms: 0,
                count: snapshot.failures,
            };
            rows.push(ReconcileStatus {
                reconcile: "snapshot".into(),
                runs: snapshot.writes + snapshot.failures,
                failures: snapshot.failures,
                microseconds: Some(snapshot.write_microseconds),
                longest_microseconds: Some(snapshot.longest_write_microseconds),
                last_error: snapshot.last_error.clone().map(error),
            });
        }
        // Failures that are nobody's of the above: full tables, stalled workers.
        rows.push(ReconcileStatus {
            reconcile: "other".into(),
            failures: (self.errors.failures() + self.reconciles.refused)
                .saturating_sub(self.reconciles.failures()),
            ..ReconcileStatus::default()
        });
        rows
    }
}

fn of_failure(failure: Failure) -> ObjectError {
    let Failure { object, message, at, count } = failure;
    let then = SystemTime::now().checked_sub(at.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH);
    ObjectError { object, message, time_unix_ms: unix_ms(then), count }
}

/// A kind that is followed: lists and events that were applied, and attempts that failed.
fn of_kind(kind: &KindStatus) -> ReconcileStatus {
    ReconcileStatus {
        reconcile: format!("source-{}", kind.kind),
        runs: kind.lists + kind.events,
        failures: kind.failures.iter().map(|(_, count)| count).sum(),
        microseconds: Some(kind.apply_microseconds),
        longest_microseconds: Some(kind.longest_apply_microseconds),
        last_error: kind.last_error.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reconcile_is_a_row_from_the_start_under_a_label_of_its_own() {
        let rows: Vec<_> = Reconciles::default().rows().collect();
        assert_eq!(rows.len(), Reconcile::ALL.len());
        for row in &rows {
            let twins = rows.iter().filter(|other| other.reconcile == row.reconcile).count();
            assert_eq!((twins, row.runs), (1, 0), "{}", row.reconcile);
        }
    }

    #[test]
    fn runs_take_time_and_the_last_error_names_its_object() {
        let mut reconciles = Reconciles::default();
        for milliseconds in [3, 5, 1] {
            reconciles.ran(Reconcile::Policy, Duration::from_millis(milliseconds));
        }
        reconciles.failed_at(Reconcile::Policy, "Pod shop/web", "differs", 1);
        reconciles.failed_at(Reconcile::Policy, "Pod shop/web", "differs", 2);
        let row = |reconciles: &Reconciles| {
            reconciles.rows().find(|row| row.reconcile == "policy").unwrap()
        };
        let told = row(&reconciles);
        assert_eq!((told.runs, told.failures), (3, 2));
        assert_eq!((told.microseconds, told.longest_microseconds), (Some(9_000), Some(5_000)));
        let error = told.last_error.unwrap();
        assert_eq!(
            (error.object.as_str(), error.count, error.time_unix_ms),
            ("Pod shop/web", 2, 2)
        );
        reconciles.failed_at(Reconcile::Policy, "Pod shop/db", "differs", 3);
        assert_eq!(row(&reconciles).last_error.map(|error| error.count), Some(1));
        assert_eq!(reconciles.failures(), 3);
    }
}
