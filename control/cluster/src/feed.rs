//! What a source of cluster objects says, on its way to the node.
//!
//! A source (a folder, API servers) sends changes as they come; the node takes all that are
//! waiting at once. Changes of one object that wait together become one, so that a node that is
//! slow does not fall behind: what waits is bounded by the number of objects.

use std::collections::BTreeMap;
use std::collections::btree_map::IntoValues;
use std::iter::{Chain, Flatten};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use std::vec;

use control::admin::reply::ManifestsStatus;
use control::model::ObjectKey;
use control::store::Change;
use tokio::sync::watch;

use crate::follow::standing::Reporter;

/// How a source stands, for people.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Readings of the folder, and refusals.
    pub manifests: ManifestsStatus,
    /// The API servers, where they are the source.
    pub kubernetes: Option<Reporter>,
    /// When the source last said something that could be taken.
    pub last_success: Option<Instant>,
}

/// What waited, the oldest first.
pub type Changes = Chain<Flatten<vec::IntoIter<Vec<Change>>>, IntoValues<ObjectKey, Change>>;

#[derive(Debug, Default)]
struct Waiting {
    /// What was restored, each object once: older than all other changes.
    restored: Vec<Vec<Change>>,
    changes: BTreeMap<ObjectKey, Change>,
    report: Report,
}

/// The source's end.
#[derive(Debug)]
pub struct Sender {
    waiting: Arc<Mutex<Waiting>>,
    turn: watch::Sender<u64>,
}

/// The node's end.
#[derive(Debug, Clone)]
pub struct Receiver {
    waiting: Arc<Mutex<Waiting>>,
    turn: watch::Receiver<u64>,
}

/// The source is gone: nothing will change any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the source of cluster objects is gone")]
pub struct Ended;

/// A feed that nothing waits in.
#[must_use]
pub fn feed() -> (Sender, Receiver) {
    let waiting = Arc::new(Mutex::new(Waiting::default()));
    let (turn, turns) = watch::channel(0);
    (Sender { waiting: Arc::clone(&waiting), turn }, Receiver { waiting, turn: turns })
}

/// What a panic elsewhere left is whole: every change is put in by one step.
fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sender {
    /// Sends changes, and how the source stands since.
    pub fn send(
        &self,
        changes: impl IntoIterator<Item = Change>,
        report: impl FnOnce(&mut Report),
    ) {
        let mut waiting = lock(&self.waiting);
        let changes = changes.into_iter().map(|change| (change.key(), change));
        if waiting.changes.is_empty() {
            // Built at once, where a whole cluster comes.
            waiting.changes = changes.collect();
        } else {
            waiting.changes.extend(changes);
        }
        report(&mut waiting.report);
        drop(waiting);
        self.turn.send_modify(|turn| *turn = turn.wrapping_add(1));
    }

    /// Sends objects of a snapshot, each of which is sent once and before anything else.
    pub fn send_restored(&self, objects: Vec<Change>) {
        lock(&self.waiting).restored.push(objects);
        self.turn.send_modify(|turn| *turn = turn.wrapping_add(1));
    }

    /// Whether nobody takes anything any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.turn.is_closed()
    }
}

impl Receiver {
    /// Waits until something was sent since the last [`Self::take`].
    ///
    /// # Errors
    /// [`Ended`] once the sender is gone and all it sent was taken.
    pub async fn changed(&mut self) -> Result<(), Ended> {
        self.turn.changed().await.map_err(|_| Ended)
    }

    /// Everything that waits.
    pub fn take(&mut self) -> Changes {
        self.turn.mark_unchanged();
        let mut waiting = lock(&self.waiting);
        let restored = std::mem::take(&mut waiting.restored);
        let changes = std::mem::take(&mut waiting.changes);
        restored.into_iter().flatten().chain(changes.into_values())
    }

    /// How the source stood when it last sent.
    #[must_use]
    pub fn report(&self) -> Report {
        lock(&self.waiting).report.clone()
    }
}

#[cfg(test)]
mod tests {
    use control::model::{Kind, Namespace, Object, ObjectName, PolicyMode};

    use super::*;

    fn namespace(name: &str, label: &str) -> Change {
        let labels = [("tier".to_owned(), label.to_owned())].into();
        Change::Set(Object::Namespace(Namespace {
            name: name.into(),
            labels,
            mode: PolicyMode::Enforce,
        }))
    }

    #[tokio::test]
    async fn changes_of_one_object_that_wait_together_are_one_and_the_last() {
        let (sender, mut receiver) = feed();
        sender.send([namespace("shop", "one"), namespace("bank", "one")], |_| {});
        let gone = Change::Gone(ObjectKey::new(Kind::Namespace, ObjectName::new("", "bank")));
        sender.send([namespace("shop", "two"), gone.clone()], |_| {});
        receiver.changed().await.unwrap();
        assert!(receiver.take().eq([gone, namespace("shop", "two")]));
        assert_eq!(receiver.take().count(), 0);
        sender.send([], |report| report.manifests.reads = 3);
        receiver.changed().await.unwrap();
        assert_eq!((receiver.take().count(), receiver.report().manifests.reads), (0, 3));
    }

    #[tokio::test]
    async fn what_was_restored_comes_before_what_changed_since() {
        let (sender, mut receiver) = feed();
        let first = [["bank", "one"], ["shop", "one"]].map(|[name, label]| namespace(name, label));
        first.iter().for_each(|object| sender.send_restored(vec![object.clone()]));
        sender.send([namespace("bank", "two")], |_| {});
        receiver.changed().await.unwrap();
        assert!(receiver.take().eq(first.into_iter().chain([namespace("bank", "two")])));
        assert_eq!(receiver.take().count(), 0);
    }

    #[tokio::test]
    async fn what_a_source_sent_before_it_ended_is_still_taken() {
        let (sender, mut receiver) = feed();
        sender.send([namespace("shop", "one")], |_| {});
        drop(sender);
        receiver.changed().await.unwrap();
        assert_eq!(receiver.take().count(), 1);
        assert_eq!(receiver.changed().await, Err(Ended));
    }
}
