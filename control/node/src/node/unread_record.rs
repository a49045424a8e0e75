//! A record of endpoints of which something could not be read: by a binary that is older than the one that
//! wrote it, or because somebody wrote to it.
//!
//! Then the node does not know of each program that a process before has left on an interface whether a pod
//! still needs it. It leaves them all attached: they drop what is the node's, where a pod without one would
//! go past policy. That ends once every pod of this node that the cluster knows is an endpoint again; the
//! node finds them by itself ([`running_pods`](super::running_pods)) or is told of them.

use std::collections::BTreeSet;

use super::Node;
use super::endpoint_record::{Found, Recorded, Remembered, Unread};
use super::local_pods::BEFORE;
use super::reconciles::Reconcile;

/// What was not read, of the process before or of one before that.
#[derive(Debug, Default)]
pub(super) struct UnreadRecord {
    /// Programs that nobody knows stay.
    pub is_any: bool,
    /// Entries of which it is told.
    objects: BTreeSet<String>,
}

impl Node {
    /// Reads what the process before remembered, and keeps aside what cannot be.
    pub(super) fn read_record(&mut self) {
        match self.record.read() {
            Ok(Found { remembered, unread }) => {
                self.awaited.clone_from(&remembered.endpoints);
                self.running_pods.leave_out(remembered.removed.iter().copied());
                if !unread.is_empty() {
                    let kept = self.record.keep_aside();
                    // At once: what could be read must outlive a kill.
                    let kept = kept.and_then(|()| self.record.write(remembered));
                    self.note_aside(kept);
                }
                for Unread { object, why } in unread {
                    let why = format!("its entry in the record cannot be read: {why}");
                    self.failed(Reconcile::Endpoints, object.clone(), why);
                    self.unread.objects.insert(object);
                }
            }
            Err(error) => {
                self.failed(Reconcile::Endpoints, BEFORE, error);
                let kept = self.record.keep_aside();
                self.note_aside(kept);
            }
        }
        self.read_aside();
        self.unread.is_any |= self.record.is_any_aside();
        if self.unread.is_any {
            tracing::warn!("XDP programs stay on interfaces of pods that nobody knows");
        }
    }

    /// Goes on with what an older binary has kept aside, since it could not read it.
    fn read_aside(&mut self) {
        if !self.record.is_any_aside() {
            return;
        }
        let Ok(Found { mut remembered, unread }) = self.record.read_aside() else { return };
        remembered.endpoints.retain(|one| {
            let is_same = |other: &Recorded| {
                other.endpoint.name == one.endpoint.name || other.ifindex == one.ifindex
            };
            !self.awaited.iter().any(is_same)
        });
        let endpoints = remembered.endpoints.len();
        self.awaited.append(&mut remembered.endpoints);
        self.running_pods.leave_out(remembered.removed);
        // It goes only once all of it stands elsewhere.
        if unread.is_empty() && self.record_awaited() {
            tracing::info!(endpoints, "the record that was kept aside is read");
            self.record.forget_aside();
        }
    }

    /// Remembers what is to be taken over; whether that succeeded.
    fn record_awaited(&mut self) -> bool {
        let (endpoints, removed) = (self.awaited.clone(), self.running_pods.removed().clone());
        let written = self.record.write(Remembered { endpoints, removed });
        written.map_err(|error| self.failed(Reconcile::Endpoints, BEFORE, error)).is_ok()
    }

    fn note_aside<E: ToString>(&mut self, kept: Result<(), E>) {
        self.unread.is_any = true;
        if let Err(error) = kept {
            self.failed(Reconcile::Endpoints, BEFORE, error);
        }
    }

    /// Forgets what nobody misses any more, and in the end all of it.
    pub(super) fn look_after_unread(&mut self) {
        if !self.unread.is_any || !self.are_own_pods_known() {
            return;
        }
        let missing: BTreeSet<String> =
            self.unregistered_pods().map(|pod| format!("endpoint {}", pod.name)).collect();
        let objects = std::mem::take(&mut self.unread.objects);
        let (missed, others): (BTreeSet<_>, BTreeSet<_>) =
            objects.into_iter().partition(|object| missing.contains(object));
        others.iter().for_each(|object| self.errors.clear(object));
        self.unread.objects = missed;
        if missing.is_empty() && !self.are_pods_being_adopted() {
            tracing::info!("every pod of this node is an endpoint again");
            self.unread.is_any = false;
            self.record.forget_aside();
            self.errors.clear(BEFORE);
            self.take_over_programs();
        }
    }
}
