//! Policy seen two ways: through the compiled tables, as a worker does, and by a naive reading of
//! the objects, rule by rule, that knows neither identities nor tables.

use std::collections::BTreeSet;
use std::net::IpAddr;

use control::compile::{Compiled, NodeView, RuleName};
use control::model::{
    L4Ports, NetworkPolicy, ObjectName, Peer, Pod, PolicyMode, PolicyRule, PortMatch,
};
use control::store::ClusterState;
use dataplane::address::Protocol;
use dataplane::identity::Identity;
use dataplane::policy::{Direction, Query, Verdict};

/// Namespaces, pods and nodes of the golden cases; policies are added to them.
#[derive(Debug)]
pub struct Cluster {
    pub state: ClusterState,
    pub node: NodeView,
}

/// One question: may `from` open a flow to `to`?
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: Protocol,
    pub l4_port: u16,
}

impl Packet {
    fn side(&self, direction: Direction) -> (IpAddr, IpAddr) {
        match direction {
            Direction::Ingress => (self.to, self.from),
            Direction::Egress => (self.from, self.to),
        }
    }
}

impl Cluster {
    /// The pod that has `address`: one that is ending only where no other has.
    pub fn pod(&self, address: IpAddr) -> Option<&Pod> {
        self.state
            .pods
            .values()
            .map(|pod| &**pod)
            .filter(|pod| !pod.host_network && !pod.is_completed())
            .filter(|pod| pod.addresses.contains(&address))
            .min_by_key(|pod| pod.terminating)
    }

    pub fn is_local(&self, pod: &Pod) -> bool {
        pod.node.as_ref().is_none_or(|node| **node == *self.node.name)
    }

    /// Whether the rules that are listed for people are those that isolate and allow by a naive
    /// reading; panics where not.
    pub fn check_explanation(&self, compiled: &Compiled, packet: &Packet) {
        for direction in [Direction::Egress, Direction::Ingress] {
            // Those under audit are listed as well.
            let Some(naive) = self.naive_reading(direction, packet, |_| true) else { continue };
            let query = self.query(compiled, direction, packet);
            let examined = compiled.examine(&self.state, direction, &query);
            let policies: BTreeSet<_> = examined.iter().map(|one| one.policy.clone()).collect();
            let matching: Vec<(ObjectName, usize)> = examined
                .iter()
                .filter(|one| one.peer.matches && one.port.matches)
                .filter_map(|one| Some((one.policy.clone(), one.index?)))
                .collect();
            let agree = match &naive {
                Naive::NotIsolated => policies.is_empty(),
                // Whatever its rules say.
                Naive::OwnNode => true,
                Naive::Isolated { isolating, allowing } => {
                    policies.iter().eq(isolating) && matching == *allowing
                }
            };
            assert!(agree, "{packet:?} {direction:?}: told {examined:#?}, objects say {naive:?}");
        }
    }

    fn query(&self, compiled: &Compiled, direction: Direction, packet: &Packet) -> Query {
        let (subject, peer) = packet.side(direction);
        // As the pipeline does: what enters by the host port is the node, whatever its address.
        let identity = |address| match self.node.addresses.contains(&address) {
            true if direction == Direction::Ingress => Identity::HOST,
            _ => compiled.identities.lookup(address),
        };
        Query {
            subject: compiled.identities.lookup(subject),
            peer: identity(peer),
            protocol: packet.protocol,
            l4_port: packet.l4_port,
        }
    }

    /// The tables' verdict in one direction, if policy is enforced here in it.
    pub fn compiled_verdict(
        &self,
        compiled: &Compiled,
        direction: Direction,
        packet: &Packet,
    ) -> Option<Verdict> {
        let (subject, _) = packet.side(direction);
        self.pod(subject).filter(|pod| self.is_local(pod))?;
        let query = self.query(compiled, direction, packet);
        Some(compiled.policy.judge(direction, &query))
    }

    /// Whether what a policy refuses passes here.
    fn is_audited(&self, policy: &NetworkPolicy) -> bool {
        let namespace = self.state.namespaces.get(&*policy.name.namespace);
        let node = self.state.nodes.get(&self.node.name);
        let modes = [Some(&policy.mode), namespace.map(|one| &one.mode), node.map(|one| &one.mode)];
        modes.contains(&Some(&PolicyMode::Audit))
    }

    /// The naive reading of what is enforced in one direction, if policy is enforced here in it.
    pub fn naive_verdict(&self, direction: Direction, packet: &Packet) -> Option<Naive> {
        self.naive_reading(direction, packet, |policy| !self.is_audited(policy))
    }

    /// The naive reading of the policies that `count`.
    fn naive_reading(
        &self,
        direction: Direction,
        packet: &Packet,
        counts: impl Fn(&NetworkPolicy) -> bool,
    ) -> Option<Naive> {
        let (subject, peer) = packet.side(direction);
        let pod = self.pod(subject).filter(|pod| self.is_local(pod))?;
        if direction == Direction::Ingress && self.node.addresses.contains(&peer) {
            return Some(Naive::OwnNode);
        }
        let isolating: Vec<(&NetworkPolicy, &[PolicyRule])> = self
            .state
            .network_policies
            .values()
            .filter(|policy| policy.name.namespace == pod.name.namespace && counts(policy))
            .filter(|policy| policy.subject.matches(&pod.labels))
            .filter_map(|policy| {
                let rules = match direction {
                    Direction::Ingress => policy.ingress.as_deref()?,
                    Direction::Egress => policy.egress.as_deref()?,
                };
                Some((policy, rules))
            })
            .collect();
        if isolating.is_empty() {
            return Some(Naive::NotIsolated);
        }
        let mut allowing = Vec::new();
        for (policy, rules) in &isolating {
            for (index, rule) in rules.iter().enumerate() {
                let to_peer = rule.peers.is_empty()
                    || rule.peers.iter().any(|own| self.peer_matches(policy, own, peer));
                let to_port = rule.ports.is_empty()
                    || rule.ports.iter().any(|port| self.port_matches(port, packet));
                if to_peer && to_port {
                    allowing.push((policy.name.clone(), index));
                }
            }
        }
        let isolating = isolating.into_iter().map(|(policy, _)| policy.name.clone()).collect();
        Some(Naive::Isolated { isolating, allowing })
    }

    fn peer_matches(&self, policy: &NetworkPolicy, peer: &Peer, address: IpAddr) -> bool {
        match peer {
            Peer::Block { cidr, except } => {
                cidr.contains(address) && !except.iter().any(|range| range.contains(address))
            }
            Peer::Pods { namespaces, pods } => self.pod(address).is_some_and(|pod| {
                let in_scope = match namespaces {
                    None => pod.name.namespace == policy.name.namespace,
                    Some(selector) => {
                        let namespace = self.state.namespaces.get(&*pod.name.namespace);
                        namespace.is_some_and(|namespace| selector.matches(&namespace.labels))
                    }
                };
                in_scope && pods.matches(&pod.labels)
            }),
        }
    }

    fn port_matches(&self, port: &PortMatch, packet: &Packet) -> bool {
        port.protocol == packet.protocol
            && match &port.l4_ports {
                L4Ports::All => true,
                L4Ports::Range(range) => range.contains(&packet.l4_port),
                L4Ports::Named(name) => self
                    .pod(packet.to)
                    .and_then(|pod| pod.named_port(name, packet.protocol))
                    .is_some_and(|number| number == packet.l4_port),
            }
    }

    /// Whether both directions allow `packet`; panics where the two views differ, in the verdict
    /// or in the reason given for it.
    pub fn allows(&self, compiled: &Compiled, packet: &Packet) -> bool {
        [Direction::Egress, Direction::Ingress].into_iter().all(|direction| {
            let Some(naive) = self.naive_verdict(direction, packet) else { return true };
            let verdict = self.compiled_verdict(compiled, direction, packet).expect("enforced");
            let subject = compiled.identities.lookup(packet.side(direction).0);
            let rule = compiled.rule_name(verdict.rule).expect("every rule has a name");
            let agree = match (&naive, &rule) {
                (Naive::NotIsolated, RuleName::NotIsolated)
                | (Naive::OwnNode, RuleName::OwnNode) => verdict.allowed,
                (Naive::Isolated { allowing, isolating }, RuleName::DefaultDeny) => {
                    allowing.is_empty()
                        && !verdict.allowed
                        && compiled.isolating(subject, direction) == isolating.as_slice()
                }
                (
                    Naive::Isolated { allowing, .. },
                    RuleName::Rule { policy, direction: own, index },
                ) => {
                    *own == direction
                        && verdict.allowed
                        && allowing.contains(&(policy.clone(), *index))
                }
                _ => false,
            };
            assert!(
                agree,
                "{packet:?} {direction:?}: tables say {verdict:?} ({rule}), objects say {naive:?}"
            );
            let all = self.naive_reading(direction, packet, |_| true).expect("enforced");
            let is_audited = verdict.allowed && !all.allows();
            assert_eq!(verdict.audited, is_audited, "{packet:?} {direction:?}: in all {all:?}");
            if is_audited {
                let told = compiled.audited(subject, direction);
                assert!(!told.is_empty(), "{packet:?} {direction:?}: whose doing is not told");
            }
            verdict.allowed
        })
    }
}

impl Naive {
    fn allows(&self) -> bool {
        match self {
            Self::NotIsolated | Self::OwnNode => true,
            Self::Isolated { allowing, .. } => !allowing.is_empty(),
        }
    }
}

/// What a naive reading finds in one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Naive {
    NotIsolated,
    OwnNode,
    Isolated {
        /// In the order of their names.
        isolating: Vec<ObjectName>,
        /// Policies and rules; any one of them may be given as the reason.
        allowing: Vec<(ObjectName, usize)>,
    },
}
