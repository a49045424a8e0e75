//! Pods of this node that nobody registered: they ran before the node process was installed, so no CNI
//! ADD ever told of them. The API server knows their names and addresses, and the kernel whose veth pairs
//! lead to these. Each becomes an endpoint like any other, by the way of every [arrival](super::arrivals).
//!
//! Only what is certain is adopted: one pair, whose other end has all addresses of the Pod, at two looks
//! after each other, since a pod that is being removed shows the same for a moment. What was removed on
//! request stays out while its interface lives. All others are named.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use control::admin::EndpointAdd;
use control::admin::arrivals::{PodOutside, RunningPodsStatus};
use control::model::{Kind, Object, ObjectName, Pod, Uid};
use control::store::Change;
use tokio::task::JoinHandle;

use super::Node;
use super::arrivals::Asked;
use super::caught::{Panicked, caught};
use super::endpoints::EndpointSpec;
use super::reconciles::Reconcile;
use crate::netlink::pod_ends::{PodEnd, pod_ends};

/// How often it is looked whether there are any.
const LOOK: Duration = Duration::from_secs(4);
/// Pods that are named; more are counted.
const NAMED: usize = 64;
/// What an error of the look itself is called.
const OBJECT: &str = "pods that nobody registered";

type Outcome = Result<std::io::Result<Vec<PodEnd>>, Panicked>;

/// The look that goes on, and what is known of such pods.
#[derive(Debug, Default)]
pub(super) struct RunningPods {
    begun: Option<Instant>,
    /// Pods of this node: of 150,000 to be found at each look they would take too long. `None` until all
    /// were gone through once.
    ours: Option<BTreeSet<ObjectName>>,
    looking: Option<JoinHandle<Outcome>>,
    /// Where the last look found each: the index of the node's end.
    found: BTreeMap<ObjectName, u32>,
    /// Those that are being adopted.
    asked: Asked<ObjectName>,
    /// Those that were to be adopted and could not, of which it is told until they are endpoints or gone.
    failed: BTreeSet<ObjectName>,
    /// The others, and why.
    outside: BTreeMap<ObjectName, String>,
    /// Interfaces of endpoints that were removed on request.
    removed: BTreeSet<u32>,
    adopted: u64,
}

impl RunningPods {
    /// Notes what changes of the pods of the node of this name.
    pub(super) fn note(&mut self, node: &str, change: &Change) {
        let Some(ours) = &mut self.ours else { return };
        match change {
            Change::Set(Object::Pod(pod)) if pod.node.as_deref() == Some(node) => {
                ours.insert(pod.name.clone());
            }
            Change::Set(Object::Pod(pod)) => _ = ours.remove(&pod.name),
            Change::Gone(key) if key.kind == Kind::Pod => _ = ours.remove(&key.name),
            Change::Set(_) | Change::Gone(_) => {}
        }
    }

    /// Forgets which pods are this node's: changes may have come that were not told.
    pub(super) fn begin_anew(&mut self) {
        self.ours = None;
    }

    /// Interfaces whose endpoints were removed on request.
    pub(super) fn removed(&self) -> &BTreeSet<u32> {
        &self.removed
    }

    /// Those are not adopted again.
    pub(super) fn leave_out(&mut self, removed: impl IntoIterator<Item = u32>) {
        self.removed.extend(removed);
    }
}

impl Node {
    /// Takes in what was found, and looks again when it is time and there is any such pod; on another
    /// thread, since the kernel is asked about each.
    pub(super) async fn adopt_running_pods(&mut self) {
        self.note_adopted();
        self.forget_gone_interfaces();
        match self.running_pods.looking.take() {
            Some(look) if look.is_finished() => {
                // The task only waits for what `caught` gives.
                if let Ok(outcome) = look.await {
                    self.note_pod_ends(outcome).await;
                }
            }
            unfinished => self.running_pods.looking = unfinished,
        }
        let is_due = self.running_pods.begun.is_none_or(|begun| begun.elapsed() >= LOOK);
        if !is_due || self.running_pods.looking.is_some() {
            return;
        }
        self.running_pods.begun = Some(Instant::now());
        let (pods, node) = (&self.publisher.cluster().pods, &*self.settings.node_name);
        self.running_pods.ours.get_or_insert_with(|| {
            let own = pods.values().filter(|pod| pod.node.as_deref() == Some(node));
            own.map(|pod| pod.name.clone()).collect()
        });
        let is_any = self.settings.adopt_running_pods && self.unregistered_pods().next().is_some();
        if is_any {
            let known = self.ports.iter().map(|port| port.attachment.ifindex).collect();
            self.running_pods.looking = Some(tokio::spawn(caught(move || pod_ends(&known))));
        } else {
            self.running_pods.found.clear();
            self.running_pods.outside.clear();
        }
    }

    /// Whether it is known which pods are this node's, and there are any.
    pub(super) fn are_own_pods_known(&self) -> bool {
        self.running_pods.ours.as_ref().is_some_and(|ours| !ours.is_empty())
    }

    /// Whether some are about to become endpoints.
    pub(super) fn are_pods_being_adopted(&self) -> bool {
        !self.running_pods.asked.is_empty()
    }

    /// Those of this node that should have an interface here and are no endpoint, nor about to be one.
    pub(super) fn unregistered_pods(&self) -> impl Iterator<Item = &Pod> {
        let has_interface =
            |pod: &&Pod| !pod.host_network && !pod.is_completed() && !pod.addresses.is_empty();
        let is_known = |pod: &Pod| {
            let awaited = |name: &str| self.awaited.iter().any(|one| one.endpoint.name == name);
            self.endpoints.get(&pod.name).is_some()
                || self.running_pods.asked.contains(&pod.name)
                || (!self.awaited.is_empty() && awaited(&pod.name.to_string()))
        };
        let cluster = self.publisher.cluster();
        let ours = self.running_pods.ours.iter().flatten();
        let pods = ours.filter_map(|name| cluster.pod(name)).filter(has_interface);
        pods.filter(move |pod| !is_known(pod))
    }

    async fn note_pod_ends(&mut self, outcome: Outcome) {
        let ends = match outcome {
            Ok(Ok(ends)) => ends,
            Ok(Err(error)) => return self.failed(Reconcile::Endpoints, OBJECT, error),
            Err(panicked) => return self.failed(Reconcile::Endpoints, OBJECT, panicked),
        };
        self.errors.clear(OBJECT);
        let (mut found, mut outside, mut certain) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for pod in self.unregistered_pods() {
            match place(&pod.addresses, &ends)
                .and_then(|end| not_removed(end, &self.running_pods.removed))
            {
                Err(why) => _ = outside.insert(pod.name.clone(), why),
                Ok(end) if self.running_pods.found.get(&pod.name) == Some(&end.ifindex) => {
                    certain.push(spec(pod, end));
                }
                Ok(end) => _ = found.insert(pod.name.clone(), end.ifindex),
            }
        }
        for (name, why) in &outside {
            if self.running_pods.outside.get(name) != Some(why) {
                tracing::warn!(pod = %name, why, "it is not served, and no policy holds for it");
            }
        }
        (self.running_pods.found, self.running_pods.outside) = (found, outside);
        for spec in certain {
            let (name, interface) = (spec.name.clone(), spec.interface.clone());
            tracing::info!(endpoint = %name, interface, "it ran before; it is being adopted");
            match self.ask_for_endpoint(EndpointAdd::from(&spec)).await {
                Ok(reply) => self.running_pods.asked.insert(name, reply),
                Err(error) => _ = self.running_pods.outside.insert(name, error.to_string()),
            }
        }
    }

    /// Of interfaces that went away, or became ports again, nothing is to be remembered.
    fn forget_gone_interfaces(&mut self) {
        if self.running_pods.removed.is_empty() {
            return;
        }
        let view = self.follower.view();
        let ports: BTreeSet<u32> = self.ports.iter().map(|port| port.attachment.ifindex).collect();
        let removed = &mut self.running_pods.removed;
        let before = removed.len();
        removed.retain(|ifindex| view.links.contains_key(ifindex) && !ports.contains(ifindex));
        if removed.len() < before {
            self.record_endpoints();
        }
    }

    /// Takes in what became of those that are being adopted.
    fn note_adopted(&mut self) {
        for (name, outcome) in self.running_pods.asked.take_answered() {
            match outcome {
                Ok(()) => {
                    tracing::info!(endpoint = %name, "adopted");
                    self.running_pods.adopted += 1;
                }
                // It is tried again.
                Err(why) => {
                    self.failed(Reconcile::Endpoints, object_of(&name), why);
                    self.running_pods.failed.insert(name);
                }
            }
        }
        self.forget_not_adopted();
    }

    /// Of pods that became endpoints, however, or went away, nothing is wrong any more.
    fn forget_not_adopted(&mut self) {
        if self.running_pods.failed.is_empty() {
            return;
        }
        let asked = self.running_pods.asked.keys();
        let left = self.unregistered_pods().map(|pod| &pod.name).chain(asked);
        let left: BTreeSet<ObjectName> = left.cloned().collect();
        for name in self.running_pods.failed.difference(&left) {
            self.errors.clear(&object_of(name));
        }
        self.running_pods.failed.retain(|name| left.contains(name));
    }

    /// How they stand.
    pub(super) fn running_pods_status(&self) -> RunningPodsStatus {
        let RunningPods { outside, asked, adopted, .. } = &self.running_pods;
        let named = outside.iter().take(NAMED);
        RunningPodsStatus {
            adopted: *adopted,
            under_way: asked.len() as u64,
            outside: outside.len() as u64,
            named: named
                .map(|(name, why)| PodOutside { pod: name.to_string(), why: why.clone() })
                .collect(),
        }
    }
}

/// What errors about one that is to be adopted are called.
fn object_of(name: &ObjectName) -> String {
    format!("running pod {name}")
}

/// Where a Pod is, when that is certain.
fn place<'a>(addresses: &[IpAddr], ends: &'a [PodEnd]) -> Result<&'a PodEnd, String> {
    let has_any = |end: &&PodEnd| addresses.iter().any(|own| end.addresses.contains(own));
    let mut found = ends.iter().filter(has_any);
    let Some(end) = found.next() else {
        return Err(
            "no veth pair of this node ends at an interface with one of its addresses".into()
        );
    };
    if let Some(other) = found.next() {
        let (one, other) = (&end.interface, &other.interface);
        return Err(format!("its addresses are behind {one} and behind {other}"));
    }
    let is_missing = |own: &&IpAddr| !end.addresses.contains(own);
    match addresses.iter().find(is_missing) {
        Some(missing) => Err(format!("the other end of {} lacks {missing}", end.interface)),
        None => Ok(end),
    }
}

fn not_removed<'a>(end: &'a PodEnd, removed: &BTreeSet<u32>) -> Result<&'a PodEnd, String> {
    if removed.contains(&end.ifindex) {
        let interface = &end.interface;
        return Err(format!("its endpoint on {interface} was removed; add it by hand"));
    }
    Ok(end)
}

fn spec(pod: &Pod, end: &PodEnd) -> EndpointSpec {
    EndpointSpec {
        name: pod.name.clone(),
        interface: end.interface.clone(),
        netns: end.netns.clone(),
        addresses: pod.addresses.to_vec(),
        mac: end.mac,
        attachment: None,
        pod_uid: (pod.uid != Uid::Absent).then(|| pod.uid.to_string()),
        bandwidth: None,
    }
}

#[cfg(test)]
mod tests {
    use control::model::ObjectKey;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn end(ifindex: u32, own: &[&str]) -> PodEnd {
        PodEnd {
            interface: format!("veth{ifindex}"),
            ifindex,
            addresses: addresses(own),
            mac: None,
            netns: None,
        }
    }

    #[test]
    fn pods_of_this_node_are_followed_once_all_were_gone_through() {
        let name = ObjectName::new("shop", "web");
        let set = |node: &str| {
            let text = format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: web, namespace: shop}}, \
                 spec: {{nodeName: {node}, containers: []}}}}"
            );
            let objects = control::manifests::parse(std::path::Path::new("pod.yaml"), &text);
            let pod = objects.unwrap().state.pods.remove(&name).unwrap();
            Change::Set(Object::from(*pod))
        };
        let mut pods = RunningPods::default();
        pods.note("one", &set("one"));
        assert_eq!(pods.ours, None, "nobody has looked yet");
        pods.ours = Some(BTreeSet::new());
        let all = |pods: &RunningPods| pods.ours.clone().unwrap();
        for (change, known) in [
            (set("two"), false),
            (set("one"), true),
            (Change::Gone(ObjectKey::new(Kind::Service, name.clone())), true),
            (Change::Gone(ObjectKey::new(Kind::Pod, name.clone())), false),
            (set("one"), true),
            (set("two"), false),
        ] {
            pods.note("one", &change);
            assert_eq!(all(&pods).contains(&name), known, "{change:?}");
        }
    }

    #[test]
    fn a_pod_is_where_all_its_addresses_are_and_nowhere_when_that_is_not_certain() {
        let both = ["10.1.0.5", "fd00::5"];
        let ends = [end(3, &["10.1.0.4"]), end(4, &["fe80::1", "10.1.0.5", "fd00::5"])];
        assert_eq!(place(&addresses(&both), &ends), Ok(&ends[1]));
        assert_eq!(place(&addresses(&both[..1]), &ends), Ok(&ends[1]));
        let refused = |own: &[&str], ends: &[PodEnd]| {
            place(&addresses(own), ends).map(|end| end.ifindex).unwrap_err()
        };
        assert!(refused(&["10.1.0.9"], &ends).contains("no veth pair"));
        assert!(refused(&["10.1.0.5", "fd00::9"], &ends).contains("lacks fd00::9"));
        let twice = [end(3, &["10.1.0.5"]), end(4, &["10.1.0.5"])];
        assert!(refused(&both[..1], &twice).contains("veth3 and behind veth4"));
    }

    #[test]
    fn what_was_removed_on_request_stays_out() {
        let end = end(4, &["10.1.0.5"]);
        assert!(not_removed(&end, &[4].into()).unwrap_err().contains("by hand"));
        assert_eq!(not_removed(&end, &[5].into()), Ok(&end));
    }
}
