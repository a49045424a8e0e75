//! Objects as nodes will read them: what cannot be used as it is deserves an Event.
//!
//! Judged is what is served, by the decoder that nodes have. Every relay judges, so that the one
//! that comes to lead next knows what is wrong.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use control::model::{Kind, Object};
use serde_json::value::RawValue;

use super::writes::reason::{
    ADDRESS_CLAIMED_TWICE, INVALID_OBJECT, LIST_HELD, LIST_TAKEN, Reason, of,
};
use super::writes::{Finding, Findings, LeaseName, Regarding};
use crate::decode::{Decoded, decode};
use crate::hold::is_live;
use crate::list_watch::wire::metadata;
use crate::resource::Resource;
use crate::serve::{Encoded, Store};

/// Pods that are named of those that claim one address.
const CLAIMANTS_TOLD: usize = 4;

/// Judges one kind.
pub(super) struct Judge {
    kind: Kind,
    store: Arc<Store>,
    findings: Findings,
    /// Events about lists are about it: what is held is no object's fault.
    lease: LeaseName,
    claims: Claims,
    is_holding: bool,
}

impl Judge {
    pub(super) fn new(kind: Kind, store: Arc<Store>, findings: Findings, lease: LeaseName) -> Self {
        let claims = Claims::default();
        Self { kind, store, findings, lease, claims, is_holding: false }
    }

    /// An object came or changed, and is served.
    pub(super) fn came(&mut self, object: &Encoded) {
        let Ok(text) = serde_json::from_slice::<&RawValue>(&object.fields) else { return };
        let decoded = decode(self.kind, text);
        let found = of(&decoded);
        let (namespace, name) = (&*object.namespace, &*object.name);
        let reason = found.as_ref().map(|(reason, _)| *reason);
        self.findings.lock().settle(self.kind.name(), namespace, name, |own| {
            Some(own) == reason || own == ADDRESS_CLAIMED_TWICE
        });
        if let Some((reason, note)) = found {
            let uid = metadata(text).and_then(|metadata| metadata.uid);
            self.find(namespace, name, uid, reason, note, object.version);
        }
        if self.kind == Kind::Pod {
            let touched = self.claims.set(&object.key(), &addresses(&decoded));
            self.judge_claims(&touched);
        }
    }

    /// An object went.
    pub(super) fn went(&mut self, namespace: &str, name: &str) {
        self.findings.lock().settle(self.kind.name(), namespace, name, |_| false);
        if self.kind == Kind::Pod {
            let key = [namespace, name].join("/");
            let touched = self.claims.set(&key, &[]);
            self.judge_claims(&touched);
        }
    }

    /// A whole list is served, but for `held` objects that are as they were before it.
    pub(super) fn listed(&mut self, list: &[Encoded], held: usize) {
        let (kind, store) = (self.kind, Arc::clone(&self.store));
        let is_there = |namespace: &str, name: &str| store.get(kind, namespace, name).is_some();
        self.findings.lock().settle_missing(kind.name(), is_there);
        if kind == Kind::Pod {
            let gone = |key: &str| {
                let (namespace, name) = key.split_once('/').unwrap_or(("", key));
                !is_there(namespace, name)
            };
            let touched = self.claims.drop_all(gone);
            self.judge_claims(&touched);
        }
        for object in list {
            self.came(object);
        }
        let plural = Resource::of(kind).plural;
        if held > 0 {
            let there = store.counts(kind).objects;
            let lacks = match kind {
                Kind::EndpointSlice => "lacks endpoints of",
                _ => "lacks",
            };
            let note = format!(
                "{plural}: a list of the API server's {lacks} {held} of {there} objects, which is \
                 more than is believed at once: they are served until a second list agrees"
            );
            self.find_of_list(LIST_HELD, note);
        } else if self.is_holding {
            let there = store.counts(kind).objects;
            let note = format!("{plural}: the second list is taken, and {there} objects are left");
            self.find_of_list(LIST_TAKEN, note);
        }
        self.is_holding = held > 0;
    }

    /// An object cannot be served at all.
    pub(super) fn unservable(&self, object: &RawValue, why: String) {
        let metadata = metadata(object).unwrap_or_default();
        let Some(name) = metadata.name else { return };
        let namespace = metadata.namespace.unwrap_or_default();
        let version = metadata.resource_version.and_then(|own| own.parse().ok());
        let (uid, version) = (metadata.uid, version.unwrap_or_default());
        self.find(&namespace, &name, uid, INVALID_OBJECT, why, version);
    }

    fn find(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<String>,
        reason: Reason,
        note: String,
        version: u64,
    ) {
        let regarding = Regarding {
            kind: self.kind.name(),
            api_version: Resource::of(self.kind).api_version(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid,
        };
        self.findings.note(Finding { regarding, reason, about: "", note, version });
    }

    fn find_of_list(&self, reason: Reason, note: String) {
        let LeaseName { namespace, name } = self.lease.clone();
        let regarding = Regarding {
            kind: "Lease",
            api_version: "coordination.k8s.io/v1".to_owned(),
            namespace,
            name,
            uid: None,
        };
        let about = Resource::of(self.kind).plural;
        self.findings.note(Finding { regarding, reason, about, note, version: 0 });
    }

    /// Judges pods whose addresses' claims may have changed.
    fn judge_claims(&self, touched: &[Arc<str>]) {
        for key in touched {
            let (namespace, name) = key.split_once('/').unwrap_or(("", key));
            let doubled = self.claims.doubled(key);
            let Some((address, others)) = doubled else {
                let is_left = |own| own != ADDRESS_CLAIMED_TWICE;
                self.findings.lock().settle(self.kind.name(), namespace, name, is_left);
                continue;
            };
            let Some(stored) = self.store.get(self.kind, namespace, name) else { continue };
            let object = stored.object();
            let text = serde_json::from_slice::<&RawValue>(&object).ok();
            let uid = text.and_then(metadata).and_then(|metadata| metadata.uid);
            let others = others.join(", ");
            let note = format!(
                "{address} is claimed by Pod {others} as well: packets to it reach one of them"
            );
            self.find(namespace, name, uid, ADDRESS_CLAIMED_TWICE, note, stored.version);
        }
    }
}

/// The addresses that a pod claims for itself alone.
fn addresses(decoded: &Decoded) -> Vec<IpAddr> {
    match decoded {
        Decoded::Good(Object::Pod(pod)) if is_live(pod) => pod.addresses.to_vec(),
        _ => Vec::new(),
    }
}

/// Who claims an address: nearly always one.
#[derive(Debug, PartialEq, Eq)]
enum Claimants {
    One(Arc<str>),
    /// Two at least, in order, so that every relay says the same of them.
    More(Vec<Arc<str>>),
}

/// Pods by address. As large as the store's pods: one entry for each of their addresses.
#[derive(Debug, Default)]
struct Claims {
    pods: HashMap<Arc<str>, Box<[IpAddr]>>,
    addresses: HashMap<IpAddr, Claimants>,
}

impl Claims {
    /// What a pod (`namespace/name`) claims from now on. Gives the pods for which that may matter.
    fn set(&mut self, key: &str, addresses: &[IpAddr]) -> Vec<Arc<str>> {
        if self.pods.get(key).map_or(&[][..], |own| own) == addresses {
            return Vec::new();
        }
        let mut touched = Vec::new();
        if let Some((key, before)) = self.pods.remove_entry(key) {
            for address in before {
                self.release(address, &key, &mut touched);
            }
            touched.push(key);
        }
        if !addresses.is_empty() {
            let key: Arc<str> = key.into();
            for address in addresses {
                self.claim(*address, &key, &mut touched);
            }
            self.pods.insert(key, addresses.into());
        }
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// Forgets the pods that `is_gone` names.
    fn drop_all(&mut self, is_gone: impl Fn(&str) -> bool) -> Vec<Arc<str>> {
        let gone: Vec<Arc<str>> = self.pods.keys().filter(|key| is_gone(key)).cloned().collect();
        gone.iter().flat_map(|key| self.set(key, &[])).collect()
    }

    fn claim(&mut self, address: IpAddr, key: &Arc<str>, touched: &mut Vec<Arc<str>>) {
        match self.addresses.get_mut(&address) {
            None => {
                self.addresses.insert(address, Claimants::One(Arc::clone(key)));
            }
            Some(Claimants::One(other)) if other == key => {}
            Some(own @ Claimants::One(_)) => {
                let Claimants::One(other) = own else { return };
                let mut all = vec![Arc::clone(other), Arc::clone(key)];
                all.sort_unstable();
                touched.extend(all.iter().cloned());
                *own = Claimants::More(all);
            }
            Some(Claimants::More(all)) => {
                if let Err(at) = all.binary_search(key) {
                    all.insert(at, Arc::clone(key));
                }
                touched.extend(all.iter().take(CLAIMANTS_TOLD).cloned());
                touched.push(Arc::clone(key));
            }
        }
    }

    fn release(&mut self, address: IpAddr, key: &Arc<str>, touched: &mut Vec<Arc<str>>) {
        match self.addresses.get_mut(&address) {
            Some(Claimants::One(own)) if own == key => {
                self.addresses.remove(&address);
            }
            Some(own @ Claimants::More(_)) => {
                let Claimants::More(all) = own else { return };
                all.retain(|other| other != key);
                touched.extend(all.iter().take(CLAIMANTS_TOLD).cloned());
                if let [last] = all.as_slice() {
                    *own = Claimants::One(Arc::clone(last));
                }
            }
            _ => {}
        }
    }

    /// The first address of the pod that others claim too, and some of these.
    fn doubled(&self, key: &str) -> Option<(IpAddr, Vec<&str>)> {
        self.pods.get(key)?.iter().find_map(|address| {
            let Some(Claimants::More(all)) = self.addresses.get(address) else { return None };
            let others = all.iter().map(|other| &**other).filter(|other| *other != key);
            Some((*address, others.take(CLAIMANTS_TOLD).collect()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [10, 1, 0, last].into()
    }

    fn names(touched: &[Arc<str>]) -> Vec<&str> {
        touched.iter().map(|own| &**own).collect()
    }

    #[test]
    fn an_address_of_two_pods_is_both_ones_matter_until_one_lets_go() {
        let mut claims = Claims::default();
        assert_eq!(names(&claims.set("shop/b", &[ip(5), ip(6)])), [] as [&str; 0]);
        assert_eq!(names(&claims.set("shop/a", &[ip(5)])), ["shop/a", "shop/b"]);
        assert_eq!(claims.doubled("shop/a"), Some((ip(5), vec!["shop/b"])));
        assert_eq!(claims.doubled("shop/b"), Some((ip(5), vec!["shop/a"])));
        assert!(claims.set("shop/a", &[ip(5)]).is_empty(), "nothing changed");
        claims.set("shop/c", &[ip(5)]);
        assert_eq!(claims.doubled("shop/a"), Some((ip(5), vec!["shop/b", "shop/c"])));
        assert_eq!(names(&claims.set("shop/a", &[])), ["shop/a", "shop/b", "shop/c"]);
        claims.set("shop/c", &[ip(7)]);
        assert_eq!(claims.doubled("shop/b"), None);
        claims.drop_all(|_| true);
        assert!(claims.pods.is_empty() && claims.addresses.is_empty());
    }
}
