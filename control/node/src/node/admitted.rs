//! Pods that were admitted while no node process was there. The plugin has left a file of each in the run
//! directory; it becomes an endpoint like any other, by the way of every [arrival](super::arrivals), and its
//! file goes once it is served.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use control::admin::endpoint::{ADMITTED_BYTES_MAX, ADMITTED_DIRECTORY};
use control::admin::{Admitted, EndpointAdd};
use control::text_file;

use super::Node;
use super::arrivals::Asked;
use super::reconciles::Reconcile;
use crate::ports;

/// Files that are looked at in one go; the rest come a second later.
const ADMITTED_MAX: usize = 256;

/// Those that are being adopted, by their files.
pub(super) type AdmittedPods = Asked<PathBuf>;

impl Node {
    /// Takes in what became of those that are being adopted, and begins with others.
    pub(super) async fn adopt_admitted(&mut self) {
        self.note_admitted();
        let directory = self.settings.run_directory.join(ADMITTED_DIRECTORY);
        // In most cases there is none.
        let Ok(files) = std::fs::read_dir(&directory) else { return };
        let paths = files.flatten().map(|file| file.path());
        let is_word =
            |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
        let new = paths.filter(is_word).filter(|path| !self.admitted.contains(path));
        for path in new.take(ADMITTED_MAX).collect::<Vec<_>>() {
            let Some(request) = self.read_admitted(&path) else { continue };
            match self.ask_for_endpoint(request).await {
                Ok(reply) => self.admitted.insert(path, reply),
                // It is tried again.
                Err(error) => self.failed(Reconcile::Endpoints, object_of(&path), error),
            }
        }
    }

    fn note_admitted(&mut self) {
        for (path, outcome) in self.admitted.take_answered() {
            match outcome {
                Ok(()) => {
                    tracing::info!(path = %path.display(), "adopted");
                    self.attached.adopted += 1;
                    self.errors.clear(&object_of(&path));
                    forget(&path);
                }
                // It is tried again.
                Err(error) => self.failed(Reconcile::Endpoints, object_of(&path), error),
            }
        }
    }

    /// Who was admitted, if there is still something to be served.
    fn read_admitted(&mut self, path: &Path) -> Option<EndpointAdd> {
        let object = object_of(path);
        let read = text_file::read(path, ADMITTED_BYTES_MAX).map_err(|error| error.to_string());
        let decoded = read
            .and_then(|text| Admitted::decode(text.as_bytes()).map_err(|error| error.to_string()));
        match decoded {
            Ok((admitted, unknown)) => {
                if !unknown.is_empty() {
                    tracing::warn!(object, ?unknown, "it has fields that are not known here");
                }
                let (name, interface) = (&admitted.endpoint.name, &admitted.endpoint.interface);
                if admitted.boot_id == self.record.boot_id()
                    && ports::index(interface) == Some(admitted.ifindex)
                {
                    return Some(admitted.endpoint);
                }
                tracing::info!(endpoint = name, interface, "admitted, and its interface is gone");
                forget(path);
            }
            // The pod went meanwhile, and whoever admitted it has taken its word back.
            Err(_) if is_gone(path) => {}
            Err(error) => {
                // Told once: it is removed, so that nothing would ever take the error back.
                tracing::warn!(object, error, "it cannot be read, and is removed");
                self.reconciles.refused(Reconcile::Endpoints, &object, &error);
                forget(path);
            }
        }
        self.errors.clear(&object);
        None
    }
}

/// What errors about one are called.
fn object_of(path: &Path) -> String {
    format!("admitted endpoint {}", path.display())
}

fn is_gone(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Removes what was read; whoever admitted it may have done so first.
fn forget(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot be removed");
    }
}
