//! Processor time of another process, thread by thread.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::machine::TICKS;

/// Processor time of every thread so far, user and kernel, as the scheduler counts it: in
/// nanoseconds and not in clock ticks, for an idle thread runs for less than one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    threads: BTreeMap<u32, (String, Duration)>,
}

impl Usage {
    /// Of the process `pid` now.
    ///
    /// # Errors
    /// It has ended, or the kernel does not tell (`CONFIG_SCHED_INFO`).
    pub fn of(pid: u32) -> Result<Self> {
        let tasks = format!("/proc/{pid}/task");
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(&tasks).with_context(|| tasks.clone())?.flatten() {
            // A thread may end meanwhile.
            let Some(thread) = read(&task.path()) else { continue };
            let id = task.file_name().to_string_lossy().parse().context("a thread's number")?;
            threads.insert(id, thread);
        }
        anyhow::ensure!(!threads.is_empty(), "{tasks} tells no thread's time (schedstat)");
        Ok(Self { threads })
    }

    /// What was used after `before`, by thread name.
    pub fn since(&self, before: &Self) -> BTreeMap<String, Duration> {
        let mut used = BTreeMap::<String, Duration>::new();
        for (id, (name, time)) in &self.threads {
            let earlier = before.threads.get(id).map_or(Duration::ZERO, |(_, time)| *time);
            *used.entry(name.clone()).or_default() += time.saturating_sub(earlier);
        }
        used
    }
}

fn read(task: &Path) -> Option<(String, Duration)> {
    let name = fs::read_to_string(task.join("comm")).ok()?.trim().to_owned();
    // Time on a CPU in nanoseconds, first (Documentation/scheduler/sched-stats.rst).
    let text = fs::read_to_string(task.join("schedstat")).ok()?;
    let nanoseconds = text.split_whitespace().next()?.parse().ok()?;
    Some((name, Duration::from_nanos(nanoseconds)))
}

/// Seconds that a process spent in user mode, by the clock of `/proc/stat`.
///
/// # Errors
/// It has ended.
pub fn user_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // Behind the name, which may have spaces, `utime` is the twelfth (proc_pid_stat(5)).
    let ticks = text.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(11));
    let ticks: f64 = ticks.and_then(|ticks| ticks.parse().ok()).context(path)?;
    Ok(ticks / TICKS)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Usage;

    #[test]
    fn a_thread_that_works_is_counted_under_its_name_and_one_that_sleeps_is_not() {
        let (begin, before) = (Instant::now(), Usage::of(std::process::id()).unwrap());
        let work = move || {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(50) {}
            // The scheduler brings its count up to date when the thread leaves the CPU.
            std::thread::sleep(Duration::from_millis(1));
            let usage = Usage::of(std::process::id()).unwrap();
            usage.since(&before)["at-work"]
        };
        let thread = std::thread::Builder::new().name("at-work".into()).spawn(work);
        let used = thread.unwrap().join().unwrap();
        assert!(used > Duration::from_millis(5), "{used:?}");
        assert!(used <= begin.elapsed(), "{used:?}");
    }
}
