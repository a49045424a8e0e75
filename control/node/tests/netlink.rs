//! The follower against a real kernel, in network namespaces of the tests' own.

mod common;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{ip, may_run, node_and_gateway};
use dataplane::port::{PortId, PortKind};
use xdp_redirect::Redirect;
use xdp_redirect::loader::{Mode, interface_index};
use xdp_redirect::rules::PortRule;
use xskiff::netlink::pod_ends::runs_program;
use xskiff::netlink::{Follower, KernelView, RouteKind};

/// Waits until the view is as wanted, 5 s at most.
async fn until(
    follower: &mut Follower,
    what: &str,
    wanted: impl Fn(&KernelView) -> bool,
) -> Arc<KernelView> {
    let waited = tokio::time::timeout(Duration::from_secs(5), async {
        let mut view = follower.view();
        while !wanted(&view) {
            view = follower.changed().await.expect("the follower lives");
        }
        view
    });
    match waited.await {
        Ok(view) => view,
        Err(_) => panic!("never saw {what}: {:#?}", follower.view()),
    }
}

/// Runs commands of ip(8), a line each. A runtime of one thread reads no socket meanwhile.
fn ip_batch(commands: &str) {
    let mut batch = tempfile::NamedTempFile::new().unwrap();
    batch.write_all(commands.as_bytes()).unwrap();
    batch.flush().unwrap();
    ip(&format!("-batch {}", batch.path().display()));
}

fn index(view: &KernelView, name: &str) -> u32 {
    view.link_by_name(name).expect(name).0
}

#[test]
fn links_addresses_routes_and_neighbours_are_there_at_once_and_followed() {
    if !may_run("links_addresses_routes_and_neighbours_are_there_at_once_and_followed") {
        return;
    }
    let (node, _gateway) = node_and_gateway();
    node.block_on(|| async {
        let mut follower = Follower::start().await.unwrap();
        let view = follower.view();
        let uplink = index(&view, "up0");
        assert_eq!(view.links[&uplink].mtu, 1500);
        assert!(view.links[&uplink].up);
        let defaults = view.routes.iter().filter(|route| route.prefix.length() == 0).count();
        assert_eq!(defaults, 2, "{:?}", view.routes);

        ip("link set up0 mtu 1400");
        until(&mut follower, "the MTU", |view| view.links[&uplink].mtu == 1400).await;
        ip("address add 192.0.2.77/24 dev up0");
        until(&mut follower, "the address", |view| {
            view.addresses.iter().any(|(_, own)| own.address.to_string() == "192.0.2.77")
        })
        .await;
        ip("route add blackhole 198.18.0.0/15");
        until(&mut follower, "the blackhole", |view| {
            view.routes.iter().any(|route| route.kind == RouteKind::Refuse)
        })
        .await;
        ip("route replace 203.0.113.0/24 nexthop via 192.0.2.1 nexthop via 192.0.2.5");
        until(&mut follower, "two hops", |view| {
            view.routes
                .iter()
                .any(|r| matches!(&r.kind, RouteKind::Unicast(hops) if hops.len() == 2))
        })
        .await;
        ip("link set up0 down");
        until(&mut follower, "that the routes went with the link", |view| {
            !view.links[&uplink].up
                && view.routes.iter().all(|route| route.kind == RouteKind::Refuse)
        })
        .await;
        ip("link del up0");
        until(&mut follower, "that the link is gone", |view| {
            view.link_by_name("up0").is_none() && !view.addresses.iter().any(|(i, _)| *i == uplink)
        })
        .await;
        follower.stop().await;
    });
}

#[test]
fn routes_of_other_tables_are_neither_shown_nor_heard_of() {
    if !may_run("routes_of_other_tables_are_neither_shown_nor_heard_of") {
        return;
    }
    let (node, _gateway) = node_and_gateway();
    node.block_on(|| async {
        let mut follower = Follower::start().await.unwrap();
        // More than a socket's buffer holds, whichever it is.
        let many = |table: &str, first: &str| {
            let routes = (0..20_000).map(|number| {
                let [high, low] = [number / 256, number % 256];
                format!("route add blackhole {first}.{high}.{low} table {table}\n")
            });
            ip_batch(&routes.collect::<String>());
        };
        many("7411", "10.7");
        many("100", "10.8");
        ip("route add blackhole 198.18.0.0/15");
        let is_of_main = |view: &KernelView| {
            let refused = view.routes.iter().filter(|route| route.kind == RouteKind::Refuse);
            refused.map(|route| route.prefix.to_string()).eq(["198.18.0.0/15"])
        };
        until(&mut follower, "the route of the main table", is_of_main).await;
        assert_eq!(follower.counts().overruns.load(Ordering::Relaxed), 0);
        assert_eq!(follower.counts().resyncs.load(Ordering::Relaxed), 1);
        follower.stop().await;
        // A reading has no other, either.
        let follower = Follower::start().await.unwrap();
        assert!(is_of_main(&follower.view()), "{:?}", follower.view().routes);
        follower.stop().await;
    });
}

#[test]
fn gateways_are_resolved_and_kept_fresh_and_forgotten_at_the_end() {
    if !may_run("gateways_are_resolved_and_kept_fresh_and_forgotten_at_the_end") {
        return;
    }
    let (node, _gateway) = node_and_gateway();
    node.block_on(|| async {
        let mut follower = Follower::start().await.unwrap();
        let uplink = index(&follower.view(), "up0");
        let gateways: BTreeSet<(u32, IpAddr)> =
            ["192.0.2.1", "2001:db8::1"].map(|address| (uplink, address.parse().unwrap())).into();
        follower.set_gateways(gateways.clone());
        until(&mut follower, "both gateways' link addresses, kept fresh by the kernel", |view| {
            gateways.iter().all(|key| {
                view.neighbours
                    .get(key)
                    .is_some_and(|known| known.mac.is_some() && known.kept_fresh)
            })
        })
        .await;
        follower.stop().await;
        let left = ip("neighbour show");
        assert!(!left.contains("managed"), "{left}");
    });
}

#[test]
fn an_on_link_address_is_resolved_on_request_and_its_silence_is_seen() {
    if !may_run("an_on_link_address_is_resolved_on_request_and_its_silence_is_seen") {
        return;
    }
    let (node, gateway) = node_and_gateway();
    gateway.ip("address add 192.0.2.50/24 dev gw0");
    node.block_on(|| async {
        let mut follower = Follower::start().await.unwrap();
        let uplink = index(&follower.view(), "up0");
        let (there, nobody) =
            ((uplink, "192.0.2.50".parse().unwrap()), (uplink, "192.0.2.99".parse().unwrap()));
        follower.ask(there);
        follower.ask(nobody);
        until(&mut follower, "who is there", |view| {
            view.neighbours.get(&there).is_some_and(|known| known.mac.is_some())
        })
        .await;
        until(&mut follower, "that nobody is there", |view| {
            view.neighbours.get(&nobody).is_some_and(|known| known.failed)
        })
        .await;
        assert!(follower.counts().neighbour_requests.load(Ordering::Relaxed) >= 2);
        follower.stop().await;
    });
}

#[test]
fn a_neighbour_that_changes_its_link_address_is_noticed() {
    if !may_run("a_neighbour_that_changes_its_link_address_is_noticed") {
        return;
    }
    let (node, gateway) = node_and_gateway();
    let gateway_id = gateway.id();
    node.block_on(move || async move {
        let mut follower = Follower::start().await.unwrap();
        let uplink = index(&follower.view(), "up0");
        let key = (uplink, "192.0.2.1".parse().unwrap());
        follower.set_gateways([key].into());
        let mac = |view: &KernelView| view.neighbours.get(&key).and_then(|known| known.mac);
        let view = until(&mut follower, "the gateway", |view| mac(view).is_some()).await;
        let before = mac(&view);
        // Announces itself by gratuitous ARP when arp_notify is set, as a failover does.
        let enter = format!("--net=/proc/{gateway_id}/ns/net");
        let change = "sysctl -qw net.ipv4.conf.gw0.arp_notify=1 && \
                      ip link set gw0 address 02:00:00:00:00:99";
        let done = std::process::Command::new("nsenter")
            .args([enter.as_str(), "sh", "-c", change])
            .status()
            .expect("nsenter runs");
        assert!(done.success());
        until(&mut follower, "the new address", |view| {
            mac(view).is_some_and(|now| Some(now) != before)
        })
        .await;
        follower.stop().await;
    });
}

#[test]
fn an_overrun_leads_to_a_full_reading_and_nothing_is_missed() {
    if !may_run("an_overrun_leads_to_a_full_reading_and_nothing_is_missed") {
        return;
    }
    const NEIGHBOURS: usize = 8_000;
    let (node, _gateway) = node_and_gateway();
    node.block_on(|| async {
        let mut follower = Follower::start().await.unwrap();
        let neighbours = (0..NEIGHBOURS).map(|number| {
            let (high, low) = (number / 250, number % 250 + 1);
            format!("neighbour add 10.9.{high}.{low} lladdr 02:00:00:00:00:01 dev up0\n")
        });
        ip_batch(&neighbours.collect::<String>());
        until(&mut follower, "all of them", |view| view.neighbours.len() >= NEIGHBOURS).await;
        assert!(follower.counts().overruns.load(Ordering::Relaxed) >= 1);
        follower.stop().await;
    });
}

/// It lies in another namespace, which nobody enters to look.
#[test]
fn a_program_at_the_other_end_of_a_veth_is_seen_while_it_is_attached() {
    if !may_run("a_program_at_the_other_end_of_a_veth_is_seen_while_it_is_attached") {
        return;
    }
    let (node, gateway) = node_and_gateway();
    let runs = || node.run(|| runs_program(interface_index("up0").unwrap()));
    assert!(!runs().unwrap());
    let (mut program, ifindex) = gateway.run(|| {
        let mut redirect = Redirect::load(false).unwrap();
        let rule =
            PortRule { port: PortId(1), kind: PortKind::Uplink, queues: 1, everything: false };
        redirect.attach("gw0", &rule, Mode::Native).unwrap();
        (redirect, interface_index("gw0").unwrap())
    });
    assert!(runs().unwrap());
    program.detach(ifindex).unwrap();
    assert!(!runs().unwrap());
    assert!(node.run(|| runs_program(interface_index("lo").unwrap())).is_err(), "it is no veth");
}
