//! Direct server return: a client's packet goes on to the node of its backend as the client sent it,
//! and that node answers the client itself, in the name of the frontend.
//!
//! The node with the frontend ([`dispatch`]) chooses the backend and tells the other one what the
//! client had addressed, in one of three forms ([`Dispatch`]). It does so at every packet: what it
//! would have to know to do so at the first one alone, whether the other node has it, nobody tells it.
//! Its flow sees one direction, since replies never come here; conntrack treats it so
//! ([`crate::conntrack::Life::dispatched`]).
//!
//! The node with the backend ([`arrival`]) makes of such a packet again what the client sent, and from
//! there on it is a packet to a service of which the backend is chosen already: policy judges the
//! client and the backend, the flow's replies leave with the frontend's address, and go the straight
//! way. ICMP errors about replies reach the node with the frontend, which sends them after the packets.
//!
//! Reading order: this file, [`option`] and [`tunnel`] (the forms), [`dispatch`], [`stateless`],
//! [`arrival`].

pub mod arrival;
pub mod dispatch;
pub mod option;
pub mod stateless;
pub mod tunnel;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::address_map::AddressSet;
use crate::lb::ServiceId;
use crate::lpm::PrefixTable;

pub(crate) use dispatch::may_dispatch;

/// How a packet reaches the node of its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dispatch {
    /// Addressed to the backend, with the frontend in an IPv4 option or an IPv6 destination option.
    #[default]
    Option,
    /// In an IP packet to the backend (RFC 2003, RFC 2473).
    Ipip,
    /// In a Geneve packet to the backend's node (RFC 8926), with the backend in an option.
    Geneve,
}

impl Dispatch {
    /// Bytes that a packet becomes longer by.
    #[must_use]
    pub const fn overhead(self, is_ipv4: bool) -> u16 {
        match (self, is_ipv4) {
            (Self::Option, true) => 8,
            (Self::Option, false) => 24,
            (Self::Ipip, true) => 20,
            (Self::Ipip, false) => 40,
            (Self::Geneve, true) => 48,
            (Self::Geneve, false) => 80,
        }
    }

    /// The word of the configuration.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Option => "option",
            Self::Ipip => "ipip",
            Self::Geneve => "geneve",
        }
    }
}

/// What there is to know for it. Tables have it only where some service in force uses it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Direct {
    /// The form that is sent, and the only one that is taken.
    pub dispatch: Dispatch,
    /// Addresses of the cluster's nodes: nobody else may wrap packets for backends here.
    pub nodes: AddressSet,
    /// This node's source of IPv4 packets to others. Without it nothing is wrapped in one.
    pub v4: Option<Ipv4Addr>,
    /// The same of IPv6.
    pub v6: Option<Ipv6Addr>,
    /// The node's address behind which a backend is, of its own family; known for Geneve alone.
    pub node_of: PrefixTable<IpAddr>,
}

impl Direct {
    /// This node's address of the family of `like`.
    #[must_use]
    pub fn own(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }
}

/// A packet that another node has chosen the backend of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Directed {
    /// The backend, for a packet that is to open a flow.
    pub backend: Option<(IpAddr, u16)>,
    /// The service that its client addressed.
    pub service: Option<ServiceId>,
}

/// What a flow is to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Its packets go on to the backend's node; replies do not come here.
    Dispatches,
    /// Its packets come from the frontend's node, and its replies go to the client.
    Answers,
}

#[cfg(test)]
mod tests {
    use super::Dispatch;
    use super::{option, tunnel};

    #[test]
    fn overheads_are_the_lengths_of_what_is_written() {
        for (is_ipv4, header) in [(true, 20), (false, 40)] {
            let overhead = |form: Dispatch| usize::from(form.overhead(is_ipv4));
            assert_eq!(overhead(Dispatch::Option), option::len(is_ipv4));
            assert_eq!(overhead(Dispatch::Ipip), header);
            assert_eq!(overhead(Dispatch::Geneve), header + tunnel::geneve_len(is_ipv4));
        }
    }
}
