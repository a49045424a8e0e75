//! Whole segments: by the packet socket into a veth, and in pieces by a transmit ring, with real receivers.

use dataplane::DropReason;
use dataplane::buffer::Buffer;
use dataplane::port::{PortId, PortKind, Ports};
use dataplane::worker::RxBurst;
use xdp_redirect::loader::{Mode, interface_index};
use xdp_redirect::ports::TransmitPath;
use xdp_redirect::segment_transmit::{SegmentSender, SegmentStatistics};
use xdp_redirect::socket::SocketConfig;
use xdp_redirect::umem::UmemConfig;
use xdp_redirect::{Frame, Redirect, Socket, Umem, WorkerPorts};

use crate::packets::{OTHER4, inject, ipv4};
use crate::sockets::{PacketSocket, packet_socket};
use crate::world::{Plan, World, end_whole, eventually, ip, rule, world};

const LEFT: PortId = PortId(4);
const RIGHT: PortId = PortId(5);
const PLACES: [(PortId, &str, &str, &str); 2] =
    [(LEFT, "left", "a", "a0"), (RIGHT, "right", "b", "b0")];
/// Ethernet, IPv4 and TCP.
const HEADERS: usize = 54;
/// Places of a transmit ring here: fewer than a segment has pieces.
const RING: u32 = 8;

struct Setup {
    world: World,
    _redirect: Redirect,
    umem: Umem,
    ports: WorkerPorts,
}

fn setup(mtu: u32) -> Option<Setup> {
    let world = world(Plan { mtu, ..Plan::default() })?;
    let mut redirect = Redirect::load(mtu > 1500).expect("load");
    redirect.heartbeat(0).expect("heartbeat").beat_for_ever();
    let multi_buffer = redirect.multi_buffer();
    let umem = Umem::new(UmemConfig { frames: 8192, multi_buffer, ..UmemConfig::default() });
    let umem = umem.expect("umem");
    let sender = SegmentSender::new().expect("a packet socket");
    let mut ports = WorkerPorts::new(&umem).with_segment_transmit(sender);
    let config = SocketConfig { transmit_ring: RING, ..SocketConfig::default() };
    for (port, interface, ..) in PLACES {
        let socket = Socket::bind(&umem, interface, 0, &config).expect("bind");
        redirect.set_socket(port, 0, 0, socket.fd()).expect("enter");
        redirect.attach(interface, &rule(port.0, PortKind::Host), Mode::Native).expect("attach");
        ports.control().add(port, socket).map_err(|(error, _)| error).expect("room");
    }
    ports.flush();
    Some(Setup { world, _redirect: redirect, umem, ports })
}

impl Setup {
    fn set_whole(&mut self, port: PortId) {
        let (_, interface, ..) = place(port);
        let ifindex = interface_index(interface).expect("it exists");
        self.ports.control().set_whole(port, ifindex).expect("room");
        self.ports.take_commands();
        assert!(matches!(self.ports.path(port), TransmitPath::Whole { .. }));
    }

    /// What arrives at a port's other end.
    fn tap(&self, port: PortId) -> PacketSocket {
        let (.., namespace, device) = place(port);
        let tap = self.world.within(namespace, || packet_socket(device));
        tap.set_receive_buffer(8 << 20);
        tap
    }

    fn frame(&mut self, sequence: u32, payload: usize, size: u16) -> Frame {
        let mut frame = self.frame_of(sequence, payload);
        frame.set_segment_size(size).expect("room for it");
        frame
    }

    fn frame_of(&mut self, sequence: u32, payload: usize) -> Frame {
        self.ports.pool().allocate_with(&segment(sequence, payload)).expect("one")
    }

    fn send(&mut self, port: PortId, frame: Frame) -> Result<(), DropReason> {
        self.ports.transmit(port, frame).map_err(|(reason, frame)| {
            self.ports.release(frame);
            reason
        })
    }

    fn statistics(&self) -> SegmentStatistics {
        self.ports.control().segment_counters().read()
    }

    /// A packet of several chunks, as it comes by a link of 9,000 bytes.
    fn received(&mut self, from: PortId, packet: &[u8]) -> Frame {
        let (.., namespace, device) = place(from);
        self.world.within(namespace, || inject(device, packet));
        let mut burst = RxBurst::new();
        assert!(eventually(|| {
            self.ports.receive(&mut burst);
            self.ports.flush();
            !burst.is_empty()
        }));
        burst.pop().expect("one packet").buffer
    }

    fn end(self) {
        let Self { ports, umem, .. } = self;
        end_whole(ports, &umem);
    }
}

fn place(port: PortId) -> (PortId, &'static str, &'static str, &'static str) {
    PLACES.into_iter().find(|place| place.0 == port).expect("a port of ours")
}

fn pattern(at: usize) -> u8 {
    (at ^ (at >> 8)).to_le_bytes()[0]
}

/// TCP data at this place of a stream whose bytes tell their places.
fn segment(sequence: u32, payload: usize) -> Vec<u8> {
    let mut tcp = vec![0x03, 0xe8, 0, 80];
    tcp.extend(sequence.to_be_bytes());
    tcp.extend([0, 0, 0, 9, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    let first = usize::try_from(sequence).expect("small");
    tcp.extend((first..first + payload).map(pattern));
    let mut frame = ipv4(OTHER4, 6, 0x4000, &tcp);
    frame[24..26].fill(0);
    let sum = frame[14..34]
        .chunks(2)
        .fold(0u32, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The next TCP data that arrives: where in its stream, and how much; its bytes are looked at.
fn next_data(tap: &PacketSocket) -> Option<(u32, usize)> {
    let mut seen = vec![0u8; 70_000];
    loop {
        let length = tap.receive_within(&mut seen)?;
        if length <= HEADERS || seen[23] != 6 {
            continue;
        }
        let ip_len = usize::from(u16::from_be_bytes([seen[16], seen[17]]));
        let payload = &seen[HEADERS..14 + ip_len];
        let sequence = u32::from_be_bytes(seen[38..42].try_into().expect("four bytes"));
        let first = usize::try_from(sequence).expect("small");
        assert!(payload.iter().zip(first..).all(|(byte, at)| *byte == pattern(at)));
        return Some((sequence, payload.len()));
    }
}

/// A segment has more pieces than the ring places, and only what the ring held was sent.
#[test]
fn pieces_of_a_segment_are_as_many_as_it_has_though_the_ring_is_shorter() {
    let Some(mut setup) = setup(1500) else { return };
    let tap = setup.tap(RIGHT);
    for first in [0, 1000, 2000] {
        let frame = setup.frame(first, 1000, 50);
        setup.send(RIGHT, frame).expect("room");
    }
    setup.ports.flush();
    for number in 0..60 {
        assert_eq!(next_data(&tap), Some((number * 50, 50)));
    }
    let statistics = setup.statistics();
    assert_eq!((statistics.cut_packets, statistics.cut_pieces), (3, 60), "{statistics:?}");
    assert_eq!(statistics.lost_pieces, 0, "{statistics:?}");
    setup.end();
}

/// Where nothing leaves, as much is lost as has no room, and counted.
#[test]
fn pieces_that_have_no_room_are_counted() {
    let Some(mut setup) = setup(1500) else { return };
    ip(&["link", "set", "right", "down"]);
    let frame = setup.frame(0, 1000, 50);
    setup.send(RIGHT, frame).expect("the link was up, as far as was known");
    let statistics = setup.statistics();
    assert_eq!(statistics.cut_pieces + statistics.lost_pieces, 20, "{statistics:?}");
    assert!(statistics.lost_pieces >= 12, "{statistics:?}");
    setup.ports.flush();
}

/// What waited for the end of the tick kept hundreds of segments of 64 KB in packet memory.
#[test]
fn long_packets_leave_before_a_call_is_full_and_in_order() {
    let Some(mut setup) = setup(9000) else { return };
    setup.set_whole(RIGHT);
    let tap = setup.tap(RIGHT);
    // Five chunks each.
    let receive = |number: u32| setup.received(LEFT, &segment(number * 8000, 8000));
    let received: Vec<Frame> = (0..120).map(receive).collect();
    for (number, mut frame) in (0..).zip(received) {
        assert_eq!(frame.chunks(), 5);
        frame.set_segment_size(4000).expect("room for it");
        setup.send(RIGHT, frame).expect("room");
        let little = setup.frame_of(number * 8000 + 7999, 1);
        setup.send(RIGHT, little).expect("room");
    }
    let statistics = setup.statistics();
    assert!(statistics.calls >= 2, "{statistics:?}");
    setup.ports.flush();
    for number in 0..120 {
        assert_eq!(next_data(&tap), Some((number * 8000, 8000)));
        assert_eq!(next_data(&tap), Some((number * 8000 + 7999, 1)));
    }
    let statistics = setup.statistics();
    assert_eq!((statistics.whole_packets, statistics.calls), (120, 3), "{statistics:?}");
    setup.end();
}

/// It went to interface 0, and was counted as if the interface were gone.
#[test]
fn what_waits_for_a_port_that_takes_no_more_whole_segments_leaves_before_what_follows() {
    let Some(mut setup) = setup(1500) else { return };
    setup.set_whole(RIGHT);
    let tap = setup.tap(RIGHT);
    for number in 0..3 {
        let frame = setup.frame(number * 1000, 1000, 500);
        setup.send(RIGHT, frame).expect("room");
    }
    setup.ports.control().set_whole(RIGHT, 0).expect("room");
    setup.ports.take_commands();
    assert!(matches!(setup.ports.path(RIGHT), TransmitPath::AfXdp { .. }));
    let frame = setup.frame_of(3000, 1000);
    setup.send(RIGHT, frame).expect("room");
    setup.ports.flush();
    for number in 0..4 {
        assert_eq!(next_data(&tap), Some((number * 1000, 1000)));
    }
    let statistics = setup.statistics();
    assert_eq!((statistics.whole_packets, statistics.abandoned_packets), (3, 0), "{statistics:?}");
    setup.end();
}

#[test]
fn interface_that_vanishes_before_its_batch_is_counted_and_the_rest_is_delivered() {
    let Some(mut setup) = setup(1500) else { return };
    let tap = setup.tap(LEFT);
    for port in [LEFT, RIGHT] {
        setup.set_whole(port);
    }
    for number in 0..10 {
        for port in [RIGHT, LEFT] {
            let frame = setup.frame(number * 1000, 1000, 500);
            setup.send(port, frame).expect("room");
        }
    }
    ip(&["link", "del", "right"]);
    setup.ports.flush();
    for number in 0..10 {
        assert_eq!(next_data(&tap), Some((number * 1000, 1000)));
    }
    let statistics = setup.statistics();
    assert_eq!(
        (statistics.whole_packets, statistics.abandoned_packets),
        (10, 10),
        "{statistics:?}"
    );
    setup.end();
}

/// What says that it is longer than it is, what is no TCP, and what its interface does not take.
#[test]
fn packet_whose_header_the_kernel_refuses_is_counted_and_the_rest_is_delivered() {
    let Some(mut setup) = setup(9000) else { return };
    setup.set_whole(RIGHT);
    let tap = setup.tap(RIGHT);
    let datagram = ipv4(OTHER4, 17, 0, &vec![7; 8000]);
    let received: Vec<Frame> = (0..4).map(|_| setup.received(LEFT, &datagram)).collect();
    ip(&["link", "set", "right", "mtu", "1500"]);
    for (number, mut one) in (0..).zip(received) {
        if number % 2 == 1 {
            one.bytes_mut()[16..18].copy_from_slice(&[0xff, 0xff]);
        }
        one.set_segment_size(1000).expect("room for it");
        setup.send(RIGHT, one).expect("room");
        let frame = setup.frame(number * 1000, 1000, 500);
        setup.send(RIGHT, frame).expect("room");
    }
    setup.ports.flush();
    for number in 0..4 {
        assert_eq!(next_data(&tap), Some((number * 1000, 1000)));
    }
    let statistics = setup.statistics();
    assert_eq!(statistics.refused_header_packets, 4, "{statistics:?}");
    assert_eq!(statistics.whole_packets, 4, "{statistics:?}");
    setup.end();
}
