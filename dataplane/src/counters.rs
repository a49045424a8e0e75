//! What a worker counts: one writer, any number of readers, no shared cache lines.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::DropReason;
use crate::handoff::HandoffCause;
use crate::policy::Direction;
use crate::port::PortId;

/// Ports a node may have at once, host port and uplinks included.
pub const PORTS_MAX: usize = 1024;

/// A counter that one thread adds to and any thread reads.
///
/// The addition is a load and a store, not an atomic read-modify-write: with a single writer
/// nothing can be lost, and the store costs what a plain one does.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`. Only the owning thread may call this.
    #[inline]
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// Sets a gauge.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How full a bounded table is, and the most it has held since start: noted by whoever fills it,
/// since a peak between two looks from outside would be missed.
#[derive(Debug, Default)]
pub struct Level {
    used: AtomicU64,
    most: AtomicU64,
}

impl Level {
    /// The table holds `used` now. Only the thread that owns the table may call this.
    #[inline]
    pub fn set(&self, used: u64) {
        self.used.store(used, Ordering::Relaxed);
        self.note(used);
    }

    /// The table held `used` for a moment. For queues that many fill: how full they are now is
    /// asked of them.
    #[inline]
    pub fn note(&self, used: u64) {
        // A locked operation only for a new peak.
        if used > self.most.load(Ordering::Relaxed) {
            self.most.fetch_max(used, Ordering::Relaxed);
        }
    }

    /// Entries now, as last set.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Most entries since start.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }
}

/// What one direction's bandwidth limit of a port did, as one worker saw it.
#[derive(Debug, Default)]
pub struct LimitCounters {
    /// Packets that waited for their time.
    pub delayed_packets: Counter,
    /// Packets dropped, because they would have waited too long or found no room.
    pub dropped_packets: Counter,
}

/// Packets and bytes of one port, as one worker saw them.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct PortCounters {
    /// Packets received.
    pub received_packets: Counter,
    /// Bytes received, Ethernet header included.
    pub received_bytes: Counter,
    /// Packets queued for transmission.
    pub transmitted_packets: Counter,
    /// Bytes queued for transmission, Ethernet header included.
    pub transmitted_bytes: Counter,
    /// Of what goes to the pod.
    pub ingress_limit: LimitCounters,
    /// Of what the pod sends.
    pub egress_limit: LimitCounters,
}

impl PortCounters {
    /// Those of one direction's limit.
    #[must_use]
    pub fn limit(&self, direction: Direction) -> &LimitCounters {
        match direction {
            Direction::Ingress => &self.ingress_limit,
            Direction::Egress => &self.egress_limit,
        }
    }
}

/// Everything one worker counts.
///
/// Law: `received + handed_in + originated = transmitted + handed_out + dropped + held`.
#[derive(Debug)]
#[repr(align(64))]
pub struct WorkerCounters {
    /// Packets taken from receive rings.
    pub received: Counter,
    /// Packets taken from other workers.
    pub handed_in: Counter,
    /// Packets the worker made itself (ICMP errors).
    pub originated: Counter,
    /// Packets queued on a transmit path.
    pub transmitted: Counter,
    /// Packets given to another worker: those of [`WorkerCounters::handed_for`], less those that found
    /// its inbox full ([`DropReason::HandoffFull`]).
    pub handed_out: Counter,
    /// Packets finished here by a flow whose entry another worker has: they need no hand-off. Of full
    /// bursts an estimate, since only some are looked at.
    pub foreign_hits: Counter,
    /// Flows opened here though another worker is their hash's owner: at the home of their source's
    /// mappings, or where their first fragments met.
    pub flows_opened_for_others: Counter,
    /// Flows opened here of whose replies another worker is the hash's owner: translated ones. Replies
    /// find them on any worker; what comes when they are over is handed there.
    pub flows_with_alias_elsewhere: Counter,
    /// Packets that wait for a neighbour, for their first fragment or for their time now (gauge).
    pub held: Counter,
    /// Those that wait for a neighbour, of [`crate::worker::HELD_MAX`].
    pub waiting_neighbours: Level,
    /// Those that wait for their first fragment, of [`crate::fragment::waiting::WAITING_MAX`].
    pub waiting_fragments: Level,
    /// Frames of packet memory whose packets wait for their time ([`crate::pacing`]), of what the
    /// worker was given for that ([`crate::pacing::queue::PACED_MAX`] at most).
    pub paced_frames: Level,
    /// Packets whose time had not come when they were to leave, for either direction's limit.
    pub paced_packets: Counter,
    /// Their bytes, Ethernet header included.
    pub paced_bytes: Counter,
    /// Fragmented packets followed, of [`crate::fragment::FRAGMENTED_PACKETS_MAX`].
    pub fragments: Level,
    /// L4 ports known to be taken toward the most crowded destination, of the worker's share
    /// ([`crate::nat::share`]). Destinations with few flows are not looked at.
    pub snat_l4_ports: Level,
    /// Flushes under way, of [`crate::expiry::FLUSHES_MAX`].
    pub flushes: Level,
    /// Flows inserted.
    pub flows_created: Counter,
    /// Of those, ones whose source is masqueraded.
    pub flows_masqueraded: Counter,
    /// Of those, ones whose source is translated by a rule ([`crate::nat::rules`]).
    pub flows_translated_by_rule: Counter,
    /// Flows ended by their time-out.
    pub flows_expired: Counter,
    /// Flows ended by request (flush, policy, removed pod).
    pub flows_deleted: Counter,
    /// Flows given up to make room: those of the three classes below.
    pub flows_evicted: Counter,
    /// Of those, half-open ones.
    pub evicted_half_open: Counter,
    /// Of those, closing ones.
    pub evicted_closing: Counter,
    /// Of those, ones of other protocols than TCP.
    pub evicted_short_lived: Counter,
    /// Flows judged again because the tables changed.
    pub flows_rejudged: Counter,
    /// TCP connections reset at their next packet, because their backend is gone.
    pub flows_reset: Counter,
    /// Flows to services that ended, and whose next packet was decided about anew: UDP whose backend
    /// serves no longer, and connections that begin where another's backend is gone.
    pub flows_chosen_anew: Counter,
    /// Clients whose backend was remembered ([`crate::affinity`]), each in an entry of the flow tables.
    pub affinities_created: Counter,
    /// Those for whom there was no room: of them the choice by the client's address alone remains.
    pub affinities_refused: Counter,
    /// Flows that were opened, or judged again, and stand only because a policy that would refuse
    /// them is under audit.
    pub flows_audited: Counter,
    /// Packets sent on to the node of their backend, which answers their clients ([`crate::direct`]).
    pub dispatched: Counter,
    /// Those of them that no flow is kept of.
    pub dispatched_without_flow: Counter,
    /// Packets of clients that another node has chosen the backend of.
    pub directed: Counter,
    /// Flows opened by a segment that policy denies, taken for the reply of a lost flow
    /// ([`crate::tables::Tables::lost_replies_until`]).
    pub lost_replies: Counter,
    /// Packets dropped since nobody has told yet which pod their sender or receiver is
    /// ([`crate::policy::RuleId::UNKNOWN_POD`]): some of those that policy dropped.
    pub unknown_pod_drops: Counter,
    /// Flows that were admitted for that reason.
    pub unknown_pod_flows: Counter,
    /// TCP segments outside of their windows that passed ([`crate::tables::TcpWindows::Relaxed`]).
    pub out_of_window_passed: Counter,
    /// TCP resets that passed and ended nothing: not what was expected next, so that their receiver
    /// answers with a challenge (RFC 5961, 3.2).
    pub resets_challenged: Counter,
    /// Packets that went on in the other address family ([`crate::nat64`]), ICMP errors included.
    pub between_families: Counter,
    /// Events that found the ring to the control thread full, or the budget spent.
    pub events_lost: Counter,
    /// Captured packets that found the capture ring full.
    pub captures_lost: Counter,
    /// ICMP errors and TCP resets not sent because the rate limit was reached or no address is known.
    pub replies_suppressed: Counter,
    /// Published tables adopted.
    pub tables_adopted: Counter,
    /// Ticks (bursts, also empty ones).
    pub ticks: Counter,
    /// Bursts taken in under pressure ([`crate::worker::pressure`]): new flows were shed.
    pub pressed_bursts: Counter,
    /// How often the worker went on after a panic ([`crate::worker::Worker::recover`]).
    pub restarts: Counter,
    handed: [Counter; HandoffCause::ALL.len()],
    dropped: [Counter; DropReason::COUNT],
    ports: Box<[PortCounters]>,
}

impl Default for WorkerCounters {
    fn default() -> Self {
        Self {
            received: Counter::default(),
            handed_in: Counter::default(),
            originated: Counter::default(),
            transmitted: Counter::default(),
            handed_out: Counter::default(),
            foreign_hits: Counter::default(),
            flows_opened_for_others: Counter::default(),
            flows_with_alias_elsewhere: Counter::default(),
            held: Counter::default(),
            waiting_neighbours: Level::default(),
            waiting_fragments: Level::default(),
            paced_frames: Level::default(),
            paced_packets: Counter::default(),
            paced_bytes: Counter::default(),
            fragments: Level::default(),
            snat_l4_ports: Level::default(),
            flushes: Level::default(),
            flows_created: Counter::default(),
            flows_masqueraded: Counter::default(),
            flows_translated_by_rule: Counter::default(),
            flows_expired: Counter::default(),
            flows_deleted: Counter::default(),
            flows_evicted: Counter::default(),
            evicted_half_open: Counter::default(),
            evicted_closing: Counter::default(),
            evicted_short_lived: Counter::default(),
            flows_rejudged: Counter::default(),
            flows_reset: Counter::default(),
            flows_chosen_anew: Counter::default(),
            affinities_created: Counter::default(),
            affinities_refused: Counter::default(),
            flows_audited: Counter::default(),
            lost_replies: Counter::default(),
            dispatched: Counter::default(),
            dispatched_without_flow: Counter::default(),
            directed: Counter::default(),
            unknown_pod_drops: Counter::default(),
            unknown_pod_flows: Counter::default(),
            out_of_window_passed: Counter::default(),
            resets_challenged: Counter::default(),
            between_families: Counter::default(),
            events_lost: Counter::default(),
            captures_lost: Counter::default(),
            replies_suppressed: Counter::default(),
            tables_adopted: Counter::default(),
            ticks: Counter::default(),
            pressed_bursts: Counter::default(),
            restarts: Counter::default(),
            handed: std::array::from_fn(|_| Counter::default()),
            dropped: std::array::from_fn(|_| Counter::default()),
            ports: (0..PORTS_MAX).map(|_| PortCounters::default()).collect(),
        }
    }
}

impl WorkerCounters {
    /// Counts one packet dropped for `reason`.
    #[inline]
    pub fn drop_for(&self, reason: DropReason) {
        self.dropped[reason as usize].add(1);
    }

    /// Counts packets dropped for `reason` that nothing is known of but their number.
    pub(crate) fn drop_many(&self, reason: DropReason, packets: u64) {
        self.dropped[reason as usize].add(packets);
    }

    /// Packets dropped for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize].get()
    }

    /// Counts one packet that is to go to another worker for `cause`.
    #[inline]
    pub fn hand_for(&self, cause: HandoffCause) {
        self.handed[cause as usize].add(1);
    }

    /// Packets that were to go to another worker for `cause`.
    #[must_use]
    pub fn handed_for(&self, cause: HandoffCause) -> u64 {
        self.handed[cause as usize].get()
    }

    /// Packets dropped for any reason.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().map(Counter::get).sum()
    }

    /// The counters of one port; `None` beyond [`PORTS_MAX`].
    #[must_use]
    pub fn port(&self, port: PortId) -> Option<&PortCounters> {
        self.ports.get(usize::from(port.0))
    }

    /// The two sides of the conservation law: packets that came, packets accounted for.
    #[must_use]
    pub fn balance(&self) -> (u64, u64) {
        let came = self.received.get() + self.handed_in.get() + self.originated.get();
        let went = self.transmitted.get() + self.handed_out.get() + self.dropped_total();
        (came, went + self.held.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_keeps_the_peak_of_what_was_set_and_noted() {
        let level = Level::default();
        level.set(7);
        level.set(2);
        assert_eq!((level.get(), level.most()), (2, 7));
        level.note(9);
        assert_eq!((level.get(), level.most()), (2, 9));
    }
}
