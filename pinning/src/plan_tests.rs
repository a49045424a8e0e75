//! Plans on made-up machines, from one CPU to two sockets.

use super::{Note, PlanError, Request, Workers, plan};
use crate::cpu_set::CpuId;
use crate::topology::fake::Machine;
use crate::topology::{NumaNode, Topology};

fn count(count: u16) -> Request {
    Request { workers: Workers::Count(count), reserve_control: true, nic_node: None }
}

fn cores(cores: &[u16]) -> Request {
    Request {
        workers: Workers::Cores(cores.iter().copied().map(CpuId).collect()),
        reserve_control: true,
        nic_node: None,
    }
}

/// Worker CPUs and control CPUs of a plan that must succeed.
fn planned(topology: &Topology, request: &Request) -> (Vec<u16>, String, Vec<Note>) {
    let plan = plan(topology, request).expect("a plan");
    let workers = plan.workers.iter().map(|worker| worker.cpu.0).collect();
    (workers, plan.control.to_string(), plan.notes)
}

#[test]
fn one_cpu_machine_shares_its_cpu_and_warns() {
    let topology = Machine::new("0").topology("0");
    let (workers, control, notes) = planned(&topology, &count(1));
    assert_eq!((workers, control.as_str()), (vec![0], "0"));
    assert!(notes.iter().any(|note| matches!(note, Note::ControlShares(_)) && note.is_warning()));
}

#[test]
fn two_workers_take_both_cpus_of_two_and_control_shares() {
    let topology = Machine::new("0-1").topology("0-1");
    let (workers, control, notes) = planned(&topology, &count(2));
    assert_eq!((workers, control.as_str()), (vec![0, 1], "0-1"));
    assert_eq!(notes.len(), 1);
}

#[test]
fn one_worker_of_two_cpus_leaves_the_first_to_control() {
    let topology = Machine::new("0-1").topology("0-1");
    let (workers, control, notes) = planned(&topology, &count(1));
    assert_eq!((workers, control.as_str()), (vec![1], "0"));
    assert!(!notes.iter().any(Note::is_warning), "{notes:?}");
}

#[test]
fn control_roams_when_nothing_is_reserved() {
    let topology = Machine::new("0-3").topology("0-3");
    let request = Request { reserve_control: false, ..count(2) };
    let (workers, control, notes) = planned(&topology, &request);
    assert_eq!((workers, control.as_str()), (vec![1, 2], "0-3"));
    assert_eq!(notes, []);
}

#[test]
fn physical_cores_come_before_second_threads() {
    let machine = Machine::new("0-7").siblings("0,4").siblings("1,5").siblings("2,6");
    let topology = machine.siblings("3,7").topology("0-7");
    let (workers, control, notes) = planned(&topology, &count(3));
    assert_eq!((workers, control.as_str()), (vec![1, 2, 3], "0,4"));
    assert!(!notes.iter().any(Note::is_warning), "{notes:?}");
}

#[test]
fn workers_that_must_share_a_core_are_named() {
    let topology = Machine::new("0-1").siblings("0-1").topology("0-1");
    let (_, _, notes) = planned(&topology, &count(2));
    assert!(notes.contains(&Note::SharedCore(CpuId(0), CpuId(1))), "{notes:?}");
}

#[test]
fn workers_go_to_the_node_of_the_interface() {
    let topology = Machine::new("0-3").node(0, "0-1").node(1, "2-3").topology("0-3");
    let request = Request { nic_node: Some(NumaNode(1)), ..count(2) };
    let (workers, control, notes) = planned(&topology, &request);
    assert_eq!((workers, control.as_str()), (vec![2, 3], "0-1"));
    assert!(!notes.iter().any(Note::is_warning), "{notes:?}");

    let request = Request { nic_node: Some(NumaNode(1)), ..count(3) };
    let plan = plan(&topology, &request).expect("a plan");
    let remote = Note::RemoteNode { cpu: CpuId(1), node: NumaNode(0), nic_node: NumaNode(1) };
    assert!(plan.notes.contains(&remote), "{:?}", plan.notes);
    assert_eq!(plan.workers.iter().map(|worker| worker.node.0).collect::<Vec<_>>(), [0, 1, 1]);
}

#[test]
fn isolated_cpus_are_for_workers_and_never_for_control() {
    let topology = Machine::new("0-3").isolated("2-3").topology("0-1");
    let (workers, control, notes) = planned(&topology, &count(1));
    assert_eq!((workers, control.as_str()), (vec![2], "0-1"));
    assert!(!notes.iter().any(Note::is_warning), "{notes:?}");
    let (workers, control, notes) = planned(&topology, &count(3));
    assert_eq!((workers, control.as_str()), (vec![1, 2, 3], "0"));
    assert!(notes.contains(&Note::NotIsolated(CpuId(1))), "{notes:?}");
}

#[test]
fn named_cores_keep_their_order() {
    let topology = Machine::new("0-3").topology("0-3");
    let (workers, control, _) = planned(&topology, &cores(&[3, 0]));
    assert_eq!((workers, control.as_str()), (vec![3, 0], "1-2"));
}

#[test]
fn impossible_requests_name_the_cpu_and_what_there_is() {
    let machine = Machine::new("0-4");
    machine.write("sys/devices/system/cpu/online", "0-3");
    machine.write("proc/self/cgroup", "0::/\n");
    machine.write("sys/fs/cgroup/cpuset.cpus.effective", "0-2");
    let topology = machine.topology("0-1");
    let cases = [
        (count(0), "no worker"),
        (count(3), "3 workers were asked for, and this process may use 2 CPUs (0-1)"),
        (cores(&[]), "no worker"),
        (cores(&[9]), "CPU 9 does not exist; this machine has CPU 0-4"),
        (cores(&[4]), "CPU 4 is offline"),
        (cores(&[3]), "CPU 3 is outside of this cgroup's cpuset; usable are CPU 0-1"),
        (cores(&[2]), "CPU 2 is outside of the affinity"),
        (cores(&[1, 1]), "CPU 1 is named for two workers"),
        (Request { nic_node: Some(NumaNode(7)), ..count(1) }, "NUMA node 7 has no CPU"),
    ];
    for (request, expected) in cases {
        let error: PlanError = plan(&topology, &request).expect_err(expected);
        assert!(error.to_string().contains(expected), "`{error}` lacks `{expected}`");
    }
}

#[test]
fn every_count_on_every_machine_gives_distinct_usable_cpus_and_a_place_for_control() {
    let machines = [
        Machine::new("0"),
        Machine::new("0-1").siblings("0-1"),
        Machine::new("0-7").siblings("0,4").siblings("1,5").isolated("1,5").node(0, "0-3"),
        Machine::new("0-63").node(0, "0-31").node(1, "32-63").isolated("8-15,40-47"),
    ];
    for machine in machines {
        let topology = machine.topology("0-63");
        let usable = topology.usable();
        for workers in 1..=u16::try_from(usable.len()).expect("few CPUs") {
            for reserve_control in [false, true] {
                let request = Request { reserve_control, ..count(workers) };
                let plan = plan(&topology, &request).expect("a plan");
                let taken: crate::CpuSet = plan.workers.iter().map(|worker| worker.cpu).collect();
                assert_eq!(taken.len(), usize::from(workers));
                assert!(taken.iter().all(|cpu| usable.contains(cpu)));
                assert!(!plan.control.is_empty());
                assert!(plan.control.iter().all(|cpu| usable.contains(cpu)));
            }
        }
    }
}
