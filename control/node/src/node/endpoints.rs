//! Local pods: which interface, which addresses, which port. Pure bookkeeping.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use control::admin::{AdminError, Attachment, Bandwidth, EndpointAdd, parse_mac};
use control::model::ObjectName;
use dataplane::address::MacAddr;
use dataplane::port::{Checksums, PortId};

use super::endpoint_record::Changed;
use crate::netlink::queueing::Queueing;

/// What an endpoint is asked to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSpec {
    /// Namespace and pod.
    pub name: ObjectName,
    /// The node's end of the veth pair.
    pub interface: String,
    /// The pod's network namespace.
    pub netns: Option<String>,
    /// Addresses it may speak from.
    pub addresses: Vec<IpAddr>,
    /// Its link address, when given.
    pub mac: Option<MacAddr>,
    /// The container runtime's name for it; absent when a person added it.
    pub attachment: Option<Attachment>,
    /// The Pod's uid, when the runtime told it.
    pub pod_uid: Option<String>,
    /// Limits of its bandwidth, when whoever added it told any.
    pub bandwidth: Option<Bandwidth>,
}

impl EndpointSpec {
    /// Whether `other` asks for the same port, whoever asks.
    #[must_use]
    pub fn is_same_port(&self, other: &Self) -> bool {
        let (attachment, pod_uid) = (other.attachment.clone(), other.pod_uid.clone());
        // What one does not tell is no other: a node that finds a pod itself knows its link address.
        let is_told_twice = self.netns.is_some() && other.netns.is_some();
        let netns = if is_told_twice { &self.netns } else { &other.netns }.clone();
        let mac = self.mac.and(other.mac).map_or(other.mac, |_| self.mac);
        let bandwidth = other.bandwidth;
        Self { attachment, pod_uid, netns, mac, bandwidth, ..self.clone() } == *other
    }

    /// Whether this is a port of another container than `other`'s, both known.
    fn is_of_another_container(&self, other: &Self) -> bool {
        let container = |spec: &Self| spec.attachment.as_ref().map(|a| a.container_id.clone());
        match (container(self), container(other)) {
            (Some(own), Some(others)) => own != others,
            _ => false,
        }
    }
}

impl TryFrom<EndpointAdd> for EndpointSpec {
    type Error = AdminError;

    fn try_from(request: EndpointAdd) -> Result<Self, AdminError> {
        let name = request.name.parse();
        Ok(Self {
            name: name.map_err(|error: control::model::ObjectNameError| {
                AdminError::invalid("name", error.to_string())
            })?,
            interface: request.interface,
            netns: request.netns,
            addresses: request.addresses,
            mac: request.mac.as_deref().map(parse_mac).transpose()?,
            attachment: request.attachment,
            pod_uid: request.pod_uid,
            bandwidth: request.bandwidth,
        })
    }
}

impl From<&EndpointSpec> for EndpointAdd {
    fn from(spec: &EndpointSpec) -> Self {
        Self {
            name: spec.name.to_string(),
            interface: spec.interface.clone(),
            netns: spec.netns.clone(),
            addresses: spec.addresses.clone(),
            mac: spec.mac.map(|mac| mac.to_string()),
            attachment: spec.attachment.clone(),
            pod_uid: spec.pod_uid.clone(),
            bandwidth: spec.bandwidth,
        }
    }
}

/// An endpoint and its port.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// What was asked.
    pub spec: EndpointSpec,
    /// Its port.
    pub port: PortId,
    /// Whether its frames' checksums are finished.
    pub checksums: Checksums,
    /// Largest packet that the pod's end takes, in bytes, where that is known.
    pub mtu: Option<u16>,
    /// What `tc` has at its interface.
    pub queueing: Queueing,
    /// What to give back when it is removed.
    pub changed: Changed,
}

/// All local endpoints.
#[derive(Debug, Default)]
pub struct Endpoints {
    by_name: BTreeMap<ObjectName, Endpoint>,
    by_address: BTreeMap<IpAddr, ObjectName>,
    by_port: BTreeMap<PortId, ObjectName>,
}

/// What to do about a request to add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Nothing: it is there, just so.
    Present,
    /// Add it.
    New,
}

impl Endpoints {
    /// Whether `spec` may be added beside those that are there, on a node with these addresses.
    ///
    /// # Errors
    /// [`AdminError::Conflict`], naming what is in the way.
    pub fn admit(
        &self,
        spec: &EndpointSpec,
        node_addresses: &BTreeSet<IpAddr>,
    ) -> Result<Admission, AdminError> {
        let conflict = |detail: String| Err(AdminError::Conflict { detail });
        if let Some(present) = self.by_name.get(&spec.name) {
            let same = present.spec.is_same_port(spec);
            return if same && [&None, &present.spec.attachment].contains(&&spec.attachment) {
                Ok(Admission::Present)
            } else {
                conflict(format!(
                    "endpoint {} exists on interface {} with other settings; remove it first: \
                     xskiff endpoint remove {}",
                    spec.name, present.spec.interface, spec.name
                ))
            };
        }
        for address in &spec.addresses {
            if let Some(owner) = self.by_address.get(address) {
                return conflict(format!("address {address} is endpoint {owner}'s"));
            }
            if node_addresses.contains(address) {
                return conflict(format!("address {address} is the node's own"));
            }
        }
        let same_interface = |other: &&Endpoint| other.spec.interface == spec.interface;
        match self.by_name.values().find(same_interface) {
            Some(other) => {
                conflict(format!("interface {} is endpoint {}'s", spec.interface, other.spec.name))
            }
            None => Ok(Admission::New),
        }
    }

    /// Endpoints that are over, as a request to add `spec` shows: an older container's of the same
    /// pod, and whatever is in its way while its interface `is_gone`.
    pub fn outlived_by(
        &self,
        spec: &EndpointSpec,
        is_gone: impl Fn(&Endpoint) -> bool,
    ) -> Vec<ObjectName> {
        let is_over = |present: &&Endpoint| {
            let has_its_name = present.spec.name == spec.name;
            let is_in_the_way = has_its_name
                || present.spec.interface == spec.interface
                || present.spec.addresses.iter().any(|own| spec.addresses.contains(own));
            (has_its_name && present.spec.is_of_another_container(spec))
                || (is_in_the_way && is_gone(present))
        };
        let over = self.by_name.values().filter(is_over);
        over.map(|endpoint| endpoint.spec.name.clone()).collect()
    }

    /// Notes that the endpoint of the same port, which a person added, is that attachment's, or that
    /// whoever added it tells other limits now. Answers whether anything changed.
    pub fn name_attachment(&mut self, spec: &EndpointSpec) -> bool {
        let Some(present) = self.by_name.get_mut(&spec.name) else { return false };
        let is_nameless = present.spec.attachment.is_none() && spec.attachment.is_some();
        let has_new_limits = present.spec.attachment == spec.attachment
            && spec.bandwidth.is_some()
            && present.spec.bandwidth != spec.bandwidth;
        if !(is_nameless || has_new_limits) || !present.spec.is_same_port(spec) {
            return false;
        }
        present.spec = spec.clone();
        true
    }

    /// Notes what `tc` has now at an endpoint's interface, where that is still the same port's; gives the
    /// endpoint back if this is news.
    pub fn note_queueing(
        &mut self,
        name: &ObjectName,
        port: PortId,
        queueing: Queueing,
    ) -> Option<&Endpoint> {
        let endpoint = self.by_name.get_mut(name).filter(|there| there.port == port)?;
        let is_news = endpoint.queueing != queueing;
        endpoint.queueing = queueing;
        is_news.then_some(endpoint)
    }

    /// The endpoint of an attachment.
    #[must_use]
    pub fn by_attachment(&self, attachment: &Attachment) -> Option<&Endpoint> {
        self.by_name.values().find(|endpoint| endpoint.spec.attachment.as_ref() == Some(attachment))
    }

    /// Adds an endpoint that was admitted.
    pub fn insert(&mut self, endpoint: Endpoint) {
        for address in &endpoint.spec.addresses {
            self.by_address.insert(*address, endpoint.spec.name.clone());
        }
        self.by_port.insert(endpoint.port, endpoint.spec.name.clone());
        self.by_name.insert(endpoint.spec.name.clone(), endpoint);
    }

    /// Takes an endpoint out.
    pub fn remove(&mut self, name: &ObjectName) -> Option<Endpoint> {
        let endpoint = self.by_name.remove(name)?;
        for address in &endpoint.spec.addresses {
            self.by_address.remove(address);
        }
        self.by_port.remove(&endpoint.port);
        Some(endpoint)
    }

    /// The endpoint by name.
    #[must_use]
    pub fn get(&self, name: &ObjectName) -> Option<&Endpoint> {
        self.by_name.get(name)
    }

    /// The endpoint that has the address.
    #[must_use]
    pub fn by_address(&self, address: IpAddr) -> Option<&ObjectName> {
        self.by_address.get(&address)
    }

    /// The endpoint of a port.
    #[must_use]
    pub fn by_port(&self, port: PortId) -> Option<&Endpoint> {
        self.by_name.get(self.by_port.get(&port)?)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.by_name.values()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, interface: &str, address: &str) -> EndpointSpec {
        EndpointSpec {
            name: name.parse().unwrap(),
            interface: interface.into(),
            netns: None,
            addresses: vec![address.parse().unwrap()],
            mac: None,
            attachment: None,
            pod_uid: None,
            bandwidth: None,
        }
    }

    fn attached(container_id: &str, spec: EndpointSpec) -> EndpointSpec {
        let (network, interface) = ("pods".into(), "eth0".into());
        let attachment = Attachment { network, container_id: container_id.into(), interface };
        EndpointSpec { attachment: Some(attachment), ..spec }
    }

    fn with(spec: EndpointSpec) -> Endpoints {
        let mut endpoints = Endpoints::default();
        endpoints.insert(Endpoint {
            spec,
            port: PortId(3),
            checksums: Checksums::Unknown,
            mtu: None,
            queueing: Queueing::default(),
            changed: Changed::default(),
        });
        endpoints
    }

    #[test]
    fn adding_the_same_again_succeeds_and_anything_else_in_its_place_is_refused() {
        let endpoints = with(spec("a/b", "v0", "10.0.0.5"));
        let node = BTreeSet::new();
        let admit = |spec: EndpointSpec| endpoints.admit(&spec, &node);
        assert_eq!(admit(spec("a/b", "v0", "10.0.0.5")), Ok(Admission::Present));
        assert_eq!(admit(spec("a/c", "v1", "10.0.0.6")), Ok(Admission::New));
        for (refused, word) in [
            (spec("a/b", "v1", "10.0.0.5"), "other settings"),
            (spec("a/c", "v1", "10.0.0.5"), "endpoint a/b's"),
            (spec("a/c", "v0", "10.0.0.6"), "interface v0"),
        ] {
            let error = admit(refused).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn an_address_of_the_node_is_no_pods() {
        let node = ["192.0.2.2".parse().unwrap()].into();
        let error = Endpoints::default().admit(&spec("a/b", "v0", "192.0.2.2"), &node).unwrap_err();
        assert!(error.to_string().contains("the node's own"));
    }

    #[test]
    fn a_removed_endpoint_leaves_its_address_to_another() {
        let mut endpoints = with(spec("a/b", "v0", "10.0.0.5"));
        assert!(endpoints.by_port(PortId(3)).is_some());
        assert!(endpoints.remove(&"a/b".parse().unwrap()).is_some());
        assert!(endpoints.by_port(PortId(3)).is_none());
        let admitted = endpoints.admit(&spec("a/c", "v0", "10.0.0.5"), &BTreeSet::new());
        assert_eq!(admitted, Ok(Admission::New));
        assert!(endpoints.is_empty());
    }

    #[test]
    fn a_newer_container_outlives_the_older_one_of_its_pod_and_no_other_pods() {
        let endpoints = with(attached("one", spec("a/b", "v0", "10.0.0.5")));
        let outlived = |spec: &EndpointSpec| endpoints.outlived_by(spec, |_| false);
        let newer = attached("two", spec("a/b", "v1", "10.0.0.6"));
        assert_eq!(outlived(&newer), ["a/b".parse().unwrap()]);
        assert!(outlived(&attached("one", spec("a/b", "v1", "10.0.0.6"))).is_empty());
        assert!(outlived(&attached("two", spec("a/c", "v1", "10.0.0.5"))).is_empty());
        assert!(outlived(&spec("a/b", "v1", "10.0.0.6")).is_empty(), "a person is told instead");
    }

    #[test]
    fn what_has_lost_its_interface_is_in_nobodys_way() {
        let endpoints = with(attached("one", spec("a/b", "v0", "10.0.0.5")));
        let outlived = |spec: &EndpointSpec| endpoints.outlived_by(spec, |_| true).len();
        assert_eq!(outlived(&spec("a/b", "v1", "10.0.0.6")), 1);
        assert_eq!(outlived(&spec("a/c", "v0", "10.0.0.6")), 1);
        assert_eq!(outlived(&spec("a/c", "v1", "10.0.0.5")), 1);
        assert_eq!(outlived(&spec("a/c", "v1", "10.0.0.6")), 0);
    }

    #[test]
    fn a_port_that_a_person_added_becomes_the_runtimes_when_that_adds_the_same() {
        let mut endpoints = with(spec("a/b", "v0", "10.0.0.5"));
        let runtimes = attached("one", spec("a/b", "v0", "10.0.0.5"));
        assert!(endpoints.admit(&runtimes, &BTreeSet::new()).is_err());
        assert!(!endpoints.name_attachment(&attached("one", spec("a/b", "v1", "10.0.0.5"))));
        assert!(endpoints.name_attachment(&runtimes));
        assert_eq!(endpoints.admit(&runtimes, &BTreeSet::new()), Ok(Admission::Present));
        assert!(!endpoints.name_attachment(&attached("two", spec("a/b", "v0", "10.0.0.5"))));
        let attachment = runtimes.attachment.clone().unwrap();
        assert!(endpoints.by_attachment(&attachment).is_some());
        let other = Attachment { network: "storage".into(), ..attachment.clone() };
        assert!(endpoints.by_attachment(&other).is_none());
        // The same with other limits.
        let limits = Bandwidth { egress_rate: 5_000, ..Bandwidth::default() };
        let limited = EndpointSpec { bandwidth: Some(limits), ..runtimes.clone() };
        assert!(endpoints.name_attachment(&limited) && !endpoints.name_attachment(&limited));
        assert!(!endpoints.name_attachment(&runtimes), "whoever tells nothing changes nothing");
        assert_eq!(endpoints.by_attachment(&attachment).unwrap().spec.bandwidth, Some(limits));
        // And a person who adds it once more finds it there.
        let again = endpoints.admit(&spec("a/b", "v0", "10.0.0.5"), &BTreeSet::new());
        assert_eq!(again, Ok(Admission::Present));
    }
}
