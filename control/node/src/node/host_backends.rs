//! L4 ports of backends in the node's own network whose answers are led here by the host port: those that
//! services have, and those that they had as long as a connection is translated to one.
//!
//! What such a backend answers is led here by its protocol and L4 port alone ([`crate::host_port`]).
//! Were that to end with the endpoint (unready, in no slice any more, its Service deleted), open
//! connections would get the next answer from the node's own address, and be reset. So an L4 port that no
//! service has any more is kept until no flow needs it: the flow tables are looked through every few
//! seconds, a part of them at a time, while any is kept, and as a whole when the process begins, since
//! flows outlive it. There are never more of them than flows, and none is kept for nothing for longer
//! than a flow that is over lies in its table.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use dataplane::address::Protocol;
use dataplane::conntrack::FlowDirection;
use dataplane::flow::{FlowFamily, FlowView};
use dataplane::flow_key::{FlowKey4, FlowKey6};
use dataplane::flows::FlowTables;
use dataplane::time::Nanos;
use hashbrown::HashSet;

use super::Node;
use crate::workers::monotonic_now;

/// An L4 port of the node's own network.
type At = (Protocol, u16);

/// How long after a look, or after one more was kept, flows are looked through again: until then every
/// worker knows that no new flow goes there.
const LOOK_AFTER: Duration = Duration::from_secs(10);
/// Flow entries of each family that are looked at in one go: a third of a millisecond.
const ENTRIES: u32 = 1 << 14;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct HostBackends {
    /// Those that services have.
    listed: HashSet<At>,
    kept: HashSet<At>,
    /// Both.
    led: Arc<HashSet<At>>,
    look: Look,
}

#[derive(Debug)]
enum Look {
    /// Not before.
    From(Nanos),
    /// At the next entry of both tables, with those that flows were found to need.
    At(u32, HashSet<At>),
}

impl Default for Look {
    fn default() -> Self {
        Self::From(Nanos::default())
    }
}

impl HostBackends {
    /// Keeps what flows of the process before need.
    pub(super) fn begin(
        &mut self,
        flows: &FlowTables,
        is_own: impl Fn(IpAddr) -> bool,
        now: Nanos,
    ) {
        self.kept.extend(needed(flows, 0..u32::MAX, &is_own, now));
        self.look = Look::From(now.after(LOOK_AFTER));
        self.unite();
    }

    /// What is led here from now on, where services have `listed`.
    pub(super) fn follow(&mut self, listed: &HashSet<At>, now: Nanos) -> Arc<HashSet<At>> {
        if self.listed != *listed {
            let before = std::mem::replace(&mut self.listed, listed.clone());
            let gone: Vec<At> = before.difference(listed).copied().collect();
            for (protocol, l4_port) in &gone {
                tracing::info!(%protocol, l4_port, "no service has this backend of the node's own any \
                    more; its answers are led here while connections need it");
            }
            if !gone.is_empty() {
                self.kept.extend(gone);
                self.look = Look::From(now.after(LOOK_AFTER));
            }
            self.kept.retain(|at| !listed.contains(at));
            self.unite();
        }
        Arc::clone(&self.led)
    }

    /// Looks at some more flows, if it is time; whether anything is led here no longer.
    pub(super) fn tend(
        &mut self,
        flows: &FlowTables,
        is_own: impl Fn(IpAddr) -> bool,
        now: Nanos,
    ) -> bool {
        if self.kept.is_empty() {
            return false;
        }
        let (first, mut found) = match &mut self.look {
            Look::From(then) if *then > now => return false,
            Look::From(_) => (0, HashSet::new()),
            Look::At(first, found) => (*first, std::mem::take(found)),
        };
        let next = first.saturating_add(ENTRIES);
        found.extend(needed(flows, first..next, &is_own, now));
        if next < flows.v4.handles().end.max(flows.v6.handles().end) {
            self.look = Look::At(next, found);
            return false;
        }
        self.look = Look::From(now.after(LOOK_AFTER));
        let before = self.kept.len();
        self.kept.retain(|at| found.contains(at));
        let is_other = self.kept.len() < before;
        if is_other {
            self.unite();
        }
        is_other
    }

    fn unite(&mut self) {
        self.led = Arc::new(self.listed.union(&self.kept).copied().collect());
    }
}

impl Node {
    /// Before anything is led here.
    pub(super) fn begin_host_backends(&mut self) {
        let own = self.node_addresses(&self.follower.view());
        let is_own = |address| own.contains(&address);
        self.host_backends.begin(self.workers.flows(), is_own, monotonic_now());
    }

    /// See [`HostBackends::tend`].
    pub(super) fn tend_host_backends(&mut self) -> bool {
        let own = &self.publisher.tables().forwarding.node_addresses;
        let is_own = |address| own.contains(&address);
        self.host_backends.tend(self.workers.flows(), is_own, monotonic_now())
    }
}

/// Where answers of the node's own must be led here, for the flows with these numbers.
fn needed(
    flows: &FlowTables,
    entries: Range<u32>,
    is_own: &impl Fn(IpAddr) -> bool,
    now: Nanos,
) -> HashSet<At> {
    let mut found = HashSet::new();
    flows.v4.for_each(entries.clone(), |_, words| {
        found.extend(need_of::<FlowKey4>(&words.map(AtomicU64::new), is_own, now));
    });
    flows.v6.for_each(entries, |_, words| {
        found.extend(need_of::<FlowKey6>(&words.map(AtomicU64::new), is_own, now));
    });
    found
}

/// The L4 port that answers it, where that is the node's own and does not answer as who was asked.
fn need_of<K: FlowFamily>(
    words: &[AtomicU64],
    is_own: &impl Fn(IpAddr) -> bool,
    now: Nanos,
) -> Option<At> {
    let view = FlowView::<K>::new(words);
    let of = |direction| view.tuple(direction).generic();
    let (original, reply) = (of(FlowDirection::Original), of(FlowDirection::Reply));
    let at = (reply.protocol(), reply.source_port());
    let has_ports = matches!(at.0, Protocol::TCP | Protocol::UDP | Protocol::SCTP);
    let is_translated = original.reversed() != reply;
    let is_needed = has_ports && is_translated && is_own(reply.source());
    (is_needed && !view.life().expired(now)).then_some(at)
}

#[cfg(test)]
mod tests {
    use dataplane::charge::Charge;
    use dataplane::conntrack::{Life, Seen};
    use dataplane::flow::{FlowRoute, Origin};
    use dataplane::flows::{Capacities, NewFlow, WorkerFlows, hashes_of};
    use dataplane::identity::PodTag;
    use dataplane::policy::RuleId;
    use dataplane::tables::Timeouts;
    use flow_table::Memory;

    use super::*;

    const OWN: u32 = 0xc000_0201;
    const SERVICE: u32 = 0x0a60_0001;
    const CLIENT: u32 = 0xc633_6407;

    fn is_own(address: IpAddr) -> bool {
        address == IpAddr::V4(OWN.into())
    }

    fn seconds(count: u64) -> Nanos {
        Nanos(count * 1_000_000_000)
    }

    fn tables() -> (FlowTables, WorkerFlows) {
        let (memory, capacities) = ((Memory::Heap, Memory::Heap), Capacities::fixed(64, 64));
        let (tables, mut holds) = FlowTables::new(capacities, memory, 1, [1, 2]).unwrap();
        (tables, holds.remove(0))
    }

    /// A flow from the client to `asked`, which `answers`.
    fn insert(
        tables: &FlowTables,
        worker: &mut WorkerFlows,
        (protocol, asked, answers): (Protocol, (u32, u16), (u32, u16)),
    ) {
        let client = (CLIENT, 40_000);
        let original = FlowKey4::new(protocol, client, asked);
        let reply = FlowKey4::new(protocol, answers, client);
        let none = FlowRoute::UNRESOLVED;
        let flow = NewFlow {
            original,
            reply,
            life: Life::opened(protocol, Seen::default(), seconds(1), &Timeouts::default()),
            route: FlowRoute { generation: 1, hop: none, reverse_hop: none },
            origin: Origin { service: None, rule: RuleId(1) },
            pod: PodTag::Unknown,
            charge: Charge::NOBODY,
        };
        worker.v4.insert(&flow, hashes_of(&tables.hasher, &original, &reply)).unwrap();
    }

    #[test]
    fn a_backend_that_no_service_has_any_more_is_led_here_until_no_flow_is_translated_to_it() {
        let (flows, mut worker) = tables();
        insert(&flows, &mut worker, (Protocol::UDP, (SERVICE, 53), (OWN, 5353)));
        let (used, unused) = ((Protocol::UDP, 5353), (Protocol::TCP, 6443));
        let mut known = HostBackends::default();
        assert_eq!(*known.follow(&[used, unused].into(), seconds(1)), [used, unused].into());
        assert_eq!(*known.follow(&HashSet::new(), seconds(1)), [used, unused].into());
        assert!(!known.tend(&flows, is_own, seconds(5)), "workers may not know yet");
        assert!(known.tend(&flows, is_own, seconds(12)), "nobody needs one of them");
        assert_eq!(*known.follow(&HashSet::new(), seconds(12)), [used].into());
        assert!(!known.tend(&flows, is_own, seconds(23)));
        // The flow is over (udp: 30 s).
        assert!(known.tend(&flows, is_own, seconds(40)));
        assert!(known.follow(&HashSet::new(), seconds(40)).is_empty());
    }

    #[test]
    fn one_that_comes_again_is_a_services_and_no_longer_kept() {
        let (flows, _) = tables();
        let at = (Protocol::TCP, 6443);
        let mut known = HostBackends::default();
        known.follow(&[at].into(), seconds(1));
        known.follow(&HashSet::new(), seconds(2));
        assert_eq!(*known.follow(&[at].into(), seconds(3)), [at].into());
        assert!(!known.tend(&flows, is_own, seconds(60)));
        assert_eq!(*known.follow(&[at].into(), seconds(60)), [at].into());
    }

    #[test]
    fn flows_of_the_process_before_keep_what_they_need_and_no_others_do() {
        let (flows, mut worker) = tables();
        insert(&flows, &mut worker, (Protocol::TCP, (SERVICE, 443), (OWN, 6443)));
        // Asked by its own address; and a pod's, by a service.
        insert(&flows, &mut worker, (Protocol::TCP, (OWN, 22), (OWN, 22)));
        insert(&flows, &mut worker, (Protocol::TCP, (SERVICE, 80), (0x0a01_0002, 8080)));
        let mut known = HostBackends::default();
        known.begin(&flows, is_own, seconds(2));
        assert_eq!(*known.follow(&HashSet::new(), seconds(2)), [(Protocol::TCP, 6443)].into());
    }
}
