//! Who is meant by a word of a question: a pod, an address, an identity, the node or the outside.

use std::net::IpAddr;

use control::admin::AdminError;
use control::model::ObjectName;
use dataplane::identity::Identity;

use super::super::Node;

/// Before the number of an identity.
const IDENTITY: &str = "identity:";
/// What a node is called whose name is not known.
const ANOTHER_NODE: &str = "another node";

/// Where policy is enforced for one side of the question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Enforced {
    /// By the tables of this node.
    Here,
    /// On the node of this name.
    On(String),
    /// Nowhere: it is no pod.
    Nowhere,
}

/// One side of the question.
#[derive(Debug, Clone)]
pub(super) struct Side {
    /// The question's word for it, and whose it is.
    pub(super) shown: String,
    /// The pod that it is, where it is one by name or address.
    pub(super) pod: Option<ObjectName>,
    /// At the first of its addresses.
    pub(super) identity: Identity,
    pub(super) enforced: Enforced,
    /// Its addresses, as far as the question tells them.
    pub(super) addresses: Vec<IpAddr>,
}

impl Side {
    fn of_identity(text: &str, identity: Identity, enforced: Enforced) -> Self {
        Self { shown: text.into(), pod: None, identity, enforced, addresses: Vec::new() }
    }
}

impl Node {
    pub(super) fn side(&self, field: &str, text: &str) -> Result<Side, AdminError> {
        if let Some(identity) = self.reserved(field, text)? {
            return Ok(Side::of_identity(text, identity, Enforced::Nowhere));
        }
        if let Some(number) = text.strip_prefix(IDENTITY) {
            return self.side_of_identity(field, text, number);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(self.side_of_address(text, address));
        }
        let name: ObjectName = text.parse().map_err(|_| {
            let words = "write namespace/pod, an address, identity:NUMBER, host or world";
            AdminError::invalid(field, format!("{text:?}: {words}"))
        })?;
        let addresses = self.addresses_of_pod(&name)?;
        let identity = self.publisher.compiled().endpoint_identity(&addresses);
        let enforced = addresses.first().map_or(Enforced::Nowhere, |first| self.enforced(*first));
        Ok(Side { shown: text.into(), pod: Some(name), identity, enforced, addresses })
    }

    /// The identity of what has no name of an object; `None` for other words.
    fn reserved(&self, field: &str, text: &str) -> Result<Option<Identity>, AdminError> {
        match text {
            "world" if self.publisher.compiled().names_every_address() => {
                let words = "\"world\": ipBlocks name every address: write the one that is meant";
                Err(AdminError::invalid(field, words))
            }
            "world" => Ok(Some(Identity::WORLD)),
            "host" => Ok(Some(Identity::HOST)),
            _ => Ok(None),
        }
    }

    fn side_of_identity(&self, field: &str, text: &str, number: &str) -> Result<Side, AdminError> {
        let number = number.parse().map_err(|_| {
            AdminError::invalid(field, format!("{text:?}: write a number after {IDENTITY}"))
        })?;
        let (identity, compiled) = (Identity(number), self.publisher.compiled());
        if compiled.describe_identity(identity, 1).is_none() {
            return Err(no_identity(number));
        }
        let enforced = match (compiled.is_enforced_here(identity), compiled.is_of_pods(identity)) {
            (true, _) => Enforced::Here,
            (false, true) => Enforced::On(ANOTHER_NODE.into()),
            (false, false) => Enforced::Nowhere,
        };
        Ok(Side::of_identity(text, identity, enforced))
    }

    pub(super) fn side_of_address(&self, text: &str, address: IpAddr) -> Side {
        let compiled = self.publisher.compiled();
        let holder = self.endpoints.by_address(address).or_else(|| compiled.holder(address));
        let shown = match (holder, compiled.node_of(address)) {
            (Some(pod), _) => format!("{text} ({pod})"),
            (None, Some(node)) => format!("{text} (node {node})"),
            (None, None) => text.to_owned(),
        };
        Side {
            shown,
            pod: holder.cloned(),
            identity: compiled.identities.lookup(address),
            enforced: self.enforced(address),
            addresses: vec![address],
        }
    }

    /// The side at each of its addresses, of the family that is asked for; as it is where it has none.
    pub(super) fn faces(&self, side: &Side, is_ipv4: Option<bool>) -> Vec<Side> {
        if side.addresses.is_empty() {
            return vec![side.clone()];
        }
        let is_asked = |one: &&IpAddr| is_ipv4.is_none_or(|is_ipv4| one.is_ipv4() == is_ipv4);
        let identities = &self.publisher.compiled().identities;
        let faces = side.addresses.iter().filter(is_asked).map(|address| Side {
            identity: identities.lookup(*address),
            enforced: self.enforced(*address),
            addresses: vec![*address],
            ..side.clone()
        });
        faces.collect()
    }

    fn enforced(&self, address: IpAddr) -> Enforced {
        let compiled = self.publisher.compiled();
        if self.endpoints.by_address(address).is_some() || compiled.is_local_address(address) {
            return Enforced::Here;
        }
        match compiled.holder(address) {
            Some(pod) => {
                let pod = self.publisher.cluster().pods.get(pod);
                let node = pod.and_then(|pod| pod.node.as_deref());
                Enforced::On(node.unwrap_or(ANOTHER_NODE).to_owned())
            }
            None => Enforced::Nowhere,
        }
    }

    /// The addresses of a pod, here or elsewhere.
    pub(in crate::node) fn addresses_of_pod(
        &self,
        name: &ObjectName,
    ) -> Result<Vec<IpAddr>, AdminError> {
        let endpoint = self.endpoints.get(name).map(|endpoint| &*endpoint.spec.addresses);
        let pod = self.publisher.cluster().pods.get(name).map(|pod| &*pod.addresses);
        let addresses = endpoint.or(pod).filter(|addresses| !addresses.is_empty());
        addresses.map(<[IpAddr]>::to_vec).ok_or_else(|| AdminError::NotFound {
            what: "pod with an address".into(),
            name: name.to_string(),
            list_command: "xskiff endpoint list".into(),
        })
    }
}

pub(in crate::node) fn no_identity(number: u32) -> AdminError {
    AdminError::NotFound {
        what: "identity".into(),
        name: number.to_string(),
        list_command: "xskiff identity list".into(),
    }
}
