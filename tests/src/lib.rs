//! What the tests stand on: frames, a small cluster as tables, a whole node in memory, a naive
//! judge of NetworkPolicy, and an API server with faults.
#![forbid(unsafe_code)]

pub mod cluster_server;
pub mod link_frames;
pub mod memory_ports;
pub mod packet_builder;
pub mod policy_model;
pub mod random;
pub mod seccomp_profile;
pub mod simulation;
pub mod world;
pub mod xskiff_binary;
