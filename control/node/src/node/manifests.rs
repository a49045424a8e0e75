//! The manifests folder, looked at again and again. What it says is sent when all of it is good;
//! otherwise the last good state stays in force, and what is refused is told by object.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use control::admin::status::ObjectError;
use control::manifests::{Fingerprint, FolderError, ManifestError, Manifests, read};
use tokio::sync::watch;

use super::ClusterUpdate;
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
pub async fn watch_folder(
    folder: PathBuf,
    cluster: watch::Sender<ClusterUpdate>,
) -> Result<(), RefusedAtStart> {
    cluster.send_modify(|update| {
        update.manifests.folder = Some(folder.display().to_string());
    });
    let look = look_at(&folder).await;
    read_into(&folder, read, &cluster).await;
    let told: Vec<String> = cluster
        .borrow()
        .manifests
        .errors
        .iter()
        .map(|error| format!("{}: {}", error.object, error.message))
        .collect();
    if !told.is_empty() {
        return Err(RefusedAtStart { folder: folder.display().to_string(), told });
    }
    tokio::spawn(follow(folder, read, cluster, look));
    Ok(())
}

type Look = Result<Result<Fingerprint, FolderError>, Panicked>;
/// Reads a folder.
type Read = fn(&Path) -> Result<Manifests, Vec<ManifestError>>;

async fn look_at(folder: &Path) -> Look {
    let folder = folder.to_owned();
    caught(move || Fingerprint::of(&folder)).await
}

async fn follow(folder: PathBuf, read: Read, cluster: watch::Sender<ClusterUpdate>, first: Look) {
    let (mut in_force, mut last) = (first.clone(), first);
    while !cluster.is_closed() {
        tokio::time::sleep(LOOK).await;
        let look = look_at(&folder).await;
        if look == last && look != in_force {
            read_into(&folder, read, &cluster).await;
            in_force = look.clone();
        }
        last = look;
    }
}

/// A reading that panics is one that is refused: the last good state stays in force, and the next
/// change is read again.
async fn read_into(folder: &Path, read: Read, cluster: &watch::Sender<ClusterUpdate>) {
    let path = folder.to_owned();
    let outcome = caught(move || read(&path)).await;
    cluster.send_modify(|update| match outcome {
        Ok(outcome) => apply(update, outcome, SystemTime::now()),
        Err(panicked) => {
            let status = &mut update.manifests;
            status.reads += 1;
            status.failures += 1;
            let object = folder.display().to_string();
            let message = format!("cannot be read: {panicked}");
            tracing::error!(object, error = message, "manifests refused");
            let time_unix_ms = unix_ms(SystemTime::now());
            status.errors = vec![ObjectError { object, message, time_unix_ms, count: 1 }];
        }
    });
}

fn apply(
    update: &mut ClusterUpdate,
    outcome: Result<Manifests, Vec<ManifestError>>,
    now: SystemTime,
) {
    let status = &mut update.manifests;
    status.reads += 1;
    match outcome {
        Ok(manifests) => {
            status.errors.clear();
            let counts = manifests.state.counts();
            status.objects =
                counts.into_iter().map(|(kind, n)| (kind.to_owned(), n as u64)).collect();
            update.last_success = Some(Instant::now());
            tracing::info!(objects = ?counts, ignored = manifests.ignored.len(), "manifests in force");
            update.state = Arc::new(manifests.state);
        }
        Err(errors) => {
            status.failures += 1;
            for error in &errors {
                tracing::error!(object = error.subject(), %error, "manifest refused");
            }
            status.errors = told(&errors, unix_ms(now));
        }
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

    async fn until(
        updates: &mut watch::Receiver<ClusterUpdate>,
        wanted: impl Fn(&ClusterUpdate) -> bool,
    ) -> ClusterUpdate {
        let waited = tokio::time::timeout(Duration::from_secs(10), updates.wait_for(|u| wanted(u)));
        waited.await.expect("in time").expect("the source lives").clone()
    }

    #[tokio::test]
    async fn a_folder_is_followed_and_an_error_or_its_loss_leaves_the_last_good_state() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("manifests");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("a.yaml"), NAMESPACE).unwrap();
        let (sender, mut updates) = watch::channel(ClusterUpdate::default());
        watch_folder(folder.clone(), sender).await.unwrap();
        let has = |update: &ClusterUpdate| update.state.namespaces.contains_key("shop");
        assert!(has(&updates.borrow()));

        std::fs::write(folder.join("b.yaml"), "{apiVersion: v1, kind: Service, spce: {}}").unwrap();
        let refused = until(&mut updates, |update| !update.manifests.errors.is_empty()).await;
        assert!(has(&refused));
        assert_eq!(refused.manifests.failures, 1);

        std::fs::remove_dir_all(&folder).unwrap();
        let gone = until(&mut updates, |update| update.manifests.failures == 2).await;
        assert!(has(&gone));

        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("a.yaml"), NAMESPACE.replace("shop", "bank")).unwrap();
        let back = until(&mut updates, |u| u.state.namespaces.contains_key("bank")).await;
        assert!(back.manifests.errors.is_empty() && !has(&back));
        assert_eq!(back.manifests.objects[0], ("Namespace".to_owned(), 1));
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
        let (sender, mut updates) = watch::channel(ClusterUpdate::default());
        let look = look_at(&folder).await;
        read_into(&folder, fragile, &sender).await;
        tokio::spawn(follow(folder.clone(), fragile, sender, look));
        assert!(updates.borrow().state.namespaces.contains_key("shop"));

        std::fs::write(folder.join("bomb.yaml"), NAMESPACE.replace("shop", "bomb")).unwrap();
        let refused = until(&mut updates, |update| !update.manifests.errors.is_empty()).await;
        assert!(refused.manifests.errors[0].message.contains("bitten by a bomb"));
        assert!(refused.state.namespaces.contains_key("shop"), "the last good state stays");

        std::fs::rename(folder.join("bomb.yaml"), folder.join("b.yaml")).unwrap();
        let mended = until(&mut updates, |u| u.state.namespaces.contains_key("bomb")).await;
        assert!(mended.manifests.errors.is_empty());
    }

    /// A node that was started again beside a misspelt policy ran without any.
    #[tokio::test]
    async fn a_folder_that_is_refused_at_start_starts_nothing_and_names_what_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let start = |folder: PathBuf| {
            let (sender, _updates) = watch::channel(ClusterUpdate::default());
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
