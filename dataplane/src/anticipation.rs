//! Decisions about a burst's new flows, made before the first of them is inserted.
//!
//! A translated flow lies in the table under two hashes, and the second is known only once its
//! backend is. Deciding about all packets of a burst first, and asking for the index lines of
//! their replies, overlaps misses that would otherwise be waited for one by one. A decision changes
//! nothing, so one that turns out not to be needed is thrown away.

use arrayvec::ArrayVec;

use crate::choice;
use crate::context::Context;
use crate::decision::{Decision, NewPacket, Refusal, decide_with};
use crate::flows::WorkerFlows;
use crate::packet::{Packet, PacketKind};
use crate::port::{PortId, PortKind};
use crate::tables::Tables;
use crate::time::Nanos;
use crate::worker::BURST;

/// A decision, and what was computed on the way to it.
#[derive(Debug)]
pub(crate) struct Early {
    /// The packet's place in the burst.
    place: usize,
    /// The packet's hash.
    pub(crate) hash: u64,
    pub(crate) decided: Result<Decision, Refusal>,
    /// The hash of the replies, where they are found under their own.
    pub(crate) alias: Option<u64>,
}

/// A packet that no flow was found for, to be decided about early.
#[derive(Debug, Clone, Copy)]
struct Beginning {
    place: usize,
    hash: u64,
}

/// The packets of one burst that begin flows.
#[derive(Debug, Default)]
pub(crate) struct Beginnings {
    /// In order of the packets.
    all: ArrayVec<Beginning, BURST>,
    packets: ArrayVec<(PortId, NewPacket), BURST>,
}

impl Beginnings {
    /// Adds the packet at `place`, with its hash, which no flow was found for.
    pub(crate) fn add(
        &mut self,
        (context, now): (&Context, Nanos),
        flows: &WorkerFlows,
        place: usize,
        ingress: PortId,
        (packet, hash): (&Packet, u64),
    ) {
        // Everything else has its own way to a decision.
        let is_fragment = matches!(packet.kind, PacketKind::FirstFragment { .. });
        if !packet.kind.has_tuple() || is_fragment || context.owner_of(hash) != context.worker {
            return;
        }
        let new = NewPacket::of(packet, now, &context.tables);
        // The lookup has read the first line; the other is here by the time of the insert.
        flows.prefetch_for_insert(&new.key, hash);
        self.all.push(Beginning { place, hash });
        self.packets.push((ingress, new));
    }
}

/// The decisions of one burst.
#[derive(Debug, Default)]
pub(crate) struct Anticipated {
    /// In order of the packets.
    early: ArrayVec<Early, BURST>,
    next: usize,
}

impl Anticipated {
    /// Decides about all of them.
    pub(crate) fn decide(tables: &Tables, flows: &WorkerFlows, beginnings: &Beginnings) -> Self {
        let Beginnings { all, packets } = beginnings;
        let mut anticipated = Self::default();
        let looks = choice::look_ahead(tables, packets);
        for ((ingress, new), look) in packets.iter().zip(&looks) {
            // Pods of this node are few, so that it is the other side that is waited for.
            let by_pod = tables.port(*ingress).is_some_and(|port| port.kind == PortKind::Pod);
            let other = if by_pod { look.destination(&new.key) } else { new.key.source() };
            tables.identities.prefetch(other);
        }
        for ((Beginning { place, hash }, (ingress, new)), look) in
            all.iter().zip(packets).zip(&looks)
        {
            let (place, hash) = (*place, *hash);
            let decided = decide_with(tables, *ingress, new, look);
            let mut early = Early { place, hash, decided, alias: None };
            if let Ok(Decision::Admit(admission)) = &early.decided
                && admission.translated != admission.original
            {
                let reply = admission.translated.reversed();
                let hash = flows.hash(&reply);
                early.alias = Some(hash);
                flows.prefetch(&reply, hash);
            }
            anticipated.early.push(early);
        }
        anticipated.fetch(flows);
        anticipated
    }

    /// Asks for what the inserts will write beside the lines asked for so far.
    fn fetch(&self, flows: &WorkerFlows) {
        for early in &self.early {
            if let (Some(hash), Ok(Decision::Admit(admission))) = (early.alias, &early.decided) {
                flows.prefetch_for_insert(&admission.translated, hash);
            }
        }
    }

    /// The decision about the packet at `place`, if there is one; places only grow.
    pub(crate) fn take(&mut self, place: usize) -> Option<&Early> {
        while self.early.get(self.next).is_some_and(|early| early.place < place) {
            self.next += 1;
        }
        self.early.get(self.next).filter(|early| early.place == place)
    }
}
