//! Sockets and packet memory go from one user to the next, as from one process to another, with packets in
//! every ring: none is lost, and no frame.

use std::os::unix::net::UnixStream;

use dataplane::buffer::Buffer;
use dataplane::port::{PortId, PortKind, Ports};
use dataplane::worker::RxBurst;
use xdp_redirect::hand_over::message::Message;
use xdp_redirect::hand_over::{self, Handed, Refused};
use xdp_redirect::loader::Mode;
use xdp_redirect::ports::PortsControl;
use xdp_redirect::regions::PodMemory;
use xdp_redirect::socket::SocketConfig;
use xdp_redirect::umem::UmemConfig;
use xdp_redirect::{Redirect, Regions, Socket, WorkerPorts};

use crate::packets::{OTHER4, inject, ipv4, l4};
use crate::sockets::packet_socket;
use crate::world::{Plan, World, eventually, rule, world};

/// In the large region.
const UPLINK: PortId = PortId(1);
/// In a region of pods.
const POD: PortId = PortId(2);
/// Each port: its interface, its other end and that one's namespace.
const PLACES: [(PortId, &str, &str, &str); 2] =
    [(UPLINK, "left", "a0", "a"), (POD, "right", "b0", "b")];

fn config() -> SocketConfig {
    SocketConfig { idle_frames: 64, ..SocketConfig::small() }
}

fn large() -> UmemConfig {
    UmemConfig { frames: 1024, ..UmemConfig::default() }
}

fn regions(large: UmemConfig) -> Regions {
    let pods = PodMemory { frames_max: 4096, fill_ring: 256, completion_ring: 512 };
    Regions::new(large, &pods, 1).expect("packet memory")
}

fn packet(number: u16) -> Vec<u8> {
    ipv4(OTHER4, 17, 0, &l4(number))
}

/// The L4 port that a packet was made with.
fn number_of(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[36], bytes[37]])
}

fn send_in(world: &World, port: PortId, numbers: std::ops::Range<u16>) {
    let (.., far, namespace) = PLACES.into_iter().find(|place| place.0 == port).expect("ours");
    world.within(namespace, || numbers.for_each(|number| inject(far, &packet(number))));
}

/// Binds both ports and puts the program before them.
fn bound(regions: &Regions, redirect: &mut Redirect) -> WorkerPorts {
    let mut ports = WorkerPorts::new(regions.large()).with_regions(regions);
    for (port, interface, ..) in PLACES {
        let socket = match port {
            UPLINK => Socket::bind(regions.large(), interface, 0, &config()).expect("bind"),
            _ => {
                let place = regions.admit(&config(), 1).expect("a place");
                let socket = Socket::bind_in(&place, interface, 0, &config(), None).expect("bind");
                place.fill();
                socket
            }
        };
        redirect.set_socket(port, 0, 0, socket.fd()).expect("enter");
        redirect.attach(interface, &rule(port.0, PortKind::Host), Mode::Native).expect("attach");
        ports.control().add(port, socket).map_err(|(error, _)| error).expect("room");
    }
    ports.flush();
    ports
}

/// Receives at least `wanted` packets, and answers by which port each came, and its number.
fn receive(ports: &mut WorkerPorts, wanted: usize) -> Vec<(PortId, u16)> {
    let mut seen = Vec::new();
    assert!(
        eventually(|| {
            let mut burst = RxBurst::new();
            ports.receive(&mut burst);
            ports.flush();
            for packet in burst {
                seen.push((packet.port, number_of(packet.buffer.bytes())));
                ports.release(packet.buffer);
            }
            seen.len() >= wanted
        }),
        "{} of {wanted}: {seen:?}",
        seen.len()
    );
    seen
}

fn sockets_of(control: &PortsControl) -> Vec<(usize, Box<Socket>)> {
    std::iter::from_fn(|| control.collect().map(|(_, socket)| (0, socket))).collect()
}

/// What went through the socket between the two.
fn handed(
    before: &Regions,
    sockets: &mut [(usize, Box<Socket>)],
) -> (Message, Vec<std::os::fd::OwnedFd>) {
    let (near, far) = UnixStream::pair().expect("a pair");
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| hand_over::receive(&far).expect("all of it"));
        let count = hand_over::send(&near, before, 1, sockets).expect("sent");
        assert_eq!(count, sockets.len());
        receiving.join().expect("received")
    })
}

fn all_frames_are_free(regions: &Regions) {
    let census = regions.census();
    assert_eq!(census.free, census.total, "frames were lost: {census:?}");
}

#[test]
fn sockets_go_on_with_what_is_in_their_rings_and_no_frame_is_lost() {
    let Some(world) = world(Plan::default()) else { return };
    let mut redirect = Redirect::load(false).expect("load");
    redirect.heartbeat(0).expect("heartbeat").beat_for_ever();
    let before = regions(large());
    let mut ports = bound(&before, &mut redirect);
    // One packet is held when the first user ends, some are on a transmit ring that nobody has flushed, and
    // some wait.
    send_in(&world, UPLINK, 0..1);
    let mut burst = RxBurst::new();
    assert!(eventually(|| {
        ports.receive(&mut burst);
        !burst.is_empty()
    }));
    let tap = world.within("b", || packet_socket("b0"));
    for number in 100..110 {
        let frame = ports.pool().allocate_with(&packet(number)).expect("a frame");
        ports.transmit(POD, frame).map_err(|(reason, _)| reason).expect("room");
    }
    send_in(&world, UPLINK, 1..21);
    send_in(&world, POD, 1..11);
    let control = ports.control();
    drop(ports);
    let mut sockets = sockets_of(&control);
    assert_eq!(sockets.len(), 2);
    let (message, fds) = handed(&before, &mut sockets);
    assert_eq!(message.regions.len(), 2, "regions of pods without memory have nothing to hand on");
    // The first one is gone, and packets come.
    drop((sockets, control, burst, before));
    send_in(&world, UPLINK, 21..41);
    send_in(&world, POD, 11..21);

    let after = regions(large());
    drop(after.go_on(&message, fds, 1).expect("the same memory"));
    let mut ports = WorkerPorts::new(after.large()).with_regions(&after);
    for (port, interface, ..) in PLACES {
        let taken = after.take_handed(interface, 1, &config(), &[], port == POD);
        let (mut receiving, transmitting) = taken.expect("its sockets");
        assert_eq!((receiving.len(), transmitting.len()), (1, 0));
        let socket = receiving.pop().expect("one");
        ports.control().add(port, socket).map_err(|(error, _)| error).expect("room");
    }
    assert_eq!(after.end_hand_over(), Handed { came: 2, taken: 2 });
    let seen = receive(&mut ports, 60);
    let of = |port: PortId| {
        let numbers = seen.iter().filter(|one| one.0 == port);
        numbers.map(|(_, number)| *number).collect::<Vec<_>>()
    };
    assert_eq!(of(UPLINK), (1..41).collect::<Vec<_>>(), "each once, in order");
    assert_eq!(of(POD), (1..21).collect::<Vec<_>>(), "each once, in order");
    // What was on the transmit ring has left with the first flush.
    let mut bytes = [0; 2048];
    let mut sent = Vec::new();
    while sent.len() < 10 {
        let length = tap.receive(&mut bytes);
        // It sees what the pod sends as well.
        sent.extend(Some(number_of(&bytes[..length])).filter(|number| *number >= 100));
    }
    assert_eq!(sent, (100..110).collect::<Vec<_>>());

    // It goes on for more packets than there are frames.
    for round in 0..40u16 {
        send_in(&world, UPLINK, 1000 + 40 * round..1000 + 40 * (round + 1));
        let seen = receive(&mut ports, 40);
        let first = 1000 + 40 * round;
        assert!(seen.iter().map(|one| one.1).eq(first..first + 40), "{seen:?}");
        for number in 0..30 {
            let frame = ports.pool().allocate_with(&packet(number)).expect("a frame");
            ports.transmit(POD, frame).map_err(|(reason, _)| reason).expect("room");
        }
        ports.flush();
    }
    let census = after.census();
    assert_eq!(census.held, 0, "{census:?}");
    let control = ports.control();
    drop(ports);
    let mut sockets = sockets_of(&control);
    for (_, socket) in &sockets {
        let counted = socket.monitor().statistics();
        assert_eq!((counted.bad_descriptors, counted.fill_starved), (0, 0));
    }

    // And once more, to a third one that binds one port anew, since it is to be another.
    let (message, fds) = handed(&after, &mut sockets);
    drop((sockets, control, after));
    let third = regions(large());
    drop(third.go_on(&message, fds, 1).expect("the same memory"));
    let other = SocketConfig { transmit_ring: 256, ..config() };
    assert!(third.take_handed("left", 1, &other, &[], false).is_none());
    let anew = Socket::bind(third.large(), "left", 0, &other).expect("its queue was let go");
    let (pod, _) = third.take_handed("right", 1, &config(), &[], true).expect("its socket");
    assert_eq!(third.end_hand_over(), Handed { came: 2, taken: 1 });
    drop((anew, pod));
    all_frames_are_free(&third);
    assert_eq!((third.usage().used, third.usage().regions), (0, 0));
}

#[test]
fn what_does_not_fit_is_refused_whole_and_all_can_be_bound_anew() {
    let Some(_world) = world(Plan::default()) else { return };
    let mut redirect = Redirect::load(false).expect("load");
    let before = regions(large());
    let ports = bound(&before, &mut redirect);
    let control = ports.control();
    drop(ports);
    let mut sockets = sockets_of(&control);
    let (message, fds) = handed(&before, &mut sockets);
    drop((sockets, control, before));

    let copies = || fds.iter().map(|fd| fd.try_clone().expect("a copy")).collect::<Vec<_>>();
    let larger = regions(UmemConfig { frames: 2048, ..large() });
    let refused = larger.go_on(&message, copies(), 1).err().expect("refused");
    assert!(matches!(refused, Refused::Memory { what: "frames", .. }), "{refused}");
    let same = regions(large());
    let refused = same.go_on(&message, copies(), 2).err().expect("refused");
    assert!(matches!(refused, Refused::Workers { before: 1, now: 2 }), "{refused}");
    // A file of the wrong size, or one that could become shorter.
    let mut wrong = copies();
    wrong[0] = std::fs::File::open("/dev/null").expect("there").into();
    let refused = same.go_on(&message, wrong, 1).err().expect("refused");
    assert!(matches!(refused, Refused::Kernel(_)), "{refused}");
    assert_eq!(same.end_hand_over(), Handed::default());
    all_frames_are_free(&same);
    drop((fds, redirect));
    drop(bound(&same, &mut Redirect::load(false).expect("load")));
}
