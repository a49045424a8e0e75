//! The cluster as a node follows it. Everything here is asynchronous and may be slow, hang or fail;
//! what was last sent through the [`feed`] stays in force meanwhile.
//!
//! Reading order: [`feed`] (what a source says, and how a node takes it).
#![forbid(unsafe_code)]

pub mod feed;
