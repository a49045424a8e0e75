//! What a pod claims to be on its link, by ARP and neighbour discovery.
//!
//! The kernel answers honest link business; the XDP program hands over what a pod may not say. It
//! is dropped here all the same, whoever handed it over, and named when it is a claim of an address
//! that is not the pod's: a neighbour that learned it would send the other's packets there.

use std::net::{IpAddr, Ipv4Addr};

use crate::DropReason;
use crate::address::Protocol;
use crate::buffer::Buffer;
use crate::context::{Context, Stop};
use crate::event::{EventKind, FlowEvent};
use crate::flow_key::{FlowKey, FlowKey4, FlowKey6};
use crate::packet::Packet;
use crate::port::{Port, PortKind};
use crate::time::Nanos;
use crate::wire::{self, ETHERNET_LEN, ETHERTYPE_ARP};
use crate::worker::Received;

/// Length of ARP for IPv4 over Ethernet (RFC 826).
const ARP_LEN: usize = 28;
/// What such ARP begins with: hardware type, protocol type and the lengths of their addresses.
const ARP_START: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// ICMPv6 type of a neighbour advertisement (RFC 4861, 4.4); its target follows eight bytes on.
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Types that are neighbour discovery; others of its kind are listener discovery.
const DISCOVERY: std::ops::RangeInclusive<u8> = 133..=NEIGHBOUR_ADVERTISEMENT;

/// Why a frame that is not IP ends here: [`DropReason::Spoofed`] for a pod's ARP about an address
/// that it does not have, else [`DropReason::NotIp`].
#[cold]
pub fn refuse_arp<B: Buffer>(context: &mut Context, now: Nanos, received: &Received<B>) -> Stop {
    match arp_addresses(received.buffer.bytes()) {
        Some((sender, target)) if is_foreign(context, received, IpAddr::V4(sender)) => {
            let (sender, target) = (sender.to_bits(), target.to_bits());
            let key = FlowKey4::new(Protocol::NONE, (sender, 0), (target, 0));
            spoofed(context, now, received, FlowKey::V4(key))
        }
        _ => DropReason::NotIp.into(),
    }
}

/// Why link business over IPv6 ends here: [`DropReason::Spoofed`] for a pod's discovery from, or
/// advertisement of, an address that it does not have, else [`DropReason::Multicast`].
#[cold]
pub fn refuse<B: Buffer>(
    context: &mut Context,
    now: Nanos,
    received: &Received<B>,
    packet: &Packet,
) -> Stop {
    let bytes = received.buffer.bytes();
    let kind = bytes.get(packet.l4_offset).copied().unwrap_or_default();
    let FlowKey::V6(key) = packet.flow_key() else { return DropReason::Multicast.into() };
    if !DISCOVERY.contains(&kind) {
        return DropReason::Multicast.into();
    }
    let target = wire::array_at::<16>(bytes, packet.l4_offset + 8)
        .filter(|_| kind == NEIGHBOUR_ADVERTISEMENT)
        .map(|target| u128::from_be_bytes(*target));
    // What is advertised says more than who advertises it.
    for claimed in target.into_iter().chain([key.source]) {
        if is_foreign(context, received, IpAddr::V6(claimed.into())) {
            let key = FlowKey::V6(FlowKey6 { source: claimed, ..key });
            return spoofed(context, now, received, key);
        }
    }
    DropReason::Multicast.into()
}

fn spoofed<B: Buffer>(
    context: &mut Context,
    now: Nanos,
    received: &Received<B>,
    key: FlowKey,
) -> Stop {
    let mut event = FlowEvent::new(now, EventKind::Dropped(DropReason::Spoofed), received.port);
    event.key = Some(key);
    context.reporter.event(event, &context.counters);
    Stop { reason: DropReason::Spoofed, mtu: 0, reported: true }
}

/// Sender and target of ARP for IPv4 over Ethernet.
fn arp_addresses(bytes: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    if wire::u16_at(bytes, 12) != Some(ETHERTYPE_ARP) {
        return None;
    }
    let arp: &[u8; ARP_LEN] = wire::array_at(bytes, ETHERNET_LEN)?;
    let address = |at| wire::array_at::<4>(arp, at).map(|octets| Ipv4Addr::from(*octets));
    let addresses = address(14).zip(address(24));
    addresses.filter(|_| arp.starts_with(&ARP_START))
}

/// Whether a pod speaks of an address that is neither its own, nor none, nor of its link alone.
fn is_foreign<B: Buffer>(context: &Context, received: &Received<B>, address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let may = |port: &Port| {
        port.kind != PortKind::Pod
            || address.is_unspecified()
            || is_link_local
            || port.addresses.contains(&address)
    };
    !context.tables.port(received.port).is_some_and(may)
}
