//! Pods that come and go over and over: nothing is left of what has gone, neither in the kernel nor in
//! the process. `XSKIFF_CHURN_CYCLES` (80) makes it long.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use xskiff::forwarding_view::NEXT_HOPS_OF_GONE_PODS_MAX;
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::bpf_objects;
use crate::churn::{Churn, resident_kb, told};
use crate::world::number_from;

/// How much larger the process may be after the first half of the cycles: allocators keep some of what
/// they had, and take a while to have seen the most that is needed at once.
const FIRST_KB_MAX: u64 = 12 << 10;
/// And after the second half, however many they are: nothing is left of a pod.
const LATER_KB_MAX: u64 = 6 << 10;
/// Next hops that are no pod's, and those that pods have at once beside their first: gateways, neighbours.
const NEXT_HOPS_OF_OTHERS: usize = 64;
/// Looks at the process's memory, of which the least counts: what is freed is given back a little later.
const LOOKS: u32 = 20;

/// How much memory the process has once all is quiet.
fn settled_kb(process: u32) -> u64 {
    let looks = (0..LOOKS).map(|_| {
        std::thread::sleep(Duration::from_millis(100));
        resident_kb(process)
    });
    looks.min().expect("some")
}

/// Everything that could be left behind.
fn left(churn: &Churn, process: u32) -> BTreeMap<&'static str, String> {
    let node = &churn.world.scene.node;
    let lines = |words: &str| node.ip(words).expect("ip").lines().count().to_string();
    let files = |directory: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
            .unwrap_or_default();
        // `ip` makes these in every BPF file system that it finds.
        names.retain(|name| !["ip", "tc", "xdp"].iter().any(|own| name == own));
        names.sort();
        format!("{names:?}")
    };
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fd")).expect("fd").flatten();
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for descriptor in descriptors {
        let target = std::fs::read_link(descriptor.path()).unwrap_or_default();
        let target = target.to_string_lossy();
        let kind = target.split(':').next().unwrap_or_default();
        *kinds
            .entry(target.rsplit_once("anon_inode").map_or(kind, |(_, kind)| kind).into())
            .or_default() += 1;
    }
    // Connections of clients that ended a moment ago, and files that are read now and then.
    kinds.retain(|kind, _| !kind.starts_with('/') || kind.contains("bpf"));
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).expect("maps");
    let rings = maps.lines().filter(|line| line.contains("socket:")).count();
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("threads").flatten();
    let names = threads.map(|one| std::fs::read_to_string(one.path().join("comm")));
    // Those that read files for tokio come and go by themselves.
    let threads = names.flatten().filter(|name| !name.starts_with("tokio")).count();
    let run = churn.world.files.socket.parent().expect("a directory");
    let pins = run.with_file_name("run-bpf");
    BTreeMap::from([
        ("descriptors", format!("{kinds:?}")),
        ("BPF objects", bpf_objects::of(process)),
        ("mapped rings", rings.to_string()),
        ("threads", threads.to_string()),
        ("routes", lines("route show table all")),
        ("routes of IPv6", lines("-6 route show table all")),
        ("rules", lines("rule show")),
        ("rules of IPv6", lines("-6 rule show")),
        ("links", lines("-br link show")),
        ("neighbours", lines("neighbour show nud permanent")),
        ("run directory", files(run)),
        ("admitted", files(&run.join("admitted"))),
        ("pinned links", files(&pins)),
        ("record", std::fs::read_to_string(run.join("endpoints.json")).expect("a record")),
    ])
}

/// XDP programs on the node's interfaces, by `ip`.
fn programs(churn: &Churn) -> usize {
    let links = churn.world.scene.node.ip("-details link show").expect("ip");
    links.lines().filter(|line| line.contains("prog/xdp")).count()
}

#[test]
fn pods_that_come_and_go_over_and_over_leave_nothing() {
    const THREADS: usize = 4;
    const PODS: usize = 8;
    if !root_or_skip("cycles of ADD and DEL") {
        return;
    }
    let cycles = usize::try_from(number_from("XSKIFF_CHURN_CYCLES", 80)).expect("few");
    let churn = Churn::start("cycles", PODS);
    let cycle = |times: usize| {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let caller = &churn.caller;
                scope.spawn(move || {
                    for round in 0..times / THREADS {
                        let number = thread * PODS / THREADS + round % (PODS / THREADS);
                        caller.add(number);
                        caller.remove(number);
                    }
                });
            }
        });
        churn.wait_until_all_is_closed();
        // What follows the kernel settles.
        std::thread::sleep(Duration::from_secs(1));
    };
    // What is made once is made by then.
    cycle((cycles / 10).max(2 * PODS));
    let process = churn.process();
    // Its own connection is closed by the node in the node's own time.
    std::thread::sleep(Duration::from_secs(1));
    let (before, had) = (left(&churn, process), programs(&churn));
    let unused = bpf_objects::maps_without_program();
    let resident = settled_kb(process);
    let began = Instant::now();
    cycle(cycles / 2);
    let halfway = settled_kb(process);
    cycle(cycles - cycles / 2);
    let taken = began.elapsed();
    let now = settled_kb(process);
    let arrivals = churn.arrivals();
    println!(
        "{cycles} cycles in {taken:?}: resident {resident} kB before, {halfway} kB halfway, {now} kB \
         after; {}; {}",
        told("made", &arrivals.made),
        told("adopted", &arrivals.adopted)
    );
    let is_as_before = || left(&churn, process) == before;
    if wait_until(Duration::from_secs(10), is_as_before).is_none() {
        assert_eq!(left(&churn, process), before);
    }
    assert_eq!(programs(&churn), had);
    let is_used = || bpf_objects::maps_without_program().is_subset(&unused);
    let maps = bpf_objects::maps_without_program;
    assert!(wait_until(Duration::from_secs(10), is_used).is_some(), "{unused:?}, {:?}", maps());
    let grown = (halfway.saturating_sub(resident), now.saturating_sub(halfway));
    assert!(grown.0 < FIRST_KB_MAX && grown.1 < LATER_KB_MAX, "{grown:?} kB more than {resident}");
    // A number for each of them made every table that was published larger than the one before.
    let status = churn.world.status();
    let hops = status.tables.iter().find(|table| table.name == "next_hops").expect("its row");
    let known = NEXT_HOPS_OF_GONE_PODS_MAX + status.ports.len() + NEXT_HOPS_OF_OTHERS;
    assert!(hops.high_water <= known as u64, "{hops:?}");
    assert_eq!((arrivals.failed, arrivals.abandoned, arrivals.late), (0, 0, 0), "{arrivals:?}");
    assert!(arrivals.removed >= cycles as u64, "{arrivals:?}");
    // Those that were there all the time still are.
    assert_eq!(churn.world.status().ports.iter().filter(|port| port.kind == "pod").count(), 4);
}
