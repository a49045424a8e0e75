//! What a figure was measured on.

use std::fs;

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
