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

/// Tells a pod from those that had its address before it and will have it after: what its UID hashes
/// to. Two of one address agree once in 65,534 times, and are then taken for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PodTag {
    /// It is no pod's, or nobody has told which pod's.
    #[default]
    Unknown,
    /// 1 to [`PodTag::GREATEST`].
    Of(u16),
}

impl PodTag {
    /// The greatest number of a tag.
    pub const GREATEST: u16 = u16::MAX - 1;

    /// The tag of a pod whose UID has this hash, which must be the same in every process.
    #[must_use]
    pub fn of_hash(hash: u64) -> Self {
        let number = 1 + hash % u64::from(Self::GREATEST);
        u16::try_from(number).map_or(Self::Unknown, Self::Of)
    }
}

/// Who has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Holder {
    /// What policy can tell of it.
    pub identity: Identity,
    /// Which pod it is.
    pub pod: PodTag,
}

impl From<Identity> for Holder {
    /// One that is no pod.
    fn from(identity: Identity) -> Self {
        Self { identity, pod: PodTag::Unknown }
    }
}

/// Address to identity: exact for pods and nodes, by prefix for `ipBlock`s.
#[derive(Debug, Clone, Default)]
pub struct IdentityTable {
    /// Pods and nodes.
    pub exact: AddressMap<Holder>,
    /// CIDR selectors.
    pub prefixes: PrefixTable<Identity>,
    /// Whether pods were told of: until then it cannot be known that one is gone.
    pub pods_are_known: bool,
}

const _: () = assert!(size_of::<Option<(u32, Holder)>>() == 12);

impl IdentityTable {
    /// The identity of `address`; [`Identity::WORLD`] when nothing names it.
    #[inline(always)]
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Identity {
        self.holder(address).identity
    }

    /// Asks for what [`Self::holder`] will read of `address`. In a large cluster the wait for it is longer
    /// than the verdict, so that those who have a burst of questions ask for all of them first.
    #[inline(always)]
    pub fn prefetch(&self, address: IpAddr) {
        self.exact.prefetch(address);
    }

    /// Who has `address`.
    #[inline(always)]
    #[must_use]
    pub fn holder(&self, address: IpAddr) -> Holder {
        match self.exact.get(&address) {
            Some(holder) => *holder,
            None => self.prefixes.lookup(address).copied().unwrap_or(Identity::WORLD).into(),
        }
    }

    /// Whether the pod of this tag no longer has `address`: nobody has, or another pod. As long as no
    /// pod at all was told of, or not which one it is now, nothing is gone.
    #[must_use]
    pub fn is_gone(&self, address: IpAddr, pod: PodTag) -> bool {
        let now = self.exact.get(&address).map(|holder| holder.pod);
        match (pod, now) {
            (PodTag::Unknown, _) | (_, Some(PodTag::Unknown)) => false,
            (own, Some(other)) => own != other,
            (_, None) => self.pods_are_known,
        }
    }
}
