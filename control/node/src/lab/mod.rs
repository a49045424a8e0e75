//! A laboratory of network namespaces: a node, pods and clients on one machine, with real links.
//!
//! The demo, the namespace tests and the performance harness stand on it. It promises that what it
//! makes goes away again: on drop, on a panic that unwinds, on SIGINT and SIGTERM (after
//! [`remove_on_signal`]), and, when a run was killed, at the start of the next [`Laboratory::new`].
//! It names everything by the process that made it, touches nothing it did not make, and leaves
//! the machine's own network namespace as it is.
//!
//! Traffic comes from [`agent`]s: this program run again inside a namespace, reporting JSON lines.
//!
//! Reading order: [`Laboratory`], [`Namespace`], [`link`] (veth pairs), [`Process`] and [`Agent`]
//! (children), [`registry`] (what must be removed), and [`agent`] (what the children do).

pub mod agent;
mod command;
mod error;
mod laboratory;
pub mod link;
mod namespace;
mod process;
pub mod registry;

pub use error::LabError;
pub use laboratory::{Laboratory, wait_until};
pub use namespace::{ForwardCounters, Namespace, Ping};
pub use process::{Agent, Process, Stamped};
pub use registry::{base_directory, remove_on_signal};
