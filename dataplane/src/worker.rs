//! Drives the pipeline over ports: one tick is mail, inbox, one receive burst, the ways out, and a
//! slice of expiry. It never waits and allocates nothing.
//!
//! After every tick each packet is somewhere:
//! `received + handed_in + originated = transmitted + handed_out + dropped + held`.

use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;

use crate::DropReason;
use crate::buffer::Buffer;
use crate::capture::{CaptureFilter, CapturePoint, CaptureRing};
use crate::counters::WorkerCounters;
use crate::event::NeighbourRequest;
use crate::flows::WorkerFlows;
use crate::fragment::waiting::{WAITING_MAX, Waiting};
use crate::handoff::Handoff;
use crate::mailbox::{COMMANDS_MAX, Command, Mailbox, Retired};
use crate::pacing::queue::{PACED_MAX, Paced};
use crate::pipeline::{Action, Pipeline};
use crate::port::{PortId, Ports};
use crate::time::Nanos;

mod pacing;
pub mod pressure;
mod recover;

use pressure::Pressure;

/// Packets a worker handles at once.
pub const BURST: usize = 32;
/// Packets that may wait for a neighbour, per worker.
pub const HELD_MAX: usize = 256;
/// How long a packet waits for a neighbour. Linux asks three times, one second apart
/// (`net.ipv4.neigh.*.mcast_solicit`, `retrans_time_ms`).
pub const HOLD: Duration = Duration::from_secs(3);
/// Bursts taken in before what they sent is announced, while they are full: what an announcement
/// costs, on veth a run of the receiver's side, is shared by more packets. A burst that is not full
/// is followed by nothing, so nobody waits for others.
const RECEIVE_BURSTS: usize = 4;
/// Packets after which no more is taken from the inbox in a tick, so that a flood of hand-offs
/// cannot starve reception. Counted in packets: with many workers most vectors hold only a few.
const INBOX_PACKETS: usize = 4 * BURST;

/// A received packet and where it came in.
#[derive(Debug)]
pub struct Received<B> {
    /// The port it entered by.
    pub port: PortId,
    /// The packet.
    pub buffer: B,
}

/// What one receive call delivers.
pub type RxBurst<B> = ArrayVec<Received<B>, BURST>;

/// What a tick did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tick {
    /// Packets handled; 0 means idle.
    pub packets: usize,
    /// Workers that were given packets, one bit each: wake those that sleep.
    pub woken: u64,
}

struct Held<B> {
    packet: Received<B>,
    waits_for: NeighbourRequest,
    until: Nanos,
}

/// Packets of a burst, one after the other, that came in or left by one port: counted together,
/// since a packet's own three counters cost as much as its parsing.
#[derive(Debug, Default, Clone, Copy)]
struct Run {
    port: Option<PortId>,
    packets: u64,
    bytes: u64,
}

impl Run {
    /// Adds a packet; answers the run before it, if that was another port's.
    #[inline]
    fn add(&mut self, port: PortId, bytes: usize) -> Option<Self> {
        let before = (self.port != Some(port)).then(|| std::mem::take(self));
        self.port = Some(port);
        self.packets += 1;
        self.bytes += bytes as u64;
        before
    }
}

struct Capture {
    filter: CaptureFilter,
    ring: Arc<CaptureRing>,
}

/// One worker.
pub struct Worker<P: Ports> {
    ports: P,
    pipeline: Pipeline,
    mailbox: Arc<Mailbox>,
    handoff: Handoff<P::Buffer>,
    counters: Arc<WorkerCounters>,
    held: Vec<Held<P::Buffer>>,
    fragments: Waiting<P::Buffer>,
    /// Packets of limited pods whose time has not come.
    paced: Paced<P::Buffer>,
    capture: Option<Capture>,
    pressure: Pressure,
    /// What was sent in this burst and is not counted yet.
    sent: Run,
}

impl<P: Ports> Worker<P> {
    /// A worker over `ports`; `counters` are those of the pipeline.
    #[must_use]
    pub fn new(
        ports: P,
        pipeline: Pipeline,
        mailbox: Arc<Mailbox>,
        handoff: Handoff<P::Buffer>,
    ) -> Self {
        let counters = Arc::clone(pipeline.counters());
        Self {
            ports,
            pipeline,
            mailbox,
            handoff,
            counters,
            held: Vec::with_capacity(HELD_MAX),
            fragments: Waiting::default(),
            paced: Paced::new(PACED_MAX),
            capture: None,
            pressure: Pressure::default(),
            sent: Run::default(),
        }
    }

    /// The same, with so many frames of packet memory for packets of limited pods that wait for
    /// their time, at most [`PACED_MAX`].
    #[must_use]
    pub fn with_paced_frames(self, frames: usize) -> Self {
        Self { paced: Paced::new(frames), ..self }
    }

    /// The ports.
    pub fn ports(&self) -> &P {
        &self.ports
    }

    /// The ports, for adding and removing sockets between ticks.
    pub fn ports_mut(&mut self) -> &mut P {
        &mut self.ports
    }

    /// The pipeline, for announcing that the worker sleeps or goes away.
    pub fn pipeline_mut(&mut self) -> &mut Pipeline {
        &mut self.pipeline
    }

    /// Its flows, when it ends. Packets that it still holds go with its ports.
    #[must_use]
    pub fn into_flows(self) -> WorkerFlows {
        self.pipeline.into_flows()
    }

    /// Whether there is something to do that no packet will announce: mail, packets from others, or
    /// a flush under way.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.mailbox.commands.is_empty()
            || self.handoff.has_waiting()
            || self.pipeline.is_flushing()
    }

    /// One round at time `now`.
    pub fn tick(&mut self, now: Nanos) -> Tick {
        self.counters.ticks.add(1);
        let adopted = self.read_mail();
        let mut packets = 0;
        // First: nothing overtakes what waits for a limit that is gone now.
        if !self.paced.is_empty() {
            packets += self.release_paced(now, adopted);
        }
        if adopted || !self.held.is_empty() {
            self.retry_held(now, adopted);
        }
        if !self.fragments.is_empty() {
            self.drop_late_fragments(now);
        }
        // Where nothing is received any more, what others hand on may go on for long.
        if !self.pressure.lasts(now) {
            self.pipeline.set_pressed(false);
        }
        let mut burst = RxBurst::new();
        packets += self.serve_others(now, &mut burst);
        for _ in 0..RECEIVE_BURSTS {
            self.ports.receive(&mut burst);
            let received = burst.len();
            if received == 0 {
                break;
            }
            packets += received;
            self.count_received(now, &burst);
            self.note_pressure(now);
            self.run_burst(now, &mut burst);
            if received < BURST {
                break;
            }
        }
        let ports = &mut self.ports;
        self.handoff.flush(&self.counters, &mut |buffer| ports.release(buffer));
        self.ports.flush();
        self.pipeline.sweep(now);
        Tick { packets, woken: self.handoff.take_woken() }
    }

    /// Under pressure, what would begin flows is shed.
    #[inline]
    fn note_pressure(&mut self, now: Nanos) {
        let is_pressed = self.pressure.note(now, self.ports.is_pressed());
        self.pipeline.set_pressed(is_pressed);
        if is_pressed {
            self.counters.pressed_bursts.add(1);
        }
    }

    /// Handles what others handed on. Flows that it opened are known to others from then on, whose next
    /// packets must not overtake those that wait here: they are sent at once.
    fn serve_others(&mut self, now: Nanos, burst: &mut RxBurst<P::Buffer>) -> usize {
        let opened = self.counters.flows_created.get();
        let packets = self.run_inbox(now, burst);
        if packets > 0 && self.counters.flows_created.get() != opened {
            self.ports.flush();
        }
        packets
    }

    /// Handles what others handed on, small vectors joined to bursts.
    fn run_inbox(&mut self, now: Nanos, burst: &mut RxBurst<P::Buffer>) -> usize {
        let mut packets = 0;
        while packets < INBOX_PACKETS {
            let Some(vector) = self.handoff.take() else { break };
            self.counters.handed_in.add(vector.len() as u64);
            packets += vector.len();
            if burst.remaining_capacity() < vector.len() {
                self.run_burst(now, burst);
            }
            burst.extend(vector);
        }
        if !burst.is_empty() {
            self.run_burst(now, burst);
        }
        packets
    }

    fn count_received(&mut self, now: Nanos, burst: &RxBurst<P::Buffer>) {
        self.counters.received.add(burst.len() as u64);
        let count = |run: Run| {
            if let Some(port) = run.port.and_then(|port| self.counters.port(port)) {
                port.received_packets.add(run.packets);
                port.received_bytes.add(run.bytes);
            }
        };
        let mut run = Run::default();
        for packet in burst {
            run.add(packet.port, packet.buffer.len()).into_iter().for_each(count);
        }
        count(run);
        if self.capture.is_some() {
            for packet in burst {
                self.copy(now, packet.port, CapturePoint::Received, &packet.buffer);
            }
        }
    }

    /// Carries every packet of the burst to where it goes, and after it what waited for a first
    /// fragment among them.
    fn run_burst(&mut self, now: Nanos, burst: &mut RxBurst<P::Buffer>) {
        self.run_once(now, burst);
        if !self.fragments.is_empty() && self.pipeline.saw_first_fragment() {
            self.release_fragments(now);
        }
    }

    /// Decides about the burst and carries it out. Both vectors live on the stack, uninitialised,
    /// and are read in place: moving them costs as much as parsing.
    fn run_once(&mut self, now: Nanos, burst: &mut RxBurst<P::Buffer>) {
        let mut actions = ArrayVec::new();
        self.pipeline.process(now, burst, &mut actions);
        for (packet, action) in burst.drain(..).zip(&actions) {
            self.carry_out(now, packet, *action);
        }
        let run = std::mem::take(&mut self.sent);
        self.count_sent(run);
    }

    fn carry_out(&mut self, now: Nanos, packet: Received<P::Buffer>, action: Action) {
        match action {
            Action::Transmit(port) => self.forward(now, packet, port),
            Action::Handoff(worker) => {
                let ports = &mut self.ports;
                self.handoff.give(worker, packet, &self.counters, &mut |buffer| {
                    ports.release(buffer);
                });
            }
            Action::Hold(waits_for) => self.hold(now, packet, waits_for),
            Action::AwaitFirst => self.await_first(now, packet),
            Action::Drop(reason) => self.discard(now, packet, reason),
            Action::Answer(reason) => {
                // The offender ends here; its memory now holds the answer to its sender.
                self.counters.drop_for(reason);
                self.counters.originated.add(1);
                self.answer(now, packet);
            }
        }
    }

    fn transmit(&mut self, now: Nanos, port: PortId, buffer: P::Buffer) {
        if self.capture.is_some() {
            self.copy(now, port, CapturePoint::Transmitted, &buffer);
        }
        let bytes = buffer.len();
        match self.ports.transmit(port, buffer) {
            Ok(()) => {
                if let Some(run) = self.sent.add(port, bytes) {
                    self.count_sent(run);
                }
            }
            Err((reason, buffer)) => self.discard(now, Received { port, buffer }, reason),
        }
    }

    fn count_sent(&self, run: Run) {
        self.counters.transmitted.add(run.packets);
        if let Some(port) = run.port.and_then(|port| self.counters.port(port)) {
            port.transmitted_packets.add(run.packets);
            port.transmitted_bytes.add(run.bytes);
        }
    }

    fn discard(&mut self, now: Nanos, packet: Received<P::Buffer>, reason: DropReason) {
        self.counters.drop_for(reason);
        if self.capture.is_some() {
            self.copy(now, packet.port, CapturePoint::Dropped(reason), &packet.buffer);
        }
        self.ports.release(packet.buffer);
    }

    fn hold(&mut self, now: Nanos, packet: Received<P::Buffer>, waits_for: NeighbourRequest) {
        if self.held.len() == HELD_MAX {
            return self.discard(now, packet, DropReason::Unresolved);
        }
        self.held.push(Held { packet, waits_for, until: now.after(HOLD) });
        self.count_held();
    }

    fn await_first(&mut self, now: Nanos, packet: Received<P::Buffer>) {
        let Some(key) = Pipeline::fragment_of(&packet.buffer) else {
            return self.discard(now, packet, DropReason::FragmentUnknown);
        };
        match self.fragments.keep(packet, key, now) {
            Ok(()) => self.count_held(),
            Err((reason, packet)) => self.discard(now, packet, reason),
        }
    }

    fn count_held(&self) {
        let (neighbours, fragments) = (self.held.len() as u64, self.fragments.len() as u64);
        self.counters.held.set(neighbours + fragments + self.paced.packets() as u64);
        self.counters.waiting_neighbours.set(neighbours);
        self.counters.waiting_fragments.set(fragments);
        self.counters.paced_frames.set(self.paced.frames() as u64);
    }

    /// Lets fragments follow their first, in order of arrival.
    #[cold]
    fn release_fragments(&mut self, now: Nanos) {
        let mut ready = RxBurst::new();
        for _ in 0..WAITING_MAX.div_ceil(BURST) {
            while ready.remaining_capacity() > 0 {
                let known = |key: &_| self.pipeline.knows_first(key, now);
                let Some(packet) = self.fragments.take_ready(known) else { break };
                ready.push(packet);
            }
            if ready.is_empty() {
                break;
            }
            self.run_once(now, &mut ready);
        }
        self.count_held();
    }

    #[cold]
    fn drop_late_fragments(&mut self, now: Nanos) {
        while let Some(packet) = self.fragments.take_late(now) {
            self.discard(now, packet, DropReason::FragmentUnknown);
        }
        self.count_held();
    }

    /// Lets held packets go on when their neighbour is known now, and drops those that waited too
    /// long. Each has one try: one that must wait again is appended, and keeps its deadline.
    fn retry_held(&mut self, now: Nanos, adopted: bool) {
        let mut index = 0;
        for _ in 0..self.held.len() {
            let held = &self.held[index];
            let late = held.until <= now;
            let resolved = adopted && self.pipeline.neighbour_known(&held.waits_for);
            if !late && !resolved {
                index += 1;
                continue;
            }
            // In order of arrival within a neighbour: `remove` keeps it, and `HELD_MAX` is small.
            let held = self.held.remove(index);
            if late {
                self.discard(now, held.packet, DropReason::Unresolved);
                continue;
            }
            let others = self.held.len();
            self.run_once(now, &mut RxBurst::from_iter([held.packet]));
            if let Some(again) = self.held.get_mut(others) {
                again.until = held.until;
            }
        }
        self.count_held();
    }

    /// Reads all mail; says whether new tables were adopted.
    fn read_mail(&mut self) -> bool {
        let mut adopted = false;
        for _ in 0..COMMANDS_MAX {
            // Mail waits, in order, while no further flush can begin; its sender sees it waiting.
            if !self.pipeline.may_flush() {
                break;
            }
            let Some(command) = self.mailbox.commands.pop() else { break };
            match command {
                Command::Publish(tables) => {
                    // First: whatever comes of it, nobody waits for these tables any more.
                    self.counters.tables_adopted.add(1);
                    let old = self.pipeline.adopt(tables);
                    self.retire(Retired::Tables(old));
                    adopted = true;
                }
                Command::Flush(filter) => {
                    let begun = self.pipeline.flush(filter);
                    debug_assert!(begun.is_ok(), "there was room before the command was read");
                }
                Command::StartCapture(filter, ring) => {
                    self.stop_capture();
                    self.capture = Some(Capture { filter, ring });
                }
                Command::StopCapture => self.stop_capture(),
            }
        }
        adopted
    }

    fn stop_capture(&mut self) {
        if let Some(capture) = self.capture.take() {
            self.retire(Retired::Capture(capture.ring));
        }
    }

    fn retire(&self, retired: Retired) {
        self.mailbox.retire(retired);
    }

    fn copy(&self, now: Nanos, port: PortId, point: CapturePoint, buffer: &P::Buffer) {
        let Some(capture) = &self.capture else { return };
        if capture.filter.matches(point, port)
            && !capture.ring.copy(now, port, point, buffer.len(), buffer.bytes())
        {
            self.counters.captures_lost.add(1);
        }
    }
}
