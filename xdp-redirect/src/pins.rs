//! Attachments that outlive the process, so that nothing of ours reaches the kernel's own stack
//! between one process and the next.
//!
//! Each interface's link is pinned in the BPF filesystem (usually `/sys/fs/bpf`; mounted if nobody
//! has), in a folder of its network namespace, under the interface's index. The program behind a link keeps its
//! maps, and so what is ours; its sockets have closed with their process, so it drops that. The next
//! process puts its own program in the link's place in one step, which no packet sees
//! ([`crate::Redirect::take_over`]); whatever layout its maps have, it never reads the old ones.
//!
//! A namespace's number is given again after its end, and so is an interface's index. But a link
//! knows when its interface has gone: such pins are removed, of any namespace, by the next process
//! that starts ([`sweep`]).

use std::ffi::{CStr, CString};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::bpf_link::{self, XdpLinkInfo};
use crate::error::Error;
use crate::netlink;

/// Our part of the filesystem.
const FOLDER: &str = "xskiff";
/// `f_type` of the BPF filesystem (`linux/magic.h`).
const BPF_FS_MAGIC: libc::c_long = 0xcafe_4a11;
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// The pins of one network namespace.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
}

impl Pins {
    /// Those of this thread's network namespace, in the BPF filesystem at `root`. Removes pins of
    /// interfaces that are gone.
    ///
    /// # Errors
    /// [`Error::Pins`] when it is neither there nor can be mounted, or refuses.
    pub fn open(root: &Path) -> Result<Self, Error> {
        if mount(root)? && is_private() {
            tracing::warn!(
                path = %root.display(),
                "mounted in a mount namespace of this process's own: XDP programs end with it, unless \
                 the host's BPF filesystem is mounted there before"
            );
        }
        let refuse = |source| Error::Pins { path: root.display().to_string().into(), source };
        let namespace = fs::metadata(OWN_NAMESPACE).map_err(refuse)?.ino();
        sweep(root);
        let folder = root.join(FOLDER).join(namespace.to_string());
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(refuse)?;
        Ok(Self { folder })
    }

    pub(crate) fn path(&self, ifindex: u32) -> PathBuf {
        self.folder.join(ifindex.to_string())
    }

    /// Whether the link that is on this interface is pinned.
    #[must_use]
    pub fn has(&self, ifindex: u32) -> bool {
        let Ok(Some(attached)) = netlink::attached(ifindex) else { return false };
        info(&self.path(ifindex)) == Some(XdpLinkInfo { ifindex, program_id: attached.program_id })
    }

    /// Pins the link that is on this interface, in place of what was pinned for it.
    pub(crate) fn pin(&self, ifindex: u32) -> Result<PathBuf, Error> {
        let path = self.path(ifindex);
        let pin = || {
            let attached = netlink::attached(ifindex)?.ok_or(io::ErrorKind::NotFound)?;
            let wanted = XdpLinkInfo { ifindex, program_id: attached.program_id };
            let link = bpf_link::find(wanted)?;
            remove(&path)?;
            bpf_link::pin(link.as_fd(), &path)
        };
        match pin() {
            Ok(()) => Ok(path),
            Err(source) => Err(Error::Pins { path: path.display().to_string().into(), source }),
        }
    }

    /// Interfaces that a link is pinned for.
    #[must_use]
    pub fn interfaces(&self) -> Vec<u32> {
        let names = entries(&self.folder).into_iter().filter_map(|path| number_of(&path));
        names.filter(|ifindex| self.has(*ifindex)).collect()
    }

    /// Takes the program off an interface that a process before has left it on; says whether it had.
    ///
    /// # Errors
    /// [`Error::Pins`].
    pub fn detach(&self, ifindex: u32) -> Result<bool, Error> {
        let path = self.path(ifindex);
        let refuse = |source| Error::Pins { path: path.display().to_string().into(), source };
        if !self.has(ifindex) {
            return Ok(false);
        }
        let link = bpf_link::open(&path).map_err(refuse)?;
        bpf_link::detach(link.as_fd()).map_err(refuse)?;
        remove(&path).map_err(refuse)?;
        Ok(true)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // Goes if it is empty.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Removes a pin; one that is not there is no error.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the pins of interfaces that are gone, of every network namespace, from the BPF filesystem
/// at `root`.
pub fn sweep(root: &Path) {
    for folder in entries(&root.join(FOLDER)) {
        for pin in entries(&folder) {
            if info(&pin).is_some_and(|info| info.ifindex == 0) {
                tracing::info!(pin = %pin.display(), "its interface is gone: removed");
                let _ = remove(&pin);
            }
        }
        let _ = fs::remove_dir(&folder);
    }
}

/// What the link that is pinned at `path` is on.
fn info(path: &Path) -> Option<XdpLinkInfo> {
    bpf_link::info(bpf_link::open(path).ok()?.as_fd()).ok()?
}

/// Paths in a folder; none when it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).into_iter().flatten();
    read.filter_map(Result::ok).map(|entry| entry.path()).collect()
}

fn number_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.parse().ok()
}

/// Mounts the BPF filesystem at `root`, where it must be mounted nowhere yet; says whether it was not.
///
/// # Errors
/// [`Error::Pins`].
pub fn mount(root: &Path) -> Result<bool, Error> {
    let refuse = |source| Error::Pins { path: root.display().to_string().into(), source };
    let mount = || {
        let place = File::open(root)?;
        // Of two processes that find none, the second shall find the first one's.
        place.lock()?;
        let path = CString::new(root.as_os_str().as_bytes())?;
        if is_mounted(&path)? {
            return Ok(false);
        }
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let (kind, options) = (c"bpf".as_ptr(), c"mode=0700".as_ptr().cast());
        // SAFETY: terminated strings that live through the call.
        match unsafe { libc::mount(kind, path.as_ptr(), kind, flags, options) } {
            0 => Ok(true),
            _ => Err(io::Error::last_os_error()),
        }
    };
    mount().map_err(refuse)
}

fn is_mounted(path: &CStr) -> io::Result<bool> {
    // SAFETY: plain numbers, for which zero is valid.
    let mut told: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated string and a structure that live through the call.
    match unsafe { libc::statfs(path.as_ptr(), &raw mut told) } {
        0 => Ok(told.f_type == BPF_FS_MAGIC),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether this process sees other mounts than the first one of its PID namespace.
fn is_private() -> bool {
    let namespace = |process| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    namespace("self") != namespace("1")
}
