//! Verdict tables of the local subjects, one per direction; equal ones are stored once.
//!
//! A row says what a subject allows one peer, and depends on both alone. So a table is made row by
//! row when the subject's policies change, and keeps all the others when a peer's identity comes
//! or goes.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
use std::sync::Arc;

use dataplane::identity::Identity;
use dataplane::policy::{Direction, Policy, PortRule, RuleId, SubjectPolicy, VerdictTable};
use hashbrown::HashMap;

use super::identities::{Identities, Key, Kind, Turn, resolve};
use super::policies::{Layer, NumberedRule, Policies, Uses};
use super::selectors::SelectorId;
use crate::config::UnknownPods;
use crate::model::{L4Ports, ObjectName, PortMatch};

/// The tables that a subject may have: in each direction what is enforced, and what policies under
/// audit would make of it.
const TABLES: [(Direction, Layer); 4] = [
    (Direction::Ingress, Layer::Enforced),
    (Direction::Egress, Layer::Enforced),
    (Direction::Ingress, Layer::Audit),
    (Direction::Egress, Layer::Audit),
];

/// One local subject in one direction in which it is isolated.
#[derive(Debug, Clone)]
struct Side {
    direction: Direction,
    layer: Layer,
    /// By name; of the audit's those that are under audit.
    isolating: Vec<ObjectName>,
    /// The rules that count, in the order in which they are looked at.
    rules: Vec<Arc<[NumberedRule]>>,
    /// Places of rules by the selectors of their peers.
    by_peer: HashMap<SelectorId, Vec<Place>>,
    /// Places of egress rules for everybody by a port's name, which each peer numbers for itself.
    by_port_name: Vec<Place>,
    table: Arc<VerdictTable>,
    /// Of the table; does not depend on the order of its rows.
    digest: u64,
}

/// A policy among those that count, and a rule of it.
type Place = (usize, usize);

/// The tables in force, with what they are made of.
#[derive(Debug, Clone, Default)]
pub(super) struct Verdicts {
    pub(super) policy: Arc<Policy>,
    subjects: BTreeMap<Identity, [Option<Side>; 4]>,
}

impl Verdicts {
    /// The policies that isolate `subject` in `direction`.
    pub(super) fn isolating(&self, subject: Identity, direction: Direction) -> &[ObjectName] {
        self.policies_behind(subject, (direction, Layer::Enforced))
    }

    /// Those that would isolate it if they were not under audit.
    pub(super) fn audited(&self, subject: Identity, direction: Direction) -> &[ObjectName] {
        self.policies_behind(subject, (direction, Layer::Audit))
    }

    fn policies_behind(&self, subject: Identity, table: (Direction, Layer)) -> &[ObjectName] {
        let sides = self.subjects.get(&subject).into_iter().flatten().flatten();
        let mut sides = sides.filter(|side| (side.direction, side.layer) == table);
        sides.next().map_or(&[], |side| side.isolating.as_slice())
    }

    /// Brings the tables in step with the identities and policies.
    pub(super) fn follow(
        &mut self,
        identities: &Identities,
        (policies, uses): (&Policies, &Uses),
        (unknown_pods, is_new): (UnknownPods, bool),
        turn: &mut Turn,
    ) {
        let mut pool = None;
        let gone: Vec<Identity> = self
            .subjects
            .keys()
            .filter(|own| !identities.local.contains_key(own))
            .copied()
            .collect();
        for subject in gone {
            self.subjects.remove(&subject);
            self.put(subject, turn, identities);
        }
        let numbers: BTreeSet<Identity> =
            turn.came.iter().copied().chain(turn.went.keys().copied()).collect();
        for subject in identities.local.keys() {
            let Some(key) = identities.key(*subject) else { continue };
            let is_of_changed = || {
                let unknown = match &key.kind {
                    Kind::UnknownPod { namespace } => is_new || uses.namespaces.contains(namespace),
                    _ => false,
                };
                unknown || key.selectors.iter().any(|id| uses.subjects.contains(id))
            };
            let known = self.subjects.get(subject).filter(|_| !is_of_changed());
            let sides = match known {
                Some(sides) => {
                    let Some(sides) = patched(sides, key, &numbers, identities) else { continue };
                    sides
                }
                None => TABLES.map(|table| match (&key.kind, unknown_pods) {
                    (Kind::UnknownPod { .. }, UnknownPods::Deny | UnknownPods::Allow) => {
                        let allowed = unknown_pods == UnknownPods::Allow;
                        Side::of_unknown_pod(table, key, allowed, identities)
                    }
                    _ => Side::new(table, key, policies, identities),
                }),
            };
            let pool = pool.get_or_insert_with(|| Pool::of(self.subjects.values()));
            let sides = sides.map(|side| {
                side.map(|side| Side { table: pool.share(side.digest, &side.table), ..side })
            });
            self.subjects.insert(*subject, sides);
            self.put(*subject, turn, identities);
        }
    }

    /// Publishes the tables of a subject, where they differ from those in force.
    fn put(&mut self, subject: Identity, turn: &mut Turn, identities: &Identities) {
        let [ingress, egress, ingress_audit, egress_audit] =
            self.subjects.get(&subject).map_or_else(Default::default, |sides| {
                sides.each_ref().map(|side| side.as_ref().map(|side| Arc::clone(&side.table)))
            });
        let new = SubjectPolicy { ingress, egress, ingress_audit, egress_audit };
        let old = self.policy.subjects.get(&subject).cloned().unwrap_or_default();
        let pairs = [
            (&old.ingress, &new.ingress),
            (&old.egress, &new.egress),
            (&old.ingress_audit, &new.ingress_audit),
            (&old.egress_audit, &new.egress_audit),
        ];
        if pairs.iter().all(|(old, new)| is_same(old, new)) {
            return;
        }
        let stays = |peer: &Identity| !turn.came.contains(peer) && !turn.went.contains_key(peer);
        if !pairs.iter().all(|(old, new)| judge_alike(old, new, stays)) {
            let now = identities.local.get(&subject).into_iter().flatten().copied();
            let before = turn.no_longer_local.iter().filter(|(own, _)| *own == subject);
            let local: Vec<_> = now.chain(before.map(|(_, address)| *address)).collect();
            local.into_iter().for_each(|address| turn.affected.add(address));
        }
        let subjects = &mut Arc::make_mut(&mut self.policy).subjects;
        if new.tables().next().is_none() {
            subjects.remove(&subject);
        } else {
            subjects.insert(subject, new);
        }
    }
}

fn is_same(one: &Option<Arc<VerdictTable>>, other: &Option<Arc<VerdictTable>>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        _ => false,
    }
}

/// Whether both say the same about every peer whose number stays: addresses whose number came or
/// went are affected already, and nobody else is judged by it.
fn judge_alike(
    before: &Option<Arc<VerdictTable>>,
    after: &Option<Arc<VerdictTable>>,
    stays: impl Fn(&Identity) -> bool,
) -> bool {
    let (before, after) = match (before, after) {
        (None, None) => return true,
        (Some(before), Some(after)) => (before, after),
        _ => return false,
    };
    let alike = |peer: &Identity| before.by_peer.get(peer) == after.by_peer.get(peer);
    let mut peers = before.by_peer.keys().chain(after.by_peer.keys());
    let is_same_kind = before.unknown_pod == after.unknown_pod;
    is_same_kind
        && before.any_peer == after.any_peer
        && peers.all(|peer| alike(peer) || !stays(peer))
}

/// The sides of a subject after these numbers came or went; `None` when nothing differs.
fn patched(
    sides: &[Option<Side>; 4],
    key: &Key,
    numbers: &BTreeSet<Identity>,
    identities: &Identities,
) -> Option<[Option<Side>; 4]> {
    let mut changed: Option<[Option<Side>; 4]> = None;
    for (place, side) in sides.iter().enumerate() {
        let Some(side) = side else { continue };
        for number in numbers {
            let peer = identities.key(*number);
            let row = peer.map(|peer| side.row(key, peer)).unwrap_or_default();
            let known = side.table.by_peer.get(number);
            if known.map_or(&[][..], |row| row) == row.as_slice() {
                continue;
            }
            let sides = changed.get_or_insert_with(|| sides.clone());
            if let Some(side) = &mut sides[place] {
                side.set_row(*number, row);
            }
        }
    }
    changed
}

impl Side {
    /// That of a subject with `key`; `None` where nothing isolates it.
    fn new(
        (direction, layer): (Direction, Layer),
        key: &Key,
        policies: &Policies,
        identities: &Identities,
    ) -> Option<Self> {
        let (isolating, rules) = policies.isolating(key, (direction, layer));
        if isolating.is_empty() {
            return None;
        }
        let mut side = Self::isolated((direction, layer), isolating, rules);
        let any_peer = side.index(key);
        side.fill(any_peer, key, identities);
        Some(side)
    }

    /// That of an unknown pod which may all or nothing, whatever policies there are; of what is under
    /// audit nothing is said.
    fn of_unknown_pod(
        (direction, layer): (Direction, Layer),
        key: &Key,
        allowed: bool,
        identities: &Identities,
    ) -> Option<Self> {
        if layer == Layer::Audit {
            return None;
        }
        let mut side = Self::isolated((direction, layer), Vec::new(), Vec::new());
        let all = allowed.then(|| everything(RuleId::UNKNOWN_POD));
        side.fill(all.into_iter().collect(), key, identities);
        Some(side)
    }

    fn isolated(
        (direction, layer): (Direction, Layer),
        isolating: Vec<ObjectName>,
        rules: Vec<Arc<[NumberedRule]>>,
    ) -> Self {
        Self {
            direction,
            layer,
            isolating,
            rules,
            by_peer: HashMap::new(),
            by_port_name: Vec::new(),
            table: Arc::default(),
            digest: 0,
        }
    }

    /// Makes the table: what everybody is allowed, and what some peers are.
    fn fill(&mut self, any_peer: Vec<PortRule>, key: &Key, identities: &Identities) {
        self.digest = digest(&any_peer);
        self.table = Arc::new(VerdictTable {
            any_peer: any_peer.into(),
            unknown_pod: matches!(key.kind, Kind::UnknownPod { .. }),
            ..VerdictTable::default()
        });
        for (peer, peer_key) in self.peers(identities) {
            let row = self.row(key, &peer_key);
            self.set_row(peer, row);
        }
    }

    /// Files the rules by whom they are for; gives what everybody is allowed.
    fn index(&mut self, key: &Key) -> Vec<PortRule> {
        let mut any_peer = Vec::new();
        for (policy, rules) in self.rules.iter().enumerate() {
            for (rule, numbered) in rules.iter().enumerate() {
                for peer in &numbered.peers {
                    self.by_peer.entry(*peer).or_default().push((policy, rule));
                }
                if !numbered.peers.is_empty() {
                    continue;
                }
                if numbered.ports.is_empty() {
                    push(&mut any_peer, everything(numbered.id));
                }
                let mut each_peers = false;
                for port in &numbered.ports {
                    match self.means(port, key) {
                        Means::Ports(l4_ports) => {
                            let protocol = Some(port.protocol);
                            push(&mut any_peer, PortRule { protocol, l4_ports, rule: numbered.id });
                        }
                        Means::EachPeers => each_peers = true,
                        Means::Nothing => {}
                    }
                }
                self.by_port_name.extend(each_peers.then_some((policy, rule)));
            }
        }
        any_peer
    }

    /// Everybody about whom there may be a row.
    fn peers(&self, identities: &Identities) -> Vec<(Identity, Arc<Key>)> {
        let selected = self.by_peer.keys().flat_map(|selector| identities.members(*selector));
        let mut peers: BTreeSet<Identity> = selected.collect();
        if !self.by_port_name.is_empty() {
            peers.extend(&identities.with_named_ports);
        }
        if self.direction == Direction::Ingress {
            peers.extend(&identities.hosts);
        }
        let keyed = |peer: Identity| Some((peer, Arc::clone(identities.key(peer)?)));
        peers.into_iter().filter_map(keyed).collect()
    }

    /// What the subject allows a peer beyond what it allows everybody.
    fn row(&self, subject: &Key, peer: &Key) -> Vec<PortRule> {
        let mut row = Vec::new();
        // The pipeline admits the node itself by `Identity::HOST`; its addresses that some ipBlock
        // contains have an identity of their own.
        if self.direction == Direction::Ingress && peer.kind == Kind::Host {
            push(&mut row, everything(RuleId::OWN_NODE));
        }
        let mut places: Vec<Place> = peer
            .selectors
            .iter()
            .filter_map(|id| self.by_peer.get(id))
            .flatten()
            .copied()
            .collect();
        if !peer.named_ports.is_empty() {
            places.extend(&self.by_port_name);
        }
        places.sort_unstable();
        places.dedup();
        for (policy, rule) in places {
            let Some(rule) = self.rules.get(policy).and_then(|rules| rules.get(rule)) else {
                continue;
            };
            if rule.ports.is_empty() {
                push(&mut row, everything(rule.id));
            }
            for port in &rule.ports {
                let l4_ports = match self.means(port, subject) {
                    Means::EachPeers => numbered_by(peer, port),
                    Means::Ports(l4_ports) if !rule.peers.is_empty() => Some(l4_ports),
                    Means::Ports(_) | Means::Nothing => None,
                };
                if let Some(l4_ports) = l4_ports {
                    push(
                        &mut row,
                        PortRule { protocol: Some(port.protocol), l4_ports, rule: rule.id },
                    );
                }
            }
        }
        row
    }

    /// A name means what the destination pod means by it: toward the subject, the subject; and
    /// from it, each peer.
    fn means(&self, port: &PortMatch, subject: &Key) -> Means {
        match (&port.l4_ports, self.direction) {
            (L4Ports::All, _) => Means::Ports(0..=u16::MAX),
            (L4Ports::Range(range), _) => Means::Ports(range.clone()),
            (L4Ports::Named(_), Direction::Ingress) => {
                numbered_by(subject, port).map_or(Means::Nothing, Means::Ports)
            }
            (L4Ports::Named(_), Direction::Egress) => Means::EachPeers,
        }
    }

    fn set_row(&mut self, peer: Identity, row: Vec<PortRule>) {
        let table = Arc::make_mut(&mut self.table);
        let before = if row.is_empty() {
            table.by_peer.remove(&peer)
        } else {
            self.digest ^= digest(&(peer, &row[..]));
            table.by_peer.insert(peer, row.into())
        };
        if let Some(before) = before {
            self.digest ^= digest(&(peer, &before[..]));
        }
    }
}

/// Which ports an entry of a rule's `ports` allows.
enum Means {
    Ports(std::ops::RangeInclusive<u16>),
    /// What each peer means by the name.
    EachPeers,
    Nothing,
}

fn numbered_by(pod: &Key, port: &PortMatch) -> Option<std::ops::RangeInclusive<u16>> {
    let L4Ports::Named(name) = &port.l4_ports else { return None };
    resolve(pod, name, port.protocol).map(|number| number..=number)
}

fn everything(rule: RuleId) -> PortRule {
    PortRule { protocol: None, l4_ports: 0..=u16::MAX, rule }
}

/// Appends what an earlier allowance of the same extent does not already say.
fn push(rules: &mut Vec<PortRule>, rule: PortRule) {
    let said = rules
        .iter()
        .any(|earlier| earlier.protocol == rule.protocol && earlier.l4_ports == rule.l4_ports);
    if !said {
        rules.push(rule);
    }
}

fn digest(part: &impl Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(part)
}

/// Verdict tables by digest, so that equal ones are one.
struct Pool {
    tables: HashMap<u64, Vec<Arc<VerdictTable>>>,
}

impl Pool {
    fn of<'a>(subjects: impl Iterator<Item = &'a [Option<Side>; 4]>) -> Self {
        let mut pool = Self { tables: HashMap::new() };
        for side in subjects.flatten().flatten() {
            pool.share(side.digest, &side.table);
        }
        pool
    }

    fn share(&mut self, digest: u64, table: &Arc<VerdictTable>) -> Arc<VerdictTable> {
        let same = self.tables.entry(digest).or_default();
        let known = same.iter().find(|known| Arc::ptr_eq(known, table) || known == &table);
        if let Some(known) = known {
            return Arc::clone(known);
        }
        same.push(Arc::clone(table));
        Arc::clone(table)
    }
}
