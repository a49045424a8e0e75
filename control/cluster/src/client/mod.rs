//! The servers that a node follows, and how they are reached.
//!
//! Reading order: [`access`] (which servers, as whom; decided once, at start), [`servers`] (which of
//! them is asked now), `spoilers` (which of them last, for one kind), [`server`] (one of them),
//! `connection` (how it is connected to), [`timed`] (an answer that may not pause for ever), [`error`].
//!
//! Each server is reached by a [`kube::Client`] of its own: TLS, the authority's file and the token's,
//! which are read again as they rotate, kubeconfig files and plugins are kube's. What is ours is what
//! lies above: several servers in an order, the first of which that is well is asked; rest for one
//! that fails, longer each time and with jitter; and a bound on every silence.
//!
//! HTTP/1.1 is spoken, one connection for each request that is under way. With HTTP/2 all of them
//! would share one, and a stream that stalls could not be told from a connection that does.

pub mod access;
mod connection;
pub mod error;
pub mod server;
pub mod servers;
mod spoilers;
pub mod timed;

pub use access::{Access, AccessError, Credentials};
pub use error::ClientError;
pub use server::Ask;
pub use servers::{Frontends, Servers};
pub(crate) use spoilers::Spoilers;
