//! Every reason a packet may end here, in one place.
//!
//! This enum is the error of every packet path (`?` is the drop), the index of the per-worker
//! counter, the label of the metric, the field of the flow event and the word the CLI prints.

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $label:literal,)+) => {
        /// Why a packet was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ #[error($label)] $variant,)+
        }

        impl DropReason {
            /// Every reason, in counter order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// How many reasons there are: the length of a counter array.
            pub const COUNT: usize = Self::ALL.len();

            /// The metric label and CLI word: lower case, words joined by `-`.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// One sentence of explanation, for people.
            #[must_use]
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+),)+ }
            }
        }
    };
}

drop_reasons! {
    /// The frame ends before the headers it announces.
    Truncated = "truncated",
    /// A header contradicts itself: version, length, data offset or extension chain.
    Malformed = "malformed",
    /// The Ethernet type is neither IPv4 nor IPv6.
    NotIp = "not-ip",
    /// The IPv4 header checksum is wrong.
    BadHeaderChecksum = "bad-header-checksum",
    /// The frame carries an IPv4 source route option or an IPv6 routing header we refuse.
    SourceRouted = "source-routed",
    /// The destination is multicast or broadcast, which is not forwarded.
    Multicast = "multicast",
    /// A pod sent from an address that is not its own, or claimed it by ARP or neighbour discovery.
    Spoofed = "spoofed",
    /// A local pod's or the node's own address arrived from outside.
    LocalAddressFromUplink = "local-address-from-uplink",
    /// A pod sent a router advertisement or redirect.
    RouterAdvertisement = "router-advertisement",
    /// The frame came in on a port that is not, or no longer, in the tables.
    UnknownPort = "unknown-port",
    /// A NetworkPolicy of the sending pod does not allow it.
    PolicyEgress = "policy-egress",
    /// A NetworkPolicy of the receiving pod does not allow it.
    PolicyIngress = "policy-ingress",
    /// The service has no usable backend.
    NoBackend = "no-backend",
    /// The flow's backend is gone: its pod was deleted or has ended, or its address is another's. A TCP
    /// segment is answered with a reset.
    BackendGone = "backend-gone",
    /// The service has backends, but none on this node as its traffic policy demands.
    NoLocalBackend = "no-local-backend",
    /// The frontend's loadBalancerSourceRanges exclude the client.
    SourceRange = "source-range",
    /// The address belongs to a service that does not listen on this L4 port: a ClusterIP, or an external
    /// address that a client outside has asked.
    NoServicePort = "no-service-port",
    /// The address is in a range of services (`cluster.service_cidrs`), and no service has it.
    NoService = "no-service",
    /// No route to the destination.
    NoRoute = "no-route",
    /// The next hop's link address was not resolved in time, or too many packets wait for one.
    Unresolved = "unresolved",
    /// TTL or hop limit reached zero.
    TtlExceeded = "ttl-exceeded",
    /// The packet is larger than the next hop's MTU, and nothing is fragmented here.
    TooBig = "too-big",
    /// The packet is longer than the link it came by takes, so that it is to be cut, and cannot be: it is no
    /// TCP segment, or the next link takes none.
    Uncuttable = "uncuttable",
    /// No flow and not a packet that may begin one.
    NoFlow = "no-flow",
    /// The flow table is full and nothing may be evicted.
    TableFull = "table-full",
    /// The local pod that opens the flow, or is its destination, has as many as it may.
    EndpointFlows = "endpoint-flows",
    /// No free L4 port is left to translate to.
    NatPortsExhausted = "nat-ports-exhausted",
    /// The translated reply tuple is already another flow's.
    NatClash = "nat-clash",
    /// No masquerade address of this family is configured.
    NoNatAddress = "no-nat-address",
    /// A fragment whose first fragment did not come in time, or leads to no flow.
    FragmentUnknown = "fragment-unknown",
    /// Too many fragments wait for their first one.
    FragmentsFull = "fragments-full",
    /// A first fragment that contradicts an earlier one of its packet.
    FragmentOverlap = "fragment-overlap",
    /// An ICMP error about no flow of ours.
    IcmpUnrelated = "icmp-unrelated",
    /// The transmit ring of the port is full.
    TxRingFull = "tx-ring-full",
    /// The port went away before the packet could leave.
    PortGone = "port-gone",
    /// The owning worker's hand-off ring is full.
    HandoffFull = "handoff-full",
    /// The packet may not be longer than its headroom or buffer allows.
    NoRoom = "no-room",
    /// The TCP segment does not fit its connection's state, or the echo request or reply its direction.
    InvalidState = "invalid-state",
    /// The TCP segment lies outside of its connection's windows (`conntrack.tcp_windows`).
    TcpOutOfWindow = "tcp-out-of-window",
    /// The SCTP packet's verification tag is not its association's.
    SctpWrongTag = "sctp-wrong-tag",
    /// The SCTP packet comes in fragments, and its L4 port is to change: its checksum covers all of them.
    SctpFragment = "sctp-fragment",
    /// The packet is to change family, and the other one has nothing like it: an ICMP message without
    /// counterpart, an authentication header, a fragment with options behind its fragment header.
    NoCounterpart = "no-counterpart",
    /// The UDP datagram is to change family and has no checksum: as a fragment, where it cannot be
    /// computed, or in IPv6, which forbids it.
    UdpNoChecksum = "udp-no-checksum",
    /// The worker has more packets than it can handle or keep, and this one would begin a flow: those of
    /// established ones come first.
    Overload = "overload",
    /// Under way in a worker that panicked, which goes on without it.
    WorkerRestarted = "worker-restarted",
    /// The sending pod's egress bandwidth is used up for longer than a packet may wait.
    BandwidthEgress = "bandwidth-egress",
    /// The receiving pod's ingress bandwidth is used up for longer than a packet may wait.
    BandwidthIngress = "bandwidth-ingress",
    /// Packets of limited pods that wait for their time take all the memory they may.
    PacingFull = "pacing-full",
    /// The receiving pod's packet memory has no free frame to copy the packet to.
    PacketMemory = "packet-memory",
    /// A packet for direct server return was wrapped by somebody who is no node of the cluster.
    DirectForeign = "direct-foreign",
    /// A packet for direct server return names a frontend and a backend that no service here with direct
    /// return has, or a backend that is not on this node.
    DirectFrontend = "direct-frontend",
}

impl DropReason {
    /// Whether a NetworkPolicy, or what stands in for one, refused it.
    #[must_use]
    pub const fn is_by_policy(self) -> bool {
        matches!(self, Self::PolicyEgress | Self::PolicyIngress)
    }
}

#[cfg(test)]
mod tests {
    use super::DropReason;

    #[test]
    fn labels_are_unique_and_index_their_counter() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            let twins = DropReason::ALL.iter().filter(|other| other.label() == reason.label());
            assert_eq!(twins.count(), 1, "{reason} is not unique");
        }
    }
}
