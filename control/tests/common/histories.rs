//! Random histories of a cluster, compiled change by change: after each, everything must be as if it
//! had been compiled from nothing, but for the numbers, and flows between addresses that are not
//! affected must be judged as before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::clusters::{NAMESPACES, address, at, labels, mode, one_of, pod, policy, protocol};
use control::audit::{Auditor, Moment};
use control::compile::{Compiled, NodeView, compile};
use control::model::{
    Endpoint, EndpointSlice, ForwardingMode, Hints, Labels, Namespace, Node, Object, ObjectKey,
    ObjectName, Pod, Service, ServicePort, SlicePort,
};
use control::store::{Change, ClusterState};
use dataplane::identity::Identity;
use dataplane::lb::{Choice, TrafficPolicy};
use dataplane::policy::{Direction, PortRule, Query, VerdictTable};
use dataplane::tables::Tables;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;

/// What happens.
#[derive(Debug, Clone)]
enum Event {
    Changes(Change),
    /// A pod of those that are there, as it is but for this.
    PodChanges(Index, PodChange),
    /// Some object of those that are there goes.
    Goes(Index),
    EndpointComes(ObjectName, BTreeSet<IpAddr>),
    EndpointGoes(Index),
    /// The endpoint of a pod that is there, with the pod's addresses.
    PodIsPlugged(Index),
    NodeHas(BTreeSet<IpAddr>),
    NodeIsCalled(&'static str),
}

#[derive(Debug, Clone)]
enum PodChange {
    Labels(Labels),
    Addresses(Vec<IpAddr>),
    /// Those of another pod.
    AddressesOf(Index),
    Terminating,
    HostNetwork,
    Node(Option<&'static str>),
}

fn addresses() -> impl Strategy<Value = Vec<IpAddr>> {
    vec(address(), 0..3)
}

/// Of services and nodes: fewer, so that each is now a service's of one kind or another, now a node's.
fn few_addresses() -> impl Strategy<Value = Vec<IpAddr>> {
    vec((prop::bool::weighted(0.8), 0u16..4).prop_map(|(ipv4, host)| at(ipv4, host)), 0..3)
}

fn service() -> impl Strategy<Value = Change> {
    let port = (one_of(&["", "web"]), protocol(), 80u16..82, option::of(30_000u16..30_002));
    let port = port.prop_map(|(name, protocol, l4_port, node_port)| ServicePort {
        name,
        protocol,
        l4_port,
        node_port,
    });
    let kind = (0u8..5, any::<bool>());
    let external = (few_addresses(), few_addresses());
    (service_name(), few_addresses(), external, vec(port, 1..3), kind).prop_map(
        |(name, cluster_ips, (external_ips, load_balancer_ips), mut ports, (headless, local))| {
            // The reader lets each name stand for one port only.
            if let [first, second] = &mut ports[..]
                && first.name == second.name
            {
                second.name = "other".into();
            }
            Change::Set(Object::from(Service {
                name,
                cluster_ips,
                headless: headless == 0,
                external_ips,
                load_balancer_ips,
                ports,
                internal_policy: TrafficPolicy::Cluster,
                external_policy: if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
                source_ranges: Vec::new(),
                health_check_node_port: None,
                affinity_seconds: None,
                choice: Some(Choice::Maglev),
                forwarding: ForwardingMode::default(),
                stateless: Some(false),
            }))
        },
    )
}

fn service_name() -> impl Strategy<Value = ObjectName> {
    (one_of(&NAMESPACES), one_of(&["s", "t"])).prop_map(|(of, name)| ObjectName::new(of, name))
}

fn slice() -> impl Strategy<Value = Change> {
    let hints = option::of(any::<[bool; 2]>());
    let address = prop_oneof![3 => address(), 1 => (0u16..4).prop_map(|host| at(true, host))];
    let endpoint = (address, any::<[bool; 3]>(), option::of(one_of(&["one", "two"])), hints);
    let endpoint =
        endpoint.prop_map(|(address, [ready, serving, terminating], node, hints)| Endpoint {
            address,
            ready,
            serving,
            terminating,
            node: node.map(Into::into),
            hints: hints.map(|[of_node, of_zone]| {
                let hint =
                    |is_set: bool, name: &str| is_set.then(|| name.into()).into_iter().collect();
                Box::new(Hints { nodes: hint(of_node, "one"), zones: hint(of_zone, "z") })
            }),
            target: None,
        });
    let port = (one_of(&["", "web"]), protocol(), option::of(8080u16..8082))
        .prop_map(|(name, protocol, l4_port)| SlicePort { name, protocol, l4_port });
    let of = option::of(one_of(&["s", "t"]));
    (service_name(), of, vec(port, 0..3), vec(endpoint, 0..4)).prop_map(
        |(name, service, ports, endpoints)| {
            let left_out = None;
            let slice = EndpointSlice { name, service, ports, endpoints, left_out };
            Change::Set(Object::EndpointSlice(slice))
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let which = any::<Index>;
    let set = |object| Event::Changes(Change::Set(object));
    let pod_change = prop_oneof![
        3 => labels().prop_map(PodChange::Labels),
        2 => addresses().prop_map(PodChange::Addresses),
        2 => which().prop_map(PodChange::AddressesOf),
        1 => Just(PodChange::Terminating),
        1 => Just(PodChange::HostNetwork),
        1 => prop::sample::select(&[None, Some("one"), Some("two")][..]).prop_map(PodChange::Node),
    ];
    let namespace = (one_of(&NAMESPACES), labels(), mode(4))
        .prop_map(|(name, labels, mode)| Object::Namespace(Namespace { name, labels, mode }));
    let zone = option::of(one_of(&["z", "y"]));
    let node = (one_of(&["one", "two", "three"]), few_addresses(), mode(4), zone).prop_map(
        |(name, addresses, mode, zone)| {
            let zone = zone.map(Into::into);
            Object::Node(Node { name, addresses, pod_cidrs: vec![], zone, is_leaving: false, mode })
        },
    );
    let pod_name = pod().prop_map(|pod| pod.name);
    prop_oneof![
        4 => (pod(), addresses()).prop_map(move |(pod, addresses)| {
            set(Object::from(Pod { addresses: addresses.into(), ..pod }))
        }),
        4 => (which(), pod_change).prop_map(|(index, change)| Event::PodChanges(index, change)),
        3 => which().prop_map(Event::Goes),
        4 => policy().prop_map(move |policy| set(Object::from(policy))),
        2 => namespace.prop_map(set),
        1 => node.prop_map(set),
        2 => service().prop_map(Event::Changes),
        2 => slice().prop_map(Event::Changes),
        1 => (pod_name, btree_set(address(), 0..3))
            .prop_map(|(name, addresses)| Event::EndpointComes(name, addresses)),
        1 => which().prop_map(Event::EndpointGoes),
        2 => which().prop_map(Event::PodIsPlugged),
        1 => few_addresses().prop_map(|own| Event::NodeHas(own.into_iter().collect())),
        1 => prop::sample::select(&["one", "two"][..]).prop_map(Event::NodeIsCalled),
    ]
}

/// The cluster, what was compiled of it change by change, and the node.
struct World {
    compiled: Compiled,
    node: NodeView,
    /// It goes on a little after each step, and sees what changes in the midst of its rounds.
    auditor: Auditor,
}

/// Objects that the audit looks at after each step: rounds last some steps.
const LOOKS: usize = 25;

fn keys(state: &ClusterState) -> Vec<ObjectKey> {
    ClusterState::default().changes_to(state).iter().map(Change::key).collect()
}

fn chosen<T: Clone>(index: &Index, all: &[T]) -> Option<T> {
    (!all.is_empty()).then(|| index.get(all).clone())
}

impl World {
    fn new(node: NodeView) -> Self {
        Self { compiled: Compiled::default(), node, auditor: Auditor::default() }
    }

    fn take(&mut self, change: Change) {
        self.auditor.note(&change);
        self.compiled.take(change);
    }

    /// Some looks of the audit, at tables that are right.
    fn audit_a_little(&mut self) {
        let (compiled, node) = (&self.compiled, &self.node);
        let (state, tables) = (compiled.state(), tables(compiled));
        let moment = Moment { state, node, compiled, tables: &tables };
        let auditor = &mut self.auditor;
        for round in (0..LOOKS).filter_map(|_| auditor.step(&moment, || true)) {
            assert_eq!(round.differences, []);
        }
    }

    fn let_happen(&mut self, event: &Event) {
        let state = self.compiled.state();
        let pods: Vec<Pod> = state.pods.values().map(|pod| (**pod).clone()).collect();
        match event {
            Event::Changes(change) => self.take(change.clone()),
            Event::PodChanges(index, change) => {
                let Some(mut pod) = chosen(index, &pods) else { return };
                match change.clone() {
                    PodChange::Labels(labels) => pod.labels = labels,
                    PodChange::Addresses(addresses) => pod.addresses = addresses.into(),
                    PodChange::AddressesOf(other) => {
                        pod.addresses = chosen(&other, &pods).expect("a pod").addresses;
                    }
                    PodChange::Terminating => pod.terminating = !pod.terminating,
                    PodChange::HostNetwork => pod.host_network = !pod.host_network,
                    PodChange::Node(node) => pod.node = node.map(Into::into),
                }
                self.take(Change::Set(Object::from(pod)));
            }
            Event::Goes(index) => {
                if let Some(key) = chosen(index, &keys(state)) {
                    self.take(Change::Gone(key));
                }
            }
            Event::EndpointComes(name, addresses) => {
                self.node.endpoints.insert(name.clone(), addresses.clone());
            }
            Event::EndpointGoes(index) => {
                let names: Vec<ObjectName> = self.node.endpoints.keys().cloned().collect();
                if let Some(name) = chosen(index, &names) {
                    self.node.endpoints.remove(&name);
                }
            }
            Event::PodIsPlugged(index) => {
                if let Some(pod) = chosen(index, &pods) {
                    self.node.endpoints.insert(pod.name, pod.addresses.iter().copied().collect());
                }
            }
            Event::NodeHas(addresses) => {
                self.node.addresses.clone_from(addresses);
                self.node.node_port_addresses.clone_from(addresses);
            }
            Event::NodeIsCalled(name) => self.node.name = (*name).to_owned(),
        }
    }
}

/// What was compiled, with names in the place of numbers, so that two compilations compare.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    addresses: BTreeMap<IpAddr, String>,
    prefixes: BTreeMap<String, String>,
    identities: usize,
    /// Addresses that share an identity, by the first of them.
    shared: BTreeMap<IpAddr, IpAddr>,
    verdicts: BTreeMap<String, String>,
    tables: usize,
    isolating: BTreeMap<IpAddr, [Vec<ObjectName>; 4]>,
    frontends: BTreeMap<String, String>,
    others: BTreeMap<String, String>,
    warnings: Vec<String>,
}

impl Named {
    fn of(compiled: &Compiled) -> Self {
        let exact: BTreeMap<IpAddr, Identity> = compiled
            .identities
            .exact
            .iter()
            .map(|(address, own)| (address, own.identity))
            .collect();
        let mut first: BTreeMap<Identity, IpAddr> = BTreeMap::new();
        for (address, identity) in &exact {
            first.entry(*identity).or_insert(*address);
        }
        let name = |identity: Identity| compiled.identity_name(identity);
        // Identities of one name may differ by the numbers of their pods' ports.
        let called = |identity: &Identity| {
            let at = first.get(identity).map(ToString::to_string).unwrap_or_default();
            format!("{} {at}", name(*identity))
        };
        let services = &compiled.services;
        let service = |id| format!("{:?}", services.get(id).expect("a service in force").name);
        let isolating = |subject, direction| compiled.isolating(subject, direction).to_vec();
        let audited = |subject, direction| compiled.audited(subject, direction).to_vec();
        let mut others: BTreeMap<String, String> = BTreeMap::new();
        for service in services.services.values() {
            let family = services.change_family;
            others.entry(format!("{service:?}")).or_default().push_str(&family.to_string());
        }
        let node_ports = services.node_ports.iter();
        others.extend(node_ports.map(|(port, id)| (format!("{port:?}"), service(*id))));
        let hosts: BTreeSet<_> = services.host_backends.iter().collect();
        let at: BTreeSet<IpAddr> = services.addresses.keys().collect();
        let external: BTreeSet<IpAddr> = services.external.keys().collect();
        others.insert("hosts and addresses".into(), format!("{hosts:?} {at:?} {external:?}"));
        Self {
            addresses: exact.iter().map(|(address, own)| (*address, name(*own))).collect(),
            prefixes: compiled
                .identities
                .prefixes
                .iter()
                .map(|(prefix, own)| (prefix.to_string(), name(*own)))
                .collect(),
            identities: compiled.identity_count(),
            shared: exact.iter().map(|(address, own)| (*address, first[own])).collect(),
            verdicts: compiled
                .policy
                .subjects
                .iter()
                .map(|(subject, tables)| {
                    let all = [
                        &tables.ingress,
                        &tables.egress,
                        &tables.ingress_audit,
                        &tables.egress_audit,
                    ];
                    let all = all.map(|table| {
                        table.as_ref().map(|table| table_named(compiled, table, &called))
                    });
                    (called(subject), format!("{all:?}"))
                })
                .collect(),
            tables: all_tables(compiled).len(),
            isolating: exact
                .iter()
                .map(|(address, own)| {
                    (
                        *address,
                        [
                            isolating(*own, Direction::Ingress),
                            isolating(*own, Direction::Egress),
                            audited(*own, Direction::Ingress),
                            audited(*own, Direction::Egress),
                        ],
                    )
                })
                .collect(),
            frontends: services
                .frontends
                .iter()
                .map(|(at, (id, kind))| (format!("{at:?}"), format!("{} {kind:?}", service(*id))))
                .collect(),
            others,
            warnings: compiled.warnings.iter().map(ToString::to_string).collect(),
        }
    }
}

fn all_tables(compiled: &Compiled) -> BTreeSet<*const VerdictTable> {
    let subjects = compiled.policy.subjects.values();
    subjects.flat_map(|subject| subject.tables()).map(Arc::as_ptr).collect()
}

fn table_named(
    compiled: &Compiled,
    table: &VerdictTable,
    called: &impl Fn(&Identity) -> String,
) -> String {
    let rules = |rules: &[PortRule]| {
        let rule = |rule: &PortRule| {
            let name = compiled.rule_name(rule.rule).expect("a rule in force");
            format!("{:?} {:?} {name}", rule.protocol, rule.l4_ports)
        };
        rules.iter().map(rule).collect::<Vec<_>>()
    };
    let rows: BTreeMap<String, Vec<String>> =
        table.by_peer.iter().map(|(peer, row)| (called(peer), rules(row))).collect();
    format!("{:?} {rows:?}", rules(&table.any_peer))
}

/// Whether a pod of this node has `address`: then its policy is enforced here.
fn has_local(compiled: &Compiled, node: &NodeView, address: &IpAddr) -> bool {
    let pods = || compiled.state().pods.values().map(|pod| &**pod);
    let claims = |pod: &&Pod, terminating: bool| {
        let has_network = !pod.host_network && !pod.is_completed();
        has_network && pod.terminating == terminating && pod.addresses.contains(address)
    };
    let endpoint = node.endpoints.iter().find(|(_, own)| own.contains(address));
    let pod = pods().find(|pod| claims(pod, false));
    let pod = pod.or_else(|| pods().find(|pod| claims(pod, true)));
    let is_here = |pod: &Pod| pod.node.as_ref().is_none_or(|on| **on == *node.name);
    endpoint.is_some()
        || pod.is_some_and(|pod| is_here(pod) || node.endpoints.contains_key(&pod.name))
}

/// Every pair of addresses, none of which is affected, in both directions.
fn check_affected(before: &Compiled, after: &Compiled, nodes: [&NodeView; 2]) {
    let [was_node, is_node] = nodes;
    let of = |compiled: &Compiled| compiled.identities.exact.keys().collect::<Vec<_>>();
    let mut all: BTreeSet<IpAddr> = of(before).into_iter().chain(of(after)).collect();
    all.extend(["10.0.0.62", "10.0.0.17", "192.0.2.1"].map(|text| text.parse::<IpAddr>().unwrap()));
    all.retain(|address| !after.affected.contains(*address));
    let is_local = |address: &IpAddr| {
        has_local(before, was_node, address) || has_local(after, is_node, address)
    };
    for subject in all.iter().filter(|address| is_local(address)) {
        for peer in &all {
            for (protocol, l4_port) in [(6, 1), (6, 3), (6, 5), (17, 2), (17, 7), (1, 0)] {
                for direction in [Direction::Ingress, Direction::Egress] {
                    let [was, is] = [before, after].map(|compiled| {
                        let query = Query {
                            subject: compiled.identities.lookup(*subject),
                            peer: compiled.identities.lookup(*peer),
                            protocol: dataplane::address::Protocol(protocol),
                            l4_port,
                        };
                        compiled.policy.judge(direction, &query)
                    });
                    assert_eq!(
                        was, is,
                        "{subject} and {peer}, {direction:?}, {protocol} {l4_port}"
                    );
                }
            }
        }
    }
}

fn tables(compiled: &Compiled) -> Tables {
    Tables {
        identities: Arc::clone(&compiled.identities),
        policy: Arc::clone(&compiled.policy),
        services: Arc::clone(&compiled.services),
        ..Tables::default()
    }
}

/// The audit reads the objects once more, and must agree with tables that are right.
pub fn check_audit(compiled: &Compiled, node: &NodeView) {
    let tables = tables(compiled);
    let state = compiled.state();
    let round = Auditor::whole(&Moment { state, node, compiled, tables: &tables });
    assert_eq!(round.differences, []);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        max_shrink_iters: 4096,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn change_by_change_is_as_from_nothing(steps in vec(vec(event(), 1..4), 1..24)) {
        let node = NodeView { name: "one".into(), ..NodeView::default() };
        let mut world = World::new(node);
        for events in steps {
            let (before, was_node) = (world.compiled.clone(), world.node.clone());
            events.iter().for_each(|event| world.let_happen(event));
            world.compiled.compile(&world.node);
            let state = world.compiled.state();
            let fresh = compile(state, &world.node, &Compiled::default());
            prop_assert_eq!(Named::of(&world.compiled), Named::of(&fresh), "{:?}", events);
            check_affected(&before, &world.compiled, [&was_node, &world.node]);
            check_audit(&world.compiled, &world.node);
            world.audit_a_little();
        }
        // Nothing is left over of what is gone.
        for key in keys(world.compiled.state()) {
            world.take(Change::Gone(key));
        }
        world.compiled.compile(&NodeView::default());
        let nothing = Named::of(&Compiled::default());
        prop_assert_eq!(Named::of(&world.compiled), nothing);
    }
}
