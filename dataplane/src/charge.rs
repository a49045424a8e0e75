//! Whose flows fill the table: each flow is charged to one local endpoint, which may have so many.
//!
//! A flow is charged to the pod that opened it; one that came from elsewhere, to the pod it leads to;
//! one between others to nobody. The charge stands in the flow's entry, so that whoever removes it
//! gives back exactly what was taken, whatever the endpoint's addresses are by then. Counts are shared
//! by all workers and both families, and change only where flows begin and end.
//!
//! **How exact.** A count is what there is, at every moment. The bound is looked at before a flow is
//! inserted and counted after, so that workers that open flows at the same instant may exceed it by
//! one flow each.
//!
//! Ports are numbered anew by every process. What a process finds of the one before is charged again
//! by the sweep, by addresses, once the endpoint is there: within a round of it.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::conntrack::FlowDirection;
use crate::counters::{Level, PORTS_MAX};
use crate::decision::Admission;
use crate::flow::{FlowFamily, FlowView};
use crate::port::{PortId, PortKind};
use crate::tables::Tables;

/// Bits of a port's number; what is above tells the process that gave it.
const PORT_BITS: u32 = 10;
/// Processes that are told apart, but for 0: so many restarts later a flow that was never charged
/// again would be another's.
const PROCESSES: u16 = 1 << (16 - PORT_BITS);

const _: () = assert!(PORTS_MAX <= 1 << PORT_BITS);

/// Whom a flow is charged to, as it stands in its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Charge(pub(crate) u16);

impl Charge {
    /// Nobody here.
    pub const NOBODY: Self = Self(0);
}

/// A count on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Count(AtomicU32);

/// How many flows are charged to each port's endpoint.
#[derive(Debug)]
pub struct Charges {
    process: u16,
    counts: Box<[Count]>,
    level: Level,
}

impl Default for Charges {
    fn default() -> Self {
        Self::new(1)
    }
}

impl Charges {
    /// Counts of a process with this number ([`Self::process_after`]).
    #[must_use]
    pub fn new(process: u16) -> Self {
        let counts = (0..PORTS_MAX).map(|_| Count::default()).collect();
        Self { process: process % PROCESSES, counts, level: Level::default() }
    }

    /// The number of a process that follows one with `before`.
    #[must_use]
    pub fn process_after(before: u16) -> u16 {
        1 + before % (PROCESSES - 1)
    }

    /// The number of this process.
    #[must_use]
    pub fn process(&self) -> u16 {
        self.process
    }

    /// The charge of a port's endpoint.
    #[must_use]
    pub fn to(&self, port: PortId) -> Charge {
        match self.counts.get(usize::from(port.0)) {
            Some(_) => Charge(self.process << PORT_BITS | port.0),
            None => Charge::NOBODY,
        }
    }

    /// Whom a charge of this process is to.
    #[must_use]
    pub fn port(&self, charge: Charge) -> Option<PortId> {
        let is_own = charge != Charge::NOBODY && charge.0 >> PORT_BITS == self.process;
        is_own.then_some(PortId(charge.0 & ((1 << PORT_BITS) - 1)))
    }

    fn count(&self, charge: Charge) -> Option<&AtomicU32> {
        let port = self.port(charge)?;
        self.counts.get(usize::from(port.0)).map(|count| &count.0)
    }

    /// Flows charged to a port's endpoint now.
    #[must_use]
    pub fn flows(&self, port: PortId) -> u32 {
        self.count(self.to(port)).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// The most that one endpoint has had at once.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.level.most()
    }

    /// Whether an endpoint has as many flows as `most`; 0 is no bound.
    pub(crate) fn is_full(&self, charge: Charge, most: u32) -> bool {
        most != 0 && self.count(charge).is_some_and(|count| count.load(Ordering::Relaxed) >= most)
    }

    /// A flow with this charge has begun.
    pub(crate) fn take(&self, charge: Charge) {
        if let Some(count) = self.count(charge) {
            let flows = count.fetch_add(1, Ordering::Relaxed).saturating_add(1);
            self.level.note(flows.into());
        }
    }

    /// A flow with this charge has ended. One of the process before that was not charged again is
    /// nobody's.
    pub(crate) fn give_back(&self, charge: Charge) {
        if let Some(count) = self.count(charge) {
            let fewer = |flows: u32| flows.checked_sub(1);
            let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
        }
    }

    /// Whether a charge is of a process before this one.
    #[inline(always)]
    pub(crate) fn is_foreign(&self, charge: Charge) -> bool {
        charge != Charge::NOBODY && charge.0 >> PORT_BITS != self.process
    }

    /// Charges a flow of the process before to the endpoint that has one of its ends now, if one
    /// has.
    #[cold]
    pub(crate) fn charge_again<K: FlowFamily>(&self, tables: &Tables, flow: &FlowView<'_, K>) {
        let ends = [FlowDirection::Original, FlowDirection::Reply];
        let of = |direction| {
            let address = flow.tuple(direction).generic().source();
            let hop = tables.forwarding.endpoints.get(&address)?;
            tables.forwarding.next_hop(*hop).map(|hop| hop.port)
        };
        if let Some(port) = ends.into_iter().find_map(of) {
            let charge = self.to(port);
            flow.set_charge(charge);
            self.take(charge);
        }
    }
}

/// Whom a flow is charged to that entered by `ingress`.
pub(crate) fn of(
    charges: &Charges,
    tables: &Tables,
    ingress: PortId,
    admission: &Admission,
) -> Charge {
    let is_pod = |port: &PortId| tables.port(*port).is_some_and(|of| of.kind == PortKind::Pod);
    let leads_to = || tables.forwarding.next_hop(admission.hop).map(|hop| hop.port);
    let port = Some(ingress).filter(is_pod).or_else(|| leads_to().filter(is_pod));
    port.map_or(Charge::NOBODY, |port| charges.to(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_is_counted_until_it_is_given_back_and_the_bound_is_met() {
        let charges = Charges::new(3);
        let charge = charges.to(PortId(7));
        assert_eq!(charges.port(charge), Some(PortId(7)));
        (0..5).for_each(|_| charges.take(charge));
        assert_eq!((charges.flows(PortId(7)), charges.flows(PortId(8))), (5, 0));
        assert!(charges.is_full(charge, 5) && !charges.is_full(charge, 6));
        assert!(!charges.is_full(charge, 0), "0 is no bound");
        charges.give_back(charge);
        assert_eq!((charges.flows(PortId(7)), charges.most()), (4, 5));
        charges.take(Charge::NOBODY);
        assert!(!charges.is_full(Charge::NOBODY, 1));
        assert_eq!(charges.to(PortId(5000)), Charge::NOBODY);
    }

    #[test]
    fn a_charge_of_the_process_before_is_told_and_gives_nothing_back() {
        let before = Charges::new(63);
        let process = Charges::process_after(63);
        let charges = Charges::new(process);
        assert_ne!(process, 0);
        let old = before.to(PortId(0));
        assert!(charges.is_foreign(old) && !before.is_foreign(old));
        assert!(!charges.is_foreign(Charge::NOBODY));
        charges.take(charges.to(PortId(0)));
        charges.give_back(old);
        assert_eq!(charges.flows(PortId(0)), 1);
        let numbers: std::collections::BTreeSet<u16> = (0..200)
            .scan(1, |last, _| {
                *last = Charges::process_after(*last);
                Some(*last)
            })
            .collect();
        assert_eq!((numbers.first(), numbers.last(), numbers.len()), (Some(&1), Some(&63), 63));
    }
}
