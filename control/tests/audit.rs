//! The audit finds nothing where tables say what objects say, and each table that is broken on
//! purpose.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use control::audit::{
    AbsentTargets, Audited, Auditor, CHANGES_MAX, DIFFERENCES_MAX, Difference, Moment, Round,
    SLICES_NAMED_MAX, check_endpoint,
};
use control::compile::{Compiled, NodeView, compile};
use control::manifests;
use control::model::{Kind, Object, ObjectKey, ObjectName, Pod};
use control::store::{Change, ClusterState};
use dataplane::address::{MacAddr, Protocol};
use dataplane::forwarding::{Forwarding, NextHop, NextHopId};
use dataplane::identity::{Holder, Identity, PodTag};
use dataplane::lb::{Frontend, FrontendKind, ServiceId};
use dataplane::policy::SubjectPolicy;
use dataplane::port::{Checksums, Port, PortId, PortKind};
use dataplane::tables::Tables;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Objects and the node that looks at them.
struct Cluster {
    state: ClusterState,
    node: NodeView,
}

fn tables(compiled: &Compiled) -> Tables {
    Tables {
        identities: Arc::clone(&compiled.identities),
        policy: Arc::clone(&compiled.policy),
        services: Arc::clone(&compiled.services),
        ..Tables::default()
    }
}

fn moment<'a>(cluster: &'a Cluster, compiled: &'a Compiled, tables: &'a Tables) -> Moment<'a> {
    Moment { state: &cluster.state, node: &cluster.node, compiled, tables }
}

/// Two namespaces, policies of every kind, a service with two backends and one without.
const OBJECTS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {tier: front}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: bank}}
---
{apiVersion: v1, kind: Node, metadata: {name: one},
 status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: two},
 status: {addresses: [{type: InternalIP, address: 10.0.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}},
 spec: {nodeName: one, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]},
 status: {phase: Running, podIPs: [{ip: 10.1.0.1}, {ip: 'fd01::1'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db},
  annotations: {xskiff.io/service-weight: '40'}},
 spec: {nodeName: two, containers: []}, status: {phase: Running, podIPs: [{ip: 10.1.1.1}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: clerk, namespace: bank, labels: {app: clerk}},
 spec: {nodeName: one, containers: []}, status: {phase: Running, podIPs: [{ip: 10.1.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: cart, namespace: shop, labels: {app: cart}},
 spec: {nodeName: one, containers: []}, status: {phase: Running, podIPs: [{ip: 10.1.0.3}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: shop},
 spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress],
  ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: bank}}}],
             ports: [{port: http}]}],
  egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}],
            ports: [{port: 5000, endPort: 6000}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy,
 metadata: {name: strict, namespace: shop, annotations: {xskiff.io/policy-mode: audit}},
 spec: {podSelector: {}, policyTypes: [Ingress]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop},
 spec: {type: NodePort, clusterIPs: [10.96.0.1], ports: [{port: 80, nodePort: 30080}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
 metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}},
 ports: [{port: 8080}], endpoints: [{addresses: [10.1.0.1], nodeName: one},
  {addresses: [10.1.1.1], nodeName: two}]}
---
{apiVersion: v1, kind: Service, metadata: {name: empty, namespace: bank},
 spec: {clusterIPs: [10.96.0.2], ports: [{port: 443}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: kubelet, namespace: bank},
 spec: {clusterIPs: [10.96.0.3], ports: [{port: 443}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
 metadata: {name: kubelet-1, namespace: bank, labels: {kubernetes.io/service-name: kubelet}},
 ports: [{port: 6443}], endpoints: [{addresses: [10.0.0.1], nodeName: one}]}
";

fn shop() -> Cluster {
    let state = manifests::parse(Path::new("objects.yaml"), OBJECTS).expect("good objects").state;
    let own = ip("10.0.0.1");
    let node = NodeView {
        name: "one".into(),
        addresses: [own].into(),
        node_port_addresses: [own].into(),
        endpoints: [("shop/web".parse().expect("a name"), [ip("10.1.0.1"), ip("fd01::1")].into())]
            .into(),
        ..NodeView::default()
    };
    Cluster { state, node }
}

/// What the audit finds once `breaking` has been at the tables.
fn found(breaking: impl FnOnce(&mut Tables)) -> Vec<Difference> {
    let cluster = shop();
    let compiled = compile(&cluster.state, &cluster.node, &Compiled::default());
    let mut tables = tables(&compiled);
    breaking(&mut tables);
    Auditor::whole(&moment(&cluster, &compiled, &tables)).differences
}

fn assert_found(found: &[Difference], audited: Audited, object: &str) {
    let named = found.iter().any(|one| one.audited == audited && one.object == object);
    assert!(named, "expected {audited:?} of {object}, found {found:#?}");
    let others: Vec<_> = found.iter().filter(|one| one.audited != audited).collect();
    // A wrong identity is judged wrongly as well.
    let may_follow = |one: &&&Difference| one.audited == Audited::Policy;
    assert!(others.iter().all(|one| may_follow(&one)), "{others:#?}");
}

fn frontend(address: &str, l4_port: u16) -> Frontend {
    Frontend { address: ip(address), protocol: Protocol::TCP, l4_port }
}

#[test]
fn tables_that_say_what_the_objects_say_differ_in_nothing() {
    assert_eq!(found(|_| {}), []);
}

#[test]
fn an_address_that_is_somebody_else_is_found() {
    let clerk = ip("10.1.0.2");
    let swapped = found(|tables| {
        let exact = &mut Arc::make_mut(&mut tables.identities).exact;
        let other = *exact.get(&ip("10.1.1.1")).expect("a pod");
        exact.insert(clerk, other);
    });
    assert_found(&swapped, Audited::Identities, "Pod bank/clerk");
    let gone = found(|tables| {
        Arc::make_mut(&mut tables.identities).exact.remove(&clerk);
    });
    assert_found(&gone, Audited::Identities, "Pod bank/clerk");
    let node = found(|tables| {
        Arc::make_mut(&mut tables.identities).exact.insert(ip("10.0.0.2"), Identity::HOST.into());
    });
    assert_found(&node, Audited::Identities, "address 10.0.0.2");
}

/// Flows would be taken for another pod's, and reset, or for this one's, and not.
#[test]
fn an_address_that_bears_the_mark_of_another_pod_or_none_is_found() {
    for wrong in [PodTag::Of(7), PodTag::Unknown] {
        for (address, object) in [("10.1.0.2", "Pod bank/clerk"), ("fd01::1", "Pod shop/web")] {
            let found = found(|tables| {
                let exact = &mut Arc::make_mut(&mut tables.identities).exact;
                let held = *exact.get(&ip(address)).expect("a pod");
                exact.insert(ip(address), Holder { pod: wrong, ..held });
            });
            assert_found(&found, Audited::Identities, object);
            assert!(found.iter().all(|one| one.object == object), "{found:#?}");
        }
    }
    let node = found(|tables| {
        let exact = &mut Arc::make_mut(&mut tables.identities).exact;
        let held = *exact.get(&ip("10.0.0.2")).expect("a node");
        exact.insert(ip("10.0.0.2"), Holder { pod: PodTag::Of(7), ..held });
    });
    assert_found(&node, Audited::Identities, "address 10.0.0.2");
}

#[test]
fn an_address_that_nobody_has_any_more_is_found() {
    let stray = found(|tables| {
        Arc::make_mut(&mut tables.identities).exact.insert(ip("10.1.0.77"), Identity::HOST.into());
    });
    assert_found(&stray, Audited::Identities, "address 10.1.0.77");
}

#[test]
fn a_range_that_is_lost_is_found() {
    let lost = found(|tables| Arc::make_mut(&mut tables.identities).prefixes = Default::default());
    assert_found(&lost, Audited::Identities, "address 192.0.2.0");
}

#[test]
fn verdict_tables_that_are_lost_or_allow_more_or_less_are_found() {
    type Breaking = fn(&mut SubjectPolicy);
    let breakings: [(Breaking, &str, &str); 5] = [
        (|web| *web = SubjectPolicy::default(), "10.1.0.1", "Pod shop/web"),
        (|web| web.ingress = Some(Arc::default()), "10.1.0.1", "Pod shop/web"),
        (|web| std::mem::swap(&mut web.ingress, &mut web.egress), "10.1.0.1", "Pod shop/web"),
        (|web| web.egress_audit = Some(Arc::default()), "10.1.0.1", "Pod shop/web"),
        (|cart| cart.ingress_audit = None, "10.1.0.3", "Pod shop/cart"),
    ];
    for (breaking, address, pod) in breakings {
        let found = found(|tables| {
            let identity = tables.identities.lookup(ip(address));
            let subjects = &mut Arc::make_mut(&mut tables.policy).subjects;
            breaking(subjects.get_mut(&identity).expect("a subject"));
        });
        assert_found(&found, Audited::Policy, pod);
    }
}

#[test]
fn frontends_that_are_lost_lead_elsewhere_or_are_nobodys_are_found() {
    let services = |tables: &mut Tables, change: &dyn Fn(&mut dataplane::lb::ServiceTable)| {
        change(Arc::make_mut(&mut tables.services));
    };
    for lost in [frontend("10.96.0.1", 80), frontend("10.0.0.1", 30080)] {
        let found = found(|tables| {
            services(tables, &|services| {
                services.frontends.remove(&lost);
            });
        });
        assert_found(&found, Audited::Services, "Service shop/web");
    }
    let elsewhere = found(|tables| {
        services(tables, &|services| {
            let other = *services.frontends.get(&frontend("10.96.0.2", 443)).expect("a frontend");
            services.frontends.insert(frontend("10.96.0.1", 80), other);
        });
    });
    assert_found(&elsewhere, Audited::Services, "Service shop/web");
    let nobodys = found(|tables| {
        services(tables, &|services| {
            let kind = FrontendKind::ClusterIp;
            services.frontends.insert(frontend("10.96.0.9", 80), (ServiceId(0), kind));
        });
    });
    assert!(nobodys[0].detail.contains("10.96.0.9"), "{nobodys:?}");
}

#[test]
fn what_is_not_led_here_for_a_frontend_and_what_is_in_vain_are_found() {
    type Breaking = fn(&mut dataplane::lb::ServiceTable);
    let breakings: [(Breaking, &str); 5] = [
        (|table| _ = table.node_ports.remove(&(Protocol::TCP, 30080)), "Service shop/web"),
        (|table| _ = table.addresses.remove(&ip("10.96.0.1")), "Service shop/web"),
        (|table| _ = table.host_backends.remove(&(Protocol::TCP, 6443)), "Service bank/kubelet"),
        (
            |table| _ = table.node_ports.insert((Protocol::UDP, 30080), ServiceId(0)),
            "node port 30080/udp",
        ),
        (|table| _ = table.addresses.insert(ip("10.0.0.9"), ()), "address 10.0.0.9"),
    ];
    for (breaking, object) in breakings {
        let found = found(|tables| breaking(Arc::make_mut(&mut tables.services)));
        assert_found(&found, Audited::Services, object);
        assert!(found.iter().all(|one| one.object == object), "{found:#?}");
    }
    // A node's address is never a service's as a whole, and a ClusterIP is nothing outside.
    let own: [(Breaking, &str); 3] = [
        (|table| _ = table.addresses.insert(ip("10.0.0.1"), ()), "address 10.0.0.1"),
        (|table| _ = table.addresses.insert(ip("10.0.0.2"), ()), "address 10.0.0.2"),
        (|table| _ = table.external.insert(ip("10.96.0.1"), ()), "address 10.96.0.1"),
    ];
    for (breaking, object) in own {
        let found = found(|tables| breaking(Arc::make_mut(&mut tables.services)));
        assert_found(&found, Audited::Services, object);
    }
}

#[test]
fn backends_that_are_lost_or_never_chosen_are_found() {
    let change = |change: &dyn Fn(&mut dataplane::lb::BackendSet)| {
        found(|tables| {
            let id = tables.services.frontends.get(&frontend("10.96.0.1", 80)).expect("there").0;
            let services = Arc::make_mut(&mut tables.services);
            let mut service = dataplane::lb::Service::clone(services.get(id).expect("a service"));
            change(Arc::make_mut(&mut service.cluster));
            services.services.insert(id, Arc::new(service));
        })
    };
    let lost = change(&|set| set.backends = set.backends[..1].into());
    assert_found(&lost, Audited::Services, "Service shop/web");
    // The pod of the second has a weight of its own, and that of the first has none.
    for (place, weight) in [(0, 7), (1, 100), (1, 41)] {
        let weighs = change(&|set| set.backends[place].weight = weight);
        assert_found(&weighs, Audited::Services, "Service shop/web");
        assert!(weighs[0].detail.contains(&format!("weighs {weight}")), "{weighs:?}");
    }
    let unused = change(&|set| set.maglev.fill(0));
    assert!(unused[0].detail.contains("never chosen"), "{unused:?}");
    let nowhere = change(&|set| set.maglev.fill(9));
    assert!(nowhere[0].detail.contains("leads to none"), "{nowhere:?}");
}

/// Slices that name pods which are not there, with endpoints that nobody has for a pod's.
fn aimless(pods: &str, slices: &[(&str, &str)]) -> ClusterState {
    let slice = |(name, endpoints): &(&str, &str)| {
        format!(
            "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,\n\
             metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: web}}}},\n\
             ports: [{{port: 8080}}], endpoints: [{endpoints}]}}\n"
        )
    };
    let service = "---\n{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop},\n\
                   spec: {clusterIPs: [10.96.0.1], ports: [{port: 80}]}}\n";
    let text = pods.to_owned() + service + &slices.iter().map(slice).collect::<String>();
    manifests::parse(Path::new("objects.yaml"), &text).expect("good objects").state
}

fn endpoint(address: &str, kind: &str, name: &str) -> String {
    format!(
        "{{addresses: [{address}], targetRef: {{kind: {kind}, name: {name}, namespace: shop}}}}"
    )
}

#[test]
fn a_slice_that_names_an_absent_pod_is_told_once_when_two_rounds_found_it_and_goes_on_being_used() {
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop},\n\
               spec: {containers: []}, status: {phase: Running, podIP: 10.1.0.1}}\n";
    let all = [
        endpoint("10.1.0.1", "Pod", "web"),
        endpoint("10.1.0.2", "Pod", "gone"),
        endpoint("10.1.0.3", "Pod", "gone-too"),
        endpoint("10.1.0.4", "Node", "elsewhere"),
        "{addresses: [10.1.0.5]}".to_owned(),
    ];
    let (some, all) = (all[0].clone(), all.join(", "));
    let node = NodeView { name: "one".into(), ..NodeView::default() };
    let round = |state: &ClusterState, compiled: &Compiled| {
        let tables = tables(compiled);
        Auditor::whole(&Moment { state, node: &node, compiled, tables: &tables })
    };
    let state = aimless(pod, &[("web-1", &all), ("web-2", &some)]);
    let mut compiled = compile(&state, &node, &Compiled::default());
    compiled.take_fresh_warnings();
    let first = round(&state, &compiled);
    assert_eq!(first.found, 0, "{:?}", first.differences);
    let nothing = first.absent_targets.still(&Round::default().absent_targets);
    assert_eq!(nothing, Round::default().absent_targets, "one round may have come too early");
    let second = round(&state, &compiled);
    for _ in 0..2 {
        compiled.warn_of_targets(&second.absent_targets.still(&first.absent_targets));
    }
    let (fresh, left_out) = compiled.take_fresh_warnings();
    let told: Vec<String> = fresh.iter().map(ToString::to_string).collect();
    let wanted = "EndpointSlice shop/web-1: names Pod shop/gone, which is not there, and 1 more; the \
                  endpoint is used as if it were";
    assert_eq!((told, left_out), (vec![wanted.to_owned()], 0));
    assert!(compiled.warnings.iter().any(|one| one.to_string() == wanted));
    let id = compiled.services.frontends.get(&frontend("10.96.0.1", 80)).expect("there").0;
    let service = compiled.services.get(id).expect("a service");
    assert_eq!(service.cluster.backends.len(), 5, "all are used");

    // They come, and nothing is told any more.
    let mut whole = state.clone();
    for name in ["gone", "gone-too"] {
        let known = state.pods.values().next().expect("one pod").clone();
        let name = ObjectName::new("shop", name);
        let pod = Pod { name: name.clone(), addresses: Box::default(), ..*known };
        whole.pods.insert(name, pod.into());
    }
    let mut compiled = compile(&whole, &node, &compiled);
    let third = round(&whole, &compiled);
    compiled.warn_of_targets(&third.absent_targets.still(&second.absent_targets));
    assert!(compiled.warnings.iter().all(|one| !one.object.starts_with("EndpointSlice")));
}

#[test]
fn where_no_pod_is_known_none_is_missed_and_of_many_slices_some_are_named() {
    let node = NodeView::default();
    let found = |state: &ClusterState| {
        let compiled = compile(state, &node, &Compiled::default());
        let tables = tables(&compiled);
        Auditor::whole(&Moment { state, node: &node, compiled: &compiled, tables: &tables })
            .absent_targets
    };
    let gone = endpoint("10.1.0.2", "Pod", "gone");
    let names: Vec<String> =
        (0..SLICES_NAMED_MAX + 9).map(|number| format!("web-{number}")).collect();
    let slices: Vec<(&str, &str)> = names.iter().map(|name| (&**name, &*gone)).collect();
    assert_eq!(found(&aimless("", &slices)), AbsentTargets::default());
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: other, namespace: shop},\n\
               spec: {containers: []}, status: {phase: Running, podIP: 10.1.0.1}}\n";
    let absent = found(&aimless(pod, &slices));
    assert_eq!((absent.slices.len(), absent.left_out), (SLICES_NAMED_MAX, 9));
    let mut compiled = Compiled::default();
    compiled.warn_of_targets(&absent);
    assert_eq!(compiled.warnings.len(), SLICES_NAMED_MAX + 1);
    assert!(compiled.warnings.iter().any(|one| one.message.starts_with("9 more name Pods")));
}

#[test]
fn a_round_in_small_steps_finds_what_a_whole_one_does_and_begins_anew() {
    let cluster = shop();
    let compiled = compile(&cluster.state, &cluster.node, &Compiled::default());
    let mut tables = tables(&compiled);
    Arc::make_mut(&mut tables.identities).exact.remove(&ip("10.1.0.2"));
    let moment = moment(&cluster, &compiled, &tables);
    let whole = Auditor::whole(&moment);
    let mut auditor = Auditor::default();
    for _ in 0..2 {
        let mut steps = 0;
        let round = loop {
            steps += 1;
            if let Some(round) = auditor.step(&moment, || true) {
                break round;
            }
        };
        assert!(steps > 10, "one object a step");
        assert_eq!(round, whole);
    }
}

#[test]
fn what_changes_in_the_midst_of_a_round_is_looked_at_as_it_is_by_then() {
    let mut cluster = shop();
    let before = compile(&cluster.state, &cluster.node, &Compiled::default());
    let cart =
        cluster.state.pods.get(&"shop/cart".parse().expect("a name")).expect("there").clone();
    let next = Pod { name: ObjectName::new("shop", "next"), terminating: false, ..*cart.clone() };
    let ending = Pod { terminating: true, ..*cart };
    let changes = [ending, next].map(|pod| Change::Set(Object::from(pod)));
    // After as many looks as a round takes, it is over: until then, `next` comes at each moment.
    for looks in 0.. {
        let mut auditor = Auditor::default();
        let tables_before = tables(&before);
        let moment_before = moment(&cluster, &before, &tables_before);
        let mut rounds = (0..looks).filter_map(|_| auditor.step(&moment_before, || true));
        if rounds.next().is_some() {
            assert!(looks > 50, "{looks}");
            return;
        }
        let known = cluster.state.clone();
        for change in &changes {
            auditor.note(change);
            cluster.state.apply(change.clone());
        }
        let compiled = compile(&cluster.state, &cluster.node, &Compiled::default());
        let tables_now = tables(&compiled);
        let moment_now = moment(&cluster, &compiled, &tables_now);
        let round = std::iter::from_fn(|| Some(auditor.step(&moment_now, || true)));
        let round = round.flatten().next().expect("a round ends");
        assert_eq!(round.differences, [], "after {looks} looks");
        cluster.state = known;
    }
}

#[test]
fn where_more_changes_at_once_than_can_wait_a_round_begins_anew() {
    let cluster = shop();
    let compiled = compile(&cluster.state, &cluster.node, &Compiled::default());
    let mut tables = tables(&compiled);
    Arc::make_mut(&mut tables.identities).exact.remove(&ip("10.1.0.2"));
    let moment = moment(&cluster, &compiled, &tables);
    let mut auditor = Auditor::default();
    (0..9).for_each(|_| assert_eq!(auditor.step(&moment, || true), None));
    let change = Change::Gone(ObjectKey::new(Kind::Pod, ObjectName::new("shop", "gone")));
    (0..=CHANGES_MAX).for_each(|_| auditor.note(&change));
    let steps =
        (0..CHANGES_MAX).map_while(|_| auditor.step(&moment, || true).is_none().then_some(()));
    assert!(steps.count() < 1000, "nothing waits");
    assert_eq!(Auditor::whole(&moment).found, 1);
}

#[test]
fn a_thousand_differences_are_counted_and_some_are_told() {
    let mut round = Round::default();
    (0..1000).for_each(|_| round.note(Audited::Services, "Service a/b", "is wrong"));
    assert_eq!((round.found, round.differences.len()), (1000, DIFFERENCES_MAX));
}

#[test]
fn endpoints_whose_port_is_lost_strange_or_led_past_are_found() {
    let [pod, port]: [_; 2] = [ip("10.1.0.1"), ip("10.1.0.9")];
    let named = |kind, addresses: &[IpAddr]| {
        Some(Port {
            name: "veth1".into(),
            kind,
            mac: MacAddr::default(),
            mtu: 1500,
            checksums: Checksums::Complete,
            addresses: addresses.into(),
        })
    };
    let hop = |port| NextHop {
        port,
        to_host: false,
        source: MacAddr::default(),
        destination: None,
        mtu: 1500,
        neighbour: pod,
    };
    let with = |own: Option<Port>, leads_to: PortId| {
        let forwarding = Forwarding {
            next_hops: vec![hop(leads_to)],
            endpoints: [(pod, NextHopId(0))].into_iter().collect(),
            ..Forwarding::default()
        };
        let forwarding = Arc::new(forwarding);
        Tables { ports: [own].into(), forwarding, ..Tables::default() }
    };
    let checked = |tables: &Tables| check_endpoint(tables, PortId(0), &[pod]);
    assert_eq!(checked(&with(named(PortKind::Pod, &[pod]), PortId(0))), Ok(()));
    for (own, leads_to, told) in [
        (None, PortId(0), "in no table"),
        (named(PortKind::Uplink, &[pod]), PortId(0), "of kind Uplink"),
        (named(PortKind::Pod, &[pod, port]), PortId(0), "should let speak"),
        (named(PortKind::Pod, &[pod]), PortId(1), "10.1.0.1 does not lead to veth1"),
    ] {
        let error = checked(&with(own, leads_to)).unwrap_err();
        assert!(error.contains(told), "{error}");
    }
}
