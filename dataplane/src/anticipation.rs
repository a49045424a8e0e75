//! Decisions about a burst's new flows to services, made before the first of them is inserted.
//!
//! A translated flow lies in the table under two hashes, and the second is known only once its
//! backend is. Deciding about all such packets of a burst first, and asking for the index lines of
//! their replies, overlaps misses that would otherwise be waited for one by one. A decision changes
//! nothing, so one that turns out not to be needed is thrown away.

use arrayvec::ArrayVec;

use crate::context::Context;
use crate::decision::{Decision, NewPacket, Refusal, addresses_service, decide};
use crate::flow_key::FlowKey;
use crate::flows::{TableKey, WorkerFlows};
use crate::packet::{Packet, PacketKind};
use crate::port::PortId;
use crate::worker::BURST;

/// The decisions of one burst.
#[derive(Debug, Default)]
pub(crate) struct Anticipated {
    /// With each packet's place in the burst, in order.
    decided: ArrayVec<(usize, Result<Decision, Refusal>), BURST>,
    next: usize,
}

impl Anticipated {
    /// Decides about the packet at `place`, with its hash, which no flow was found for.
    pub(crate) fn add(
        &mut self,
        context: &Context,
        flows: &WorkerFlows,
        place: usize,
        ingress: PortId,
        (packet, hash): (&Packet, u64),
    ) {
        // Everything else has its own way to a decision.
        let is_fragment = matches!(packet.kind, PacketKind::FirstFragment { .. });
        if !packet.kind.has_tuple() || is_fragment {
            return;
        }
        let is_ours = context.owner_of(hash) == context.worker;
        if !is_ours || !addresses_service(&context.tables, packet.key()) {
            return;
        }
        self.decided.push((place, decide(&context.tables, ingress, &NewPacket::of(packet))));
        let Some((_, Ok(Decision::Admit(admission)))) = self.decided.last() else { return };
        match admission.translated.reversed() {
            FlowKey::V4(reply) => flows.v4.table.prefetch(reply.hash(&context.hasher)),
            FlowKey::V6(reply) => flows.v6.table.prefetch(reply.hash(&context.hasher)),
        }
    }

    /// The decision about the packet at `place`, if there is one; places only grow.
    pub(crate) fn take(&mut self, place: usize) -> Option<&Result<Decision, Refusal>> {
        while self.decided.get(self.next).is_some_and(|(at, _)| *at < place) {
            self.next += 1;
        }
        self.decided.get(self.next).filter(|(at, _)| *at == place).map(|(_, decided)| decided)
    }
}
