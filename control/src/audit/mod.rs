//! Compares what is in force with what the cluster's objects say, all the time, a little at a time.
//!
//! The compiler works by differences and remembers much; this reads the objects anew, plainly, with
//! none of that memory, and asks the tables as a worker does. It reads only: who finds a difference
//! compiles from nothing, and says what was wrong ([`Difference`]).
//!
//! Reading order: this file (rounds and their stages), [`index`] (which objects to look at),
//! [`objects`] (what they say), [`identities`], [`policies`], [`services`], [`endpoints`] (what the tables say to that), [`targets`] (pods
//! that slices name in vain).

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::IpAddr;

use dataplane::address_map;
use dataplane::identity::Identity;
use dataplane::shared_map;
use dataplane::tables::Tables;
use hashbrown::HashMap;

use crate::compile::{Compiled, NodeView};
use crate::model::{Kind, ObjectKey, ObjectName};
use crate::store::{Change, ClusterState};

mod endpoints;
mod identities;
mod index;
mod objects;
mod policies;
mod services;
mod targets;

pub use endpoints::check_endpoint;
use index::Index;
use objects::{Holder, Selectors};
pub use targets::{AbsentTargets, SLICES_NAMED_MAX};

/// Differences that one round tells; more are counted.
pub const DIFFERENCES_MAX: usize = 64;
/// Changed objects that wait to be read anew. Where more come at once, a round that begins anew is done
/// sooner.
pub const CHANGES_MAX: usize = 1 << 16;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Audited {
    /// Who an address is, and which pod.
    Identities,
    /// What policy says between two addresses.
    Policy,
    /// Frontends, what of them is told to others, backends and their weights.
    Services,
    /// Local endpoints: their ports and the way to them.
    Endpoints,
    /// What each worker has adopted.
    Workers,
    /// What the kernel holds for us: attached programs, links.
    Kernel,
}

impl Audited {
    /// Everything that is compared.
    pub const ALL: [Self; 6] = [
        Self::Identities,
        Self::Policy,
        Self::Services,
        Self::Endpoints,
        Self::Workers,
        Self::Kernel,
    ];

    /// The word for it, as metrics and people have it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Identities => "identities",
            Self::Policy => "policy",
            Self::Services => "services",
            Self::Endpoints => "endpoints",
            Self::Workers => "workers",
            Self::Kernel => "kernel",
        }
    }
}

/// Something that is in force otherwise than the objects say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where.
    pub audited: Audited,
    /// The object whose tables are wrong: `Pod shop/web-0`.
    pub object: String,
    /// What is expected, and what is there.
    pub detail: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.object, self.detail, self.audited.label())
    }
}

/// What is compared with each other, at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// The objects.
    pub state: &'a ClusterState,
    /// The node.
    pub node: &'a NodeView,
    /// What was made of both: names for numbers.
    pub compiled: &'a Compiled,
    /// What workers were given.
    pub tables: &'a Tables,
}

/// A round that is over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Round {
    /// Things that were compared.
    pub checked: u64,
    /// Differences that were found.
    pub found: u64,
    /// The first [`DIFFERENCES_MAX`] of them.
    pub differences: Vec<Difference>,
    /// Pods that slices name in vain: no difference, since tables say what the slices say.
    pub absent_targets: AbsentTargets,
}

impl Round {
    /// Notes a difference.
    pub fn note(&mut self, audited: Audited, object: impl Into<String>, detail: impl Into<String>) {
        self.found += 1;
        if self.differences.len() < DIFFERENCES_MAX {
            let (object, detail) = (object.into(), detail.into());
            self.differences.push(Difference { audited, object, detail });
        }
    }
}

/// How far a round has come; within a stage, the last name that was looked at.
#[derive(Debug, Default)]
enum Stage {
    #[default]
    Begin,
    /// Objects are read for the index: pods, then nodes, services, slices and policies.
    ReadPods(Option<ObjectName>),
    ReadNodes(Option<String>),
    ReadServices(Option<ObjectName>),
    ReadSlices(Option<ObjectName>),
    ReadPolicies(Option<ObjectName>),
    Pods(Option<ObjectName>),
    Nodes(Option<String>),
    Endpoints(Option<ObjectName>),
    Blocks(Option<ObjectName>),
    /// Addresses that the table knows. What moves in it meanwhile may be missed until the next round.
    Strays(address_map::Place),
    /// Pairs of a subject and a peer, by their places in the round's lists.
    Pairs(usize, usize),
    Services(Option<ObjectName>),
    /// Slices, for whom they name.
    Targets(Option<ObjectName>),
    /// Frontends that the table knows, likewise.
    StrayFrontends(shared_map::Place),
    /// L4 ports on the node's addresses, and addresses of services, likewise.
    StrayNodePorts(shared_map::Place),
    StrayAddresses(address_map::Place),
    /// What was read goes a little at a time, too: it is as much as there are pods.
    Forget,
}

/// Goes round and round over all objects.
#[derive(Debug, Default)]
pub struct Auditor {
    stage: Stage,
    /// What changed since it was read.
    changed: VecDeque<ObjectKey>,
    index: Index,
    selectors: Selectors,
    /// An address of each identity that was met, of either family, to ask policy about.
    peers: BTreeMap<(Identity, bool), (IpAddr, Holder)>,
    /// The same for pods of this node.
    subjects: BTreeMap<(Identity, bool), (IpAddr, Holder)>,
    /// By address, what those pods weigh as backends that have a weight of their own.
    weights: HashMap<IpAddr, u16>,
    round: Round,
}

impl Auditor {
    /// Goes on until `is_over`, which is asked after each object, or until the round is over: then
    /// it is told. At least one object is looked at.
    pub fn step(
        &mut self,
        moment: &Moment<'_>,
        mut is_over: impl FnMut() -> bool,
    ) -> Option<Round> {
        loop {
            if let Some(round) = self.next(moment) {
                return Some(round);
            }
            if is_over() {
                return None;
            }
        }
    }

    /// One round from its beginning to its end.
    #[must_use]
    pub fn whole(moment: &Moment<'_>) -> Round {
        let mut auditor = Self::default();
        loop {
            if let Some(round) = auditor.next(moment) {
                return round;
            }
        }
    }

    /// Notes what changes, before the step that sees it so.
    pub fn note(&mut self, change: &Change) {
        // Nothing that was read is of use before a round and after it.
        if matches!(self.stage, Stage::Begin | Stage::Forget) {
            return;
        }
        self.changed.push_back(change.key());
        if self.changed.len() > CHANGES_MAX {
            *self = Self::default();
        }
    }

    /// Takes out one thing that was read; whether there was any.
    fn forget_one(&mut self) -> bool {
        self.index.forget_one()
            || self.selectors.forget_one()
            || self.peers.pop_first().is_some()
            || self.subjects.pop_first().is_some()
    }

    /// Reads an object as it is now.
    fn read(&mut self, state: &ClusterState, ObjectKey { kind, name }: &ObjectKey) {
        match kind {
            Kind::Pod => state.pod(name).into_iter().for_each(|pod| self.index.note_pod(pod)),
            Kind::Node => {
                let node = state.nodes.get(&*name.name);
                node.into_iter().for_each(|node| self.index.note_node(node));
            }
            Kind::EndpointSlice => {
                let slice = state.endpoint_slices.get(name);
                slice.into_iter().for_each(|slice| self.index.note_slice(slice));
            }
            Kind::Service => {
                let service = state.services.get(name);
                service.into_iter().for_each(|service| self.index.note_service(service));
            }
            Kind::NetworkPolicy => self.selectors.read(state, name),
            // They are looked at where they are.
            Kind::Namespace => {}
        }
    }

    /// Looks at the next object; tells the round that is over.
    fn next(&mut self, moment: &Moment<'_>) -> Option<Round> {
        let state = moment.state;
        if let Some(key) = self.changed.pop_front() {
            self.read(state, &key);
            return None;
        }
        self.stage = match std::mem::take(&mut self.stage) {
            Stage::Begin => {
                let somewhere = (objects::SOMEWHERE, Holder::World);
                self.peers.insert((Identity::WORLD, true), somewhere);
                Stage::ReadPods(None)
            }
            Stage::ReadPods(last) => {
                let stages = (Stage::ReadPods, Stage::ReadNodes(None));
                along(&state.pods, last, stages, |_, pod| self.index.note_pod(pod))
            }
            Stage::ReadNodes(last) => {
                let stages = (Stage::ReadNodes, Stage::ReadServices(None));
                along(&state.nodes, last, stages, |_, node| self.index.note_node(node))
            }
            Stage::ReadServices(last) => {
                let stages = (Stage::ReadServices, Stage::ReadSlices(None));
                along(&state.services, last, stages, |_, one| self.index.note_service(one))
            }
            Stage::ReadSlices(last) => {
                let stages = (Stage::ReadSlices, Stage::ReadPolicies(None));
                along(&state.endpoint_slices, last, stages, |_, one| self.index.note_slice(one))
            }
            Stage::ReadPolicies(last) => {
                let stages = (Stage::ReadPolicies, Stage::Pods(None));
                along(&state.network_policies, last, stages, |name, _| {
                    self.selectors.read(state, name);
                })
            }
            Stage::Pods(last) => {
                along(&state.pods, last, (Stage::Pods, Stage::Nodes(None)), |_, pod| {
                    self.check_pod(moment, pod);
                    self.check_host_ports(moment, pod);
                })
            }
            Stage::Nodes(last) => {
                along(&state.nodes, last, (Stage::Nodes, Stage::Endpoints(None)), |_, node| {
                    for address in &node.addresses {
                        self.check_address(moment, *address);
                    }
                })
            }
            Stage::Endpoints(last) => {
                let stages = (Stage::Endpoints, Stage::Blocks(None));
                along(&moment.node.endpoints, last, stages, |_, addresses| {
                    for address in addresses {
                        self.check_address(moment, *address);
                    }
                })
            }
            Stage::Blocks(last) => {
                let stages = (Stage::Blocks, Stage::Strays(address_map::Place::default()));
                along(&state.network_policies, last, stages, |_, policy| {
                    for address in objects::at_edges_of_blocks(policy) {
                        self.check_address(moment, address);
                    }
                })
            }
            Stage::Strays(mut place) => {
                let found = moment.tables.identities.exact.next_from(&mut place);
                go_on(found, (Stage::Strays(place), Stage::Pairs(0, 0)), |(address, _)| {
                    self.check_stray(moment, address);
                })
            }
            Stage::Pairs(subject, peer) => self.check_pair(moment, subject, peer),
            Stage::Services(last) => {
                let stages = (Stage::Services, Stage::Targets(None));
                along(&state.services, last, stages, |_, one| self.check_service(moment, one))
            }
            Stage::Targets(last) => {
                let then = Stage::StrayFrontends(shared_map::Place::default());
                along(&state.endpoint_slices, last, (Stage::Targets, then), |_, slice| {
                    self.check_targets(moment, slice);
                })
            }
            Stage::StrayFrontends(mut place) => {
                let found = moment.tables.services.frontends.next_from(&mut place);
                let then = Stage::StrayNodePorts(shared_map::Place::default());
                go_on(found, (Stage::StrayFrontends(place), then), |(frontend, _)| {
                    self.check_stray_frontend(moment, *frontend);
                })
            }
            Stage::StrayNodePorts(mut place) => {
                let found = moment.tables.services.node_ports.next_from(&mut place);
                let then = Stage::StrayAddresses(address_map::Place::default());
                go_on(found, (Stage::StrayNodePorts(place), then), |(at, _)| {
                    self.check_stray_node_port(moment, *at);
                })
            }
            Stage::StrayAddresses(mut place) => {
                let found = moment.tables.services.addresses.next_from(&mut place);
                go_on(found, (Stage::StrayAddresses(place), Stage::Forget), |(address, _)| {
                    self.check_stray_service_address(moment, address);
                })
            }
            Stage::Forget if self.forget_one() => Stage::Forget,
            Stage::Forget => return Some(std::mem::take(self).round),
        };
        None
    }
}

/// Looks at what was found, and stays in the first of two stages; where nothing was, it is over.
fn go_on<T>(found: Option<T>, (stay, then): (Stage, Stage), look: impl FnOnce(T)) -> Stage {
    let Some(found) = found else { return then };
    look(found);
    stay
}

/// The same with the entry of `map` that follows `last`.
fn along<K: Ord + Clone, V>(
    map: &BTreeMap<K, V>,
    last: Option<K>,
    (stay, then): (impl FnOnce(Option<K>) -> Stage, Stage),
    look: impl FnOnce(&K, &V),
) -> Stage {
    let found = objects::after(map, last.as_ref());
    let stay = stay(found.map(|(name, _)| name.clone()));
    go_on(found, (stay, then), |(name, object)| look(name, object))
}
