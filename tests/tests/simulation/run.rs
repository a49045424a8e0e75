//! One run: what is sent, what goes wrong, and what must be true of whatever arrives.

use std::collections::BTreeMap;
use std::time::Duration;

use dataplane::DropReason;
use dataplane::handoff::HandoffCause;
use dataplane::lb::FrontendKind;
use dataplane::lpm::Prefix;
use dataplane::mailbox::{Command, FlushFilter};
use dataplane::nat::Mapping;
use dataplane::port::PortId;
use dataplane::tables::TcpWindows;
use xskiff_tests::packet_builder::{Seen, icmp_error, read, read_quoted, tcp, udp};
use xskiff_tests::random::Random;
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{HOST, UPLINK, World, address, node_address, pod_port, pod4};

use crate::conversation::{
    BACKEND_PORT, Client, Conversation, Kind, NODE_PORT, PODS, Phase, SERVICE_PORT, Target, pod,
};
use crate::pieces::{Reassembly, fragments};

/// Conversations under way at once.
const CONVERSATIONS: usize = 60;
/// Marks a frame that nobody may ever receive.
const FORGED: u32 = u32::MAX;
/// A jump beyond every time-out but that of an established TCP connection.
const JUMP: Duration = Duration::from_secs(700);

const REQUEST: u8 = 0;
const REPLY: u8 = 1;

/// How often what happened, over many runs.
#[derive(Debug, Default)]
pub struct Totals(BTreeMap<&'static str, u64>);

impl Totals {
    fn count(&mut self, what: &'static str, times: u64) {
        *self.0.entry(what).or_default() += times;
    }

    pub fn add(&mut self, other: &Self) {
        other.0.iter().for_each(|(what, times)| self.count(what, *times));
    }

    /// A simulation in which something never happens proves nothing about it.
    pub fn assert_everything_happened(&self) {
        for (what, times) in &self.0 {
            assert!(*times > 0, "no {what} in any run: {self:?}");
        }
    }
}

/// What a server will send.
struct Pending {
    id: u32,
    port: PortId,
    frame: Vec<u8>,
}

pub struct Run {
    random: Random,
    node: Simulation,
    workers: usize,
    mapping: Mapping,
    generation: u32,
    /// The tables in force: whether pod 2 is kept from pod 3, and whether one backend is left.
    strict: bool,
    single: bool,
    /// Whether some workers may still decide by the tables before.
    in_transition: bool,
    talks: BTreeMap<u32, Conversation>,
    next_id: u32,
    identification: u16,
    pending: Vec<Pending>,
    reassembly: Reassembly,
    /// Fragments on a longer way than the others of their packets.
    detour: Vec<(PortId, Vec<u8>)>,
    stalled: Option<(usize, usize)>,
    /// Whether the flow table is too small: then only established connections are promised to
    /// stay, and a conversation that lost its flow is given up.
    is_crowded: bool,
    totals: Totals,
}

fn world(strict: bool, single: bool, mapping: Mapping, generation: u32) -> World {
    let v4 = [(pod(2, false), BACKEND_PORT), (pod(3, false), BACKEND_PORT)];
    let v6 = [(pod(2, true), BACKEND_PORT), (pod(3, true), BACKEND_PORT)];
    let count = if single { 1 } else { 2 };
    let allowed: &[u8] = if strict { &[1] } else { &[1, 2] };
    let world = World::with_pods(PODS)
        .with_mapping(mapping)
        .with_service(FrontendKind::ClusterIp, "10.2.0.1", SERVICE_PORT, &v4[..count])
        .with_service(FrontendKind::ClusterIp, "fd02::1", SERVICE_PORT, &v6[..count])
        .with_service(FrontendKind::NodePort, "", NODE_PORT, &v4[..count])
        .with_service(FrontendKind::ClusterIp, "10.2.0.2", SERVICE_PORT, &v6[..count])
        .with_service(FrontendKind::ClusterIp, "fd02::2", SERVICE_PORT, &v4[..count])
        .with_ingress_only_from(3, allowed, BACKEND_PORT..=BACKEND_PORT)
        .with_no_egress(4)
        .with_tcp_windows(TcpWindows::Strict)
        .with_unfinished_checksums(pod_port(1));
    (1..generation).fold(world, |world, _| world.next_generation())
}

impl Run {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let workers = if random.one_in(2) { 1 } else { 2 + random.below(7) };
        let is_crowded = random.one_in(4);
        let capacity = if is_crowded { 96 } else { 4096 };
        let mapping = *random.pick(&[Mapping::EndpointDependent, Mapping::EndpointIndependent]);
        let tables = world(false, false, mapping, 1).tables();
        let node = match seed % 2 {
            0 => Simulation::new(workers, capacity, &tables),
            _ => Simulation::with_details(workers, capacity, &tables),
        };
        let mut run = Self {
            random,
            node,
            workers,
            mapping,
            generation: 1,
            strict: false,
            single: false,
            in_transition: false,
            talks: BTreeMap::new(),
            next_id: 0,
            identification: 0,
            pending: Vec::new(),
            reassembly: Reassembly::default(),
            detour: Vec::new(),
            stalled: None,
            is_crowded,
            totals: Totals::default(),
        };
        run.fill_up();
        run
    }

    pub fn play(mut self, rounds: usize) -> Totals {
        for _ in 0..rounds {
            self.faults();
            for _ in 0..1 + self.random.below(10) {
                self.send_request();
            }
            if self.random.one_in(4) {
                self.forge();
            }
            self.send_pending();
            self.end_detours();
            self.tick();
            self.totals.count("waiting fragment", self.node.sum(|counters| counters.held.get()));
            self.node.now = self.node.now.after(Duration::from_micros(700));
        }
        self.calm_down();
        self.node.now = self.node.now.after(Duration::from_secs(2));
        self.node.tick();
        let held = self.node.sum(|counters| counters.held.get());
        assert_eq!(held, 0, "nothing waits for ever:\n{}", self.node.moved_counters());
        self.assert_no_port_is_overloaded();
        self.totals.count("hand-off", self.node.sum(|counters| counters.handed_in.get()));
        self.totals.count("foreign hit", self.node.sum(|counters| counters.foreign_hits.get()));
        // What another holds and is over is too rare for chance: it has a test of its own.
        for cause in [HandoffCause::Miss, HandoffCause::Mapping, HandoffCause::Fragment] {
            let handed = self.node.sum(|counters| counters.handed_for(cause));
            self.totals.count(cause.label(), handed);
        }
        self.totals.count("rejudged flow", self.node.sum(|counters| counters.flows_rejudged.get()));
        self.totals.count("expired flow", self.node.sum(|counters| counters.flows_expired.get()));
        self.totals.count("flushed flow", self.node.sum(|counters| counters.flows_deleted.get()));
        for reason in [
            DropReason::PolicyIngress,
            DropReason::PolicyEgress,
            DropReason::Spoofed,
            DropReason::LocalAddressFromUplink,
            DropReason::TxRingFull,
            DropReason::FragmentUnknown,
        ] {
            self.totals.count(reason.label(), self.node.dropped(reason));
        }
        self.totals
    }

    /// RFC 4787, REQ-3: with mapping by end point, no two have a port in common.
    fn assert_no_port_is_overloaded(&mut self) {
        if self.mapping == Mapping::EndpointDependent {
            return;
        }
        let mut own = BTreeMap::new();
        for flow in self.node.flows() {
            let (inside, outside) = (flow.original.source(), flow.reply.destination());
            let is_mapped = flow.origin.service.is_none() && inside != outside;
            let is_pods = (1..=PODS).any(|n| [pod(n, false), pod(n, true)].contains(&inside));
            if is_mapped && is_pods {
                let outside = (flow.original.protocol(), outside, flow.reply.destination_port());
                let inside = (inside, flow.original.source_port());
                let first = *own.entry(outside).or_insert(inside);
                assert_eq!(first, inside, "{outside:?} is two end points'");
                self.totals.count("mapped flow", 1);
            }
        }
    }

    fn fill_up(&mut self) {
        while self.talks.len() < CONVERSATIONS {
            self.next_id += 1;
            let client_port = 1024 + u16::try_from(self.next_id % 30_000).expect("below 2^16");
            let talk = Conversation::new(&mut self.random, client_port);
            if talk.is_possible() {
                self.talks.insert(self.next_id, talk);
            }
        }
    }

    fn worker(&mut self) -> usize {
        self.random.below(self.workers)
    }

    fn payload(&mut self, id: u32, way: u8, phase: Phase) -> Vec<u8> {
        let mut payload = b"xs".to_vec();
        payload.extend(id.to_be_bytes());
        payload.extend([way, u8::from(phase >= Phase::Answered)]);
        payload.extend((0..self.random.below(120)).map(|byte| byte.to_be_bytes()[7]));
        payload
    }

    fn send_request(&mut self) {
        let ids: Vec<u32> = self.talks.keys().copied().collect();
        let id = *self.random.pick(&ids);
        let talk = self.talks[&id].clone();
        let mut payload = self.payload(id, REQUEST, talk.phase);
        let in_pieces = talk.kind == Kind::Udp && self.random.one_in(3);
        if in_pieces {
            payload.resize(200, 0x77);
        }
        let is_offloaded = talk.client == Client::Pod(1) && talk.kind != Kind::Ping;
        let unfinished = is_offloaded && !in_pieces && self.random.one_in(2);
        let frame = talk.request(&payload);
        let frame = if unfinished { frame.partial_checksum().build() } else { frame.build() };
        if !in_pieces {
            let worker = self.worker();
            return self.node.deliver(worker, talk.client_port(), &frame);
        }
        self.identification = self.identification.wrapping_add(1);
        let mut pieces = fragments(&frame, self.identification, 8 * (2 + self.random.below(10)));
        if self.random.one_in(4) {
            pieces.reverse();
        }
        for piece in pieces {
            match self.random.below(40) {
                0 => self.totals.count("lost fragment", 1),
                1..5 => self.detour.push((talk.client_port(), piece)),
                _ => {
                    let worker = self.worker();
                    self.node.deliver(worker, talk.client_port(), &piece);
                }
            }
        }
    }

    fn end_detours(&mut self) {
        for _ in 0..self.detour.len() {
            if self.random.one_in(3) {
                let index = self.random.below(self.detour.len());
                let (port, piece) = self.detour.swap_remove(index);
                let worker = self.worker();
                self.node.deliver(worker, port, &piece);
            }
        }
    }

    /// Frames that no end point may ever see.
    fn forge(&mut self) {
        let payload = self.payload(FORGED, REQUEST, Phase::Opening);
        let ids: Vec<u32> = self.talks.keys().copied().collect();
        let victim = self.talks[self.random.pick(&ids)].clone();
        let server = victim.server.map_or(victim.to, |(own, _)| own);
        let (port, frame) = match self.random.below(5) {
            // In another pod's name, also on a connection that stands.
            0 => (pod_port(2), udp("10.1.0.1:9", "10.1.0.2:9")),
            1 => {
                let own =
                    if server.is_ipv4() == victim.from.is_ipv4() { server } else { victim.to };
                (pod_port(4), tcp(&own.to_string(), &victim.from.to_string(), "PA"))
            }
            // From outside, in a local pod's name and in the node's.
            2 => (UPLINK, tcp("10.1.0.2:8080", "10.1.0.1:1024", "S")),
            3 => (UPLINK, udp("10.0.0.1:9", "10.1.0.2:9")),
            // By a pod that may open nothing.
            _ => (pod_port(4), tcp("10.1.0.4:9", "10.1.0.2:8080", "S")),
        };
        // The port of the talk's own server forges nothing.
        let is_own =
            server.ip() == pod(4, victim.server_is_v6()) || victim.client == Client::Pod(4);
        if !(is_own && port == pod_port(4)) {
            let worker = self.worker();
            self.node.deliver(worker, port, &frame.payload(&payload).build());
        }
    }

    fn send_pending(&mut self) {
        for _ in 0..self.pending.len() {
            if self.random.one_in(3) {
                continue;
            }
            let index = self.random.below(self.pending.len());
            let Pending { id, port, frame } = self.pending.swap_remove(index);
            if self.talks.contains_key(&id) {
                let worker = self.worker();
                self.node.deliver(worker, port, &frame);
            }
        }
    }

    fn faults(&mut self) {
        if self.random.one_in(20) {
            let port = *self.random.pick(&[UPLINK, pod_port(1), pod_port(2), pod_port(3)]);
            let full = self.random.one_in(4);
            self.node.wire().borrow_mut().set_full(port, full);
        }
        if self.random.one_in(30) {
            self.publish();
        }
        if self.random.one_in(60) && self.stalled.is_none() && self.workers > 1 {
            self.stalled = Some((self.worker(), 1 + self.random.below(20)));
        }
        if self.random.one_in(300) {
            self.jump();
        }
        if self.random.one_in(300) {
            self.flush();
        }
        if self.random.one_in(10) {
            let ids: Vec<u32> = self.talks.keys().copied().collect();
            let ended = *self.random.pick(&ids);
            self.talks.remove(&ended);
            self.fill_up();
        }
        drop((self.node.take_events(), self.node.take_neighbour_requests()));
    }

    /// Other tables, which each worker adopts at its next tick.
    fn publish(&mut self) {
        if self.in_transition {
            return;
        }
        (self.strict, self.single) = (self.random.one_in(2), self.random.one_in(2));
        self.generation += 1;
        let tables = world(self.strict, self.single, self.mapping, self.generation).tables();
        self.node.post(|| Command::Publish(tables.clone()));
        self.in_transition = true;
    }

    /// Ticks until nothing is under way, and every worker decides by the same tables.
    fn calm_down(&mut self) {
        self.stalled = None;
        (0..200).for_each(|_| self.tick());
        for port in [UPLINK, pod_port(1), pod_port(2), pod_port(3)] {
            self.node.wire().borrow_mut().set_full(port, false);
        }
        self.tick();
    }

    /// Time passes beyond the time-outs: only established TCP connections are promised to last.
    fn jump(&mut self) {
        self.calm_down();
        self.node.now = self.node.now.after(JUMP);
        self.talks.retain(|_, talk| talk.kind == Kind::Tcp && talk.phase == Phase::Open);
        self.totals.count("connection older than a jump", self.talks.len() as u64);
        self.fill_up();
    }

    /// The flows of one pod end, as when it is removed.
    fn flush(&mut self) {
        self.calm_down();
        let n = u8::try_from(1 + self.random.below(3)).expect("few pods");
        let filter = FlushFilter::of(Prefix::host(pod4(n)));
        self.node.send(|| Command::Flush(filter.clone()));
        self.calm_down();
        let own = pod4(n);
        self.talks.retain(|_, talk| {
            talk.from.ip() != own && talk.server.is_some_and(|(server, _)| server.ip() != own)
        });
        assert!(
            !self.node.flows().iter().any(|flow| flow.original.source() == own),
            "a flow of pod {n} outlived its flush"
        );
        self.fill_up();
    }

    /// Ticks the workers in any order, except one that stalls, and looks at what left.
    fn tick(&mut self) {
        let first = self.worker();
        for step in 0..self.workers {
            let worker = (first + step) % self.workers;
            match &mut self.stalled {
                Some((stalled, left)) if *stalled == worker => {
                    *left -= 1;
                    if *left == 0 {
                        self.stalled = None;
                    }
                }
                _ => self.node.tick_worker(worker),
            }
        }
        let out = self.node.take_outgoing();
        for (port, frame) in out {
            if let Some(whole) = self.reassembly.accept(port, &frame) {
                if whole.len() != frame.len() {
                    self.totals.count("reassembled packet", 1);
                }
                self.arrive(port, &whole);
            }
        }
        if self.stalled.is_none() {
            self.in_transition = false;
        }
    }

    fn arrive(&mut self, port: PortId, frame: &[u8]) {
        let seen = read(frame).unwrap_or_else(|error| panic!("{error}: {frame:02x?}"));
        if port == HOST {
            // What answers a binding that made room might as well answer the host's own ping.
            let is_icmp = matches!(seen.protocol, 1 | 58);
            assert!(self.is_crowded && is_icmp, "nothing here is the host's: {seen:?}");
            return;
        }
        let is_error = matches!((seen.protocol, seen.icmp_type), (1, 3 | 11) | (58, 1..=4));
        let quoted = is_error.then(|| read_quoted(&seen).expect("a quoted packet"));
        let payload = quoted.as_ref().map_or(&seen.payload, |quoted| &quoted.payload);
        let ([b'x', b's', a, b, c, d, way, was_answered], _) =
            payload.split_first_chunk::<8>().expect("one of ours")
        else {
            panic!("not one of ours: {payload:02x?}");
        };
        let id = u32::from_be_bytes([*a, *b, *c, *d]);
        assert!(id != FORGED || is_error, "a forged packet reached port {}: {seen:?}", port.0);
        let Some(talk) = self.talks.get(&id).cloned() else { return };
        match (&quoted, *way) {
            (Some(quoted), _) => self.error_arrives(port, &seen, quoted, &talk),
            (None, REQUEST) => {
                self.request_arrives(port, &seen, id, &talk, *was_answered == 1, frame);
            }
            (None, _) => self.reply_arrives(port, &seen, id, &talk),
        }
    }

    fn may_be_lost(&self, talk: &Conversation) -> bool {
        self.is_crowded && !(talk.kind == Kind::Tcp && talk.phase == Phase::Open)
    }

    fn assert_allowed(&self, talk: &Conversation, server: std::net::IpAddr) {
        let allowed = talk.allowed(server, self.strict)
            || self.in_transition && talk.allowed(server, !self.strict);
        assert!(allowed, "policy denies {talk:?} to {server}, strict {}", self.strict);
    }

    fn request_arrives(
        &mut self,
        port: PortId,
        seen: &Seen,
        id: u32,
        talk: &Conversation,
        was_answered: bool,
        frame: &[u8],
    ) {
        self.totals.count("request", 1);
        let server = seen.destination;
        self.assert_allowed(talk, server.ip());
        let pods = (1..=PODS).find(|n| pod(*n, talk.server_is_v6()) == server.ip());
        assert_eq!(port, pods.map_or(UPLINK, pod_port), "{talk:?} came out as {seen:?}");
        assert_eq!(seen.ttl, 63);
        match talk.target {
            Target::Service | Target::NodePort | Target::OtherFamily => {
                assert!(matches!(pods, Some(2 | 3)), "{talk:?} went to {server}");
                assert_eq!(server.port(), BACKEND_PORT);
            }
            Target::Pod(_) | Target::Outside(_) => assert_eq!(server.ip(), talk.to.ip()),
        }
        // The source is the client's own, except toward outside, to itself and to the other family.
        let leaves = port == UPLINK;
        let changes_family = talk.server_is_v6() != talk.is_v6;
        self.totals.count("request between families", changes_family.into());
        let masked = leaves || talk.is_with_itself(server.ip()) || changes_family;
        let expected = if masked { node_address(server.ip()) } else { talk.from.ip() };
        assert_eq!(seen.source.ip(), expected, "{talk:?} came out as {seen:?}");
        let kept = seen.source.port() == talk.from.port();
        assert!(kept && !masked || (61_000..=61_999).contains(&seen.source.port()));
        let pinned = talk.server.unwrap_or((server, seen.source));
        // UDP is taken from a backend that serves no longer: of the two, only the third pod ever does
        // so, and by a request that may have been lost on its further way. The churn of backends
        // holds each to when it served.
        let was_let_go = talk.kind == Kind::Udp
            && pinned.0.ip() == pod(3, talk.server_is_v6())
            && matches!(talk.target, Target::Service | Target::NodePort | Target::OtherFamily);
        let pinned = if was_let_go { (server, seen.source) } else { pinned };
        if (server, seen.source) != pinned && self.may_be_lost(talk) {
            self.talks.remove(&id);
            return self.fill_up();
        }
        assert_eq!((server, seen.source), pinned, "{talk:?} changed its backend or source");
        let talk = self.talks.get_mut(&id).expect("looked up before");
        talk.server = Some(pinned);
        if was_answered {
            talk.phase = Phase::Open;
        }
        let talk = talk.clone();
        if self.random.one_in(12) {
            let kind = if talk.server_is_v6() { (1, 4, 0) } else { (3, 3, 0) };
            let router = if talk.is_v6 { "2001:db8::fe" } else { "192.0.2.254" };
            let by_router = leaves && self.random.one_in(2);
            let from = if by_router { address(router) } else { server.ip() };
            let frame = icmp_error(from, seen.source.ip(), kind, frame).build();
            self.pending.push(Pending { id, port, frame });
        }
        let payload = self.payload(id, REPLY, talk.phase);
        let frame = talk.answer(seen, &payload).build();
        self.pending.push(Pending { id, port, frame });
    }

    fn reply_arrives(&mut self, port: PortId, seen: &Seen, id: u32, talk: &Conversation) {
        self.totals.count("reply", 1);
        let (server, _) = talk.server.expect("a server answers what it received");
        let is_other_port = talk.kind != Kind::Ping && seen.source.port() != talk.to.port();
        let is_lost = seen.source.ip() != talk.to.ip() || seen.destination != talk.from;
        let is_lost = is_lost || is_other_port;
        if is_lost && self.may_be_lost(talk) {
            self.talks.remove(&id);
            return self.fill_up();
        }
        self.assert_allowed(talk, server.ip());
        assert_eq!(port, talk.client_port(), "{talk:?} was answered by {seen:?}");
        assert_eq!(seen.destination, talk.from, "{talk:?} was answered by {seen:?}");
        assert_eq!(seen.source.ip(), talk.to.ip(), "{talk:?} was answered by {seen:?}");
        if talk.kind != Kind::Ping {
            assert_eq!(seen.source, talk.to, "{talk:?} was answered by {seen:?}");
        }
        let talk = self.talks.get_mut(&id).expect("looked up before");
        talk.phase = talk.phase.max(Phase::Answered);
    }

    fn error_arrives(&mut self, port: PortId, seen: &Seen, quoted: &Seen, talk: &Conversation) {
        self.totals.count("ICMP error", 1);
        let changes_family = talk.server_is_v6() != talk.is_v6;
        self.totals.count("ICMP error between families", changes_family.into());
        if self.may_be_lost(talk) {
            return;
        }
        let (server, _) = talk.server.expect("an error is about what was received");
        self.assert_allowed(talk, server.ip());
        assert_eq!(port, talk.client_port(), "error {seen:?} about {talk:?}");
        assert_eq!(seen.destination.ip(), talk.from.ip(), "error {seen:?} about {talk:?}");
        assert_eq!(quoted.source, talk.from, "error {quoted:?} about {talk:?}");
        assert_eq!(quoted.destination.ip(), talk.to.ip(), "error {quoted:?} about {talk:?}");
        let is_router =
            [address("192.0.2.254"), address("2001:db8::fe")].contains(&seen.source.ip());
        assert!(is_router || seen.source.ip() == talk.to.ip(), "error {seen:?} about {talk:?}");
    }
}
