//! One frame through the real pipeline, without sending anything and without touching a flow:
//! the tables in force, flow tables of its own that are empty, and a report of every decision.

use std::sync::Arc;

use arrayvec::ArrayVec;
use control::admin::encode_frame;
use control::admin::reply::{TraceReport, TraceStage};
use dataplane::DropReason;
use dataplane::buffer::Buffer;
use dataplane::counters::WorkerCounters;
use dataplane::event::{FlowEvent, Reports};
use dataplane::flows::{Capacities, FlowTables};
use dataplane::memory::HeapBuffer;
use dataplane::packet::Packet;
use dataplane::pipeline::{Action, Pipeline};
use dataplane::port::PortId;
use dataplane::tables::Tables;
use dataplane::time::Nanos;
use dataplane::worker::{Received, RxBurst};
use flow_table::{Memory, SetupError};

/// Flows the trace's own tables hold: one is opened, with its alias.
const FLOWS_MAX: usize = 64;

/// The names a trace speaks in.
pub struct Names<'a> {
    /// Of a port.
    pub port: &'a dyn Fn(PortId) -> String,
    /// Findings of a decision: who speaks to whom, by which service and rule.
    pub decision: &'a dyn Fn(&FlowEvent) -> Vec<TraceStage>,
}

/// Runs `frame` through the pipeline as if it had just come in by `port`.
///
/// # Errors
/// [`SetupError`] when the trace's own flow tables cannot be made.
pub fn trace(
    tables: &Arc<Tables>,
    port: PortId,
    frame: &[u8],
    now: Nanos,
    names: &Names<'_>,
) -> Result<TraceReport, SetupError> {
    let mut stages =
        vec![stage("received", format!("{} bytes by {}", frame.len(), (names.port)(port)))];
    match Packet::parse(frame, frame.len()) {
        Ok(packet) => stages.push(stage("parse", describe(&packet))),
        Err(reason) => stages.push(stage("parse", format!("refused: {reason}"))),
    }
    let (action, after, events) = run(tables, port, frame, now)?;
    for event in &events {
        stages.extend((names.decision)(event));
    }
    let hop = |out: PortId| stage("forward", format!("by {}", (names.port)(out)));
    let (outcome, shown) = match action {
        Action::Transmit(out) => {
            stages.push(hop(out));
            (format!("transmit by {}", (names.port)(out)), true)
        }
        Action::Hold(request) => (
            format!("wait for neighbour {} on {}", request.address, (names.port)(request.port)),
            true,
        ),
        Action::AwaitFirst => ("wait for its packet's first fragment".into(), false),
        Action::Handoff(worker) => (format!("hand to worker {worker}"), false),
        Action::Drop(reason) => {
            (format!("drop: {reason} ({})", reason.explanation().trim()), false)
        }
        Action::Answer(reason) => (format!("drop: {reason}, and answer the sender"), true),
    };
    let changed = shown && after != frame;
    if changed {
        let changes_family = after.get(12..14) != frame.get(12..14);
        let finding = match changes_family {
            true => "the frame below is what came in as a packet of the other family",
            false => "the frame below differs from what came in",
        };
        stages.push(stage("rewrite", finding.into()));
    }
    Ok(TraceReport { stages, outcome, frame: shown.then(|| encode_frame(&after)) })
}

fn run(
    tables: &Arc<Tables>,
    port: PortId,
    frame: &[u8],
    now: Nanos,
) -> Result<(Action, Vec<u8>, Vec<FlowEvent>), SetupError> {
    let capacities = Capacities::fixed(FLOWS_MAX, FLOWS_MAX);
    let memory = (Memory::Heap, Memory::Heap);
    let (_tables, mut holds) = FlowTables::new(capacities, memory, 1, [1, 2])?;
    let Some(hold) = holds.pop() else {
        return Ok((Action::Drop(DropReason::TableFull), frame.to_vec(), Vec::new()));
    };
    let (counters, reports) = (Arc::new(WorkerCounters::default()), Arc::new(Reports::default()));
    let mut pipeline =
        Pipeline::new(0, 1, Arc::clone(tables), hold, counters, Arc::clone(&reports));
    let mut burst = RxBurst::new();
    burst.push(Received { port, buffer: HeapBuffer::new(frame) });
    let mut actions = ArrayVec::new();
    pipeline.process(now, &mut burst, &mut actions);
    let action = actions.first().copied().unwrap_or(Action::Drop(DropReason::Malformed));
    let after = burst.first().map_or_else(Vec::new, |received| received.buffer.bytes().to_vec());
    let mut events = Vec::new();
    while let Some(event) = reports.events.pop() {
        events.push(event);
    }
    Ok((action, after, events))
}

/// A stage's finding.
#[must_use]
pub fn stage(stage: &str, finding: String) -> TraceStage {
    TraceStage { stage: stage.to_owned(), finding }
}

fn describe(packet: &Packet) -> String {
    let key = packet.flow_key();
    let end = |address, l4_port| std::net::SocketAddr::new(address, l4_port);
    format!(
        "{:?}, {} {} -> {}, TTL {}, {} bytes of IP",
        packet.kind,
        key.protocol(),
        end(key.source(), key.source_port()),
        end(key.destination(), key.destination_port()),
        packet.ttl,
        packet.ip_len
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traced(frame: &[u8]) -> TraceReport {
        let names = Names { port: &|port| format!("port {}", port.0), decision: &|_| Vec::new() };
        trace(&Arc::default(), PortId(0), frame, Nanos(1), &names).unwrap()
    }

    #[test]
    fn a_frame_by_an_unknown_port_ends_with_that_reason() {
        let report = traced(&[0; 60]);
        assert!(report.outcome.contains("unknown-port"), "{report:?}");
        assert_eq!(report.frame, None);
    }

    #[test]
    fn no_frame_makes_the_trace_panic() {
        for length in 0..120 {
            let frame: Vec<u8> = (0..length).map(|number: u8| number.wrapping_mul(37)).collect();
            assert!(!traced(&frame).outcome.is_empty());
        }
    }
}
