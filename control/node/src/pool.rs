//! Threads of the control side for what the kernel makes wait: closing a socket takes it 8 to 16
//! milliseconds (a grace period of RCU), so that the control thread would be away for 8 s when 500 pods of
//! two queues go. Waiting costs no CPU, and the waits of several threads overlap.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

/// What threads and whoever gives them work share.
#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    ready: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Jobs that a thread has taken and not finished.
    running: usize,
    is_over: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // No job runs under the lock, so none can leave the queue half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None` once the pool is over and nothing waits.
    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                queue.running += 1;
                return Some(job);
            }
            if queue.is_over {
                return None;
            }
            queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A fixed number of threads that do jobs in the order in which they were given. Whoever gives them
/// bounds how many there are. Dropping it waits until all are done.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// `threads` of them, each of which runs `begin` first (to give up privileges). Where the kernel
    /// refuses some, those that there are do the work; without any, [`Self::give`] does it itself.
    #[must_use]
    pub fn new(name: &str, threads: usize, begin: fn()) -> Self {
        let shared = Arc::new(Shared::default());
        let spawn = |number| {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name(format!("{name}-{number}"));
            let spawned = thread.spawn(move || {
                begin();
                work(&shared);
            });
            let told = spawned.inspect_err(|error| tracing::warn!(name, %error, "a thread less"));
            told.ok()
        };
        let threads = (0..threads).filter_map(spawn).collect();
        Self { shared, threads }
    }

    /// Has `job` done by some thread.
    pub fn give(&self, job: impl FnOnce() + Send + 'static) {
        if self.threads.is_empty() {
            return job();
        }
        self.shared.lock().jobs.push_back(Box::new(job));
        self.shared.ready.notify_one();
    }

    /// Jobs that are not done.
    #[must_use]
    pub fn pending(&self) -> usize {
        let queue = self.shared.lock();
        queue.jobs.len() + queue.running
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.ready.notify_all();
        for thread in self.threads.drain(..) {
            // A job that panicked was told of by the panic itself.
            let _ = thread.join();
        }
    }
}

fn work(shared: &Shared) {
    while let Some(job) = shared.next() {
        // One bad job must not take a thread from the others.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
            tracing::error!("a job of the control side panicked; its message is above");
        }
        shared.lock().running -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn waits_overlap_and_dropping_waits_for_all() {
        let done = Arc::new(AtomicUsize::new(0));
        let pool = Pool::new("test", 8, || {});
        let began = Instant::now();
        for _ in 0..32 {
            let done = Arc::clone(&done);
            pool.give(move || {
                std::thread::sleep(Duration::from_millis(50));
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        assert!(pool.pending() > 0);
        drop(pool);
        assert_eq!(done.load(Ordering::SeqCst), 32);
        assert!(began.elapsed() < Duration::from_millis(32 * 50 / 2), "{:?}", began.elapsed());
    }

    #[test]
    fn a_job_that_panics_takes_no_thread_with_it() {
        let done = Arc::new(AtomicUsize::new(0));
        let pool = Pool::new("test", 1, || {});
        pool.give(|| panic!("as the test wants it"));
        let also = Arc::clone(&done);
        pool.give(move || {
            also.fetch_add(1, Ordering::SeqCst);
        });
        drop(pool);
        assert_eq!(done.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn without_threads_the_work_is_done_all_the_same() {
        let done = Arc::new(AtomicUsize::new(0));
        let pool = Pool::new("test", 0, || {});
        let also = Arc::clone(&done);
        pool.give(move || {
            also.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!((done.load(Ordering::SeqCst), pool.pending()), (1, 0));
    }
}
