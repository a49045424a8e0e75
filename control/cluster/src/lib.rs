//! The cluster as a node follows it. Everything here is asynchronous and may be slow, hang or fail;
//! what was last sent through the [`feed`] stays in force meanwhile.
//!
//! Reading order: [`resource`] (what is followed), [`feed`] (what a source says, and how a node takes
//! it), [`client`] (the servers, and how they are reached), `list_watch` (one kind, for ever),
//! [`kept`] (what of objects relays pass on), [`decode`] (one object of theirs), `hold` (losses that are not believed at once),
//! [`follow`] (what they say becomes what is in force), [`compact`] (objects as few bytes),
//! [`snapshot`] (what was last in force, on disk), [`serve`] (the list and watch protocol, served),
//! [`relay`] (between API servers and nodes).
#![forbid(unsafe_code)]

pub mod client;
pub mod compact;
pub mod decode;
pub mod feed;
pub mod follow;
mod hold;
pub mod kept;
mod list_watch;
pub mod relay;
pub mod resource;
pub mod serve;
pub mod snapshot;
