//! The source and the receiver, and how a rate is measured.
//!
//! Offering far more than a node can take lowers what it delivers, and so does pacing packet by
//! packet. So the source sends bursts of 64 and climbs: it offers more for as long as that delivers
//! more. From then on each measurement offers a little less, as much, and a little more than was
//! best the last time, goes on to where it found more, and the best of them counts: about 1.1 to 1.3
//! times what the node can take.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use xdp_redirect::live_frames::{BURST, Counted, Expected, FrameCounter, LiveFrames, Traffic};
use xdp_redirect::loader::interface_index;

use super::awake::SpunTime;
use super::network::Links;
use super::service::{CLIENT_BITS, CLIENTS, FRONTEND, Job};
use crate::interrupt;
use crate::machine::{TICKS, machine_seconds};
use crate::packet;

/// What is offered, in parts of what was best the last time.
const OFFERED: [f64; 3] = [0.9, 1.0, 1.1];
/// What is offered first, in thousand packets per second.
const FIRST_KPPS: f64 = 500.0;
/// How much more is offered next while it delivers more.
const STEP: f64 = 1.25;
/// By how much more it must deliver to be worth another step.
const GAIN: f64 = 1.02;
/// Offers of one measurement at most.
const STEPS: usize = 24;
/// Passes over all flows until they are there, at most.
const PASSES: usize = 60;
/// Passes that bring no more than those before, after which all flows are there.
const ENOUGH: usize = 2;
/// What is kept of an offer that was best once: a bad moment must not lower all that follows.
const KEPT: f64 = 0.8;
/// Length of one call of the source, at the pace that is wanted.
const CALL: Duration = Duration::from_millis(250);
/// What other processes may take of a core while something is measured.
const OTHERS_MAX: f64 = 0.05;

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Thousand packets per second that arrived right.
    pub kpps: f64,
    /// Thousand packets per second of processor time, of the whole machine.
    pub kpkt_per_cpu_second: f64,
    /// Whether other processes took more than [`OTHERS_MAX`] of a core meanwhile.
    pub is_disturbed: bool,
}

/// What became of one offer.
#[derive(Debug, Clone, Copy)]
struct Offered {
    offered_kpps: f64,
    kpps: f64,
    kpkt_per_cpu_second: f64,
}

/// The packet source; lives in the clients' namespace, on its core.
pub struct Source {
    frames: LiveFrames,
}

/// A client that sends to one node, and the server behind it.
pub struct Path {
    client: u32,
    counter: FrameCounter,
    traffic: Traffic,
    /// The offer that delivered most the last time.
    best_offer_kpps: Option<f64>,
    /// Nobody's work.
    spun: Option<SpunTime>,
}

impl Path {
    /// Over `links`; the server counts what is as `expected`.
    pub fn new(links: &Links, expected: &Expected, job: &Job) -> Result<Self> {
        let unspecified = std::net::SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 0);
        let mut frame = packet::udp(unspecified, FRONTEND);
        frame[..6].copy_from_slice(&links.uplink_mac().0);
        frame[6..12].copy_from_slice(&links.client_mac().0);
        for checksum in [24..26, 40..42] {
            frame[checksum].fill(0);
        }
        Ok(Self {
            client: interface_index(&links.client)?,
            counter: FrameCounter::attach(&links.server, expected)?,
            traffic: Traffic {
                flows: None,
                first_source: CLIENTS,
                source_bits: CLIENT_BITS,
                destinations: job.services,
                frame,
            },
            best_offer_kpps: None,
            spun: None,
        })
    }

    /// Has the time that keeps the node's core awake taken from what is counted as work.
    pub fn subtract(&mut self, spun: SpunTime) {
        self.spun = Some(spun);
    }

    fn spun(&self) -> Duration {
        self.spun.as_ref().map_or(Duration::ZERO, SpunTime::so_far)
    }

    /// Has the best offer searched for anew: another case begins.
    pub fn begin_case(&mut self) {
        self.best_offer_kpps = None;
    }
}

impl Source {
    /// Loads the source; `spare` is an interface that nothing needs.
    pub fn new(spare: &str) -> Result<Self> {
        Ok(Self { frames: LiveFrames::load(spare)? })
    }

    /// Sends so many flows' packets without measuring, until no more of them arrive: then each flow is
    /// there. Where beginning one takes long, most packets of the first passes are lost.
    pub fn warm_up(&mut self, path: &mut Path, flows: Option<u64>, run: Duration) -> Result<()> {
        self.choose(path, flows)?;
        let kpps = self.usual_offer(path, run)?;
        let Some(flows) = flows else { return Ok(()) };
        let pass = Duration::from_secs_f64(3.0 * flows as f64 / (kpps * 1e3));
        let (mut most, mut without_gain) = (0.0, 0);
        for _ in 0..PASSES {
            let delivered = self.offer(path, kpps, pass)?.kpps;
            without_gain = if delivered < GAIN * most { without_gain + 1 } else { 0 };
            most = delivered.max(most);
            if without_gain == ENOUGH {
                break;
            }
        }
        // What was best while flows began is not what is best now.
        path.best_offer_kpps = None;
        self.usual_offer(path, run).map(drop)
    }

    /// Measures until nobody disturbs, at most `tries` times; each of the three offers takes `run`.
    pub fn measure(
        &mut self,
        path: &mut Path,
        flows: Option<u64>,
        run: Duration,
        tries: u32,
    ) -> Result<Sample> {
        let mut sample = self.measure_once(path, flows, run)?;
        for _ in 1..tries {
            if !sample.is_disturbed {
                break;
            }
            sample = self.measure_once(path, flows, run)?;
        }
        Ok(sample)
    }

    fn measure_once(
        &mut self,
        path: &mut Path,
        flows: Option<u64>,
        run: Duration,
    ) -> Result<Sample> {
        self.choose(path, flows)?;
        let usual = self.usual_offer(path, run)?;
        let (started, others_before) = (Instant::now(), others_seconds()?);
        let mut best = self.offer(path, OFFERED[0] * usual, run)?;
        for part in &OFFERED[1..] {
            let next = self.offer(path, part * usual, run)?;
            if next.kpps > best.kpps {
                best = next;
            }
        }
        if best.offered_kpps > usual {
            best = self.climb(path, best, run)?;
        } else if best.offered_kpps < usual {
            best = self.descend(path, best, run)?;
        }
        let others = others_seconds()? - others_before;
        path.best_offer_kpps = Some(best.offered_kpps.max(KEPT * usual));
        Ok(Sample {
            kpps: best.kpps,
            kpkt_per_cpu_second: best.kpkt_per_cpu_second,
            is_disturbed: others > OTHERS_MAX * started.elapsed().as_secs_f64() + 1.0 / TICKS,
        })
    }

    fn choose(&mut self, path: &mut Path, flows: Option<u64>) -> Result<()> {
        path.traffic.flows = flows;
        Ok(self.frames.set_traffic(&path.traffic)?)
    }

    /// What was best the last time; searched for the first time.
    fn usual_offer(&mut self, path: &mut Path, run: Duration) -> Result<f64> {
        if let Some(kpps) = path.best_offer_kpps {
            return Ok(kpps);
        }
        let mut best = self.offer(path, FIRST_KPPS, run)?;
        // Something must arrive before more of it can be hoped for.
        for _ in 0..STEPS {
            if best.kpps > 0.0 {
                break;
            }
            best = self.offer(path, FIRST_KPPS, run)?;
        }
        ensure!(best.kpps > 0.0, "nothing arrives at the server");
        best = self.climb(path, best, run)?;
        path.best_offer_kpps = Some(best.offered_kpps);
        Ok(best.offered_kpps)
    }

    /// Offers more than `best` did for as long as that delivers more.
    fn climb(&mut self, path: &Path, mut best: Offered, run: Duration) -> Result<Offered> {
        for _ in 0..STEPS {
            let next = self.offer(path, STEP * best.offered_kpps, run)?;
            if next.kpps < GAIN * best.kpps {
                break;
            }
            best = next;
        }
        Ok(best)
    }

    /// Offers less than `best` did for as long as that delivers more.
    fn descend(&mut self, path: &Path, mut best: Offered, run: Duration) -> Result<Offered> {
        for _ in 0..STEPS {
            let next = self.offer(path, OFFERED[0] * best.offered_kpps, run)?;
            if next.kpps < best.kpps {
                break;
            }
            best = next;
        }
        Ok(best)
    }

    /// Sends at a steady pace for `run`.
    fn offer(&mut self, path: &Path, kpps: f64, run: Duration) -> Result<Offered> {
        let interval = Duration::from_secs_f64(f64::from(BURST) / (kpps * 1e3));
        let (before, busy_before) = (path.counter.counted()?, busy_seconds()?);
        let spun_before = path.spun();
        let started = Instant::now();
        let mut waited = Duration::ZERO;
        while started.elapsed() < run {
            interrupt::check()?;
            let left = run.saturating_sub(started.elapsed()).min(CALL).as_secs_f64();
            let bursts = (left / interval.as_secs_f64()).ceil();
            waited += self.frames.send(path.client, bursts as u32 * BURST, interval)?;
        }
        let elapsed = started.elapsed().as_secs_f64();
        let (after, busy) = (path.counter.counted()?, busy_seconds()? - busy_before);
        let Counted { right, wrong } =
            Counted { right: after.right - before.right, wrong: after.wrong - before.wrong };
        ensure!(
            wrong == 0,
            "{wrong} of {} packets arrived otherwise than they must",
            right + wrong
        );
        // The source waits in a loop; that time is nobody's work.
        let waited = waited + path.spun().saturating_sub(spun_before);
        let worked = (busy - waited.as_secs_f64()).max(1.0 / TICKS);
        Ok(Offered {
            offered_kpps: kpps,
            kpps: right as f64 / elapsed / 1e3,
            kpkt_per_cpu_second: right as f64 / worked / 1e3,
        })
    }
}

/// Processor time of the whole machine so far that was not idle.
fn busy_seconds() -> Result<f64> {
    // user nice system irq softirq; steal is not ours.
    machine_seconds(&[0, 1, 2, 5, 6])
}

/// Processor time that other processes spent on themselves so far.
fn others_seconds() -> Result<f64> {
    let own = getrusage(UsageWho::RUSAGE_SELF)?.user_time();
    let own = own.tv_sec() as f64 + own.tv_usec() as f64 / 1e6;
    Ok(machine_seconds(&[0, 1])? - own)
}
