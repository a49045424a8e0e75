//! Looks, now and then, for a kube-proxy beside this node, or for what one has left, and names it; and with
//! the same look for rules of others that packets pass by once they are redirected, `tc`'s at pods' interfaces
//! included.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use control::admin::status::{BypassedChains, TraceStatus};
use tokio::task::JoinHandle;

use super::Node;
use super::bypassed_rules::{self, Place};
use super::caught::{Panicked, caught};
use super::reconciles::Reconcile;
use crate::kube_proxy::{Looked, Trace, look};
use crate::netlink::queueing::Queueing;

/// How often.
const AUDIT: Duration = Duration::from_secs(30);
/// What the operator is told to do about it.
const ADVICE: &str = "is in the way of services: what the node's own processes send to them is \
                      translated before it comes here; end kube-proxy, then `xskiff kube-proxy \
                      clean` tells what it would remove";

/// What shows of kube-proxy and others' rules, and what `tc` has.
type Outcome = Result<(std::io::Result<Looked>, Vec<(Place, Queueing)>), Panicked>;

/// The look that goes on, and what the last one found.
#[derive(Debug, Default)]
pub(super) struct KubeProxyAudit {
    begun: Option<Instant>,
    running: Option<JoinHandle<Outcome>>,
    found: Vec<Trace>,
    bypassed: BTreeMap<&'static str, u64>,
    /// Objects of its errors.
    noted: BTreeSet<String>,
}

impl Node {
    /// Takes in what was found, and looks again when it is time; on another thread, since a port that
    /// does not answer is waited for.
    pub(super) async fn audit_kube_proxy(&mut self) {
        match self.kube_proxy_audit.running.take() {
            Some(audit) if audit.is_finished() => {
                // The task only waits for what `caught` gives.
                if let Ok(outcome) = audit.await {
                    self.note_kube_proxy(outcome);
                }
            }
            unfinished => self.kube_proxy_audit.running = unfinished,
        }
        let is_due = self.kube_proxy_audit.begun.is_none_or(|begun| begun.elapsed() >= AUDIT);
        if is_due && self.kube_proxy_audit.running.is_none() {
            self.kube_proxy_audit.begun = Some(Instant::now());
            let places = self.places_of_queueing();
            let work = move || (look(), bypassed_rules::look(places));
            self.kube_proxy_audit.running = Some(tokio::spawn(caught(work)));
        }
    }

    fn note_kube_proxy(&mut self, outcome: Outcome) {
        let took = self.kube_proxy_audit.begun.map(|begun| begun.elapsed()).unwrap_or_default();
        self.reconciles.ran(Reconcile::KubeProxy, took);
        let mut failures: Vec<(String, String)> = Vec::new();
        let looked = outcome.map(|(looked, queueing)| {
            self.note_queueing(queueing);
            looked
        });
        match looked {
            Ok(Ok(Looked { traces: found, bypassed })) => {
                self.note_bypassed(bypassed);
                let (certain, others): (Vec<&Trace>, Vec<&Trace>) =
                    found.iter().partition(|trace| trace.kind.is_certain());
                let told = certain.iter().map(|trace| (trace.to_string(), ADVICE.to_owned()));
                failures.extend(told);
                // Once, when it comes.
                for trace in
                    others.into_iter().filter(|one| !self.kube_proxy_audit.found.contains(one))
                {
                    tracing::info!("{trace}");
                }
                self.kube_proxy_audit.found = found;
            }
            Ok(Err(error)) => failures.push(("nftables".into(), error.to_string())),
            Err(panicked) => {
                failures.push(("the look for kube-proxy".into(), panicked.to_string()))
            }
        }
        let objects: BTreeSet<String> = failures.iter().map(|(object, _)| object.clone()).collect();
        for gone in self.kube_proxy_audit.noted.difference(&objects) {
            self.errors.clear(gone);
        }
        self.kube_proxy_audit.noted = objects;
        for (object, message) in failures {
            self.failed(Reconcile::KubeProxy, object, message);
        }
    }

    /// Each owner once, when its first chain comes.
    fn note_bypassed(&mut self, bypassed: BTreeMap<&'static str, u64>) {
        for (owner, chains) in &bypassed {
            if !self.kube_proxy_audit.bypassed.contains_key(owner) {
                let what = "packets of pods and services pass these rules by";
                tracing::warn!(owner, chains, "{what}; `xskiff preflight` says what that means");
            }
        }
        self.kube_proxy_audit.bypassed = bypassed;
    }

    /// Rules of others that packets pass by.
    pub(super) fn bypassed_chains(&self) -> Vec<BypassedChains> {
        let all = self.kube_proxy_audit.bypassed.iter();
        all.map(|(owner, chains)| BypassedChains { owner: (*owner).into(), chains: *chains })
            .collect()
    }

    /// What was found last.
    pub(super) fn kube_proxy_traces(&self) -> Vec<TraceStatus> {
        let found = self.kube_proxy_audit.found.iter();
        found
            .map(|trace| TraceStatus { kind: trace.kind.label().into(), what: trace.what.clone() })
            .collect()
    }
}
