//! How full the queues and tables are that every worker has one of.

use dataplane::counters::Level;
use dataplane::event::{EVENTS_MAX, NEIGHBOUR_REQUESTS_MAX};
use dataplane::expiry::FLUSHES_MAX;
use dataplane::fragment::FRAGMENTED_PACKETS_MAX;
use dataplane::fragment::waiting::WAITING_MAX;
use dataplane::handoff::VECTORS_MAX;
use dataplane::mailbox::{COMMANDS_MAX, RETIRED_MAX};
use dataplane::nat;
use dataplane::pacing::queue::PACED_MAX;
use dataplane::worker::HELD_MAX;
use xdp_redirect::ports::{COMMANDS_MAX as SOCKET_COMMANDS_MAX, WORKER_SOCKETS_MAX};

use super::Workers;

/// A table of the worker whose is fullest: summed over workers, one that is full would be hidden
/// by the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fullest {
    /// The table.
    pub name: &'static str,
    /// Entries now.
    pub used: u64,
    /// Most entries since start, as whoever fills it noted.
    pub most: u64,
    /// Entries of one worker at most.
    pub capacity: usize,
}

/// Frames of packet memory that may wait at one worker for their time: all workers' together are a
/// quarter of it, since the rest is needed to receive.
pub(super) fn paced_frames(frames: u32, workers: usize) -> usize {
    let all = usize::try_from(frames / 4).unwrap_or(usize::MAX);
    (all / workers).min(PACED_MAX)
}

impl Workers {
    /// Every table that each worker has one of.
    #[must_use]
    pub fn fullest(&self) -> Vec<Fullest> {
        let rows = (0..self.handles.len()).map(|worker| self.levels(worker));
        let of_two = |mut one: Vec<Fullest>, other: Vec<Fullest>| {
            for (one, other) in one.iter_mut().zip(other) {
                (one.used, one.most) = (one.used.max(other.used), one.most.max(other.most));
            }
            one
        };
        rows.reduce(of_two).unwrap_or_default()
    }

    fn levels(&self, worker: usize) -> Vec<Fullest> {
        let handle = &self.handles[worker];
        let (counters, mailbox, reports) = (&handle.counters, &handle.mailbox, &handle.reports);
        let ports = &self.ports[worker];
        let range = &self.latest.source_nat.l4_ports;
        let share = nat::share(range, worker, self.handles.len()).map_or(0, |share| share.len());
        let row = |name, used, most, capacity| Fullest { name, used, most, capacity };
        let table = |name, level: &Level, capacity| row(name, level.get(), level.most(), capacity);
        let queue =
            |name, waiting: usize, most, capacity| row(name, waiting as u64, most, capacity);
        let (inbox, inbox_most) = (self.inboxes.waiting(worker), self.inboxes.waited_most(worker));
        let (mail, mail_most) = (mailbox.commands.len(), mailbox.commands_level.most());
        let (retired, retired_most) = (mailbox.retired.len(), mailbox.retired_level.most());
        let (events, events_most) = (reports.events.len(), reports.events_level.most());
        let (asked, asked_most) = (reports.neighbours.len(), reports.neighbours_level.most());
        let (sent, sent_most) = (ports.commands_waiting(), ports.commands_waited_most());
        vec![
            table("held_packets", &counters.waiting_neighbours, HELD_MAX),
            table("waiting_fragments", &counters.waiting_fragments, WAITING_MAX),
            table("paced_frames", &counters.paced_frames, handle.paced_frames),
            table("fragments", &counters.fragments, FRAGMENTED_PACKETS_MAX),
            table("snat_l4_ports", &counters.snat_l4_ports, share),
            table("flushes", &counters.flushes, FLUSHES_MAX),
            table("worker_sockets", ports.sockets(), WORKER_SOCKETS_MAX),
            queue("handoff_vectors", inbox, inbox_most, VECTORS_MAX),
            queue("worker_commands", mail, mail_most, COMMANDS_MAX),
            queue("retired_objects", retired, retired_most, RETIRED_MAX),
            queue("flow_events", events, events_most, EVENTS_MAX),
            queue("neighbour_requests", asked, asked_most, NEIGHBOUR_REQUESTS_MAX),
            queue("socket_commands", sent, sent_most, SOCKET_COMMANDS_MAX),
        ]
    }
}
