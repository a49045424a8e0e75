//! The machine: CPUs, cores, NUMA nodes, and which of them this process may use.
//!
//! Everything is read below one root directory, `/` on a real machine and a made tree in tests:
//! `sys/devices/system/cpu`, `sys/devices/system/node`, `proc/self/cgroup` and the cpuset's
//! hierarchy. What a kernel leaves out (no NUMA, no SMT files, no cpuset) has a plain meaning
//! (node 0, a core of its own, no limit); what is there and does not parse is an error.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::apply;
use crate::cpu_set::{CpuId, CpuListError, CpuSet};

/// The kernel's number of a NUMA node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NumaNode(pub u16);

/// Whether a thread of this process may run on a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Usability {
    /// It may.
    Usable,
    /// The CPU is present and switched off.
    Offline,
    /// The cgroup's cpuset leaves it out; only whoever set the cpuset can change that.
    OutsideCpuset,
    /// The affinity this process was started with (`taskset`, `CPUAffinity=`) leaves it out.
    OutsideAffinity,
}

/// One CPU (hardware thread) of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// Its number.
    pub id: CpuId,
    /// The NUMA node whose memory is near.
    pub node: NumaNode,
    /// All CPUs of its physical core, itself included.
    pub siblings: CpuSet,
    /// The boot parameter `isolcpus` keeps the scheduler away from it.
    pub isolated: bool,
    /// Whether this process may run there.
    pub usability: Usability,
}

/// All CPUs that are present, lowest number first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    cpus: Vec<Cpu>,
}

/// The topology could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// A file that every Linux has cannot be read.
    #[error("cannot read {path}: {source}; is /sys mounted in this container?")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A CPU list in a file does not parse.
    #[error("{path}: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: CpuListError,
    },
    /// The kernel did not tell this thread's affinity.
    #[error("cannot read this thread's affinity: {0}")]
    Affinity(io::Error),
}

impl Topology {
    /// Reads this machine, and what the calling thread may use of it. Call it before any thread is
    /// pinned: a pinned thread sees its one CPU as all there is.
    ///
    /// # Errors
    /// [`TopologyError`] names the file.
    pub fn read() -> Result<Self, TopologyError> {
        let affinity = apply::current_affinity().map_err(TopologyError::Affinity)?;
        Self::read_below(Path::new("/"), &affinity)
    }

    /// Reads the tree below `root`, for a process started with `affinity`.
    ///
    /// # Errors
    /// [`TopologyError`] names the file.
    pub fn read_below(root: &Path, affinity: &CpuSet) -> Result<Self, TopologyError> {
        let cpu_dir = root.join("sys/devices/system/cpu");
        let present = required_list(&cpu_dir.join("present"))?;
        let online = optional_list(&cpu_dir.join("online"))?.unwrap_or_else(|| present.clone());
        let isolated = optional_list(&cpu_dir.join("isolated"))?.unwrap_or_default();
        let cpuset = read_cpuset(root)?;
        let nodes = read_nodes(&root.join("sys/devices/system/node"))?;

        let mut cpus = Vec::with_capacity(present.len());
        for id in present.iter() {
            let siblings = read_siblings(&cpu_dir, id)?;
            let node = nodes.iter().find(|(_, cpus)| cpus.contains(id));
            let isolated = isolated.contains(id);
            let usability = if !online.contains(id) {
                Usability::Offline
            } else if cpuset.as_ref().is_some_and(|cpuset| !cpuset.contains(id)) {
                Usability::OutsideCpuset
            } else if !affinity.contains(id) && !isolated {
                // isolcpus takes its CPUs out of everybody's affinity at boot; moving there is
                // exactly what they were set aside for.
                Usability::OutsideAffinity
            } else {
                Usability::Usable
            };
            let node = node.map_or(NumaNode(0), |(node, _)| *node);
            cpus.push(Cpu { id, node, siblings, isolated, usability });
        }
        Ok(Self { cpus })
    }

    /// Every CPU that is present, lowest number first.
    #[must_use]
    pub fn cpus(&self) -> &[Cpu] {
        &self.cpus
    }

    /// The CPU by number.
    #[must_use]
    pub fn cpu(&self, id: CpuId) -> Option<&Cpu> {
        self.cpus
            .binary_search_by_key(&id, |cpu| cpu.id)
            .ok()
            .and_then(|index| self.cpus.get(index))
    }

    /// The numbers of all CPUs that are present.
    #[must_use]
    pub fn present(&self) -> CpuSet {
        self.cpus.iter().map(|cpu| cpu.id).collect()
    }

    /// The numbers of all CPUs this process may use.
    #[must_use]
    pub fn usable(&self) -> CpuSet {
        let usable = self.cpus.iter().filter(|cpu| cpu.usability == Usability::Usable);
        usable.map(|cpu| cpu.id).collect()
    }

    /// Whether any CPU belongs to `node`.
    #[must_use]
    pub fn has_node(&self, node: NumaNode) -> bool {
        self.cpus.iter().any(|cpu| cpu.node == node)
    }
}

/// The NUMA node of a network interface's device, `None` for virtual interfaces and where the
/// firmware does not say (the kernel writes -1).
#[must_use]
pub fn interface_node(root: &Path, interface: &str) -> Option<NumaNode> {
    let path = root.join("sys/class/net").join(interface).join("device/numa_node");
    fs::read_to_string(path).ok()?.trim().parse().ok().map(NumaNode)
}

fn required_list(path: &Path) -> Result<CpuSet, TopologyError> {
    let text = fs::read_to_string(path)
        .map_err(|source| TopologyError::Unreadable { path: path.to_owned(), source })?;
    text.parse().map_err(|source| TopologyError::Malformed { path: path.to_owned(), source })
}

/// `None` when the file is absent; kernels leave out what they were not built with.
fn optional_list(path: &Path) -> Result<Option<CpuSet>, TopologyError> {
    match required_list(path) {
        Ok(list) => Ok(Some(list)),
        Err(TopologyError::Unreadable { source, .. })
            if source.kind() == io::ErrorKind::NotFound =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The physical core's CPUs. Offline CPUs have no topology directory: a core of their own.
fn read_siblings(cpu_dir: &Path, id: CpuId) -> Result<CpuSet, TopologyError> {
    let path = cpu_dir.join(format!("cpu{id}/topology/thread_siblings_list"));
    let mut siblings: CpuSet = optional_list(&path)?.unwrap_or_default();
    if !siblings.contains(id) {
        siblings = siblings.iter().chain([id]).collect();
    }
    Ok(siblings)
}

fn read_nodes(node_dir: &Path) -> Result<Vec<(NumaNode, CpuSet)>, TopologyError> {
    let Ok(entries) = fs::read_dir(node_dir) else { return Ok(Vec::new()) };
    let mut nodes = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("node"));
        let Some(number) = number.and_then(|number| number.parse().ok()) else { continue };
        if let Some(cpus) = optional_list(&entry.path().join("cpulist"))? {
            nodes.push((NumaNode(number), cpus));
        }
    }
    nodes.sort_by_key(|(node, _)| *node);
    Ok(nodes)
}

/// What the cgroup's cpuset allows, `None` without a cpuset controller.
///
/// `/proc/self/cgroup` has one line per hierarchy, `id:controllers:path` (`cgroups(7)`): version 1
/// names `cpuset`, version 2 has id 0 and no names. Inside a container the path may lead outside
/// of what is mounted, so the nearest directory above it that has the file decides.
fn read_cpuset(root: &Path) -> Result<Option<CpuSet>, TopologyError> {
    let Ok(cgroups) = fs::read_to_string(root.join("proc/self/cgroup")) else { return Ok(None) };
    let path_of = |wanted: &dyn Fn(&str, &str) -> bool| {
        cgroups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (id, controllers) = (fields.next()?, fields.next()?);
            wanted(id, controllers).then_some(fields.next()?)
        })
    };
    let base = root.join("sys/fs/cgroup");
    if let Some(path) = path_of(&|_, controllers| controllers.split(',').any(|c| c == "cpuset")) {
        let mount = base.join("cpuset");
        for name in ["cpuset.effective_cpus", "cpuset.cpus"] {
            if let Some(cpus) = nearest_list(&mount, path, name)? {
                return Ok(Some(cpus));
            }
        }
    }
    let Some(path) = path_of(&|id, controllers| id == "0" && controllers.is_empty()) else {
        return Ok(None);
    };
    nearest_list(&base, path, "cpuset.cpus.effective")
}

/// The list in file `name` of `path` below `mount`, or of the nearest directory above it.
fn nearest_list(mount: &Path, path: &str, name: &str) -> Result<Option<CpuSet>, TopologyError> {
    // A path with `..` in it points out of the cgroup namespace: only the mount's top is ours.
    let relative = path.trim_start_matches('/');
    let relative = if relative.split('/').any(|part| part == "..") { "" } else { relative };
    let mut dir = mount.join(relative);
    while dir.starts_with(mount) {
        let found = optional_list(&dir.join(name))?.filter(|cpus| !cpus.is_empty());
        if found.is_some() {
            return Ok(found);
        }
        if !dir.pop() {
            break;
        }
    }
    Ok(None)
}

#[cfg(test)]
pub(crate) mod fake {
    //! Made-up machines for tests.

    use std::fs;
    use std::path::Path;

    use tempfile::TempDir;

    use super::{CpuSet, Topology};

    /// A directory that looks like `/` of a machine.
    pub struct Machine {
        dir: TempDir,
    }

    impl Machine {
        /// A machine whose `present` and `online` CPUs are `cpus`, each a core of its own.
        pub fn new(cpus: &str) -> Self {
            let machine = Self { dir: tempfile::tempdir().expect("a temporary directory") };
            machine.write("sys/devices/system/cpu/present", cpus);
            machine.write("sys/devices/system/cpu/online", cpus);
            machine
        }

        pub fn root(&self) -> &Path {
            self.dir.path()
        }

        pub fn write(&self, path: &str, text: &str) {
            let path = self.root().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs::write(path, text).expect("a file");
        }

        pub fn read(&self, path: &str) -> String {
            fs::read_to_string(self.root().join(path)).expect("a file").trim().to_owned()
        }

        /// Makes every CPU of `list` a sibling of the others.
        pub fn siblings(self, list: &str) -> Self {
            for cpu in list.parse::<CpuSet>().expect("a list").iter() {
                let path = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
                self.write(&path, list);
            }
            self
        }

        pub fn node(self, number: u16, list: &str) -> Self {
            self.write(&format!("sys/devices/system/node/node{number}/cpulist"), list);
            self
        }

        pub fn isolated(self, list: &str) -> Self {
            self.write("sys/devices/system/cpu/isolated", list);
            self
        }

        /// The topology as a process with affinity `affinity` sees it.
        pub fn topology(&self, affinity: &str) -> Topology {
            Topology::read_below(self.root(), &affinity.parse().expect("a list"))
                .expect("a topology")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::Machine;
    use super::{NumaNode, Topology, TopologyError, Usability, interface_node};
    use crate::cpu_set::{CpuId, CpuSet};

    #[test]
    fn cores_nodes_and_siblings_are_read_from_sys() {
        let machine = Machine::new("0-3").siblings("0,2").siblings("1,3").node(0, "0,2");
        let topology = machine.node(1, "1,3").topology("0-3");
        let cpu = topology.cpu(CpuId(3)).expect("cpu 3");
        assert_eq!(cpu.node, NumaNode(1));
        assert_eq!(cpu.siblings.to_string(), "1,3");
        assert_eq!(topology.usable().to_string(), "0-3");
        assert!(topology.has_node(NumaNode(1)) && !topology.has_node(NumaNode(2)));
        assert_eq!(topology.cpu(CpuId(4)), None);
    }

    #[test]
    fn machine_without_numa_and_topology_files_is_one_node_of_single_cores() {
        let topology = Machine::new("0-1").topology("0-1");
        let cpu = topology.cpu(CpuId(1)).expect("cpu 1");
        assert_eq!(cpu.node, NumaNode(0));
        assert_eq!(cpu.siblings.to_string(), "1");
    }

    #[test]
    fn offline_and_forbidden_cpus_are_told_apart() {
        let machine = Machine::new("0-3");
        machine.write("sys/devices/system/cpu/online", "0-2");
        machine.write("proc/self/cgroup", "0::/pods/a\n");
        machine.write("sys/fs/cgroup/pods/cpuset.cpus.effective", "0-1\n");
        let topology = machine.topology("1-3");
        let states: Vec<_> = topology.cpus().iter().map(|cpu| cpu.usability).collect();
        use Usability::{Offline, OutsideAffinity, OutsideCpuset, Usable};
        assert_eq!(states, [OutsideAffinity, Usable, OutsideCpuset, Offline]);
    }

    #[test]
    fn isolated_cpus_are_usable_though_affinity_leaves_them_out() {
        let topology = Machine::new("0-3").isolated("2-3").topology("0-1");
        assert_eq!(topology.usable().to_string(), "0-3");
    }

    #[test]
    fn version_one_cpuset_is_honoured() {
        let machine = Machine::new("0-3");
        machine.write("proc/self/cgroup", "3:cpuset:/box\n0::/\n");
        machine.write("sys/fs/cgroup/cpuset/box/cpuset.cpus", "2");
        assert_eq!(machine.topology("0-3").usable().to_string(), "2");
    }

    #[test]
    fn cgroup_path_outside_of_the_namespace_falls_back_to_the_mount() {
        let machine = Machine::new("0-3");
        machine.write("proc/self/cgroup", "0::/../../other\n");
        machine.write("sys/fs/cgroup/cpuset.cpus.effective", "0-2");
        assert_eq!(machine.topology("0-3").usable().to_string(), "0-2");
    }

    #[test]
    fn missing_and_malformed_files_are_named() {
        let empty = tempfile::tempdir().expect("a temporary directory");
        let error = Topology::read_below(empty.path(), &CpuSet::default()).expect_err("no sys");
        assert!(
            matches!(&error, TopologyError::Unreadable { path, .. } if path.ends_with("present"))
        );
        let machine = Machine::new("zero");
        let error = Topology::read_below(machine.root(), &CpuSet::default()).expect_err("no list");
        assert!(error.to_string().contains("zero"), "{error}");
    }

    #[test]
    fn node_of_a_virtual_interface_is_unknown() {
        let machine = Machine::new("0");
        machine.write("sys/class/net/eth0/device/numa_node", "1\n");
        machine.write("sys/class/net/eth1/device/numa_node", "-1\n");
        assert_eq!(interface_node(machine.root(), "eth0"), Some(NumaNode(1)));
        assert_eq!(interface_node(machine.root(), "eth1"), None);
        assert_eq!(interface_node(machine.root(), "veth0"), None);
    }

    #[test]
    fn this_machine_has_a_usable_cpu() {
        let topology = Topology::read().expect("a topology");
        assert!(!topology.usable().is_empty());
    }
}
