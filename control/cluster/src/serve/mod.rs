//! The Kubernetes list and watch protocol, served: lists in pages, watches from a resourceVersion,
//! bookmarks, streaming lists, and 410 where the history does not reach. What the API server does
//! beyond it (writes, discovery, tables, protobuf) is left out.
//!
//! Objects are kept as the bytes they are sent as, encoded once and shared by all watchers. A
//! watcher has no queue: it reads one bounded history by a place of its own, and is ended and
//! counted when the history has left it behind. Lists hold no copy either: they are sent piece by
//! piece, as of the resourceVersion they began with, by undoing what came since.
//!
//! Reading order: [`object`] (bytes), [`store`] (objects and history), [`request`] and
//! [`selector`] (what is asked), [`list`] and [`watch`] (answers), [`status`] (refusals),
//! [`server`] (connections) with [`guard`] (those that do not read), [`counts`].

mod counts;
mod guard;
mod list;
pub(crate) mod object;
mod request;
mod selector;
mod server;
mod status;
mod store;
mod watch;

#[cfg(test)]
mod tests;

pub use counts::Counts;
pub(crate) use object::Stored;
pub use object::{Encoded, InvalidValue, mark};
pub use server::{
    Access, Answer, AnswerBody, Denied, Layer, Limits, ListenError, Options, Page, Pages, Server,
    Writes, start,
};
pub use status::Failure;
pub use store::{HistoryLimits, Replaced, Store, StoreCounts};
