//! Backends that come and go under ten thousand connections, one every round: no connection to a living
//! backend is broken, one to a gone backend is reset at its client's next segment and not before, and no
//! datagram is sent to a backend that does not serve.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use dataplane::DropReason;
use dataplane::lb::{FrontendKind, ServiceId};
use xskiff_tests::packet_builder::{Seen, read, tcp, udp};
use xskiff_tests::random::Random;
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, pod_port};

use super::{Replay, wish};

const BACKENDS: u8 = 100;
const CONNECTIONS: u16 = 10_000;
const DATAGRAM_FLOWS: u16 = 1000;
/// One every 100 ms for a minute.
const ROUNDS: usize = 600;
/// Rounds that a backend ends for, and is away for.
const ENDING: usize = 15;
const AWAY: usize = 10;
/// Of each kind, that speak in a round.
const SPEAKING: usize = 60;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// It is in no list for new flows, and serves those it has.
    Ending(usize),
    Gone(usize),
}

/// Who a connection goes to: the backend, and which pod that was.
type Peer = (u8, u8);

struct Churn {
    random: Random,
    node: Simulation,
    world: World,
    states: Vec<(State, u8)>,
    connections: BTreeMap<u16, Peer>,
    datagrams: BTreeMap<u16, Peer>,
    resets: u64,
    moved: u64,
}

fn address_of(backend: u8) -> IpAddr {
    Ipv4Addr::new(10, 1, 9, backend).into()
}

fn backend_of(frame: &[u8]) -> (u8, Seen) {
    let seen = read(frame).expect("a well-formed frame with right checksums");
    match seen.destination.ip() {
        IpAddr::V4(ip) if ip.octets()[..3] == [10, 1, 9] => (ip.octets()[3], seen),
        other => panic!("{other} is no backend"),
    }
}

impl Churn {
    fn new(seed: u64) -> Self {
        let all: Vec<(IpAddr, u16)> = (0..BACKENDS).map(|n| (address_of(n), 8080)).collect();
        let mut world =
            World::with_pods(2).with_service(FrontendKind::ClusterIp, "10.2.0.1", 80, &all);
        for n in 0..BACKENDS {
            world = world.with_pod_at(&address_of(n).to_string(), Some((100 + n, 0)));
        }
        let world = world.next_generation_for(&[]);
        let node = Simulation::new(2, 32_768, &world.tables());
        let states = vec![(State::Ready, 0); usize::from(BACKENDS)];
        let random = Random::new(seed);
        let (connections, datagrams) = (BTreeMap::new(), BTreeMap::new());
        Self { random, node, world, states, connections, datagrams, resets: 0, moved: 0 }
    }

    fn client(flow: u16) -> String {
        format!("10.1.0.1:{}", 20_000 + flow)
    }

    fn send(&mut self, frame: &[u8]) -> Vec<u8> {
        let worker = self.random.below(2);
        let mut out = self.node.pass_to(worker, pod_port(1), frame);
        assert_eq!(
            out.len(),
            1,
            "one frame in, {} out:\n{}",
            out.len(),
            self.node.moved_counters()
        );
        out.remove(0).1
    }

    fn peer(&self, backend: u8) -> Peer {
        (backend, self.states[usize::from(backend)].1)
    }

    fn is_gone(&self, (backend, incarnation): Peer) -> bool {
        let (state, now) = self.states[usize::from(backend)];
        matches!(state, State::Gone(_)) || now != incarnation
    }

    fn connect(&mut self, flow: u16) {
        let client = Self::client(flow);
        let (backend, seen) = backend_of(&self.send(&tcp(&client, "10.2.0.1:80", "S").build()));
        assert_eq!(self.states[usize::from(backend)].0, State::Ready, "a new one to {backend}");
        let reply = tcp(&seen.destination.to_string(), &client, "SA").build();
        assert_eq!(self.node.pass_to(1, UPLINK, &reply).len(), 1);
        self.send(&tcp(&client, "10.2.0.1:80", "A").build());
        self.connections.insert(flow, self.peer(backend));
    }

    fn speak(&mut self, flow: u16) {
        let (client, peer) = (Self::client(flow), self.connections[&flow]);
        let frame = self.send(&tcp(&client, "10.2.0.1:80", "PA").numbers(5, 900, 9).build());
        if self.is_gone(peer) {
            let reset = read(&frame).expect("a frame");
            assert_eq!((reset.tcp_flags, reset.sequence), (4, 900), "{client} of {peer:?}");
            self.resets += 1;
            return self.connect(flow);
        }
        assert_eq!(backend_of(&frame).0, peer.0, "{client} was taken from a living backend");
        let back = SocketAddr::new(address_of(peer.0), 8080).to_string();
        let out = self.node.pass_to(0, UPLINK, &tcp(&back, &client, "A").build());
        assert_eq!(out.len(), 1, "an answer is lost");
    }

    fn ask(&mut self, flow: u16) {
        let client = Self::client(flow);
        let (backend, _) = backend_of(&self.send(&udp(&client, "10.2.0.1:80").build()));
        let state = self.states[usize::from(backend)].0;
        assert!(
            !matches!(state, State::Gone(_)),
            "{client} asks {backend}, which serves no longer"
        );
        let peer = self.peer(backend);
        if let Some(before) = self.datagrams.insert(flow, peer)
            && before != peer
        {
            let (state, incarnation) = self.states[usize::from(before.0)];
            let serves = !matches!(state, State::Gone(_)) && incarnation == before.1;
            assert!(!serves, "{client} was taken from {before:?}, which serves");
            self.moved += 1;
        } else {
            assert!(peer == self.peer(backend));
        }
        let back = SocketAddr::new(address_of(backend), 8080).to_string();
        let out = self.node.pass_to(0, UPLINK, &udp(&back, &client).build());
        assert_eq!(out.len(), 1, "an answer is lost");
    }

    /// One backend more begins to end, and what is due happens to the others.
    fn change(&mut self, round: usize) {
        let mut concerned = Vec::new();
        let chosen = self.random.below(usize::from(BACKENDS));
        if self.states[chosen].0 == State::Ready {
            self.states[chosen].0 = State::Ending(round + ENDING);
        }
        for (n, (state, incarnation)) in (0u8..).zip(&mut self.states) {
            let address = address_of(n).to_string();
            match *state {
                State::Ending(until) if until <= round => {
                    *state = State::Gone(round + AWAY);
                    self.world = self.world.clone().with_pod_at(&address, None);
                    concerned.push(address);
                }
                State::Gone(until) if until <= round => {
                    *state = State::Ready;
                    *incarnation += 1;
                    let pod = Some((100 + n, *incarnation));
                    self.world = self.world.clone().with_pod_at(&address, pod);
                    concerned.push(address);
                }
                _ => {}
            }
        }
        let of = |wanted: fn(State) -> bool| -> Vec<(IpAddr, u16)> {
            let all = (0u8..).zip(&self.states).filter(|(_, (state, _))| wanted(*state));
            all.map(|(n, _)| (address_of(n), 8080)).collect()
        };
        let ready = of(|state| state == State::Ready);
        let lingering = of(|state| matches!(state, State::Ending(_)));
        let concerned: Vec<&str> = concerned.iter().map(String::as_str).collect();
        let world = self.world.clone().with_backends_of(ServiceId(0), &ready, &lingering);
        self.world =
            if concerned.is_empty() { world } else { world.next_generation_for(&concerned) };
        self.node.publish(&self.world.tables());
    }

    fn play(mut self) -> (u64, u64) {
        (0..CONNECTIONS).for_each(|flow| self.connect(flow));
        for round in 0..ROUNDS {
            self.change(round);
            self.node.now = self.node.now.after(std::time::Duration::from_millis(100));
            for _ in 0..SPEAKING {
                let flow = u16::try_from(self.random.below(usize::from(CONNECTIONS)));
                self.speak(flow.expect("small"));
                let flow = u16::try_from(self.random.below(usize::from(DATAGRAM_FLOWS)));
                self.ask(30_000 + flow.expect("small"));
            }
        }
        // At last everybody speaks once.
        (0..CONNECTIONS).for_each(|flow| self.speak(flow));
        assert_eq!(
            self.node.dropped(DropReason::BackendGone),
            self.resets,
            "nothing else is reset"
        );
        (self.resets, self.moved)
    }
}

#[test]
fn churn_breaks_no_connection_to_a_living_backend_and_loses_no_datagram() {
    let seeds = match wish("XSKIFF_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..2,
    };
    for seed in seeds {
        let replay = Replay(seed);
        let (resets, moved) = Churn::new(seed).play();
        println!(
            "seed {seed}: {resets} of {CONNECTIONS} reset since their backend was gone, {moved} times UDP moved"
        );
        assert!(resets > 1000 && moved > 100);
        drop(replay);
    }
}
