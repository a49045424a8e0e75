//! Routes and rules that lead host processes' packets into the pipeline.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::address::Protocol;
use dataplane::lpm::Prefix;
use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::route_batch::{self, Change, Refused};
use super::{GATEWAY_V4, GATEWAY_V6, HostPortError, HostPortPlan, kernel, sysctl};

/// The protocol number of our routes and rules (`ip route show proto 120`), by which we know our
/// own. Numbers from 5 on are for routing daemons to choose (rtnetlink(7)).
pub const ROUTE_PROTOCOL: u8 = 120;

/// What host processes are to reach through the pipeline.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostRoutes {
    /// Pod and service ranges.
    pub destinations: BTreeSet<Prefix>,
    /// Source of host processes' packets to IPv4 destinations: an address of the node.
    pub source_v4: Option<Ipv4Addr>,
    /// Source of host processes' packets to IPv6 destinations.
    pub source_v6: Option<Ipv6Addr>,
    /// L4 ports of backends in the host network, whose replies are ours to translate back.
    pub backend_l4_ports: BTreeSet<(Protocol, u16)>,
}

/// A route of ours, as far as we choose it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct OwnRoute {
    table: u32,
    prefix: Prefix,
    source: Option<IpAddr>,
}

/// A rule of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct OwnRule {
    v6: bool,
    priority: u32,
    table: u32,
    backend: Option<(Protocol, u16)>,
}

fn families() -> &'static [bool] {
    if sysctl::exists("net/ipv6/conf/all") { &[false, true] } else { &[false] }
}

fn wanted_routes(plan: &HostPortPlan, routes: &HostRoutes) -> BTreeSet<OwnRoute> {
    let source = |prefix: &Prefix| match prefix.address() {
        IpAddr::V4(_) => routes.source_v4.map(IpAddr::V4),
        IpAddr::V6(_) => routes.source_v6.map(IpAddr::V6),
    };
    let mut wanted: BTreeSet<OwnRoute> = routes
        .destinations
        .iter()
        .map(|prefix| OwnRoute {
            table: plan.routing_table,
            prefix: *prefix,
            source: source(prefix),
        })
        .collect();
    if !routes.backend_l4_ports.is_empty() {
        let everything = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        // The reply's source is the backend's own: no hint.
        wanted.extend(everything.into_iter().filter_map(|address| {
            let prefix = Prefix::new(address, 0)?;
            Some(OwnRoute { table: plan.routing_table + 1, prefix, source: None })
        }));
    }
    let v6 = families().contains(&true);
    wanted.retain(|route| v6 || route.prefix.address().is_ipv4());
    wanted
}

fn wanted_rules(plan: &HostPortPlan, routes: &HostRoutes) -> BTreeSet<OwnRule> {
    let mut wanted = BTreeSet::new();
    for v6 in families() {
        wanted.insert(OwnRule {
            v6: *v6,
            priority: plan.rule_priority,
            table: plan.routing_table,
            backend: None,
        });
        wanted.extend(routes.backend_l4_ports.iter().map(|backend| OwnRule {
            v6: *v6,
            priority: plan.rule_priority - 1,
            table: plan.routing_table + 1,
            backend: Some(*backend),
        }));
    }
    wanted
}

/// Routes that are being made; rules come when they are.
#[derive(Debug)]
pub struct Making {
    making: route_batch::Making,
    new: Vec<OwnRoute>,
    gone: Vec<OwnRoute>,
    /// `None`: they are what they should be.
    rules: Option<BTreeSet<OwnRule>>,
}

/// Begins to make the kernel's routes and rules of ours what they should be.
///
/// # Errors
/// [`HostPortError::Kernel`]: they cannot be read.
pub async fn begin(
    handle: &Handle,
    plan: &HostPortPlan,
    interface: u32,
    routes: &HostRoutes,
) -> Result<Making, HostPortError> {
    let present = present_routes(handle, plan).await?;
    let rules = Some(wanted_rules(plan, routes));
    Ok(Making::begin(interface, &present, &wanted_routes(plan, routes), rules))
}

/// The same where they are what the first of the two said.
#[must_use]
pub fn begin_change(
    plan: &HostPortPlan,
    interface: u32,
    (before, routes): (&HostRoutes, &HostRoutes),
) -> Making {
    let is_same = before.backend_l4_ports == routes.backend_l4_ports;
    let rules = (!is_same).then(|| wanted_rules(plan, routes));
    let (present, wanted) = (wanted_routes(plan, before), wanted_routes(plan, routes));
    Making::begin(interface, &present, &wanted, rules)
}

/// Which routes are to come, and which are to go after them: what is led here by another route than before
/// is led here all the while. One to the same destination takes the place of the one before.
fn apart(
    present: &BTreeSet<OwnRoute>,
    wanted: &BTreeSet<OwnRoute>,
) -> (Vec<OwnRoute>, Vec<OwnRoute>) {
    let new: Vec<OwnRoute> = wanted.difference(present).copied().collect();
    let at = |route: &OwnRoute| (route.table, route.prefix);
    let replaced: BTreeSet<_> = new.iter().map(at).collect();
    let gone = present.difference(wanted).filter(|route| !replaced.contains(&at(route)));
    let gone = gone.copied().collect();
    (new, gone)
}

impl Making {
    fn begin(
        interface: u32,
        present: &BTreeSet<OwnRoute>,
        wanted: &BTreeSet<OwnRoute>,
        rules: Option<BTreeSet<OwnRule>>,
    ) -> Self {
        let (new, gone) = apart(present, wanted);
        let message = |route| route_message(route, interface);
        let deletions = gone.iter().map(message).map(Change::Delete);
        let changes = new.iter().map(message).map(Change::Set).chain(deletions).collect();
        Self { making: route_batch::begin(changes), new, gone, rules }
    }

    /// Waits until all is made.
    ///
    /// # Errors
    /// [`HostPortError::Kernel`], naming the route or rule.
    pub async fn made(self, handle: &Handle) -> Result<(), HostPortError> {
        let Self { making, new, gone, rules } = self;
        making.made().await.map_err(|Refused { place, source }| {
            let action = if place < new.len() { "add" } else { "delete" };
            let route = new.iter().chain(&gone).nth(place);
            let named = |own: &OwnRoute| format!(" {} of table {}", own.prefix, own.table);
            let of = route.map_or_else(String::new, named);
            HostPortError::Kernel { action: format!("{action} route{of}"), source }
        })?;
        match rules {
            Some(rules) => reconcile_rules(handle, &rules).await,
            None => Ok(()),
        }
    }
}

/// Takes all rules of ours away.
///
/// # Errors
/// [`HostPortError::Kernel`], naming the rule.
pub async fn remove_rules(handle: &Handle, plan: &HostPortPlan) -> Result<(), HostPortError> {
    tracing::debug!(table = plan.routing_table, "removing rules of ours");
    reconcile_rules(handle, &BTreeSet::new()).await
}

async fn reconcile_rules(handle: &Handle, wanted: &BTreeSet<OwnRule>) -> Result<(), HostPortError> {
    let mut present = BTreeSet::new();
    for v6 in families() {
        let family = if *v6 { IpVersion::V6 } else { IpVersion::V4 };
        let mut answers = std::pin::pin!(handle.rule().get(family).execute());
        loop {
            let answer = answers.try_next().await;
            let Some(message) = answer.map_err(|error| kernel("read the rules", error))? else {
                break;
            };
            let Some(rule) = decode_rule(&message, *v6) else { continue };
            if wanted.contains(&rule) && present.insert(rule) {
                continue;
            }
            let action = format!("delete rule {} for table {}", rule.priority, rule.table);
            let deleted = handle.rule().del(message).execute().await;
            deleted.map_err(|error| kernel(action, error))?;
        }
    }
    for rule in wanted.difference(&present) {
        let action = format!("add rule {} for table {}", rule.priority, rule.table);
        let mut request = handle.rule().add();
        *request.message_mut() = rule_message(rule);
        request.execute().await.map_err(|error| kernel(action, error))?;
    }
    Ok(())
}

async fn present_routes(
    handle: &Handle,
    plan: &HostPortPlan,
) -> Result<BTreeSet<OwnRoute>, HostPortError> {
    let mut present = BTreeSet::new();
    for v6 in families() {
        let mut request = RouteMessage::default();
        request.header.address_family =
            if *v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let mut answers = std::pin::pin!(handle.route().get(request).execute());
        while let Some(message) =
            answers.try_next().await.map_err(|error| kernel("read the routes", error))?
        {
            present.extend(decode_route(&message, plan));
        }
    }
    Ok(present)
}

fn decode_route(message: &RouteMessage, plan: &HostPortPlan) -> Option<OwnRoute> {
    let header = &message.header;
    if header.protocol != RouteProtocol::from(ROUTE_PROTOCOL) || header.kind != RouteType::Unicast {
        return None;
    }
    let (mut table, mut destination, mut source) = (u32::from(header.table), None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(wide) => table = *wide,
            RouteAttribute::Destination(address) => destination = address_of(address),
            RouteAttribute::PrefSource(address) => source = address_of(address),
            _ => {}
        }
    }
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let ours = table == plan.routing_table || table == plan.routing_table + 1;
    let prefix = Prefix::new(destination.unwrap_or(unspecified), header.destination_prefix_length)?;
    ours.then_some(OwnRoute { table, prefix, source })
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn route_message(route: &OwnRoute, interface: u32) -> RouteMessage {
    let protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    let length = route.prefix.length();
    match (route.prefix.address(), route.source) {
        (IpAddr::V4(address), source) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(address, length)
                .gateway(GATEWAY_V4)
                .output_interface(interface)
                .onlink()
                .table_id(route.table)
                .protocol(protocol);
            match source {
                Some(IpAddr::V4(source)) => builder.pref_source(source).build(),
                _ => builder.build(),
            }
        }
        (IpAddr::V6(address), source) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(address, length)
                .gateway(GATEWAY_V6)
                .output_interface(interface)
                .onlink()
                .table_id(route.table)
                .protocol(protocol);
            match source {
                Some(IpAddr::V6(source)) => builder.pref_source(source).build(),
                _ => builder.build(),
            }
        }
    }
}

fn rule_message(rule: &OwnRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL)),
    ];
    if let Some((protocol, l4_port)) = rule.backend {
        message.attributes.push(RuleAttribute::IpProtocol(i32::from(protocol.0).into()));
        let range = RulePortRange { start: l4_port, end: l4_port };
        message.attributes.push(RuleAttribute::SourcePortRange(range));
    }
    message
}

fn decode_rule(message: &RuleMessage, v6: bool) -> Option<OwnRule> {
    let (mut priority, mut table, mut ours) = (0, u32::from(message.header.table), false);
    let (mut protocol, mut l4_port) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(own) => priority = *own,
            RuleAttribute::Table(own) => table = *own,
            RuleAttribute::Protocol(own) => ours = *own == RouteProtocol::from(ROUTE_PROTOCOL),
            RuleAttribute::IpProtocol(own) => {
                protocol = u8::try_from(i32::from(*own)).ok().map(Protocol);
            }
            RuleAttribute::SourcePortRange(range) => l4_port = Some(range.start),
            _ => {}
        }
    }
    ours.then_some(OwnRule { v6, priority, table, backend: protocol.zip(l4_port) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> HostPortPlan {
        HostPortPlan {
            segments: control::config::Segments::Cut,
            queues: 2,
            mtu: 1500,
            routing_table: 7411,
            rule_priority: 90,
            snat_l4_ports: 61_000..=62_000,
            state_directory: "/nonexistent".into(),
        }
    }

    #[test]
    fn a_route_of_ours_is_recognised_by_what_we_wrote() {
        let prefix = Prefix::new("10.1.0.0".parse().unwrap(), 16).unwrap();
        let source = Some("192.0.2.2".parse().unwrap());
        let route = OwnRoute { table: 7411, prefix, source };
        assert_eq!(decode_route(&route_message(&route, 5), &plan()), Some(route));
        let foreign = OwnRoute { table: 7500, ..route };
        assert_eq!(decode_route(&route_message(&foreign, 5), &plan()), None);
    }

    #[test]
    fn a_route_that_only_changes_its_source_is_replaced_and_none_goes_before_another_comes() {
        let route = |text: &str, length, source: Option<&str>| OwnRoute {
            table: 7411,
            prefix: Prefix::new(text.parse().unwrap(), length).unwrap(),
            source: source.map(|text| text.parse().unwrap()),
        };
        let single = route("10.96.0.1", 32, None);
        let kept = route("10.1.0.1", 32, None);
        let [before, after] =
            ["192.0.2.1", "192.0.2.2"].map(|own| route("10.1.0.2", 32, Some(own)));
        let range = route("10.96.0.0", 12, None);
        let (new, gone) = apart(&[single, kept, before].into(), &[kept, after, range].into());
        assert_eq!((new, gone), (vec![after, range], vec![single]));
    }

    #[test]
    fn a_rule_of_ours_is_recognised_by_what_we_wrote() {
        for backend in [None, Some((Protocol::UDP, 53))] {
            let rule = OwnRule { v6: true, priority: 89, table: 7412, backend };
            assert_eq!(decode_rule(&rule_message(&rule), true), Some(rule));
        }
    }

    #[test]
    fn a_foreign_rule_is_left_alone() {
        let mut message = RuleMessage::default();
        message.attributes = vec![RuleAttribute::Priority(90), RuleAttribute::Table(7411)];
        assert_eq!(decode_rule(&message, false), None);
    }

    #[test]
    fn replies_of_host_backends_get_a_table_of_their_own_only_when_there_are_any() {
        let mut routes = HostRoutes::default();
        assert!(wanted_routes(&plan(), &routes).is_empty());
        routes.backend_l4_ports.insert((Protocol::TCP, 8080));
        assert!(wanted_routes(&plan(), &routes).iter().all(|route| route.table == 7412));
        assert!(wanted_rules(&plan(), &routes).iter().any(|rule| rule.priority == 89));
    }
}
