//! The manifests folder, looked at again and again. What it says is sent when all of it is good;
//! otherwise the last good state stays in force, and what is refused is told by object.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use cluster::feed;
use control::admin::reply::ManifestsStatus;
use control::admin::status::ObjectError;
use control::manifests::{Fingerprint, FolderError, ManifestError, Manifests, read};
use control::store::{Change, ClusterState};

use super::caught::{Panicked, caught};
use super::error_log::unix_ms;

/// How often the folder is looked at. A change is read once two looks agree, so that a file that
/// is being written is not read by halves.
const LOOK: Duration = Duration::from_millis(250);
/// Errors of one reading that are told; the rest are counted in the last.
const ERRORS_TOLD_MAX: usize = 64;

/// A node must not start with what a folder says, since a folder that is refused says nothing: no
/// policy would be in force.
#[derive(Debug, thiserror::Error)]
#[error("manifests of {folder}: {}", told.join("; "))]
pub struct RefusedAtStart {
    folder: String,
    told: Vec<String>,
}

/// Reads `folder` once, so that a node starts with what it says, and follows it from then on.
///
/// # Errors
/// [`RefusedAtStart`] when its first reading fails, naming every object that is wrong.
pub async fn watch_folder(folder: PathBuf, node: feed::Sender) -> Result<(), RefusedAtStart> {
    let mut follower = Follower::new(folder, read, node);
    let look = follower.look().await;
    follower.read().await;
    let told: Vec<String> = follower
        .status
        .errors
        .iter()
        .map(|error| format!("{}: {}", error.object, error.message))
        .collect();
    if !told.is_empty() {
        return Err(RefusedAtStart { folder: follower.folder.display().to_string(), told });
    }
    tokio::spawn(follower.follow(look));
    Ok(())
}

type Look = Result<Result<Fingerprint, FolderError>, Panicked>;
/// Reads a folder.
type Read = fn(&Path) -> Result<Manifests, Vec<ManifestError>>;

/// Looks at a folder again and again, and sends what changed in it.
struct Follower {
    folder: PathBuf,
    read: Read,
    node: feed::Sender,
    /// What the folder last said that was good.
    in_force: ClusterState,
    status: ManifestsStatus,
}

impl Follower {
    fn new(folder: PathBuf, read: Read, node: feed::Sender) -> Self {
        let status =
            ManifestsStatus { folder: Some(folder.display().to_string()), ..Default::default() };
        Self { folder, read, node, in_force: ClusterState::default(), status }
    }

    async fn look(&self) -> Look {
        let folder = self.folder.clone();
        caught(move || Fingerprint::of(&folder)).await
    }

    async fn follow(mut self, first: Look) {
        let (mut in_force, mut last) = (first.clone(), first);
        while !self.node.is_closed() {
            tokio::time::sleep(LOOK).await;
            let look = self.look().await;
            if look == last && look != in_force {
                self.read().await;
                in_force = look.clone();
            }
            last = look;
        }
    }

    /// A reading that panics is one that is refused: the last good state stays in force, and the
    /// next change is read again.
    async fn read(&mut self) {
        let (path, read) = (self.folder.clone(), self.read);
        let began = Instant::now();
        let outcome = caught(move || read(&path)).await;
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let status = &mut self.status;
        status.reads += 1;
        status.read_microseconds += took;
        status.longest_read_microseconds = status.longest_read_microseconds.max(took);
        match outcome {
            Ok(Ok(manifests)) => self.accept(manifests),
            Ok(Err(errors)) => {
                for error in &errors {
                    tracing::error!(object = error.subject(), %error, "manifest refused");
                }
                self.refuse(told(&errors, unix_ms(SystemTime::now())));
            }
            Err(panicked) => {
                let object = self.folder.display().to_string();
                let message = format!("cannot be read: {panicked}");
                tracing::error!(object, error = message, "manifests refused");
                let time_unix_ms = unix_ms(SystemTime::now());
                self.refuse(vec![ObjectError { object, message, time_unix_ms, count: 1 }]);
            }
        }
    }

    fn accept(&mut self, Manifests { state, ignored }: Manifests) {
        let counts = state.counts();
        self.status.errors.clear();
        self.status.objects =
            counts.into_iter().map(|(kind, n)| (kind.to_owned(), n as u64)).collect();
        tracing::info!(objects = ?counts, ignored = ignored.len(), "manifests in force");
        let changes = self.in_force.changes_to(&state);
        self.in_force = state;
        self.send(changes, Some(Instant::now()));
    }

    fn refuse(&mut self, errors: Vec<ObjectError>) {
        self.status.failures += 1;
        self.status.errors = errors;
        self.send(Vec::new(), None);
    }

    fn send(&self, changes: Vec<Change>, success: Option<Instant>) {
        self.node.send(changes, |report| {
            report.manifests.clone_from(&self.status);
            report.last_success = success.or(report.last_success);
        });
    }
}

fn told(errors: &[ManifestError], time_unix_ms: u64) -> Vec<ObjectError> {
    let mut told: Vec<ObjectError> = errors
        .iter()
        .take(ERRORS_TOLD_MAX)
        .map(|error| {
            let (object, text) = (error.subject(), error.to_string());
            // Where the text begins with what it is about, once is enough.
            let rest = text.strip_prefix(&object).map(|rest| rest.trim_start_matches([':', ' ']));
            let message = rest.unwrap_or(&text).to_owned();
            ObjectError { object, message, time_unix_ms, count: 1 }
        })
        .collect();
    if let (Some(last), Some(more)) = (told.last_mut(), errors.len().checked_sub(ERRORS_TOLD_MAX)) {
        last.count += more as u64;
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMESPACE: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}";

    /// A node that takes what comes.
    struct Node {
        feed: feed::Receiver,
        state: ClusterState,
    }

    impl Node {
        fn new(feed: feed::Receiver) -> Self {
            let mut node = Self { feed, state: ClusterState::default() };
            node.take();
            node
        }

        fn take(&mut self) {
            for change in self.feed.take() {
                self.state.apply(change);
            }
        }

        fn status(&self) -> ManifestsStatus {
            self.feed.report().manifests
        }

        fn has(&self, namespace: &str) -> bool {
            self.state.namespaces.contains_key(namespace)
        }

        async fn until(&mut self, wanted: impl Fn(&Self) -> bool) {
            let waited = tokio::time::timeout(Duration::from_secs(10), async {
                while !wanted(self) {
                    self.feed.changed().await.expect("the source lives");
                    self.take();
                }
            });
            waited.await.expect("in time");
        }
    }

    #[tokio::test]
    async fn a_folder_is_followed_and_an_error_or_its_loss_leaves_the_last_good_state() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("manifests");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("a.yaml"), NAMESPACE).unwrap();
        let (sender, updates) = feed::feed();
        watch_folder(folder.clone(), sender).await.unwrap();
        let mut node = Node::new(updates);
        assert!(node.has("shop"));

        std::fs::write(folder.join("b.yaml"), "{apiVersion: v1, kind: Service, spce: {}}").unwrap();
        node.until(|node| !node.status().errors.is_empty()).await;
        assert!(node.has("shop"));
        assert_eq!(node.status().failures, 1);

        std::fs::remove_dir_all(&folder).unwrap();
        node.until(|node| node.status().failures == 2).await;
        assert!(node.has("shop"));

        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("a.yaml"), NAMESPACE.replace("shop", "bank")).unwrap();
        node.until(|node| node.has("bank")).await;
        assert!(node.status().errors.is_empty() && !node.has("shop"));
        assert_eq!(node.status().objects[0], ("Namespace".to_owned(), 1));
    }

    /// The task that follows the folder ended with the first panic, and nobody heard of it.
    #[tokio::test]
    async fn a_reading_that_panics_is_refused_and_the_folder_is_followed_on() {
        fn fragile(folder: &Path) -> Result<Manifests, Vec<ManifestError>> {
            assert!(!folder.join("bomb.yaml").exists(), "bitten by a bomb");
            read(folder)
        }
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().to_owned();
        std::fs::write(folder.join("a.yaml"), NAMESPACE).unwrap();
        let (sender, updates) = feed::feed();
        let mut follower = Follower::new(folder.clone(), fragile, sender);
        let look = follower.look().await;
        follower.read().await;
        tokio::spawn(follower.follow(look));
        let mut node = Node::new(updates);
        assert!(node.has("shop"));

        std::fs::write(folder.join("bomb.yaml"), NAMESPACE.replace("shop", "bomb")).unwrap();
        node.until(|node| !node.status().errors.is_empty()).await;
        assert!(node.status().errors[0].message.contains("bitten by a bomb"));
        assert!(node.has("shop"), "the last good state stays");

        std::fs::rename(folder.join("bomb.yaml"), folder.join("b.yaml")).unwrap();
        node.until(|node| node.has("bomb")).await;
        assert!(node.status().errors.is_empty());
    }

    /// A node that was started again beside a misspelt policy ran without any.
    #[tokio::test]
    async fn a_folder_that_is_refused_at_start_starts_nothing_and_names_what_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let start = |folder: PathBuf| {
            let (sender, _updates) = feed::feed();
            watch_folder(folder, sender)
        };
        std::fs::write(directory.path().join("a.yaml"), NAMESPACE).unwrap();
        assert!(start(directory.path().to_owned()).await.is_ok());
        let policy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
                      metadata: {name: deny, namespace: shop}, spec: {podSelektor: {}}}";
        std::fs::write(directory.path().join("b.yaml"), policy).unwrap();
        let error = start(directory.path().to_owned()).await.unwrap_err().to_string();
        assert!(
            error.contains("NetworkPolicy shop/deny") && error.contains("podSelektor"),
            "{error}"
        );
        let error = start(directory.path().join("none")).await.unwrap_err().to_string();
        assert!(error.contains("/none") && error.contains("check that it exists"), "{error}");
    }

    #[test]
    fn what_an_error_is_about_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a.yaml")).unwrap();
        std::fs::write(folder.path().join("b.yaml"), b"\xff").unwrap();
        let told = told(&read(folder.path()).unwrap_err(), 0);
        let messages: Vec<&str> = told.iter().map(|error| error.message.as_str()).collect();
        assert!(told[0].object.ends_with("/a.yaml") && told[1].object.ends_with("/b.yaml"));
        assert_eq!(
            messages,
            [
                "is not a regular file: remove or rename it",
                "is not UTF-8 from line 1 on: save it as UTF-8"
            ]
        );
    }

    #[test]
    fn a_thousand_errors_are_told_in_few_lines_and_none_is_forgotten() {
        let errors: Vec<ManifestError> = (0..1000).map(|_| ManifestError::TooMany).collect();
        let told = told(&errors, 0);
        assert_eq!(told.len(), ERRORS_TOLD_MAX);
        assert_eq!(told.iter().map(|error| error.count).sum::<u64>(), 1000);
    }
}
