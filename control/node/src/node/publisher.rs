//! What is in force, and when it changes: the compiled cluster state and the kernel's view become
//! [`Tables`]. Pure, apart from remembering what it published.
//!
//! A new root shares with the old one every chunk that did not change. Its generation grows only
//! when a decision that a flow has cached may be wrong: a link address that changes, a backend that
//! appears, or a pod that no flow has for an end, judges no flow again. Its epochs tell which flows
//! that may be: a pod that comes or goes elsewhere judges no other pod's flows again.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use control::audit::AbsentTargets;
use control::compile::{Affected, Compiled, NodeView, Stage, Warning};
use control::store::{Change, ClusterState};
use dataplane::address::Protocol;
use dataplane::connections::Connections;
use dataplane::direct::Direct;
use dataplane::epochs::Epochs;
use dataplane::flow_ends::Census;
use dataplane::lb::ServiceRanges;
use dataplane::nat::SourceNat;
use dataplane::pacing::Limits;
use dataplane::port::{Port, PortKind};
use dataplane::tables::{Tables, TcpWindows, Timeouts};
use dataplane::time::Nanos;

use crate::forwarding_view::{ForwardingBuilder, Inputs};
use crate::netlink::neighbours::NeighbourKey;

/// The compiled state and the tables made of it.
#[derive(Debug, Default)]
pub struct Publisher {
    compiled: Compiled,
    waiting: Waiting,
    /// Whose flows what was compiled and not yet published decides otherwise.
    affected: Affected,
    builder: ForwardingBuilder,
    tables: Arc<Tables>,
    publishes: u64,
}

/// Changes of the cluster that are to be taken over, as they came, so that a panic loses only the one it
/// is about.
#[derive(Default)]
struct Waiting(VecDeque<Box<dyn Iterator<Item = Change> + Send>>);

impl Waiting {
    fn next(&mut self) -> Option<Change> {
        while let Some(first) = self.0.front_mut() {
            if let Some(change) = first.next() {
                return Some(change);
            }
            self.0.pop_front();
        }
        None
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} times", self.0.len())
    }
}

/// What is set of flows, and of packets that leave, and decides nothing that a flow has cached.
#[derive(Debug, Clone, Default)]
pub struct FlowSettings {
    /// When they end.
    pub timeouts: Timeouts,
    /// See [`Tables::tcp_windows`].
    pub tcp_windows: TcpWindows,
    /// See [`Tables::lost_replies_until`].
    pub lost_replies_until: Nanos,
    /// See [`Tables::flows_per_endpoint_max`].
    pub per_endpoint_max: u32,
    /// The number of this process and its workers, for [`Tables::connections`].
    pub counted_by: (u16, usize),
    /// See [`Tables::limits`]. Another one only where a limit is another.
    pub limits: Option<Arc<Limits>>,
    /// See [`Tables::direct`]. Another one only where something of it is another.
    pub direct: Option<Arc<Direct>>,
    /// See [`Tables::service_ranges`].
    pub service_ranges: Arc<ServiceRanges>,
    /// See [`Tables::host_backends`].
    pub host_backends: Arc<hashbrown::HashSet<(Protocol, u16)>>,
}

/// What the kernel's view gave beside tables.
#[derive(Debug)]
pub struct Update {
    /// To be put in force; `None` when nothing changed.
    pub tables: Option<Arc<Tables>>,
    /// Neighbours to be kept resolved.
    pub gateways: BTreeSet<NeighbourKey>,
    /// Next hops that found no room.
    pub next_hops_left_out: u64,
}

impl Publisher {
    /// Goes on where empty `tables` are in force, with what it has compiled.
    #[must_use]
    pub fn after(self, tables: &Arc<Tables>) -> Self {
        Self { tables: Arc::clone(tables), ..self }
    }

    /// Takes over what changed in the cluster, and tells `taken` of each change. It is in force once it
    /// was compiled and published.
    pub fn take<C>(&mut self, changes: C, mut taken: impl FnMut(&Change))
    where
        C: IntoIterator<Item = Change, IntoIter: Send + 'static>,
    {
        self.waiting.0.push_back(Box::new(changes.into_iter()));
        while let Some(change) = self.waiting.next() {
            taken(&change);
            self.compiled.take(change);
        }
    }

    /// Compiles what changed of the cluster, as `node` sees it, and tells `ended` of each stage that
    /// is over.
    pub fn compile(&mut self, node: &NodeView, ended: impl FnMut(Stage)) {
        self.compiled.compile_by_stages(node, ended);
        self.affected.merge(self.compiled.affected.clone());
    }

    /// What is warned of since the last time, for a log, and how much more.
    pub fn take_fresh_warnings(&mut self) -> (Vec<Warning>, usize) {
        self.compiled.take_fresh_warnings()
    }

    /// Flows of these addresses are to be judged again, whether or not something changed.
    pub fn concern(&mut self, addresses: BTreeSet<IpAddr>) {
        addresses.into_iter().for_each(|address| self.affected.add(address));
    }

    /// Compiles from nothing: what was remembered is not to be trusted.
    pub fn begin_anew(&mut self) {
        let nothing = ClusterState::default();
        let mut before = std::mem::take(&mut self.compiled);
        let changes = nothing.changes_to(before.whole_state());
        // Before those that wait, which are newer.
        changes.into_iter().for_each(|change| self.compiled.take(change));
        self.take([], |_| {});
        self.affected = Affected::Everything;
    }

    /// The cluster as last taken over.
    #[must_use]
    pub fn cluster(&self) -> &ClusterState {
        self.compiled.state()
    }

    /// Warns of slices that name pods which are not there.
    pub fn warn_of_targets(&mut self, absent: &AbsentTargets) {
        self.compiled.warn_of_targets(absent);
    }

    /// The compiled state: names of rules, services and identities.
    #[must_use]
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// The tables in force.
    #[must_use]
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Roots published since start.
    #[must_use]
    pub fn publishes(&self) -> u64 {
        self.publishes
    }

    /// Next hops with a number.
    #[must_use]
    pub fn next_hops_used(&self) -> usize {
        self.builder.next_hops_used()
    }

    /// Connections of backends, once a service wants them counted, and from then on.
    fn connections(&self, (process, workers): (u16, usize)) -> Option<Arc<Connections>> {
        let known = self.tables.connections.clone();
        let is_wanted = self.compiled.services.have_least_connections;
        known.or_else(|| is_wanted.then(|| Arc::new(Connections::new(process, workers))))
    }

    /// Makes the next root of the compiled state, our ports and the kernel's view.
    pub fn update(
        &mut self,
        ports: Vec<Option<Port>>,
        inputs: &Inputs<'_>,
        source_nat: &SourceNat,
        flows: FlowSettings,
        census: &mut Census,
    ) -> Update {
        let FlowSettings {
            timeouts,
            tcp_windows,
            lost_replies_until,
            per_endpoint_max,
            counted_by,
            limits,
            direct,
            service_ranges,
            host_backends,
        } = flows;
        let built = self.builder.build(inputs);
        let old = Arc::clone(&self.tables);
        let first = self.publishes == 0;
        let ports_changed = old.ports[..] != ports[..];
        let nat_changed = *old.source_nat != *source_nat;
        let affected = if first {
            Affected::Everything
        } else {
            let mut affected = std::mem::take(&mut self.affected);
            affected.merge(built.affected);
            affected.merge(by_ports(&old.ports, &ports));
            affected
        };
        let changed = affected != Affected::Nothing
            || ports_changed
            || nat_changed
            || built.changed
            || !Arc::ptr_eq(&old.services, &self.compiled.services)
            || !Arc::ptr_eq(&old.identities, &self.compiled.identities)
            || !Arc::ptr_eq(&old.policy, &self.compiled.policy)
            || (old.timeouts, old.tcp_windows) != (timeouts, tcp_windows)
            || old.lost_replies_until != lost_replies_until
            || old.flows_per_endpoint_max != per_endpoint_max
            || old.limits.as_ref().map(Arc::as_ptr) != limits.as_ref().map(Arc::as_ptr)
            || old.direct.as_ref().map(Arc::as_ptr) != direct.as_ref().map(Arc::as_ptr)
            || old.service_ranges != service_ranges
            || old.host_backends != host_backends;
        let tables = changed.then(|| {
            let (generation, epochs) = next_epochs(&old, affected, census, built.renumbered);
            Arc::new(Tables {
                generation,
                epochs: Some(epochs),
                ports: if ports_changed { ports.into() } else { Arc::clone(&old.ports) },
                limits,
                forwarding: if built.changed || first {
                    Arc::new(built.forwarding)
                } else {
                    Arc::clone(&old.forwarding)
                },
                services: Arc::clone(&self.compiled.services),
                host_backends,
                service_ranges,
                direct,
                identities: Arc::clone(&self.compiled.identities),
                policy: Arc::clone(&self.compiled.policy),
                source_nat: if nat_changed {
                    Arc::new(source_nat.clone())
                } else {
                    Arc::clone(&old.source_nat)
                },
                timeouts,
                tcp_windows,
                connections: self.connections(counted_by),
                flows_per_endpoint_max: per_endpoint_max,
                lost_replies_until,
            })
        });
        if let Some(tables) = &tables {
            self.tables = Arc::clone(tables);
            self.publishes += 1;
        }
        Update { tables, gateways: built.gateways, next_hops_left_out: built.left_out }
    }
}

/// The generation that follows `old`, and since when what holds. It grows where numbers are
/// `renumbered`, whether or not some flow is known to be concerned.
fn next_epochs(
    old: &Tables,
    affected: Affected,
    census: &mut Census,
    renumbered: bool,
) -> (u32, Arc<Epochs>) {
    let next = old.generation.wrapping_add(1);
    match (affected, &old.epochs) {
        (Affected::Nothing, Some(epochs)) => (old.generation, Arc::clone(epochs)),
        (Affected::Addresses(addresses), Some(epochs)) if renumbered => {
            let mut epochs = Epochs::clone(epochs);
            epochs.concern(next, addresses);
            (next, Arc::new(epochs))
        }
        (Affected::Addresses(addresses), _) => census.next(old, addresses),
        (Affected::Everything, _) | (_, None) => (next, Epochs::beginning_at(next).into()),
    }
}

/// Whose flows ports decide otherwise: those of pods that came or went, and everybody's if an uplink
/// or the host port did. What else a port has is read at every packet.
fn by_ports(old: &[Option<Port>], new: &[Option<Port>]) -> Affected {
    let mut affected = Affected::Nothing;
    for index in 0..old.len().max(new.len()) {
        let pair = [old, new].map(|ports| ports.get(index).and_then(Option::as_ref));
        let is_alike = match pair {
            [Some(old), Some(new)] => old.kind == new.kind && old.addresses == new.addresses,
            [None, None] => true,
            _ => false,
        };
        if is_alike {
            continue;
        }
        for port in pair.into_iter().flatten() {
            match port.kind {
                PortKind::Pod => port.addresses.iter().for_each(|address| affected.add(*address)),
                PortKind::Host | PortKind::Uplink => affected = Affected::Everything,
            }
        }
    }
    affected
}

#[cfg(test)]
mod tests {
    use dataplane::address::MacAddr;
    use dataplane::charge::Charge;
    use dataplane::conntrack::{Life, Seen};
    use dataplane::flow::{FlowRoute, Origin};
    use dataplane::flow_key::FlowKey4;
    use dataplane::flows::{Capacities, FlowTables, NewFlow, hashes_of};
    use dataplane::policy::RuleId;
    use dataplane::port::{Checksums, PortId, PortKind};
    use flow_table::Memory;

    use super::*;
    use crate::forwarding_view::{EndpointAddress, ForwardingPort, NEXT_HOPS_OF_GONE_PODS_MAX};
    use crate::netlink::KernelView;
    use crate::netlink::view::{Change, Neighbour};

    fn port() -> Port {
        Port {
            name: "up0".into(),
            kind: PortKind::Uplink,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            checksums: Checksums::Complete,
            addresses: Box::default(),
        }
    }

    fn update_with(
        publisher: &mut Publisher,
        view: &KernelView,
        ports: Vec<Option<Port>>,
        tracking: (Timeouts, TcpWindows),
        census: &mut Census,
    ) -> Update {
        let forwarding = [ForwardingPort {
            port: PortId(0),
            kind: PortKind::Uplink,
            interface: 3,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
        }];
        let endpoints: [EndpointAddress; 0] = [];
        let asked = [(PortId(0), "192.0.2.9".parse().unwrap())].into();
        let inputs =
            Inputs { view, ports: &forwarding, endpoints: &endpoints, host: None, asked: &asked };
        let (timeouts, tcp_windows) = tracking;
        let until = Nanos::default();
        let flows = FlowSettings {
            timeouts,
            tcp_windows,
            lost_replies_until: until,
            ..FlowSettings::default()
        };
        publisher.update(ports, &inputs, &SourceNat::default(), flows, census)
    }

    fn update(publisher: &mut Publisher, view: &KernelView, ports: Vec<Option<Port>>) -> Update {
        update_with(publisher, view, ports, Default::default(), &mut census(&[]))
    }

    /// Of a table with flows between the two ends of each pair.
    fn census(flows: &[[IpAddr; 2]]) -> Census {
        let (memory, capacities) = ((Memory::Heap, Memory::Heap), Capacities::fixed(64, 64));
        let (tables, mut holds) = FlowTables::new(capacities, memory, 1, [1, 2]).unwrap();
        let census = Census::of(&tables, Nanos(1));
        for ends in flows {
            let [IpAddr::V4(source), IpAddr::V4(destination)] = *ends else { continue };
            let original = {
                let [source, destination] = [source, destination].map(std::net::Ipv4Addr::to_bits);
                FlowKey4::new(Protocol::UDP, (source, 1000), (destination, 53))
            };
            let reply = original.reversed();
            let life = Life::opened(Protocol::UDP, Seen::default(), Nanos(1), &Timeouts::default());
            let none = FlowRoute::UNRESOLVED;
            let flow = NewFlow {
                original,
                reply,
                life,
                route: FlowRoute { generation: 1, hop: none, reverse_hop: none },
                origin: Origin { service: None, rule: RuleId(1) },
                pod: dataplane::identity::PodTag::Unknown,
                charge: Charge::NOBODY,
            };
            let hashes = hashes_of(&tables.hasher, &original, &reply);
            holds[0].v4.insert(&flow, hashes).unwrap();
        }
        census
    }

    #[test]
    fn times_and_windows_that_change_are_published_and_judge_no_flow_again() {
        let mut publisher = Publisher::default();
        let view = KernelView::default();
        let mut published = |tracking| {
            let (ports, census) = (vec![Some(port())], &mut census(&[]));
            let update = update_with(&mut publisher, &view, ports, tracking, census);
            update.tables.map(|tables| (tables.generation, tables.tcp_windows))
        };
        let times = Timeouts::default();
        assert_eq!(published((times, TcpWindows::Off)), Some((1, TcpWindows::Off)));
        assert_eq!(published((times, TcpWindows::Strict)), Some((1, TcpWindows::Strict)));
        let longer = Timeouts { udp: dataplane::time::Seconds(77), ..times };
        assert_eq!(published((longer, TcpWindows::Strict)), Some((1, TcpWindows::Strict)));
        assert_eq!(published((longer, TcpWindows::Strict)), None);
    }

    #[test]
    fn limits_that_change_are_published_and_judge_no_flow_again() {
        let mut publisher = Publisher::default();
        let mut published = |limits: &Option<Arc<Limits>>| {
            let asked = BTreeSet::new();
            let view = &KernelView::default();
            let inputs = Inputs { view, ports: &[], endpoints: &[], host: None, asked: &asked };
            let flows = FlowSettings { limits: limits.clone(), ..FlowSettings::default() };
            let ports = vec![Some(port())];
            let nat = SourceNat::default();
            let update = publisher.update(ports, &inputs, &nat, flows, &mut census(&[]));
            update.tables.map(|tables| (tables.generation, tables.limits.is_some()))
        };
        let limits = Some(Arc::new(Limits::default()));
        assert_eq!(published(&None), Some((1, false)));
        assert_eq!(published(&limits), Some((1, true)));
        assert_eq!(published(&limits), None);
        assert_eq!(published(&None), Some((1, false)));
    }

    #[test]
    fn nothing_new_publishes_nothing_and_a_link_address_keeps_the_generation() {
        let mut publisher = Publisher::default();
        let mut view = KernelView::default();
        let first = update(&mut publisher, &view, vec![Some(port())]).tables.unwrap();
        assert_eq!(first.generation, 1);
        assert!(update(&mut publisher, &view, vec![Some(port())]).tables.is_none());
        let mac = Some(MacAddr([2, 0, 0, 0, 0, 9]));
        let neighbour = Neighbour { mac, failed: false, kept_fresh: true, stale: false };
        view.apply(Change::Neighbour(3, "192.0.2.9".parse().unwrap(), neighbour));
        let second = update(&mut publisher, &view, vec![Some(port())]).tables.unwrap();
        assert_eq!(second.generation, 1);
        assert!(Arc::ptr_eq(&first.ports, &second.ports));
        assert!(Arc::ptr_eq(&first.source_nat, &second.source_nat));
    }

    #[test]
    fn a_port_that_is_narrowed_judges_no_flow_and_one_that_comes_those_of_its_pod() {
        let mut publisher = Publisher::default();
        let view = KernelView::default();
        let pod: IpAddr = "10.1.0.5".parse().unwrap();
        let other: IpAddr = "10.1.0.6".parse().unwrap();
        let mut census = census(&[[pod, other]]);
        let mut publish = |ports: Vec<Option<Port>>| {
            let update = update_with(&mut publisher, &view, ports, Default::default(), &mut census);
            let tables = update.tables.unwrap();
            (tables.generation, tables.epochs.clone().unwrap(), tables)
        };
        publish(vec![Some(port())]);
        let narrow = Port { mtu: 1400, ..port() };
        let (generation, _, tables) = publish(vec![Some(narrow.clone())]);
        assert_eq!((generation, tables.ports[0].as_ref().unwrap().mtu), (1, 1400));

        let of_pod = Port { kind: PortKind::Pod, addresses: [pod].into(), ..port() };
        let (generation, epochs, _) = publish(vec![Some(narrow.clone()), Some(of_pod)]);
        assert_eq!(generation, 2);
        assert!(!epochs.hold_since(1, [pod.into(), other.into()]));
        assert!(epochs.hold_since(1, [other.into(), other.into()]));

        let (generation, epochs, _) = publish(vec![Some(narrow), None]);
        assert_eq!(generation, 3);
        assert!(!epochs.hold_since(2, [pod.into(), other.into()]));
        assert!(epochs.hold_since(1, [other.into(), other.into()]));

        let (generation, epochs, _) = publish(Vec::new());
        assert_eq!(generation, 4, "the uplink went");
        assert!(!epochs.hold_since(3, [other.into(), other.into()]));
    }

    #[test]
    fn a_pod_that_no_flow_has_for_an_end_keeps_the_generation() {
        let mut publisher = Publisher::default();
        let view = KernelView::default();
        let [pod, other, third] =
            ["10.1.0.5", "10.1.0.6", "10.1.0.7"].map(|text| text.parse::<IpAddr>().unwrap());
        let mut census = census(&[[other, third]]);
        let mut publish = |publisher: &mut Publisher, addresses: &[IpAddr]| {
            let pods = addresses
                .iter()
                .map(|own| Some(Port { kind: PortKind::Pod, addresses: [*own].into(), ..port() }));
            let ports = std::iter::once(Some(port())).chain(pods).collect();
            update_with(publisher, &view, ports, Default::default(), &mut census)
                .tables
                .map(|tables| tables.generation)
        };
        assert_eq!(publish(&mut publisher, &[]), Some(1));
        assert_eq!(publish(&mut publisher, &[pod]), Some(1));
        assert_eq!(publish(&mut publisher, &[pod, other]), Some(2), "a flow's own");
        assert_eq!(publish(&mut publisher, &[other]), Some(3), "its port changes its pod");
        publisher.concern([third].into());
        assert_eq!(publish(&mut publisher, &[other]), Some(4), "asked for, and nothing else new");
        publisher.concern([pod].into());
        assert_eq!(publish(&mut publisher, &[other]), Some(4), "asked for, and no flow's");
    }

    /// A worker may open a flow to a pod that is gone, by older tables, while its number is given back.
    #[test]
    fn numbers_that_are_given_back_begin_a_generation_though_no_flow_is_known_to_be_concerned() {
        let mut publisher = Publisher::default();
        let (view, asked, mut census) = (KernelView::default(), BTreeSet::new(), census(&[]));
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        let (own, kind) = (PortId(0), PortKind::Pod);
        let ports = [ForwardingPort { port: own, kind, interface: 3, mac, mtu: 1500 }];
        let mut publish = |number: usize| {
            let address = IpAddr::V4((0x0a02_0000 + u32::try_from(number).unwrap()).into());
            let endpoints = [EndpointAddress { address, port: own, mac: Some(mac) }];
            let inputs = Inputs {
                view: &view,
                ports: &ports,
                endpoints: &endpoints,
                host: None,
                asked: &asked,
            };
            let (nat, flows) = (SourceNat::default(), FlowSettings::default());
            let update = publisher.update(Vec::new(), &inputs, &nat, flows, &mut census);
            let tables = update.tables.unwrap();
            let epochs = tables.epochs.clone().unwrap();
            (tables.generation, epochs.hold_since(1, [address.into(), address.into()]))
        };
        for number in 0..=NEXT_HOPS_OF_GONE_PODS_MAX {
            assert_eq!(publish(number), (1, true), "pod {number}");
        }
        assert_eq!(publish(NEXT_HOPS_OF_GONE_PODS_MAX + 1), (2, false));
    }
}
