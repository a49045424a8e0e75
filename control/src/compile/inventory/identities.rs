//! Identities, with the selectors that make them and the policies that use those.

use std::collections::{BTreeMap, BTreeSet};

use dataplane::identity::Identity;
use dataplane::policy::Direction;
use hashbrown::HashMap;

use super::{Census, text};
use crate::admin::policy::{
    Excerpt, IdentityInfo, IdentityListing, POLICIES_NAMED_MAX, SelectorInfo, SelectorUse,
};
use crate::compile::Compiled;
use crate::compile::identities::{Key, Kind};
use crate::compile::policies::{DIRECTIONS, direction_name, rules};
use crate::compile::selectors::{Selector, SelectorId};

/// Those with a fixed number.
const RESERVED: [Identity; 6] = [
    Identity::HOST,
    Identity::REMOTE_NODE,
    Identity::KUBE_APISERVER,
    Identity::HEALTH,
    Identity::INGRESS,
    Identity::WORLD,
];
/// Lengths of the lists within a row of a listing.
const IN_ROW: usize = 4;

impl Compiled {
    /// Identities by number, reserved ones first: `limit` of those above `after`.
    #[must_use]
    pub fn list_identities(&self, limit: usize, after: Option<u32>) -> IdentityListing {
        let mut numbers: Vec<Identity> = RESERVED.to_vec();
        numbers.extend(self.known.numbers());
        let total = numbers.len() as u64;
        numbers.retain(|identity| after.is_none_or(|after| identity.0 > after));
        numbers.sort_unstable();
        let is_cut = numbers.len() > limit;
        numbers.truncate(limit);
        let next = numbers.last().filter(|_| is_cut).map(|identity| identity.0);
        IdentityListing { rows: self.described(&numbers, IN_ROW), total, next }
    }

    /// An identity with its lists up to `limit`; `None` for a number that is nobody's.
    #[must_use]
    pub fn describe_identity(&self, identity: Identity, limit: usize) -> Option<IdentityInfo> {
        let is_known = RESERVED.contains(&identity) || self.known.key(identity).is_some();
        if !is_known {
            return None;
        }
        self.described(&[identity], limit).pop()
    }

    fn described(&self, wanted: &[Identity], limit: usize) -> Vec<IdentityInfo> {
        let census = Census::of(self, &wanted.iter().copied().collect(), limit);
        let keys = wanted.iter().filter_map(|identity| self.known.key(*identity));
        let selectors = keys.flat_map(|key| key.selectors.iter().take(limit).copied()).collect();
        let uses = self.uses_of(&selectors, limit.min(POLICIES_NAMED_MAX));
        let mut ranges: BTreeMap<Identity, Vec<String>> =
            wanted.iter().map(|identity| (*identity, Vec::new())).collect();
        for (range, identity) in self.known.ranges() {
            if let Some(ranges) = ranges.get_mut(&identity) {
                ranges.push(range.to_string());
            }
        }
        let describe = |identity: &Identity| {
            let ranges = ranges.remove(identity).unwrap_or_default();
            let info = IdentityInfo {
                number: identity.0,
                reserved: identity.0 < Identity::FIRST_COMPILED,
                addresses: census.count(*identity),
                addresses_here: self.known.local.get(identity).map_or(0, BTreeSet::len) as u64,
                examples: census.examples(self, *identity),
                ranges: Excerpt::of(ranges, limit),
                isolated_ingress: self.isolated_by(*identity, Direction::Ingress, limit),
                isolated_egress: self.isolated_by(*identity, Direction::Egress, limit),
                ..IdentityInfo::default()
            };
            match self.known.key(*identity) {
                Some(key) => self.with_key(info, key, &uses, limit),
                None => IdentityInfo { kind: self.identity_name(*identity), ..info },
            }
        };
        wanted.iter().map(describe).collect()
    }

    fn with_key(
        &self,
        info: IdentityInfo,
        key: &Key,
        uses: &HashMap<SelectorId, Excerpt<SelectorUse>>,
        limit: usize,
    ) -> IdentityInfo {
        let selector = |id: &SelectorId| SelectorInfo {
            selector: self.selectors.selector(*id).map(text).unwrap_or_default(),
            used_by: uses.get(id).cloned().unwrap_or_default(),
        };
        let ports = key.named_ports.iter();
        let ports = ports.map(|port| format!("{} {}/{}", port.name, port.l4_port, port.protocol));
        IdentityInfo {
            kind: kind_name(&key.kind).to_owned(),
            selectors: Excerpt::of(key.selectors.iter().map(selector), limit),
            named_ports: Excerpt::of(ports, limit),
            ..info
        }
    }

    fn isolated_by(&self, identity: Identity, side: Direction, limit: usize) -> Excerpt<String> {
        let enforced = self.isolating(identity, side).iter().map(ToString::to_string);
        let audited = self.audited(identity, side).iter();
        let audited = audited.map(|name| format!("{name} (under audit)"));
        Excerpt::of(enforced.chain(audited), limit)
    }

    /// Where policies use these selectors, by the policies' names.
    fn uses_of(
        &self,
        wanted: &BTreeSet<SelectorId>,
        length_max: usize,
    ) -> HashMap<SelectorId, Excerpt<SelectorUse>> {
        let mut uses: HashMap<SelectorId, Excerpt<SelectorUse>> = HashMap::new();
        if wanted.is_empty() {
            return uses;
        }
        let mut note =
            |selector: &Selector, policy: &crate::model::ObjectName, field: &dyn Fn() -> String| {
                let Some(id) = self.selectors.get(selector).filter(|id| wanted.contains(id)) else {
                    return;
                };
                let known = uses.entry(id).or_default();
                if known.first.len() < length_max {
                    known.first.push(SelectorUse { policy: policy.to_string(), field: field() });
                } else {
                    known.left_out += 1;
                }
            };
        for policy in self.state.network_policies.values() {
            let name = &policy.name;
            note(&Selector::subject(policy), name, &|| "spec.podSelector".to_owned());
            for direction in DIRECTIONS {
                let list = match direction {
                    Direction::Ingress => "from",
                    Direction::Egress => "to",
                };
                for (index, rule) in rules(policy, direction).unwrap_or_default().iter().enumerate()
                {
                    let field = || format!("spec.{}[{index}].{list}", direction_name(direction));
                    for peer in &rule.peers {
                        note(&Selector::peer(&name.namespace, peer), name, &field);
                    }
                }
            }
        }
        uses
    }
}

fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Host => "host",
        Kind::RemoteNode => "remote-node",
        Kind::Pod => "pod",
        Kind::UnknownPod { .. } => "pod without Pod object",
        Kind::World => "world",
    }
}
