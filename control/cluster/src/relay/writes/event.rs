//! An Event on the wire (Kubernetes API, `events.k8s.io/v1`).
//!
//! Its name is made of what it says, so that every relay names it alike: a leader that finds it
//! there goes on with it, and needs no right to read others'.

use std::fmt::Write as _;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::reason::Reason;
use super::time;

/// Who reports, as Events state it.
pub const CONTROLLER: &str = "xskiff.io/relay";
/// Longest note (Kubernetes validation of Events).
const NOTE_BYTES_MAX: usize = 1024;
/// Longest name of the reporting instance (the same).
const INSTANCE_BYTES_MAX: usize = 128;
/// Of an object's name in the Event's, which has 253 at most with its dot and number.
const NAME_BYTES: usize = 253 - 17;
/// Events about objects of the cluster lie there.
const NAMESPACE_OF_CLUSTER: &str = "default";

/// What an Event is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Regarding {
    /// `Pod`.
    pub kind: &'static str,
    /// `v1`.
    pub api_version: String,
    /// Empty for kinds of the cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, if it is known.
    pub uid: Option<String>,
}

/// One Event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) regarding: Regarding,
    pub(super) reason: Reason,
    pub(super) note: String,
    /// When it was first seen.
    pub(super) first: Timestamp,
}

impl Event {
    /// Where Events of its namespace are.
    pub(super) fn collection(&self) -> String {
        format!("/apis/events.k8s.io/v1/namespaces/{}/events", self.namespace())
    }

    /// Where it is itself.
    pub(super) fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name())
    }

    fn namespace(&self) -> &str {
        match &*self.regarding.namespace {
            "" => NAMESPACE_OF_CLUSTER,
            namespace => namespace,
        }
    }

    fn name(&self) -> String {
        let Regarding { kind, namespace, name, uid, .. } = &self.regarding;
        // What happens again is another Event, what is still so is the same one.
        let time = if self.reason.lasts { String::new() } else { self.first.to_string() };
        let uid = uid.as_deref().unwrap_or_default();
        let mut hash = Sha256::new();
        for part in [kind, namespace.as_str(), name, uid, self.reason.name, &self.note, &time] {
            hash.update(part);
            hash.update([0]);
        }
        let mut text = cut(name, NAME_BYTES).trim_end_matches(['-', '.']).to_owned();
        text.push('.');
        for byte in hash.finalize().iter().take(8) {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// The object, as it is created; `count`: how often it was seen.
    pub(super) fn object(&self, instance: &str, count: u32, last: Timestamp) -> Value {
        let Regarding { kind, api_version, namespace, name, uid } = &self.regarding;
        let mut regarding = json!({ "kind": kind, "apiVersion": api_version, "name": name });
        if !namespace.is_empty() {
            regarding["namespace"] = json!(namespace);
        }
        if let Some(uid) = uid {
            regarding["uid"] = json!(uid);
        }
        let mut event = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": { "name": self.name(), "namespace": self.namespace() },
            "eventTime": time(self.first),
            "reportingController": CONTROLLER,
            "reportingInstance": cut(instance, INSTANCE_BYTES_MAX),
            "action": self.reason.action,
            "reason": self.reason.name,
            "regarding": regarding,
            "note": cut(&self.note, NOTE_BYTES_MAX),
            "type": self.reason.type_,
        });
        // A series has two at least.
        if count > 1 {
            event["series"] = series(count, last);
        }
        event
    }

    /// What is changed of it: all else stays as it was created.
    pub(super) fn patch(count: u32, last: Timestamp) -> Value {
        json!({ "series": series(count, last) })
    }
}

fn series(count: u32, last: Timestamp) -> Value {
    // An i32 on the wire.
    json!({ "count": count.min(i32::MAX.unsigned_abs()), "lastObservedTime": time(last) })
}

/// How often an Event was seen that servers gave.
pub(super) fn count_of(event: &[u8]) -> u32 {
    let count = serde_json::from_slice::<Value>(event).ok();
    let count = count.and_then(|event| event.pointer("/series/count")?.as_u64());
    count.and_then(|count| u32::try_from(count).ok()).unwrap_or(1).max(1)
}

fn cut(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::reason::{LIST_HELD, UNKNOWN_FIELD};
    use super::*;

    fn event(name: &str, reason: Reason) -> Event {
        let regarding = Regarding {
            kind: "NetworkPolicy",
            api_version: "networking.k8s.io/v1".into(),
            namespace: "shop".into(),
            name: name.into(),
            uid: Some("u-1".into()),
        };
        Event { regarding, reason, note: "é".repeat(1000), first: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn every_relay_names_what_lasts_alike_and_what_happens_by_its_time() {
        let (own, mut later) = (event("deny", UNKNOWN_FIELD), event("deny", UNKNOWN_FIELD));
        later.first = Timestamp::from_second(77).unwrap();
        assert_eq!(own.path(), later.path());
        assert!(own.path().starts_with("/apis/events.k8s.io/v1/namespaces/shop/events/deny."));
        later.note = "another".into();
        assert_ne!(own.path(), later.path());
        let (once, mut again) = (event("deny", LIST_HELD), event("deny", LIST_HELD));
        again.first = Timestamp::from_second(77).unwrap();
        assert_ne!(once.path(), again.path());
    }

    #[test]
    fn whatever_an_object_is_called_the_event_keeps_its_bounds() {
        let long = "a.".repeat(126) + "b";
        let event = event(&long, UNKNOWN_FIELD);
        let object = event.object(&"i".repeat(300), 1, event.first);
        let text = |pointer: &str| object.pointer(pointer).unwrap().as_str().unwrap();
        assert!(text("/metadata/name").len() <= 253 && !text("/metadata/name").contains(".."));
        assert_eq!((text("/note").len(), text("/reportingInstance").len()), (1024, 128));
        assert_eq!(text("/eventTime"), "1970-01-01T00:00:00.000000Z");
        assert_eq!(text("/regarding/uid"), "u-1");
        assert!(object.get("series").is_none(), "one is no series");
        let many = event.object("a", 3, event.first);
        assert_eq!(count_of(many.to_string().as_bytes()), 3);
        assert_eq!(count_of(object.to_string().as_bytes()), 1);
    }

    #[test]
    fn events_about_objects_of_the_cluster_lie_in_the_default_namespace() {
        let mut event = event("n1", UNKNOWN_FIELD);
        event.regarding.namespace = String::new();
        assert!(event.collection().ends_with("/namespaces/default/events"));
        let object = event.object("a", 1, event.first);
        assert!(object["regarding"].get("namespace").is_none());
    }
}
