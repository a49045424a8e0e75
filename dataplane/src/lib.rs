//! The pure packet core: bytes, tables and a time go in; verdicts come out.
//!
//! Nothing here does I/O, reads a clock, spawns a thread or allocates after start, so a trace of
//! packets replays to the same verdicts on any machine.
//!
//! Reading order: [`wire`] (checked views of headers) and [`packet`] (what a frame means), then
//! [`tables`] (everything the control thread publishes), then [`pipeline`] (the order of the
//! stages, on one screen), and last [`worker`], which drives the pipeline over [`port`]s.
#![forbid(unsafe_code)]
#![deny(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

pub mod address;
pub mod address_hash;
pub mod address_map;
pub mod affinity;
mod anticipation;
pub mod buffer;
pub mod capture;
pub mod charge;
pub mod choice;
mod claims;
pub mod connections;
pub mod conntrack;
mod context;
pub mod counters;
pub mod decision;
pub mod direct;
pub mod drop_reason;
pub mod epochs;
pub mod event;
pub mod eviction;
pub mod expiry;
mod fate;
pub mod flow;
pub mod flow_ends;
pub mod flow_key;
pub mod flows;
pub mod forwarding;
pub mod fragment;
pub mod handoff;
pub mod icmp;
pub mod identity;
mod known;
pub mod lb;
pub mod lpm;
pub mod mailbox;
pub mod memory;
pub mod mss;
pub mod nat;
pub mod nat64;
mod opening;
pub mod pacing;
pub mod packet;
mod path_mtu;
pub mod pipeline;
pub mod policy;
pub mod port;
mod related;
pub mod reset;
pub mod rewrite;
pub mod segments;
pub mod shared_map;
pub mod table_map;
pub mod tables;
pub mod take_over;
pub mod time;
pub mod wire;
pub mod worker;

pub use drop_reason::DropReason;
