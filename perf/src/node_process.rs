//! A node process under test: `xskiff run` in its namespace, asked and told by its own command line,
//! as an operator does.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::netns;
use crate::usage::{Usage, user_seconds};

/// How long the process may take until it takes the pod.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to end after SIGTERM.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);
/// Bytes of the process's log that an error repeats, from its end.
const LOG_BYTES_MAX: usize = 800;
/// Name of nodes, and of the Kubernetes namespace of their pods.
pub const NAME: &str = "perf";

/// Where directories are made, how their names begin; the process id follows.
const PARENT: &str = "/run";
const PREFIX: &str = "xskiff-perf-";

/// A directory of this process's own for configurations and logs, removed when dropped.
pub struct Directory(PathBuf);

impl Directory {
    /// Makes it, readable by root only, and removes those whose process is gone.
    ///
    /// # Errors
    /// It is there already, or cannot be made.
    pub fn new() -> Result<Self> {
        for entry in fs::read_dir(PARENT).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                drop(fs::remove_dir_all(entry.path()));
            }
        }
        let path = Path::new(PARENT).join(format!("{PREFIX}{}", std::process::id()));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// What a node process is started as.
pub struct Plan<'a> {
    /// Tells it from others of this run.
    pub label: &'a str,
    /// Its network namespace.
    pub namespace: &'a str,
    /// Its configuration, without the run directory.
    pub configuration: &'a str,
    /// Its Kubernetes objects.
    pub cluster: &'a str,
    /// Its pods.
    pub pods: &'a [Pod<'a>],
}

/// A pod, whose object is among the others.
pub struct Pod<'a> {
    /// Its object's name.
    pub name: &'a str,
    /// The node's interface toward it.
    pub interface: &'a str,
    /// Its addresses.
    pub addresses: &'a [&'a str],
    /// Its network namespace.
    pub namespace: &'a str,
}

/// A running node process, which rests (SIGSTOP) unless it is told to work.
pub struct Node {
    child: Child,
    program: PathBuf,
    namespace: String,
    socket: PathBuf,
    log: PathBuf,
    modes: String,
}

/// Of `xskiff status --json`.
#[derive(Deserialize)]
struct Status {
    ports: Vec<Port>,
}

#[derive(Deserialize)]
struct Port {
    kind: String,
    xdp_mode: String,
    socket_mode: String,
}

impl Node {
    /// Starts `program`, and adds its pods.
    ///
    /// # Errors
    /// It cannot be started, ends, or does not take the pods in time; the error has its log's end.
    pub fn start(program: &Path, directory: &Directory, plan: &Plan<'_>) -> Result<Self> {
        let own = directory.0.join(plan.label);
        let manifests = own.join("manifests");
        fs::create_dir_all(&manifests).with_context(|| format!("make {}", own.display()))?;
        let (configuration, log) = (own.join("xskiff.yaml"), own.join("log"));
        let run_directory = own.join("run");
        let placed = format!("run_directory: {}\n{}", run_directory.display(), plan.configuration);
        write(&configuration, &placed)?;
        write(&manifests.join("cluster.yaml"), plan.cluster)?;
        let output = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        // Should this process be killed, its node ends as well.
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", plan.namespace, "setpriv", "--pdeathsig", "TERM"])
            .arg(program)
            .args(["run", "--config"])
            .arg(&configuration)
            .arg("--manifests")
            .arg(&manifests)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = command.spawn().context("start `ip netns exec`")?;
        let (program, namespace) = (program.to_owned(), plan.namespace.to_owned());
        let socket = run_directory.join("admin.sock");
        let mut node = Self { child, program, namespace, socket, log, modes: String::new() };
        for pod in plan.pods {
            node.add_pod(pod).with_context(|| node.log_tail())?;
        }
        node.modes = node.ask_modes()?;
        Ok(node)
    }

    /// Asks until the process is there.
    fn add_pod(&mut self, pod: &Pod<'_>) -> Result<()> {
        let started = Instant::now();
        let netns = format!("/run/netns/{}", pod.namespace);
        let name = format!("{NAME}/{}", pod.name);
        let mut words = vec!["endpoint", "add", &name, "--interface", pod.interface];
        words.extend(["--netns", &netns]);
        words.extend(pod.addresses.iter().flat_map(|address| ["--address", *address]));
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the node process ended: {status}");
            }
            match self.ask(&words) {
                Ok(_) => return Ok(()),
                Err(error) if started.elapsed() > START_TIMEOUT => return Err(error),
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        let (program, socket) = (self.program.to_string_lossy(), self.socket.to_string_lossy());
        let before = ["netns", "exec", &self.namespace, &*program, "--socket", &*socket];
        netns::output("ip", &[&before[..], words].concat())
    }

    fn ask_modes(&self) -> Result<String> {
        let status: Status = serde_json::from_str(&self.ask(&["status", "--json"])?)
            .context("read the answer of `xskiff status --json`")?;
        let mut modes: Vec<String> = status
            .ports
            .iter()
            .filter(|port| port.kind != "host")
            .map(|port| format!("{} {}", port.xdp_mode, port.socket_mode))
            .collect();
        modes.sort();
        modes.dedup();
        Ok(modes.join(", "))
    }

    /// What the kernel says it runs.
    pub fn modes(&self) -> &str {
        &self.modes
    }

    /// Lets it work.
    ///
    /// # Errors
    /// It has ended.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Stops all its threads where they are, so that others can be measured.
    ///
    /// # Errors
    /// It has ended.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Processor time of its threads so far.
    ///
    /// # Errors
    /// It has ended.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of(self.child.id())
    }

    /// Seconds it spent in user mode so far.
    ///
    /// # Errors
    /// It has ended.
    pub fn user_seconds(&self) -> Result<f64> {
        user_seconds(self.child.id())
    }

    /// The end of what it logged.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let tail = &text[text.len().saturating_sub(LOG_BYTES_MAX)..];
        format!("the node's log ends with:\n{}", String::from_utf8_lossy(tail).trim())
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(ended.is_none(), "the node process ended; {}", self.log_tail());
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("send {signal} to the node process"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // One that has ended already needs neither.
        let asked = self.resume().and_then(|()| self.signal(Signal::SIGTERM));
        let started = Instant::now();
        while asked.is_ok() && started.elapsed() < END_TIMEOUT {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(PAUSE),
                Ok(Some(_)) => return,
                Err(_) => break,
            }
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The node's binary: the one that is `given`, or the one beside this program.
///
/// # Errors
/// There is none.
pub fn program(given: Option<&Path>) -> Result<PathBuf> {
    let path = match given {
        Some(given) => given.to_owned(),
        None => std::env::current_exe().context("find this program")?.with_file_name("xskiff"),
    };
    ensure!(
        path.is_file(),
        "there is no {}: build it (cargo build -p xskiff), or name it by --xskiff",
        path.display()
    );
    path.canonicalize().with_context(|| path.display().to_string())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
