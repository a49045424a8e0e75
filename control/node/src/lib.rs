//! The node process: everything with a side effect, composed around the pure crates.
//!
//! Reading order: [`netlink`] (the kernel's view) and [`forwarding_view`] (what the pipeline is
//! told of it), [`host_port`] (the way to the node's own stack), [`host_sockets`] and [`kube_proxy`] (who is
//! in the way there), [`ports`] ([`live_ways`]: which of them are sent live frames; [`leaving`]: once they are none any more, on threads of a [`pool`]), [`workers`] (threads and their flow tables, whose [`rate`] of filling is told),
//! [`admin_server`] and [`http`] (the ways to ask), [`privileges`] and [`supervisor`] (what the process
//! may do, and who ends it), [`metrics`] (what is told), [`cli`] (how people ask), [`cni`] (the plugin's
//! place in the container runtime's configuration); and beside all that [`relay`] (for many nodes),
//! [`preflight`] (will this machine do), [`lab`] (network namespaces to try it in) and [`demo`] (the
//! trial itself).
#![forbid(unsafe_code)]

pub mod admin_server;
pub mod cli;
pub mod cni;
pub mod demo;
pub mod forwarding_view;
pub mod health_checks;
pub mod host_port;
pub mod host_sockets;
pub mod http;
pub mod kube_proxy;
pub mod lab;
pub mod leaving;
pub mod live_ways;
pub mod metrics;
pub mod netlink;
pub mod node;
pub mod offloads;
pub mod ours;
pub mod pod_netns;
pub mod pool;
pub mod ports;
pub mod preflight;
pub mod privileges;
pub mod rate;
pub mod relay;
pub mod supervisor;
pub mod workers;
