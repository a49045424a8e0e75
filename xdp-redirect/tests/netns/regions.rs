//! Pods have packet memory of their own, in regions; packets go from one to another.

use std::sync::Arc;

use dataplane::DropReason;
use dataplane::buffer::Buffer;
use dataplane::port::{PortId, PortKind, Ports};
use dataplane::worker::{Received, RxBurst};
use xdp_redirect::loader::Mode;
use xdp_redirect::regions::{Place, PodMemory};
use xdp_redirect::socket::SocketConfig;
use xdp_redirect::umem::UmemConfig;
use xdp_redirect::{Frame, Redirect, Regions, Socket, WorkerPorts};

use crate::packets::{OTHER4, inject, ipv4, l4};
use crate::sockets::packet_socket;
use crate::world::{Plan, World, eventually, ip, rule, world};

/// In the large region.
const UPLINK: PortId = PortId(1);
/// In the first region of pods.
const POD: PortId = PortId(2);
/// In the first one, too.
const NEIGHBOUR: PortId = PortId(3);
/// In the second one.
const OTHER: PortId = PortId(4);
/// Each port: its interface, its other end and that one's namespace.
const PLACES: [(PortId, &str, &str, &str); 4] = [
    (UPLINK, "left", "a0", "a"),
    (POD, "right", "b0", "b"),
    (NEIGHBOUR, "third", "c0", "a"),
    (OTHER, "fourth", "d0", "a"),
];

/// A quarter of a region of pods for each port, so that two share one.
fn config() -> SocketConfig {
    SocketConfig { idle_frames: 256, ..SocketConfig::small() }
}

fn regions(frames_max: u32, multi_buffer: bool) -> Regions {
    let large = UmemConfig { frames: 4096, multi_buffer, ..UmemConfig::default() };
    let pods = PodMemory { frames_max, fill_ring: 256, completion_ring: 512 };
    Regions::new(large, &pods, 1).expect("packet memory")
}

/// A worker with all four ports.
struct Node {
    world: World,
    _redirect: Redirect,
    regions: Regions,
    ports: WorkerPorts,
}

fn node(mtu: u32) -> Option<Node> {
    let world = world(Plan { mtu, ..Plan::default() })?;
    for (_, interface, far, namespace) in &PLACES[2..] {
        let (mtu, far_name) = (mtu.to_string(), world.name(namespace));
        let near = ["link", "add", interface, "mtu", &mtu, "numrxqueues", "1", "numtxqueues", "1"];
        let peer = ["type", "veth", "peer", "name", far, "netns", &far_name, "mtu", &mtu];
        ip(&[&near[..], &peer[..], &["numrxqueues", "1", "numtxqueues", "1"]].concat());
        ip(&["link", "set", interface, "up"]);
        ip(&["-n", &far_name, "link", "set", far, "up"]);
    }
    let mut redirect = Redirect::load(mtu > 1500).expect("load");
    redirect.heartbeat(0).expect("heartbeat").beat_for_ever();
    let regions = regions(1 << 20, redirect.multi_buffer());
    let mut ports = WorkerPorts::new(regions.large()).with_regions(&regions);
    for (port, interface, ..) in PLACES {
        let socket = match port {
            UPLINK => Socket::bind(regions.large(), interface, 0, &config()),
            _ => bind_pod(&regions, interface),
        };
        let socket = socket.expect("bind");
        redirect.set_socket(port, 0, 0, socket.fd()).expect("enter");
        redirect.attach(interface, &rule(port.0, PortKind::Host), Mode::Native).expect("attach");
        ports.control().add(port, socket).map_err(|(error, _)| error).expect("room");
    }
    ports.flush();
    assert_eq!(regions.usage().regions, 2);
    Some(Node { world, _redirect: redirect, regions, ports })
}

fn bind_pod(regions: &Regions, interface: &str) -> Result<Socket, xdp_redirect::Error> {
    let place = regions.admit(&config(), 1)?;
    let socket = Socket::bind_in(&place, interface, 0, &config(), None)?;
    place.fill();
    Ok(socket)
}

impl Node {
    /// Sends a packet into the far end of a port.
    fn inject(&self, port: PortId, packet: &[u8]) {
        let (.., far, namespace) = place_of(port);
        self.world.within(namespace, || inject(far, packet));
    }

    fn receive(&mut self) -> Received<Frame> {
        let mut burst = RxBurst::new();
        assert!(eventually(|| {
            self.ports.receive(&mut burst);
            self.ports.flush();
            !burst.is_empty()
        }));
        assert_eq!(burst.len(), 1);
        burst.pop().expect("one packet")
    }

    /// Ends all; every frame must be free again, and regions of pods gone.
    fn end(self) {
        let Self { world, _redirect, regions, ports } = self;
        let control = ports.control();
        drop(ports);
        while control.collect().is_some() {}
        drop(control);
        let census = regions.census();
        assert_eq!(census.free, census.total, "frames were lost: {census:?}");
        assert_eq!((regions.usage().used, regions.usage().regions), (0, 0));
        drop(world);
    }
}

fn place_of(port: PortId) -> (PortId, &'static str, &'static str, &'static str) {
    PLACES.into_iter().find(|place| place.0 == port).expect("a port of ours")
}

fn packet(bytes: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..bytes).map(|at| (at ^ (at >> 8)).to_le_bytes()[0]).collect();
    ipv4(OTHER4, 17, 0, &[&l4(9)[..], &payload].concat())
}

#[test]
fn packets_go_whole_from_region_to_region_and_no_frame_is_lost() {
    let Some(mut node) = node(9000) else { return };
    let ways = [
        (UPLINK, POD),
        (POD, UPLINK),
        (POD, NEIGHBOUR),
        (POD, OTHER),
        (OTHER, POD),
        (UPLINK, OTHER),
        (OTHER, UPLINK),
    ];
    for (from, to) in ways {
        let (.., far, namespace) = place_of(to);
        for bytes in [18, 1400, 8900] {
            let sent = packet(bytes);
            let tap = node.world.within(namespace, || packet_socket(far));
            node.inject(from, &sent);
            let Received { port, buffer } = node.receive();
            assert_eq!((port, buffer.len()), (from, sent.len()));
            let sent_on = node.ports.transmit(to, buffer);
            sent_on.map_err(|(reason, _)| reason).expect("room");
            node.ports.flush();
            let mut seen = vec![0u8; 9100];
            let length = tap.receive(&mut seen);
            assert_eq!(&seen[..length], &sent[..], "{from:?} to {to:?}, {bytes} bytes");
        }
    }
    node.end();
}

#[test]
fn packets_that_wait_leave_a_pod_the_frames_of_its_region() {
    let Some(mut node) = node(1500) else { return };
    let sent = packet(200);
    let mut held = Vec::new();
    for _ in 0..2000 {
        node.inject(POD, &sent);
        held.push(node.receive().buffer);
    }
    assert!(held.iter().all(|frame| frame.bytes() == sent));
    // The neighbour's queue still has what it was promised.
    node.inject(NEIGHBOUR, &sent);
    assert_eq!(node.receive().port, NEIGHBOUR);
    for frame in held {
        node.ports.release(frame);
    }
}

#[test]
fn a_region_without_a_free_frame_refuses_copies_and_the_packet_stays_whole() {
    let Some(mut node) = node(1500) else { return };
    let sent = packet(200);
    let (mut refused, mut copied) = (0, 0);
    // Two ports have a half of the region; nothing is flushed.
    for to in [POD, NEIGHBOUR] {
        for _ in 0..400 {
            let frame = node.ports.pool().allocate_with(&sent).expect("a frame");
            match node.ports.transmit(to, frame) {
                Ok(()) => copied += 1,
                Err((reason, frame)) => {
                    assert_eq!((reason, frame.bytes()), (DropReason::PacketMemory, &sent[..]));
                    node.ports.release(frame);
                    refused += 1;
                }
            }
        }
    }
    assert_eq!((copied, refused), (512, 288));
    node.ports.flush();
    node.inject(POD, &sent);
    let frame = node.receive().buffer;
    node.ports.transmit(NEIGHBOUR, frame).map_err(|(reason, _)| reason).expect("room again");
    node.ports.flush();
    node.end();
}

#[test]
fn a_port_without_frames_is_refused_until_another_one_went() {
    if world(Plan::default()).is_none() {
        return;
    }
    let regions = regions(2048, false);
    let config = SocketConfig { idle_frames: 32, ..SocketConfig::small() };
    let mut places: Vec<Arc<Place>> = Vec::new();
    let error = loop {
        match regions.admit(&config, 2) {
            Ok(place) => places.push(place),
            Err(error) => break error.to_string(),
        }
    };
    // Three quarters of two regions of 1,024 frames.
    assert_eq!(places.len(), 2 * 768 / 64);
    for word in ["used up", "1536 of 1536", "64 more", "packet_memory.pod_frames"] {
        assert!(error.contains(word), "{error}");
    }
    let usage = regions.usage();
    assert_eq!((usage.used, usage.capacity, usage.refused), (1536, 1536, 1));
    places.pop();
    places.push(regions.admit(&config, 2).expect("room again"));
    regions.set_frames_max(4096);
    places.push(regions.admit(&config, 2).expect("more was allowed"));
    assert_eq!((regions.usage().regions, regions.usage().capacity), (3, 4 * 768));
    places.clear();
    let usage = regions.usage();
    assert_eq!((usage.used, usage.used_most, usage.regions), (0, 1600, 0));
    let census = regions.census();
    assert_eq!(census.free, census.total);
}

/// A queue of a port whose frames were promised gets them, also when many others of the region keep
/// what they have.
#[test]
fn ports_of_many_queues_are_promised_a_quarter_of_a_region() {
    if world(Plan::default()).is_none() {
        return;
    }
    let regions = regions(1024, false);
    let _place = regions.admit(&SocketConfig::default(), 64).expect("a place");
    assert_eq!(regions.usage().used, 256);
}
