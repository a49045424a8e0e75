//! Pods come and go: at a steady rate, all at once, and over and over. An ADD that is answered is a pod
//! that can be reached; many at once queue, and nothing is left of what has gone.
//!
//! `XSKIFF_CHURN_ENDPOINTS` (50, the demo's four among them) and `XSKIFF_CHURN_CYCLES` (80) make it long; with
//! `XSKIFF_CHURN_ADD_MS` (2,000) a bound of one's own is set on the 99th percentile of an ADD at the
//! steady rate.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use control::admin::arrivals::{ArrivalsStatus, Durations};
use control::admin::{EndpointAdd, Reply, Request};
use xskiff::cli::client::Client;
use xskiff::demo::scene::PODS;
use xskiff::lab::{Namespace, wait_until};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::bpf_objects;
use crate::world::{PATIENCE, Shape, World, number_from};

/// ADDs a second that are offered.
pub const RATE: f64 = 50.0;
/// What may be larger after many cycles than before: allocators keep some of what they had.
const RESIDENT_KB_MAX: u64 = 16 << 10;
/// And for each cycle: numbers of next hops are kept until there are 32,768, since giving one to
/// another next hop has every flow judged again.
const RESIDENT_BYTES_EACH: u64 = 2 << 10;

/// A world with veth pairs of more pods, whose other ends are in namespaces of many.
pub struct Churn {
    pub pods: Vec<Namespace>,
    pub world: World,
    pub caller: Caller,
}

/// Who asks the node, from any thread.
pub struct Caller {
    socket: PathBuf,
    node: String,
    /// Namespaces of pods.
    inside: Vec<String>,
    count: usize,
}

/// Pods in one namespace: each has a route of its own there, so that it answers by its own interface.
const PODS_EACH: usize = 100;

impl Churn {
    fn start(label: &'static str, count: usize) -> Self {
        Self::start_with(label, count, "")
    }

    /// With more words in the configuration.
    fn start_with(label: &'static str, count: usize, words: &str) -> Self {
        let shape = Shape { label, mtu: 1500, xdp_mode: "native" };
        let world = World::start_edited(shape, |text| {
            text.replace("10.244.0.0/24", "10.244.0.0/16") + words
        });
        Self::in_world(world, count)
    }

    /// In a world that there is already.
    pub fn in_world(world: World, count: usize) -> Self {
        let laboratory = &world.scene.laboratory;
        let pods: Vec<Namespace> = (0..count.div_ceil(PODS_EACH))
            .map(|number| laboratory.namespace(&format!("pods{number}")).expect("a namespace"))
            .collect();
        let inside = pods.iter().map(|pods| pods.system_name().to_owned()).collect();
        let (socket, node) = (world.files.socket.clone(), world.scene.node.system_name().into());
        let caller = Caller { socket, node, inside, count };
        let churn = Self { pods, world, caller };
        for number in 0..count {
            churn.make_link(number);
        }
        churn
    }

    fn make_link(&self, number: usize) {
        let (node, pod) = (&self.world.scene.node, &self.pods[number / PODS_EACH]);
        let (inside, table) = (pod.system_name(), 1000 + number);
        let queues = "numrxqueues 2 numtxqueues 2";
        node.ip(&format!(
            "link add churn{number} {queues} type veth peer name e{number} {queues} netns {inside}"
        ))
        .expect("a veth pair");
        node.ip(&format!("link set churn{number} up")).expect("up");
        let address = address(number);
        for words in [
            format!("address add {address}/32 dev e{number}"),
            format!("link set e{number} up"),
            format!("route add default dev e{number} table {table}"),
            format!("rule add from {address} table {table}"),
            format!("neighbour add 192.0.2.2 dev e{number} lladdr 02:00:00:00:00:01"),
        ] {
            pod.ip(&words).expect("the pod's end");
        }
    }

    pub fn arrivals(&self) -> ArrivalsStatus {
        self.world.status().arrivals
    }

    pub fn wait_until_all_is_closed(&self) {
        let closed = || self.arrivals().closing_sockets == 0;
        assert!(wait_until(PATIENCE, closed).is_some(), "{:?}", self.arrivals());
    }

    fn process(&self) -> u32 {
        self.world.status().pid
    }
}

impl Caller {
    fn request(&self, number: usize) -> EndpointAdd {
        EndpointAdd {
            name: format!("churn/pod-{number}"),
            interface: format!("churn{number}"),
            netns: Some(format!("/run/netns/{}", self.inside[number / PODS_EACH])),
            addresses: vec![address(number)],
            mac: None,
            attachment: None,
            pod_uid: None,
            bandwidth: None,
        }
    }

    pub fn ask(&self, request: Request) -> Reply {
        let client = Client::connect(&self.socket);
        let answer = client.and_then(|mut client| client.ask(request));
        answer.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Adds one; `Some` with the reason when it is refused.
    fn try_add(&self, number: usize) -> Option<String> {
        let client = Client::connect(&self.socket);
        let request = Request::EndpointAdd(self.request(number));
        client.and_then(|mut client| client.ask(request)).err().map(|error| error.to_string())
    }

    /// Adds one, and tells how long that took.
    pub fn add(&self, number: usize) -> Duration {
        self.add_request(number, self.request(number))
    }

    /// Adds one of a pod with this UID.
    pub fn add_pod(&self, number: usize, uid: &str) {
        let request = EndpointAdd { pod_uid: Some(uid.to_owned()), ..self.request(number) };
        self.add_request(number, request);
    }

    fn add_request(&self, number: usize, request: EndpointAdd) -> Duration {
        let began = Instant::now();
        let reply = self.ask(Request::EndpointAdd(request));
        let taken = began.elapsed();
        assert!(matches!(reply, Reply::Endpoint(_)), "{number}: {reply:?}");
        taken
    }

    /// Adds so many at [`RATE`], each at its time, whether those before are answered or not; does `then`
    /// for each once it is there. Tells how long each took to be added.
    pub fn add_steadily(&self, count: usize, then: impl Fn(usize) + Sync) -> Vec<Duration> {
        let (taken, began) = (Mutex::new(Vec::new()), Instant::now());
        std::thread::scope(|scope| {
            for number in 0..count {
                let due = Duration::from_secs_f64(number as f64 / RATE);
                std::thread::sleep(due.saturating_sub(began.elapsed()));
                let (taken, then) = (&taken, &then);
                scope.spawn(move || {
                    let one = self.add(number);
                    taken.lock().expect("unpoisoned").push(one);
                    then(number);
                });
            }
        });
        taken.into_inner().expect("unpoisoned")
    }

    pub fn remove(&self, number: usize) {
        let name = format!("churn/pod-{number}");
        assert_eq!(self.ask(Request::EndpointRemove { name }), Reply::Removed(true), "{number}");
    }

    /// `work` for each of the endpoints, by so many threads.
    pub fn with_threads(&self, threads: usize, work: impl Fn(usize) + Sync) {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= self.count {
                            break;
                        }
                        work(number);
                    }
                });
            }
        });
    }

    /// Whether the pod answers the node.
    pub fn answers(&self, number: usize) -> bool {
        let address = address(number).to_string();
        let mut ping = Command::new("ip");
        ping.args(["netns", "exec", &self.node]);
        ping.args(["ping", "-n", "-q", "-c", "1", "-W", "2", &address]);
        ping.output().expect("ping").status.success()
    }
}

pub fn address(number: usize) -> IpAddr {
    let place = u16::try_from(number).expect("few");
    let [third, fourth] = [1 + place / 200, 10 + place % 200];
    Ipv4Addr::new(10, 244, u8::try_from(third).expect("few"), u8::try_from(fourth).expect("few"))
        .into()
}

/// The value that so many of a thousand are at most as large as.
pub fn per_mille(durations: &mut [Duration], of: usize) -> Duration {
    durations.sort_unstable();
    durations[(durations.len() * of / 1000).min(durations.len() - 1)]
}

/// `VmRSS` and the like, in kB.
fn memory_kb(path: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(path).expect(path);
    let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.trim_start_matches(':').split_whitespace().next().expect("a number").parse().expect("kB")
}

fn resident_kb(process: u32) -> u64 {
    memory_kb(&format!("/proc/{process}/status"), "VmRSS")
}

/// CPU time of all threads of a process, in seconds (proc(5): fields 14 and 15, in ticks of 10 ms).
fn cpu_seconds(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("stat");
    let (_, fields) = stat.rsplit_once(") ").expect("fields");
    let ticks = |place: usize| -> f64 {
        fields.split(' ').nth(place).expect("a field").parse().expect("ticks")
    };
    (ticks(11) + ticks(12)) / 100.0
}

fn told(what: &str, durations: &Durations) -> String {
    let ms = |us: u64| us as f64 / 1e3;
    format!(
        "{what}: {} times, 50 % within {} ms, 99 % within {} ms, at most {} ms",
        durations.count(),
        ms(durations.at_most_us(500)),
        ms(durations.at_most_us(990)),
        ms(durations.longest_us)
    )
}

#[test]
fn pods_that_come_steadily_or_all_at_once_can_be_reached_when_they_are_answered_for() {
    if !root_or_skip("pods that come at once") {
        return;
    }
    let endpoints = usize::try_from(number_from("XSKIFF_CHURN_ENDPOINTS", 50)).expect("few");
    let count = endpoints.checked_sub(PODS.len()).expect("more than the demo's pods");
    let bound = Duration::from_millis(number_from("XSKIFF_CHURN_ADD_MS", 2_000));
    let churn = Churn::start("churn", count);
    let (process, caller) = (churn.process(), &churn.caller);
    let manifests = churn.world.files.manifests.clone();
    let before = (resident_kb(process), memory_kb("/proc/meminfo", "MemAvailable"));

    // While policy changes all the time.
    let ended = AtomicBool::new(false);
    let mut taken = std::thread::scope(|scope| {
        scope.spawn(|| change_policies(&manifests, &ended));
        let taken = caller.add_steadily(count, |number| {
            let is_asked = number % 10 == 0;
            assert!(!is_asked || caller.answers(number), "{number} cannot be reached");
        });
        ended.store(true, Ordering::Relaxed);
        taken
    });
    let (median, most) = (per_mille(&mut taken, 500), per_mille(&mut taken, 990));
    println!("{count} ADDs at {RATE} a second: median {median:?}, 99 % within {most:?}");
    assert!(most < bound, "99 % within {most:?}");
    let arrivals = churn.arrivals();
    for (what, one) in
        [("waited", &arrivals.waited), ("made", &arrivals.made), ("adopted", &arrivals.adopted)]
    {
        println!("  {}", told(what, one));
    }
    std::thread::sleep(Duration::from_secs(1));
    let (resident, available) = (resident_kb(process), memory_kb("/proc/meminfo", "MemAvailable"));
    println!(
        "memory of {count} endpoints: process {} kB, kernel about {} kB",
        resident.saturating_sub(before.0),
        before.1.saturating_sub(available).saturating_sub(resident.saturating_sub(before.0))
    );

    // Nothing to do: what does it cost?
    let (began, used) = (Instant::now(), cpu_seconds(process));
    std::thread::sleep(Duration::from_secs(10));
    let share = (cpu_seconds(process) - used) / began.elapsed().as_secs_f64();
    let states = churn.arrivals().states;
    let there: u64 = states.iter().map(|(_, endpoints)| endpoints).sum();
    assert_eq!(there as usize, endpoints, "{states:?}");
    println!(
        "idle with {endpoints} endpoints: {:.2} % of a core, {:.1} MB of the process",
        share * 100.0,
        resident_kb(process) as f64 / 1024.0
    );
    // 3 % are promised for 100; more cost more.
    let promised = 0.03 * (endpoints as f64 / 100.0).max(1.0);
    assert!(share < promised, "{:.2} % of a core", share * 100.0);

    let began = Instant::now();
    caller.with_threads(count, |number| caller.remove(number));
    println!("{count} DELs at once: {:?}", began.elapsed());
    churn.wait_until_all_is_closed();
    println!("  their interfaces were free after {:?}", began.elapsed());

    let began = Instant::now();
    caller.with_threads(count, |number| {
        caller.add(number);
    });
    let taken = began.elapsed();
    let arrivals = churn.arrivals();
    println!("{count} ADDs at once: {taken:?}, of which {} waited at once", arrivals.waiting_most);
    println!("  {}", told("waited, both times", &arrivals.waited));
    // 500 in 15 s, and a second for anything less.
    assert!(taken < Duration::from_secs_f64(1.0 + 15.0 * count as f64 / 500.0), "{taken:?}");
    assert_eq!(arrivals.added, 4 + 2 * count as u64, "{arrivals:?}");
    assert_eq!((arrivals.failed, arrivals.abandoned, arrivals.late), (0, 0, 0), "{arrivals:?}");
    assert_eq!((arrivals.waiting, arrivals.under_way), (0, 0), "{arrivals:?}");
    for number in (0..count).step_by((count / 20).max(1)) {
        assert!(caller.answers(number), "{number} cannot be reached");
    }
}

/// Pods once shared all memory, and the last of many had no frame in their rings: they were ready, and
/// could not be reached.
#[test]
fn a_pod_that_finds_no_packet_memory_is_refused_and_served_when_there_is_some() {
    const PODS: usize = 30;
    if !root_or_skip("pods without packet memory") {
        return;
    }
    let one_region = "packet_memory: {pod_frames: 1024}\n";
    let churn = Churn::start_with("nomemory", PODS, one_region);
    let caller = &churn.caller;
    let table = || {
        let tables = churn.world.status().tables;
        tables.into_iter().find(|table| table.name == "pod_packet_frames").expect("its row")
    };
    let refused = (0..PODS).find_map(|number| Some((number, caller.try_add(number)?)));
    let (refused, why) = refused.expect("a region does not serve so many");
    for word in ["port churn", "used up", "packet_memory.pod_frames"] {
        assert!(why.contains(word), "{why}");
    }
    assert!(refused > 4, "only {refused} were served");
    let (full, arrivals) = (table(), churn.arrivals());
    assert!(full.used <= full.capacity && full.capacity < full.used + 64, "{full:?}");
    assert_eq!((arrivals.failed, arrivals.without_memory), (1, 1), "{arrivals:?}");
    assert!((0..refused).all(|number| caller.answers(number)), "who was served can be reached");

    // Room is made by one that goes, or by a new configuration.
    caller.remove(0);
    churn.wait_until_all_is_closed();
    caller.add(refused);
    assert!(caller.answers(refused));
    assert!(caller.try_add(0).is_some(), "there was room for one");
    let file = &churn.world.files.configuration;
    let text = std::fs::read_to_string(file).expect("the configuration");
    std::fs::write(file, text.replace("pod_frames: 1024", "pod_frames: 2048")).expect("written");
    let is_larger = || table().capacity == 2 * full.capacity;
    assert!(wait_until(PATIENCE, is_larger).is_some(), "{:?}", table());
    caller.add(0);
    assert!(caller.answers(0));
    assert_eq!(table().high_water, table().used);
}

/// A policy about all pods of the churning namespace comes, changes and goes.
fn change_policies(manifests: &Path, ended: &AtomicBool) {
    let mut rounds = 0;
    while !ended.load(Ordering::Relaxed) {
        let port = 8000 + rounds % 100;
        let file = manifests.join("churn.yaml");
        std::fs::write(
            file,
            format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                 metadata: {{name: churn, namespace: churn}}\n\
                 spec:\n  podSelector: {{}}\n  policyTypes: [Ingress]\n  \
                 ingress: [{{ports: [{{protocol: TCP, port: {port}}}]}}]\n"
            ),
        )
        .expect("written");
        rounds += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
    std::fs::remove_file(manifests.join("churn.yaml")).expect("it is there");
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
    let resident = resident_kb(process);
    let began = Instant::now();
    cycle(cycles);
    let taken = began.elapsed();
    let now = resident_kb(process);
    let arrivals = churn.arrivals();
    println!(
        "{cycles} cycles in {taken:?}: resident {resident} kB before, {now} kB after; {}; {}",
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
    let kept = RESIDENT_BYTES_EACH * cycles.min(32_768) as u64 / 1024;
    assert!(now < resident + RESIDENT_KB_MAX + kept, "{resident} kB became {now} kB");
    assert_eq!((arrivals.failed, arrivals.abandoned, arrivals.late), (0, 0, 0), "{arrivals:?}");
    assert!(arrivals.removed >= cycles as u64, "{arrivals:?}");
    // Those that were there all the time still are.
    assert_eq!(churn.world.status().ports.iter().filter(|port| port.kind == "pod").count(), 4);
}
