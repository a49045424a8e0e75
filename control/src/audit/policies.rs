//! What policy says between a pod of this node and anybody: the tables' verdicts beside the
//! objects'.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dataplane::address::Protocol;
use dataplane::identity::Identity;
use dataplane::policy::{Direction, Query, Verdict};

use super::objects::{self, Owner, within};
use super::{Audited, Auditor, Moment, Stage};
use crate::compile::policies::{direction_name, is_audited, rules};
use crate::compile::selectors::namespace_labels;
use crate::model::{L4Ports, NetworkPolicy, Peer, Pod, PolicyRule};

/// L4 ports that are asked about between two addresses, at most.
const PORTS_MAX: usize = 64;

/// One question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Port(Protocol, u16);

/// Both ends of it.
struct Pair<'a> {
    direction: Direction,
    pod: &'a Pod,
    subject: IpAddr,
    peer: IpAddr,
    other: Owner<'a>,
}

impl Auditor {
    /// One subject toward one peer, in both directions; tells where to go on.
    pub(super) fn check_pair(&mut self, moment: &Moment<'_>, subject: usize, peer: usize) -> Stage {
        let Some((own, holder)) = self.subjects.values().nth(subject) else {
            return Stage::Services(None);
        };
        let Some((other, by)) = self.peers.values().nth(peer) else {
            return Stage::Pairs(subject + 1, 0);
        };
        if own.is_ipv4() == other.is_ipv4() && own != other {
            let state = moment.state;
            let odd = compare(moment, (*own, holder.owner(state)), (*other, by.owner(state)));
            self.round.checked += odd.checked;
            // Addresses may have changed hands since the round began.
            let odd = match odd.details.is_empty() {
                true => odd,
                false => {
                    let [own, other] =
                        [*own, *other].map(|at| (at, objects::owner(moment, &self.index, at)));
                    compare(moment, own, other)
                }
            };
            for (object, detail) in odd.details {
                self.round.note(Audited::Policy, object, detail);
            }
        }
        Stage::Pairs(subject, peer + 1)
    }
}

/// What two addresses gave.
#[derive(Default)]
struct Compared {
    checked: u64,
    details: Vec<(String, String)>,
}

fn compare(
    moment: &Moment<'_>,
    (subject, owner): (IpAddr, Owner<'_>),
    (peer, other): (IpAddr, Owner<'_>),
) -> Compared {
    let mut compared = Compared::default();
    // Of a pod that is not known nothing can be said but that it is isolated.
    let Owner::Pod(name, Some(pod)) = owner else { return compared };
    if !objects::is_here(moment, name, Some(pod)) {
        return compared;
    }
    for direction in [Direction::Ingress, Direction::Egress] {
        let pair = Pair { direction, pod, subject, peer, other };
        for port in ports(moment, &pair) {
            compared.checked += 1;
            let expected = expected(moment, &pair, port);
            let found = found(moment, &pair, port);
            if (found.allowed, found.audited) != expected {
                let Port(protocol, l4_port) = port;
                let list = direction_name(direction);
                let detail = format!(
                    "{list} of {subject} with {peer} on {protocol} {l4_port} should be {}; it \
                     is {}",
                    word(expected),
                    word((found.allowed, found.audited)),
                );
                compared.details.push((format!("Pod {name}"), detail));
            }
        }
    }
    compared
}

fn word((allowed, audited): (bool, bool)) -> &'static str {
    match (allowed, audited) {
        (true, false) => "allowed",
        (true, true) => "allowed under audit",
        (false, _) => "denied",
    }
}

fn found(moment: &Moment<'_>, pair: &Pair<'_>, Port(protocol, l4_port): Port) -> Verdict {
    let identity = |address| moment.tables.identities.lookup(address);
    let peer = match (pair.direction, pair.other) {
        // What enters by the host port is the node, whatever its address.
        (Direction::Ingress, Owner::Host) => Identity::HOST,
        _ => identity(pair.peer),
    };
    let query = Query { subject: identity(pair.subject), peer, protocol, l4_port };
    moment.tables.policy.judge(pair.direction, &query)
}

/// Whether it is allowed, and whether only since policies are under audit.
fn expected(moment: &Moment<'_>, pair: &Pair<'_>, port: Port) -> (bool, bool) {
    if pair.direction == Direction::Ingress && matches!(pair.other, Owner::Host) {
        return (true, false);
    }
    let allows = |counts: &dyn Fn(&NetworkPolicy) -> bool| {
        let mut is_isolated = false;
        for (policy, rules) in selecting(moment, pair).filter(|(policy, _)| counts(policy)) {
            is_isolated = true;
            if rules.iter().any(|rule| rule_allows(moment, pair, policy, rule, port)) {
                return true;
            }
        }
        !is_isolated
    };
    let allowed = allows(&|policy| !is_audited(policy, moment.state, moment.node));
    (allowed, allowed && !allows(&|_| true))
}

fn selecting<'a>(
    moment: &Moment<'a>,
    pair: &Pair<'a>,
) -> impl Iterator<Item = (&'a NetworkPolicy, &'a [PolicyRule])> {
    let (pod, direction) = (pair.pod, pair.direction);
    within(&moment.state.network_policies, &pod.name.namespace)
        .filter(|policy| policy.subject.matches(&pod.labels))
        .filter_map(move |policy| Some((policy, rules(policy, direction)?)))
}

fn rule_allows(
    moment: &Moment<'_>,
    pair: &Pair<'_>,
    policy: &NetworkPolicy,
    rule: &PolicyRule,
    Port(protocol, l4_port): Port,
) -> bool {
    let to_peer = rule.peers.is_empty()
        || rule.peers.iter().any(|peer| peer_matches(moment, pair, policy, peer));
    let to_port = rule.ports.is_empty()
        || rule.ports.iter().filter(|port| port.protocol == protocol).any(|port| {
            match &port.l4_ports {
                L4Ports::All => true,
                L4Ports::Range(range) => range.contains(&l4_port),
                L4Ports::Named(name) => number_of(pair, name, protocol) == Some(l4_port),
            }
        });
    to_peer && to_port
}

fn peer_matches(moment: &Moment<'_>, pair: &Pair<'_>, policy: &NetworkPolicy, peer: &Peer) -> bool {
    match (peer, pair.other) {
        (Peer::Block { cidr, except }, _) => {
            cidr.contains(pair.peer)
                && !except.iter().any(|range| range.contains(pair.peer))
                && !moment.compiled.is_left_out(cidr, except)
        }
        (Peer::Pods { namespaces, pods }, Owner::Pod(name, pod)) => {
            let is_there = match namespaces {
                None => name.namespace == policy.name.namespace,
                Some(selector) => namespace_labels(moment.state, &name.namespace).fulfil(selector),
            };
            is_there && pod.map_or(pods.is_empty(), |pod| pods.matches(&pod.labels))
        }
        (Peer::Pods { .. }, _) => false,
    }
}

/// What the destination means by a port's name.
fn number_of(pair: &Pair<'_>, name: &str, protocol: Protocol) -> Option<u16> {
    match (pair.direction, pair.other) {
        (Direction::Ingress, _) => pair.pod.named_port(name, protocol),
        (Direction::Egress, Owner::Pod(_, Some(pod))) => pod.named_port(name, protocol),
        (Direction::Egress, _) => None,
    }
}

/// Where verdicts may change: at both ends of each range that a rule names, and beside them.
fn ports(moment: &Moment<'_>, pair: &Pair<'_>) -> BTreeSet<Port> {
    let mut ports: BTreeSet<Port> =
        [Port(Protocol::TCP, 1), Port(Protocol::UDP, 1), Port(Protocol::SCTP, 1)].into();
    ports.insert(Port(Protocol::ICMP, 0));
    let rules = selecting(moment, pair).flat_map(|(_, rules)| rules);
    for port in rules.flat_map(|rule| &rule.ports) {
        let (first, last) = match &port.l4_ports {
            L4Ports::All => continue,
            L4Ports::Range(range) => (*range.start(), *range.end()),
            L4Ports::Named(name) => match number_of(pair, name, port.protocol) {
                Some(number) => (number, number),
                None => continue,
            },
        };
        for l4_port in [first.saturating_sub(1), first, last, last.saturating_add(1)] {
            if ports.len() < PORTS_MAX {
                ports.insert(Port(port.protocol, l4_port));
            }
        }
    }
    ports
}
