//! The kinds that are followed, as the Kubernetes API names them: the one list that clients, the
//! relay and the roles in `deploy/` go by.

use control::model::Kind;

/// A kind with its place in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource {
    /// The kind.
    pub kind: Kind,
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version within the group.
    pub version: &'static str,
    /// As paths and roles spell it.
    pub plural: &'static str,
    /// Whether its objects lie in namespaces.
    pub namespaced: bool,
}

const fn resource(
    kind: Kind,
    group: &'static str,
    plural: &'static str,
    namespaced: bool,
) -> Resource {
    Resource { kind, group, version: "v1", plural, namespaced }
}

/// Everything that is followed, in the order of [`Kind::ALL`].
pub const WATCHED: [Resource; 6] = [
    resource(Kind::Namespace, "", "namespaces", false),
    resource(Kind::Node, "", "nodes", false),
    resource(Kind::Pod, "", "pods", true),
    resource(Kind::Service, "", "services", true),
    resource(Kind::EndpointSlice, "discovery.k8s.io", "endpointslices", true),
    resource(Kind::NetworkPolicy, "networking.k8s.io", "networkpolicies", true),
];

/// Where a server names the groups that it has beside the core (Kubernetes API, "Discovery API").
pub const GROUPS: &str = "/apis";

/// What is asked of each of them (Kubernetes API, authorization verbs).
pub const VERBS: [&str; 3] = ["get", "list", "watch"];

impl Resource {
    /// The place of `kind`.
    #[must_use]
    pub fn of(kind: Kind) -> &'static Self {
        &WATCHED[index(kind)]
    }

    /// Group and version, as objects state them.
    #[must_use]
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// The path of the whole collection, of all namespaces.
    #[must_use]
    pub fn path(&self) -> String {
        let root = if self.group.is_empty() { "api" } else { "apis" };
        format!("/{root}/{}/{}", self.api_version(), self.plural)
    }
}

/// The place of `kind` in [`WATCHED`].
pub(crate) fn index(kind: Kind) -> usize {
    match kind {
        Kind::Namespace => 0,
        Kind::Node => 1,
        Kind::Pod => 2,
        Kind::Service => 3,
        Kind::EndpointSlice => 4,
        Kind::NetworkPolicy => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_place_and_path() {
        for (kind, resource) in Kind::ALL.into_iter().zip(WATCHED) {
            assert_eq!(Resource::of(kind), &resource);
            assert_eq!(resource.kind, kind);
        }
        assert_eq!(Resource::of(Kind::Pod).path(), "/api/v1/pods");
        let policies = "/apis/networking.k8s.io/v1/networkpolicies";
        assert_eq!(Resource::of(Kind::NetworkPolicy).path(), policies);
    }
}
