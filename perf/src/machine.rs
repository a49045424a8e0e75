//! What a figure was measured on, and how busy it was.

use std::fs;

use anyhow::{Context, Result};

/// Kernel clock ticks per second in `/proc` (`USER_HZ`).
pub const TICKS: f64 = 100.0;
/// The commit this program was built from.
const COMMIT: &str = env!("XSKIFF_COMMIT");

/// Lines that say machine, kernel and build.
pub fn describe() -> Vec<String> {
    let cpus = pinning::apply::current_affinity().map(|set| set.to_string()).unwrap_or_default();
    let build =
        if cfg!(debug_assertions) { "debug build: figures mean nothing" } else { "release" };
    vec![
        format!("machine  {}, CPUs {cpus}", cpu_model()),
        format!("kernel   {}", read("/proc/sys/kernel/osrelease")),
        format!("commit   {COMMIT}, {build}"),
    ]
}

fn cpu_model() -> String {
    let text = read("/proc/cpuinfo");
    let model =
        text.lines().find(|line| line.starts_with("model name") || line.contains("CPU part"));
    let name = model.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim());
    name.unwrap_or("processor unknown").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The sum of these fields of the first line of `/proc/stat` (proc_stat(5)), in seconds.
///
/// # Errors
/// It cannot be read.
pub fn machine_seconds(fields: &[usize]) -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let numbers = text.lines().next().and_then(|line| line.strip_prefix("cpu "));
    let numbers = numbers.context("/proc/stat begins otherwise")?;
    let ticks = numbers.split_whitespace().map(str::parse::<u64>);
    let ticks = ticks.collect::<Result<Vec<_>, _>>().context("/proc/stat")?;
    let sum: u64 = fields.iter().filter_map(|field| ticks.get(*field)).sum();
    Ok(sum as f64 / TICKS)
}

/// Bytes of this process's memory that are in RAM (`/proc/self/statm`, proc_pid_statm(5)).
///
/// # Errors
/// No `/proc`.
pub fn resident_bytes() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/statm").context("/proc/self/statm")?;
    let pages = text.split_whitespace().nth(1).context("/proc/self/statm begins otherwise")?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.context("a page size")?;
    Ok(pages.parse::<f64>()? * page as f64)
}
