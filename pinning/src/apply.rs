//! Pins threads, and reads back that it took.

use std::io;
use std::mem;

use crate::cpu_set::{CPUS_MAX, CpuId, CpuSet};

/// Words of the affinity mask given to the kernel: room for every CPU it can number.
const MASK_WORDS: usize = CPUS_MAX as usize / WORD_BITS;
const WORD_BITS: usize = u64::BITS as usize;

type Mask = [u64; MASK_WORDS];

/// A thread could not be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The kernel refused.
    #[error("cannot pin thread `{thread}` to CPU {cpus}: {source}; is it in this cgroup's cpuset?")]
    Refused {
        /// The thread's name.
        thread: String,
        /// Where it was to run.
        cpus: CpuSet,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel accepted and did something else (a CPU went offline, a cpuset shrank).
    #[error("thread `{thread}` was to run on CPU {cpus} and may run on CPU {got}")]
    NotTaken {
        /// The thread's name.
        thread: String,
        /// Where it was to run.
        cpus: CpuSet,
        /// Where it may run.
        got: CpuSet,
    },
}

/// Pins the calling thread to one CPU, for a worker.
///
/// # Errors
/// [`PinError`] names the thread and the CPU.
pub fn pin_current_thread(cpu: CpuId) -> Result<(), PinError> {
    // core_affinity's mask is libc's cpu_set_t of 1024 CPUs and panics beyond. Its bool hides the
    // kernel's reason, so a refusal is asked for again by the call that tells it.
    if cpu.0 < 1024 && core_affinity::set_for_current(core_affinity::CoreId { id: cpu.0.into() }) {
        return verify(&CpuSet::from_iter([cpu]));
    }
    restrict_current_thread(&CpuSet::from_iter([cpu]))
}

/// Lets the calling thread run on `cpus` alone, for control threads. Threads it starts later
/// inherit the set.
///
/// # Errors
/// [`PinError`] names the thread and the CPUs.
pub fn restrict_current_thread(cpus: &CpuSet) -> Result<(), PinError> {
    let mut mask: Mask = [0; MASK_WORDS];
    for cpu in cpus.iter() {
        let bit = usize::from(cpu.0);
        if let Some(word) = mask.get_mut(bit / WORD_BITS) {
            *word |= 1 << (bit % WORD_BITS);
        }
    }
    // SAFETY: the pointer and the length in bytes describe `mask`, which lives across the call and
    // is only read by the kernel. The kernel takes masks of any length (sched_setaffinity(2));
    // libc's type is nominal.
    let status =
        unsafe { libc::sched_setaffinity(0, mem::size_of::<Mask>(), mask.as_ptr().cast()) };
    if status != 0 {
        let source = io::Error::last_os_error();
        return Err(PinError::Refused { thread: thread_name(), cpus: cpus.clone(), source });
    }
    verify(cpus)
}

/// The CPUs on which the calling thread may run.
///
/// # Errors
/// The kernel's answer; not seen in practice.
pub fn current_affinity() -> io::Result<CpuSet> {
    let mut mask: Mask = [0; MASK_WORDS];
    // SAFETY: the pointer and the length in bytes describe `mask`, which is exclusively ours and
    // lives across the call; the kernel writes at most that many bytes. Every bit pattern is a
    // valid `u64`.
    let status =
        unsafe { libc::sched_getaffinity(0, mem::size_of::<Mask>(), mask.as_mut_ptr().cast()) };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    let is_set = |cpu: &u16| {
        let bit = usize::from(*cpu);
        mask.get(bit / WORD_BITS).is_some_and(|word| word >> (bit % WORD_BITS) & 1 == 1)
    };
    Ok((0..CPUS_MAX).filter(is_set).map(CpuId).collect())
}

fn verify(cpus: &CpuSet) -> Result<(), PinError> {
    match current_affinity() {
        Ok(got) if got == *cpus => Ok(()),
        Ok(got) => Err(PinError::NotTaken { thread: thread_name(), cpus: cpus.clone(), got }),
        Err(source) => Err(PinError::Refused { thread: thread_name(), cpus: cpus.clone(), source }),
    }
}

fn thread_name() -> String {
    std::thread::current().name().unwrap_or("unnamed").to_owned()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::{current_affinity, pin_current_thread, restrict_current_thread};
    use crate::cpu_set::{CPUS_MAX, CpuId, CpuSet};

    /// Pins threads of their own, so that other tests keep their affinity.
    fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| scope.spawn(work).join().expect("no panic"))
    }

    #[test]
    fn pinned_thread_runs_on_its_cpu_alone() {
        for cpu in current_affinity().expect("an affinity").iter() {
            let got = on_a_thread(|| {
                pin_current_thread(cpu).expect("to be pinned");
                current_affinity().expect("an affinity")
            });
            assert_eq!(got, CpuSet::from_iter([cpu]));
        }
    }

    #[test]
    fn pinned_thread_can_be_widened_again() {
        let all = current_affinity().expect("an affinity");
        let first = all.iter().next().expect("a CPU");
        on_a_thread(|| {
            pin_current_thread(first).expect("to be pinned");
            restrict_current_thread(&all).expect("to be widened");
            assert_eq!(current_affinity().expect("an affinity"), all);
        });
    }

    #[test]
    fn absent_cpu_and_empty_set_are_refused_by_name() {
        on_a_thread(|| {
            let error = pin_current_thread(CpuId(CPUS_MAX - 1)).expect_err("no such CPU");
            assert!(error.to_string().contains("CPU 8191"), "{error}");
            assert!(restrict_current_thread(&CpuSet::default()).is_err());
        });
    }
}
