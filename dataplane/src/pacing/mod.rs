//! Bandwidth limits of pods, kept by pacing: each packet of a limited pod gets the time at which it
//! may leave, as in Carousel (Saeed et al., SIGCOMM 2017), and waits for it here, since no queueing
//! discipline of the kernel sees it any more.
//!
//! A limit is one shared number, the time from which on it is free again ([`Limit`]): whichever
//! worker sends a packet moves it on by what the packet costs, in one atomic step, and so all
//! workers together keep to one rate. Departure times do not depend on when a worker came to look,
//! so that one that looks late sends late and loses nothing of the rate.
//!
//! A packet passes its sender's egress limit, and after it, when that has let it go, its receiver's
//! ingress limit: charged for both at once, a slow sender's packets would keep the receiver's rate
//! for themselves while they wait. What waits is in [`queue`], in order of arrival for each limit.
//!
//! Charged is what the kernel's `tbf` charges, to which the bandwidth plugin of CNI would have left
//! it: a frame's bytes with its Ethernet header, without preamble and checksum.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::DropReason;
use crate::policy::Direction;
use crate::port::PortId;
use crate::time::Nanos;

pub mod queue;

/// Lowest rate, in bits a second: that of Kubernetes (`pkg/util/bandwidth`).
pub const RATE_BITS_MIN: u64 = 1_000;
/// Highest rate, in bits a second: that of Kubernetes.
pub const RATE_BITS_MAX: u64 = 1_000_000_000_000_000;
/// Largest burst, in bits: that of the bandwidth plugin. Container runtimes that know no burst of a
/// pod give this one, by which a limit of 10 Mbit/s would begin to hold after seven minutes; so it
/// counts as none.
pub const BURST_BITS_MAX: u64 = u32::MAX as u64;
/// Burst of a limit that names none, as time at its rate.
const BURST: Duration = Duration::from_millis(1);
/// Its least, in bytes: two full frames of Ethernet.
const BURST_BYTES_MIN: u64 = 2 * 1514;
/// How far ahead a packet may get its time: what waits longer is dropped, so that a sender learns
/// what the rate is. The bandwidth plugin's (its `latency`).
const HORIZON: Duration = Duration::from_millis(25);
/// At low rates at least so many bytes may wait, since TCP needs some packets under way to see a
/// loss before it times out.
const HORIZON_BYTES_MIN: u64 = 32 << 10;
/// And no packet waits longer than this, however low the rate.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Time is counted in fractions of a nanosecond, so many bits of them: at 100 Gbit/s the shortest
/// frame costs 5.1 ns. 64 bits last for 18 years of uptime.
const FRACTION_BITS: u32 = 5;
/// And costs of a byte in so many bits of that: products of a rate's and a packet's stay below 2^64.
const COST_BITS: u32 = 16;

/// Fractions of a nanosecond.
type Fractions = u64;

fn fractions(time: Duration) -> Fractions {
    u64::try_from(time.as_nanos() << FRACTION_BITS).unwrap_or(u64::MAX)
}

/// What a limit is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate {
    /// Bits a second, from [`RATE_BITS_MIN`] to [`RATE_BITS_MAX`].
    pub bits_per_second: u64,
    /// Bits that may go at once after a pause, beside the packet that exceeds them; `None`: what one
    /// millisecond carries, and at least two full frames.
    pub burst_bits: Option<u64>,
}

impl Rate {
    /// A rate within its bounds, with the burst of a limit that names none.
    #[must_use]
    pub fn of(bits_per_second: u64) -> Self {
        let bits_per_second = bits_per_second.clamp(RATE_BITS_MIN, RATE_BITS_MAX);
        Self { bits_per_second, burst_bits: None }
    }

    /// The same with a burst; 0 and [`BURST_BITS_MAX`] are none.
    #[must_use]
    pub fn with_burst(self, bits: u64) -> Self {
        let burst_bits = (1..BURST_BITS_MAX).contains(&bits).then_some(bits);
        Self { burst_bits, ..self }
    }

    /// What a byte costs, in 2^-[`COST_BITS`] of [`Fractions`], rounded up: never above the rate.
    fn byte_cost(self) -> u64 {
        const SECOND: u64 = (8 * 1_000_000_000) << (FRACTION_BITS + COST_BITS);
        SECOND.div_ceil(self.bits_per_second.max(RATE_BITS_MIN))
    }
}

/// One direction's limit, shared by all workers.
#[derive(Debug)]
pub struct Limit {
    rate: Rate,
    byte_cost: u64,
    burst: Fractions,
    horizon: Fractions,
    /// From when on the limit is free again: when the next packet may leave. Behind now by up to
    /// the burst while little is sent.
    next: AtomicU64,
}

impl Limit {
    /// A limit that has not been used yet.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        let byte_cost = rate.byte_cost();
        let time = |bytes: u64| cost(byte_cost, bytes);
        let burst = match rate.burst_bits {
            Some(bits) => time(bits / 8),
            None => fractions(BURST).max(time(BURST_BYTES_MIN)),
        };
        let horizon = fractions(HORIZON).max(time(HORIZON_BYTES_MIN)).min(fractions(WAIT_MAX));
        Self { rate, byte_cost, burst, horizon, next: AtomicU64::new(0) }
    }

    /// What it was made of.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// When a packet would leave that came now; `None` when that is beyond the horizon.
    #[inline]
    #[must_use]
    pub fn outlook(&self, now: Nanos) -> Option<Nanos> {
        let now = now.0.saturating_mul(1 << FRACTION_BITS);
        let start = self.next.load(Ordering::Relaxed).max(now.saturating_sub(self.burst));
        (start <= now.saturating_add(self.horizon)).then(|| time(start))
    }

    /// Charges a packet of `bytes` that goes now or will wait, and answers when it leaves: that may
    /// be before now.
    ///
    /// Two atomic steps that cannot fail and no loop: of workers that come at the same time each
    /// gets a time of its own, at the worst one packet of each beyond the horizon.
    #[inline]
    pub fn charge(&self, now: Nanos, bytes: usize) -> Nanos {
        let now = now.0.saturating_mul(1 << FRACTION_BITS);
        // What was not used before the burst is lost. Relaxed: the number guards nothing else.
        self.next.fetch_max(now.saturating_sub(self.burst), Ordering::Relaxed);
        let cost = cost(self.byte_cost, bytes as u64);
        time(self.next.fetch_add(cost, Ordering::Relaxed))
    }
}

fn cost(byte_cost: u64, bytes: u64) -> Fractions {
    byte_cost.saturating_mul(bytes).div_ceil(1 << COST_BITS)
}

/// Rounded up: no packet leaves before its time.
fn time(fractions: Fractions) -> Nanos {
    Nanos(fractions.div_ceil(1 << FRACTION_BITS))
}

/// A port's two limits. Directions are the pod's, as in Kubernetes: egress is what it sends.
#[derive(Debug, Clone, Default)]
pub struct PortLimits {
    /// Of what goes to the pod.
    pub ingress: Option<Arc<Limit>>,
    /// Of what the pod sends.
    pub egress: Option<Arc<Limit>>,
}

/// Every limit that is in force, by port.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    ports: Box<[PortLimits]>,
}

impl Limits {
    /// `None` where no port has any, which costs the packets least.
    #[must_use]
    pub fn of(limited: impl IntoIterator<Item = (PortId, PortLimits)>) -> Option<Self> {
        let mut ports = Vec::new();
        for (port, limits) in limited {
            if limits.ingress.is_none() && limits.egress.is_none() {
                continue;
            }
            let place = usize::from(port.0);
            if ports.len() <= place {
                ports.resize(place + 1, PortLimits::default());
            }
            ports[place] = limits;
        }
        (!ports.is_empty()).then(|| Self { ports: ports.into() })
    }

    /// Whether any limit is in the way of packets from one port to another.
    #[inline]
    #[must_use]
    pub fn concern(&self, from: PortId, to: PortId) -> bool {
        let of = |port: PortId| self.ports.get(usize::from(port.0));
        of(from).is_some_and(|limits| limits.egress.is_some())
            || of(to).is_some_and(|limits| limits.ingress.is_some())
    }

    /// A port's limit in one direction.
    #[inline]
    #[must_use]
    pub fn get(&self, port: PortId, direction: Direction) -> Option<&Limit> {
        let limits = self.ports.get(usize::from(port.0))?;
        match direction {
            Direction::Ingress => limits.ingress.as_deref(),
            Direction::Egress => limits.egress.as_deref(),
        }
    }
}

/// Why a packet is dropped that a limit would keep waiting too long.
#[must_use]
pub fn over_limit(direction: Direction) -> DropReason {
    match direction {
        Direction::Ingress => DropReason::BandwidthIngress,
        Direction::Egress => DropReason::BandwidthEgress,
    }
}

#[cfg(test)]
mod tests;
