//! The kernel's own view of the node, followed live: links, addresses, routes, neighbours.
//!
//! Reading order: [`view`] (what is known, as pure data), [`decode`] (netlink messages to that
//! data, pure), [`follow`] (the task that keeps the view true and asks for neighbours), [`main_table`] (whose
//! routes it hears of). [`pod_ends`] asks by [`asking`] for what the view does not hold: what is at the other
//! ends of veth pairs, and [`queueing`] what `tc` has at an interface.
//!
//! It promises that the view is complete before it is first shown, that a burst of changes is
//! shown once, and that nothing is missed for good: an overrun (ENOBUFS), a broken socket or a
//! message that cannot be read leads to a full reading, and so does the passing of time. What to
//! make of the view is [`crate::forwarding_view`]'s matter.

pub mod asking;
pub mod decode;
pub mod follow;
mod main_table;
pub mod neighbours;
pub mod pod_ends;
pub mod queueing;
pub mod view;

pub use follow::{Failure, FollowCounts, Follower, NetlinkError};
pub use view::{KernelView, Link, Neighbour, RouteEntry, RouteHop, RouteKind};
