//! The plugin's place in the container runtime's configuration: put there, kept there, and taken out
//! again.
//!
//! A runtime uses the first file of its configuration directory, a conflist, and calls its plugins in
//! order. Ours comes last. The file is another program's (the primary plugin's), which may rewrite it at
//! any time; of its text only our own entry is ever touched.
//!
//! Reading order: [`conflist`] (pure: text in, text out), [`files`] (finds and replaces them),
//! [`keeper`] (looks after them while the node runs).

pub mod conflist;
pub mod files;
pub mod keeper;

/// The plugin, as a configuration and its directory name it.
pub const PLUGIN: &str = "xskiff-cni";
