//! Where threads, interrupts and memory live: the machine's topology, the plan and its application.
//!
//! Reading order: [`cpu_set`] (lists of CPUs as the kernel writes them), [`topology`] (what the
//! machine has and what this process may use), [`plan`] (pure: which worker on which CPU, and why),
//! [`apply`] (pins threads), [`interrupts`] (moves an interface's interrupts, and back),
//! [`memory`] (huge pages), [`memory_file`] (memory that outlives the process), [`own_directory`] (where
//! that may lie), [`peek`] (a look at another process's), [`growing`] (memory that is taken before
//! it is used), [`machine_memory`] (how much there is), [`limits`] (what the kernel lets this process have).
//!
//! This crate is a leaf: it knows nothing of packets. It promises that nothing is believed because
//! it was asked for: affinity, interrupts and page kinds are read back or verified by the kernel.

pub mod apply;
pub mod cpu_set;
pub mod growing;
pub mod interrupts;
pub mod limits;
pub mod machine_memory;
pub mod memory;
pub mod memory_file;
pub mod own_directory;
pub mod peek;
pub mod plan;
pub mod topology;

pub use cpu_set::{CpuId, CpuSet};
