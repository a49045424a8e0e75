//! Keeps the plugin in the runtime's configuration while the node runs: Flannel, Calico and others
//! rewrite their file whenever they start, and without our entry new pods would go past the node.
//!
//! The directory is looked at, not watched: a look costs microseconds, and cannot be missed when a
//! directory is mounted over or is made later. The file is read now and then even when it looks as it did: it
//! may have been rewritten between the moment when our entry was put there and the look that followed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use control::admin::cni::ChainStatus;
use control::text_file::Stamp;
use tokio::sync::watch;
use tokio::time::Instant;

use super::PLUGIN;
use super::conflist::Entry;
use super::files::{self, Chained, CniFileError};
use crate::node::caught::caught;

/// How often it is looked at. A file is read once two looks agree, so that one that is being written
/// is not read by halves: a change is mended after one to two seconds.
const LOOK: Duration = Duration::from_millis(500);
/// How long until the file is read again, or what failed is tried again, though nothing has changed. With the
/// looks before and after it a rewrite is mended within 5 seconds.
const AGAIN: Duration = Duration::from_secs(3);

/// What is looked after.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The runtime's configuration directory.
    pub configurations: PathBuf,
    /// The runtime's directory of plugins.
    pub plugins: PathBuf,
    /// Our entry.
    pub entry: Entry,
}

type Seen = Option<(PathBuf, Option<Stamp>)>;

fn look(directory: &Path) -> Seen {
    let file = files::in_force(directory).ok().flatten()?;
    let stamp = Stamp::of(&file).ok();
    Some((file, stamp))
}

/// Puts the entry there. A chain with a plugin that is not there would let no pod be added.
fn mend(plan: &Plan) -> Result<Chained, CniFileError> {
    let plugin = plan.plugins.join(PLUGIN);
    if let Err(source) = std::fs::metadata(&plugin) {
        return Err(CniFileError::Io { path: plugin, source });
    }
    files::chain(&plan.configurations, &plan.entry)
}

/// Keeps the entry there until nobody wants to know any more.
pub async fn keep(plan: Plan, told: watch::Sender<ChainStatus>) {
    Keeper::new(plan).keep(told).await;
}

struct Keeper {
    plan: Plan,
    status: ChainStatus,
    /// What was seen after the last attempt, and when that was.
    mended: Option<(Seen, Instant)>,
}

impl Keeper {
    fn new(plan: Plan) -> Self {
        let directory = plan.configurations.display().to_string();
        let status = ChainStatus { directory, ..ChainStatus::default() };
        Self { plan, status, mended: None }
    }

    async fn keep(mut self, told: watch::Sender<ChainStatus>) {
        let mut last = None;
        loop {
            let seen = self.look().await;
            if last.as_ref() == Some(&seen) && self.is_due(&seen) {
                self.mend().await;
                self.mended = Some((self.look().await, Instant::now()));
                told.send_if_modified(|shown| {
                    let differs = *shown != self.status;
                    shown.clone_from(&self.status);
                    differs
                });
            }
            if told.is_closed() {
                return;
            }
            last = Some(seen);
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&self) -> Seen {
        let directory = self.plan.configurations.clone();
        caught(move || look(&directory)).await.unwrap_or(None)
    }

    fn is_due(&self, seen: &Seen) -> bool {
        let is_mended = |(mended, at): &(Seen, Instant)| mended == seen && at.elapsed() < AGAIN;
        !self.mended.as_ref().is_some_and(is_mended)
    }

    async fn mend(&mut self) {
        let plan = self.plan.clone();
        let outcome = caught(move || mend(&plan).map_err(|error| error.to_string())).await;
        match outcome.unwrap_or_else(|panicked| Err(panicked.to_string())) {
            Ok(Chained { file, written, cautions }) => self.note(&file, written, &cautions),
            Err(error) => self.refuse(error),
        }
    }

    fn note(&mut self, file: &Path, written: bool, cautions: &[String]) {
        let status = &mut self.status;
        if written {
            status.writes += 1;
            let again = status.chained;
            status.rechains += u64::from(again);
            tracing::info!(file = %file.display(), again, "the CNI plugin is in the chain");
            for caution in cautions {
                tracing::warn!(file = %file.display(), "{caution}");
            }
        }
        status.file = Some(file.display().to_string());
        status.chained = true;
        status.cautions = cautions.to_vec();
        status.error = None;
    }

    /// `chained` stays what it was last known to be, so that mending counts as such.
    fn refuse(&mut self, error: String) {
        self.status.failures += 1;
        if self.status.error.as_ref() != Some(&error) {
            tracing::warn!(error, "the CNI plugin cannot be put into the chain");
        }
        self.status.error = Some(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str =
        "{\"name\":\"pods\",\"cniVersion\":\"1.0.0\",\"plugins\":[{\"type\":\"ptp\"}]}\n";

    struct Kept {
        directory: tempfile::TempDir,
        told: watch::Receiver<ChainStatus>,
    }

    impl Kept {
        fn start(with_plugin: bool) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let plan = Plan {
                configurations: directory.path().join("net.d"),
                plugins: directory.path().to_owned(),
                entry: Entry::default(),
            };
            if with_plugin {
                std::fs::write(directory.path().join(PLUGIN), "").unwrap();
            }
            let (sender, told) = watch::channel(ChainStatus::default());
            tokio::spawn(keep(plan, sender));
            Self { directory, told }
        }

        fn file(&self) -> PathBuf {
            self.directory.path().join("net.d/10-a.conflist")
        }

        fn write(&self, text: &str) {
            std::fs::create_dir_all(self.directory.path().join("net.d")).unwrap();
            std::fs::write(self.file(), text).unwrap();
        }

        async fn until(&mut self, wanted: impl Fn(&ChainStatus) -> bool) -> ChainStatus {
            let waited = tokio::time::timeout(Duration::from_secs(20), async {
                while !wanted(&self.told.borrow_and_update()) {
                    self.told.changed().await.expect("it is kept");
                }
            });
            waited.await.unwrap_or_else(|_| panic!("{:?}", self.told.borrow()));
            self.told.borrow().clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_rewritten_is_chained_again_and_counted() {
        let mut kept = Kept::start(true);
        let waiting = kept.until(|status| status.error.is_some()).await;
        assert!(waiting.error.unwrap().contains("net.d"), "it is not there yet");
        kept.write(LIST);
        let first = kept.until(|status| status.chained).await;
        assert_eq!((first.writes, first.rechains, first.error), (1, 0, None));
        kept.write(LIST);
        let second = kept.until(|status| status.rechains == 1).await;
        assert_eq!((second.writes, second.rechains), (2, 1));
        assert!(std::fs::read_to_string(kept.file()).unwrap().contains(PLUGIN));
        // Broken in between: it is mended and counted once it is whole again.
        kept.write("{");
        kept.until(|status| status.error.is_some()).await;
        assert_eq!(std::fs::read_to_string(kept.file()).unwrap(), "{");
        kept.write(LIST);
        kept.until(|status| status.rechains == 2 && status.error.is_none()).await;
    }

    /// It was never seen: the keeper took what it saw after its own write for what it had written.
    #[tokio::test(start_paused = true)]
    async fn a_rewrite_just_after_our_own_is_mended_within_five_seconds() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("10-a.conflist");
        std::fs::write(directory.path().join(PLUGIN), "").unwrap();
        std::fs::write(&file, LIST).unwrap();
        let (configurations, plugins) = (directory.path().to_owned(), directory.path().to_owned());
        let mut keeper = Keeper::new(Plan { configurations, plugins, entry: Entry::default() });
        keeper.mend().await;
        assert!(keeper.status.chained);
        std::fs::write(&file, LIST).unwrap();
        keeper.mended = Some((keeper.look().await, Instant::now()));
        let (sender, mut told) = watch::channel(ChainStatus::default());
        let began = Instant::now();
        tokio::spawn(keeper.keep(sender));
        told.wait_for(|status| status.rechains == 1).await.unwrap();
        assert!(began.elapsed() <= Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(std::fs::read_to_string(file).unwrap().contains(PLUGIN));
    }

    #[tokio::test(start_paused = true)]
    async fn a_chain_is_not_made_with_a_plugin_that_is_not_there() {
        let mut kept = Kept::start(false);
        kept.write(LIST);
        let refused = kept.until(|status| status.error.is_some()).await;
        assert!(refused.error.unwrap().contains(PLUGIN) && !refused.chained);
        assert_eq!(std::fs::read_to_string(kept.file()).unwrap(), LIST);
        std::fs::write(kept.directory.path().join(PLUGIN), "").unwrap();
        kept.until(|status| status.chained).await;
    }
}
