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
            Stage::ReadPods(last) => match objects::after(&state.pods, last.as_ref()) {
                Some((name, pod)) => {
                    self.index.note_pod(pod);
                    Stage::ReadPods(Some(name.clone()))
                }
                None => Stage::ReadNodes(None),
            },
            Stage::ReadNodes(last) => match objects::after(&state.nodes, last.as_ref()) {
                Some((name, node)) => {
                    self.index.note_node(node);
                    Stage::ReadNodes(Some(name.clone()))
                }
                None => Stage::ReadServices(None),
            },
            Stage::ReadServices(last) => match objects::after(&state.services, last.as_ref()) {
                Some((name, service)) => {
                    self.index.note_service(service);
                    Stage::ReadServices(Some(name.clone()))
                }
                None => Stage::ReadSlices(None),
            },
            Stage::ReadSlices(last) => {
                match objects::after(&state.endpoint_slices, last.as_ref()) {
                    Some((name, slice)) => {
                        self.index.note_slice(slice);
                        Stage::ReadSlices(Some(name.clone()))
                    }
                    None => Stage::ReadPolicies(None),
                }
            }
            Stage::ReadPolicies(last) => {
                match objects::after(&state.network_policies, last.as_ref()) {
                    Some((name, _)) => {
                        self.selectors.read(state, name);
                        Stage::ReadPolicies(Some(name.clone()))
                    }
                    None => Stage::Pods(None),
                }
            }
            Stage::Pods(last) => match objects::after(&state.pods, last.as_ref()) {
                Some((name, pod)) => {
                    self.check_pod(moment, pod);
                    self.check_host_ports(moment, pod);
                    Stage::Pods(Some(name.clone()))
                }
                None => Stage::Nodes(None),
            },
            Stage::Nodes(last) => match objects::after(&state.nodes, last.as_ref()) {
                Some((name, node)) => {
                    for address in &node.addresses {
                        self.check_address(moment, *address);
                    }
                    Stage::Nodes(Some(name.clone()))
                }
                None => Stage::Endpoints(None),
            },
            Stage::Endpoints(last) => match objects::after(&moment.node.endpoints, last.as_ref()) {
                Some((name, addresses)) => {
                    for address in addresses {
                        self.check_address(moment, *address);
                    }
                    Stage::Endpoints(Some(name.clone()))
                }
                None => Stage::Blocks(None),
            },
            Stage::Blocks(last) => match objects::after(&state.network_policies, last.as_ref()) {
                Some((name, policy)) => {
                    for address in objects::at_edges_of_blocks(policy) {
                        self.check_address(moment, address);
                    }
                    Stage::Blocks(Some(name.clone()))
                }
                None => Stage::Strays(address_map::Place::default()),
            },
            Stage::Strays(mut place) => {
                match moment.tables.identities.exact.next_from(&mut place) {
                    Some((address, _)) => {
                        self.check_stray(moment, address);
                        Stage::Strays(place)
                    }
                    None => Stage::Pairs(0, 0),
                }
            }
            Stage::Pairs(subject, peer) => self.check_pair(moment, subject, peer),
            Stage::Services(last) => match objects::after(&state.services, last.as_ref()) {
                Some((name, service)) => {
                    self.check_service(moment, service);
                    Stage::Services(Some(name.clone()))
                }
                None => Stage::Targets(None),
            },
            Stage::Targets(last) => match objects::after(&state.endpoint_slices, last.as_ref()) {
                Some((name, slice)) => {
                    self.check_targets(moment, slice);
                    Stage::Targets(Some(name.clone()))
                }
                None => Stage::StrayFrontends(shared_map::Place::default()),
            },
            Stage::StrayFrontends(mut place) => {
                match moment.tables.services.frontends.next_from(&mut place) {
                    Some((frontend, _)) => {
                        self.check_stray_frontend(moment, *frontend);
                        Stage::StrayFrontends(place)
                    }
                    None => Stage::StrayNodePorts(shared_map::Place::default()),
                }
            }
            Stage::StrayNodePorts(mut place) => {
                match moment.tables.services.node_ports.next_from(&mut place) {
                    Some((at, _)) => {
                        self.check_stray_node_port(moment, *at);
                        Stage::StrayNodePorts(place)
                    }
                    None => Stage::StrayAddresses(address_map::Place::default()),
                }
            }
            Stage::StrayAddresses(mut place) => {
                match moment.tables.services.addresses.next_from(&mut place) {
                    Some((address, _)) => {
                        self.check_stray_service_address(moment, address);
                        Stage::StrayAddresses(place)
                    }
                    None => Stage::Forget,
                }
            }
            Stage::Forget if self.forget_one() => Stage::Forget,
            Stage::Forget => return Some(std::mem::take(self).round),
        };
        None
    }
}
