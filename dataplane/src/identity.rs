//! Who an address is, as far as policy can tell.
//!
//! An identity is the set of policy selectors that match an address, interned by the control
//! thread to a number. Addresses that no policy tells apart share one.

use std::net::IpAddr;

use crate::address_map::AddressMap;
use crate::lpm::PrefixTable;

/// An interned set of policy selectors. Numbers below [`Identity::FIRST_COMPILED`] are reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(pub u32);

impl Identity {
    /// This node itself: its own addresses, and what enters by the host port.
    pub const HOST: Self = Self(1);
    /// Another node of the cluster.
    pub const REMOTE_NODE: Self = Self(2);
    /// The Kubernetes API server.
    pub const KUBE_APISERVER: Self = Self(3);
    /// Health probes.
    pub const HEALTH: Self = Self(4);
    /// An ingress proxy of ours.
    pub const INGRESS: Self = Self(5);
    /// Anything that nothing else matches.
    pub const WORLD: Self = Self(6);
    /// The first number the compiler may hand out.
    pub const FIRST_COMPILED: u32 = 256;
}

/// Address to identity: exact for pods and nodes, by prefix for `ipBlock`s.
#[derive(Debug, Clone, Default)]
pub struct IdentityTable {
    /// Pods and nodes.
    pub exact: AddressMap<Identity>,
    /// CIDR selectors.
    pub prefixes: PrefixTable<Identity>,
}

impl IdentityTable {
    /// The identity of `address`; [`Identity::WORLD`] when nothing names it.
    #[inline(always)]
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Identity {
        match self.exact.get(&address) {
            Some(identity) => *identity,
            None => self.prefixes.lookup(address).copied().unwrap_or(Identity::WORLD),
        }
    }
}
