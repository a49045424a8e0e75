//! The CNI plugin behind real plugins (Debian's `containernetworking-plugins`), in front of a real
//! node, in network namespaces made for it; and against nodes that are not there, hang or lie.
//!
//! Reading order: [`driver`] (a container runtime, as far as plugins see it), [`cluster`] (a node and
//! namespaces for pods), then what is shown.
#![forbid(unsafe_code)]

mod absent_nodes;
mod at_once;
mod bad_input;
mod bypassed;
mod chains;
mod cluster;
mod codes;
mod configurations;
mod driver;
mod golden;
mod installing;
mod interrupted;
mod life;
mod restarting;
mod starting;
