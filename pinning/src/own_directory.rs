//! A directory that is this process's user's alone.
//!
//! Kubernetes makes a volume's directory with mode 0755 (`hostPath`, `DirectoryOrCreate`) before any
//! container has a say. Nobody but its owner can have put anything there, so that it is closed to others
//! by whoever finds it first. One that others may write stays refused, and so does one in which anything
//! else lies: a mistyped path must not close `/run` to the host.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Why a directory is not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotOwn {
    /// It is another's, or nobody can tell whose.
    #[error("{0}")]
    Unfit(String),
    /// The kernel refuses.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A directory that nobody else gets into.
#[derive(Debug)]
pub struct OwnDirectory {
    /// What it was found by.
    pub file: File,
    /// The mode that it had, where it was closed to others just now.
    pub closed: Option<u32>,
}

impl OwnDirectory {
    /// Makes it (mode 0700) if it is not there, and closes one to others in which nothing lies but what is
    /// called as one of `known`, and in which nobody else may write.
    ///
    /// # Errors
    /// [`NotOwn`]; nothing has changed then.
    pub fn take(path: &Path, known: &[&str]) -> Result<Self, NotOwn> {
        let failed = |action| move |source| NotOwn::Io { action, source };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(failed("make the directory"))?;
        // Looked at and changed by one descriptor: the path may lead elsewhere the next moment.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::ENOTDIR | libc::ELOOP) => NotOwn::Unfit("not a directory".into()),
                _ => NotOwn::Io { action: "open the directory", source },
            })?;
        let metadata = file.metadata().map_err(failed("look at the directory"))?;
        if metadata.uid() != own_user() {
            return Err(NotOwn::Unfit(format!("belongs to user {}", metadata.uid())));
        }
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 == 0 {
            return Ok(Self { file, closed: None });
        }
        let lets_in = || format!("mode {mode:o} lets others in");
        if mode & 0o022 != 0 {
            return Err(NotOwn::Unfit(lets_in()));
        }
        // Only we add to it: what is not there now does not come meanwhile.
        for entry in std::fs::read_dir(path).map_err(failed("list the directory"))? {
            let name = entry.map_err(failed("list the directory"))?.file_name();
            if !known.iter().any(|known| name == **known) {
                let name = name.to_string_lossy();
                return Err(NotOwn::Unfit(format!("{}, and {name} lies there", lets_in())));
            }
        }
        let closed = file.set_permissions(Permissions::from_mode(0o700));
        closed.map_err(failed("close the directory to others"))?;
        Ok(Self { file, closed: Some(mode) })
    }
}

pub(crate) fn own_user() -> u32 {
    // SAFETY: asks for a number, cannot fail (geteuid(2)).
    unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    fn world(mode: u32) -> (tempfile::TempDir, PathBuf) {
        let world = tempfile::tempdir().expect("a directory");
        let path = world.path().join("run");
        std::fs::create_dir(&path).expect("made");
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("mode");
        (world, path)
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("it is there").mode() & 0o7777
    }

    /// As the kubelet makes them; a fresh installation never started.
    #[test]
    fn one_that_others_may_only_look_into_is_closed_to_them() {
        for wide in [0o755, 0o750, 0o711, 0o705] {
            let (_world, path) = world(wide);
            std::fs::create_dir(path.join("known")).expect("made");
            assert_eq!(OwnDirectory::take(&path, &["known"]).expect("closed").closed, Some(wide));
            assert_eq!(mode(&path), 0o700);
            assert_eq!(OwnDirectory::take(&path, &[]).expect("its own").closed, None);
        }
    }

    #[test]
    fn one_that_others_may_write_or_that_holds_other_things_stays_as_it_is_and_is_refused() {
        for (wide, holds, said) in [
            (0o777, None, "mode 777 lets others in"),
            (0o1777, None, "mode 777"),
            (0o770, None, "mode 770"),
            (0o702, None, "mode 702"),
            (0o755, Some("systemd"), "mode 755 lets others in, and systemd lies there"),
        ] {
            let (_world, path) = world(wide);
            holds.map(|name| std::fs::write(path.join(name), "")).transpose().expect("written");
            let refused = OwnDirectory::take(&path, &["known"]).expect_err("refused").to_string();
            assert!(refused.contains(said), "{wide:o}: {refused}");
            assert_eq!(mode(&path), wide);
        }
    }

    #[test]
    fn what_is_no_directory_of_ours_is_refused_and_so_is_a_link_to_one() {
        let (world, path) = world(0o755);
        let link = world.path().join("link");
        symlink(&path, &link).expect("a link");
        let file = world.path().join("file");
        std::fs::write(&file, "").expect("written");
        for other in [&link, &file] {
            assert!(OwnDirectory::take(other, &[]).is_err(), "{other:?}");
        }
        assert_eq!(mode(&path), 0o755, "what the link leads to");
        if own_user() == 0 {
            std::os::unix::fs::chown(&path, Some(65_534), None).expect("given away");
            let refused = OwnDirectory::take(&path, &[]).expect_err("another's").to_string();
            assert!(refused.contains("user 65534"), "{refused}");
        }
    }
}
