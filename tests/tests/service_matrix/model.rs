//! What kube-proxy does, read from its documentation and said once more, naively: the Service and
//! EndpointSlice references, "Virtual IPs and Service Proxies", KEP-1669 (terminating endpoints),
//! KEP-2086 (internal policy), KEP-2433 and KEP-3015 (hints for zones and nodes).

use std::collections::BTreeSet;
use std::net::IpAddr;

/// How a service is addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
    /// A load balancer's address with `ipMode: Proxy`.
    ProxiedLoadBalancer,
    NodePort,
    HostPort,
    Headless,
    ExternalName,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::ClusterIp,
        Self::ExternalIp,
        Self::LoadBalancer,
        Self::ProxiedLoadBalancer,
        Self::NodePort,
        Self::HostPort,
        Self::Headless,
        Self::ExternalName,
    ];
}

/// Whether each traffic policy is Local.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policies {
    pub internal_local: bool,
    pub external_local: bool,
}

impl Policies {
    pub const ALL: [Self; 4] = [
        Self { internal_local: false, external_local: false },
        Self { internal_local: false, external_local: true },
        Self { internal_local: true, external_local: false },
        Self { internal_local: true, external_local: true },
    ];
}

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Outside,
    /// A pod of another node.
    OtherNode,
    /// A pod of this node that is no backend.
    PodHere,
    /// A pod of this node that may be chosen itself.
    BackendHere,
    /// A process of this node.
    Host,
}

impl Place {
    pub const ALL: [Self; 5] =
        [Self::Outside, Self::OtherNode, Self::PodHere, Self::BackendHere, Self::Host];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// `conditions` of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Ready,
    /// None is given.
    Silent,
    /// `ready: false` alone.
    Unready,
    /// Ends, and serves on.
    Ending,
    /// Ends, and does not say whether it serves.
    EndingSilent,
    /// Ends, and does not serve.
    EndingDeaf,
}

/// An endpoint, in both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// 2 and 3 are pods of this node, 12 and 13 of another.
    pub number: u8,
    pub condition: Condition,
    pub for_node: Option<&'static str>,
    pub for_zone: Option<&'static str>,
}

const fn end(number: u8, condition: Condition) -> End {
    End { number, condition, for_node: None, for_zone: None }
}

const fn in_zone(number: u8, zone: &'static str) -> End {
    End { for_zone: Some(zone), ..end(number, Condition::Ready) }
}

const fn on_node(number: u8, node: &'static str) -> End {
    End { for_node: Some(node), ..in_zone(number, "a") }
}

impl End {
    fn is_here(self) -> bool {
        self.number < 10
    }

    fn is_ready(self) -> bool {
        matches!(self.condition, Condition::Ready | Condition::Silent)
    }

    fn is_ending(self) -> bool {
        matches!(self.condition, Condition::Ending | Condition::EndingSilent)
    }
}

/// Which endpoints there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    None,
    UnreadyBoth,
    SilentBoth,
    ReadyHere,
    ReadyElsewhere,
    ReadyBoth,
    EndingHere,
    EndingElsewhere,
    EndingBoth,
    EndingHereReadyElsewhere,
    ReadyHereEndingElsewhere,
    DeafHereReadyElsewhere,
    SilentEndingBoth,
    ZoneHints,
    ZoneHintsButOne,
    ZoneHintsOfOthers,
    ZoneHintsUnready,
    NodeHints,
    NodeHintsOfOthers,
}

impl Scenario {
    pub const ALL: [Self; 19] = [
        Self::None,
        Self::UnreadyBoth,
        Self::SilentBoth,
        Self::ReadyHere,
        Self::ReadyElsewhere,
        Self::ReadyBoth,
        Self::EndingHere,
        Self::EndingElsewhere,
        Self::EndingBoth,
        Self::EndingHereReadyElsewhere,
        Self::ReadyHereEndingElsewhere,
        Self::DeafHereReadyElsewhere,
        Self::SilentEndingBoth,
        Self::ZoneHints,
        Self::ZoneHintsButOne,
        Self::ZoneHintsOfOthers,
        Self::ZoneHintsUnready,
        Self::NodeHints,
        Self::NodeHintsOfOthers,
    ];

    /// This node is `one`, in zone `a`.
    pub fn ends(self) -> Vec<End> {
        use Condition::{Ending, EndingDeaf, EndingSilent, Ready, Silent, Unready};
        let of = |all: &[(u8, Condition)]| all.iter().map(|(n, of)| end(*n, *of)).collect();
        match self {
            Self::None => Vec::new(),
            Self::UnreadyBoth => of(&[(2, Unready), (12, Unready), (13, EndingDeaf)]),
            Self::SilentBoth => of(&[(2, Silent), (12, Silent)]),
            Self::ReadyHere => of(&[(2, Ready), (3, Ready), (12, Unready)]),
            Self::ReadyElsewhere => of(&[(2, Unready), (12, Ready), (13, Ready)]),
            Self::ReadyBoth => of(&[(2, Ready), (3, Ready), (12, Ready), (13, Ready)]),
            Self::EndingHere => of(&[(2, Ending), (3, EndingDeaf), (12, Unready)]),
            Self::EndingElsewhere => of(&[(2, EndingDeaf), (12, Ending), (13, Unready)]),
            Self::EndingBoth => of(&[(2, Ending), (12, Ending), (13, EndingDeaf)]),
            Self::EndingHereReadyElsewhere => of(&[(2, Ending), (12, Ready), (13, Ending)]),
            Self::ReadyHereEndingElsewhere => of(&[(2, Ready), (3, Ending), (12, Ending)]),
            Self::DeafHereReadyElsewhere => of(&[(2, EndingDeaf), (12, Ready)]),
            Self::SilentEndingBoth => of(&[(2, EndingSilent), (12, EndingSilent)]),
            Self::ZoneHints => vec![in_zone(2, "b"), in_zone(12, "a"), in_zone(13, "b")],
            Self::ZoneHintsButOne => vec![in_zone(2, "b"), in_zone(12, "a"), end(13, Ready)],
            Self::ZoneHintsOfOthers => vec![in_zone(2, "b"), in_zone(12, "c")],
            Self::ZoneHintsUnready => {
                let unready = End { condition: Unready, ..in_zone(3, "a") };
                let ending = End { condition: Ending, ..in_zone(13, "a") };
                vec![in_zone(2, "b"), in_zone(12, "b"), unready, ending]
            }
            Self::NodeHints => vec![on_node(2, "two"), on_node(12, "one"), on_node(13, "two")],
            Self::NodeHintsOfOthers => {
                vec![on_node(2, "two"), End { for_zone: Some("b"), ..on_node(12, "two") }]
            }
        }
    }
}

/// What becomes of new flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Each goes to one of these, and each of these has some.
    To(BTreeSet<(IpAddr, u16)>),
    /// The client is told that nobody listens.
    Refused,
    /// Dropped, and nobody is told.
    Silence,
    /// No service's matter.
    NotOurs,
}

impl Outcome {
    pub fn word(&self) -> &'static str {
        match self {
            Self::To(_) => "to backends",
            Self::Refused => "refused",
            Self::Silence => "silence",
            Self::NotOurs => "not ours",
        }
    }
}

pub type Cell = (Kind, Policies, Scenario, Place, bool, Protocol);

/// What must happen, or why there is no such cell.
pub fn expected(cell: Cell) -> Result<Outcome, &'static str> {
    let (kind, policies, scenario, place, ipv4, protocol) = cell;
    let ends = scenario.ends();
    let target = target_port(protocol);
    let to = |chosen: Vec<End>| {
        Outcome::To(chosen.into_iter().map(|end| (address(end.number, ipv4), target)).collect())
    };
    match kind {
        Kind::Headless => return Err("a headless service has no address of its own"),
        Kind::ExternalName => return Err("an ExternalName is a name, which DNS answers"),
        Kind::ProxiedLoadBalancer if matches!(place, Place::Outside | Place::OtherNode) => {
            return Err("what is for the load balancer itself does not come here");
        }
        Kind::NodePort | Kind::HostPort if place == Place::Host => {
            return Err(
                "what the node sends to its own address goes over lo, past everything here",
            );
        }
        // KEP-1860: the balancer wants to see packets of pods too.
        Kind::ProxiedLoadBalancer => return Ok(Outcome::NotOurs),
        Kind::HostPort if scenario != Scenario::None || policies != Policies::ALL[0] => {
            return Err("a host port is one pod's: neither policy nor readiness is asked");
        }
        // portmap: DNAT to the pod's address and containerPort.
        Kind::HostPort => {
            return Ok(Outcome::To([(address(2, ipv4), 9000)].into()));
        }
        _ => {}
    }
    if place == Place::BackendHere && !ends.iter().any(|end| end.is_here()) {
        return Err("no backend is here");
    }
    // KEP-2086: the internal policy is for the cluster's own addresses. "Traffic from within the
    // cluster to an external address short-circuits to all endpoints, whatever the external policy."
    // What this node's kube-proxy takes for the cluster's own are its own pods and processes.
    let local_only = match kind {
        Kind::ClusterIp => policies.internal_local,
        _ => {
            let is_own = matches!(place, Place::PodHere | Place::BackendHere | Place::Host);
            policies.external_local && !is_own
        }
    };
    let chosen = if local_only { chosen_here(&ends) } else { chosen_anywhere(&ends) };
    if !chosen.is_empty() {
        return Ok(to(chosen));
    }
    // "REJECT if there are no endpoints at all that could be used, DROP if the policy alone rules
    // them out": a health check must see silence, so that it tries another node.
    let any_usable = ends.iter().any(|end| end.is_ready() || end.is_ending());
    Ok(if any_usable { Outcome::Silence } else { Outcome::Refused })
}

/// KEP-1669: ready ones; if none is, those that serve while they end.
fn chosen_here(ends: &[End]) -> Vec<End> {
    let ready: Vec<End> = ends.iter().copied().filter(|e| e.is_here() && e.is_ready()).collect();
    if !ready.is_empty() {
        return ready;
    }
    ends.iter().copied().filter(|e| e.is_here() && e.is_ending()).collect()
}

/// A hint of an endpoint, if it has one of a kind.
type Hint = fn(&End) -> Option<&'static str>;

/// The same for all; KEP-2433 and KEP-3015: of ready ones, those that are hinted for here, if all are
/// hinted and any is for here; the node before the zone.
fn chosen_anywhere(ends: &[End]) -> Vec<End> {
    let ready: Vec<End> = ends.iter().copied().filter(|end| end.is_ready()).collect();
    if ready.is_empty() {
        return ends.iter().copied().filter(|end| end.is_ending()).collect();
    }
    let hints: [(Hint, &str); 2] = [(|end| end.for_node, "one"), (|end| end.for_zone, "a")];
    for (hint, here) in hints {
        let all_have_one = ready.iter().all(|end| hint(end).is_some());
        let meant: Vec<End> = ready.iter().copied().filter(|end| hint(end) == Some(here)).collect();
        if all_have_one && !meant.is_empty() {
            return meant;
        }
    }
    ready
}

/// Named target ports may be any number.
pub fn target_port(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => 8080,
        Protocol::Udp => 8053,
        Protocol::Sctp => 8132,
    }
}

/// An endpoint's address.
pub fn address(number: u8, ipv4: bool) -> IpAddr {
    let here = number < 10;
    match (ipv4, here) {
        (true, true) => IpAddr::from([10, 1, 0, number]),
        (true, false) => IpAddr::from([10, 1, 9, number]),
        (false, true) => IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 0, u16::from(number)]),
        (false, false) => IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 9, u16::from(number)]),
    }
}
