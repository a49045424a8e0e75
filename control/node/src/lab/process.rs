//! Children inside namespaces, ended by their own handle, never by name.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::agent::report::Report;
use super::laboratory::wait_until;
use super::registry::{self, SharedChild};
use super::{LabError, command};

/// Most bytes of a log that an error repeats.
const TAIL_BYTES_MAX: usize = 600;

/// How long an agent may take to stop after it was told.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);

/// A child process; killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    child: SharedChild,
    name: String,
    log: PathBuf,
    kept: bool,
}

impl Process {
    pub(super) fn start(
        mut command: Command,
        name: &str,
        directory: &Path,
    ) -> Result<Self, LabError> {
        let log = new_log(directory, name)?;
        let both = open_log(&log)?;
        let second = both.try_clone().map_err(LabError::io("open", log.display().to_string()))?;
        command.stdout(both).stderr(second);
        let child = registry::spawn(&mut command)?;
        Ok(Self { child, name: name.to_owned(), log, kept: false })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        registry::lock(&self.child).id()
    }

    /// How it ended; `None` while it runs.
    #[must_use]
    pub fn ended(&self) -> Option<ExitStatus> {
        registry::lock(&self.child).try_wait().ok().flatten()
    }

    /// Sends it a signal, unless it has ended.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let mut child = registry::lock(&self.child);
        // Not reaped yet, so that the number is still this child's.
        if let Ok(None) = child.try_wait()
            && let Ok(id) = i32::try_from(child.id())
        {
            nix::sys::signal::kill(Pid::from_raw(id), signal)
                .map_err(|error| LabError::io("signal", self.name.clone())(error.into()))?;
        }
        Ok(())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It still runs after `timeout`.
    pub fn wait(&self, timeout: Duration) -> Result<ExitStatus, LabError> {
        let mut status = None;
        wait_until(timeout, || {
            status = self.ended();
            status.is_some()
        });
        status.ok_or_else(|| self.no_report("its end", timeout))
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The end of its output.
    #[must_use]
    pub fn log_tail(&self) -> String {
        log_tail(&self.log)
    }

    /// Lets it live on when this value is dropped and when this process ends.
    pub fn keep(&mut self) {
        self.kept = true;
        registry::release_child(&self.child);
    }

    fn no_report(&self, awaited: &'static str, timeout: Duration) -> LabError {
        let (name, log, tail) = (self.name.clone(), self.log.clone(), self.log_tail());
        LabError::NoReport { name, awaited, timeout, log, tail }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.kept {
            let mut child = registry::lock(&self.child);
            // Already ended is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A report and when it was read.
#[derive(Debug, Clone)]
pub struct Stamped {
    /// When this process read it.
    pub at: Instant,
    /// What the agent said.
    pub report: Report,
}

/// A running traffic agent. It ends when its standard input closes: when told to stop, and when
/// this process ends in whatever way.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    input: Option<ChildStdin>,
    reports: Receiver<Stamped>,
}

impl Agent {
    pub(super) fn start(
        mut command: Command,
        name: &str,
        directory: &Path,
    ) -> Result<Self, LabError> {
        let log = new_log(directory, name)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(open_log(&log)?);
        let child = registry::spawn(&mut command)?;
        let (input, output) = {
            let mut child = registry::lock(&child);
            (child.stdin.take(), child.stdout.take())
        };
        let process = Process { child, name: name.to_owned(), log, kept: false };
        let (sender, reports) = channel();
        let read = move || {
            let lines = output.into_iter().flat_map(|output| BufReader::new(output).lines());
            for line in lines.map_while(Result::ok) {
                let Ok(report) = serde_json::from_str(&line) else { continue };
                if sender.send(Stamped { at: Instant::now(), report }).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name(format!("read-{name}"))
            .spawn(read)
            .map_err(LabError::io("start a thread for", name))?;
        Ok(Self { process, input, reports })
    }

    /// The next report for which `wanted` gives something, dropping those before it.
    ///
    /// # Errors
    /// None came within `timeout`, or the agent ended without one; the error has its log's end.
    pub fn expect<T>(
        &self,
        awaited: &'static str,
        timeout: Duration,
        mut wanted: impl FnMut(Report) -> Option<T>,
    ) -> Result<T, LabError> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.reports.recv_timeout(left) {
                Ok(stamped) => {
                    if let Some(value) = wanted(stamped.report) {
                        return Ok(value);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.process.no_report(awaited, timeout));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(LabError::Ended { name: self.process.name.clone(), awaited });
                }
            }
        }
    }

    /// Waits until a server listens.
    ///
    /// # Errors
    /// As [`Agent::expect`].
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), LabError> {
        self.expect("that it listens", timeout, |report| {
            matches!(report, Report::Ready { .. }).then_some(())
        })
    }

    /// The reports that have come since the last call, without waiting.
    pub fn reports(&self) -> impl Iterator<Item = Stamped> + '_ {
        self.reports.try_iter()
    }

    /// Tells it to stop and gives its remaining reports, the summary last.
    ///
    /// # Errors
    /// It does not end within 12 s.
    pub fn stop(self) -> Result<Vec<Stamped>, LabError> {
        self.stop_within(STOP_TIMEOUT)
    }

    /// The same for one that has much to end.
    ///
    /// # Errors
    /// It does not end within `timeout`.
    pub fn stop_within(mut self, timeout: Duration) -> Result<Vec<Stamped>, LabError> {
        self.input = None;
        self.process.wait(timeout)?;
        Ok(self.reports.iter().collect())
    }

    /// The process behind it.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}

/// A log file of its own: `NAME.log`, or `NAME-2.log` and so on.
fn new_log(directory: &Path, name: &str) -> Result<PathBuf, LabError> {
    for number in 1u32.. {
        let suffix = if number == 1 { String::new() } else { format!("-{number}") };
        let path = directory.join(format!("{name}{suffix}.log"));
        match File::create_new(&path) {
            Ok(_) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(LabError::io("make", path.display().to_string())(error)),
        }
    }
    Err(LabError::io("make", name)(std::io::ErrorKind::AlreadyExists.into()))
}

fn open_log(path: &Path) -> Result<File, LabError> {
    File::options()
        .append(true)
        .open(path)
        .map_err(LabError::io("open", path.display().to_string()))
}

fn log_tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    command::tail(String::from_utf8_lossy(&text).trim(), TAIL_BYTES_MAX).to_owned()
}
