//! What this process made and must remove, whatever ends it.
//!
//! Drops remove things one by one; this list is for the ends that run no drops. It is the one
//! global of the laboratory, as signals are global to a process.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use super::{LabError, command};

/// How every namespace and directory of a laboratory begins; the maker's process id follows.
pub(super) const PREFIX: &str = "xskiff-lab.";

/// Where `ip netns` keeps its names.
pub(super) const NETNS_DIRECTORY: &str = "/run/netns";

/// A child that the signal thread and its owner may both end.
pub(super) type SharedChild = Arc<Mutex<Child>>;

#[derive(Default)]
struct Registry {
    closing: bool,
    namespaces: BTreeSet<String>,
    children: Vec<Weak<Mutex<Child>>>,
    directories: BTreeSet<PathBuf>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    closing: false,
    namespaces: BTreeSet::new(),
    children: Vec::new(),
    directories: BTreeSet::new(),
});

/// A poisoned list is still the list of what must go.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a namespace; holds the list meanwhile, so that a signal cannot miss it.
pub(super) fn add_namespace(name: &str) -> Result<(), LabError> {
    let mut registry = lock(&REGISTRY);
    if registry.closing {
        return Err(LabError::Closing);
    }
    command::run("ip", &["netns", "add", name])?;
    registry.namespaces.insert(name.to_owned());
    Ok(())
}

/// Ends what still runs in a namespace of ours and removes it, with every link that ends in it.
pub(super) fn remove_namespace(name: &str) {
    delete_namespace(name);
    lock(&REGISTRY).namespaces.remove(name);
}

/// Keeps a namespace beyond the end of this process.
pub(super) fn release_namespace(name: &str) {
    lock(&REGISTRY).namespaces.remove(name);
}

/// Starts a child; holds the list meanwhile, so that a signal cannot miss it.
pub(super) fn spawn(command: &mut std::process::Command) -> Result<SharedChild, LabError> {
    let mut registry = lock(&REGISTRY);
    if registry.closing {
        return Err(LabError::Closing);
    }
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command.spawn().map_err(LabError::io("start", name))?;
    let child = Arc::new(Mutex::new(child));
    registry.children.retain(|other| other.strong_count() > 0);
    registry.children.push(Arc::downgrade(&child));
    Ok(child)
}

/// Lets a child live on when this process ends.
pub(super) fn release_child(child: &SharedChild) {
    let own = Arc::downgrade(child);
    lock(&REGISTRY).children.retain(|other| !other.ptr_eq(&own));
}

/// Makes a directory that only its owner can read.
pub(super) fn add_directory(path: &Path) -> Result<(), LabError> {
    use std::os::unix::fs::DirBuilderExt;
    let mut registry = lock(&REGISTRY);
    if registry.closing {
        return Err(LabError::Closing);
    }
    let named = path.display().to_string();
    std::fs::DirBuilder::new().mode(0o700).create(path).map_err(LabError::io("make", named))?;
    registry.directories.insert(path.to_owned());
    Ok(())
}

/// Removes a directory of ours with all it holds.
pub(super) fn remove_directory(path: &Path) {
    remove_tree(path);
    release_directory(path);
}

/// A directory of a laboratory, in which node processes pin: commands in a namespace have a `/sys` of
/// their own, without the BPF filesystem.
const BPF_FILESYSTEM: &str = "run-bpf";

pub(super) fn mount_bpf_filesystem(directory: &Path) -> Result<(), LabError> {
    let path = directory.join(BPF_FILESYSTEM);
    std::fs::create_dir(&path).map_err(LabError::io("make", path.display().to_string()))?;
    xdp_redirect::pins::mount(&path).map_err(|error| {
        LabError::io("mount", path.display().to_string())(std::io::Error::other(error))
    })?;
    Ok(())
}

/// Nothing can be done about a failure while everything is being removed.
fn remove_tree(directory: &Path) {
    // What is pinned there goes with it.
    let _ = umount2(&directory.join(BPF_FILESYSTEM), MntFlags::MNT_DETACH);
    let _ = std::fs::remove_dir_all(directory);
}

/// Keeps a directory beyond the end of this process.
pub(super) fn release_directory(path: &Path) {
    lock(&REGISTRY).directories.remove(path);
}

/// Removes everything this process made, and refuses to make more.
pub fn remove_everything() {
    let mut registry = lock(&REGISTRY);
    registry.closing = true;
    let children = std::mem::take(&mut registry.children);
    for child in children.iter().filter_map(Weak::upgrade) {
        let mut child = lock(&child);
        // Already ended is as good.
        let _ = child.kill();
        let _ = child.wait();
    }
    for name in std::mem::take(&mut registry.namespaces) {
        delete_namespace(&name);
    }
    for path in std::mem::take(&mut registry.directories) {
        remove_tree(&path);
    }
}

/// On SIGINT, SIGTERM or SIGHUP: runs `before`, removes everything and exits with 128 + signal.
///
/// # Errors
/// The signals could not be subscribed to.
pub fn remove_on_signal(before: impl FnOnce() + Send + 'static) -> Result<(), LabError> {
    let failed = |source| LabError::io("subscribe to", "SIGINT, SIGTERM and SIGHUP")(source);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let subscribe = |kind| {
        let _inside = runtime.enter();
        signal(kind).map_err(failed)
    };
    let mut interrupt = subscribe(SignalKind::interrupt())?;
    let mut terminate = subscribe(SignalKind::terminate())?;
    let mut hangup = subscribe(SignalKind::hangup())?;
    let wait = move || {
        let number = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
                _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
                _ = hangup.recv() => SignalKind::hangup().as_raw_value(),
            }
        });
        before();
        remove_everything();
        std::process::exit(128 + number);
    };
    std::thread::Builder::new().name("lab-signals".into()).spawn(wait).map_err(failed)?;
    Ok(())
}

/// Where directories of laboratories are: in memory where that can be, so that a node's flow tables
/// can lie there and outlive it.
#[must_use]
pub fn base_directory() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if pinning::memory_file::is_in_memory(memory) { memory.into() } else { std::env::temp_dir() }
}

/// Removes what killed runs left: namespaces and directories whose maker no longer lives.
pub(super) fn sweep_leftovers() {
    let directories = base_directory();
    for name in orphans_in(Path::new(NETNS_DIRECTORY)) {
        delete_namespace(&name);
    }
    for name in orphans_in(&directories) {
        remove_tree(&directories.join(name));
    }
}

/// Removes the namespaces and the directory of the laboratory with this prefix.
pub(super) fn remove_all_of(prefix: &str) {
    for name in names_in(Path::new(NETNS_DIRECTORY)) {
        if name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('-')) {
            delete_namespace(&name);
        }
    }
    // It is not there when nothing was kept.
    remove_tree(&base_directory().join(prefix));
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn orphans_in(directory: &Path) -> Vec<String> {
    let mut names = names_in(directory);
    names.retain(|name| maker_of(name).is_some_and(|maker| !lives(maker)));
    names
}

/// Ends what runs in the namespace, then removes its name; its links go with it.
fn delete_namespace(name: &str) {
    let pids = command::run("ip", &["netns", "pids", name]).unwrap_or_default();
    for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
        // Only what is inside a namespace of ours is listed; it may have ended meanwhile.
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    if let Err(error) = command::run("ip", &["netns", "del", name]) {
        tracing::warn!(namespace = name, %error, "a namespace was not removed");
    }
}

/// The process id in a name of ours.
fn maker_of(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
}

fn lives(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::{lives, maker_of};

    #[test]
    fn only_our_own_names_have_a_maker() {
        assert_eq!(maker_of("xskiff-lab.42.demo-client"), Some(42));
        assert_eq!(maker_of("xskiff-demo-client"), None);
        assert_eq!(maker_of("cni-42"), None);
    }

    #[test]
    fn this_process_lives() {
        assert!(lives(std::process::id()));
    }
}
