//! Which ports are sent live XDP frames, and why others are not: the control side of
//! [`xdp_redirect::live_transmit`].
//!
//! A port begins with AF_XDP. What can be seen from here is asked first, then a trial shows whether
//! the other end takes live frames: the kernel throws them away without a word where it does not.
//! From then on the interface's own counters are compared with what workers sent. A port that loses
//! packets is sent them by AF_XDP again, and tried again later, after twice as long each time.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use control::config::Transmit;
use dataplane::port::PortId;
use xdp_redirect::LiveTransmit;
use xdp_redirect::frame::HEADROOM_BYTES;
use xdp_redirect::limits::LIVE_PACKET_BYTES;
use xdp_redirect::live_transmit::delivery::{Delivery, delivery};
use xdp_redirect::live_transmit::{LivePeer, LiveStatistics, Trial};
use xdp_redirect::loader::RunningMode;

use crate::netlink::pod_ends;
use crate::ports::ActivePort;
use crate::workers::Workers;

/// Ports that are tried in one go; a trial takes some 50 us.
const TRIALS_MAX: usize = 64;
/// How long after it lost packets a port is tried again, the first time and at most.
const RETRY_FIRST: Duration = Duration::from_secs(10);
const RETRY_LONGEST: Duration = Duration::from_secs(600);
/// How long after it was told to a worker has surely stopped to send live frames.
const STOPS_WITHIN: Duration = Duration::from_millis(500);
/// One in so many packets may be refused by a full ring before AF_XDP is the better way, which
/// waits for room.
const REFUSED_ONE_IN: u64 = 100;
/// Bytes around a packet of the MTU: Ethernet, and a VLAN tag.
const LINK_BYTES: u32 = 18;

/// Why a port is not sent live frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Nobody has looked yet.
    NotTried,
    /// The configuration says so.
    Configured,
    /// The kernel cannot, or must not.
    Kernel(String),
    /// The XDP program does not run in its driver.
    NotNative,
    /// The driver sends without copying by itself.
    ZeroCopy,
    /// It has several receive queues.
    Queues(u32),
    /// Its packets may be longer than one frame.
    Mtu(u16),
    /// It is no veth.
    NotVeth,
    /// The other end polls nothing.
    Vanishes,
    /// The other end's ring is full too often.
    RingFull,
    /// Its worker takes no commands, so that it is as before.
    Busy,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTried => write!(f, "not tried yet"),
            Self::Configured => write!(f, "as configured"),
            Self::Kernel(reason) => write!(f, "{reason}"),
            Self::NotNative => write!(f, "its XDP program runs in generic mode"),
            Self::ZeroCopy => write!(f, "its sockets are zero-copy"),
            Self::Queues(queues) => write!(f, "it has {queues} receive queues"),
            Self::Mtu(mtu) => write!(f, "its MTU of {mtu} is more than one frame takes"),
            Self::NotVeth => write!(f, "it is no veth"),
            Self::Vanishes => write!(f, "the other end has neither GRO on nor an XDP program"),
            Self::RingFull => write!(f, "the other end's ring is full too often"),
            Self::Busy => write!(f, "its worker takes no commands"),
        }
    }
}

/// How a port's packets leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// As live frames, when there are many at once: as many as pay for such a peer.
    LiveFrames(LivePeer),
    /// By AF_XDP.
    AfXdp(Why),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LiveFrames(_) => write!(f, "live-frames"),
            Self::AfXdp(why) => write!(f, "af-xdp: {why}"),
        }
    }
}

/// A port, as last looked at.
#[derive(Debug, Clone)]
struct Port {
    ifindex: u32,
    way: Way,
    /// When it is tried again.
    retry_at: Option<Instant>,
    retry_after: Duration,
    /// When workers were told to send it no more live frames.
    left_at: Option<Instant>,
    since: Baseline,
    /// What was sent since then, and lost of it, at the last look.
    sent: u64,
    noted: Lost,
    lost: Lost,
}

/// What had been sent to a port, and what its interface counted, before workers might send live
/// frames. Compared with that in all, and not from look to look: at a look a call may be under way
/// whose packets the interface has counted and the worker has not.
#[derive(Debug, Clone, Copy, Default)]
struct Baseline {
    sent: u64,
    delivery: Delivery,
}

/// Packets that were sent as live frames and not taken by the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lost {
    /// Its ring was full.
    pub refused: u64,
    /// It polls nothing.
    pub vanished: u64,
}

/// The live frames of all ports.
pub struct LiveWays {
    transmit: Result<LiveTransmit, String>,
    ports: BTreeMap<u16, Port>,
    /// Of ports that are none any more.
    lost: Lost,
}

impl LiveWays {
    /// Ways of `transmit`, or of AF_XDP alone, with the reason.
    #[must_use]
    pub fn new(transmit: Result<LiveTransmit, String>) -> Self {
        Self { transmit, ports: BTreeMap::new(), lost: Lost::default() }
    }

    /// The program, for workers' senders; `None` where the kernel cannot.
    #[must_use]
    pub fn transmit(&self) -> Option<&LiveTransmit> {
        self.transmit.as_ref().ok()
    }

    /// Why the kernel cannot.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        self.transmit.as_ref().err().map(String::as_str)
    }

    /// How packets of `port` leave.
    #[must_use]
    pub fn way(&self, port: PortId) -> Way {
        self.ports.get(&port.0).map_or(Way::AfXdp(Why::NotTried), |port| port.way.clone())
    }

    /// What `port` lost.
    #[must_use]
    pub fn lost(&self, port: PortId) -> Lost {
        self.ports.get(&port.0).map(|port| port.lost).unwrap_or_default()
    }

    /// What all ports lost since the start.
    #[must_use]
    pub fn lost_in_all(&self) -> Lost {
        self.ports.values().fold(self.lost, |sum, port| Lost {
            refused: sum.refused + port.lost.refused,
            vanished: sum.vanished + port.lost.vanished,
        })
    }

    /// Looks at every port. To be called every second.
    pub fn tend<'p>(
        &mut self,
        wanted: Transmit,
        frame_bytes: u32,
        ports: impl Iterator<Item = &'p ActivePort>,
        workers: &Workers,
    ) {
        let (now, mut trials) = (Instant::now(), 0);
        for active in ports {
            let (number, ifindex) = (active.port.0, active.attachment.ifindex);
            let known = self.ports.get_mut(&number).filter(|port| port.ifindex == ifindex);
            if let Some(port) = known {
                let is_due = port.retry_at.is_none_or(|at| now >= at)
                    && port.left_at.is_none_or(|at| now >= at + STOPS_WITHIN);
                match &port.way {
                    Way::LiveFrames(_) => {
                        watch(port, active, wanted, workers, now);
                        continue;
                    }
                    Way::AfXdp(Why::Configured) if wanted == Transmit::AfXdp => continue,
                    Way::AfXdp(_) if is_due => {}
                    Way::AfXdp(_) => continue,
                }
            }
            if trials >= TRIALS_MAX {
                continue;
            }
            trials += 1;
            let (way, since) = self.choose(wanted, frame_bytes, active, workers);
            self.note(active, way, since, now);
        }
    }

    /// Decides about a port that is sent nothing this way now.
    fn choose(
        &mut self,
        wanted: Transmit,
        frame_bytes: u32,
        active: &ActivePort,
        workers: &Workers,
    ) -> (Way, Baseline) {
        let by_af_xdp = |why| (Way::AfXdp(why), Baseline::default());
        let transmit = match &mut self.transmit {
            Ok(transmit) => transmit,
            Err(reason) => return by_af_xdp(Why::Kernel(reason.clone())),
        };
        if let Some(why) = unfit(wanted, frame_bytes, active) {
            return by_af_xdp(why);
        }
        let port = active.port;
        let tried = transmit
            .set_port(port, active.attachment.ifindex)
            .and_then(|()| transmit.try_port(port, &active.interface))
            .and_then(|trial| Ok((trial, delivery(&active.interface)?.unwrap_or_default())));
        match tried {
            Ok((trial, delivery)) => match refusal(trial) {
                Some(why) => by_af_xdp(why),
                None => {
                    let since = Baseline { sent: sent(workers, port), delivery };
                    let peer = peer(active);
                    let is_told = give(workers, port, Some(peer));
                    (if is_told { Way::LiveFrames(peer) } else { Way::AfXdp(Why::Busy) }, since)
                }
            },
            Err(error) => by_af_xdp(Why::Kernel(error.to_string())),
        }
    }

    fn note(&mut self, active: &ActivePort, way: Way, since: Baseline, now: Instant) {
        let before = self.ports.get(&active.port.0);
        let before = before.filter(|port| port.ifindex == active.attachment.ifindex);
        if before.is_none_or(|port| port.way != way) {
            tracing::info!(interface = active.interface, transmit = %way, "way out of a port");
        }
        let again = before.map_or(RETRY_FIRST, |port| (port.retry_after * 2).min(RETRY_LONGEST));
        let is_final = matches!(way, Way::LiveFrames(_) | Way::AfXdp(Why::Configured));
        let port = Port {
            ifindex: active.attachment.ifindex,
            // What cannot change by itself is asked again as rarely as the rest.
            retry_at: (!is_final).then(|| now + again),
            retry_after: again,
            left_at: None,
            since,
            sent: 0,
            noted: Lost::default(),
            lost: before.map(|port| port.lost).unwrap_or_default(),
            way,
        };
        self.ports.insert(active.port.0, port);
    }

    /// Has every port looked at anew: the configuration changed.
    pub fn reconsider(&mut self) {
        for port in self.ports.values_mut() {
            port.retry_at = None;
        }
    }

    /// Forgets a port, before its interface is let go of.
    pub fn forget(&mut self, port: PortId) {
        if let Some(port) = self.ports.remove(&port.0) {
            self.lost.refused += port.lost.refused;
            self.lost.vanished += port.lost.vanished;
        }
        if let Ok(transmit) = &mut self.transmit
            && let Err(error) = transmit.clear_port(port)
        {
            tracing::warn!(port = port.0, %error, "its interface stays known to live frames");
        }
    }
}

/// Why a port cannot be sent live frames whatever its other end is.
fn unfit(wanted: Transmit, frame_bytes: u32, active: &ActivePort) -> Option<Why> {
    if wanted == Transmit::AfXdp {
        Some(Why::Configured)
    } else if active.attachment.mode != RunningMode::Native {
        Some(Why::NotNative)
    } else if active.zero_copy {
        Some(Why::ZeroCopy)
    } else {
        unfit_link(wanted, frame_bytes, active.queues, active.mtu)
    }
}

/// Why a link of so many receive queues and this MTU cannot be sent live frames.
#[must_use]
pub fn unfit_link(wanted: Transmit, frame_bytes: u32, queues: u32, mtu: u16) -> Option<Why> {
    if queues != 1 && wanted == Transmit::Auto {
        Some(Why::Queues(queues))
    } else if mtu > mtu_within(frame_bytes) {
        Some(Why::Mtu(mtu))
    } else {
        None
    }
}

/// The largest MTU of a link that live frames fit, where packet memory has frames of so many bytes.
#[must_use]
pub fn mtu_within(frame_bytes: u32) -> u16 {
    let room = frame_bytes.saturating_sub(HEADROOM_BYTES).min(LIVE_PACKET_BYTES);
    u16::try_from(room.saturating_sub(LINK_BYTES)).unwrap_or(u16::MAX)
}

/// Why a port cannot be sent live frames, after a trial; `None` when it can.
#[must_use]
pub fn refusal(trial: Trial) -> Option<Why> {
    match trial {
        Trial::Arrives => None,
        Trial::Vanishes => Some(Why::Vanishes),
        Trial::Refused => Some(Why::RingFull),
        Trial::Unknown => Some(Why::NotVeth),
    }
}

/// Compares what was sent with what arrived, and takes the port back where that differs.
fn watch(port: &mut Port, active: &ActivePort, wanted: Transmit, workers: &Workers, now: Instant) {
    if wanted == Transmit::AfXdp {
        if give(workers, active.port, None) {
            port.left_at = Some(now);
            port.way = Way::AfXdp(Why::Configured);
            tracing::info!(interface = active.interface, transmit = %port.way, "way out of a port");
        }
        return;
    }
    // First: what leaves meanwhile must not seem to be missing.
    let sent = sent(workers, active.port).saturating_sub(port.since.sent);
    let count = sent.saturating_sub(port.sent);
    if count == 0 {
        return;
    }
    let Ok(Some(delivered)) = delivery(&active.interface) else { return };
    let arrived = delivered.since(&port.since.delivery);
    let all = Lost {
        refused: arrived.refused,
        vanished: sent.saturating_sub(arrived.taken + arrived.refused),
    };
    let refused = all.refused.saturating_sub(port.noted.refused);
    let vanished = all.vanished.saturating_sub(port.noted.vanished);
    (port.sent, port.noted) = (sent, all);
    port.lost.refused += refused;
    port.lost.vanished += vanished;
    let why = if vanished > 0 {
        Why::Vanishes
    } else if refused > count / REFUSED_ONE_IN {
        Why::RingFull
    } else {
        port.retry_after = RETRY_FIRST;
        return;
    };
    if give(workers, active.port, None) {
        port.left_at = Some(now);
        port.way = Way::AfXdp(why);
        port.retry_at = Some(now + port.retry_after);
        let interface = &active.interface;
        tracing::warn!(interface, vanished, refused, transmit = %port.way, "lost live frames");
    }
}

/// Live frames that workers have sent to a port number.
#[must_use]
pub fn sent(workers: &Workers, port: PortId) -> u64 {
    let counters = (0..workers.count()).filter_map(|worker| workers.ports(worker)?.live_counters());
    counters.map(|counters| counters.port(port)).sum()
}

/// What workers did, together.
#[must_use]
pub fn statistics(workers: &Workers) -> LiveStatistics {
    let counters = (0..workers.count()).filter_map(|worker| workers.ports(worker)?.live_counters());
    counters.fold(LiveStatistics::default(), |sum, one| sum.plus(&one.read()))
}

/// What takes live frames at the other end. One that cannot be seen counts as a stack: a call that is made
/// later than it might be costs less than one that is made too early.
fn peer(active: &ActivePort) -> LivePeer {
    let runs_program = pod_ends::runs_program(active.attachment.ifindex);
    let runs_program = runs_program.unwrap_or_else(|error| {
        tracing::debug!(interface = active.interface, %error, "its other end cannot be seen");
        false
    });
    if runs_program { LivePeer::Program } else { LivePeer::Stack }
}

/// Tells every worker; false when one did not take it, so that it has to be told again.
fn give(workers: &Workers, port: PortId, peer: Option<LivePeer>) -> bool {
    // Each is told, whatever another one answers.
    let told = (0..workers.count()).filter_map(|worker| workers.ports(worker));
    let refused = told.filter(|ports| ports.set_live(port, peer).is_err()).count();
    workers.wake();
    refused == 0
}
