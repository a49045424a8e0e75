//! One frame through the real pipeline, without sending anything and without touching a flow:
//! the tables in force, flow tables of its own that are empty, and a report of every decision, of the
//! limits of bandwidth too, which it does not charge.

use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use control::admin::encode_frame;
use control::admin::reply::{TraceReport, TraceStage};
use control::compile::direction_name;
use dataplane::DropReason;
use dataplane::buffer::Buffer;
use dataplane::counters::WorkerCounters;
use dataplane::event::{FlowEvent, Reports};
use dataplane::flows::{Capacities, FlowTables};
use dataplane::memory::HeapBuffer;
use dataplane::pacing::over_limit;
use dataplane::packet::Packet;
use dataplane::pipeline::{Action, Pipeline};
use dataplane::policy::Direction;
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
            let limits = [(port, Direction::Egress), (out, Direction::Ingress)];
            let (found, pace) = paced(tables, &limits, now, names);
            stages.extend(found);
            match pace {
                Pace::Now => (format!("transmit by {}", (names.port)(out)), true),
                Pace::After(wait) => {
                    let ms = wait.as_secs_f64() * 1e3;
                    (format!("transmit by {} in {ms:.3} ms", (names.port)(out)), true)
                }
                Pace::Never(reason) => {
                    (format!("drop: {reason} ({})", reason.explanation().trim()), true)
                }
            }
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

/// When a packet would leave that came now.
enum Pace {
    Now,
    After(Duration),
    Never(DropReason),
}

/// What bandwidth limits would do to a packet, in the order in which it passes them. Nothing is charged.
/// The second is asked for the time at which the first lets go, as if nobody came in between.
fn paced(
    tables: &Tables,
    limits: &[(PortId, Direction)],
    now: Nanos,
    names: &Names<'_>,
) -> (Vec<TraceStage>, Pace) {
    let (mut stages, mut at) = (Vec::new(), now);
    for (port, direction) in limits {
        let limit = tables.limits.as_deref().and_then(|limits| limits.get(*port, *direction));
        let Some(limit) = limit else { continue };
        let what = format!(
            "{} of {}, {} bit/s",
            direction_name(*direction),
            (names.port)(*port),
            limit.rate().bits_per_second
        );
        let Some(outlook) = limit.outlook(at) else {
            let reason = over_limit(*direction);
            stages.push(stage("limit", format!("{what}: used up for longer than it may wait")));
            return (stages, Pace::Never(reason));
        };
        let wait = Duration::from_nanos(outlook.0.saturating_sub(at.0));
        stages.push(stage(
            "limit",
            match wait {
                Duration::ZERO => format!("{what}: holds nothing back"),
                wait => format!("{what}: holds it back for {:.3} ms", wait.as_secs_f64() * 1e3),
            },
        ));
        at = at.max(outlook);
    }
    let wait = Duration::from_nanos(at.0.saturating_sub(now.0));
    (stages, if wait.is_zero() { Pace::Now } else { Pace::After(wait) })
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
    fn limits_tell_how_long_they_would_hold_a_packet_back_and_are_not_charged() {
        use dataplane::pacing::{Limit, Limits, PortLimits, Rate};
        let names = Names { port: &|port| format!("port {}", port.0), decision: &|_| Vec::new() };
        let (from, to) = (PortId(3), PortId(4));
        let limit = |bits| Some(Arc::new(Limit::new(Rate::of(bits))));
        let (slow, fast) = (limit(1_000_000), limit(1_000_000_000));
        let of = |ingress, egress| PortLimits { ingress, egress };
        let limits = [(from, of(None, slow.clone())), (to, of(fast, None))];
        let limits = Limits::of(limits).map(Arc::new);
        let tables = Tables { limits, ..Tables::default() };
        let now = Nanos(5_000_000_000);
        let ask = || {
            let way = [(from, Direction::Egress), (to, Direction::Ingress)];
            let (stages, pace) = paced(&tables, &way, now, &names);
            (stages.into_iter().map(|one| one.finding).collect::<Vec<_>>(), pace)
        };
        let (told, pace) = ask();
        assert!(matches!(pace, Pace::Now), "{told:?}");
        assert_eq!(told[0], "egress of port 3, 1000000 bit/s: holds nothing back");
        assert_eq!(told[1], "ingress of port 4, 1000000000 bit/s: holds nothing back");
        // Beside the burst of two frames, one and a half: 18 ms at this rate.
        let slow = slow.unwrap();
        slow.charge(now, 2 * 1514 + 2250);
        let (told, pace) = ask();
        assert!(told[0].ends_with("holds it back for 18.000 ms"), "{told:?}");
        assert!(matches!(pace, Pace::After(wait) if wait.as_micros() == 18_000), "{told:?}");
        assert!(ask().0 == told, "nothing is charged");
        slow.charge(now, 1 << 20);
        let (told, pace) = ask();
        assert!(matches!(pace, Pace::Never(DropReason::BandwidthEgress)), "{told:?}");
        assert!(told[0].contains("longer than it may wait") && told.len() == 1, "{told:?}");
    }

    #[test]
    fn no_frame_makes_the_trace_panic() {
        for length in 0..120 {
            let frame: Vec<u8> = (0..length).map(|number: u8| number.wrapping_mul(37)).collect();
            assert!(!traced(&frame).outcome.is_empty());
        }
    }
}
