//! What objects that lie, or are too many, may not do: take the policy of a pod away, pass for this node,
//! or fill the node's memory.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use control::audit::{Auditor, Moment};
use control::compile::{BLOCKS_AT_CUTS_MAX, Compiled, NodeView, Warnings, compile};
use control::manifests;
use control::model::ObjectName;
use control::store::ClusterState;
use dataplane::address::Protocol;
use dataplane::identity::Identity;
use dataplane::policy::{Direction, Query, RuleId};
use dataplane::tables::Tables;

/// `shop/db` is a local endpoint that allows one range alone.
const SHOP: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Node, metadata: {name: one}, status: {addresses: [
  {type: InternalIP, address: 10.0.0.1}, {type: ExternalIP, address: 203.0.113.7}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop},
 spec: {nodeName: one, containers: []}, status: {phase: Running, podIPs: [{ip: 10.1.0.5}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a-db, namespace: shop},
 spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}}
";

/// Names the pod's address as its own.
const STALE_NODE: &str = "
{apiVersion: v1, kind: Node, metadata: {name: stale},
 status: {addresses: [{type: InternalIP, address: 10.1.0.5}]}}
";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

fn parse(text: &str) -> ClusterState {
    manifests::parse(Path::new("objects.yaml"), text).expect("good objects").state
}

struct World {
    state: ClusterState,
    node: NodeView,
    compiled: Compiled,
}

impl World {
    fn of(text: &str) -> Self {
        let node = NodeView {
            name: "one".into(),
            addresses: [ip("10.0.0.1")].into(),
            endpoints: [(name("db"), [ip("10.1.0.5")].into())].into(),
            ..NodeView::default()
        };
        let mut world =
            Self { state: ClusterState::default(), node, compiled: Compiled::default() };
        world.becomes(&[text]);
        world
    }

    /// These objects are there, and no others.
    fn becomes(&mut self, texts: &[&str]) {
        self.state = parse(&texts.join("\n---\n"));
        self.compile();
    }

    fn compile(&mut self) {
        self.compiled = compile(&self.state, &self.node, &self.compiled);
    }

    /// Whether `shop/db` may be reached from there, and why.
    fn reaches(&self, from: &str) -> (bool, RuleId) {
        let identities = &self.compiled.identities;
        let (subject, peer) = (identities.lookup(ip("10.1.0.5")), identities.lookup(ip(from)));
        let query = Query { subject, peer, protocol: Protocol::TCP, l4_port: 80 };
        let verdict = self.compiled.policy.judge(Direction::Ingress, &query);
        (verdict.allowed, verdict.rule)
    }

    fn warnings(&self) -> &Warnings {
        &self.compiled.warnings
    }

    fn warns(&self, object: &str, of: &str) -> bool {
        let mut all = self.warnings().iter();
        all.any(|warning| warning.object == object && warning.message.contains(of))
    }

    fn assert_audited(&self) {
        let tables = Tables {
            identities: Arc::clone(&self.compiled.identities),
            policy: Arc::clone(&self.compiled.policy),
            services: Arc::clone(&self.compiled.services),
            ..Tables::default()
        };
        let (state, node, compiled) = (&self.state, &self.node, &self.compiled);
        let round = Auditor::whole(&Moment { state, node, compiled, tables: &tables });
        assert_eq!(round.differences, []);
    }
}

#[test]
fn a_node_object_that_names_a_local_pods_address_does_not_take_its_policy_away() {
    let mut world = World::of(SHOP);
    assert_eq!(world.reaches("198.51.100.1"), (false, RuleId::DEFAULT_DENY));
    // A folder of manifests is refused for it; an API server takes it.
    world.state.nodes.extend(parse(STALE_NODE).nodes);
    world.compile();
    assert_eq!(world.reaches("198.51.100.1"), (false, RuleId::DEFAULT_DENY));
    assert!(world.warns("Node stale", "10.1.0.5"), "{:?}", world.warnings());
    world.assert_audited();
    // Without the endpoint it is the node's word that counts.
    world.node.endpoints.clear();
    world.compile();
    assert_eq!(world.compiled.identities.lookup(ip("10.1.0.5")), Identity::REMOTE_NODE);
    world.assert_audited();
}

#[test]
fn only_what_the_kernel_says_is_this_nodes_is_let_in_as_this_node() {
    let world = World::of(SHOP);
    assert_eq!(world.reaches("10.0.0.1"), (true, RuleId::OWN_NODE));
    assert_eq!(world.reaches("203.0.113.7"), (false, RuleId::DEFAULT_DENY));
    assert_eq!(world.compiled.node_of(ip("203.0.113.7")), Some("one"));
    world.assert_audited();
}

/// A policy with so many blocks of everything, each but for another address.
fn flood(policy: &str, blocks: usize) -> String {
    let mut peers = String::new();
    for number in 0..blocks {
        let [high, low] = [number / 256, number % 256];
        let except = format!("198.18.{high}.{low}/32");
        write!(peers, "{{ipBlock: {{cidr: 0.0.0.0/0, except: [{except}]}}}},").expect("text");
    }
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
         metadata: {{name: {policy}, namespace: shop}}, \
         spec: {{podSelector: {{matchLabels: {{app: none}}}}, ingress: [{{from: [{peers}]}}]}}}}"
    )
}

#[test]
fn blocks_that_lie_in_each_other_without_end_are_left_out_and_named_and_the_rest_goes_on() {
    let mut world = World::of(SHOP);
    world.becomes(&[SHOP, &flood("b-flood", 2100)]);
    let used = world.compiled.blocks_at_cuts();
    assert!(used > BLOCKS_AT_CUTS_MAX / 2 && used <= BLOCKS_AT_CUTS_MAX, "{used}");
    assert!(world.warns("NetworkPolicy shop/b-flood", "ipBlocks allow nothing"));
    assert!(!world.warns("NetworkPolicy shop/a-db", ""), "what was there before has its room");
    assert!(world.reaches("192.0.2.1").0 && !world.reaches("198.51.100.1").0);
    world.assert_audited();
    world.becomes(&[SHOP]);
    assert_eq!(world.compiled.blocks_at_cuts(), 1);
    assert!(!world.warns("NetworkPolicy shop/b-flood", ""));
    assert!(world.reaches("192.0.2.1").0 && !world.reaches("198.51.100.1").0);
    world.assert_audited();
}

/// Pods of namespaces that are not restricted may come.
const OPEN_TO_UNRESTRICTED: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: b-db, namespace: shop},
 spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [
  {key: restricted, operator: DoesNotExist},
  {key: kubernetes.io/metadata.name, operator: NotIn, values: [other]}]}}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: guest, namespace: evil},
 spec: {nodeName: two, containers: []}, status: {phase: Running, podIPs: [{ip: 10.1.1.9}]}}
";

#[test]
fn a_namespace_that_is_not_known_is_not_taken_for_one_that_lacks_a_label() {
    let mut world = World::of(SHOP);
    world.becomes(&[SHOP, OPEN_TO_UNRESTRICTED]);
    assert!(!world.reaches("10.1.1.9").0);
    world.assert_audited();
    for (labels, may) in [("{}", true), ("{restricted: 'yes'}", false)] {
        let evil = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: evil, labels: {labels}}}}}"
        );
        world.becomes(&[SHOP, OPEN_TO_UNRESTRICTED, &evil]);
        assert_eq!(world.reaches("10.1.1.9").0, may, "{labels}");
        world.assert_audited();
    }
}
