//! A worker with more sockets than it looks at in every pass.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dataplane::port::{PortId, PortKind, Ports};
use dataplane::worker::{BURST, RxBurst};
use xdp_redirect::loader::{Mode, interface_index};
use xdp_redirect::ports::SWEEP_INTERVAL;
use xdp_redirect::socket::SocketConfig;
use xdp_redirect::umem::UmemConfig;
use xdp_redirect::{Redirect, Socket, Umem, WorkerPorts};

use crate::packets::{OTHER4, ipv4, l4};
use crate::world::{Plan, World, rule, world};

const PORTS: u16 = 40;

/// A worker with [`PORTS`] ports: `pod0` and so on, whose other ends `in0` and so on are in `a`.
struct Many {
    world: World,
    redirect: Redirect,
    umem: Umem,
    ports: WorkerPorts,
}

fn config() -> SocketConfig {
    SocketConfig {
        receive_ring: 64,
        transmit_ring: 64,
        fill_frames: 64,
        idle_frames: 64,
        ..SocketConfig::small()
    }
}

/// The number of a port, which is not that of its interface: they lie apart and in no order.
fn number(interface: u16) -> PortId {
    PortId((interface * 7 + 1) % 2048)
}

fn make_links(world: &World) {
    let (node, far) = (world.name("node"), world.name("a"));
    let mut batch = String::new();
    for at in 0..PORTS {
        let pair = format!("pod{at} numrxqueues 1 numtxqueues 1 type veth peer name in{at}");
        batch += &format!("link add {pair} netns {far} numrxqueues 1 numtxqueues 1\n");
        batch += &format!("link set pod{at} up\n");
    }
    ip_batch(&node, &batch);
    let up: String = (0..PORTS).map(|at| format!("link set in{at} up\n")).collect();
    ip_batch(&far, &up);
}

fn ip_batch(namespace: &str, commands: &str) {
    let mut ip = Command::new("ip");
    ip.args(["-n", namespace, "-batch", "-"]).stdin(Stdio::piped());
    let mut child = ip.spawn().expect("ip starts");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(commands.as_bytes()).expect("ip reads");
    drop(input);
    assert!(child.wait().expect("ip ends").success(), "ip -batch");
}

impl Many {
    /// With flags that the program raises, or with flags that nobody does.
    fn make(are_flags_raised: bool) -> Option<Self> {
        let world = world(Plan::default())?;
        make_links(&world);
        let mut redirect = Redirect::load(false).expect("load");
        redirect.heartbeat(0).expect("heartbeat").beat_for_ever();
        let umem = Umem::new(UmemConfig { frames: 8192, ..UmemConfig::default() }).expect("umem");
        let flags = if are_flags_raised {
            redirect.ready_flags()
        } else {
            Redirect::load(false).expect("load another").ready_flags()
        };
        let mut ports = WorkerPorts::new(&umem).with_ready_flags(flags);
        for at in 0..PORTS {
            add(&mut redirect, &umem, &ports, at, number(at));
        }
        ports.flush();
        drain(&mut ports);
        Some(Self { world, redirect, umem, ports })
    }
}

fn add(redirect: &mut Redirect, umem: &Umem, ports: &WorkerPorts, interface: u16, port: PortId) {
    let name = format!("pod{interface}");
    let socket = Socket::bind(umem, &name, 0, &config()).expect("bind");
    redirect.set_socket(port, 0, 0, socket.fd()).expect("enter");
    redirect.attach(&name, &rule(port.0, PortKind::Pod), Mode::Native).expect("attach");
    ports.control().add(port, socket).map_err(|(error, _)| error).expect("room");
}

/// Receives what is there, until nothing comes for two sweeps.
fn drain(ports: &mut WorkerPorts) -> Vec<PortId> {
    let (mut seen, mut burst) = (Vec::new(), RxBurst::new());
    let mut last = Instant::now();
    while last.elapsed() < 2 * SWEEP_INTERVAL {
        ports.receive(&mut burst);
        for received in burst.drain(..) {
            seen.push(received.port);
            ports.release(received.buffer);
            last = Instant::now();
        }
        ports.flush();
    }
    seen
}

/// Sends frames out of the far ends.
struct Sender {
    socket: OwnedFd,
    ifindex: Vec<i32>,
    frame: Vec<u8>,
}

impl Sender {
    /// For the namespace of the calling thread.
    fn new() -> Self {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "AF_PACKET: {}", std::io::Error::last_os_error());
        // SAFETY: just opened, owned by nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let index = |at| interface_index(&format!("in{at}")).expect("the device exists");
        let ifindex = (0..PORTS).map(|at| i32::try_from(index(at)).expect("small")).collect();
        Self { socket, ifindex, frame: ipv4(OTHER4, 17, 0, &l4(9)) }
    }

    fn send(&self, at: u16) {
        // SAFETY: an all-zero `sockaddr_ll` is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).expect("a small number");
        address.sll_ifindex = self.ifindex[usize::from(at)];
        address.sll_halen = 6;
        let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).expect("small");
        // SAFETY: frame and address live through the call and have the lengths that are passed.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                self.frame.as_ptr().cast(),
                self.frame.len(),
                0,
                (&raw const address).cast(),
                length,
            )
        };
        let error = std::io::Error::last_os_error();
        assert_eq!(usize::try_from(sent).ok(), Some(self.frame.len()), "send: {error}");
    }
}

/// Numbers that look random, the same in every run.
struct Sequence(u64);

impl Sequence {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Time the calling thread ran: others on its core do not count.
fn time_run() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let part = |value: i64| u64::try_from(value).expect("time is positive");
    Duration::from_secs(part(time.tv_sec)) + Duration::from_nanos(part(time.tv_nsec))
}

/// What the sender of single packets says, and what the receiver does.
#[derive(Default)]
struct Round {
    /// Packets that the kernel has shown, or that were received before.
    shown: AtomicUsize,
    received: AtomicUsize,
    is_over: AtomicBool,
}

/// Sends one packet at a time and waits until it is received; 5 s at most.
fn send_single_packets(sender: &Sender, fds: &[i32], round: &Round, rounds: usize) {
    let mut random = Sequence(0x9e37_79b9_7f4a_7c15);
    for sent in 1..=rounds {
        let at = u16::try_from(random.below(PORTS.into())).expect("small");
        sender.send(at);
        let started = Instant::now();
        let mut poll = libc::pollfd { fd: fds[usize::from(at)], events: libc::POLLIN, revents: 0 };
        while round.received.load(Ordering::Acquire) < sent {
            assert!(started.elapsed() < Duration::from_secs(5), "packet {sent} is stranded");
            // SAFETY: one entry that lives through the call.
            if unsafe { libc::poll(&raw mut poll, 1, 0) } == 1 {
                round.shown.store(sent, Ordering::Release);
            }
        }
        // From right after the last to long after its flag is cleared; now and then two sweeps.
        let limit_micros = [2, 20, 200, 1000][usize::try_from(random.below(4)).expect("small")];
        let pause = Duration::from_micros(random.below(limit_micros));
        let pause_began = Instant::now();
        while pause_began.elapsed() < pause {
            std::hint::spin_loop();
        }
    }
    round.is_over.store(true, Ordering::Release);
}

#[test]
fn single_packets_on_many_ports_are_never_later_than_the_sweep() {
    let Some(mut many) = Many::make(true) else { return };
    let mut fds = vec![0; usize::from(PORTS)];
    for (port, fd) in many.ports.fds() {
        let at = (0..PORTS).find(|at| number(*at) == port).expect("one of ours");
        fds[usize::from(at)] = fd.as_raw_fd();
    }
    let (round, sender) = (Round::default(), many.world.within("a", Sender::new));
    let mut latest = Duration::ZERO;
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send_single_packets(&sender, &fds, &round, 6000));
        let (mut burst, mut shown_at) = (RxBurst::new(), None);
        while !round.is_over.load(Ordering::Acquire) && !sending.is_finished() {
            let received = round.received.load(Ordering::Relaxed);
            if shown_at.is_none() && round.shown.load(Ordering::Acquire) > received {
                shown_at = Some(time_run());
            }
            many.ports.receive(&mut burst);
            many.ports.flush();
            let packets = burst.len();
            for received in burst.drain(..) {
                many.ports.release(received.buffer);
            }
            if packets > 0 {
                if let Some(shown_at) = shown_at.take() {
                    latest = latest.max(time_run() - shown_at);
                }
                round.received.store(received + packets, Ordering::Release);
            }
        }
        sending.join().expect("no packet is stranded");
    });
    eprintln!("latest {latest:?}, {} found by sweeps", many.ports.stranded());
    assert!(latest <= SWEEP_INTERVAL + SWEEP_INTERVAL / 2, "a packet waited {latest:?}");
}

#[test]
fn packets_whose_flag_is_never_raised_are_found_by_sweeps_and_before_sleep() {
    let Some(mut many) = Many::make(false) else { return };
    let sender = many.world.within("a", Sender::new);
    for at in 0..PORTS {
        sender.send(at);
    }
    let seen: BTreeSet<PortId> = drain(&mut many.ports).into_iter().collect();
    assert_eq!(seen, (0..PORTS).map(number).collect(), "every port's packet");
    assert!(many.ports.stranded() > 0);
    assert!(many.ports.is_settled());
    for at in 0..PORTS {
        sender.send(at);
        let began = Instant::now();
        while many.ports.is_settled() {
            assert!(began.elapsed() < Duration::from_secs(2), "sleep is allowed with a packet");
        }
        // Asking raised the flag, so the very next pass finds it.
        let mut burst = RxBurst::new();
        many.ports.receive(&mut burst);
        let packet = burst.pop().expect("looked at at once");
        assert_eq!(packet.port, number(at));
        many.ports.release(packet.buffer);
    }
}

/// An edge-triggered wait, as mio's.
struct Waiter(OwnedFd);

impl Waiter {
    fn new(ports: &WorkerPorts) -> Self {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        assert!(fd >= 0, "epoll: {}", std::io::Error::last_os_error());
        // SAFETY: just opened, owned by nobody else.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        for (_, fd) in ports.fds() {
            let events = (libc::EPOLLIN | libc::EPOLLET).cast_unsigned();
            let mut event = libc::epoll_event { events, u64: 0 };
            let (epoll, add) = (epoll.as_raw_fd(), libc::EPOLL_CTL_ADD);
            // SAFETY: the event lives through the call.
            let result = unsafe { libc::epoll_ctl(epoll, add, fd.as_raw_fd(), &raw mut event) };
            assert_eq!(result, 0, "epoll_ctl: {}", std::io::Error::last_os_error());
        }
        Self(epoll)
    }

    /// Whether something happened before the time was up.
    fn wait(&self, limit: Duration) -> bool {
        let millis = i32::try_from(limit.as_millis()).expect("short");
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        // SAFETY: the array lives through the call and has the length that is passed.
        unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), 64, millis) > 0 }
    }
}

/// Packets that a worker receives which sleeps after `passes` vain passes; it stops at `expected`.
fn receive_sleeping(ports: &mut WorkerPorts, passes: u32, expected: &dyn Fn() -> usize) -> usize {
    let (waiter, mut burst) = (Waiter::new(ports), RxBurst::new());
    let (mut received, mut vain) = (0, 0);
    while received < expected() {
        ports.receive(&mut burst);
        ports.flush();
        vain = if burst.is_empty() { vain + 1 } else { 0 };
        received += burst.len();
        for packet in burst.drain(..) {
            ports.release(packet.buffer);
        }
        if vain >= passes && ports.is_settled() {
            vain = 0;
            if !waiter.wait(Duration::from_secs(2)) {
                break;
            }
        }
    }
    received
}

fn sleeping_worker_wakes(are_flags_raised: bool) {
    let Some(mut many) = Many::make(are_flags_raised) else { return };
    let sender = many.world.within("a", Sender::new);
    let sent = AtomicUsize::new(0);
    for passes in [1, 100] {
        sent.store(0, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let mut random = Sequence(0x2545_f491_4f6c_dd1d);
                for _ in 0..1500 {
                    let at = u16::try_from(random.below(PORTS.into())).expect("small");
                    sender.send(at);
                    sent.fetch_add(1, Ordering::Release);
                    std::thread::sleep(Duration::from_micros(random.below(200)));
                }
            });
            let all = || match sent.load(Ordering::Acquire) {
                1500 => 1500,
                _ => usize::MAX,
            };
            let received = receive_sleeping(&mut many.ports, passes, &all);
            sending.join().expect("the sender ends");
            assert_eq!(received, 1500, "a worker slept over a packet");
        });
    }
}

#[test]
fn sleeping_worker_wakes_for_every_packet() {
    sleeping_worker_wakes(true);
}

#[test]
fn sleeping_worker_wakes_for_every_packet_though_no_flag_is_raised() {
    sleeping_worker_wakes(false);
}

#[test]
fn ports_with_more_packets_than_a_burst_take_turns() {
    let Some(mut many) = Many::make(true) else { return };
    let sender = many.world.within("a", Sender::new);
    for at in 0..PORTS {
        (0..BURST + 8).for_each(|_| sender.send(at));
    }
    let mut burst = RxBurst::new();
    for visit in 0..2 {
        let mut seen = BTreeSet::new();
        for _ in 0..PORTS {
            many.ports.receive(&mut burst);
            let port = burst.first().expect("every socket has packets").port;
            assert!(seen.insert(port), "port {port:?} had two turns before another had one");
            assert_eq!(burst.len(), if visit == 0 { BURST } else { 8 });
            burst.drain(..).for_each(|packet| many.ports.release(packet.buffer));
        }
    }
    assert_eq!(drain(&mut many.ports), []);
}

#[test]
fn ports_that_come_and_go_are_served_at_once() {
    let Some(mut many) = Many::make(true) else { return };
    let sender = many.world.within("a", Sender::new);
    let control = many.ports.control();
    let mut numbers: Vec<PortId> = (0..PORTS).map(number).collect();
    let mut random = Sequence(0x1234_5678_9abc_def1);
    for next in 1000..1060 {
        let at = u16::try_from(random.below(PORTS.into())).expect("small");
        let place = usize::from(at);
        // Its flag stays raised, and its packet goes with it.
        sender.send(at);
        let old = numbers[place];
        many.redirect.detach(interface_index(&format!("pod{at}")).expect("there")).expect("rule");
        many.redirect.remove_socket(old, 0).expect("entry");
        control.remove(old).expect("room");
        many.ports.flush();
        while control.collect().is_some() {}
        // Every second one gets its old number back.
        numbers[place] = if next % 2 == 0 { PortId(next) } else { old };
        add(&mut many.redirect, &many.umem, &many.ports, at, numbers[place]);
        many.ports.flush();
        sender.send(at);
        let other = (at + 1) % PORTS;
        sender.send(other);
        let mut seen = drain(&mut many.ports);
        seen.sort_unstable();
        let mut expected = vec![numbers[place], numbers[usize::from(other)]];
        expected.sort_unstable();
        assert_eq!(seen, expected);
    }
    drop(many.ports);
    drop(control);
    let census = many.umem.census();
    assert_eq!(census.free, census.total, "frames were lost");
}

/// How many of a burst to one port arrive.
fn burst_arrives(many: &mut Many, sender: &Sender, at: u16, packets: usize) -> usize {
    (0..packets).for_each(|_| sender.send(at));
    drain(&mut many.ports).len()
}

#[test]
fn port_under_load_is_given_frames_until_the_region_is_short() {
    let frames = 1024;
    let small = SocketConfig { idle_frames: 4, ..SocketConfig::small() };
    let Some(mut many) = Many::make(true) else { return };
    many.umem = Umem::new(UmemConfig { frames, ..UmemConfig::default() }).expect("umem");
    many.ports = WorkerPorts::new(&many.umem).with_ready_flags(many.redirect.ready_flags());
    for at in 0..PORTS {
        let socket = Socket::bind(&many.umem, &format!("pod{at}"), 0, &small).expect("bind");
        many.redirect.set_socket(number(at), 0, 0, socket.fd()).expect("enter");
        many.ports.control().add(number(at), socket).map_err(|(error, _)| error).expect("room");
    }
    many.ports.flush();
    assert_eq!(many.umem.census().in_sockets, 4 * u32::from(PORTS), "idle ports have few frames");
    let sender = many.world.within("a", Sender::new);
    assert_eq!(burst_arrives(&mut many, &sender, 0, 60), 4, "what an idle port can take");
    for packets in [8, 16, 32, 64] {
        assert_eq!(burst_arrives(&mut many, &sender, 0, packets), packets, "a burst that grew");
    }
    // All ports want more: some get it, each keeps its share, and some stay free for the rest.
    for at in 0..PORTS {
        for packets in [4, 8, 16, 32, 64, 128] {
            assert!(burst_arrives(&mut many, &sender, at, packets) >= 4);
        }
    }
    for at in 0..PORTS {
        assert!(burst_arrives(&mut many, &sender, at, 60) >= 4, "no port is left without");
    }
    let census = many.umem.census();
    assert!(census.free >= frames / 8, "{census:?}");
}

/// Idle ports that want more than there is would take every frame that the busy one frees.
#[test]
fn idle_ports_leave_frames_to_a_busy_one_in_a_small_region() {
    let Some(mut many) = Many::make(true) else { return };
    let sender = many.world.within("a", Sender::new);
    many.umem = Umem::new(UmemConfig { frames: 256, ..UmemConfig::default() }).expect("umem");
    many.ports = WorkerPorts::new(&many.umem).with_ready_flags(many.redirect.ready_flags());
    for at in 0..PORTS {
        let socket = Socket::bind(&many.umem, &format!("pod{at}"), 0, &SocketConfig::small());
        let socket = socket.expect("bind");
        many.redirect.set_socket(number(at), 0, 0, socket.fd()).expect("enter");
        many.ports.control().add(number(at), socket).map_err(|(error, _)| error).expect("room");
    }
    many.ports.flush();
    for round in 0..50 {
        let last = PORTS - 1;
        assert_eq!(burst_arrives(&mut many, &sender, last, 1), 1, "round {round}");
        std::thread::sleep(Duration::from_millis(1));
    }
    let census = many.umem.census();
    assert!(census.free >= 32, "{census:?}");
}

/// Packets that arrived at a device of the calling thread's namespace (proc_pid_net(5)).
fn packets_received(device: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").expect("devices");
    let lines = text.lines().filter_map(|line| line.trim().split_once(':'));
    let mut counters = lines.filter(|(name, _)| *name == device).map(|(_, counters)| counters);
    let packets = counters.next().and_then(|counters| counters.split_whitespace().nth(1));
    packets.and_then(|packets| packets.parse().ok()).expect("a counter")
}

/// What a transmit-only worker sends completes with the queue's owner, who has no packets there.
#[test]
fn queue_that_another_worker_sends_by_is_looked_at_for_completions() {
    let Some(mut many) = Many::make(true) else { return };
    let mut second = WorkerPorts::new(&many.umem).with_ready_flags(many.redirect.ready_flags());
    let (port, control) = (number(5), many.ports.control());
    control.remove(port).expect("room");
    many.ports.flush();
    let (_, primary) = control.collect().expect("the socket");
    let transmitter = primary.bind_transmit_only(&config()).expect("bind");
    control.add(port, *primary).map_err(|(error, _)| error).expect("room");
    many.ports.flush();
    second.control().add(port, transmitter).map_err(|(error, _)| error).expect("room");
    second.flush();
    let packet = ipv4(OTHER4, 17, 0, &l4(9));
    let mut burst = RxBurst::new();
    let arrived = |many: &Many| many.world.within("a", || packets_received("in5"));
    let before = arrived(&many);
    let began = Instant::now();
    let mut sent = 0;
    // More than the completion ring and all frames hold.
    while sent < 20_000 && began.elapsed() < Duration::from_secs(20) {
        let Some(frame) = second.pool().allocate_with(&packet) else {
            many.ports.receive(&mut burst);
            continue;
        };
        match second.transmit(port, frame) {
            Ok(()) => sent += 1,
            Err((_, frame)) => second.release(frame),
        }
        if sent % 16 == 0 {
            second.flush();
            many.ports.receive(&mut burst);
        }
    }
    while !second.is_settled() {
        second.flush();
        many.ports.receive(&mut burst);
    }
    assert_eq!(sent, 20_000, "transmission stopped");
    assert!(arrived(&many) >= before + 20_000);
}
