//! The kernel's own view of the node, followed live: links, addresses, routes, neighbours.
//!
//! Reading order: [`view`] (what is known, as pure data), [`decode`] (netlink messages to that
//! data, pure), [`follow`] (the task that keeps the view true and asks for neighbours), [`main_table`] (whose
//! routes it hears of).
//!
//! It promises that the view is complete before it is first shown, that a burst of changes is
//! shown once, and that nothing is missed for good: an overrun (ENOBUFS), a broken socket or a
//! message that cannot be read leads to a full reading, and so does the passing of time. What to
//! make of the view is [`crate::forwarding_view`]'s matter.

pub mod decode;
pub mod follow;
mod main_table;
pub mod neighbours;
pub mod view;

pub use follow::{Failure, FollowCounts, Follower, NetlinkError};
pub use view::{KernelView, Link, Neighbour, RouteEntry, RouteHop, RouteKind};
