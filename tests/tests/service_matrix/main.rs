//! Every kind of frontend, under every policy, with every kind of readiness, for clients everywhere, of
//! both families and all protocols: objects, a packet, and what must happen. What must happen is
//! [`model`]'s reading of kube-proxy, which shares no code with what compiles and decides here.
#![forbid(unsafe_code)]

mod cells;
mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use control::audit::{Auditor, Moment};
use control::compile::{Compiled, NodeView, compile};
use control::manifests;
use dataplane::DropReason;
use dataplane::lb::{BackendSet, Service, ServiceTable};
use dataplane::port::PortId;
use dataplane::tables::Tables;
use xskiff_tests::packet_builder::{FrameBuilder, Seen, read, sctp, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{HOST, UPLINK, World, node_address, pod_port, pod4, pod6};

use cells::{Frontend, objects};
use model::{Kind, Outcome, Place, Policies, Protocol, Scenario};

/// Flows of each cell: enough that each of four backends has one.
const FLOWS: u64 = 24;

fn node() -> NodeView {
    let own: BTreeSet<IpAddr> =
        ["10.0.0.1", "fd00::1"].map(|own| own.parse().expect("an address")).into();
    let pod = |n: u8| {
        let name = control::model::ObjectName::new("shop", format!("web-{n}"));
        (name, [pod4(n), pod6(n)].into())
    };
    NodeView {
        name: "one".into(),
        addresses: own.clone(),
        node_port_addresses: own,
        endpoints: [pod(1), pod(2), pod(3)].into(),
        ..NodeView::default()
    }
}

fn compiled_of(text: &str) -> Compiled {
    let state = manifests::parse(Path::new("case.yaml"), text)
        .unwrap_or_else(|errors| panic!("refused: {errors:?}\n{text}"))
        .state;
    compile(&state, &node(), &Compiled::default())
}

/// By which port a client's packets come, and from where.
fn client(place: Place, ipv4: bool) -> (PortId, IpAddr) {
    let text = |v4: &str, v6: &str| if ipv4 { v4 } else { v6 }.parse().expect("an address");
    match place {
        Place::Outside => (UPLINK, text("192.0.2.7", "2001:db8::7")),
        Place::OtherNode => (UPLINK, text("10.1.9.1", "fd01::901")),
        Place::PodHere => (pod_port(1), if ipv4 { pod4(1) } else { pod6(1) }),
        Place::BackendHere => (pod_port(2), if ipv4 { pod4(2) } else { pod6(2) }),
        Place::Host => (HOST, text("10.0.0.1", "fd00::1")),
    }
}

fn packet(protocol: Protocol, from: SocketAddr, to: SocketAddr) -> FrameBuilder {
    let (from, to) = (from.to_string(), to.to_string());
    let init = [0, 0, 0, 7, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1];
    match protocol {
        Protocol::Tcp => tcp(&from, &to, "S"),
        Protocol::Udp => udp(&from, &to).payload(b"hello"),
        Protocol::Sctp => sctp(&from, &to, 0, &[(1, 0, &init)]),
    }
}

/// The node under test, and which ports clients have not spoken from yet: one that is used again would
/// be a connection that there is, or one whose replies could not be told from another's.
struct Bench {
    node: Simulation,
    ports: std::ops::RangeFrom<u16>,
}

impl Bench {
    fn of(services: &ServiceTable) -> Self {
        let world = World::with_pods(3).with_services(services);
        Self { node: Simulation::single(&world.tables()), ports: 10_000.. }
    }

    fn dropped(&self) -> [u64; 2] {
        [DropReason::NoBackend, DropReason::NoLocalBackend].map(|reason| self.node.dropped(reason))
    }

    /// What becomes of flows of a client.
    fn outcome(
        &mut self,
        place: Place,
        protocol: Protocol,
        to: SocketAddr,
    ) -> Result<Outcome, String> {
        let (port, address) = client(place, to.is_ipv4());
        // Answers are limited by time.
        self.node.now = self.node.now.after(std::time::Duration::from_secs(2));
        let before = self.dropped();
        let (mut backends, mut answers, mut untouched) = (BTreeSet::new(), 0, false);
        for _ in 0..FLOWS {
            let from = SocketAddr::new(address, self.ports.next().expect("enough ports"));
            for (out, frame) in self.node.pass(port, &packet(protocol, from, to).build()) {
                let left = read(&frame)?;
                if left.protocol != protocol.number() {
                    if out != port || !matches!(left.icmp_type, 3 | 1) {
                        return Err(format!("an answer that is none: {left:?}"));
                    }
                    answers += 1;
                } else if left.destination == to {
                    untouched = true;
                } else {
                    check_source(place, out, from, &left)?;
                    backends.insert((left.destination.ip(), left.destination.port()));
                }
            }
        }
        let after = self.dropped();
        let [refused, silent] = [0, 1].map(|which| after[which] - before[which]);
        Ok(match (backends.is_empty(), refused, silent) {
            (false, 0, 0) if !untouched => Outcome::To(backends),
            (true, _, 0) if refused == FLOWS && answers > 0 => Outcome::Refused,
            (true, 0, _) if silent == FLOWS && answers == 0 => Outcome::Silence,
            (true, 0, 0) => Outcome::NotOurs,
            _ => {
                let counters = self.node.moved_counters();
                return Err(format!(
                    "{backends:?}, {refused} refused, {silent} dropped:\n{counters}"
                ));
            }
        })
    }
}

/// A backend here sees the client, unless it is the client itself; one elsewhere sees whom its answer
/// comes back to: this node, or a pod of it.
fn check_source(place: Place, out: PortId, from: SocketAddr, left: &Seen) -> Result<(), String> {
    let is_itself = left.destination.ip() == from.ip();
    let is_pod = matches!(place, Place::PodHere | Place::BackendHere);
    let is_right = if is_itself || (out == UPLINK && !is_pod) {
        // Replies come back here.
        left.source.ip() == node_address(from.ip())
    } else {
        left.source == from
    };
    is_right.then_some(()).ok_or_else(|| format!("{from} is seen as {}", left.source))
}

/// What was found out about all cells.
#[derive(Default)]
struct Found {
    possible: u32,
    outcomes: BTreeMap<&'static str, u32>,
    impossible: BTreeMap<&'static str, u32>,
    wrong: Vec<String>,
}

/// Every cell, where objects and tables are as `of_text` and `of_tables` make them.
fn all_cells(of_text: impl Fn(String) -> String, of_tables: impl Fn(&mut ServiceTable)) -> Found {
    let mut found = Found::default();
    for policies in Policies::ALL {
        for scenario in Scenario::ALL {
            let compiled = compiled_of(&of_text(objects(policies, scenario)));
            assert_eq!(audited(&compiled), Vec::<String>::new());
            let mut services = (*compiled.services).clone();
            of_tables(&mut services);
            let mut bench = Bench::of(&services);
            let places = Kind::ALL.into_iter().flat_map(|kind| Place::ALL.map(|at| (kind, at)));
            let ends = [true, false].into_iter().flat_map(|ipv4| Protocol::ALL.map(|p| (ipv4, p)));
            for ((kind, place), (ipv4, protocol)) in
                places.flat_map(|one| ends.clone().map(move |other| (one, other)))
            {
                let cell = (kind, policies, scenario, place, ipv4, protocol);
                let expected = match model::expected(cell) {
                    Ok(expected) => expected,
                    Err(reason) => {
                        *found.impossible.entry(reason).or_default() += 1;
                        continue;
                    }
                };
                let outcome = bench.outcome(place, protocol, Frontend::of(kind, ipv4).at());
                found.possible += 1;
                *found.outcomes.entry(expected.word()).or_default() += 1;
                if outcome.as_ref() != Ok(&expected) {
                    found.wrong.push(format!("{cell:?}: {outcome:?}, not {expected:?}"));
                }
            }
        }
    }
    found
}

fn audited(compiled: &Compiled) -> Vec<String> {
    let tables = Tables {
        services: compiled.services.clone(),
        identities: compiled.identities.clone(),
        policy: compiled.policy.clone(),
        ..Tables::default()
    };
    let moment =
        Moment { state: compiled.state(), node: compiled.node(), compiled, tables: &tables };
    Auditor::whole(&moment).differences.iter().map(ToString::to_string).collect()
}

#[test]
fn every_cell_comes_out_as_kube_proxy_has_it() {
    let Found { possible, outcomes, impossible, wrong } = all_cells(|text| text, |_| {});
    println!("{possible} cells: {outcomes:?}");
    for (reason, cells) in &impossible {
        println!("{cells} impossible: {reason}");
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
    assert!(possible > 5000 && outcomes.len() == 4, "{outcomes:?}");
}

/// What is done to every service of the tables.
type Mutation = fn(&mut Service);

/// What a compiler would have made of the objects that passes one thing by, or takes it for another.
#[test]
fn compiler_that_passes_anything_by_is_found_out() {
    let of_objects: [(&str, &str, &str); 13] = [
        ("hints for zones", "forZones: [{name: b}]", "forZones: [{name: a}]"),
        ("hints for nodes", "forNodes: [{name: one}]", "forNodes: [{name: two}]"),
        ("the node's zone", "topology.kubernetes.io/zone: a", "topology.kubernetes.io/zone: b"),
        ("readiness", "ready: false, serving: false, terminating: false", ""),
        ("that one serves while it ends", "serving: true, terminating: true", "terminating: false"),
        ("that one that ends is deaf", "serving: false, terminating: true", "terminating: true"),
        ("an absent serving", "ready: false, terminating: true", "ready: false, serving: false"),
        ("the internal policy", "internalTrafficPolicy: Local", "internalTrafficPolicy: Cluster"),
        ("the external policy", "externalTrafficPolicy: Local", "externalTrafficPolicy: Cluster"),
        ("where one is", "nodeName: two", "nodeName: one"),
        ("ipMode", ", ipMode: Proxy", ""),
        ("the target port", "protocol: SCTP, port: 8132", "protocol: SCTP, port: 80"),
        ("host ports", ", hostPort: 9080", ""),
    ];
    for (what, from, to) in of_objects {
        let found = all_cells(|text| text.replace(from, to), |_| {});
        assert!(!found.wrong.is_empty(), "nobody misses {what}");
        println!("{what}: {} cells of {} are wrong", found.wrong.len(), found.possible);
    }
    let of_services: [(&str, Mutation); 4] = [
        ("the node's own set", |service| service.local = Arc::clone(&service.cluster)),
        ("all backends but the first", |service| {
            let first = service.cluster.backends.first().copied().into_iter().collect();
            service.cluster = Arc::new(BackendSet { backends: first, ..BackendSet::default() });
        }),
        ("that policies differ", |service| {
            std::mem::swap(&mut service.internal_policy, &mut service.external_policy);
        }),
        ("that a set may be empty", |service| {
            if service.local.backends.is_empty() {
                service.local = Arc::clone(&service.cluster);
            }
        }),
    ];
    for (what, mutate) in of_services {
        let found = all_cells(
            |text| text,
            |table| {
                let all: Vec<_> =
                    table.services.iter().map(|(id, one)| (*id, Arc::clone(one))).collect();
                for (id, service) in all {
                    let mut service = (*service).clone();
                    mutate(&mut service);
                    table.services.insert(id, Arc::new(service));
                }
            },
        );
        assert!(!found.wrong.is_empty(), "nobody misses {what}");
        println!("{what}: {} cells of {} are wrong", found.wrong.len(), found.possible);
    }
}

/// kube-proxy's firewall chain is passed by every client of a load balancer's address, those in the
/// cluster too, and of no other address.
#[test]
fn source_ranges_are_of_load_balancer_addresses_and_for_all_clients() {
    let text = objects(Policies::ALL[0], Scenario::ReadyBoth).replace(
        "#RANGES#",
        "loadBalancerSourceRanges: [192.0.2.0/24, 10.1.0.1/32, 'fd01::1/128']",
    );
    let mut bench = Bench::of(&compiled_of(&text).services);
    for (place, ipv4, admitted) in [
        (Place::Outside, true, true),
        (Place::Outside, false, false),
        (Place::OtherNode, true, false),
        (Place::PodHere, true, true),
        (Place::PodHere, false, true),
        (Place::BackendHere, true, false),
        (Place::Host, true, false),
    ] {
        for protocol in Protocol::ALL {
            let to = Frontend::of(Kind::LoadBalancer, ipv4).at();
            let before = bench.node.dropped(DropReason::SourceRange);
            let outcome = bench.outcome(place, protocol, to).expect("an outcome");
            let dropped = bench.node.dropped(DropReason::SourceRange) - before;
            assert_eq!(matches!(outcome, Outcome::To(_)), admitted, "{place:?} {ipv4}");
            assert_eq!(dropped, if admitted { 0 } else { FLOWS });
            for kind in [Kind::ExternalIp, Kind::ClusterIp] {
                let to = Frontend::of(kind, ipv4).at();
                let outcome = bench.outcome(place, protocol, to);
                assert!(matches!(outcome, Ok(Outcome::To(_))), "{kind:?} {place:?}: {outcome:?}");
            }
        }
    }
}
