//! From the cluster's state to the tables the workers read. Pure: the same changes give the same
//! result on any machine.
//!
//! A compiler keeps the state and takes changes; what compiling costs is in proportion to them. To
//! start from nothing is to take everything as a change. What did not change keeps its [`Arc`], so
//! that publishing a small change shares all the rest with the tables in force. Numbers
//! (identities, rules, services) stay with what they name for as long as it is there.
//!
//! Reading order: this file, [`dirt`] (what a change concerns), [`coming`] (what comes in order), [`selectors`] and [`claims`] (which
//! selectors match, and who has an address), [`naming`] and [`identities`] (who an address is),
//! [`policies`] and [`verdicts`] (who may speak to whom), [`affected`] (whose flows that changes),
//! [`drafts`], [`services`], [`host_ports`], [`listeners`], [`endpoints`], [`weights`] and [`maglev`] (which backend
//! a flow goes to), [`explain`] (why),
//! [`inventory`] (what there is, for people).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::panic::resume_unwind;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, mpsc};
use std::thread::ScopedJoinHandle;

use dataplane::identity::{Holder, Identity, IdentityTable};
use dataplane::lb::ServiceTable;
use dataplane::lpm::Prefix;
use dataplane::policy::{Direction, Policy, RuleId};
use hashbrown::{HashMap, HashSet};

use crate::audit::AbsentTargets;
use crate::config::UnknownPods;
use crate::model::{ObjectName, PodBandwidth, PolicyMode};
use crate::store::ClusterState;

pub mod affected;
mod claims;
mod coming;
mod dirt;
mod drafts;
mod endpoints;
pub mod explain;
mod health_checks;
mod host_ports;
mod identities;
mod interner;
pub mod inventory;
mod listeners;
pub mod maglev;
pub(crate) mod naming;
pub(crate) mod policies;
pub(crate) mod selectors;
mod services;
mod stateless;
mod verdicts;
mod warnings;
mod weights;

use claims::{Claims, NodeAddresses};
use coming::Coming;
use dirt::Dirt;
use drafts::Draft;
use identities::{Identities, Kind, Turn};
use naming::{Names, Who};
use policies::Policies;
use selectors::{Selector, Selectors};
use services::{DraftedOf, Owner, Services};
use verdicts::Verdicts;
use warnings::{Source, Told};
use weights::Weights;

pub use affected::Affected;
pub use explain::{Examined, Finding, Reading};
pub use health_checks::HealthCheck;
pub use policies::{RuleName, direction_name};
pub use selectors::BLOCKS_AT_CUTS_MAX;
pub use warnings::{Warning, Warnings};

/// From this many services on they are compiled in a second thread: most of it is Maglev's tables.
const SERVICES_APART: usize = 1000;

/// Of so many services beside identities the thread of these drafts one first: then both end at about
/// the same time in a large cluster, which has seven pods to a service.
const SERVICES_TO_ONE_HERE: usize = 4;

/// What the node itself contributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// The node's name, as Pods and EndpointSlices spell it.
    pub name: String,
    /// All its own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Those of `addresses` that serve node ports.
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// Node ports that the node redirects; a Service that asks for another is warned about.
    pub node_port_range: RangeInclusive<u16>,
    /// Local endpoints with their addresses. An endpoint is the truth about who has an address
    /// here; its Pod object, found by name, says what labels it has.
    pub endpoints: BTreeMap<ObjectName, BTreeSet<IpAddr>>,
    /// What those of them may that have no Pod object.
    pub unknown_pods: UnknownPods,
    /// Whether backends on other nodes answer clients themselves where a Service does not say.
    pub returns_directly: bool,
}

impl Default for NodeView {
    fn default() -> Self {
        Self {
            name: String::new(),
            addresses: BTreeSet::new(),
            node_port_addresses: BTreeSet::new(),
            node_port_range: crate::config::NODE_PORTS_DEFAULT,
            endpoints: BTreeMap::new(),
            unknown_pods: UnknownPods::default(),
            returns_directly: false,
        }
    }
}

/// A part of compiling, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Which selectors there are, and which match whom.
    Identities,
    /// Verdicts of the local pods.
    Policy,
    /// Services, their backends and frontends; beside the two before where there are many.
    Services,
}

/// The cluster's state and the tables that are compiled of it.
#[derive(Debug, Clone, Default)]
pub struct Compiled {
    /// Address to identity.
    pub identities: Arc<IdentityTable>,
    /// Verdicts by identity.
    pub policy: Arc<Policy>,
    /// Frontends and backends.
    pub services: Arc<ServiceTable>,
    /// Whose flows' cached decisions may come out otherwise than before the last compilation.
    /// Of services only what UDP flows are let go from, or no longer pass by: otherwise they choose
    /// backends for new flows only.
    pub affected: Affected,
    /// What is in force otherwise than it was probably meant.
    pub warnings: Warnings,
    /// Shared while services are compiled, when nothing changes it.
    state: Arc<ClusterState>,
    /// What is not in it yet.
    coming: Coming,
    node: NodeView,
    /// Names of namespaces and nodes, which pods share.
    names: HashSet<Arc<str>>,
    /// Changes that are not compiled yet.
    dirt: Dirt,
    node_changes: u64,
    /// Pods with host ports, of all nodes.
    with_host_ports: BTreeSet<ObjectName>,
    /// Namespaces that pods are in, with their number.
    pods_in: HashMap<Arc<str>, usize>,
    /// Shared while services are compiled, like the state.
    claims: Arc<Claims>,
    weights: Weights,
    node_addresses: Arc<NodeAddresses>,
    selectors: Selectors,
    known: Identities,
    policies: Policies,
    verdicts: Verdicts,
    balanced: Services,
}

impl Compiled {
    /// The cluster as last compiled; [`Self::whole_state`] has what was taken since as well.
    #[must_use]
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// The node as of the last compilation.
    #[must_use]
    pub fn node(&self) -> &NodeView {
        &self.node
    }

    /// Grows with every Node that comes, changes or goes, for those who keep what they made of them.
    #[must_use]
    pub fn node_changes(&self) -> u64 {
        self.node_changes
    }

    /// Whether every decision about a flow comes out as with `other`, so that cached ones stand:
    /// the tables' generation need not grow. (Services choose backends for new flows only.)
    #[must_use]
    pub fn decides_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.identities, &other.identities) && Arc::ptr_eq(&self.policy, &other.policy)
    }

    /// The identity to give a local endpoint's port: that of its first address. The addresses of
    /// one endpoint differ in identity only where an `ipBlock` contains one and not the other.
    #[must_use]
    pub fn endpoint_identity(&self, addresses: &[IpAddr]) -> Identity {
        addresses.first().map_or(Identity::WORLD, |address| self.identities.lookup(*address))
    }

    /// The rule behind a number; `None` for one that is not, or no longer, in force.
    #[must_use]
    pub fn rule_name(&self, rule: RuleId) -> Option<RuleName> {
        self.policies.rule_name(rule)
    }

    /// The policies that isolate `subject` in `direction`: the cause of a default deny. Empty for
    /// identities without a local pod.
    #[must_use]
    pub fn isolating(&self, subject: Identity, direction: Direction) -> &[ObjectName] {
        self.verdicts.isolating(subject, direction)
    }

    /// The policies that would isolate `subject` in `direction` if they were not under audit.
    #[must_use]
    pub fn audited(&self, subject: Identity, direction: Direction) -> &[ObjectName] {
        self.verdicts.audited(subject, direction)
    }

    /// Whether policy of `identity` is enforced here: some pod of this node has it.
    #[must_use]
    pub fn is_enforced_here(&self, identity: Identity) -> bool {
        self.known.local.contains_key(&identity)
    }

    /// Whether `address` is a pod's of this node, and policy toward and from it enforced here.
    #[must_use]
    pub fn is_local_address(&self, address: IpAddr) -> bool {
        let identity = self.identities.lookup(address);
        self.known.local.get(&identity).is_some_and(|addresses| addresses.contains(&address))
    }

    /// Whether `ipBlock`s name all addresses of a family, so that what is outside is told by its address.
    #[must_use]
    pub fn names_every_address(&self) -> bool {
        self.known.ranges().any(|(range, _)| range.length() == 0)
    }

    /// Whether `identity` is in force, and is pods'.
    #[must_use]
    pub fn is_of_pods(&self, identity: Identity) -> bool {
        let key = self.known.key(identity);
        key.is_some_and(|key| matches!(key.kind, Kind::Pod | Kind::UnknownPod { .. }))
    }

    /// What an identity stands for, for people: `host`, `world`, or the selectors that match.
    #[must_use]
    pub fn identity_name(&self, identity: Identity) -> String {
        self.known.name(identity, &self.selectors)
    }

    /// What is warned of since the last time, for a log, and how much more.
    pub fn take_fresh_warnings(&mut self) -> (Vec<Warning>, usize) {
        self.warnings.take_fresh()
    }

    /// What load balancers may ask of this node, by service.
    #[must_use]
    pub fn health_checks(&self) -> &Arc<BTreeMap<ObjectName, HealthCheck>> {
        self.balanced.health_checks()
    }

    /// Whether new connections should come to this node: its Node object, if there is one, is not about
    /// to go.
    #[must_use]
    pub fn is_eligible(&self) -> bool {
        self.state.nodes.get(&self.node.name).is_none_or(|node| !node.is_leaving)
    }

    /// Number of identities in force, reserved ones not counted.
    #[must_use]
    pub fn identity_count(&self) -> usize {
        self.known.len()
    }

    /// How often blocks of policies lie at a boundary of the address space, of
    /// [`BLOCKS_AT_CUTS_MAX`] at most.
    #[must_use]
    pub fn blocks_at_cuts(&self) -> usize {
        self.selectors.at_boundaries()
    }

    /// Whether the `ipBlock` found no room among those of all policies, and matches nothing.
    pub(crate) fn is_left_out(&self, cidr: &Prefix, except: &[Prefix]) -> bool {
        let left_out = self.selectors.left_out();
        let block = || Selector::Block { cidr: *cidr, except: except.to_vec() };
        !left_out.is_empty()
            && self.selectors.get(&block()).is_some_and(|id| left_out.contains(&id))
    }

    /// Compiles the changes taken since the last time, as `node` sees them. Identities and policy
    /// become what they are together: one without the other would judge wrongly.
    pub fn compile(&mut self, node: &NodeView) {
        self.compile_by_stages(node, |_| {});
    }

    /// The same; tells `ended` of each stage that is over, for those who time them.
    pub fn compile_by_stages(&mut self, node: &NodeView, mut ended: impl FnMut(Stage)) {
        self.whole_state();
        self.follow_node(node);
        self.note_services_of_nodes();
        self.affected = Affected::Nothing;
        if self.dirt.is_empty() {
            return;
        }
        let mut dirt = std::mem::take(&mut self.dirt);
        let mut turn = Turn::default();
        let services = std::mem::take(&mut dirt.services).into_iter().map(Owner::Service);
        let pods = std::mem::take(&mut dirt.host_ports).into_iter().map(Owner::Pod);
        let owners: Vec<Owner> = services.chain(pods).collect();
        let of_services = self.beside_services(&owners, |compiled| {
            compiled.compile_policy(&mut dirt, &mut turn, &mut ended);
        });
        of_services.into_iter().for_each(|(source, told)| self.warnings.set(source, told));
        ended(Stage::Services);
        self.warn_of_policies(&dirt.policies, &turn);
        self.warn_of_namespaces(&dirt.counted_namespaces, !dirt.policies.is_empty());
        self.warn_of_endpoints(&dirt.endpoints);
        self.warn_of_own_mode();
        self.affected = turn.affected;
        for address in self.balanced.take_let_go() {
            self.affected.add(address);
        }
        self.identities = Arc::clone(&self.known.table);
        self.policy = Arc::clone(&self.verdicts.policy);
        self.services = Arc::clone(&self.balanced.table);
    }

    /// Who addresses are, and the verdicts of the local pods.
    fn compile_policy(&mut self, dirt: &mut Dirt, turn: &mut Turn, ended: &mut impl FnMut(Stage)) {
        let mut uses = self.follow_policies(dirt);
        let blocks_changed = uses.added.iter().chain(&uses.dropped).any(|(_, one)| one.is_block());
        if blocks_changed {
            let moved = self.selectors.cut_address_space();
            turn.blocks_moved = !moved.in_again.is_empty() || !moved.left_out.is_empty();
            uses.added.extend(moved.in_again);
            uses.dropped.extend(moved.left_out);
            self.known.set_prefixes(&self.selectors, turn);
        }
        let addresses = std::mem::take(&mut dirt.addresses);
        let addresses = self.addresses_to_name(addresses, &dirt.namespaces, &uses);
        let names = self.names_of(&addresses);
        self.put_names(&addresses, names, turn);
        self.known.release(turn);
        ended(Stage::Identities);
        let unknown_pods = (self.node.unknown_pods, dirt.unknown_pods);
        self.verdicts.follow(&self.known, (&self.policies, &uses), unknown_pods, turn);
        ended(Stage::Policy);
    }

    /// Compiles these services and host ports and does `rest`: at once, where there are many. Gives what
    /// is told of them.
    fn beside_services(&mut self, owners: &[Owner], rest: impl FnOnce(&mut Self)) -> Told {
        if owners.len() < SERVICES_APART {
            rest(self);
            let of = DraftedOf {
                state: &self.state,
                node: &self.node,
                node_addresses: &self.node_addresses,
                weights: self.weights,
                claims: &self.claims,
            };
            return self.balanced.follow(owners, of);
        }
        let balanced = RwLock::new(std::mem::take(&mut self.balanced));
        let (state, claims) = (Arc::clone(&self.state), Arc::clone(&self.claims));
        let (node, node_addresses) = (self.node.clone(), Arc::clone(&self.node_addresses));
        let of = DraftedOf {
            state: &state,
            node: &node,
            node_addresses: &node_addresses,
            weights: self.weights,
            claims: &claims,
        };
        let (here, apart) = owners.split_at(owners.len() / SERVICES_TO_ONE_HERE);
        let draft = |owners: &[Owner]| read(&balanced).draft(owners, of);
        let (sender, drafted_here) = mpsc::sync_channel::<Vec<Draft>>(1);
        let (draft, put_into) = (&draft, &balanced);
        let follow = move || {
            let drafted_apart = draft(apart);
            // There are none only where their thread panicked, and this one's work goes with it.
            let drafts = drafted_here.recv().unwrap_or_default().into_iter().chain(drafted_apart);
            put_into.write().unwrap_or_else(PoisonError::into_inner).put(drafts, of)
        };
        let told = beside("xskiff-services", follow, || {
            // A panic here drops it, so that nobody waits for ever.
            let sender = sender;
            // There is room for it.
            let _ = sender.send(draft(here));
            rest(self);
        });
        self.balanced = balanced.into_inner().unwrap_or_else(PoisonError::into_inner);
        told
    }

    fn put_names(&mut self, addresses: &[IpAddr], mut names: Names, turn: &mut Turn) {
        let mut numbers: Vec<Option<Identity>> = vec![None; names.keys.len()];
        if !self.state.pods.is_empty() {
            self.known.expect_pods();
        }
        self.known.expect(addresses.iter().copied());
        for (place, (address, who)) in addresses.iter().copied().zip(names.who).enumerate() {
            let told = names.told.remove(&place).unwrap_or_default();
            self.warnings.set(Source::Address(address), told);
            let who = who.map(|Who { key, is_local, pod }| {
                let number = match numbers[key] {
                    Some(number) => self.known.acquire_again(number),
                    None => self.known.acquire(names.keys[key].clone(), turn),
                };
                numbers[key] = Some(number);
                (Holder { identity: number, pod }, is_local)
            });
            self.known.set(address, who, turn);
        }
    }

    fn warn_of_policies(&mut self, changed: &BTreeSet<ObjectName>, turn: &Turn) {
        let named = turn.port_names.iter().flat_map(|name| self.policies.users_of_port_name(name));
        let all = self.state.network_policies.keys().filter(|_| turn.blocks_moved);
        let concerned: BTreeSet<&ObjectName> = named.chain(changed).chain(all).collect();
        for name in concerned {
            let mut told = self.policies.unresolved_names(name, &self.known);
            told.extend(self.policies.without_room(name, &self.selectors));
            let policy = self.state.network_policies.get(name);
            told.extend(
                policy.and_then(|policy| complaint(format!("NetworkPolicy {name}"), &policy.mode)),
            );
            self.warnings.set(Source::Policy(name.clone()), told);
        }
    }

    /// A namespace selector cannot match labels that nobody has told us.
    fn warn_of_namespaces(&mut self, changed: &BTreeSet<Arc<str>>, policies_changed: bool) {
        let has_policies = !self.state.network_policies.is_empty();
        let all = self.pods_in.keys().filter(|_| policies_changed);
        let concerned: BTreeSet<&Arc<str>> = changed.iter().chain(all).collect();
        for namespace in concerned {
            let is_known = self.state.namespaces.contains_key(&**namespace);
            let mut told = BTreeSet::new();
            if has_policies && !is_known && self.pods_in.contains_key(namespace) {
                let message = "has no Namespace object, so selectors see no labels but its name, and none that \
                     asks for the lack of one picks it; add it";
                told.insert(Warning::new(format!("Namespace {namespace}"), message));
            }
            let object = self.state.namespaces.get(&**namespace);
            told.extend(
                object.and_then(|object| complaint(format!("Namespace {namespace}"), &object.mode)),
            );
            self.warnings.set(Source::Namespace(namespace.to_string()), told);
        }
    }

    /// Warns of slices that name pods which are not there, and of no others any more.
    pub fn warn_of_targets(&mut self, absent: &AbsentTargets) {
        let mut told = BTreeSet::new();
        for (slice, (pod, others)) in &absent.slices {
            let more = if *others > 0 { format!(", and {others} more") } else { String::new() };
            let message = format!(
                "names Pod {pod}, which is not there{more}; the endpoint is used as if it were"
            );
            told.insert(Warning::new(format!("EndpointSlice {slice}"), message));
        }
        if absent.left_out > 0 {
            let message = format!("{} more name Pods that are not there", absent.left_out);
            told.insert(Warning::new("EndpointSlices", message));
        }
        self.warnings.set(Source::Targets, told);
    }

    fn warn_of_own_mode(&mut self) {
        let node = self.state.nodes.get(&*self.node.name);
        let told = node.and_then(|node| complaint(format!("Node {}", node.name), &node.mode));
        self.warnings.set(Source::OwnNode, told.into_iter().collect());
    }

    fn warn_of_endpoints(&mut self, changed: &BTreeSet<ObjectName>) {
        for name in changed {
            let mut told = BTreeSet::new();
            if self.node.endpoints.contains_key(name) && !self.state.pods.contains_key(name) {
                let until = self.node.unknown_pods.explanation();
                let message = format!("has no Pod object; {until}");
                told.insert(Warning::new(format!("Endpoint {name}"), message));
            }
            let pod = self.state.pods.get(name).filter(|_| self.node.endpoints.contains_key(name));
            let bandwidth = pod.and_then(|pod| pod.bandwidth.as_deref());
            let complaints = bandwidth.into_iter().flat_map(PodBandwidth::complaints);
            told.extend(complaints.map(|why| Warning::new(format!("Pod {name}"), why)));
            self.warnings.set(Source::Endpoint(name.clone()), told);
        }
    }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Does both at once, `apart` in a thread of this name; where there is none to be had, one after the other.
fn beside<T: Send>(name: &str, mut apart: impl FnMut() -> T + Send, here: impl FnOnce()) -> T {
    let gave = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn_scoped(scope, &mut apart).ok();
        here();
        thread.map(joined)
    });
    gave.unwrap_or_else(apart)
}

/// What a thread gave; its panic is the caller's.
fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// An annotation that is no mode changes nothing, and is probably a slip.
fn complaint(object: String, mode: &PolicyMode) -> Option<Warning> {
    mode.complaint().map(|message| Warning::new(object, message))
}

/// Compiles `state` as seen from `node`, keeping what `previous` has in common with it.
#[must_use]
pub fn compile(state: &ClusterState, node: &NodeView, previous: &Compiled) -> Compiled {
    let mut next = previous.clone();
    for change in previous.state.changes_to(state) {
        next.take(change);
    }
    next.compile(node);
    next
}
