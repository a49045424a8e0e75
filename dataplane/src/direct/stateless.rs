//! Frontends without flows, as Katran's: each packet to a service that is marked stateless goes to the
//! backend that its tuple hashes to, and the node with the frontend remembers nothing of it.
//!
//! So any node goes on with what another one has begun, as long as both have the same backends. What lives
//! and what policy judges is on the backend's node alone ([`super::arrival`]). Where backends change, a
//! connection whose tuple hashes to another one from now on comes to that, which resets it.
//!
//! Later fragments and ICMP errors about replies go the same way: by the tuple of the client's packets that
//! belongs to them. What cannot be dispatched (clients of the cluster, backends on this node) and what is
//! refused takes the way of all services, with a flow or a reason.

use std::net::IpAddr;

use super::{Role, dispatch};
use crate::anticipation::Early;
use crate::buffer::Buffer;
use crate::choice;
use crate::conntrack::{Seen, is_first_syn};
use crate::context::{Context, Stop};
use crate::decision::{Decision, NewPacket, decide};
use crate::flow_key::FlowKey;
use crate::forwarding::NextHop;
use crate::packet::Packet;
use crate::pipeline::Action;
use crate::port::PortId;
use crate::tables::Tables;
use crate::worker::Received;

/// Sends a packet on by the hash of `toward`, the tuple of its client's packets; `None` where it takes the
/// way of all others.
///
/// # Errors
/// It is too long with what is added, or has no room for it.
pub(crate) fn pass<B: Buffer>(
    context: &mut Context,
    received: &mut Received<B>,
    packet: &Packet,
    toward: &FlowKey,
    early: Option<&Early>,
) -> Result<Option<Action>, Stop> {
    let chosen = choose(&context.tables, received.port, packet, toward, early);
    let Some((backend, hop)) = chosen else { return Ok(None) };
    dispatch::without_flow(context, received, packet, backend, &hop).map(Some)
}

/// The backend by hash and the next hop to it, of what is to be dispatched.
fn choose(
    tables: &Tables,
    ingress: PortId,
    packet: &Packet,
    toward: &FlowKey,
    early: Option<&Early>,
) -> Option<((IpAddr, u16), NextHop)> {
    if !choice::is_stateless(tables, toward) {
        return None;
    }
    // A reset begins no flow, and ends one at the backend.
    let is_reset = Seen::of(packet.tcp_flags).has(Seen::RST);
    let late;
    let decided = match early.filter(|_| !is_reset) {
        Some(early) => &early.decided,
        None => {
            late = decide(tables, ingress, &asked(packet, toward));
            &late
        }
    };
    match decided {
        Ok(Decision::Admit(admission)) if admission.role == Some(Role::Dispatches) => {
            let backend = &admission.translated;
            let hop = tables.forwarding.next_hop(admission.hop)?;
            Some(((backend.destination(), backend.destination_port()), *hop))
        }
        _ => None,
    }
}

/// The question, of a packet at any place of its connection.
fn asked(packet: &Packet, toward: &FlowKey) -> NewPacket {
    NewPacket {
        key: *toward,
        tcp_flags: packet.tcp_flags & !Seen::RST,
        may_begin: true,
        hairpin: None,
        directed: None,
        remembered: None,
        moment: 0,
        may_be_lost_reply: false,
    }
}

/// Whether a packet without a flow goes on by its hash all the same: then it is no beginning that is shed
/// under pressure. What begins a connection is, since the backend's node has to open a flow for it.
pub(crate) fn needs_no_flow(tables: &Tables, packet: &Packet) -> bool {
    !is_first_syn(packet.tcp_flags) && choice::is_stateless(tables, &packet.flow_key())
}
