//! The ways out beside AF_XDP, each tried for real: datagrams as live XDP frames, and a TCP stream in whole
//! segments by a packet socket, on a network of its own between ends as an ADD leaves a pod's. Without one
//! of them a node works all the same, so none of these checks fails.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use control::config::{Segments, Transmit};
use dataplane::buffer::Buffer;
use dataplane::packet::Packet;
use dataplane::port::{PortId, PortKind, Ports};
use dataplane::rewrite::finish_checksum;
use dataplane::segments::Layout;
use dataplane::wire::ETHERNET_LEN;
use dataplane::worker::RxBurst;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xdp_redirect::live_transmit::{LivePeer, LiveStatistics, Trial};
use xdp_redirect::loader::{FRAGS_SINCE, Mode, interface_index, kernel_release};
use xdp_redirect::ports::PortsControl;
use xdp_redirect::rules::PortRule;
use xdp_redirect::segment_transmit::SegmentStatistics;
use xdp_redirect::socket::SocketConfig;
use xdp_redirect::umem::UmemConfig;
use xdp_redirect::{
    Error, Frame, LiveTransmit, Redirect, SegmentSender, Socket, Umem, WorkerPorts,
};

use super::finding::Finding;
use super::trial::{Counts, FLOWS, L4_PORT, PATIENCE, SHAPE, both_ways, is_whole, told};
use super::trial_network::{ADDRESSES, Apart, INTERFACES, Network, Shape, Signals};
use crate::lab::wait_until;

/// The checks' names; an interface's name stands behind them where it is one's own.
pub const LIVE_FRAMES: &str = "live-frames";
/// See [`LIVE_FRAMES`].
pub const WHOLE_SEGMENTS: &str = "whole-segments";

/// A datagram of the trial of live frames.
const DATAGRAM_BYTES: usize = 100;
/// The stream of the trial of whole segments.
const STREAM_BYTES: usize = 4 << 20;
/// How long the worker sleeps when nothing comes, in milliseconds.
const SLEEP_MS: u8 = 5;
/// The first kernel with live frames.
const LIVE_SINCE: (u32, u32) = (5, 18);

/// Rings and frames for segments of up to 64 KB, of 37 chunks each.
fn rings() -> SocketConfig {
    let frames = 1024;
    SocketConfig {
        receive_ring: frames,
        transmit_ring: frames,
        fill_frames: frames,
        idle_frames: frames,
        ..SocketConfig::default()
    }
}

/// Tries both.
#[must_use]
pub fn check(may_try: bool) -> Vec<Finding> {
    if !may_try {
        let why = "needs the privileges above";
        return [LIVE_FRAMES, WHOLE_SEGMENTS].map(|name| Finding::skipped(name, why, "")).into();
    }
    // One that loses something is tried once more, as the other trials are.
    let live = match live_frames() {
        Ok(live) if !live.is_whole() => live_frames(),
        live => live,
    };
    let whole = whole_segments().or_else(|_| whole_segments());
    vec![of_live_frames(live, kernel_release()), of_whole_segments(whole, kernel_release())]
}

/// What a trial of live frames saw.
#[derive(Debug, Clone, Copy)]
struct Live {
    counts: Counts,
    statistics: LiveStatistics,
}

impl Live {
    fn is_whole(&self) -> bool {
        is_whole(&self.counts) && self.statistics.sent_packets >= 2 * u64::from(FLOWS)
    }
}

fn of_live_frames(seen: io::Result<Live>, kernel: (u32, u32)) -> Finding {
    let remedy = if kernel < LIVE_SINCE {
        "use a kernel of 5.18 or newer; until then packets leave by AF_XDP, more slowly"
    } else {
        "packets leave by AF_XDP, more slowly; `transmit: af-xdp` tries no other way"
    };
    match seen {
        Ok(live) if live.is_whole() => {
            let found = format!(
                "{FLOWS} datagrams each way, none lost, in {} calls, to ends with GRO on",
                live.statistics.calls
            );
            Finding::pass(LIVE_FRAMES, found)
        }
        Ok(Live { counts, .. }) if !is_whole(&counts) => {
            Finding::warn(LIVE_FRAMES, told(&counts), remedy)
        }
        Ok(Live { statistics, .. }) => {
            let found = format!(
                "of {} datagrams {} left as live frames, the others by AF_XDP",
                2 * FLOWS,
                statistics.sent_packets
            );
            Finding::warn(LIVE_FRAMES, found, remedy)
        }
        Err(error) => Finding::warn(LIVE_FRAMES, error.to_string(), remedy),
    }
}

fn of_whole_segments(seen: io::Result<SegmentStatistics>, kernel: (u32, u32)) -> Finding {
    let remedy = if kernel < FRAGS_SINCE {
        "use a kernel of 6.6 or newer, or keep `segments: cut`"
    } else {
        "keep `segments: cut`, with which pods' stacks send no segments longer than the MTU"
    };
    match seen {
        Ok(SegmentStatistics { whole_packets: 0, .. }) => {
            let found = "no segment longer than the MTU came from a stack that may send them";
            Finding::warn(WHOLE_SEGMENTS, found, remedy)
        }
        Ok(SegmentStatistics { whole_packets, calls, .. }) => {
            let found = format!(
                "{} MiB of TCP, every byte right, {whole_packets} segments longer than the MTU in {calls} \
                 calls",
                STREAM_BYTES >> 20
            );
            Finding::pass(WHOLE_SEGMENTS, found)
        }
        Err(error) => Finding::warn(WHOLE_SEGMENTS, error.to_string(), remedy),
    }
}

fn failed(error: Error) -> io::Error {
    io::Error::other(error.to_string())
}

fn live_frames() -> io::Result<Live> {
    let network = Network::make(Shape { ways: (Segments::Cut, Transmit::Auto), ..SHAPE })?;
    let exchange = |ends: &[Apart; 2]| both_ways(ends, DATAGRAM_BYTES);
    let (statistics, counts) = network.while_forwarding(as_live_frames, exchange)?;
    Ok(Live { counts, statistics })
}

fn as_live_frames(signals: &Signals) -> io::Result<LiveStatistics> {
    let mut live = LiveTransmit::load(1).map_err(failed)?;
    for (port, interface) in (0..).map(PortId).zip(INTERFACES) {
        let index = interface_index(interface).map_err(failed)?;
        live.set_port(port, index).map_err(failed)?;
        let what = match live.try_port(port, interface).map_err(failed)? {
            Trial::Arrives => continue,
            Trial::Vanishes => "vanish",
            Trial::Refused => "are refused by an empty ring",
            Trial::Unknown => "are not counted by their interface",
        };
        return Err(io::Error::other(format!("frames to an end with GRO on {what}")));
    }
    // However few they are: a node waits until they are enough to pay for a call.
    let sender = live.sender(0).map_err(failed)?.with_packets_min(0);
    let mut middle = Middle::new(Mode::Native, |ports| ports.with_live_transmit(sender))?;
    for port in [PortId(0), PortId(1)] {
        middle.control.set_live(port, Some(LivePeer::Stack)).map_err(failed)?;
    }
    middle.forward(signals)?;
    let counters = middle.control.live_counters();
    Ok(counters.map(|counters| counters.read()).unwrap_or_default())
}

fn whole_segments() -> io::Result<SegmentStatistics> {
    let network = Network::make(Shape { ways: (Segments::Whole, Transmit::Auto), ..SHAPE })?;
    let (statistics, ()) = network.while_forwarding(in_whole_segments, stream)?;
    Ok(statistics)
}

fn in_whole_segments(signals: &Signals) -> io::Result<SegmentStatistics> {
    let sender = SegmentSender::new().map_err(failed)?;
    // In native mode the kernel takes the promise to cut segments from the ends.
    let mut middle = Middle::new(Mode::Generic, |ports| ports.with_segment_transmit(sender))?;
    if !middle.umem.config().multi_buffer {
        return Err(io::Error::other("AF_XDP takes frames of one buffer only on this kernel"));
    }
    for (port, interface) in (0..).map(PortId).zip(INTERFACES) {
        let index = interface_index(interface).map_err(failed)?;
        middle.control.set_whole(port, index).map_err(failed)?;
    }
    middle.forward(signals)?;
    Ok(middle.control.segment_counters().read())
}

/// A worker between both links that looks at nothing but how long packets are.
struct Middle {
    ports: WorkerPorts,
    control: PortsControl,
    umem: Umem,
    /// Detaches the program when dropped.
    _redirect: Redirect,
}

impl Middle {
    /// Attaches the program, and binds a socket to each link, for a worker that `with` gives a way out.
    fn new(mode: Mode, with: impl FnOnce(WorkerPorts) -> WorkerPorts) -> io::Result<Self> {
        let mut redirect = Redirect::load(true).map_err(failed)?;
        // Nobody watches it.
        redirect.heartbeat(0).map_err(failed)?.beat_for_ever();
        let multi_buffer = redirect.multi_buffer();
        let config = UmemConfig { frames: 8192, multi_buffer, ..UmemConfig::default() };
        let umem = Umem::new(config).map_err(failed)?;
        let ports = with(WorkerPorts::new(&umem));
        let control = ports.control();
        for (port, interface) in (0..).map(PortId).zip(INTERFACES) {
            let socket = Socket::bind(&umem, interface, 0, &rings()).map_err(failed)?;
            redirect.set_socket(port, 0, 0, socket.fd()).map_err(failed)?;
            let rule =
                PortRule { port, kind: PortKind::Pod, queues: SHAPE.queues, everything: true };
            redirect.attach(interface, &rule, mode).map_err(failed)?;
            control.add(port, socket).map_err(|(error, _)| failed(error))?;
        }
        Ok(Self { ports, control, umem, _redirect: redirect })
    }

    /// Sends what enters by one port out of the other one.
    fn forward(&mut self, signals: &Signals) -> io::Result<()> {
        self.ports.take_commands();
        signals.set_ready();
        let mut burst = RxBurst::new();
        while !signals.is_over() {
            self.ports.receive(&mut burst);
            let is_idle = burst.is_empty();
            for mut received in burst.drain(..) {
                let to = PortId(1 - received.port.0.min(1));
                prepare(&mut received.buffer);
                if let Err((_, frame)) = self.ports.transmit(to, received.buffer) {
                    // What is lost is missed where it should arrive.
                    self.ports.release(frame);
                }
            }
            self.ports.flush();
            if is_idle && self.ports.is_settled() {
                let fds = self.ports.fds().map(|(_, fd)| PollFd::new(fd, PollFlags::POLLIN));
                let mut fds: Vec<PollFd<'_>> = fds.collect();
                poll(&mut fds, PollTimeout::from(SLEEP_MS))?;
            }
        }
        Ok(())
    }
}

/// Notes on what is longer than the link how it is to be cut, and finishes what else a stack has left to
/// be finished, as the pipeline does.
fn prepare(frame: &mut Frame) {
    let mtu = usize::try_from(SHAPE.mtu).unwrap_or(0);
    if frame.len() <= ETHERNET_LEN + mtu {
        if let Ok(packet) = Packet::parse(frame.bytes(), frame.len()) {
            finish_checksum(&packet, frame);
        }
        return;
    }
    let headers = Layout::of(frame).map(|layout| layout.payload_offset - ETHERNET_LEN);
    let size = headers.and_then(|headers| u16::try_from(mtu.saturating_sub(headers)).ok());
    // One without a size is refused by its port, and missed where it should arrive.
    let _ = frame.set_segment_size(size.unwrap_or(0));
}

/// What the stream has at a place: no two segments of 64 KB are the same.
fn byte_at(place: usize) -> u8 {
    (place ^ (place >> 8) ^ (place >> 16)).to_le_bytes()[0]
}

/// Sends [`STREAM_BYTES`] from the left end to the right one, where they are compared.
fn stream([left, right]: &[Apart; 2]) -> io::Result<()> {
    let target = SocketAddr::from((ADDRESSES[1], L4_PORT));
    let listener = right.run(move || TcpListener::bind(target))?;
    let sending = left.begin(move || send_stream(target));
    // A connection that does not come is the sender's to tell of: nobody accepts for ever.
    let receiving = right.begin(move || receive_stream(&listener));
    sending.recv().map_err(io::Error::other)??;
    receiving.recv().map_err(io::Error::other)?
}

fn send_stream(target: SocketAddr) -> io::Result<()> {
    let mut socket = TcpStream::connect_timeout(&target, PATIENCE)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let bytes: Vec<u8> = (0..STREAM_BYTES).map(byte_at).collect();
    socket.write_all(&bytes)
}

fn receive_stream(listener: &TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut accepted = listener.accept();
    wait_until(PATIENCE, || {
        if accepted.is_err() {
            accepted = listener.accept();
        }
        accepted.is_ok()
    });
    let (mut socket, _) = accepted?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let (mut place, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        let count = socket.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        if !buffer[..count].iter().zip(place..).all(|(byte, place)| *byte == byte_at(place)) {
            return Err(io::Error::other("the stream came otherwise than it was sent"));
        }
        place += count;
    }
    if place == STREAM_BYTES {
        return Ok(());
    }
    Err(io::Error::other(format!("the stream ended after {place} of {STREAM_BYTES} bytes")))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    const SENT: (u16, u16) = (FLOWS, FLOWS);
    const KERNEL: (u32, u32) = (6, 18);

    fn live(counts: Counts, sent_packets: u64) -> Finding {
        let statistics = LiveStatistics { sent_packets, calls: 7, ..LiveStatistics::default() };
        of_live_frames(Ok(Live { counts, statistics }), KERNEL)
    }

    fn whole(whole_packets: u64) -> Finding {
        let statistics = SegmentStatistics { whole_packets, ..SegmentStatistics::default() };
        of_whole_segments(Ok(statistics), KERNEL)
    }

    #[test]
    fn a_way_that_nothing_went_by_has_not_been_tried_whatever_arrived() {
        let all = u64::from(FLOWS) * 2;
        assert_eq!(live([SENT, SENT], all).verdict, Verdict::Pass);
        assert_eq!(live([SENT, SENT], all - 1).verdict, Verdict::Warn);
        assert_eq!(live([SENT, (FLOWS, FLOWS - 1)], all).verdict, Verdict::Warn);
        assert_eq!((whole(1).verdict, whole(0).verdict), (Verdict::Pass, Verdict::Warn));
    }

    #[test]
    fn an_old_kernel_is_the_reason_and_a_newer_one_the_way_out() {
        let refused = || Err(io::Error::other("no"));
        let old = of_live_frames(refused(), (5, 15));
        assert_eq!((old.verdict, &*old.found), (Verdict::Warn, "no"));
        assert!(old.remedy.contains("5.18"), "{}", old.remedy);
        let old = Err(io::Error::other("no"));
        assert!(of_whole_segments(old, (6, 1)).remedy.contains("6.6"));
        for new in [
            of_live_frames(refused(), KERNEL),
            of_whole_segments(Err(io::Error::other("no")), KERNEL),
        ] {
            assert!(!new.remedy.contains("newer") && new.verdict == Verdict::Warn, "{new:?}");
        }
    }

    #[test]
    fn every_part_of_the_stream_of_a_segments_length_differs_from_the_next() {
        let part = |first: usize| (first..first + (1 << 16)).map(byte_at);
        let differs = |first: usize| !part(first).eq(part(first + (1 << 16)));
        assert!((0..STREAM_BYTES - (1 << 17)).step_by(1 << 16).all(differs));
    }
}
