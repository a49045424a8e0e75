//! What a worker's thread does: tick, tell that it lives, and rest when there is nothing to do.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use dataplane::flows::WorkerFlows;
use dataplane::time::Nanos;
use dataplane::worker::Worker;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{self, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use pinning::CpuId;
use xdp_redirect::WorkerPorts;
use xdp_redirect::heartbeat::HeartbeatWriter;

use super::Idle;
use super::handle::{Ending, Shared};
use super::restarts::Restarts;

/// The waker's token; sockets have theirs below.
pub(super) const WAKE: Token = Token(usize::MAX);
/// The longest sleep: expiry goes on, a wake that failed is made good, and a worker that can run no more
/// is found out this much later than one that was awake.
pub(super) const SLEEP_MAX: Duration = Duration::from_millis(100);
/// The timer's token.
const DEPARTURE: Token = Token(usize::MAX - 1);
/// Before a packet's time that is nearer than this nobody sleeps: to sleep and to be woken takes as
/// long.
const NEAR: Duration = Duration::from_micros(50);
/// Events taken from one wait.
const EVENTS: usize = 64;

/// The time of `CLOCK_MONOTONIC`, which the XDP program compares heartbeats with.
#[must_use]
pub fn monotonic_now() -> Nanos {
    // Linux never refuses this clock (clock_gettime(2)).
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    Nanos(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// Everything a thread owns.
pub(super) struct Run {
    pub worker: Worker<WorkerPorts>,
    pub index: usize,
    pub core: CpuId,
    pub idle: Idle,
    pub poll: Poll,
    pub heartbeat: Heart,
    pub everybody: Arc<[Arc<Shared>]>,
    pub _ending: Ending,
}

impl Run {
    /// Starts the thread.
    pub fn spawn(self) -> io::Result<JoinHandle<WorkerFlows>> {
        let name = format!("worker-{}", self.index);
        std::thread::Builder::new().name(name).spawn(move || self.run())
    }

    fn run(mut self) -> WorkerFlows {
        crate::privileges::drop_all();
        if let Err(error) = pinning::apply::pin_current_thread(self.core) {
            tracing::warn!(worker = self.index, %error, "worker runs unpinned");
        }
        let mut rest = Rest::new(&self.poll);
        let mut restarts = Restarts::default();
        // A panic loses what was on its way. Whoever else reads the flow tables finds them whole, since
        // every step of a change leaves them so.
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.serve(&mut rest))) {
            if !restarts.allow(monotonic_now()) {
                resume_unwind(panic);
            }
            self.go_on_after(&*panic);
        }
        // Its sockets close here.
        self.worker.into_flows()
    }

    /// Makes the worker whole again, wherever its turn was cut short.
    fn go_on_after(&mut self, panic: &(dyn Any + Send)) {
        self.shared().asleep.store(false, Ordering::SeqCst);
        self.worker.pipeline_mut().set_online(true);
        let (worker, lost) = (self.index, self.worker.recover());
        let said = crate::node::caught::words(panic);
        tracing::error!(worker, said, lost, "the worker panicked and goes on; please report it");
    }

    /// Serves until it is told to stop.
    fn serve(&mut self, rest: &mut Rest) {
        let mut idle_since: Option<Nanos> = None;
        while !self.shared().stop.load(Ordering::Relaxed) {
            if self.shared().fault.is_there() {
                self.shared().fault.suffer();
            }
            let now = monotonic_now();
            self.heartbeat.0.beat(now);
            self.shared().note_tick(now);
            let tick = self.worker.tick(now);
            self.wake_others(tick.woken);
            if tick.packets > 0 {
                idle_since = None;
                continue;
            }
            let since = *idle_since.get_or_insert(now);
            match self.idle {
                Idle::Spin | Idle::BusyPoll => std::hint::spin_loop(),
                Idle::Adaptive(limit) if now.since(since) < limit => std::hint::spin_loop(),
                Idle::Adaptive(_) => {
                    if let Err(error) = self.sleep(rest) {
                        tracing::error!(worker = self.index, %error, "cannot sleep: spinning");
                        self.idle = Idle::Spin;
                    }
                    idle_since = None;
                }
            }
        }
    }

    fn shared(&self) -> &Shared {
        &self.everybody[self.index]
    }

    fn wake_others(&self, mut workers: u64) {
        while workers != 0 {
            let worker = workers.trailing_zeros();
            workers &= workers - 1;
            if let Some(shared) = self.everybody.get(worker as usize) {
                shared.wake();
            }
        }
    }

    /// Sleeps until a socket has packets, somebody wakes the worker, the time of a packet that waits
    /// for it has come, or [`SLEEP_MAX`] is over.
    fn sleep(&mut self, rest: &mut Rest) -> io::Result<()> {
        rest.follow(&self.poll, &self.worker)?;
        self.shared().asleep.store(true, Ordering::SeqCst);
        // Whoever sent something before it could see that we sleep has not woken us.
        let departure = self.worker.next_departure();
        let is_near = |at: Nanos| at <= monotonic_now().after(NEAR);
        let must_stay = self.worker.has_work()
            || departure.is_some_and(is_near)
            || !self.worker.ports().is_settled()
            || self.shared().stop.load(Ordering::SeqCst);
        let result = if must_stay { Ok(()) } else { self.wait(rest, departure) };
        self.shared().asleep.store(false, Ordering::SeqCst);
        result
    }

    fn wait(&mut self, rest: &mut Rest, departure: Option<Nanos>) -> io::Result<()> {
        let limit = departure.map_or(SLEEP_MAX, |at| rest.limit(at));
        self.worker.pipeline_mut().set_online(false);
        let until = monotonic_now().after(SLEEP_MAX);
        self.heartbeat.0.sleep(until);
        self.shared().note_tick(until);
        let waited = self.poll.poll(&mut rest.events, Some(limit));
        let now = monotonic_now();
        self.heartbeat.0.beat(now);
        self.shared().note_tick(now);
        self.worker.pipeline_mut().set_online(true);
        match waited {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => other,
        }
    }
}

/// The heartbeat. A worker ends by order or by a panic; either way the XDP program drops its share
/// from now on, also when it had announced that it sleeps. Where another process goes on with its
/// sockets, they take what comes until a worker that sleeps would count as stalled.
pub(super) struct Heart(pub HeartbeatWriter, pub Arc<Shared>);

impl Drop for Heart {
    fn drop(&mut self) {
        if self.1.is_followed.load(Ordering::SeqCst) && !std::thread::panicking() {
            self.0.sleep(monotonic_now().after(SLEEP_MAX));
        } else {
            self.0.stop();
        }
    }
}

/// What a sleeping worker watches.
struct Rest {
    events: Events,
    /// Wakes for a packet's time: a wait itself ends at whole milliseconds only. `None` where the
    /// kernel gives none.
    timer: Option<TimerFd>,
    /// Generation of the ports that are registered, and their descriptors.
    generation: Option<u64>,
    registered: Vec<i32>,
}

impl Rest {
    fn new(poll: &Poll) -> Self {
        let timer = timer(poll).inspect_err(|error| {
            tracing::warn!(%error, "no timer: limited pods' packets leave up to a millisecond late");
        });
        Self {
            events: Events::with_capacity(EVENTS),
            timer: timer.ok(),
            generation: None,
            registered: Vec::new(),
        }
    }

    /// How long a wait may last that must be over at `departure`: the timer ends it on time.
    fn limit(&self, departure: Nanos) -> Duration {
        let at = TimeSpec::from_duration(Duration::from_nanos(departure.0));
        let absolute = TimerSetTimeFlags::TFD_TIMER_ABSTIME;
        // Never read: each time it is set it begins anew, and tells of its end once.
        let set = |timer: &TimerFd| timer.set(Expiration::OneShot(at), absolute).is_ok();
        if self.timer.as_ref().is_some_and(set) {
            SLEEP_MAX
        } else {
            departure.since(monotonic_now()).min(SLEEP_MAX)
        }
    }

    /// Registers the sockets there are now. A closed socket has left the kernel's set by itself.
    fn follow(&mut self, poll: &Poll, worker: &Worker<WorkerPorts>) -> io::Result<()> {
        let ports = worker.ports();
        if self.generation == Some(ports.generation()) {
            return Ok(());
        }
        for fd in self.registered.drain(..) {
            // It may be closed already.
            let _ = poll.registry().deregister(&mut SourceFd(&fd));
        }
        for (index, (_, fd)) in ports.fds().enumerate() {
            let fd = fd.as_raw_fd();
            poll.registry().register(&mut SourceFd(&fd), Token(index), Interest::READABLE)?;
            self.registered.push(fd);
        }
        self.generation = Some(ports.generation());
        Ok(())
    }
}

fn timer(poll: &Poll) -> io::Result<TimerFd> {
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(timerfd::ClockId::CLOCK_MONOTONIC, flags)?;
    let fd = timer.as_fd().as_raw_fd();
    poll.registry().register(&mut SourceFd(&fd), DEPARTURE, Interest::READABLE)?;
    Ok(timer)
}
