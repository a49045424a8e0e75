//! What becomes of a flow to a service when its backend is gone, or serves no longer.
//!
//! Gone is a backend whose pod was deleted or has ended, or whose address another pod has by now. Its
//! TCP connections are reset at whoever speaks next. One that is merely unready, or in no
//! EndpointSlice any more, keeps its connections. A backend that is no pod (of a service without
//! selector, or on a node's own address) is never gone: nobody tells when it is.
//!
//! UDP knows no connections: its flows stay with a backend that serves, even if it gets no new ones,
//! and are decided about anew at the client's next packet once it does not. So are flows that went past a
//! service, opened before it was there or had a backend: a client that never falls silent would else
//! never be served.

use crate::DropReason;
use crate::address::Protocol;
use crate::choice;
use crate::conntrack::{FlowDirection, FlowState, Seen, is_first_syn};
use crate::context::{Context, Stop};
use crate::decision;
use crate::event::{EventKind, FlowEvent};
use crate::flow::{BackendPod, FlowFamily, FlowView};
use crate::flows::{Flows, Found, TableKey};
use crate::known;
use crate::packet::Packet;
use crate::port::PortId;
use crate::tables::Tables;
use crate::time::Nanos;

/// What a flow comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes on.
    Stays,
    /// There is nobody at its other end any more.
    IsGone,
    /// Its backend serves no longer, or it never had one; another may.
    IsLetGo,
}

/// What `view` comes to under `tables`.
pub(crate) fn fate<K: FlowFamily>(tables: &Tables, view: &FlowView<'_, K>) -> Fate {
    let reply = view.tuple(FlowDirection::Reply).generic();
    if view.origin().service.is_none() {
        let original = view.tuple(FlowDirection::Original).generic();
        let is_passed = reply.protocol() == Protocol::UDP
            && choice::is_passed_by(tables, &original, (reply.source(), reply.source_port()));
        return if is_passed { Fate::IsLetGo } else { Fate::Stays };
    }
    let is_over = match reply.protocol() {
        Protocol::UDP => {
            let original = view.tuple(FlowDirection::Original).generic();
            choice::is_let_go(tables, &original, (reply.source(), reply.source_port()))
        }
        _ => match view.pod() {
            BackendPod::Gone => true,
            BackendPod::Tagged(pod) => tables.identities.is_gone(reply.source(), pod),
        },
    };
    match reply.protocol() {
        _ if !is_over => Fate::Stays,
        Protocol::UDP => Fate::IsLetGo,
        _ => Fate::IsGone,
    }
}

/// Whether a packet of a known flow is to be decided about as a new one's, because of what became of
/// its backend: then the flow ends.
#[inline(always)]
pub(crate) fn is_chosen_anew<K: TableKey<W>, const W: usize>(
    context: &Context,
    flows: &Flows<W>,
    found: Found,
    packet: &Packet,
) -> bool {
    known::view::<K, W>(flows, found).is_some_and(|view| {
        !view.is_current(&context.tables) && ends_here(context, &view, found.direction, packet)
    })
}

#[cold]
fn ends_here<K: FlowFamily>(
    context: &Context,
    view: &FlowView<'_, K>,
    direction: FlowDirection,
    packet: &Packet,
) -> bool {
    if direction == FlowDirection::Reply
        || view.route().generation == known::generation_for(context, view.stands_apart())
    {
        return false;
    }
    let ends = match fate(&context.tables, view) {
        Fate::Stays => false,
        // Its client knows already, or never heard of it.
        Fate::IsGone => is_first_syn(packet.tcp_flags),
        Fate::IsLetGo => true,
    };
    if ends {
        view.end();
        context.counters.flows_chosen_anew.add(1);
    }
    ends
}

/// Ends a connection whose backend is gone: as if that had reset it, at a packet that goes in
/// `direction`.
pub(crate) fn reset<K: FlowFamily>(
    context: &mut Context,
    now: Nanos,
    ingress: PortId,
    view: &FlowView<'_, K>,
    direction: FlowDirection,
) -> Stop {
    let tuple = view.tuple(direction).generic();
    let tables = &context.tables;
    // Nobody resets another's connection by pretending to be its end.
    let from = tables.port(ingress).ok_or(DropReason::UnknownPort);
    if let Err(reason) = from.and_then(|port| decision::check_source(tables, port, tuple.source()))
    {
        return reason.into();
    }
    if tuple.protocol() == Protocol::TCP && view.life().state() != FlowState::Closed {
        let reset = Seen::of(Seen::RST);
        view.advance(direction.reversed(), reset, now, &tables.timeouts);
        context.counters.flows_reset.add(1);
        let mut event = FlowEvent::new(now, EventKind::Closed, ingress);
        event.key = Some(view.tuple(FlowDirection::Original).generic().canonical());
        event.service = view.origin().service;
        context.reporter.event(event, &context.counters);
    }
    DropReason::BackendGone.into()
}
