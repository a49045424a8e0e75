//! Looks, now and then, for host processes on L4 ports that we translate to, and names them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::Node;
use super::caught::{Panicked, caught};
use super::reconciles::Reconcile;
use crate::host_sockets::{HostSocket, within};

/// How often.
const AUDIT: Duration = Duration::from_secs(10);
/// Sockets named; the rest are counted. Whoever has more has one cause for all.
const NAMED_MAX: usize = 8;

type Outcome = Result<Result<Vec<HostSocket>, (&'static str, std::io::Error)>, Panicked>;

/// The audit that runs, and what the last one found.
#[derive(Debug, Default)]
pub(super) struct SocketAudit {
    begun: Option<Instant>,
    running: Option<JoinHandle<Outcome>>,
    /// Objects of its errors.
    noted: BTreeSet<String>,
}

impl Node {
    /// Takes in what an audit found, and begins the next when it is time. The kernel's lists may
    /// be long: they are read on another thread.
    pub(super) async fn audit_host_sockets(&mut self) {
        match self.socket_audit.running.take() {
            Some(audit) if audit.is_finished() => {
                // The task only waits for what `caught` gives.
                if let Ok(outcome) = audit.await {
                    self.note_host_sockets(outcome);
                }
            }
            unfinished => self.socket_audit.running = unfinished,
        }
        let is_due = self.socket_audit.begun.is_none_or(|begun| begun.elapsed() >= AUDIT);
        if is_due && self.socket_audit.running.is_none() {
            let range = self.settings.snat.l4_ports.clone();
            self.socket_audit.begun = Some(Instant::now());
            self.socket_audit.running = Some(tokio::spawn(caught(move || within(&range))));
        }
    }

    fn note_host_sockets(&mut self, outcome: Outcome) {
        let took = self.socket_audit.begun.map(|begun| begun.elapsed()).unwrap_or_default();
        self.reconciles.ran(Reconcile::HostSockets, took);
        let range = &self.settings.snat.l4_ports;
        let advice = format!(
            "is on an L4 port that is ours ({}-{}): what comes for it is taken for translated \
             traffic and dropped as no-flow; move it, or give nat.l4_port_first and \
             nat.l4_port_last another range",
            range.start(),
            range.end()
        );
        let mut found: Vec<(String, String)> = Vec::new();
        match outcome {
            Ok(Ok(sockets)) => {
                let named = sockets.iter().take(NAMED_MAX);
                found.extend(named.map(|socket| (format!("socket {socket}"), advice.clone())));
                if let Some(more) = sockets.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
                    found.push((format!("{more} more sockets"), advice));
                }
            }
            Ok(Err((path, error))) => found.push((path.to_owned(), error.to_string())),
            Err(panicked) => found.push(("the audit of sockets".into(), panicked.to_string())),
        }
        let objects: BTreeSet<String> = found.iter().map(|(object, _)| object.clone()).collect();
        for gone in self.socket_audit.noted.difference(&objects) {
            self.errors.clear(gone);
        }
        self.socket_audit.noted = objects;
        for (object, message) in found {
            self.failed(Reconcile::HostSockets, object, message);
        }
    }
}
