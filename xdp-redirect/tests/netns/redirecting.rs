//! Whose a frame is: one frame sent, one counter moved.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use dataplane::buffer::Buffer;
use dataplane::lpm::Prefix;
use dataplane::port::{PortId, PortKind};
use dataplane::time::Nanos;
use xdp_redirect::counters::RedirectCounters;
use xdp_redirect::heartbeat::HeartbeatWriter;
use xdp_redirect::loader::{Attachment, Mode};
use xdp_redirect::pool::FramePool;
use xdp_redirect::rules::{L4Bitmap, OnStall, OurPrefix, PortRule};
use xdp_redirect::socket::SocketConfig;
use xdp_redirect::umem::UmemConfig;
use xdp_redirect::{Redirect, Socket, Umem};

use crate::packets::{
    NODE4, NODE6, OTHER4, OTHER6, POD4, POD6, SOURCE6, broadcast, ethernet, icmp, inject, ipv4,
    ipv6, l4,
};
use crate::world::{Plan, World, eventually, rule, world};

/// A node with one interface, `left`, and one worker.
struct Node {
    world: World,
    redirect: Redirect,
    attachment: Attachment,
    socket: Option<Socket>,
    pool: FramePool,
    heartbeat: HeartbeatWriter,
    umem: Umem,
}

fn ours(prefix: Prefix, translated: bool) -> OurPrefix {
    OurPrefix { prefix, translated, on_stall: OnStall::Drop }
}

fn node(kind: PortKind, mode: Mode) -> Option<Node> {
    let world = world(Plan::default())?;
    let mut redirect = Redirect::load(false).expect("load");
    let umem = Umem::new(UmemConfig { frames: 1024, ..UmemConfig::default() }).expect("umem");
    let socket = Socket::bind(&umem, "left", 0, &SocketConfig::small()).expect("bind");
    redirect.set_socket(PortId(3), 0, 1, socket.fd()).expect("enter the socket");
    let heartbeat = redirect.heartbeat(1).expect("heartbeat");
    heartbeat.beat_for_ever();
    let prefixes = [
        ours(Prefix::new(POD4.into(), 24).expect("prefix"), false),
        ours(Prefix::new(POD6.into(), 64).expect("prefix"), false),
    ];
    redirect.change_prefixes(&prefixes, &[]).expect("prefixes");
    redirect.change_node_addresses(&[NODE4.into(), NODE6.into()], &[]).expect("addresses");
    for bitmap in [L4Bitmap::Tcp, L4Bitmap::Udp, L4Bitmap::Icmp] {
        redirect.set_l4_ports(bitmap, 61_000..=65_535, true).expect("SNAT range");
    }
    redirect.set_l4_ports(L4Bitmap::Tcp, 30_080..=30_080, true).expect("NodePort");
    let attachment = redirect.attach("left", &rule(3, kind), mode).expect("attach");
    let (socket, pool) = (Some(socket), FramePool::new(&umem));
    Some(Node { world, redirect, attachment, socket, pool, heartbeat, umem })
}

fn total(counters: &RedirectCounters) -> u64 {
    let c = counters;
    let dropped = c.no_socket + c.stalled + c.not_ip + c.tagged + c.late;
    c.redirected + c.passed + dropped + c.unknown_interface + c.passed_on_stall
}

impl Node {
    /// Sends one frame and returns the counter it moved; one that was redirected arrives.
    fn fate(&mut self, frame: &[u8]) -> &'static str {
        let fate = self.moved(frame);
        if fate == "redirected" {
            self.expect_received(frame);
        }
        fate
    }

    /// Sends one frame and returns the counter it moved.
    fn moved(&self, frame: &[u8]) -> &'static str {
        let before = self.redirect.counters().expect("counters");
        self.world.within("a", || inject("a0", frame));
        let count = |redirect: &Redirect| {
            let counters = redirect.counters().expect("counters");
            total(&counters) + counters.malformed
        };
        let old = total(&before) + before.malformed;
        assert!(eventually(|| count(&self.redirect) > old), "the frame did not arrive");
        let after = self.redirect.counters().expect("counters");
        let moved = [
            ("redirected", after.redirected - before.redirected),
            ("passed", after.passed - before.passed),
            ("no socket", after.no_socket - before.no_socket),
            ("stalled", after.stalled - before.stalled),
            ("tagged", after.tagged - before.tagged),
            ("late", after.late - before.late),
            ("not ip", after.not_ip - before.not_ip),
            ("malformed", after.malformed - before.malformed),
            ("passed on stall", after.passed_on_stall - before.passed_on_stall),
        ];
        let mut moved = moved.iter().filter(|(_, count)| *count > 0);
        let fate = moved.next().expect("a counter moved").0;
        assert!(moved.next().is_none(), "more than one counter moved: {before:?} {after:?}");
        fate
    }

    fn expect_received(&mut self, frame: &[u8]) {
        let (socket, pool) = (self.socket.as_mut().expect("bound"), &mut self.pool);
        let mut received = Vec::new();
        assert!(eventually(|| socket.receive(pool, 8, |frame| received.push(frame)) > 0));
        assert_eq!(received.len(), 1);
        for buffer in received {
            // Short frames may be padded on their way.
            assert_eq!(&buffer.bytes()[..frame.len()], frame, "the frame changed on its way");
            pool.release(buffer);
        }
    }

    fn set_rule(&mut self, rule: PortRule) {
        self.redirect.set_port(self.attachment.ifindex, &rule).expect("rule");
    }
}

fn now() -> Nanos {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let part = |value: i64| u64::try_from(value).expect("time is positive");
    Nanos(part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec))
}

const MORE_FRAGMENTS: u16 = 0x2000;

fn expect_fates(node: &mut Node, cases: &[(&str, Vec<u8>, &str)]) {
    for (what, frame, fate) in cases {
        assert_eq!(&node.fate(frame), fate, "{what}");
    }
}

#[test]
fn uplink_redirects_what_is_ours_and_passes_the_rest() {
    for mode in [Mode::Native, Mode::Generic] {
        let Some(mut node) = node(PortKind::Uplink, mode) else { return };
        let cases = [
            ("UDP to a pod", ipv4(POD4, 17, 0, &l4(53)), "redirected"),
            ("UDP to a pod, IPv6", ipv6(POD6, 17, &l4(53)), "redirected"),
            ("ssh to the node", ipv4(NODE4, 6, 0, &l4(22)), "passed"),
            ("ssh to the node, IPv6", ipv6(NODE6, 6, &l4(22)), "passed"),
            ("NodePort", ipv4(NODE4, 6, 0, &l4(30_080)), "redirected"),
            ("NodePort, IPv6", ipv6(NODE6, 6, &l4(30_080)), "redirected"),
            ("the NodePort's number in UDP", ipv4(NODE4, 17, 0, &l4(30_080)), "passed"),
            ("first of the SNAT range", ipv4(NODE4, 17, 0, &l4(61_000)), "redirected"),
            ("last of the SNAT range", ipv4(NODE4, 6, 0, &l4(65_535)), "redirected"),
            ("below the SNAT range", ipv4(NODE4, 17, 0, &l4(60_999)), "passed"),
            ("to neither", ipv4(OTHER4, 6, 0, &l4(30_080)), "passed"),
            ("to neither, IPv6", ipv6(OTHER6, 6, &l4(30_080)), "passed"),
            ("first fragment", ipv4(NODE4, 17, MORE_FRAGMENTS, &l4(22)), "redirected"),
            ("later fragment", ipv4(NODE4, 17, 100, &l4(22)), "redirected"),
            ("may not fragment", ipv4(NODE4, 6, 0x4000, &l4(22)), "passed"),
            ("fragment, IPv6", ipv6(NODE6, 44, &[17; 24]), "redirected"),
            ("ICMP error", ipv4(NODE4, 1, 0, &icmp(3, 0)), "redirected"),
            ("ICMP time exceeded", ipv4(NODE4, 1, 0, &icmp(11, 0)), "redirected"),
            ("ICMPv6 error", ipv6(NODE6, 58, &icmp(2, 0)), "redirected"),
            ("ping of the node", ipv4(NODE4, 1, 0, &icmp(8, 61_001)), "passed"),
            ("answer to the node's ping", ipv4(NODE4, 1, 0, &icmp(0, 7)), "passed"),
            ("answer to our ping", ipv4(NODE4, 1, 0, &icmp(0, 61_001)), "redirected"),
            ("answer to our timestamp query", ipv4(NODE4, 1, 0, &icmp(14, 61_001)), "redirected"),
            ("timestamp query to the node", ipv4(NODE4, 1, 0, &icmp(13, 61_001)), "passed"),
            ("answer to our ping, IPv6", ipv6(NODE6, 58, &icmp(129, 61_001)), "redirected"),
            ("ping of the node, IPv6", ipv6(NODE6, 58, &icmp(128, 61_001)), "passed"),
            ("GRE to the node", ipv4(NODE4, 47, 0, &[0; 24]), "passed"),
            ("ESP to the node, IPv6", ipv6(NODE6, 50, &[0; 24]), "passed"),
            ("router advertisement", ipv6(OTHER6, 58, &icmp(134, 0)), "passed"),
            ("ARP", ethernet(0x0806, &[0; 46]), "passed"),
            ("VLAN", ethernet(0x8100, &[0; 46]), "passed"),
            ("cut IPv4 header", ethernet(0x0800, &[0x45, 0, 0, 9]), "malformed"),
            ("cut L4 header", ipv4(NODE4, 6, 0, &[0; 4]), "malformed"),
        ];
        expect_fates(&mut node, &cases);
        let mut hop_by_hop = vec![6, 0, 5, 2, 0, 0, 1, 0];
        hop_by_hop.extend(l4(22));
        let ssh = ipv6(NODE6, 0, &hop_by_hop);
        assert_eq!(node.fate(&ssh), "passed", "ssh behind hop-by-hop options");
        hop_by_hop.truncate(8);
        hop_by_hop.extend(l4(30_080));
        let node_port = ipv6(NODE6, 0, &hop_by_hop);
        assert_eq!(node.fate(&node_port), "redirected", "NodePort behind hop-by-hop options");
        let routed = ipv6(NODE6, 43, &[6; 32]);
        assert_eq!(node.fate(&routed), "redirected", "only the pipeline walks routing headers");
    }
}

/// `frame` as a switch that marks priorities sends it: with tags of these types and contents.
fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    for (kind, content) in tags {
        tagged.extend(kind.to_be_bytes());
        tagged.extend(content.to_be_bytes());
    }
    tagged.extend(&frame[12..]);
    tagged
}

/// The kernel takes such tags off. It forwarded what is for a pod by the host port, where it was taken
/// for the node's own.
#[test]
fn what_is_ours_behind_a_priority_tag_is_dropped_and_all_else_passes() {
    for mode in [Mode::Native, Mode::Generic] {
        let Some(mut node) = node(PortKind::Uplink, mode) else { return };
        let (pod, pod6) = (ipv4(POD4, 17, 0, &l4(53)), ipv6(POD6, 17, &l4(53)));
        let (ssh, node_port) = (ipv4(NODE4, 6, 0, &l4(22)), ipv4(NODE4, 6, 0, &l4(30_080)));
        // Priority 5, drop eligible, no VLAN.
        let priority = (0x8100, 0xb000);
        let cases = [
            ("to a pod", tagged(&pod, &[(0x8100, 0)]), "tagged"),
            ("to a pod, with a priority", tagged(&pod, &[priority]), "tagged"),
            ("to a pod, 802.1ad", tagged(&pod, &[(0x88a8, 0)]), "tagged"),
            ("to a pod, IPv6", tagged(&pod6, &[priority]), "tagged"),
            ("to a pod, two tags", tagged(&pod, &[(0x88a8, 0), priority]), "tagged"),
            ("to a pod, four tags", tagged(&pod, &[priority; 4]), "tagged"),
            ("more tags than are looked at", tagged(&ssh, &[priority; 5]), "tagged"),
            ("to a node port", tagged(&node_port, &[priority]), "tagged"),
            ("ssh to the node", tagged(&ssh, &[priority]), "passed"),
            ("to another, of a VLAN", tagged(&pod, &[(0x8100, 5)]), "passed"),
            ("of a VLAN behind a priority", tagged(&pod, &[priority, (0x8100, 5)]), "passed"),
            ("ARP", tagged(&ethernet(0x0806, &[0; 46]), &[priority]), "passed"),
            ("another protocol", tagged(&ethernet(0x88b5, &[0; 46]), &[priority]), "passed"),
        ];
        expect_fates(&mut node, &cases);
        node.set_rule(PortRule { everything: true, ..rule(3, PortKind::Uplink) });
        assert_eq!(node.fate(&tagged(&ssh, &[priority])), "tagged", "all is asked for");
        assert_eq!(node.fate(&tagged(&broadcast(pod), &[priority])), "tagged");
    }
}

#[test]
fn changes_of_what_is_ours_apply_at_once() {
    let Some(mut node) = node(PortKind::Uplink, Mode::Native) else { return };
    let frame = ipv4(POD4, 17, 0, &l4(53));
    let pods = Prefix::new(POD4.into(), 24).expect("prefix");
    node.redirect.change_prefixes(&[], &[pods, pods]).expect("remove, even twice");
    assert_eq!(node.fate(&frame), "passed");
    node.redirect.change_prefixes(&[ours(pods, true)], &[]).expect("add");
    assert_eq!(node.fate(&frame), "redirected");
    node.redirect.change_node_addresses(&[POD4.into()], &[]).expect("add");
    assert_eq!(node.fate(&frame), "passed", "a node address goes before a prefix");
    node.redirect.change_node_addresses(&[], &[POD4.into()]).expect("remove");
    assert_eq!(node.fate(&frame), "redirected");
    // Packets in packets for the node itself are the kernel's, unless they are asked for.
    let wrapped = [(4, ipv4(NODE4, 4, 0, &l4(0))), (41, ipv6(NODE6, 41, &l4(0)))];
    for (protocol, frame) in &wrapped {
        assert_eq!(node.fate(frame), "passed");
        let range = *protocol..=*protocol;
        node.redirect.set_l4_ports(L4Bitmap::Protocol, range.clone(), true).expect("add");
        assert_eq!(node.fate(frame), "redirected");
        node.redirect.set_l4_ports(L4Bitmap::Protocol, range, false).expect("remove");
        assert_eq!(node.fate(frame), "passed");
    }
    let node_port = ipv4(NODE4, 6, 0, &l4(30_080));
    node.redirect.set_l4_ports(L4Bitmap::Tcp, 30_000..=32_767, false).expect("remove");
    assert_eq!(node.fate(&node_port), "passed");
    node.set_rule(PortRule { everything: true, ..rule(3, PortKind::Uplink) });
    let cases = [
        ("ssh, firewall on", ipv4(NODE4, 6, 0, &l4(22)), "redirected"),
        ("foreign, firewall on", ipv6(OTHER6, 6, &l4(22)), "redirected"),
        ("ARP, firewall on", ethernet(0x0806, &[0; 46]), "passed"),
        ("discovery, firewall on", ipv6(NODE6, 58, &icmp(135, 0)), "passed"),
    ];
    expect_fates(&mut node, &cases);
}

/// DHCP, VRRP, OSPF and mDNS of an uplink whose traffic is all ours ended in the pipeline.
#[test]
fn link_business_passes_on_an_uplink_that_redirects_everything_and_what_is_ours_does_not() {
    let Some(mut node) = node(PortKind::Uplink, Mode::Native) else { return };
    node.set_rule(PortRule { everything: true, ..rule(3, PortKind::Uplink) });
    let group4 = |last| Ipv4Addr::new(224, 0, 0, last);
    let address6 = |first| Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 5);
    let cases = [
        ("VRRP", ipv4(group4(18), 112, 0, &[0; 20]), "passed"),
        ("OSPF", ipv4(group4(5), 89, 0, &[0; 24]), "passed"),
        ("mDNS, IPv6", ipv6(address6(0xff02), 17, &l4(5353)), "passed"),
        ("DHCP", broadcast(ipv4(Ipv4Addr::BROADCAST, 17, 0, &l4(68))), "passed"),
        (
            "subnet broadcast",
            broadcast(ipv4(Ipv4Addr::new(10, 9, 0, 255), 17, 0, &l4(9))),
            "passed",
        ),
        ("link-local", ipv4(Ipv4Addr::new(169, 254, 3, 4), 17, 0, &l4(9)), "passed"),
        ("link-local, IPv6", ipv6(address6(0xfe80), 6, &l4(179)), "passed"),
        ("the end of link-local", ipv6(address6(0xfebf), 6, &l4(179)), "passed"),
        ("site-local", ipv6(address6(0xfec0), 6, &l4(179)), "redirected"),
        ("beside link-local", ipv4(Ipv4Addr::new(169, 253, 3, 4), 17, 0, &l4(9)), "redirected"),
        ("to a pod, to all stations", broadcast(ipv4(POD4, 17, 0, &l4(53))), "redirected"),
        ("to the node, to all stations", broadcast(ipv4(NODE4, 17, 0, &l4(53))), "redirected"),
        ("cut IPv4", ethernet(0x0800, &[0x45, 0, 0, 9]), "redirected"),
    ];
    expect_fates(&mut node, &cases);
}

#[test]
fn pod_and_host_ports_redirect_all_ip_and_drop_what_is_not() {
    for kind in [PortKind::Pod, PortKind::Host] {
        let Some(mut node) = node(kind, Mode::Native) else { return };
        let as_router = if kind == PortKind::Pod { "redirected" } else { "passed" };
        // Whose frames these are, by every address in them.
        node.redirect.change_pod_addresses(&[(PortId(3), SOURCE6.into())], &[]).expect("address");
        let cases = [
            ("IPv4 to anywhere", ipv4(OTHER4, 6, 0, &l4(443)), "redirected"),
            ("IPv4 to the node", ipv4(NODE4, 6, 0, &l4(22)), "redirected"),
            ("IPv6 to anywhere", ipv6(OTHER6, 17, &l4(443)), "redirected"),
            ("cut IPv4", ethernet(0x0800, &[0x45, 0, 0, 9]), "redirected"),
            ("ARP probe", ethernet(0x0806, &[0; 46]), "passed"),
            ("router solicitation", ipv6(OTHER6, 58, &icmp(133, 0)), "passed"),
            ("neighbour solicitation", ipv6(OTHER6, 58, &icmp(135, 0)), "passed"),
            ("neighbour advertisement", ipv6(OTHER6, 58, &icmp(136, 0)), "passed"),
            ("router advertisement", ipv6(OTHER6, 58, &icmp(134, 0)), as_router),
            ("redirect", ipv6(OTHER6, 58, &icmp(137, 0)), as_router),
            ("ping", ipv6(OTHER6, 58, &icmp(128, 0)), "redirected"),
            ("VLAN", ethernet(0x8100, &[0; 46]), "not ip"),
            ("LLDP", ethernet(0x88cc, &[0; 46]), "not ip"),
        ];
        expect_fates(&mut node, &cases);
    }
}

fn arp(sender: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 0xa];
    message.extend(sender.octets());
    message.resize(46, 0);
    ethernet(0x0806, &message)
}

fn advertisement(target: Ipv6Addr) -> Vec<u8> {
    let mut message = icmp(136, 0);
    message[8..24].copy_from_slice(&target.octets());
    ipv6(OTHER6, 58, &message)
}

#[test]
fn pod_port_passes_claims_of_the_pods_own_addresses_and_redirects_all_others() {
    let Some(mut node) = node(PortKind::Pod, Mode::Native) else { return };
    let own: [(PortId, IpAddr); 3] =
        [POD4.into(), POD6.into(), SOURCE6.into()].map(|address| (PortId(3), address));
    let another = [(PortId(4), OTHER4.into()), (PortId(4), OTHER6.into())];
    node.redirect.change_pod_addresses(&own, &[]).expect("own addresses");
    node.redirect.change_pod_addresses(&another, &[]).expect("another pod's");
    let local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7);
    let cases = [
        ("ARP from its own", arp(POD4), "passed"),
        ("ARP from another's", arp(OTHER4), "redirected"),
        ("ARP from the node's", arp(NODE4), "redirected"),
        ("cut ARP", ethernet(0x0806, &[0; 20]), "redirected"),
        ("advertisement of its own", advertisement(POD6), "passed"),
        ("advertisement of its link's", advertisement(local), "passed"),
        ("advertisement of another's", advertisement(OTHER6), "redirected"),
    ];
    expect_fates(&mut node, &cases);
    node.redirect.change_pod_addresses(&[], &own).expect("given up");
    let cases = [
        ("ARP from what was its own", arp(POD4), "redirected"),
        ("solicitation from what was its own", ipv6(OTHER6, 58, &icmp(135, 0)), "redirected"),
        ("advertisement of what was its own", advertisement(POD6), "redirected"),
    ];
    expect_fates(&mut node, &cases);
}

#[test]
fn without_a_socket_ours_is_dropped_and_the_rest_passes() {
    let Some(mut node) = node(PortKind::Uplink, Mode::Native) else { return };
    node.socket = None;
    // A child that another test is just about to start has the socket for a moment as well.
    let pod = ipv4(POD4, 17, 0, &l4(53));
    assert!(eventually(|| node.moved(&pod) == "no socket"), "it is still in the program's table");
    assert_eq!(node.fate(&ipv4(NODE4, 6, 0, &l4(22))), "passed");
    let Node { umem, pool, .. } = &mut node;
    *pool = FramePool::new(umem);
    let census = umem.census();
    assert_eq!(census.free, census.total, "the closed socket's frames were not found again");
}

#[test]
fn stalled_worker_gets_nothing_and_ours_is_dropped() {
    let Some(mut node) = node(PortKind::Uplink, Mode::Native) else { return };
    let (pod, ssh) = (ipv4(POD4, 17, 0, &l4(53)), ipv4(NODE4, 6, 0, &l4(22)));
    node.heartbeat.beat(now());
    assert_eq!(node.fate(&pod), "redirected");
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(node.fate(&pod), "stalled");
    assert_eq!(node.fate(&ssh), "passed");
    node.heartbeat.sleep(now().after(Duration::from_millis(300)));
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(node.fate(&pod), "redirected", "a sleeping worker is well");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(node.fate(&pod), "stalled", "no sleep lasts so long");
    node.heartbeat.beat_for_ever();
    assert_eq!(node.fate(&pod), "redirected", "nobody watches it");
    node.heartbeat.stop();
    assert_eq!(node.fate(&pod), "stalled", "a worker that never ticked is not");
    node.heartbeat.beat(now());
    node.redirect.set_stall_after(Duration::from_secs(3600)).expect("limit");
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(node.fate(&pod), "redirected", "the limit is a setting");
}

/// A starving worker's rings filled with what it would have shed, and what stood found no place in them.
#[test]
fn of_a_late_worker_only_what_begins_tcp_connections_is_dropped() {
    let Some(mut node) = node(PortKind::Uplink, Mode::Native) else { return };
    let of_flags = |flags: u8| {
        let mut segment = l4(80);
        (segment[12], segment[13]) = (5 << 4, flags);
        segment
    };
    let (syn, syn_ack, ack) = (of_flags(0x02), of_flags(0x12), of_flags(0x10));
    let fates = [
        ("SYN", ipv4(POD4, 6, 0, &syn), "late"),
        ("SYN, IPv6", ipv6(POD6, 6, &syn), "late"),
        ("SYN with ECN (RFC 3168)", ipv4(POD4, 6, 0, &of_flags(0xc2)), "late"),
        ("SYN to a node port", ipv4(NODE4, 6, 0, &to_port(&syn, 30_080)), "late"),
        ("SYN to the node itself", ipv4(NODE4, 6, 0, &to_port(&syn, 22)), "passed"),
        ("an answer", ipv4(POD4, 6, 0, &syn_ack), "redirected"),
        ("an answer, IPv6", ipv6(POD6, 6, &syn_ack), "redirected"),
        ("what stands", ipv4(POD4, 6, 0, &ack), "redirected"),
        ("UDP of the same bytes", ipv4(POD4, 17, 0, &syn), "redirected"),
        ("a later fragment", ipv4(POD4, 6, 100, &syn), "redirected"),
        ("cut before its flags", ipv4(POD4, 6, 0, &syn[..13]), "redirected"),
    ];
    node.redirect.set_stall_after(Duration::from_secs(80)).expect("limit");
    let beat = now();
    node.heartbeat.beat(beat);
    for (what, frame, _) in &fates {
        let on_time = if what.ends_with("itself") { "passed" } else { "redirected" };
        assert_eq!(node.fate(frame), on_time, "{what}, on time");
    }
    assert!(now().since(beat) < Duration::from_secs(10), "the machine stood still");
    node.heartbeat.beat(Nanos(beat.0.saturating_sub(11_000_000_000)));
    for (what, frame, fate) in &fates {
        assert_eq!(node.fate(frame), *fate, "{what}");
    }
    node.heartbeat.sleep(now().after(Duration::from_millis(100)));
    assert_eq!(node.fate(&fates[0].1), "redirected", "who sleeps is not late");
}

/// The same segment to another L4 port.
fn to_port(segment: &[u8], port: u16) -> Vec<u8> {
    let mut segment = segment.to_vec();
    segment[2..4].copy_from_slice(&port.to_be_bytes());
    segment
}

/// An uplink once said for all its prefixes that they pass, policed pods among them.
#[test]
fn on_stall_only_the_prefixes_that_say_so_pass() {
    let Some(mut node) = node(PortKind::Uplink, Mode::Native) else { return };
    let pods = Prefix::new(POD4.into(), 24).expect("prefix");
    let pod = ipv4(POD4, 17, 0, &l4(53));
    node.heartbeat.stop();
    let pass = OurPrefix { prefix: pods, translated: false, on_stall: OnStall::Pass };
    node.redirect.change_prefixes(&[pass], &[]).expect("prefix");
    assert_eq!(node.fate(&pod), "passed on stall");
    let policed = ours(Prefix::host(OTHER4.into()), false);
    node.redirect.change_prefixes(&[policed], &[]).expect("prefix");
    assert_eq!(node.fate(&ipv4(OTHER4, 17, 0, &l4(53))), "stalled", "beside one that passes");
    assert_eq!(node.fate(&ipv4(NODE4, 6, 0, &l4(30_080))), "stalled", "translated");
    assert_eq!(node.fate(&ipv6(POD6, 17, &l4(53))), "stalled", "the other family");
    for translated in [false, true] {
        node.redirect.change_prefixes(&[ours(pods, translated)], &[]).expect("prefix");
        assert_eq!(node.fate(&pod), "stalled");
    }
}
