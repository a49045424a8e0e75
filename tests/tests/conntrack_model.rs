//! Connection tracking against a model that keeps every flow's whole history and derives from it,
//! at each step, what the pipeline keeps in a few bits.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use dataplane::DropReason;
use dataplane::conntrack::FlowState;
use dataplane::time::Nanos;
use proptest::prelude::*;
use xskiff_tests::packet_builder::{ping, pong, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{World, pod_port, pod4};

const NANOS: u64 = 1_000_000_000;

/// What one packet is; pod 1 may open anything, pod 2 nothing.
#[derive(Debug, Clone, Copy)]
struct Step {
    by_pod: u8,
    /// Tells flows of one kind apart.
    number: u16,
    what: What,
    /// Time since the step before.
    pause_millis: u64,
    worker: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Tcp(&'static str),
    Udp,
    Ping,
    Pong,
}

impl What {
    fn protocol(self) -> u8 {
        match self {
            Self::Tcp(_) => 6,
            Self::Udp => 17,
            Self::Ping | Self::Pong => 1,
        }
    }

    fn has(self, flag: char) -> bool {
        matches!(self, Self::Tcp(flags) if flags.contains(flag))
    }

    fn is_first_syn(self) -> bool {
        self.has('S') && !self.has('A')
    }
}

impl Step {
    /// L4 ports or identifiers: pod 1 is always the client's side.
    fn ends(&self) -> (SocketAddr, SocketAddr) {
        let (near, far) = match self.what {
            What::Ping | What::Pong => (self.number, self.number),
            _ => (1000 + self.number, 80),
        };
        let (one, two) = (SocketAddr::new(pod4(1), near), SocketAddr::new(pod4(2), far));
        if self.by_pod == 1 { (one, two) } else { (two, one) }
    }

    fn frame(&self) -> Vec<u8> {
        let (from, to) = self.ends();
        match self.what {
            What::Tcp(flags) => tcp(&from.to_string(), &to.to_string(), flags),
            What::Udp => udp(&from.to_string(), &to.to_string()),
            What::Ping => ping(from.ip(), to.ip(), self.number),
            What::Pong => pong(from.ip(), to.ip(), self.number),
        }
        .build()
    }
}

/// A packet of a flow, as the model remembers it.
#[derive(Debug, Clone, Copy)]
struct Past {
    is_reply: bool,
    what: What,
    at: u64,
}

#[derive(Debug, Clone)]
struct Flow {
    opened_by: u8,
    history: Vec<Past>,
}

/// The state that follows from everything that was seen, read from the RFCs' events.
fn state(history: &[Past]) -> FlowState {
    let any = |is_reply: bool, test: &dyn Fn(What) -> bool| {
        history.iter().any(|past| past.is_reply == is_reply && test(past.what))
    };
    let everything = |_: What| true;
    if !matches!(history[0].what, What::Tcp(_)) {
        let answered = any(true, &everything);
        return if answered { FlowState::Established } else { FlowState::Opening };
    }
    if let Some(reset) = history.iter().rposition(|past| past.what.has('R')) {
        let since = &history[reset + 1..];
        let went_on = [false, true].map(|side| since.iter().any(|past| past.is_reply == side));
        if went_on != [true, true] {
            return FlowState::Closed;
        }
    }
    let fins = [false, true].map(|side| any(side, &|what| what.has('F')));
    if fins != [false, false] {
        return if fins == [true, true] { FlowState::TimeWait } else { FlowState::Closing };
    }
    let both = any(false, &everything) && any(true, &everything);
    if !any(false, &|what| what.has('S')) {
        return if both { FlowState::Established } else { FlowState::Opening };
    }
    match (any(true, &|what| what.has('S') || what.has('A')), any(false, &|what| what.has('A'))) {
        (true, true) => FlowState::Established,
        (true, false) => FlowState::Answered,
        (false, _) => FlowState::Opening,
    }
}

/// Linux's time-outs, in seconds.
fn timeout(what: What, state: FlowState) -> u64 {
    match (what, state) {
        (What::Tcp(_), FlowState::Opening) => 120,
        (What::Tcp(_), FlowState::Answered) => 60,
        (What::Tcp(_), FlowState::Established) => 432_000,
        (What::Tcp(_), FlowState::Closing | FlowState::TimeWait) => 120,
        (What::Tcp(_), FlowState::Closed) => 10,
        (What::Udp, FlowState::Established) => 120,
        (What::Udp, _) => 30,
        (What::Ping | What::Pong, _) => 60,
    }
}

impl Flow {
    /// When it ends unless a packet comes: from its last packet, or, once it is over, from the one
    /// that ended it.
    fn deadline_seconds(&self) -> u64 {
        let mut deadline = 0;
        let mut before = None;
        for seen in 1..=self.history.len() {
            let now = state(&self.history[..seen]);
            let last = self.history[seen - 1];
            let is_over = now >= FlowState::TimeWait;
            if !(is_over && before == Some(now)) {
                deadline = (last.at + timeout(last.what, now) * NANOS).div_ceil(NANOS);
            }
            before = Some(now);
        }
        deadline
    }

    /// Whether nobody spoke since the reset that ended it, for two whole seconds.
    fn is_silent(&self, now: u64) -> bool {
        let since_reset = now / NANOS + timeout(What::Tcp("R"), FlowState::Closed);
        let was_last = self.history.last().is_some_and(|past| past.what.has('R'));
        was_last && since_reset >= self.deadline_seconds() + 2
    }
}

#[derive(Debug, Default)]
struct Model(BTreeMap<(u8, u16), Flow>);

impl Model {
    fn forget_expired(&mut self, now: u64) {
        self.0.retain(|_, flow| flow.deadline_seconds() > now / NANOS);
    }

    fn step(&mut self, step: &Step, now: u64) -> Result<(), DropReason> {
        self.forget_expired(now);
        let name = (step.what.protocol(), step.number);
        let over = self.0.get(&name).filter(|flow| state(&flow.history) >= FlowState::TimeWait);
        if let Some(flow) = over.filter(|_| step.what.is_first_syn()) {
            if step.by_pod != flow.opened_by {
                // It removes nothing: pod 2 may not open a connection in the place of pod 1's.
                let may_stand = state(&flow.history) == FlowState::Closed && !flow.is_silent(now);
                let invalid = DropReason::InvalidState;
                return Err(if may_stand { invalid } else { DropReason::PolicyEgress });
            }
            self.0.remove(&name);
        }
        if let Some(flow) = self.0.get_mut(&name) {
            let is_reply = step.by_pod != flow.opened_by;
            let stands =
                matches!(state(&flow.history), FlowState::Established | FlowState::Closing);
            let goes = match step.what {
                What::Ping => !is_reply,
                What::Pong => is_reply,
                what => !(what.is_first_syn() && is_reply && stands),
            };
            if !goes {
                return Err(DropReason::InvalidState);
            }
            flow.history.push(Past { is_reply, what: step.what, at: now });
            return Ok(());
        }
        let is_syn_ack = step.what.has('S') && step.what.has('A');
        if step.what == What::Pong || step.what.has('R') || is_syn_ack {
            return Err(DropReason::NoFlow);
        }
        let is_mid_stream = matches!(step.what, What::Tcp(_)) && !step.what.has('S');
        if step.by_pod == 2 && !is_mid_stream {
            return Err(DropReason::PolicyEgress);
        }
        // What pod 2 says in mid-stream is the reply to something pod 1 opened, and that was lost.
        let past = Past { is_reply: step.by_pod == 2, what: step.what, at: now };
        self.0.insert(name, Flow { opened_by: 1, history: vec![past] });
        Ok(())
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let tcp = prop::sample::select(vec!["S", "SA", "A", "PA", "FA", "R", "RA"]).prop_map(What::Tcp);
    let what = prop_oneof![6 => tcp, 2 => Just(What::Udp), 1 => Just(What::Ping),
        1 => Just(What::Pong)];
    let pauses = vec![
        0,
        0,
        0,
        1,
        300,
        999,
        1000,
        9_900,
        11_000,
        29_999,
        31_000,
        61_000,
        121_000,
        432_001_000,
    ];
    let step = (1..=2u8, 1..=2u16, what, prop::sample::select(pauses), 0..4usize).prop_map(
        |(by_pod, number, what, pause_millis, worker)| Step {
            by_pod,
            number,
            what,
            pause_millis,
            worker,
        },
    );
    prop::collection::vec(step, 1..50)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn pipeline_tracks_connections_as_the_model_does(steps in steps(), workers in 1..4usize) {
        let world = World::with_pods(2).with_no_egress(2);
        let world = world.with_lost_replies_until(Nanos(u64::MAX));
        let mut node = Simulation::new(workers, 300, &world.tables());
        let mut model = Model::default();
        for (index, step) in steps.iter().enumerate() {
            node.now = node.now.after(Duration::from_millis(step.pause_millis));
            let expected = model.step(step, node.now.0);
            let before = DropReason::ALL.iter().map(|reason| node.dropped(*reason)).collect::<Vec<_>>();
            let out = node.pass_to(step.worker % workers, pod_port(step.by_pod), &step.frame());
            let dropped = DropReason::ALL
                .iter()
                .zip(before)
                .find(|(reason, before)| node.dropped(**reason) > *before);
            let found = match (out.len(), dropped) {
                (1, None) => Ok(()),
                (0, Some((reason, _))) => Err(*reason),
                other => panic!("step {index}: {other:?}"),
            };
            prop_assert_eq!(found, expected, "step {}: {:?}", index, step);
            let mut kept: Vec<_> = node
                .flows()
                .iter()
                .map(|flow| {
                    let number = flow.original.source_port() % 1000;
                    let life = flow.life;
                    let name = (life.protocol().0, number);
                    (name, life.state(), u64::from(life.deadline_seconds()))
                })
                .collect();
            kept.sort();
            let meant: Vec<_> = model
                .0
                .iter()
                .map(|(name, flow)| (*name, state(&flow.history), flow.deadline_seconds()))
                .collect();
            prop_assert_eq!(kept, meant, "step {}: {:?}", index, step);
        }
    }
}
