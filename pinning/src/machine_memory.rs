//! How much memory there is for this process: the machine's, and what its cgroups leave of it.
//!
//! All paths are below a root, so that a test's machine is a folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineMemory {
    /// `MemTotal`, or the lowest limit of the process's cgroups when that is less.
    pub total_bytes: u64,
    /// `MemAvailable`, or what the tightest of the cgroups has left: its limit less what is in use
    /// and cannot be dropped (file pages that are not in use can).
    pub available_bytes: u64,
}

impl MachineMemory {
    /// Of the machine below `root`.
    ///
    /// # Errors
    /// `proc/meminfo` cannot be read, or does not say. What cgroups do not say limits nothing.
    pub fn read(root: &Path) -> io::Result<Self> {
        let meminfo = fs::read_to_string(root.join("proc/meminfo"))?;
        let mut memory = Self {
            total_bytes: meminfo_bytes(&meminfo, "MemTotal")?,
            available_bytes: meminfo_bytes(&meminfo, "MemAvailable")?,
        };
        for cgroup in cgroups(root) {
            let Some(limit) = cgroup.number(&["memory.max", "memory.limit_in_bytes"]) else {
                continue;
            };
            let used = cgroup.number(&["memory.current", "memory.usage_in_bytes"]).unwrap_or(0);
            let left = limit.saturating_sub(used.saturating_sub(cgroup.inactive_file()));
            memory.total_bytes = memory.total_bytes.min(limit);
            memory.available_bytes = memory.available_bytes.min(left);
        }
        Ok(memory)
    }
}

fn meminfo_bytes(text: &str, field: &str) -> io::Result<u64> {
    let value = text.lines().find_map(|line| {
        let rest = line.strip_prefix(field)?.strip_prefix(':')?;
        rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    });
    let unsaid = || io::Error::new(io::ErrorKind::InvalidData, format!("meminfo has no {field}"));
    value.map(|kib| kib.saturating_mul(1024)).ok_or_else(unsaid)
}

/// A directory of the memory controller.
struct Cgroup(PathBuf);

impl Cgroup {
    /// The number in the first of these files that has one; `max` is none.
    fn number(&self, files: &[&str]) -> Option<u64> {
        let read = |file: &&str| fs::read_to_string(self.0.join(file)).ok();
        files.iter().filter_map(read).find_map(|text| text.trim().parse().ok())
    }

    fn inactive_file(&self) -> u64 {
        let stat = fs::read_to_string(self.0.join("memory.stat")).unwrap_or_default();
        let of = |name: &str| {
            let value = |line: &str| line.strip_prefix(name)?.trim().parse().ok();
            stat.lines().find_map(value)
        };
        of("total_inactive_file ").or_else(|| of("inactive_file ")).unwrap_or(0)
    }
}

/// The process's cgroup and all above it, as far as they are seen: version 2 (`0::PATH`), or the
/// memory controller of version 1 (cgroups(7)).
fn cgroups(root: &Path) -> Vec<Cgroup> {
    let lines = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in lines.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let base = match controllers {
            "" => root.join("sys/fs/cgroup"),
            names if names.split(',').any(|name| name == "memory") => {
                root.join("sys/fs/cgroup/memory")
            }
            _ => continue,
        };
        // A path with `..` points out of the cgroup namespace: only the mount's top is ours.
        let path = Path::new(path.trim_start_matches('/'));
        let is_below =
            path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        let own = if is_below { base.join(path) } else { base.clone() };
        let up = own.ancestors().take_while(|directory| directory.starts_with(&base));
        found.extend(up.map(|directory| Cgroup(directory.to_owned())));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new(files: &[(&str, &str)]) -> Self {
            let machine = Self(tempfile::tempdir().expect("a directory"));
            machine
                .write("proc/meminfo", "MemTotal: 4000 kB\nMemFree: 1 kB\nMemAvailable: 3000 kB\n");
            files.iter().for_each(|(path, text)| machine.write(path, text));
            machine
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        }

        fn kib(&self) -> (u64, u64) {
            let memory = MachineMemory::read(self.0.path()).expect("read");
            (memory.total_bytes / 1024, memory.available_bytes / 1024)
        }
    }

    #[test]
    fn a_machine_without_limits_has_what_meminfo_says() {
        assert_eq!(Machine::new(&[]).kib(), (4000, 3000));
        let unlimited = [("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "max\n")];
        assert_eq!(Machine::new(&unlimited).kib(), (4000, 3000));
        assert!(MachineMemory::read(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn the_tightest_cgroup_on_the_way_up_limits_and_pages_that_can_be_dropped_are_left() {
        let machine = Machine::new(&[
            ("proc/self/cgroup", "0::/pods/a\n"),
            ("sys/fs/cgroup/pods/a/memory.max", "max\n"),
            ("sys/fs/cgroup/pods/memory.max", "2048000\n"),
            ("sys/fs/cgroup/pods/memory.current", "1024000\n"),
            ("sys/fs/cgroup/pods/memory.stat", "anon 1\ninactive_file 512000\n"),
        ]);
        assert_eq!(machine.kib(), (2000, 1500));
    }

    #[test]
    fn version_1_is_read_and_a_path_out_of_the_namespace_is_the_top() {
        let machine = Machine::new(&[
            ("proc/self/cgroup", "9:name=systemd:/\n4:memory:/../other\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1024000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "2048000\n"),
        ]);
        assert_eq!(machine.kib(), (1000, 0));
    }
}
