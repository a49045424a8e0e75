//! The host port against a real kernel, in network namespaces of the tests' own.

mod common;

use std::net::IpAddr;
use std::path::Path;

use common::{ip, may_run, node_and_gateway};
use control::config::Segments;
use dataplane::address::Protocol;
use dataplane::lpm::Prefix;
use xskiff::host_port::{
    HOST_INTERFACE, HostPort, HostPortError, HostPortPlan, HostRoutes, PORT_INTERFACE,
};

fn plan(directory: &Path) -> HostPortPlan {
    HostPortPlan {
        segments: Segments::Cut,
        queues: 2,
        mtu: 1500,
        routing_table: 7411,
        rule_priority: 90,
        snat_l4_ports: 61_000..=65_535,
        state_directory: directory.to_owned(),
    }
}

fn routes() -> HostRoutes {
    let prefix = |address: &str, length| Prefix::new(address.parse().unwrap(), length).unwrap();
    HostRoutes {
        destinations: [prefix("10.1.0.0", 16), prefix("10.96.0.0", 12), prefix("fd00:1::", 64)]
            .into(),
        source_v4: Some("192.0.2.2".parse().unwrap()),
        source_v6: Some("2001:db8::2".parse().unwrap()),
        backend_l4_ports: [(Protocol::TCP, 8080)].into(),
    }
}

/// Everything the host port might touch.
fn state() -> String {
    let reserved = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap();
    // Names alone: the kernel settles a link's state in the background.
    let links = ip("-brief link show");
    let links: Vec<&str> =
        links.lines().filter_map(|line| line.split_whitespace().next()).collect();
    [
        links.join("\n"),
        ip("rule show"),
        ip("-6 rule show"),
        ip("route show table all"),
        ip("-6 route show table all proto 120"),
        reserved,
    ]
    .join("---\n")
}

fn sysctl(name: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap().trim().to_owned()
}

#[test]
fn the_host_port_leads_pods_and_services_through_itself_and_leaves_nothing() {
    if !may_run("the_host_port_leads_pods_and_services_through_itself_and_leaves_nothing") {
        return;
    }
    let (node, _gateway) = node_and_gateway();
    node.block_on(|| async {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", "61500,30000-30010").unwrap();
        let before = state();
        let port = HostPort::create(plan(directory.path())).await.unwrap();
        port.set_routes(&routes()).await.unwrap();

        for (destination, gateway) in [("10.1.2.3", "169.254.7.1"), ("fd00:1::5", "fe80::7:1")] {
            let route = ip(&format!("route get {destination}"));
            assert!(route.contains(HOST_INTERFACE) && route.contains(gateway), "{route}");
            let source = if destination.contains(':') { "2001:db8::2" } else { "192.0.2.2" };
            assert!(route.contains(&format!("src {source}")), "{route}");
        }
        let reply = ip("route get 203.0.113.9 from 192.0.2.2 ipproto tcp sport 8080");
        assert!(reply.contains(HOST_INTERFACE), "{reply}");
        let neighbours = ip(&format!("neighbour show dev {HOST_INTERFACE}"));
        assert_eq!(neighbours.matches("PERMANENT").count(), 2, "{neighbours}");
        assert_eq!(sysctl(&format!("ipv4/conf/{HOST_INTERFACE}/rp_filter")), "2");
        assert_eq!(sysctl("ipv4/conf/all/rp_filter"), "1");
        assert_eq!(sysctl(&format!("ipv4/conf/{PORT_INTERFACE}/forwarding")), "0");
        assert_eq!(sysctl("ipv4/ip_local_reserved_ports"), "30000-30010,61000-65535");
        let detail = ip(&format!("-details link show {PORT_INTERFACE}"));
        assert!(detail.contains("numtxqueues 2") && detail.contains("numrxqueues 2"), "{detail}");
        let addresses = ip(&format!("address show {HOST_INTERFACE}"));
        assert!(!addresses.contains("tentative"), "{addresses}");
        for interface in [HOST_INTERFACE, PORT_INTERFACE] {
            use xdp_redirect::ethtool::{Offload, offload};
            assert!(!offload(interface, Offload::TransmitChecksum).unwrap());
            assert!(!offload(interface, Offload::TcpSegmentation).unwrap());
        }
        port.remove().await.unwrap();
        assert_eq!(state(), before);
    });
}

#[test]
fn many_routes_are_made_at_once_and_the_one_that_is_refused_is_named() {
    if !may_run("many_routes_are_made_at_once_and_the_one_that_is_refused_is_named") {
        return;
    }
    let (node, _gateway) = node_and_gateway();
    node.block_on(|| async {
        let directory = tempfile::tempdir().unwrap();
        let port = HostPort::create(plan(directory.path())).await.unwrap();
        let host = |number: u32| Prefix::host(IpAddr::V4((0x0a02_0000 + number).into()));
        let mut many = routes();
        many.destinations.extend((0..1000).map(host));
        // No address of the node: the kernel takes no route that names it as the source.
        many.source_v6 = Some("2001:db8::99".parse().unwrap());
        let refused = port.set_routes(&many).await.unwrap_err().to_string();
        assert!(refused.contains("add route fd00:1::/64 of table 7411"), "{refused}");
        assert!(refused.contains("Invalid argument"), "{refused}");
        let count = || ip("route show table 7411").lines().count();
        assert_eq!(count(), 1002, "the others are there");
        many.source_v6 = routes().source_v6;
        port.set_routes(&many).await.unwrap();
        assert_eq!(ip("-6 route show table 7411").lines().count(), 1);
        port.set_routes(&routes()).await.unwrap();
        assert_eq!(count(), 2);
        port.remove().await.unwrap();
    });
}

#[test]
fn routes_and_rules_that_changed_or_were_taken_away_are_mended() {
    if !may_run("routes_and_rules_that_changed_or_were_taken_away_are_mended") {
        return;
    }
    let (node, _gateway) = node_and_gateway();
    node.block_on(|| async {
        let directory = tempfile::tempdir().unwrap();
        let port = HostPort::create(plan(directory.path())).await.unwrap();
        port.set_routes(&routes()).await.unwrap();
        let good = state();
        port.set_routes(&routes()).await.unwrap();
        assert_eq!(state(), good, "setting the same again changes nothing");
        ip("route del 10.1.0.0/16 table 7411");
        ip("rule del priority 90");
        ip("route replace 10.96.0.0/12 dev up0 table 7411 proto 120");
        port.set_routes(&routes()).await.unwrap();
        assert_eq!(state(), good);

        let mut fewer = routes();
        fewer.backend_l4_ports.clear();
        fewer.destinations.retain(|prefix| prefix.address().is_ipv4());
        port.set_routes(&fewer).await.unwrap();
        assert!(!state().contains("7412") && !state().contains("fd00:1::"), "{}", state());
        port.remove().await.unwrap();
    });
}

#[test]
fn what_a_killed_process_left_is_mended_by_the_next() {
    if !may_run("what_a_killed_process_left_is_mended_by_the_next") {
        return;
    }
    let (node, _gateway) = node_and_gateway();
    node.block_on(|| async {
        let directory = tempfile::tempdir().unwrap();
        let before = state();
        let killed = HostPort::create(plan(directory.path())).await.unwrap();
        killed.set_routes(&routes()).await.unwrap();
        // Dropping does no cleaning: what a SIGKILL leaves.
        drop(killed);
        assert_ne!(state(), before);
        let next = HostPort::create(plan(directory.path())).await.unwrap();
        next.set_routes(&routes()).await.unwrap();
        next.remove().await.unwrap();
        assert_eq!(state(), before);
    });
}

#[test]
fn the_pair_of_a_process_that_handed_over_is_kept_where_it_is_as_it_would_be_made() {
    if !may_run("the_pair_of_a_process_that_handed_over_is_kept_where_it_is_as_it_would_be_made") {
        return;
    }
    let (node, _gateway) = node_and_gateway();
    node.block_on(|| async {
        let directory = tempfile::tempdir().unwrap();
        let before = state();
        let first = HostPort::create(plan(directory.path())).await.unwrap();
        first.set_routes(&routes()).await.unwrap();
        let (ends, made) = ((first.host.clone(), first.port.clone()), state());
        drop(first);
        let second = HostPort::go_on(plan(directory.path())).await.unwrap();
        second.set_routes(&routes()).await.unwrap();
        assert_eq!((&second.host, &second.port), (&ends.0, &ends.1));
        assert_eq!(state(), made);
        drop(second);
        let plan = HostPortPlan { mtu: 1400, ..plan(directory.path()) };
        let third = HostPort::go_on(plan).await.unwrap();
        assert_ne!(third.port, ends.1, "another MTU is another pair");
        third.remove().await.unwrap();
        assert_eq!(state(), before);
        // Where there is none, one is made.
        let fourth = HostPort::go_on(self::plan(directory.path())).await.unwrap();
        fourth.remove().await.unwrap();
        assert_eq!(state(), before);
    });
}

#[test]
fn an_interface_of_somebody_else_is_named_and_left_alone() {
    if !may_run("an_interface_of_somebody_else_is_named_and_left_alone") {
        return;
    }
    let (node, _gateway) = node_and_gateway();
    node.block_on(|| async {
        let directory = tempfile::tempdir().unwrap();
        ip(&format!("link add {HOST_INTERFACE} type veth peer name other0"));
        let before = state();
        let error = HostPort::create(plan(directory.path())).await.unwrap_err();
        assert!(
            matches!(&error, HostPortError::Taken { interface } if interface == HOST_INTERFACE)
        );
        assert!(error.to_string().contains("ip link del"), "{error}");
        assert_eq!(state(), before);
    });
}
