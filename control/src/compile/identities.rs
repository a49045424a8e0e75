//! Who an address is: the set of policy selectors that match it, interned to a number.
//!
//! Pods that no policy tells apart share an identity, however their labels differ. An identity
//! also holds the numbers behind the port names that policies use, since a rule that says `http`
//! allows different L4 ports toward pods that mean different numbers by it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::address::Protocol;
use dataplane::address_map::AddressMap;
use dataplane::identity::{Holder, Identity, IdentityTable};
use dataplane::lpm::Prefix;
use hashbrown::HashMap;

use super::affected::Affected;
use super::interner::Interner;
use super::policies::PortName;
use super::selectors::{SelectorId, Selectors};
use crate::model::NamedPort;

/// What kind of thing has an identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// This node.
    Host,
    /// Another node.
    RemoteNode,
    /// A pod whose labels are known.
    Pod,
    /// A local endpoint of this namespace whose Pod object is not known. Until it is, every policy
    /// of the namespace that might select it isolates it.
    UnknownPod { namespace: Arc<str> },
    /// Anything else.
    World,
}

/// Everything that policy can tell about an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    /// Ascending.
    pub(super) selectors: Vec<SelectorId>,
    /// The ports whose names some policy uses, by name.
    pub(super) named_ports: Vec<NamedPort>,
}

impl Key {
    /// Something that no selector matches by its labels: a node, or the world.
    pub(super) fn plain(kind: Kind, selectors: &[SelectorId]) -> Self {
        Self { kind, selectors: selectors.to_vec(), named_ports: Vec::new() }
    }

    /// The number it has without being handed one, if any.
    fn reserved(&self) -> Option<Identity> {
        match self.kind {
            Kind::Host if self.selectors.is_empty() => Some(Identity::HOST),
            Kind::RemoteNode if self.selectors.is_empty() => Some(Identity::REMOTE_NODE),
            Kind::World if self.selectors.is_empty() => Some(Identity::WORLD),
            _ => None,
        }
    }

    pub(super) fn has(&self, selector: SelectorId) -> bool {
        self.selectors.binary_search(&selector).is_ok()
    }
}

/// What compiling once has changed of the identities.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) affected: Affected,
    /// Numbers that came, and those that nothing has any more.
    pub(super) came: BTreeSet<Identity>,
    pub(super) went: BTreeMap<Identity, Arc<Key>>,
    /// Some blocks found no room any more, or found it again.
    pub(super) blocks_moved: bool,
    /// Names of ports that some pod began to have, or none has any more.
    pub(super) port_names: BTreeSet<PortName>,
    /// Addresses that were local and are not, or not by this number, any more.
    pub(super) no_longer_local: Vec<(Identity, IpAddr)>,
    /// To be released once all are handed out, so that a number stays with what it names.
    released: Vec<Identity>,
}

/// The identities in force, and what each stands for.
#[derive(Debug, Clone)]
pub(super) struct Identities {
    pub(super) table: Arc<IdentityTable>,
    keys: Interner<Key>,
    /// The identities that each selector picks out.
    members: HashMap<SelectorId, BTreeSet<Identity>>,
    /// Those of this node that some block contains.
    pub(super) hosts: BTreeSet<Identity>,
    /// Those with ports whose names policies use.
    pub(super) with_named_ports: BTreeSet<Identity>,
    /// How many have each name.
    port_names: BTreeMap<PortName, usize>,
    /// Identities of pods on this node, the subjects whose policy is enforced here, with the
    /// addresses that have them.
    pub(super) local: BTreeMap<Identity, BTreeSet<IpAddr>>,
    prefixes: BTreeMap<Prefix, Identity>,
}

impl Default for Identities {
    fn default() -> Self {
        Self {
            table: Arc::default(),
            keys: Interner::starting_at(Identity::FIRST_COMPILED),
            members: HashMap::new(),
            hosts: BTreeSet::new(),
            with_named_ports: BTreeSet::new(),
            port_names: BTreeMap::new(),
            local: BTreeMap::new(),
            prefixes: BTreeMap::new(),
        }
    }
}

impl Identities {
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Every number that was handed out and is in use, in no particular order.
    pub(super) fn numbers(&self) -> impl Iterator<Item = Identity> {
        self.keys.in_use().map(Identity)
    }

    /// The ranges between boundaries that `ipBlock`s make, with whoever has no identity of its own
    /// there.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (Prefix, Identity)> {
        self.prefixes.iter().map(|(prefix, own)| (*prefix, *own))
    }

    /// What a number stands for; `None` for reserved ones, which no selector matches.
    pub(super) fn key(&self, identity: Identity) -> Option<&Arc<Key>> {
        self.keys.key(identity.0)
    }

    pub(super) fn members(&self, selector: SelectorId) -> impl Iterator<Item = Identity> {
        self.members.get(&selector).into_iter().flatten().copied()
    }

    pub(super) fn name(&self, identity: Identity, selectors: &Selectors) -> String {
        let plain = match identity {
            Identity::HOST => "host",
            Identity::REMOTE_NODE => "remote-node",
            Identity::KUBE_APISERVER => "kube-apiserver",
            Identity::HEALTH => "health",
            Identity::INGRESS => "ingress",
            Identity::WORLD => "world",
            _ => "",
        };
        if !plain.is_empty() {
            return plain.to_owned();
        }
        let Some(key) = self.key(identity) else {
            return format!("identity {}", identity.0);
        };
        let kind = match &key.kind {
            Kind::Host => "host",
            Kind::RemoteNode => "remote-node",
            Kind::Pod => "pod",
            Kind::UnknownPod { .. } => "pod without Pod object",
            Kind::World => "world",
        };
        let matching = key.selectors.iter().filter_map(|id| selectors.selector(*id));
        let mut matching: Vec<String> = matching.map(ToString::to_string).collect();
        if matching.is_empty() {
            format!("{kind} that no policy selects")
        } else {
            matching.sort_unstable();
            format!("{kind} in {}", matching.join("; "))
        }
    }

    /// These addresses will be told: a table that has none makes room for all of them at once.
    pub(super) fn expect(&mut self, addresses: impl ExactSizeIterator<Item = IpAddr>) {
        if self.table.exact.is_empty() {
            let all = addresses.len();
            let v4 = addresses.filter(IpAddr::is_ipv4).count();
            Arc::make_mut(&mut self.table).exact = AddressMap::with_capacity([v4, all - v4]);
        }
    }

    /// Says that pods are told of: from now on one that is not told of is gone.
    pub(super) fn expect_pods(&mut self) {
        if !self.table.pods_are_known {
            Arc::make_mut(&mut self.table).pods_are_known = true;
        }
    }

    /// Says who `address` is from now on, by a number acquired for it, and whether it is on this
    /// node; `None`: nobody.
    pub(super) fn set(&mut self, address: IpAddr, who: Option<(Holder, bool)>, turn: &mut Turn) {
        let before = self.table.exact.get(&address).copied();
        // Where everything is affected already there is nothing to find out.
        let tell = turn.affected != Affected::Everything;
        let seen_before = tell.then(|| self.table.holder(address));
        let is_local = who.is_some_and(|(_, is_local)| is_local);
        let now = who.map(|(holder, _)| holder);
        turn.released.extend(before.map(|holder| holder.identity));
        if before != now {
            let table = Arc::make_mut(&mut self.table);
            match now {
                Some(holder) => table.exact.insert(address, holder),
                None => table.exact.remove(&address),
            };
        }
        if seen_before.is_some_and(|before| before != self.table.holder(address)) {
            turn.affected.add(address);
        }
        let [before, now] = [before, now.filter(|_| is_local)];
        let identity = |holder: Holder| holder.identity;
        self.set_local(address, before.map(identity), now.map(identity), turn);
    }

    fn set_local(
        &mut self,
        address: IpAddr,
        before: Option<Identity>,
        now: Option<Identity>,
        turn: &mut Turn,
    ) {
        if let Some(before) = before.filter(|before| Some(*before) != now)
            && let Some(addresses) = self.local.get_mut(&before)
            && addresses.remove(&address)
        {
            turn.no_longer_local.push((before, address));
            if addresses.is_empty() {
                self.local.remove(&before);
            }
        }
        if let Some(now) = now {
            self.local.entry(now).or_default().insert(address);
        }
    }

    /// Says who the addresses between boundaries are that nobody has.
    pub(super) fn set_prefixes(&mut self, selectors: &Selectors, turn: &mut Turn) {
        let cut = selectors
            .boundaries()
            .map(|(prefix, blocks)| (prefix, self.acquire(Key::plain(Kind::World, blocks), turn)));
        let prefixes: BTreeMap<Prefix, Identity> = cut.collect();
        turn.released.extend(self.prefixes.values());
        if prefixes != self.prefixes {
            // A range that means something else means it for more addresses than can be told.
            turn.affected = Affected::Everything;
            let table = Arc::make_mut(&mut self.table);
            table.prefixes = prefixes.iter().map(|(prefix, own)| (*prefix, *own)).collect();
            self.prefixes = prefixes;
        }
    }

    /// One more user of `key`: its number.
    pub(super) fn acquire(&mut self, key: Key, turn: &mut Turn) -> Identity {
        if let Some(reserved) = key.reserved() {
            return reserved;
        }
        let (number, is_new) = self.keys.acquire(key);
        let identity = Identity(number);
        if is_new && let Some(key) = self.keys.key(number) {
            turn.came.insert(identity);
            for selector in &key.selectors {
                self.members.entry(*selector).or_default().insert(identity);
            }
            if key.kind == Kind::Host {
                self.hosts.insert(identity);
            }
            if !key.named_ports.is_empty() {
                self.with_named_ports.insert(identity);
            }
            for port in key.named_ports.iter().map(port_name) {
                let identities = self.port_names.entry(port.clone()).or_default();
                *identities += 1;
                if *identities == 1 {
                    turn.port_names.insert(port);
                }
            }
        }
        identity
    }

    /// One more user of what has `identity`.
    pub(super) fn acquire_again(&mut self, identity: Identity) -> Identity {
        // Reserved ones are nobody's to count.
        self.keys.acquire_again(identity.0);
        identity
    }

    /// To be called once all that is there has its number.
    pub(super) fn release(&mut self, turn: &mut Turn) {
        for identity in std::mem::take(&mut turn.released) {
            let Some(key) = self.keys.release(identity.0) else { continue };
            for selector in &key.selectors {
                if let Some(members) = self.members.get_mut(selector) {
                    members.remove(&identity);
                    if members.is_empty() {
                        self.members.remove(selector);
                    }
                }
            }
            self.hosts.remove(&identity);
            self.with_named_ports.remove(&identity);
            for port in key.named_ports.iter().map(port_name) {
                if let Some(identities) = self.port_names.get_mut(&port) {
                    *identities -= 1;
                    if *identities == 0 {
                        self.port_names.remove(&port);
                        turn.port_names.insert(port);
                    }
                }
            }
            turn.went.insert(identity, key);
        }
    }

    /// Whether some pod has a port of this name, which policies use.
    pub(super) fn has_port_name(&self, name: &PortName) -> bool {
        self.port_names.contains_key(name)
    }

    /// Every address whose identity has `selector`.
    pub(super) fn addresses_with(&self, selector: SelectorId) -> Vec<IpAddr> {
        let Some(members) = self.members.get(&selector) else { return Vec::new() };
        let addresses = self.table.exact.iter();
        addresses
            .filter(|(_, own)| members.contains(&own.identity))
            .map(|(address, _)| address)
            .collect()
    }
}

fn port_name(port: &NamedPort) -> PortName {
    (port.name.clone(), port.protocol)
}

/// The number of the port that `key` names so.
pub(super) fn resolve(key: &Key, name: &str, protocol: Protocol) -> Option<u16> {
    key.named_ports
        .iter()
        .find(|port| port.name == name && port.protocol == protocol)
        .map(|port| port.l4_port)
}
