//! The whole node process against a real kernel: a pod, an uplink and a gateway, each in a network
//! namespace of its own.

mod common;

use control::config::{Segments, Transmit, UnknownPods};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{Namespace, may_run, node_and_gateway};
use control::admin::status::{Level, Status};
use control::admin::{
    CaptureDirection, CaptureRecord, CaptureRequest, EndpointAdd, FlowFilter, PolicyQuestion,
    Reply, Request, StreamItem,
};
use dataplane::nat::Mapping;
use dataplane::tables::{TcpWindows, Timeouts};
use pinning::CpuId;
use tokio::sync::{oneshot, watch};
use xdp_redirect::loader::Mode;
use xdp_redirect::regions::PodMemory;
use xdp_redirect::rules::OnStall;
use xdp_redirect::socket::SocketConfig;
use xdp_redirect::umem::UmemConfig;
use xskiff::cli::client::{Client, ClientError};
use xskiff::node::publisher::Publisher;
use xskiff::node::settings::{HostPortSettings, SnatSettings, Uplink};
use xskiff::node::{ConfigUpdate, Node, Preparing, Settings, Sources};
use xskiff::workers::capacity::FlowCapacities;
use xskiff::workers::{self, Idle};

fn settings(run_directory: &Path) -> Settings {
    Settings {
        node_name: "node-a".into(),
        run_directory: run_directory.to_owned(),
        bpf_filesystem: "/sys/fs/bpf".into(),
        uplinks: vec![Uplink {
            interface: "up0".into(),
            mode: Mode::Auto,
            everything: false,
            optional: false,
        }],
        pod_mode: Mode::Auto,
        on_exit: control::config::OnExit::Detach,
        on_stall: OnStall::Drop,
        stall_after: Duration::from_millis(500),
        restart_after: None,
        faults: false,
        workers: workers::Settings {
            cores: vec![CpuId(0)],
            idle: Idle::Adaptive(Duration::from_micros(50)),
            capacities: FlowCapacities::fixed(4096, 4096),
            flow_directory: run_directory.to_owned(),
            hash_key: [3, 4],
            whole_segments: false,
        },
        umem: UmemConfig { frames: 8192, ..UmemConfig::default() },
        pod_memory: PodMemory { frames_max: 8192, fill_ring: 256, completion_ring: 512 },
        uplink_sockets: SocketConfig::small(),
        pod_sockets: SocketConfig::small(),
        transmit: Transmit::AfXdp,
        segments: Segments::Cut,
        host_port: Some(HostPortSettings { routing_table: 7411, rule_priority: 90 }),
        snat: SnatSettings {
            v4: None,
            v6: None,
            l4_ports: 61_000..=65_535,
            mapping: Mapping::default(),
            rules: Vec::new(),
            cluster: Vec::new(),
            non_masquerade: Vec::new(),
        },
        service_ranges: Vec::new(),
        node_port_addresses: Vec::new(),
        node_port_range: 30_000..=32_767,
        timeouts: Timeouts::default(),
        tcp_windows: TcpWindows::Off,
        returns_directly: false,
        dispatch: dataplane::direct::Dispatch::default(),
        lost_replies: Duration::ZERO,
        adopt_running_pods: false,
        unknown_pods: UnknownPods::default(),
        http: Some("127.0.0.1:0".parse().unwrap()),
        proxy_http: None,
    }
}

/// A cluster that says nothing, and no configuration file.
fn sources() -> Sources {
    Sources {
        chain: None,
        publisher: Publisher::default(),
        cluster: cluster::feed::feed().1,
        config: watch::channel(ConfigUpdate::default()).1,
        in_force: None,
    }
}

/// A running node; ended by [`World::stop`].
struct World {
    directory: tempfile::TempDir,
    node: Namespace,
    gateway: Namespace,
    pod: Namespace,
    stop: Option<oneshot::Sender<()>>,
    ended: mpsc::Receiver<Result<(), String>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// A pod behind `veth-pod`, whose own end is `eth0`, with routes through addresses that the
/// node's kernel answers ARP and ND for, as bridges and point-to-point plugins arrange it.
fn add_pod(node: &Namespace) -> Namespace {
    let pod = Namespace::new();
    node.ip("link add veth-pod type veth peer name eth0");
    node.ip(&format!("link set eth0 netns {}", pod.id()));
    node.ip("address add 10.1.0.1/32 dev veth-pod");
    node.ip("address add fe80::1/64 dev veth-pod nodad");
    node.ip("link set veth-pod up");
    node.ip("route add 10.1.0.5/32 dev veth-pod");
    node.ip("route add fd00:1::5/128 dev veth-pod");
    pod.ip("address add 10.1.0.5/32 dev eth0");
    pod.ip("address add fd00:1::5/128 dev eth0 nodad");
    pod.ip("link set eth0 up");
    pod.ip("route add 10.1.0.1/32 dev eth0");
    pod.ip("route add default via 10.1.0.1");
    pod.ip("route add default via fe80::1 dev eth0");
    pod
}

impl World {
    fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let (node, gateway) = node_and_gateway();
        let pod = add_pod(&node);
        gateway.ip("route add 10.1.0.0/16 via 192.0.2.2");
        gateway.ip("route add fd00:1::/64 via 2001:db8::2");
        let directory = tempfile::tempdir().unwrap();
        let mut settings = settings(&directory.path().join("run"));
        change(&mut settings);
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, ended) = mpsc::channel();
        let (begun, begins) = mpsc::channel();
        // The node's thread lives in the namespace; the namespace's own thread only makes it.
        let thread = node.run(move || {
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let result = runtime.expect("a runtime").block_on(async {
                    let node = Node::start(Preparing::begin(settings)?, sources(), None).await?;
                    let _ = begun.send(());
                    node.run(async {
                        let _ = stopped.await;
                        Ok(())
                    })
                    .await
                });
                let _ = tell.send(result.map_err(|error| error.to_string()));
            })
        });
        // Fails at once when the node did not start: its end of the channel is dropped.
        let _ = begins.recv();
        Self { directory, node, gateway, pod, stop: Some(stop), ended, thread: Some(thread) }
    }

    fn ask(&self, request: Request) -> Result<Reply, ClientError> {
        Client::connect(&self.socket())?.ask(request)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("run/admin.sock")
    }

    fn status(&self) -> Status {
        match self.ask(Request::Status).unwrap() {
            Reply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    fn endpoint(&self) -> EndpointAdd {
        EndpointAdd {
            name: "shop/cart-0".into(),
            interface: "veth-pod".into(),
            netns: Some(format!("/proc/{0}/task/{1}/ns/net", std::process::id(), self.pod.id())),
            addresses: vec!["10.1.0.5".parse().unwrap(), "fd00:1::5".parse().unwrap()],
            mac: None,
            attachment: None,
            pod_uid: None,
            bandwidth: None,
        }
    }

    fn add_endpoint(&self) {
        match self.ask(Request::EndpointAdd(self.endpoint())).unwrap() {
            Reply::Endpoint(_) => {}
            other => panic!("{other:?}"),
        }
    }

    /// Ends the node and gives how it ended.
    fn stop(&mut self) -> Result<(), String> {
        drop(self.stop.take());
        let result = self.ended.recv_timeout(Duration::from_secs(20)).expect("the node ends");
        self.thread.take().map(std::thread::JoinHandle::join);
        result
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// Sends pings until one is answered, some seconds at most.
fn pings(from: &Namespace, to: &str) -> bool {
    let to = to.to_owned();
    from.run(move || {
        (0..8).any(|_| {
            let arguments = ["-c", "1", "-W", "1", to.as_str()];
            let output = Command::new("ping").args(arguments).output().expect("ping runs");
            output.status.success()
        })
    })
}

fn received_by(status: &Status, interface: &str) -> u64 {
    let port = status.ports.iter().find(|port| port.interface == interface);
    port.map_or(0, |port| port.received_packets)
}

#[test]
fn a_pod_reaches_the_world_and_its_node_through_the_node_process_alone_and_nothing_is_left() {
    if !may_run("a_pod_reaches_the_world_and_its_node_through_the_node_process_alone") {
        return;
    }
    let mut world = World::start(|_| {});
    assert_eq!(world.node.ip("rule show").matches("7411").count(), 1);
    world.add_endpoint();
    world.add_endpoint();
    for address in ["192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2"] {
        assert!(pings(&world.pod, address), "pod to {address}: {:#?}", world.status());
    }
    for address in ["10.1.0.5", "fd00:1::5"] {
        assert!(pings(&world.gateway, address), "gateway to {address}: {:#?}", world.status());
        assert!(pings(&world.node, address), "node to {address}: {:#?}", world.status());
    }
    let status = world.status();
    assert_eq!(status.verdict.level, Level::Ok, "{:?}", status.verdict);
    assert_tables_say_how_full_they_are(&status);
    for interface in ["up0", "veth-pod", "xskiff-port"] {
        assert!(received_by(&status, interface) > 0, "{interface}: {status:#?}");
    }
    assert_eq!(world.stop(), Ok(()));
    assert!(!pings_once(&world.pod, "192.0.2.1"), "stopping the process stops the traffic");
    let links = world.node.ip("link show");
    assert!(!links.contains("xskiff") && !links.contains("prog/xdp"), "{links}");
    assert!(!world.node.ip("rule show").contains("7411"));
}

/// Every bounded table has its row, and peaks are those of whoever filled the table: most of these
/// are empty again within microseconds.
fn assert_tables_say_how_full_they_are(status: &Status) {
    let names: Vec<&str> = status.tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, xskiff::node::usage::ROWS);
    for table in &status.tables {
        let (used, most) = (table.used, table.high_water);
        assert!(used <= most && most <= table.capacity && table.capacity > 0, "{table:?}");
    }
    let most = |name: &str| {
        status.tables.iter().find(|table| table.name == name).map_or(0, |table| table.high_water)
    };
    for filled in [
        "flows_ipv4",
        "held_packets",
        "worker_commands",
        "retired_objects",
        "flow_events",
        "neighbour_requests",
        "socket_commands",
        "admin_clients",
        "admin_calls",
        "kernel_requests",
    ] {
        assert!(most(filled) > 0, "{filled}: {:#?}", status.tables);
    }
    // Uplink, host port and pod, one queue each; the pod's addresses, one of each family.
    assert_eq!((most("ports"), most("endpoints"), most("worker_sockets")), (3, 1, 3));
    assert_eq!((most("xdp_pod_addresses_ipv4"), most("xdp_pod_addresses_ipv6")), (1, 1));
    // The uplink's, and the one that the pod's kernel-side interface carries.
    assert_eq!((most("xdp_node_addresses_ipv4"), most("xdp_node_addresses_ipv6")), (2, 1));
}

fn pings_once(from: &Namespace, to: &str) -> bool {
    let to = to.to_owned();
    from.run(move || {
        let arguments = ["-c", "1", "-W", "1", to.as_str()];
        Command::new("ping").args(arguments).output().expect("ping runs").status.success()
    })
}

#[test]
fn what_happened_is_told_by_flows_connections_captures_traces_and_policy() {
    if !may_run("what_happened_is_told_by_flows_connections_captures_traces_and_policy") {
        return;
    }
    let mut world = World::start(|_| {});
    world.add_endpoint();
    let socket = world.socket();
    let (tell, captured) = mpsc::channel();
    let capturing = std::thread::spawn(move || {
        let request = CaptureRequest {
            endpoint: Some("shop/cart-0".into()),
            packets_max: 4,
            ..CaptureRequest::default()
        };
        let mut client = Client::connect(&socket).unwrap();
        let mut packets = Vec::new();
        let ended = client.stream(Request::Capture(request), |item| {
            if let StreamItem::Packet(packet) = item {
                packets.push(packet);
            }
            Ok::<bool, ClientError>(true)
        });
        tell.send((ended.is_ok(), packets)).unwrap();
    });
    std::thread::sleep(Duration::from_millis(200));
    assert!(pings(&world.pod, "192.0.2.1"));
    assert!(pings(&world.pod, "192.0.2.1"));
    let (ended, packets) = captured.recv_timeout(Duration::from_secs(10)).unwrap();
    capturing.join().unwrap();
    assert!(ended && packets.len() == 4, "{packets:?}");
    assert!(packets.iter().all(|packet| packet.interface == "veth-pod"));

    let count = world.ask(Request::CtCount { filter: FlowFilter::default() }).unwrap();
    let Reply::CtCounts(counts) = &count else { panic!("{count:?}") };
    assert!(counts.flows >= 1 && counts.tables.len() == 2, "{count:?}");
    let filter = FlowFilter { endpoint: Some("shop/cart-0".into()), ..FlowFilter::default() };
    match world.ask(Request::CtList { filter: filter.clone(), limit: 100 }).unwrap() {
        Reply::Ct(listing) => {
            let ping = listing.entries.iter().find(|entry| entry.protocol == "icmp").unwrap();
            assert_eq!(ping.translated_source.address.to_string(), "192.0.2.2", "{ping:?}");
        }
        other => panic!("{other:?}"),
    }
    let mut opened = 0;
    let request = Request::Flows { filter: filter.clone(), follow: false };
    Client::connect(&world.socket())
        .unwrap()
        .stream(request, |_| {
            opened += 1;
            Ok::<bool, ClientError>(true)
        })
        .unwrap();
    assert!(opened >= 1);
    // The pod's own link business (listener reports) may be captured as well; the ping is IPv4.
    let is_ping = |packet: &&CaptureRecord| {
        packet.direction == CaptureDirection::Received && packet.frame.get(24..28) == Some("0800")
    };
    let frame = packets.iter().find(is_ping).unwrap().frame.clone();
    match world.ask(Request::Trace { frame, port: "veth-pod".into() }).unwrap() {
        Reply::Trace(report) => {
            assert!(report.outcome.contains("up0"), "{report:#?}");
            assert!(report.stages.iter().any(|stage| stage.stage == "policy"), "{report:#?}");
        }
        other => panic!("{other:?}"),
    }
    let question = PolicyQuestion {
        from: "shop/cart-0".into(),
        to: "world".into(),
        l4_port: 443,
        protocol: "tcp".into(),
    };
    match world.ask(Request::PolicyExplain(question)).unwrap() {
        Reply::Policy(explanation) => assert!(explanation.allowed && explanation.steps.len() == 1),
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        world.ask(Request::CtFlush { filter: filter.clone() }).unwrap(),
        Reply::Count(1..)
    ));
    let gone = Instant::now() + Duration::from_secs(20);
    while world.ask(Request::CtCount { filter: filter.clone() }).unwrap() != Reply::Count(0) {
        assert!(Instant::now() < gone, "flushed flows are gone within seconds");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(world.stop(), Ok(()));
}

#[test]
fn a_pod_that_speaks_from_another_address_is_dropped_counted_and_named() {
    if !may_run("a_pod_that_speaks_from_another_address_is_dropped_counted_and_named") {
        return;
    }
    let mut world = World::start(|_| {});
    world.add_endpoint();
    world.pod.ip("address add 10.1.0.66/32 dev eth0");
    let from_another = world.pod.run(|| {
        let arguments = ["-c", "2", "-W", "1", "-I", "10.1.0.66", "192.0.2.1"];
        Command::new("ping").args(arguments).output().expect("ping runs").status.success()
    });
    assert!(!from_another);
    let filter = FlowFilter { reason: Some("spoofed".into()), ..FlowFilter::default() };
    let mut sources = Vec::new();
    let request = Request::Flows { filter, follow: false };
    Client::connect(&world.socket())
        .unwrap()
        .stream(request, |item| {
            if let StreamItem::Flow(record) = item {
                sources
                    .push((record.interface, record.source.map(|peer| peer.address.to_string())));
            }
            Ok::<bool, ClientError>(true)
        })
        .unwrap();
    let spoof = ("veth-pod".to_owned(), Some("10.1.0.66".to_owned()));
    assert!(sources.contains(&spoof), "{sources:?}");
    assert_eq!(world.stop(), Ok(()));
}

/// It lost its traffic as `no-flow`, and nothing said why.
#[test]
fn a_host_process_on_a_port_that_is_ours_is_named_while_it_is_there() {
    if !may_run("a_host_process_on_a_port_that_is_ours_is_named_while_it_is_there") {
        return;
    }
    let mut world = World::start(|_| {});
    let sockets = world.node.run(|| {
        let tcp = std::net::TcpListener::bind("0.0.0.0:61234").unwrap();
        let udp = std::net::UdpSocket::bind("[::]:61235").unwrap();
        let own = std::net::TcpListener::bind("127.0.0.1:61236").unwrap();
        let other = std::net::TcpListener::bind("0.0.0.0:8080").unwrap();
        (tcp, udp, own, other)
    });
    let named = |status: &Status| -> Vec<String> {
        let objects = status.errors.iter().map(|error| error.object.clone());
        objects.filter(|object| object.starts_with("socket ")).collect()
    };
    let until = |wanted: usize| {
        let patience = Instant::now() + Duration::from_secs(40);
        loop {
            let status = world.status();
            if named(&status).len() == wanted {
                return status;
            }
            assert!(Instant::now() < patience, "{:#?}", status.errors);
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let status = until(2);
    let process = format!("(process {})", std::process::id());
    for socket in ["tcp 0.0.0.0:61234", "udp [::]:61235"] {
        let objects = named(&status);
        let told =
            objects.iter().any(|object| object.contains(socket) && object.contains(&process));
        assert!(told, "{socket}: {objects:?}");
    }
    assert_eq!(status.verdict.level, Level::Degraded);
    assert!(status.verdict.summary.contains("61000-65535"), "{:?}", status.verdict);
    drop(sockets);
    assert_eq!(until(0).verdict.level, Level::Ok);
    assert_eq!(world.stop(), Ok(()));
}

#[test]
fn an_interface_that_goes_away_takes_its_endpoint_and_comes_back_as_a_new_one() {
    if !may_run("an_interface_that_goes_away_takes_its_endpoint_and_comes_back_as_a_new_one") {
        return;
    }
    let mut world = World::start(|_| {});
    world.add_endpoint();
    world.node.ip("link del veth-pod");
    let until = Instant::now() + Duration::from_secs(5);
    while world.ask(Request::EndpointList).unwrap() != Reply::Endpoints(Vec::new()) {
        assert!(Instant::now() < until, "the endpoint goes with its interface");
        std::thread::sleep(Duration::from_millis(20));
    }
    world.pod = add_pod(&world.node);
    world.add_endpoint();
    assert!(pings(&world.pod, "192.0.2.1"), "{:#?}", world.status());
    assert_eq!(world.stop(), Ok(()));
}

/// The check was made for uplinks alone, and once.
#[test]
fn an_mtu_that_packet_memory_cannot_take_is_refused_for_a_pod_and_named_when_it_comes_later() {
    if !may_run("an_mtu_that_packet_memory_cannot_take") {
        return;
    }
    let mut world = World::start(|_| {});
    world.node.ip("link set veth-pod mtu 65535");
    let refused = world.ask(Request::EndpointAdd(world.endpoint())).unwrap_err().to_string();
    for word in ["veth-pod", "65535", "lower the MTU to"] {
        assert!(refused.contains(word), "{word}: {refused}");
    }
    assert!(!world.node.ip("link show veth-pod").contains("prog/xdp"), "nothing is attached");
    world.node.ip("link set veth-pod mtu 1500");
    world.add_endpoint();
    let told = |expected: bool| {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let errors = world.status().errors;
            let is_told = errors.iter().any(|error| {
                error.object == "interface veth-pod" && error.message.contains("65535")
            });
            if is_told == expected {
                break;
            }
            assert!(Instant::now() < until, "{errors:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    world.node.ip("link set veth-pod mtu 65535");
    told(true);
    world.node.ip("link set veth-pod mtu 1500");
    told(false);
    assert!(pings(&world.pod, "192.0.2.1"), "{:#?}", world.status());
    assert_eq!(world.stop(), Ok(()));
}

#[test]
fn a_bad_start_names_the_thing_and_leaves_nothing() {
    if !may_run("a_bad_start_names_the_thing_and_leaves_nothing") {
        return;
    }
    type Change = fn(&mut Settings);
    let cases: [(&str, Change); 4] = [
        ("no-such0", |settings| settings.uplinks[0].interface = "no-such0".into()),
        ("configured twice", |settings| {
            let twin = settings.uplinks[0].clone();
            settings.uplinks.push(twin);
        }),
        ("lo", |settings| settings.uplinks[0].interface = "lo".into()),
        ("workers", |settings| settings.workers.cores.clear()),
    ];
    for (word, change) in cases {
        let mut world = World::start(change);
        let error = world.stop().unwrap_err();
        assert!(error.contains(word), "{word}: {error}");
        let links = world.node.ip("link show");
        assert!(!links.contains("xskiff") && !links.contains("prog/xdp"), "{word}: {links}");
        assert!(!world.node.ip("rule show").contains("7411"), "{word}");
    }
}

#[test]
fn a_second_node_on_the_same_directory_is_refused_and_the_first_goes_on() {
    if !may_run("a_second_node_on_the_same_directory_is_refused_and_the_first_goes_on") {
        return;
    }
    let mut world = World::start(|_| {});
    world.add_endpoint();
    let directory = world.directory.path().join("run");
    let second = world.node.block_on(move || async move {
        let preparing = Preparing::begin(settings(&directory)).ok()?;
        Node::start(preparing, sources(), None).await.err().map(|error| error.to_string())
    });
    assert!(second.unwrap().contains("another node process"));
    assert!(pings(&world.pod, "192.0.2.1"));
    assert_eq!(world.stop(), Ok(()));
}
