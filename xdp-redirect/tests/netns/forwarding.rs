//! Real traffic through sockets of ours.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dataplane::buffer::Buffer;
use dataplane::port::{PortId, PortKind, Ports};
use dataplane::worker::RxBurst;
use xdp_redirect::forward::Forwarder;
use xdp_redirect::loader::Mode;
use xdp_redirect::pool::FramePool;
use xdp_redirect::ports::TransmitPath;
use xdp_redirect::rules::PortRule;
use xdp_redirect::socket::{BusyPoll, SocketConfig};
use xdp_redirect::umem::UmemConfig;
use xdp_redirect::{Redirect, Socket, Umem, WorkerPorts};

use crate::packets::{OTHER4, inject, ipv4, l4};
use crate::sockets::packet_socket;
use crate::world::{Plan, World, eventually, ip, rule, world};

const TCP_BYTES: usize = 8 << 20;

/// `left` and `right` bound, attached and forwarded between, while `work` runs.
fn while_forwarding(plan: Plan, mode: Mode, config: &SocketConfig, work: impl FnOnce(&World)) {
    let Some(world) = world(plan) else { return };
    let mut redirect = Redirect::load(plan.mtu > 1500).expect("load");
    redirect.heartbeat(0).expect("heartbeat").beat_for_ever();
    let multi_buffer = redirect.multi_buffer();
    let umem = Umem::new(UmemConfig { multi_buffer, ..UmemConfig::default() }).expect("umem");
    let mut pairs = Vec::new();
    for queue in 0..plan.queues {
        pairs.push([(0, "left"), (1, "right")].map(|(port, interface)| {
            let socket = Socket::bind(&umem, interface, queue, config).expect("bind");
            redirect.set_socket(PortId(port), queue, 0, socket.fd()).expect("enter");
            socket
        }));
    }
    for (port, interface) in [(0, "left"), (1, "right")] {
        let rule = PortRule { queues: plan.queues, ..rule(port, PortKind::Host) };
        redirect.attach(interface, &rule, mode).expect("attach");
    }
    // Neither end asks: ARP and discovery pass to the kernel, which does not forward them.
    for (namespace, device, far, far_mac) in
        [("a", "a0", 2, "02:00:00:00:00:0b"), ("b", "b0", 1, "02:00:00:00:00:0a")]
    {
        let name = world.name(namespace);
        for address in [format!("10.9.0.{far}"), format!("fd09::{far}")] {
            if plan.has_ipv6 || !address.contains(':') {
                let neighbour = ["neigh", "replace", &address, "lladdr", far_mac, "dev", device];
                let mut arguments = vec!["-n", &name];
                arguments.extend(neighbour);
                ip(&arguments);
            }
        }
    }
    let stop = AtomicBool::new(false);
    let mut forwarder = Forwarder::new(&umem, pairs);
    std::thread::scope(|scope| {
        let forwarding = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if forwarder.turn() == 0 {
                    forwarder.wait(Duration::from_millis(10));
                }
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&world)));
        stop.store(true, Ordering::Relaxed);
        forwarding.join().expect("the forwarder does not panic");
        if let Err(panic) = result {
            eprintln!("{:?}", redirect.counters());
            std::panic::resume_unwind(panic);
        }
    });
    assert_eq!(forwarder.forwarded().dropped, 0);
    drop(forwarder);
    let census = umem.census();
    assert_eq!(census.free, census.total, "frames were lost");
}

fn pattern(at: usize) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0]
}

/// Sends a known stream from `a` to `b` and compares.
fn tcp(world: &World, address: &str) {
    let listener = world.within("b", || TcpListener::bind(address).expect("listen"));
    let peer = listener.local_addr().expect("address");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            world.within("a", || {
                let mut stream = TcpStream::connect(peer).expect("connect");
                let data: Vec<u8> = (0..TCP_BYTES).map(pattern).collect();
                stream.write_all(&data).expect("send");
            });
        });
        let (mut stream, _) = listener.accept().expect("accept");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("time-out");
        let mut data = Vec::new();
        stream.read_to_end(&mut data).expect("receive");
        assert_eq!(data.len(), TCP_BYTES);
        assert!(data.iter().enumerate().all(|(at, byte)| *byte == pattern(at)));
    });
}

/// Sends datagrams of `size` from many ports of `a` to `b`; each has to come back.
fn udp(world: &World, address: &str, size: usize) {
    let server = world.within("b", || UdpSocket::bind(address).expect("bind"));
    server.set_read_timeout(Some(Duration::from_secs(5))).expect("time-out");
    let peer = server.local_addr().expect("address");
    let any = if peer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let data: Vec<u8> = (0..size).map(pattern).collect();
    for _ in 0..40 {
        let client = world.within("a", || UdpSocket::bind(any).expect("bind"));
        client.set_read_timeout(Some(Duration::from_secs(5))).expect("time-out");
        client.send_to(&data, peer).expect("send");
        let mut buffer = vec![0; 65_536];
        let (length, from) = server.recv_from(&mut buffer).expect("the datagram arrives");
        assert_eq!(&buffer[..length], &data[..]);
        server.send_to(&buffer[..length], from).expect("answer");
        let (length, _) = client.recv_from(&mut buffer).expect("the answer arrives");
        assert_eq!(&buffer[..length], &data[..]);
    }
}

#[test]
fn native_mode_forwards_tcp_and_udp_of_both_families() {
    let plan = Plan { has_ipv6: true, ..Plan::default() };
    while_forwarding(plan, Mode::Native, &SocketConfig::default(), |world| {
        for (any, size) in [("10.9.0.2:0", 1400), ("[fd09::2]:0", 1)] {
            tcp(world, any);
            udp(world, any, size);
        }
    });
}

#[test]
fn generic_mode_forwards_tcp_and_udp_of_both_families() {
    let plan = Plan { has_ipv6: true, ..Plan::default() };
    while_forwarding(plan, Mode::Generic, &SocketConfig::small(), |world| {
        for (any, size) in [("10.9.0.2:0", 1400), ("[fd09::2]:0", 1)] {
            tcp(world, any);
            udp(world, any, size);
        }
    });
}

#[test]
fn jumbo_frames_travel_whole_in_both_modes() {
    let plan = Plan { mtu: 9000, has_ipv6: true, ..Plan::default() };
    for mode in [Mode::Native, Mode::Generic] {
        while_forwarding(plan, mode, &SocketConfig::default(), |world| {
            tcp(world, "10.9.0.2:0");
            udp(world, "10.9.0.2:0", 8000);
            udp(world, "[fd09::2]:0", 8900);
        });
    }
}

#[test]
fn every_queue_is_served_and_busy_polling_works() {
    let busy_poll = Some(BusyPoll { micros: 20, budget: 64 });
    let config = SocketConfig { busy_poll, ..SocketConfig::small() };
    let plan = Plan { queues: 2, ..Plan::default() };
    while_forwarding(plan, Mode::Native, &config, |world| {
        udp(world, "10.9.0.2:0", 100);
    });
}

/// veth names no NAPI, so that each vain look of a busy-polling worker was a system call per socket
/// that did nothing.
#[test]
fn a_queue_is_polled_after_its_first_packet_only_if_the_kernel_names_its_napi() {
    let Some(world) = world(Plan::default()) else { return };
    let mut redirect = Redirect::load(false).expect("load");
    redirect.heartbeat(0).expect("heartbeat").beat_for_ever();
    let umem = Umem::new(UmemConfig { frames: 2048, ..UmemConfig::default() }).expect("umem");
    let mut pool = FramePool::new(&umem);
    let busy_poll = Some(BusyPoll { micros: 20, budget: 64 });
    let config = SocketConfig { busy_poll, ..SocketConfig::small() };
    let mut socket = Socket::bind(&umem, "left", 0, &config).expect("bind");
    redirect.set_socket(LEFT, 0, 0, socket.fd()).expect("enter");
    redirect.attach("left", &rule(LEFT.0, PortKind::Pod), Mode::Native).expect("attach");
    for _ in 0..2 {
        world.within("a", || inject("a0", &ipv4(OTHER4, 17, 0, &l4(9))));
        let mut frames = Vec::new();
        assert!(eventually(|| socket.receive(&mut pool, 1, |frame| frames.push(frame)) > 0));
        frames.into_iter().for_each(|frame| pool.release(frame));
        assert_eq!(socket.busy_polls(), napi_id(&socket) != 0);
    }
}

/// What the kernel says about itself.
fn napi_id(socket: &Socket) -> u32 {
    let (mut id, mut length) = (0u32, 4);
    // SAFETY: the value and its length live through the call, which writes at most the length.
    let result = unsafe {
        libc::getsockopt(
            socket.fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_INCOMING_NAPI_ID,
            (&raw mut id).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    id
}

/// A worker with `left` as port 4 and `right` as port 5, and what it takes to feed it.
struct Worker {
    _world: World,
    redirect: Redirect,
    umem: Umem,
    ports: WorkerPorts,
}

const LEFT: PortId = PortId(4);
const RIGHT: PortId = PortId(5);

fn worker() -> Option<Worker> {
    let world = world(Plan::default())?;
    let mut redirect = Redirect::load(false).expect("load");
    redirect.heartbeat(0).expect("heartbeat").beat_for_ever();
    let umem = Umem::new(UmemConfig { frames: 2048, ..UmemConfig::default() }).expect("umem");
    let mut ports = WorkerPorts::new(&umem);
    for (port, interface) in [(LEFT, "left"), (RIGHT, "right")] {
        let socket = Socket::bind(&umem, interface, 0, &SocketConfig::small()).expect("bind");
        redirect.set_socket(port, 0, 0, socket.fd()).expect("enter");
        redirect.attach(interface, &rule(port.0, PortKind::Pod), Mode::Native).expect("attach");
        ports.control().add(port, socket).map_err(|(error, _)| error).expect("room");
    }
    ports.flush();
    Some(Worker { _world: world, redirect, umem, ports })
}

/// Receives one packet and says by which port it came.
fn receive_one(ports: &mut WorkerPorts) -> (PortId, xdp_redirect::Frame) {
    let mut burst = RxBurst::new();
    assert!(eventually(|| {
        ports.receive(&mut burst);
        !burst.is_empty()
    }));
    assert_eq!(burst.len(), 1);
    let received = burst.pop().expect("one packet");
    (received.port, received.buffer)
}

#[test]
fn worker_knows_by_which_port_a_packet_came_and_sends_it_by_another() {
    let Some(mut worker) = worker() else { return };
    let packet = ipv4(OTHER4, 17, 0, &l4(9));
    worker._world.within("a", || inject("a0", &packet));
    let (port, mut frame) = receive_one(&mut worker.ports);
    assert_eq!(port, LEFT);
    // Encapsulated in the headroom and sent to `b`, whose end hands it back unchanged.
    frame.grow_front(50).expect("headroom");
    frame.shrink_front(50).expect("as before");
    assert_eq!(frame.bytes(), packet);
    frame.grow_front(14).expect("headroom");
    let outer = crate::packets::ethernet(0x88b5, &[]);
    frame.bytes_mut()[..14].copy_from_slice(&outer);
    let tap = worker._world.within("b", || packet_socket("b0"));
    worker.ports.transmit(RIGHT, frame).map_err(|(reason, _)| reason).expect("room");
    worker.ports.flush();
    let mut seen = vec![0u8; 2048];
    let length = tap.receive(&mut seen);
    assert_eq!(&seen[14..length], &packet[..], "the packet moved into its headroom");
}

#[test]
fn removed_port_gives_its_frames_back_and_refuses_packets() {
    let Some(mut worker) = worker() else { return };
    let packet = ipv4(OTHER4, 17, 0, &l4(9));
    let frame = worker.ports.pool().allocate_with(&packet).expect("a frame");
    worker.ports.transmit(LEFT, frame).map_err(|(reason, _)| reason).expect("room");
    let control = worker.ports.control();
    control.remove(LEFT).expect("room");
    let generation = worker.ports.generation();
    worker.ports.flush();
    assert!(worker.ports.generation() > generation);
    assert_eq!(worker.ports.path(LEFT), TransmitPath::None);
    let (port, socket) = control.collect().expect("the socket comes back");
    assert_eq!((port, socket.interface()), (LEFT, "left"));
    drop(socket);
    let frame = worker.ports.pool().allocate_with(&packet).expect("a frame");
    let (reason, frame) = worker.ports.transmit(LEFT, frame).expect_err("the port is gone");
    assert_eq!(reason, dataplane::DropReason::PortGone);
    worker.ports.release(frame);
    // The other port goes on, and so does a new socket on the same queue.
    let frame = worker.ports.pool().allocate_with(&packet).expect("a frame");
    worker.ports.transmit(RIGHT, frame).map_err(|(reason, _)| reason).expect("room");
    worker.ports.flush();
    let again = Socket::bind(&worker.umem, "left", 0, &SocketConfig::small()).expect("bind");
    worker.redirect.set_socket(LEFT, 0, 0, again.fd()).expect("enter");
    control.add(LEFT, again).map_err(|(error, _)| error).expect("room");
    worker.ports.flush();
    worker._world.within("a", || inject("a0", &packet));
    let (port, frame) = receive_one(&mut worker.ports);
    assert_eq!(port, LEFT);
    worker.ports.release(frame);
    let Worker { umem, ports, .. } = worker;
    drop((ports, control));
    let census = umem.census();
    assert_eq!(census.free, census.total, "frames were lost");
}

#[test]
fn port_whose_interface_vanishes_is_reported_and_takes_no_packets() {
    let Some(mut worker) = worker() else { return };
    let packet = ipv4(OTHER4, 17, 0, &l4(9));
    ip(&["link", "del", "right"]);
    let frame = worker.ports.pool().allocate_with(&packet).expect("a frame");
    worker.ports.transmit(RIGHT, frame).map_err(|(reason, _)| reason).expect("not known yet");
    worker.ports.flush();
    assert_eq!(worker.ports.failed().map(|(port, _)| port).collect::<Vec<_>>(), [RIGHT]);
    let frame = worker.ports.pool().allocate_with(&packet).expect("a frame");
    let (_, frame) = worker.ports.transmit(RIGHT, frame).expect_err("now it is");
    worker.ports.release(frame);
}

#[test]
fn port_whose_interface_is_down_takes_packets_again_when_it_is_up() {
    let Some(mut worker) = worker() else { return };
    let packet = ipv4(OTHER4, 17, 0, &l4(9));
    let send = |ports: &mut WorkerPorts| {
        let frame = ports.pool().allocate_with(&packet).expect("a frame");
        let result = ports.transmit(RIGHT, frame);
        ports.flush();
        result.map_err(|(_, frame)| ports.release(frame)).is_ok()
    };
    ip(&["link", "set", "right", "down"]);
    assert!(send(&mut worker.ports), "not known yet");
    assert!(!send(&mut worker.ports), "now it is");
    assert!(worker.ports.is_settled());
    ip(&["link", "set", "right", "up"]);
    assert!(!send(&mut worker.ports), "found out by this one");
    assert_eq!(worker.ports.failed().count(), 0);
    assert!(send(&mut worker.ports));
    assert!(worker.ports.is_settled());
}

#[test]
fn worker_without_a_queue_transmits_by_anothers() {
    let Some(mut worker) = worker() else { return };
    let mut second = WorkerPorts::new(&worker.umem);
    let control = worker.ports.control();
    control.remove(RIGHT).expect("room");
    worker.ports.flush();
    let (_, primary) = control.collect().expect("the socket");
    let extra = primary.bind_transmit_only(&SocketConfig::small()).expect("bind");
    control.add(RIGHT, *primary).map_err(|(error, _)| error).expect("room");
    second.control().add(RIGHT, extra).map_err(|(error, _)| error).expect("room");
    worker.ports.flush();
    second.flush();
    let tap = worker._world.within("b", || packet_socket("b0"));
    let packet = ipv4(OTHER4, 17, 0, &l4(9));
    for sender in [&mut second, &mut worker.ports] {
        let frame = sender.pool().allocate_with(&packet).expect("a frame");
        sender.transmit(RIGHT, frame).map_err(|(reason, _)| reason).expect("room");
        sender.flush();
        let mut seen = vec![0u8; 2048];
        let length = tap.receive(&mut seen);
        assert_eq!(&seen[..length], &packet[..]);
    }
    let mut burst = RxBurst::new();
    worker.ports.receive(&mut burst);
    worker.ports.receive(&mut burst);
    drop((second, control));
    let Worker { umem, ports, .. } = worker;
    drop(ports);
    let census = umem.census();
    assert_eq!(census.free, census.total, "frames were lost");
}

#[test]
fn full_transmit_ring_gives_packets_back_and_counts() {
    let Some(mut worker) = worker() else { return };
    let packet = ipv4(OTHER4, 17, 0, &l4(9));
    let mut refused = 0;
    for _ in 0..600 {
        let frame = worker.ports.pool().allocate_with(&packet).expect("a frame");
        if let Err((reason, frame)) = worker.ports.transmit(RIGHT, frame) {
            assert_eq!(reason, dataplane::DropReason::TxRingFull);
            worker.ports.release(frame);
            refused += 1;
        }
    }
    assert_eq!(refused, 600 - 512, "the ring has 512 places");
    worker.ports.flush();
    let frame = worker.ports.pool().allocate_with(&packet).expect("a frame");
    worker.ports.transmit(RIGHT, frame).map_err(|(reason, _)| reason).expect("all have left");
    let census = worker.umem.census();
    assert_eq!(census.held, 0, "{census:?}");
}
