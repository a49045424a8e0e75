//! Attachments that outlive the process, so that nothing of ours reaches the kernel's own stack
//! between one process and the next.
//!
//! Each interface's link is pinned in the BPF filesystem (usually `/sys/fs/bpf`; mounted if nobody
//! has) as `xskiff-NAMESPACE-INTERFACE`, by the numbers of the network namespace and the interface. The program behind a link keeps its
//! maps, and so what is ours; its sockets have closed with their process, so it drops that. The next
//! process puts its own program in the link's place in one step, which no packet sees
//! ([`crate::Redirect::take_over`]); whatever layout its maps have, it never reads the old ones.
//!
//! A namespace's number is given again after its end, and so is an interface's index. But a link
//! knows when its interface has gone: such pins are removed, of any namespace, by the next process
//! that starts ([`sweep`]).

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::xdp::XdpLink;

use crate::bpf_link::{self, XdpLinkInfo};
use crate::error::{Error, io_error};
use crate::netlink;

/// What the names of our pins begin with.
const PREFIX: &str = "xskiff-";
/// `f_type` of the BPF filesystem (`linux/magic.h`).
const BPF_FS_MAGIC: libc::c_long = 0xcafe_4a11;
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// The pins of one network namespace.
#[derive(Debug, Clone)]
pub struct Pins {
    root: PathBuf,
    /// What their names begin with.
    prefix: String,
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
        Ok(Self { root: root.to_owned(), prefix: format!("{PREFIX}{namespace}-") })
    }

    pub(crate) fn path(&self, ifindex: u32) -> PathBuf {
        self.root.join(format!("{}{ifindex}", self.prefix))
    }

    /// Whether the link that is on this interface is pinned.
    #[must_use]
    pub fn has(&self, ifindex: u32) -> bool {
        let Ok(Some(attached)) = netlink::attached(ifindex) else { return false };
        info(&self.path(ifindex)) == Some(XdpLinkInfo { ifindex, program_id: attached.program_id })
    }

    /// Pins the link to this interface, in place of what was pinned for it. A link that cannot be
    /// pinned is gone.
    pub(crate) fn pin(&self, ifindex: u32, link: XdpLink) -> Result<(XdpLink, PathBuf), Error> {
        let path = self.path(ifindex);
        let refuse = |source| Error::Pins { path: path.display().to_string().into(), source };
        let failed = |error: &(dyn std::error::Error + 'static)| refuse(io_error(error));
        remove(&path).map_err(refuse)?;
        let link = FdLink::try_from(link).map_err(|error| failed(&error))?;
        let pinned = link.pin(&path).map_err(|error| failed(&error))?;
        let link = XdpLink::try_from(FdLink::from(pinned)).map_err(|error| failed(&error))?;
        Ok((link, path))
    }

    /// Interfaces that a link is pinned for.
    #[must_use]
    pub fn interfaces(&self) -> Vec<u32> {
        let pins = pins(&self.root);
        let names = pins.iter().filter_map(|path| path.file_name()?.to_str());
        let numbers = names.filter_map(|name| name.strip_prefix(&self.prefix)?.parse().ok());
        numbers.filter(|ifindex| self.has(*ifindex)).collect()
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
    for pin in pins(root) {
        if info(&pin).is_some_and(|info| info.ifindex == 0) {
            tracing::info!(pin = %pin.display(), "its interface is gone: removed");
            // One that stays is seen again.
            let _ = remove(&pin);
        }
    }
}

/// What the link that is pinned at `path` is on.
fn info(path: &Path) -> Option<XdpLinkInfo> {
    bpf_link::info(bpf_link::open(path).ok()?.as_fd()).ok()?
}

/// Our pins in the BPF filesystem at `root`; none when it cannot be read.
fn pins(root: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(root).into_iter().flatten().filter_map(Result::ok);
    let ours = read.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    ours.map(|entry| entry.path()).collect()
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
