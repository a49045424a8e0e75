//! What a subject can do, and how it is timed.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::time::{ClockId, clock_gettime};
use pinning::CpuId;
use pinning::apply::pin_current_thread;

use super::flow::{Flow, Tail, Tally, Tuple};

/// Threads that share a table.
pub const WORKERS: usize = 2;

/// What a run of many bursts took of the thread's own time, and what it found.
pub type Timed = (Duration, Tally);

/// A subject with the flows of one family. What is passed is worked on in bursts of 32.
pub trait Subject<const K: usize> {
    /// As figures name it.
    fn name(&self) -> &'static str;

    /// Adds flows that are not there.
    ///
    /// # Errors
    /// One was refused.
    fn insert(&mut self, flows: &[Flow<K>], now: u64) -> Result<Duration>;

    /// Finds the keys' entries and updates them as a packet does.
    ///
    /// # Errors
    /// The subject has gone.
    fn look_up(&mut self, keys: &[Tuple<K>], now: u64) -> Result<Timed>;

    /// Removes the flows of the keys. Only found ones are counted, without their states.
    ///
    /// # Errors
    /// The subject has gone.
    fn remove(&mut self, keys: &[Tuple<K>]) -> Result<Timed>;

    /// Reads deadline and state of every entry.
    ///
    /// # Errors
    /// The subject has gone.
    fn sweep(&mut self, now: u64) -> Result<Timed>;

    /// As [`Self::look_up`], one thread on each core with keys of its own, but by the clock on the
    /// wall: from the first one's start to the last one's end. `None` if threads cannot share the subject.
    ///
    /// # Errors
    /// No such core, or the subject has gone.
    fn share(
        &mut self,
        keys: [&[Tuple<K>]; WORKERS],
        cores: [CpuId; WORKERS],
        now: u64,
    ) -> Result<Option<Timed>>;

    /// What is under the keys, packets included; changes nothing.
    ///
    /// # Errors
    /// The subject has gone.
    fn audit(&mut self, keys: &[Tuple<K>]) -> Result<Tally>;

    /// Bytes in use when it was made, if the subject knows them.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }
}

/// A flow table in this process.
pub trait FlowTable<const K: usize>: Sync {
    /// Whether one thread may insert while another looks up.
    const SHAREABLE: bool = true;

    /// Adds flows that are not there.
    ///
    /// # Errors
    /// One was refused.
    fn insert(&mut self, flows: &[Flow<K>], now: u64) -> Result<()>;

    /// Calls `visit` with what is found.
    fn look_up(&self, worker: usize, keys: &[Tuple<K>], visit: impl FnMut(Tail<'_>));

    /// Removes flows; how many there were.
    fn remove(&mut self, keys: &[Tuple<K>]) -> u64;

    /// Calls `visit` with every entry.
    fn sweep(&mut self, visit: impl FnMut(Tail<'_>));

    /// A worker beside the first one begins to look up.
    fn go_online(&self, _worker: usize) {}

    /// It ends.
    fn go_offline(&self, _worker: usize) {}
}

/// A subject in this process.
#[derive(Debug)]
pub struct Here<T> {
    name: &'static str,
    table: T,
}

impl<T> Here<T> {
    /// `table` under its name.
    pub fn new(name: &'static str, table: T) -> Self {
        Self { name, table }
    }

    /// The table.
    pub fn into_table(self) -> T {
        self.table
    }
}

fn look_up<const K: usize, T: FlowTable<K>>(
    table: &T,
    worker: usize,
    keys: &[Tuple<K>],
    now: u64,
) -> Tally {
    let mut tally = Tally::default();
    table.look_up(worker, keys, |tail| {
        tally.add(tail.state(), 0);
        tail.update(now);
    });
    tally
}

/// What this thread has used of its core so far, the kernel's work for it included. A neighbour's
/// turn on the core is not a table's cost.
///
/// # Errors
/// The kernel has no such clock.
pub fn own_time() -> Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("this thread's clock")?;
    Ok(time.into())
}

fn timed<T>(run: impl FnOnce() -> T) -> Result<(Duration, T)> {
    let started = own_time()?;
    let done = run();
    Ok((own_time()?.saturating_sub(started), done))
}

impl<const K: usize, T: FlowTable<K>> Subject<K> for Here<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn insert(&mut self, flows: &[Flow<K>], now: u64) -> Result<Duration> {
        let (time, inserted) = timed(|| self.table.insert(flows, now))?;
        inserted.map(|()| time)
    }

    fn look_up(&mut self, keys: &[Tuple<K>], now: u64) -> Result<Timed> {
        timed(|| look_up(&self.table, 0, keys, now))
    }

    fn remove(&mut self, keys: &[Tuple<K>]) -> Result<Timed> {
        let (time, found) = timed(|| self.table.remove(keys))?;
        Ok((time, Tally { found, ..Tally::default() }))
    }

    fn sweep(&mut self, now: u64) -> Result<Timed> {
        let mut tally = Tally::default();
        let (time, ()) = timed(|| {
            self.table.sweep(|tail| {
                if tail.deadline() >= now {
                    tally.add(tail.state(), 0);
                }
            });
        })?;
        Ok((time, tally))
    }

    fn share(
        &mut self,
        keys: [&[Tuple<K>]; WORKERS],
        cores: [CpuId; WORKERS],
        now: u64,
    ) -> Result<Option<Timed>> {
        if !T::SHAREABLE {
            return Ok(None);
        }
        let tables = [&self.table, &self.table];
        in_parallel(tables, keys, cores, now).map(Some)
    }

    fn audit(&mut self, keys: &[Tuple<K>]) -> Result<Tally> {
        let mut tally = Tally::default();
        self.table.look_up(0, keys, |tail| tally.add(tail.state(), tail.packets()));
        Ok(tally)
    }
}

/// Two workers look up at once, each in its table, which may be the same.
pub fn in_parallel<const K: usize, T: FlowTable<K>>(
    tables: [&T; WORKERS],
    keys: [&[Tuple<K>]; WORKERS],
    cores: [CpuId; WORKERS],
    now: u64,
) -> Result<Timed> {
    let barrier = Barrier::new(WORKERS);
    let work = |worker: usize| -> Result<(Instant, Instant, Tally)> {
        let pinned = pin_current_thread(cores[worker]);
        tables[worker].go_online(worker);
        barrier.wait();
        let started = Instant::now();
        let tally = look_up(tables[worker], worker, keys[worker], now);
        let ended = Instant::now();
        if worker > 0 {
            tables[worker].go_offline(worker);
        }
        pinned?;
        Ok((started, ended, tally))
    };
    let results = thread::scope(|scope| {
        let threads = [0, 1].map(|worker| scope.spawn(move || work(worker)));
        threads.map(thread::ScopedJoinHandle::join)
    });
    let mut all: Option<(Instant, Instant, Tally)> = None;
    for result in results {
        let Ok(result) = result else { bail!("a worker panicked") };
        let (started, ended, tally) = result?;
        all = Some(all.map_or((started, ended, tally), |(first, last, mut sum)| {
            sum.found += tally.found;
            sum.states = sum.states.wrapping_add(tally.states);
            (first.min(started), last.max(ended), sum)
        }));
    }
    let (first, last, tally) = all.context("no worker ran")?;
    Ok((last.duration_since(first), tally))
}
