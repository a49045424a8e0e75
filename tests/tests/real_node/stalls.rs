//! What a stalled node lets through to the kernel: with `on_stall: pass` what is for pods that no
//! policy isolates, never what is for the others.

use nix::sys::signal::Signal;
use xskiff::demo::scene::{BUYER, PodPlan, WEB_1, address};
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::world::{PATIENCE, Shape, World};

/// Echo requests that a pod's own stack has seen, in both families.
fn asked(world: &World, pod: PodPlan) -> u64 {
    let text = "cat /proc/net/snmp6; nstat -asz IcmpInEchos";
    let text = world.scene.pod(pod).run("sh", &["-c", text]).expect("counters");
    let lines = text.lines().filter_map(|line| line.split_once(char::is_whitespace));
    let echoes = lines.filter(|(name, _)| ["Icmp6InEchos", "IcmpInEchos"].contains(name));
    let numbers = echoes.filter_map(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
    let numbers: Vec<u64> = numbers.collect();
    assert_eq!(numbers.len(), 2, "{text}");
    numbers.iter().sum()
}

/// Pings both addresses of a pod; nothing that the pod answers comes back.
fn ping(world: &World, pod: PodPlan) {
    for own in pod.addresses {
        let pinged = world.scene.client.ping(address(own), 3);
        pinged.unwrap_or_else(|error| panic!("{own}: {error}"));
    }
}

#[test]
fn passing_on_stall_is_switched_on_live_for_free_pods_and_never_for_policed_ones() {
    if !root_or_skip("on_stall: pass") {
        return;
    }
    let shape = Shape { label: "stall", mtu: 1500, xdp_mode: "native" };
    let settings = "host_port: {enabled: false}\nstall: {after_ms: 100, on_stall: drop}\n";
    // Its workers sleep most of the time, and are stopped in their sleep.
    let world = World::start_edited(shape, |text| {
        assert!(text.contains("idle: adaptive"), "{text}");
        text + settings
    });
    // The kernel would forward whatever it is given.
    let forward = [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")];
    world.scene.node.set(&forward).expect("forwarding");
    for pod in [WEB_1, BUYER] {
        for (own, family) in pod.addresses.iter().zip(["", "-6 "]) {
            let route = format!("{family}route replace {own} dev {}", pod.name);
            world.scene.node.ip(&route).expect("a route");
        }
    }
    // No table changes by it.
    world.change_configuration("on_stall: drop", "on_stall: pass");
    let before = world.status().xdp;
    let (policed, free) = (asked(&world, WEB_1), asked(&world, BUYER));

    world.node.signal(Signal::SIGSTOP).expect("stopped");
    // Until the workers count as stalled, what comes waits in their rings.
    let passed = || {
        ping(&world, BUYER);
        asked(&world, BUYER) > free
    };
    assert!(wait_until(PATIENCE, passed).is_some(), "nothing passed to the free pod");
    ping(&world, WEB_1);
    assert_eq!(asked(&world, WEB_1), policed, "a stall opened the way past policy");
    world.node.signal(Signal::SIGCONT).expect("going on");

    let after = world.status().xdp;
    assert!(after.passed_on_stall > before.passed_on_stall, "{after:?}");
    // Three pings in each family, and whatever the free pod had answered.
    assert!(after.stalled >= before.stalled + 6, "{after:?}");
}
