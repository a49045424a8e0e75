//! An interface's receive interrupts: found, moved to chosen CPUs, and put back. Not wired yet: no
//! setting of the node process asks for it.
//!
//! Where they belong is the caller's decision. Measured with AF_XDP: a polling worker and a
//! threaded NAPI on one CPU reach a seventeenth of the rate that either placement alone does, so
//! interrupts go to the worker's CPU only when the worker busy-polls, else elsewhere.
//! `irqbalance` moves them away again within seconds; it has to be stopped or told to leave them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cpu_set::{CpuId, CpuSet};

/// One interrupt of an interface's queues.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interrupt {
    /// The kernel's number.
    pub number: u32,
    /// The driver's name for it, such as `eth0-TxRx-3`.
    pub name: String,
}

/// An interrupt that stayed where it was.
#[derive(Debug)]
pub struct Refusal {
    /// The interrupt.
    pub interrupt: Interrupt,
    /// Where it was to go.
    pub cpus: CpuSet,
    /// Why it did not.
    pub reason: RefusalReason,
}

/// Why an interrupt stayed.
#[derive(Debug, thiserror::Error)]
pub enum RefusalReason {
    /// Reading or writing its affinity failed.
    #[error(
        "{path}: {source}; it needs root, a writable /proc, and a driver that does not manage \
         its interrupts itself"
    )]
    NotPermitted {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The write was accepted and another value read back.
    #[error("the kernel kept it on CPU {0}")]
    NotTaken(String),
}

/// What moving did, and what undoes it.
#[derive(Debug, Default)]
#[must_use = "dropping it forgets where the interrupts were"]
pub struct Moved {
    /// Each interrupt that was moved, with the list it had before.
    pub moved: Vec<(Interrupt, CpuSet)>,
    /// Each that was not.
    pub refused: Vec<Refusal>,
}

/// The queue interrupts of `interface`, in order of number.
///
/// A line of `/proc/interrupts` belongs to it when the number is among the device's
/// `msi_irqs` in sysfs, or when its name holds the interface's name or its device's name as a
/// word. Vectors for configuration and errors are left out.
///
/// # Errors
/// `/proc/interrupts` cannot be read.
pub fn interface_interrupts(root: &Path, interface: &str) -> io::Result<Vec<Interrupt>> {
    let table = fs::read_to_string(root.join("proc/interrupts"))?;
    let device = root.join("sys/class/net").join(interface).join("device");
    let device_name = fs::canonicalize(&device)
        .ok()
        .and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    let numbers = message_interrupts(&device);

    let belongs = |interrupt: &Interrupt| {
        let named = has_word(&interrupt.name, interface)
            || device_name.as_deref().is_some_and(|device| has_word(&interrupt.name, device));
        named || numbers.contains(&interrupt.number)
    };
    let mut found: Vec<_> =
        table.lines().filter_map(parse_line).filter(belongs).filter(is_queue).collect();
    found.sort();
    found.dedup_by_key(|interrupt| interrupt.number);
    Ok(found)
}

/// Spreads `interrupts` over `cpus` in turn: the first to the first CPU, and so on around.
pub fn spread(root: &Path, interrupts: &[Interrupt], cpus: &[CpuId]) -> Moved {
    let mut outcome = Moved::default();
    for (interrupt, cpu) in interrupts.iter().zip(cpus.iter().cycle()) {
        let wanted = CpuSet::from_iter([*cpu]);
        match move_one(root, interrupt, &wanted) {
            Ok(before) => outcome.moved.push((interrupt.clone(), before)),
            Err(reason) => {
                outcome.refused.push(Refusal { interrupt: interrupt.clone(), cpus: wanted, reason })
            }
        }
    }
    outcome
}

impl Moved {
    /// Puts every moved interrupt back; returns what could not be.
    #[must_use]
    pub fn undo(self, root: &Path) -> Vec<Refusal> {
        let mut refused = Vec::new();
        for (interrupt, before) in self.moved {
            if let Err(reason) = move_one(root, &interrupt, &before) {
                refused.push(Refusal { interrupt, cpus: before, reason });
            }
        }
        refused
    }
}

/// Moves one interrupt; returns the list it had before.
fn move_one(root: &Path, interrupt: &Interrupt, cpus: &CpuSet) -> Result<CpuSet, RefusalReason> {
    let path = root.join(format!("proc/irq/{}/smp_affinity_list", interrupt.number));
    let failed = |source| RefusalReason::NotPermitted { path: path.clone(), source };
    let read = || {
        let text = fs::read_to_string(&path)?;
        text.parse::<CpuSet>().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    };
    let before = read().map_err(failed)?;
    fs::write(&path, format!("{cpus}\n")).map_err(failed)?;
    let after = read().map_err(failed)?;
    if after == *cpus { Ok(before) } else { Err(RefusalReason::NotTaken(after.to_string())) }
}

/// Numbers of the device's message-signalled interrupts. A virtio device has them at its PCI parent.
fn message_interrupts(device: &Path) -> BTreeSet<u32> {
    let own = device.join("msi_irqs");
    // Resolved first: `..` of a symbolic link would be the directory of the link.
    let parent = fs::canonicalize(device).ok().map(|path| path.join("../msi_irqs"));
    let Some(entries) =
        fs::read_dir(own).ok().or_else(|| parent.and_then(|path| fs::read_dir(path).ok()))
    else {
        return BTreeSet::new();
    };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// ` 29:  0  31337  PCI-MSIX-0000:00:02.0  1-edge  virtio1-input.0`: number, a count per CPU,
/// chip, hardware number, names.
fn parse_line(line: &str) -> Option<Interrupt> {
    let (number, rest) = line.split_once(':')?;
    let name = rest.split_whitespace().next_back()?;
    Some(Interrupt { number: number.trim().parse().ok()?, name: name.to_owned() })
}

/// Whether `name` holds `word` with no letter or digit directly beside it.
fn has_word(name: &str, word: &str) -> bool {
    let beside = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.match_indices(word).any(|(start, found)| {
        let before = name.get(..start).and_then(|text| text.chars().next_back());
        let after = name.get(start + found.len()..).and_then(|text| text.chars().next());
        !word.is_empty() && !beside(before) && !beside(after)
    })
}

/// Configuration, error and event vectors carry no packets (`virtio0-config`, `mlx5_async0`).
fn is_queue(interrupt: &Interrupt) -> bool {
    let other = ["config", "async", "ctrl", "mgmt", "misc", "aenq"];
    !other.iter().any(|word| interrupt.name.contains(word))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::{interface_interrupts, spread};
    use crate::cpu_set::CpuId;
    use crate::topology::fake::Machine;

    const INTERRUPTS: &str = "\
           CPU0       CPU1
  1:          0          9   IO-APIC   1-edge      i8042
 28:          0          1 PCI-MSIX-0000:00:01.0   0-edge      virtio0-config
 29:          0      31337 PCI-MSIX-0000:00:01.0   1-edge      virtio0-input.0
 30:          0         12 PCI-MSIX-0000:00:01.0   2-edge      virtio0-output.0
 31:          5          0 PCI-MSIX-0000:00:02.0   0-edge      i40e-eth1-TxRx-0
 32:          5          0 PCI-MSIX-0000:00:02.0   1-edge      i40e-eth10-TxRx-0
 33:          5          0 PCI-MSIX-0000:00:03.0   1-edge      mlx5_comp0
 34:          5          0 PCI-MSIX-0000:00:03.0   2-edge      mlx5_async0
NMI:          0          0   Non-maskable interrupts
";

    fn machine() -> Machine {
        let machine = Machine::new("0-1");
        machine.write("proc/interrupts", INTERRUPTS);
        machine.write("sys/devices/pci0/0000:00:01.0/virtio0/uevent", "");
        machine.write("sys/devices/pci0/0000:00:03.0/msi_irqs/33", "msix");
        machine.write("sys/devices/pci0/0000:00:03.0/msi_irqs/34", "msix");
        for (interface, device) in
            [("eth0", "pci0/0000:00:01.0/virtio0"), ("eth2", "pci0/0000:00:03.0")]
        {
            let dir = machine.root().join("sys/class/net").join(interface);
            fs::create_dir_all(&dir).expect("a directory");
            let target = machine.root().join("sys/devices").join(device);
            symlink(target, dir.join("device")).expect("a link");
        }
        for number in 28..=34 {
            machine.write(&format!("proc/irq/{number}/smp_affinity_list"), "0-1\n");
        }
        machine
    }

    fn numbers(machine: &Machine, interface: &str) -> Vec<u32> {
        let found = interface_interrupts(machine.root(), interface).expect("a table");
        found.iter().map(|interrupt| interrupt.number).collect()
    }

    #[test]
    fn queue_interrupts_are_found_by_interface_device_or_number() {
        let machine = machine();
        assert_eq!(numbers(&machine, "eth0"), [29, 30], "by the name of the virtio device");
        assert_eq!(numbers(&machine, "eth1"), [31], "by its own name, and not eth10's");
        assert_eq!(numbers(&machine, "eth2"), [33], "by msi_irqs");
        assert_eq!(numbers(&machine, "veth0"), [] as [u32; 0]);
    }

    #[test]
    fn interrupts_are_spread_in_turn_and_put_back() {
        let machine = machine();
        let found = interface_interrupts(machine.root(), "eth0").expect("a table");
        let moved = spread(machine.root(), &found, &[CpuId(1), CpuId(0)]);
        assert!(moved.refused.is_empty());
        assert_eq!(machine.read("proc/irq/29/smp_affinity_list"), "1");
        assert_eq!(machine.read("proc/irq/30/smp_affinity_list"), "0");
        assert!(moved.undo(machine.root()).is_empty());
        assert_eq!(machine.read("proc/irq/29/smp_affinity_list"), "0-1");
        assert_eq!(machine.read("proc/irq/30/smp_affinity_list"), "0-1");
    }

    #[test]
    fn interrupt_that_cannot_be_moved_is_reported_and_the_rest_go_on() {
        let machine = machine();
        let found = interface_interrupts(machine.root(), "eth0").expect("a table");
        let missing = machine.root().join("proc/irq/29/smp_affinity_list");
        fs::remove_file(missing).expect("to remove");
        let moved = spread(machine.root(), &found, &[CpuId(1)]);
        assert_eq!(moved.moved.len(), 1);
        let refusal = moved.refused.first().expect("a refusal");
        assert_eq!(refusal.interrupt.number, 29);
        assert!(refusal.reason.to_string().contains("irq/29"), "{}", refusal.reason);
    }
}
