//! Network namespaces of this program: named by its process id, so that the next run knows what a
//! killed one left.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

/// How the names of all namespaces begin; the process id and a dash follow.
const PREFIX: &str = "xskiff-perf-";
const DIRECTORY: &str = "/run/netns";

/// The beginning of names of this process's namespaces for `purpose`, after a check that it may
/// have any and the removal of those whose process is gone.
///
/// # Errors
/// Not root.
pub fn prefix(purpose: &str) -> Result<String> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run as root");
    for entry in fs::read_dir(DIRECTORY).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            drop(Command::new("ip").args(["netns", "del"]).arg(&name).status());
        }
    }
    Ok(format!("{PREFIX}{}-{purpose}-", std::process::id()))
}

/// Namespaces of this process for one purpose; removed when dropped.
pub struct Namespaces {
    prefix: String,
    made: Vec<String>,
}

impl Namespaces {
    /// None yet; removes what killed runs left behind.
    ///
    /// # Errors
    /// Not root.
    pub fn new(purpose: &str) -> Result<Self> {
        Ok(Self { prefix: prefix(purpose)?, made: Vec::new() })
    }

    /// Makes one, and answers the name that `ip netns` knows it by.
    ///
    /// # Errors
    /// `ip` is missing, or fails.
    pub fn add(&mut self, whose: &str) -> Result<String> {
        let name = format!("{}{whose}", self.prefix);
        run("ip", &["netns", "add", &name], "")?;
        self.made.push(name.clone());
        Ok(name)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.made {
            if let Err(error) = run("ip", &["netns", "del", name], "") {
                eprintln!("{error:#}");
            }
        }
    }
}

/// The namespace of the calling thread, to go back to.
///
/// # Errors
/// No `/proc`.
pub fn current() -> Result<File> {
    File::open("/proc/thread-self/ns/net").context("open this network namespace")
}

/// Moves the calling thread back into a namespace; says so when it cannot.
pub fn go_back(home: &File) {
    if let Err(error) = setns(home, CloneFlags::CLONE_NEWNET) {
        eprintln!("cannot go back to the first network namespace: {error}");
    }
}

/// Moves the calling thread into a namespace.
///
/// # Errors
/// There is none of this name.
pub fn enter(namespace: &str) -> Result<()> {
    let path = Path::new(DIRECTORY).join(namespace);
    let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", path.display()))
}

/// Runs a program to its end with `input`.
///
/// # Errors
/// It is missing, or fails; the error has its words.
pub fn run(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    finish(program, arguments, input).map(drop)
}

/// Runs a program to its end and gives what it wrote.
///
/// # Errors
/// As [`run`].
pub fn output(program: &str, arguments: &[&str]) -> Result<String> {
    Ok(String::from_utf8_lossy(&finish(program, arguments, "")?).into_owned())
}

fn finish(program: &str, arguments: &[&str], input: &str) -> Result<Vec<u8>> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start `{program}`"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| format!("write to `{program}`"))?;
    }
    let output = child.wait_with_output().with_context(|| format!("wait for `{program}`"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", arguments.join(" "), words.trim());
    }
    Ok(output.stdout)
}

/// Runs a shell script in a namespace, with its own `/sys`.
///
/// # Errors
/// As [`run`].
pub fn shell(namespace: &str, script: &str) -> Result<()> {
    run("ip", &["netns", "exec", namespace, "sh", "-ec", script], "")
}

/// Runs `work` in a thread that is in the namespace; its sockets stay there.
///
/// # Errors
/// There is no such namespace, or the work's.
pub fn within<T: Send>(namespace: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| enter(namespace).and_then(|()| work()));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
