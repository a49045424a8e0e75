//! Keeps the kernel node's core awake.
//!
//! The workers spin, the kernel's receive thread sleeps between bursts. Waking a halted virtual core
//! takes longer than a veth's ring of 256 packets lasts, so the kernel's node would be measured by
//! its hypervisor. A thread of the lowest class (`SCHED_IDLE`, sched(7)) that spins there keeps the
//! core from halting; anything else preempts it at once, and its time is nobody's work.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::gettid;
use pinning::CpuId;

/// Spins between two looks at the clock.
const SPINS: usize = 1_000;

#[derive(Default)]
struct Shared {
    is_active: AtomicBool,
    stop: AtomicBool,
    spun_ns: AtomicU64,
}

/// Processor time that was spent on keeping a core awake.
#[derive(Clone)]
pub struct SpunTime(Arc<Shared>);

impl SpunTime {
    /// So far.
    pub fn so_far(&self) -> Duration {
        Duration::from_nanos(self.0.spun_ns.load(Ordering::Relaxed))
    }
}

/// The thread; it rests until activated.
pub struct Awake {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Awake {
    /// On `core`.
    pub fn new(core: CpuId) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (ready, answer) = channel();
        let spinning = Arc::clone(&shared);
        let thread = thread::Builder::new().name("awake".into()).spawn(move || {
            let prepared = prepare(core);
            let is_prepared = prepared.is_ok();
            drop(ready.send(prepared));
            if is_prepared {
                spin(&spinning);
            }
        })?;
        answer.recv().map_err(|_| anyhow!("the thread that keeps {core} awake ended"))??;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Spins, or rests.
    pub fn set_active(&self, is_active: bool) {
        self.shared.is_active.store(is_active, Ordering::Relaxed);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// What it cost.
    pub fn spun_time(&self) -> SpunTime {
        SpunTime(Arc::clone(&self.shared))
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic has printed its message already.
            drop(thread.join());
        }
    }
}

/// Pins the calling thread to `core`, in the lowest class.
fn prepare(core: CpuId) -> Result<()> {
    pinning::apply::pin_current_thread(core)?;
    let thread = gettid().to_string();
    let status = Command::new("chrt").args(["--idle", "--pid", "0", &thread]).status();
    let status = status.context("`chrt` is of the package util-linux")?;
    ensure!(status.success(), "chrt cannot make a thread SCHED_IDLE: {status}");
    Ok(())
}

fn spin(shared: &Shared) {
    while !shared.stop.load(Ordering::Relaxed) {
        if !shared.is_active.load(Ordering::Relaxed) {
            thread::park();
            continue;
        }
        for _ in 0..SPINS {
            std::hint::spin_loop();
        }
        // A kernel that has no such clock gets its time counted as work.
        if let Ok(time) = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID) {
            let nanos = Duration::from(time).as_nanos();
            shared.spun_ns.store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }
}
