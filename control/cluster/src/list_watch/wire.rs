//! What servers send, as far as a follower reads it: pages of lists, events of watches, metadata and
//! refusals (Kubernetes API concepts, "Efficient detection of changes" and "Retrieving large results
//! sets in chunks"). Objects stay the text that they are.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Objects of a page of a list.
pub(crate) const PAGE: usize = 500;
/// Longest page: as many objects of the largest that etcd takes would have more, and are not met.
pub(crate) const PAGE_BYTES_MAX: usize = 256 << 20;
/// Marks the bookmark that ends a streamed list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// One event of a watch (`metav1.WatchEvent`).
#[derive(Deserialize)]
pub(crate) struct Event<'a> {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`.
    #[serde(rename = "type")]
    pub(crate) kind: &'a str,
    /// The object, or a [`Status`].
    #[serde(borrow)]
    pub(crate) object: &'a RawValue,
}

/// One page of a list.
#[derive(Deserialize)]
pub(crate) struct Page<'a> {
    /// Its resourceVersion, and where the rest is.
    pub(crate) metadata: Metadata,
    /// Servers say `null` for none. An answer without them is no list, which would be an empty one.
    #[serde(borrow, deserialize_with = "present")]
    pub(crate) items: Option<Vec<&'a RawValue>>,
}

/// A field that may be `null`, and is not left out.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<&'de RawValue>>, D::Error> {
    Option::deserialize(from)
}

/// As much of an object's or a list's metadata as is needed to name it and to go on from it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metadata {
    /// `metadata.name`.
    pub(crate) name: Option<String>,
    /// `metadata.namespace`.
    pub(crate) namespace: Option<String>,
    /// `metadata.uid`.
    pub(crate) uid: Option<String>,
    /// `metadata.resourceVersion`.
    pub(crate) resource_version: Option<String>,
    /// `metadata.annotations`.
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    /// `metadata.continue` of a list's page that is not the last.
    #[serde(rename = "continue")]
    pub(crate) rest: Option<String>,
}

impl Metadata {
    /// Whether a bookmark with this metadata ends a streamed list.
    pub(crate) fn ends_initial_events(&self) -> bool {
        let annotations = self.annotations.as_ref();
        annotations
            .is_some_and(|all| all.get(INITIAL_EVENTS_END).is_some_and(|value| value == "true"))
    }
}

#[derive(Debug, Default, Deserialize)]
struct OnlyMetadata {
    metadata: Option<Metadata>,
}

/// The object's metadata, whatever the rest of it is.
pub(crate) fn metadata(text: &RawValue) -> Option<Metadata> {
    serde_json::from_str::<OnlyMetadata>(text.get()).ok()?.metadata
}

/// What a server says on refusal (`metav1.Status`).
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Status {
    /// The HTTP status.
    pub(crate) code: Option<u16>,
    /// For people.
    pub(crate) message: Option<String>,
}

/// The groups that a server has beside the core (`metav1.APIGroupList`).
#[derive(Debug, Deserialize)]
pub(crate) struct Groups {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
struct Group {
    name: String,
}

impl Groups {
    /// Longest answer: servers with a thousand groups say a tenth of it.
    pub(crate) const BYTES_MAX: usize = 4 << 20;

    pub(crate) fn have(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own.name == group)
    }
}

/// A value of a query.
pub(crate) fn escaped(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
