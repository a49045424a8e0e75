//! The chained CNI plugin: it stands behind a plugin that gave a pod a veth pair, and tells the node
//! process of it. It does nothing that the node can do: no interface is changed here, and no packet
//! seen.
//!
//! Reading order: [`version`], [`error`], [`environment`] and [`configuration`] (what the container
//! runtime says), [`previous`] (what the plugins before have done), [`link`] (which interfaces that
//! is in the kernel), [`node`] (asks the node process), [`admitted`] (leaves word for one that is not
//! there), [`command`] (what is done for each verb), [`log`].
//!
//! Of the node it knows the admin protocol and nothing else.
#![forbid(unsafe_code)]

pub mod admitted;
pub mod command;
pub mod configuration;
pub mod environment;
pub mod error;
pub mod link;
pub mod log;
pub mod node;
pub mod previous;
pub mod version;

pub use command::{Outcome, run};
pub use error::CniError;

/// What the container runtime finds the plugin by: `type` in a configuration, and the file's name.
pub const PLUGIN: &str = "xskiff-cni";
