//! Frames by which hosts of a link learn of each other: ARP and neighbour discovery.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet_builder::raw;

const ICMPV6: u8 = 58;
const BROADCAST: [u8; 6] = [0xff; 6];
/// All nodes of the link, and the link address that stands for them (RFC 2464, 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// Options: source and target link address (RFC 4861, 4.6.1).
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;

/// An ARP request, to all of the link: who has `target`? Tell `sender`, who is at `mac`.
#[must_use]
pub fn arp_request(mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp(1, (BROADCAST, mac), sender, target)
}

/// An ARP reply to whoever is at `to`: `sender` is at `mac`.
#[must_use]
pub fn arp_reply(to: [u8; 6], mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp(2, (to, mac), sender, target)
}

fn arp(
    operation: u8,
    (to, mac): ([u8; 6], [u8; 6]),
    sender: Ipv4Addr,
    target: Ipv4Addr,
) -> Vec<u8> {
    let mut frame = [to, mac].concat();
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation]);
    frame.extend(mac);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// A neighbour solicitation for `target` from `source`, who is at `mac`.
#[must_use]
pub fn solicitation(to: [u8; 6], mac: [u8; 6], source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    discovery((to, mac), (source, target), 135, [0; 4], target, SOURCE_MAC)
}

/// A neighbour advertisement from `source` to all of the link: `target` is at `mac`, whoever was
/// there before.
#[must_use]
pub fn advertisement(mac: [u8; 6], source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let link = (ALL_NODES_MAC, mac);
    discovery(link, (source, ALL_NODES), 136, [0x20, 0, 0, 0], target, TARGET_MAC)
}

/// A router advertisement from `source`: a default router for half an hour.
#[must_use]
pub fn router_advertisement(mac: [u8; 6], source: Ipv6Addr) -> Vec<u8> {
    let times = Ipv6Addr::UNSPECIFIED;
    let frame = (ALL_NODES_MAC, mac);
    let mut body = message(134, [64, 0, 0x07, 0x08], &times.octets()[..8]);
    body.extend(option(SOURCE_MAC, mac));
    ip(frame, source, ALL_NODES, &body)
}

fn discovery(
    link: ([u8; 6], [u8; 6]),
    (source, destination): (Ipv6Addr, Ipv6Addr),
    kind: u8,
    word: [u8; 4],
    target: Ipv6Addr,
    option_kind: u8,
) -> Vec<u8> {
    let mut body = message(kind, word, &target.octets());
    body.extend(option(option_kind, link.1));
    ip(link, source, destination, &body)
}

fn message(kind: u8, word: [u8; 4], rest: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0], &word[..], rest].concat()
}

fn option(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1], &mac[..]].concat()
}

fn ip(
    (to, mac): ([u8; 6], [u8; 6]),
    source: Ipv6Addr,
    destination: Ipv6Addr,
    body: &[u8],
) -> Vec<u8> {
    let (source, destination) = (IpAddr::V6(source), IpAddr::V6(destination));
    let mut frame = raw(source, destination, ICMPV6).ttl(255).payload(body).build();
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&mac);
    frame
}
