//! Flow tables that grow, shrink and are resized under traffic, and are as large as they were after
//! the process has ended: no connection notices any of it.

use std::time::Duration;

use control::admin::status::FlowTableFill;
use xskiff::demo::scene::{BALANCER, BUYER, ECHO, FLOOD_SOURCES, HTTP, WEB_1, to};
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::{path, root_or_skip};

use crate::clients::{Client, resets};
use crate::small_memory::SmallMemory;
use crate::world::{PATIENCE, Shape, World};

const CONNECTIONS: u64 = 60;
const ACTIVE: u64 = 12;
/// How long there is no node process.
const GONE: Duration = Duration::from_millis(300);

fn fill(world: &World) -> FlowTableFill {
    let mut tables = world.status().flow_tables.into_iter();
    tables.find(|table| table.table == "flows_ipv4").expect("the IPv4 table").fill
}

/// Begins so many connections that are never answered.
fn flood(world: &World, count: u64) {
    let (to, sources) = (to(BALANCER[0], HTTP[0]), format!("--sources={FLOOD_SOURCES}"));
    let words = ["flood", &to, &sources, "--rate=20000", &format!("--count={count}")];
    let agent = world.scene.client.agent(&words).expect("a flood");
    let ended = agent.process().wait(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    assert!(ended.success(), "{}", agent.process().log_tail());
}

/// What `xskiff ct resize` says, and whether it was obeyed.
fn resize(world: &World, words: &[&str]) -> Result<String, String> {
    let socket = world.files.socket.to_string_lossy();
    let words = [&["--socket", &*socket, "ct", "resize"], words].concat();
    let answer = world.scene.node.run(&path().to_string_lossy(), &words);
    answer.map_err(|error| error.to_string())
}

fn lost(world: &World) -> u64 {
    let status = world.status();
    let full = status.drops.iter().find(|drop| drop.reason == "table-full").expect("a reason");
    full.packets + status.workers.iter().map(|worker| worker.flows_evicted).sum::<u64>()
}

#[test]
fn a_flow_table_grows_and_is_resized_under_traffic_and_outlives_its_process_as_it_is() {
    if !root_or_skip("resizing") {
        return;
    }
    let Some(memory) = SmallMemory::of_megabytes(16) else { return eprintln!("skipped: no tmpfs") };
    let shape = Shape { label: "resize", mtu: 1500, xdp_mode: "native" };
    let directory = format!("flow_table:\n  directory: {}\n", memory.path().display());
    let mut world = World::start_edited(shape, |text| {
        text.replace("flow_table:\n", &directory)
            .replace("ipv4_flows_max: 65536", "ipv4_flows: 256\n  ipv4_flows_max: 40000")
            .replace("ipv6_flows_max: 65536", "ipv6_flows: 256\n  ipv6_flows_max: 512")
    });
    let at_first = fill(&world);
    assert_eq!((at_first.capacity, at_first.capacity_max, at_first.grown), (256, 40_000, 0));
    let target = to(BALANCER[0], HTTP[0]);
    let client = Client::start(&world.scene.client, &target, CONNECTIONS, ACTIVE);
    let resets_before = resets(&world);

    flood(&world, 5000);
    let grown = fill(&world);
    assert!(grown.grown >= 4 && grown.used >= 5000, "{grown:?}");
    assert_eq!((lost(&world), grown.inserts_refused_full), (0, 0), "{grown:?}");
    client.goes_on();

    let told = resize(&world, &["--v4", "20000", "--v6", "1000"]).expect("resized");
    assert!(told.contains("flows_ipv4") && told.contains("flows_ipv6"), "{told}");
    let resized = fill(&world);
    assert!((20_000..20_100).contains(&resized.capacity), "{resized:?}");
    assert!(resized.capacity_max < 20_100 && resized.resized == 1, "{resized:?}");
    client.goes_on();

    for (words, said) in [
        (["--v4", "0"], "0 flows cannot be: ask for at least 64"),
        (["--v4", "100"], "flows are in use, which do not fit into 100"),
        (["--v4", "500000"], "there is no room for"),
    ] {
        let error = resize(&world, &words).expect_err("refused");
        assert!(error.contains(said), "{error}");
    }
    let after = fill(&world);
    assert_eq!((after.capacity, after.resized), (resized.capacity, 1), "{after:?}");
    assert_eq!(after.growth_refused, 1, "the one for memory: {after:?}");
    client.goes_on();

    // By the configuration: a higher maximum, more from the start; and one that cannot be.
    world.change_configuration("ipv4_flows: 256", "ipv4_flows: 30000");
    let by_file = || fill(&world);
    assert!(wait_until(PATIENCE, || by_file().capacity >= 30_000).is_some(), "{:?}", by_file());
    assert_eq!(by_file().capacity_max, 40_000);
    let file = std::fs::read_to_string(&world.files.configuration).expect("the configuration");
    let edited = file.replace("ipv4_flows: 30000\n  ipv4_flows_max: 40000", "ipv4_flows_max: 64");
    std::fs::write(&world.files.configuration, edited).expect("written");
    let waits = || world.status().waiting_for_restart.len() == 2;
    assert!(wait_until(PATIENCE, waits).is_some(), "{:?}", world.status().waiting_for_restart);
    let errors = world.status().errors;
    assert!(errors.iter().any(|error| error.message.contains("do not fit into 64")), "{errors:?}");
    std::fs::write(&world.files.configuration, file).expect("written");
    assert!(wait_until(PATIENCE, || world.status().errors.is_empty()).is_some());
    assert_eq!(by_file().capacity_max, 40_000);
    client.goes_on();
    assert_eq!(resets(&world), resets_before);

    let before = fill(&world);
    for (kill, outcome) in [(false, "taken-over"), (true, "rebuilt")] {
        world = world.again(kill, GONE);
        let table = world.status().flow_tables.swap_remove(0);
        assert_eq!((&*table.outcome, table.lost, table.reason), (outcome, 0, None));
        assert!(table.flows > CONNECTIONS, "{}", table.flows);
        assert_eq!((table.fill.capacity, table.fill.capacity_max), (before.capacity, 40_000));
        client.goes_on();
    }
    client.end_whole(PATIENCE);
    world.assert_kernel_forwarded_nothing();
}

/// Opens so many UDP flows from a pod toward the outside client's echo; says how many were answered.
fn datagrams(world: &World, pod: xskiff::demo::scene::PodPlan, first: u16, count: u16) -> u16 {
    crate::world::within(world.scene.pod(pod), || {
        let answered = (first..first + count).filter(|l4_port| {
            let socket = std::net::UdpSocket::bind((pod.addresses[0], *l4_port)).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a time-out");
            socket.send_to(b"hello", (BALANCER[0], ECHO)).expect("sent");
            socket.recv(&mut [0; 64]).is_ok()
        });
        u16::try_from(answered.count()).expect("few")
    })
}

#[test]
fn one_pod_at_its_bound_opens_no_more_while_another_does_and_both_are_told_apart() {
    if !root_or_skip("flows of one pod") {
        return;
    }
    let shape = Shape { label: "per-pod", mtu: 1500, xdp_mode: "native" };
    let world = World::start_edited(shape, |text| {
        text.replace("flow_table:\n", "flow_table:\n  flows_per_endpoint_max: 40\n")
    });
    assert_eq!(datagrams(&world, BUYER, 20_000, 60), 40);
    assert_eq!(datagrams(&world, WEB_1, 20_000, 20), 20, "another pod is not concerned");
    let status = world.status();
    let dropped = status.drops.iter().find(|drop| drop.reason == "endpoint-flows");
    assert_eq!(dropped.map(|drop| drop.packets), Some(20));
    let told = || world.status().errors.iter().any(|error| error.object == "endpoint market/buyer");
    assert!(wait_until(PATIENCE, told).is_some(), "{:?}", world.status().errors);
    let events = world.ask(&["flows", "--reason", "endpoint-flows"]);
    assert!(events.contains("market/buyer"), "{events}");
    let top = world.ask_json(&["ct", "top", "--by", "pod"]);
    let row = |name: &str| {
        let mut rows = top.as_array().expect("rows").iter();
        rows.find(|row| row["name"] == name).unwrap_or_else(|| panic!("{name}: {top}")).clone()
    };
    assert_eq!(
        (&row("market/buyer")["flows"], &row("market/buyer")["flows_max"]),
        (&40.into(), &40.into())
    );
    assert_eq!(row("shop/web-1")["flows"], 20);
    let services = world.ask_json(&["ct", "top", "--by", "service"]);
    let names: Vec<_> = services.as_array().expect("rows").iter().map(|row| &row["name"]).collect();
    assert!(names.iter().any(|name| name.as_str().is_some_and(|n| n.starts_with("shop/web"))));

    // The bound is raised while the node runs.
    world.change_configuration("flows_per_endpoint_max: 40", "flows_per_endpoint_max: 50");
    assert_eq!(datagrams(&world, BUYER, 21_000, 20), 10);
    // Ended by what they have; those who watch see them go.
    let socket = world.files.socket.to_string_lossy().into_owned();
    let words = ["--socket", &socket, "ct", "watch"];
    let program = path().to_string_lossy();
    let watch = world.scene.node.spawn("watch", &program, &words).expect("a watch");
    let used = || world.status().tables.iter().any(|t| t.name == "watched_flows" && t.used > 0);
    assert!(wait_until(PATIENCE, used).is_some(), "{}", watch.log_tail());
    let ended = world.ask_json(&["ct", "delete", "--endpoint", "market/buyer", "--proto", "udp"]);
    assert_eq!(ended, 50);
    let count = || world.ask_json(&["ct", "count", "--endpoint", "market/buyer"]);
    assert!(wait_until(PATIENCE, || count() == 0).is_some(), "{}", count());
    assert_eq!(datagrams(&world, BUYER, 22_000, 5), 5, "there is room again");
    let log = || std::fs::read_to_string(watch.log()).unwrap_or_default();
    let seen = |word: &str, least: usize| log().matches(word).count() >= least;
    let all = || seen(" closed ", 50) && seen(" opened ", 5) && seen(" changed ", 1);
    assert!(wait_until(PATIENCE, all).is_some(), "{}", log());
    watch.signal(nix::sys::signal::Signal::SIGINT).expect("ended");
    let counts = world.ask_json(&["ct", "count"]);
    assert_eq!(counts["refused_for_endpoint"], 30, "{counts}");
    assert!(counts["flows"].as_u64().is_some_and(|flows| flows >= 25), "{counts}");
}
