//! The second way out: live frames into a veth, with a real receiver.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dataplane::DropReason;
use dataplane::port::{PortId, PortKind, Ports};
use xdp_redirect::live_transmit::delivery::delivery;
use xdp_redirect::live_transmit::{LivePeer, LiveStatistics, Trial};
use xdp_redirect::loader::{Mode, interface_index};
use xdp_redirect::ports::TransmitPath;
use xdp_redirect::socket::SocketConfig;
use xdp_redirect::umem::UmemConfig;
use xdp_redirect::{LiveTransmit, Redirect, Socket, Umem, WorkerPorts};

use crate::packets::{OTHER4, POD6, ethernet, ipv4, ipv6, l4};
use crate::sockets::packet_socket;
use crate::world::{Plan, World, end_whole, ip, rule, world};

const RIGHT: PortId = PortId(5);
const LEFT: PortId = PortId(4);
/// Of a worker in the middle, so that its number matters.
const WORKER: u32 = 3;

struct Setup {
    world: World,
    _redirect: Redirect,
    live: LiveTransmit,
    umem: Umem,
    ports: WorkerPorts,
}

/// A worker that may send live frames to `a` and `b`.
fn setup() -> Option<Setup> {
    let world = world(Plan::default())?;
    for (namespace, device) in [("a", "a0"), ("b", "b0")] {
        let name = world.name(namespace);
        ip(&["netns", "exec", &name, "ethtool", "-K", device, "gro", "on"]);
    }
    let mut redirect = Redirect::load(false).expect("load");
    redirect.heartbeat(0).expect("heartbeat").beat_for_ever();
    let umem = Umem::new(UmemConfig { frames: 8192, ..UmemConfig::default() }).expect("umem");
    let mut live = LiveTransmit::load(WORKER + 1).expect("the kernel can");
    let mut ports =
        WorkerPorts::new(&umem).with_live_transmit(live.sender(WORKER).expect("a worker"));
    let control = ports.control();
    for (port, interface) in [(LEFT, "left"), (RIGHT, "right")] {
        let socket = Socket::bind(&umem, interface, 0, &SocketConfig::default()).expect("bind");
        redirect.set_socket(port, 0, 0, socket.fd()).expect("enter");
        redirect.attach(interface, &rule(port.0, PortKind::Pod), Mode::Native).expect("attach");
        let ifindex = interface_index(interface).expect("it exists");
        live.set_port(port, ifindex).expect("set");
        control.add(port, socket).map_err(|(error, _)| error).expect("room");
        control.set_live(port, Some(LivePeer::Program)).expect("room");
    }
    ports.flush();
    for port in [LEFT, RIGHT] {
        assert!(matches!(ports.path(port), TransmitPath::LiveFrames { .. }));
    }
    Some(Setup { world, _redirect: redirect, live, umem, ports })
}

impl Setup {
    fn send(&mut self, packet: &[u8]) -> Result<(), DropReason> {
        self.send_by(RIGHT, packet)
    }

    fn send_by(&mut self, port: PortId, packet: &[u8]) -> Result<(), DropReason> {
        let frame = self.ports.pool().allocate_with(packet).expect("a frame");
        self.ports.transmit(port, frame).map_err(|(reason, frame)| {
            self.ports.release(frame);
            reason
        })
    }

    fn statistics(&self) -> LiveStatistics {
        self.ports.control().live_counters().expect("it can").read()
    }

    fn end(self) {
        let Self { ports, umem, .. } = self;
        end_whole(ports, &umem);
    }
}

/// UDP of `length` bytes in all whose payload is known by `number`.
fn packet(number: u32, length: usize) -> Vec<u8> {
    let is_ipv6 = number % 2 == 1;
    let mut payload = l4(9);
    payload.extend(number.to_be_bytes());
    let headers = if is_ipv6 { 54 } else { 34 };
    let fill = (0..).map(|at: u32| (at ^ number).to_le_bytes()[0]);
    payload.extend(fill.take((length - headers).saturating_sub(payload.len())));
    if is_ipv6 { ipv6(POD6, 17, &payload) } else { ipv4(OTHER4, 17, 0, &payload) }
}

#[test]
fn batch_arrives_whole_and_in_order_at_any_length() {
    let Some(mut setup) = setup() else { return };
    let tap = setup.world.within("b", || packet_socket("b0"));
    tap.set_receive_buffer(4 << 20);
    let lengths = [60, 61, 66, 78, 79, 127, 128, 129, 500, 1000, 1513, 1514];
    let packets: Vec<Vec<u8>> = (0..240u32)
        .map(|number| packet(number, lengths[number as usize / 2 % lengths.len()].max(78)))
        .collect();
    let short = ethernet(0x88b5, &[7; 46]);
    for one in packets.iter().chain([&short]) {
        setup.send(one).expect("room");
    }
    setup.ports.flush();
    let mut seen = vec![0u8; 2048];
    for one in packets.iter().chain([&short]) {
        let length = tap.receive(&mut seen);
        assert_eq!(seen[..length], **one);
    }
    let statistics = setup.statistics();
    assert_eq!((statistics.calls, statistics.sent_packets), (1, 241), "{statistics:?}");
    setup.end();
}

#[test]
fn few_packets_leave_by_af_xdp() {
    let Some(mut setup) = setup() else { return };
    let tap = setup.world.within("b", || packet_socket("b0"));
    for number in 0..31 {
        setup.send(&packet(number, 100)).expect("room");
    }
    setup.ports.flush();
    let mut seen = vec![0u8; 2048];
    for number in 0..31 {
        let length = tap.receive(&mut seen);
        assert_eq!(seen[..length], *packet(number, 100));
    }
    let statistics = setup.statistics();
    assert_eq!((statistics.calls, statistics.too_few_packets), (0, 31), "{statistics:?}");
    setup.end();
}

/// A stack has so much to do for each that a call pays later.
#[test]
fn packets_for_a_stack_count_half_toward_a_call() {
    let Some(mut setup) = setup() else { return };
    setup.ports.control().set_live(RIGHT, Some(LivePeer::Stack)).expect("room");
    setup.ports.flush();
    let mut send = |right: u32, left: u32| {
        for (port, count) in [(RIGHT, right), (LEFT, left)] {
            for number in 0..count {
                setup.send_by(port, &packet(number, 100)).expect("room");
            }
        }
        setup.ports.flush();
        let statistics = setup.statistics();
        // Until nothing waits and no port is warm.
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(1));
            setup.ports.flush();
        }
        (statistics.calls, statistics.too_few_packets)
    };
    assert_eq!(send(63, 0), (0, 63));
    assert_eq!(send(20, 21), (0, 104), "half of 20 and 21 are less than 32");
    assert_eq!(send(64, 0), (1, 104));
    assert_eq!(send(22, 21), (2, 104));
    setup.end();
}

/// Of each flow a packet never overtakes another, whichever way they take.
#[test]
fn order_is_kept_while_the_ways_are_changed_all_the_time() {
    const PACKETS: u32 = 60_000;
    let Some(mut setup) = setup() else { return };
    let tap = setup.world.within("b", || packet_socket("b0"));
    tap.set_receive_buffer(32 << 20);
    let (seen, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    let control = setup.ports.control();
    let numbers = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut numbers = Vec::new();
            let mut bytes = vec![0u8; 2048];
            while numbers.last() != Some(&(2 * PACKETS - 2)) {
                let Some(length) = tap.receive_within(&mut bytes) else { break };
                if length == 100 && bytes[12..14] == [8, 0] {
                    let number = bytes[54..58].try_into().expect("four bytes");
                    numbers.push(u32::from_be_bytes(number));
                    seen.store(numbers.len().try_into().expect("few"), Ordering::Relaxed);
                }
            }
            numbers
        });
        scope.spawn(|| {
            for may in [false, true].into_iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                control
                    .set_live(RIGHT, may.then_some(LivePeer::Program))
                    .expect("the worker ticks");
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        // As workers are: the peer's poll is where they last were.
        let core = core_affinity::get_core_ids().and_then(|cores| cores.last().copied());
        assert!(core_affinity::set_for_current(core.expect("a core")), "pinned");
        let (mut sent, mut refused, mut burst) = (0, 0, 1);
        while sent < PACKETS {
            // Bursts on both sides of what makes a call.
            burst = (burst * 5 + 3) % 97;
            for _ in 0..burst.min(PACKETS - sent) {
                match setup.send(&packet(sent * 2, 100)) {
                    Ok(()) => sent += 1,
                    Err(DropReason::TxRingFull) => refused += 1,
                    Err(reason) => panic!("{reason:?}"),
                }
            }
            setup.ports.flush();
            while sent.saturating_sub(seen.load(Ordering::Relaxed)) > 2_000
                && !receiver.is_finished()
            {
                setup.ports.flush();
                std::thread::yield_now();
            }
        }
        while !setup.ports.is_settled() {
            setup.ports.flush();
        }
        eprintln!("{refused} times there was no room");
        let numbers = receiver.join().expect("the receiver does not panic");
        stop.store(true, Ordering::Relaxed);
        numbers
    });
    drop(control);
    let statistics = setup.statistics();
    let overtaken = numbers.windows(2).position(|pair| pair[0] >= pair[1]);
    assert_eq!(overtaken, None, "{:?} {statistics:?}", overtaken.map(|at| &numbers[at..][..20]));
    // On a veth whose peer polls on another core, a full ring refuses what comes; it is counted.
    let lost = u64::from(PACKETS) - numbers.len() as u64;
    let refused = delivery("right").expect("it tells").expect("a veth").refused;
    assert_eq!(lost, refused, "{statistics:?}");
    assert!(statistics.sent_packets > 1_000, "{statistics:?}");
    assert!(statistics.too_few_packets > 1_000, "{statistics:?}");
    setup.end();
}

/// Packets of ports that waited to settle had every place, and those of a port that was open were refused
/// for as long.
#[test]
fn ports_that_wait_until_they_have_settled_keep_no_other_from_sending() {
    let Some(mut setup) = setup() else { return };
    let far = setup.world.name("a");
    ip(&["link", "add", "third", "type", "veth", "peer", "name", "c0", "netns", &far]);
    ip(&["link", "set", "third", "up"]);
    ip(&["-n", &far, "link", "set", "c0", "up"]);
    let socket = Socket::bind(&setup.umem, "third", 0, &SocketConfig::default()).expect("bind");
    let third = PortId(6);
    setup.live.set_port(third, interface_index("third").expect("it exists")).expect("set");
    let control = setup.ports.control();
    control.add(third, socket).map_err(|(error, _)| error).expect("room");
    control.set_live(third, Some(LivePeer::Program)).expect("room");
    setup.ports.flush();
    let mut was_refused = false;
    // Ports settle within a millisecond, in which this thread may not have run.
    for _ in 0..200 {
        for port in [LEFT, RIGHT] {
            control.set_live(port, Some(LivePeer::Program)).expect("room");
        }
        setup.ports.take_commands();
        for number in 0..40 {
            setup.send_by(LEFT, &packet(number, 100)).expect("room");
            setup.send_by(RIGHT, &packet(number, 100)).expect("room");
        }
        setup.ports.flush();
        for port in [LEFT, RIGHT] {
            control.set_live(port, None).expect("room");
        }
        setup.ports.take_commands();
        let fill = packet(0, 100);
        let is_full = |setup: &mut Setup| {
            [LEFT, RIGHT].map(|port| setup.send_by(port, &fill)) == [Err(DropReason::TxRingFull); 2]
        };
        for _ in 0..130 {
            let _ = is_full(&mut setup);
        }
        if is_full(&mut setup) {
            let sent = setup.send_by(third, &fill);
            if is_full(&mut setup) {
                assert_eq!(sent, Ok(()));
                was_refused = true;
                break;
            }
        }
        while !setup.ports.is_settled() {
            setup.ports.flush();
        }
    }
    assert!(was_refused, "every place was never taken");
    drop(control);
    setup.end();
}

#[test]
fn peer_that_polls_nothing_is_found_by_a_trial_and_by_its_counters() {
    let Some(mut setup) = setup() else { return };
    assert_eq!(setup.live.try_port(RIGHT, "right").expect("tried"), Trial::Arrives);
    ip(&["netns", "exec", &setup.world.name("b"), "ethtool", "-K", "b0", "gro", "off"]);
    assert_eq!(setup.live.try_port(RIGHT, "right").expect("tried"), Trial::Vanishes);
    let before = delivery("right").expect("it tells").expect("a veth");
    for number in 0..40 {
        setup.send(&packet(number, 100)).expect("room");
    }
    setup.ports.flush();
    let after = delivery("right").expect("it tells").expect("a veth").since(&before);
    assert_eq!(setup.statistics().sent_packets, 40);
    assert_eq!(setup.ports.control().live_counters().expect("it can").port(RIGHT), 40);
    assert_eq!((after.taken, after.refused), (0, 0), "without a word");
    ip(&["netns", "exec", &setup.world.name("b"), "ethtool", "-K", "b0", "gro", "on"]);
    assert_eq!(setup.live.try_port(RIGHT, "right").expect("tried"), Trial::Arrives);
    setup.end();
}

#[test]
fn interface_that_vanishes_between_batches_is_counted_and_the_rest_is_delivered() {
    let Some(mut setup) = setup() else { return };
    let tap = setup.world.within("a", || packet_socket("a0"));
    for number in 0..64 {
        setup.send(&packet(number, 100)).expect("room");
        if number < 40 {
            setup.send_by(LEFT, &packet(number, 100)).expect("room");
        }
    }
    ip(&["link", "del", "right"]);
    while !setup.ports.is_settled() {
        setup.ports.flush();
    }
    let mut seen = vec![0u8; 2048];
    for number in 0..40 {
        let length = tap.receive(&mut seen);
        assert_eq!(seen[..length], *packet(number, 100));
    }
    let statistics = setup.statistics();
    assert_eq!(statistics.no_interface_packets, 64, "{statistics:?}");
    assert_eq!(statistics.sent_packets, 40, "{statistics:?}");
    assert_eq!(setup.send(&packet(0, 100)), Err(DropReason::PortGone));
    setup.end();
}

#[test]
fn port_that_is_removed_frees_what_waits_for_it() {
    let Some(mut setup) = setup() else { return };
    for number in 0..20 {
        setup.send(&packet(number, 100)).expect("room");
    }
    setup.live.clear_port(RIGHT).expect("cleared");
    setup.live.clear_port(RIGHT).expect("again is no error");
    let control = setup.ports.control();
    control.remove(RIGHT).expect("room");
    setup.ports.flush();
    assert!(control.collect().is_some());
    drop(control);
    let statistics = setup.statistics();
    assert_eq!(statistics.abandoned_packets, 20, "{statistics:?}");
    assert_eq!(setup.send(&packet(0, 100)), Err(DropReason::PortGone));
    setup.end();
}

/// Its socket holds what it can, and the pages of each call with it.
#[test]
fn receiver_that_never_reads_disturbs_no_other() {
    let Some(mut setup) = setup() else { return };
    let _deaf = setup.world.within("b", || packet_socket("b0"));
    let tap = setup.world.within("a", || packet_socket("a0"));
    let (started, mut number, mut seen) = (Instant::now(), 0, vec![0u8; 2048]);
    while started.elapsed() < Duration::from_secs(2) {
        for count in 0..40 {
            setup.send(&packet(2 * count, 60)).expect("room");
        }
        for _ in 0..8 {
            number += 2;
            setup.send_by(LEFT, &packet(number, 100)).expect("room");
        }
        setup.ports.flush();
        for one in (0..8).rev() {
            let length = tap.receive(&mut seen);
            assert_eq!(seen[..length], *packet(number - 2 * one, 100));
        }
    }
    let statistics = setup.statistics();
    assert_eq!(statistics.refused_no_space, 0, "{statistics:?}");
    assert_eq!(statistics.sent_packets, u64::from(number / 2) * 6, "{statistics:?}");
    setup.end();
}

/// A worker has given up every capability.
#[test]
fn call_needs_no_capability() {
    let Some(mut setup) = setup() else { return };
    let tap = setup.world.within("b", || packet_socket("b0"));
    let mut setup = std::thread::scope(|scope| {
        let without = scope.spawn(move || {
            drop_capabilities();
            for number in 0..40 {
                setup.send(&packet(number, 100)).expect("room");
            }
            setup.ports.flush();
            setup
        });
        without.join().expect("no panic")
    });
    let mut seen = vec![0u8; 2048];
    for number in 0..40 {
        let length = tap.receive(&mut seen);
        assert_eq!(seen[..length], *packet(number, 100));
    }
    assert_eq!(setup.statistics().sent_packets, 40);
    setup.ports.flush();
    setup.end();
}

/// Of the calling thread.
fn drop_capabilities() {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    // _LINUX_CAPABILITY_VERSION_3 has two of (effective, permitted, inheritable).
    let header = Header { version: 0x2008_0522, pid: 0 };
    let none = [0u32; 6];
    // SAFETY: both structures are the kernel's for this version and live through the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    assert_eq!(result, 0, "capset: {}", std::io::Error::last_os_error());
}
