use std::os::unix::fs::PermissionsExt;

use dataplane::address::Protocol;
use dataplane::conntrack::{Life, Seen};
use dataplane::flow::{FlowRoute, Origin};
use dataplane::flows::{NewFlow, owner_of};
use dataplane::forwarding::NextHopId;
use dataplane::policy::RuleId;
use dataplane::tables::Timeouts;
use dataplane::time::Nanos;

use super::*;

const CAPACITIES: (usize, usize) = (4000, 500);

fn directory() -> Option<tempfile::TempDir> {
    let directory = tempfile::tempdir_in("/dev/shm").ok()?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    prepare_directory(directory.path()).ok().map(|_| directory)
}

macro_rules! directory_or_skip {
    () => {
        match directory() {
            Some(directory) => directory,
            None => return eprintln!("skipped: /dev/shm is not tmpfs"),
        }
    };
}

/// Starts as a process would. A test's memory stays mapped and locked until it ends, so each
/// "process" has copies of the files of the one before.
fn start(directory: &Path, workers: usize, (v4, v6): (usize, usize)) -> FlowMemory {
    start_growing(directory, workers, FlowCapacities::fixed(v4, v6))
}

fn start_growing(directory: &Path, workers: usize, capacities: FlowCapacities) -> FlowMemory {
    let random = [u64::try_from(workers).unwrap(), 99];
    FlowMemory::start(&Plan { directory, capacities, workers, hash_key: random }).unwrap()
}

fn copied(from: &Path) -> tempfile::TempDir {
    let to = directory().unwrap();
    for name in ["flows-ipv4", "flows-ipv6"] {
        let copy = to.path().join(name);
        std::fs::write(&copy, std::fs::read(from.join(name)).unwrap()).unwrap();
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    to
}

fn flow4(number: u32) -> NewFlow<FlowKey4> {
    let l4_port = u16::try_from(number).unwrap();
    let key = |source: u32, destination: u32| {
        FlowKey4::new(Protocol::TCP, (source, l4_port), (destination, 80))
    };
    let original = key(0x0a00_0001, 0x0a60_0001);
    // Every second one is translated.
    let target = if number.is_multiple_of(2) { 0x0af4_0005 } else { original.destination() };
    NewFlow {
        original,
        reply: key(0x0a00_0001, target).reversed(),
        life: Life::opened(Protocol::TCP, Seen::of(Seen::SYN), Nanos(1), &Timeouts::default()),
        route: FlowRoute { generation: 9, hop: NextHopId(1), reverse_hop: NextHopId(2) },
        origin: Origin { service: None, rule: RuleId(3) },
        pod: dataplane::identity::PodTag::Unknown,
        charge: dataplane::charge::Charge::NOBODY,
    }
}

/// Opens so many flows, each at its owner.
fn open(memory: &mut FlowMemory, flows: u32) {
    open_more(memory, 1..=flows);
}

fn open_more(memory: &mut FlowMemory, numbers: std::ops::RangeInclusive<u32>) {
    let workers = memory.holds.len();
    for number in numbers {
        let flow = flow4(number);
        let hash = flow.original.hash(&memory.tables.hasher);
        let hold = &mut memory.holds[owner_of(hash, workers)];
        let second = flow.reply.hash(&memory.tables.hasher);
        let alias = (second != hash).then_some(second);
        hold.v4.insert(&flow, flow_table::Hashes { original: hash, alias }).unwrap();
    }
}

fn assert_there(memory: &FlowMemory, flows: u32) {
    let FlowTables { v4, hasher, .. } = &memory.tables;
    for number in 1..=flows {
        let flow = flow4(number);
        let found = [flow.original, flow.reply]
            .map(|key| v4.lookup(key.hash(hasher), &key).map(|hit| hit.handle));
        assert!(found[0].is_some() && found[0] == found[1], "flow {number}: {found:?}");
    }
    assert_eq!(v4.statistics().used, u64::from(flows));
}

fn told(memory: &FlowMemory) -> [(Outcome, u64, u64); 2] {
    let told = |one: &Beginning| (one.outcome, one.flows, one.lost);
    [told(&memory.beginnings[0]), told(&memory.beginnings[1])]
}

#[test]
fn flows_are_taken_over_rebuilt_or_moved_and_generations_go_on() {
    let directory = directory_or_skip!();
    let mut first = start(directory.path(), 2, CAPACITIES);
    assert_eq!(told(&first), [(Outcome::New, 0, 0); 2]);
    assert!(first.beginnings.iter().all(|one| one.reason.is_none() && one.file.is_some()));
    assert_eq!(first.generation, 0);
    open(&mut first, 1000);
    first.tables.note_generation(41);
    // Killed.
    let killed = copied(directory.path());
    let second = start(killed.path(), 2, CAPACITIES);
    assert_eq!(told(&second), [(Outcome::Rebuilt, 1000, 0), (Outcome::Rebuilt, 0, 0)]);
    assert_eq!(second.generation, 42, "no flow has it");
    assert_there(&second, 1000);
    let FlowMemory { tables, mut holds, .. } = second;
    holds.iter().for_each(|hold| (0..2).for_each(|worker| hold.quiescence.go_offline(worker)));
    holds.iter_mut().for_each(|hold| hold.v4.owner.reclaim());
    assert_eq!(tables.close(holds), [true, true]);
    // Ended in order.
    for (workers, capacities, outcome) in [
        (2, CAPACITIES, Outcome::TakenOver),
        (3, CAPACITIES, Outcome::Rebuilt),
        (2, (9000, 900), Outcome::Moved),
        // A smaller one is the one that was, used in part.
        (1, (1200, 500), Outcome::Rebuilt),
    ] {
        let ended = copied(killed.path());
        let third = start(ended.path(), workers, capacities);
        assert_eq!(told(&third)[0], (outcome, 1000, 0), "{:?}", third.beginnings);
        assert_eq!(third.generation, 43);
        assert_there(&third, 1000);
        assert!(third.beginnings.iter().all(|one| one.reason.is_none()), "{:?}", third.beginnings);
        // A moved table is as good as any for the one after it.
        let next = copied(ended.path());
        assert_there(&start(next.path(), workers, capacities), 1000);
    }
}

#[test]
fn flows_stay_when_details_are_switched_on_or_off_and_are_taken_over_where_they_stay_on() {
    let directory = directory_or_skip!();
    let (v4, v6) = CAPACITIES;
    let with = |details| FlowCapacities { details, ..FlowCapacities::fixed(v4, v6) };
    open(&mut start_growing(directory.path(), 1, with(false)), 1000);
    let mut left = directory;
    for (details, outcome) in
        [(true, Outcome::Moved), (true, Outcome::Rebuilt), (false, Outcome::Moved)]
    {
        let found = copied(left.path());
        let next = start_growing(found.path(), 1, with(details));
        assert_eq!(told(&next)[0], (outcome, 1000, 0), "{:?}", next.beginnings);
        assert_there(&next, 1000);
        assert_eq!(next.tables.v4.has_details(), details);
        left = found;
    }
}

/// As an earlier version wrote them: the number of its format, and layouts that are its own affair.
#[test]
fn flows_that_an_earlier_version_wrote_go_on_whether_it_ended_or_was_killed() {
    let directory = directory_or_skip!();
    open(&mut start(directory.path(), 2, CAPACITIES), 1000);
    let path = directory.path().join("flows-ipv4");
    let mut bytes = std::fs::read(&path).unwrap();
    let mut set = |word: usize, value: u64| {
        bytes[word * 8..][..8].copy_from_slice(&value.to_ne_bytes());
    };
    set(16, Format::OneMapping.number());
    set(22, 0x0bad_f00d);
    std::fs::write(&path, bytes).unwrap();
    let upgraded = copied(directory.path());
    let second = start(upgraded.path(), 2, CAPACITIES);
    assert_eq!(told(&second), [(Outcome::Moved, 1000, 0), (Outcome::Rebuilt, 0, 0)]);
    assert_there(&second, 1000);
    // It is of this version's format now.
    let next = copied(upgraded.path());
    assert_eq!(told(&start(next.path(), 2, CAPACITIES))[0], (Outcome::Rebuilt, 1000, 0));
}

/// They were moved to a table without room for all of them, and some were lost.
#[test]
fn no_flow_is_lost_by_a_lower_maximum_and_none_is_added_until_there_is_room() {
    let directory = directory_or_skip!();
    open(&mut start(directory.path(), 1, CAPACITIES), 1000);
    let smaller = copied(directory.path());
    let mut memory = start(smaller.path(), 1, (600, 500));
    assert_eq!(told(&memory)[0], (Outcome::Rebuilt, 1000, 0));
    assert_there(&memory, 1000);
    assert!((600..=1000).contains(&memory.tables.v4.capacity()));
    let flow = flow4(1001);
    let hash = |key: &FlowKey4| key.hash(&memory.tables.hasher);
    let (original, reply) = (hash(&flow.original), hash(&flow.reply));
    let alias = (original != reply).then_some(reply);
    let refused = memory.holds[0].v4.insert(&flow, flow_table::Hashes { original, alias });
    assert_eq!(refused, Err(flow_table::InsertError::SlabFull));
}

#[test]
fn a_table_that_has_grown_is_found_as_large_as_it_was() {
    let directory = directory_or_skip!();
    let family = FamilyCapacity { initial: 256, max: 8000, range: 16_000, is_derived: false };
    let capacities =
        FlowCapacities { v4: family, v6: family, per_endpoint: 0, memory_bytes: 0, details: false };
    let allocated = |directory: &Path| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(directory.join("flows-ipv4")).unwrap().blocks() * 512
    };
    let mut first = start_growing(directory.path(), 1, capacities);
    let (at_first, length) = (allocated(directory.path()), 8 * family.range as u64);
    assert!(at_first > 512 * 121 && at_first < 512 * 121 + 16 * 4096, "{at_first} of {length}");
    assert_eq!((first.tables.v4.capacity(), first.tables.v4.committed()), (256, 512));
    // As the control thread does before it is full.
    let tables = first.tables.clone();
    first.growing[0].take(&tables.v4.regions_of(4000)).unwrap();
    tables.v4.commit(4000);
    open(&mut first, 2000);
    tables.v4.note_capacity();
    let grown = tables.v4.capacity();
    assert!((2000..4096).contains(&grown), "{grown}");
    let killed = copied(directory.path());
    let mut second = start_growing(killed.path(), 1, capacities);
    assert_eq!(told(&second)[0], (Outcome::Rebuilt, 2000, 0));
    assert_there(&second, 2000);
    assert_eq!(second.tables.v4.capacity(), grown);
    // Also for one that may become larger than the file's range: its flows move.
    let other = copied(directory.path());
    let larger = FamilyCapacity { max: 20_000, range: 20_000, ..family };
    let moved = start_growing(other.path(), 1, FlowCapacities { v4: larger, ..capacities });
    assert_eq!(told(&moved)[0], (Outcome::Moved, 2000, 0));
    assert!(moved.tables.v4.capacity() >= grown, "{}", moved.tables.v4.capacity());
    open_more(&mut second, 2001..=3000);
    assert_there(&second, 3000);
}

#[test]
fn what_cannot_be_taken_is_named_and_an_empty_table_begins() {
    let directory = directory_or_skip!();
    open(&mut start(directory.path(), 1, CAPACITIES), 100);
    let word = |number: usize| number * 8..number * 8 + 8;
    type Damage = fn(&mut Vec<u8>, std::ops::Range<usize>);
    let set: Damage = |bytes, at| bytes[at].copy_from_slice(&77u64.to_ne_bytes());
    let cut: Damage = |bytes, _| bytes.truncate(8192);
    for (damage, at, said) in [
        (set, word(0), "there is no flow table"),
        (set, word(1), "format 77 and this program knows 2"),
        (set, word(16), "a version of xskiff that this one cannot read"),
        (set, word(17), "another boot"),
        (cut, word(0), "was given 8192"),
    ] {
        let damaged = copied(directory.path());
        let path = damaged.path().join("flows-ipv4");
        let mut bytes = std::fs::read(&path).unwrap();
        damage(&mut bytes, at);
        std::fs::write(&path, bytes).unwrap();
        let memory = start(damaged.path(), 1, CAPACITIES);
        let [v4, v6] = &memory.beginnings[..] else { panic!("two tables") };
        let reason = v4.reason.clone().unwrap_or_default();
        assert!(reason.contains(said) && reason.contains("flows-ipv4"), "{reason}");
        assert_eq!((v4.outcome, v4.flows, v4.file.as_deref()), (Outcome::New, 0, Some(&*path)));
        assert_eq!((v6.outcome, &v6.reason), (Outcome::Rebuilt, &None), "the other family goes on");
        assert_there(&memory, 0);
        let next = copied(damaged.path());
        assert_eq!(start(next.path(), 1, CAPACITIES).beginnings[0].reason, None);
    }
}

#[test]
fn a_table_in_use_is_refused_and_a_directory_on_a_disk_gives_memory_of_the_process() {
    let directory = directory_or_skip!();
    let _first = start(directory.path(), 1, CAPACITIES);
    let capacities = FlowCapacities::fixed(100, 100);
    let plan = |directory| Plan { directory, capacities, workers: 1, hash_key: [1, 2] };
    let refused = FlowMemory::start(&plan(directory.path())).err().map(|error| error.to_string());
    assert!(refused.unwrap().contains("flows-ipv4 is in use by a living process"));
    let disk = tempfile::tempdir().unwrap();
    std::fs::set_permissions(disk.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    if prepare_directory(disk.path()).is_ok() {
        return eprintln!("skipped: the directory for temporary files is in memory");
    }
    let mut memory = FlowMemory::start(&plan(disk.path())).unwrap();
    for beginning in &memory.beginnings {
        let reason = beginning.reason.clone().unwrap_or_default();
        assert!(reason.contains("is not on tmpfs or hugetlbfs"), "{reason}");
        assert_eq!((beginning.file.as_deref(), beginning.outcome), (None, Outcome::New));
    }
    open(&mut memory, 50);
    assert_there(&memory, 50);
}
