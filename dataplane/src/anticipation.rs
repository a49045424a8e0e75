//! Decisions about a burst's new flows, made before the first of them is inserted.
//!
//! A translated flow lies in the table under two hashes, and the second is known only once its
//! backend is. Deciding about all packets of a burst first, and asking for the index lines of
//! their replies, overlaps misses that would otherwise be waited for one by one. A decision changes
//! nothing, so one that turns out not to be needed is thrown away.

use arrayvec::ArrayVec;

use crate::context::Context;
use crate::decision::{Decision, NewPacket, Refusal, decide};
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
    /// The hashes of replies that are found under their own.
    aliases4: ArrayVec<u64, BURST>,
    aliases6: ArrayVec<u64, BURST>,
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
        if context.owner_of(hash) != context.worker {
            return;
        }
        self.decided.push((place, decide(&context.tables, ingress, &NewPacket::of(packet))));
        let Some((_, Ok(Decision::Admit(admission)))) = self.decided.last() else { return };
        if admission.translated == admission.original {
            return;
        }
        match admission.translated.reversed() {
            FlowKey::V4(reply) => {
                let hash = reply.hash(&context.hasher);
                flows.v4.table.prefetch(hash);
                self.aliases4.push(hash);
            }
            FlowKey::V6(reply) => {
                let hash = reply.hash(&context.hasher);
                flows.v6.table.prefetch(hash);
                self.aliases6.push(hash);
            }
        }
    }

    /// Once all are added: asks for what the inserts will write beside the lines asked for so far.
    pub(crate) fn fetch(&self, flows: &WorkerFlows) {
        self.aliases4.iter().for_each(|hash| flows.v4.table.prefetch_for_insert(*hash));
        self.aliases6.iter().for_each(|hash| flows.v6.table.prefetch_for_insert(*hash));
    }

    /// The decision about the packet at `place`, if there is one; places only grow.
    pub(crate) fn take(&mut self, place: usize) -> Option<&Result<Decision, Refusal>> {
        while self.decided.get(self.next).is_some_and(|(at, _)| *at < place) {
            self.next += 1;
        }
        self.decided.get(self.next).filter(|(at, _)| *at == place).map(|(_, decided)| decided)
    }
}
