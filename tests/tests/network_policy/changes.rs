//! What happens to a cluster between one compilation and the next.

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::api::networking::v1::NetworkPolicySpec;
use proptest::prelude::*;
use proptest::sample::Index;
use xskiff_tests::policy_model::{Objects, pod_addresses};

use crate::clusters::{
    Labels, PodDraft, claims_anothers, labels, pod, pod_draft, policy, policy_spec, terminate,
};

/// One change; where there is nothing to change, nothing happens.
#[derive(Debug, Clone)]
pub enum Change {
    PodLabels(Index, Labels),
    NamespaceLabels(Index, Labels),
    NamespaceGone(Index),
    PodAdded(PodDraft),
    PodGone(Index),
    PodTerminates(Index),
    PodCompletes(Index),
    /// A pod ends, one way or the other, and another of this kind gets its addresses on its node.
    AddressReused(Index, bool, PodDraft),
    PolicyAdded((String, NetworkPolicySpec)),
    PolicyGone(Index),
    PolicySays(Index, NetworkPolicySpec),
}

pub fn change() -> impl Strategy<Value = Change> {
    let which = any::<Index>;
    prop_oneof![
        3 => (which(), labels()).prop_map(|(index, labels)| Change::PodLabels(index, labels)),
        2 => (which(), labels()).prop_map(|(index, labels)| Change::NamespaceLabels(index, labels)),
        1 => which().prop_map(Change::NamespaceGone),
        1 => pod_draft().prop_map(Change::PodAdded),
        1 => which().prop_map(Change::PodGone),
        1 => which().prop_map(Change::PodTerminates),
        1 => which().prop_map(Change::PodCompletes),
        2 => (which(), any::<bool>(), pod_draft())
            .prop_map(|(index, completes, draft)| Change::AddressReused(index, completes, draft)),
        2 => policy_spec().prop_map(Change::PolicyAdded),
        1 => which().prop_map(Change::PolicyGone),
        1 => (which(), policy_spec()).prop_map(|(index, (_, spec))| Change::PolicySays(index, spec)),
    ]
}

fn find<'a, T>(all: &'a mut [T], index: &Index) -> Option<&'a mut T> {
    if all.is_empty() { None } else { Some(index.get_mut(all)) }
}

fn remove<T>(all: &mut Vec<T>, index: &Index) {
    if !all.is_empty() {
        all.remove(index.index(all.len()));
    }
}

fn complete(pod: &mut Pod) {
    if let Some(status) = &mut pod.status {
        status.phase = Some("Succeeded".into());
    }
}

impl Change {
    /// Makes the change; `number` tells what is new from what was there before.
    pub fn apply(&self, number: usize, objects: &mut Objects) {
        match self {
            Self::PodLabels(index, labels) => {
                if let Some(pod) = find(&mut objects.pods, index) {
                    pod.metadata.labels = Some(labels.clone());
                }
            }
            Self::NamespaceLabels(index, labels) => {
                if let Some(namespace) = find(&mut objects.namespaces, index) {
                    namespace.metadata.labels = Some(labels.clone());
                }
            }
            Self::NamespaceGone(index) => remove(&mut objects.namespaces, index),
            Self::PodAdded(draft) => add(objects, pod(&format!("new{number}"), draft.clone())),
            Self::PodGone(index) => remove(&mut objects.pods, index),
            Self::PodTerminates(index) => {
                change_pod(objects, index, terminate);
            }
            Self::PodCompletes(index) => {
                change_pod(objects, index, complete);
            }
            Self::AddressReused(index, completes, draft) => {
                let end: fn(&mut Pod) = if *completes { complete } else { terminate };
                let Some(old) = change_pod(objects, index, end) else { return };
                let new = pod(&format!("new{number}"), draft.clone());
                add(objects, with_addresses_of(&old, new));
            }
            Self::PolicyAdded((namespace, spec)) => {
                objects.policies.push(policy(&format!("new{number}"), namespace, spec.clone()));
            }
            Self::PolicyGone(index) => remove(&mut objects.policies, index),
            Self::PolicySays(index, spec) => {
                if let Some(policy) = find(&mut objects.policies, index) {
                    policy.spec = Some(spec.clone());
                }
            }
        }
    }
}

/// Changes a pod, unless it would then have an address on equal terms with another.
fn change_pod(objects: &mut Objects, index: &Index, change: fn(&mut Pod)) -> Option<Pod> {
    if objects.pods.is_empty() {
        return None;
    }
    let mut changed = objects.pods.remove(index.index(objects.pods.len()));
    let before = changed.clone();
    change(&mut changed);
    let fits = !claims_anothers(&objects.pods, &changed);
    objects.pods.push(if fits { changed.clone() } else { before });
    fits.then_some(changed)
}

fn add(objects: &mut Objects, pod: Pod) {
    if !claims_anothers(&objects.pods, &pod) {
        objects.pods.push(pod);
    }
}

fn with_addresses_of(old: &Pod, mut new: Pod) -> Pod {
    let is_plain =
        |spec: &Option<PodSpec>| spec.as_ref().is_some_and(|spec| spec.host_network != Some(true));
    if is_plain(&old.spec) && is_plain(&new.spec) && !pod_addresses(&new).is_empty() {
        if let (Some(status), Some(before)) = (&mut new.status, &old.status) {
            status.pod_ip.clone_from(&before.pod_ip);
            status.pod_ips.clone_from(&before.pod_ips);
        }
        if let (Some(spec), Some(before)) = (&mut new.spec, &old.spec) {
            spec.node_name.clone_from(&before.node_name);
        }
    }
    new
}
