//! One object as an API server sends it, reduced to the model at once.
//!
//! One bad object never spoils another: what cannot be read is refused by its name. Fields that we
//! do not know are normal, since a server may be newer than we are; only a NetworkPolicy's close
//! what they stand in.

use control::model::read::{UnknownFields, network_policy_closed, object};
use control::model::{Kind, Object, ObjectName};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::resource::Resource;

/// Largest object, in bytes of JSON. An API server takes requests of at most 3 MiB, and etcd 1.5 MiB
/// (etcd's `--max-request-bytes`); nothing that says something about the network is near it.
pub const OBJECT_BYTES_MAX: usize = 1 << 20;
/// Labels of an object, at most.
pub const LABELS_MAX: usize = 1000;
/// Fields that are named of one object.
const FIELDS_TOLD: usize = 8;

/// What became of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Decoded {
    /// It is understood.
    Good(Object),
    /// A NetworkPolicy with fields that we do not know: it allows less than it says.
    Closed {
        /// What is left of it.
        object: Object,
        /// Which fields, and what that means.
        why: String,
    },
    /// A NetworkPolicy that nobody could read as it stands: what is left of it is for want of a
    /// version that was better.
    Unreadable {
        /// What is left of it.
        object: Object,
        /// What is wrong.
        why: String,
    },
    /// It cannot be read.
    Refused {
        /// Its name, if at least that could be read.
        name: Option<ObjectName>,
        /// What is wrong.
        why: String,
    },
}

/// An object's name; what else it has is passed by and kept nowhere, however large it is.
#[derive(Deserialize)]
struct Named {
    metadata: Names,
}

#[derive(Deserialize)]
struct Names {
    name: Option<String>,
    namespace: Option<String>,
}

/// The object's name, whatever the rest of it is.
#[must_use]
pub fn name(kind: Kind, text: &RawValue) -> Option<ObjectName> {
    let named: Named = serde_json::from_str(text.get()).ok()?;
    let Names { name, namespace } = named.metadata;
    let namespace = if Resource::of(kind).namespaced { namespace? } else { String::new() };
    Some(ObjectName::new(namespace, name?))
}

/// Reads one object.
#[must_use]
pub fn decode(kind: Kind, text: &RawValue) -> Decoded {
    let bytes = text.get().len();
    let refused = |why: String| Decoded::Refused { name: name(kind, text), why };
    if bytes > OBJECT_BYTES_MAX {
        let why = format!(
            "has {bytes} bytes, more than the {OBJECT_BYTES_MAX} that are read: shorten its \
             annotations or split it"
        );
        return match kind {
            Kind::NetworkPolicy => unread_policy(text, why),
            _ => refused(why),
        };
    }
    if kind == Kind::NetworkPolicy {
        return policy(text);
    }
    let mut from = serde_json::Deserializer::from_str(text.get());
    match object(kind, &mut from, UnknownFields::PassBy) {
        Ok(object) => match labels(&object) {
            count if count > LABELS_MAX => {
                refused(format!("has {count} labels, more than the {LABELS_MAX} that are read"))
            }
            _ => Decoded::Good(object),
        },
        Err(error) => refused(error.to_string()),
    }
}

fn labels(object: &Object) -> usize {
    match object {
        Object::Namespace(namespace) => namespace.labels.len(),
        Object::Pod(pod) => pod.labels.len(),
        _ => 0,
    }
}

fn policy(text: &RawValue) -> Decoded {
    let closed = serde_json::from_str::<Value>(text.get())
        .map_err(|error| error.to_string())
        .and_then(|document| network_policy_closed(&document).map_err(|error| error.to_string()));
    let closed = match closed {
        Ok(closed) => closed,
        Err(why) => return unread_policy(text, why),
    };
    let object = Object::from(closed.policy);
    match (closed.invalid.as_slice(), closed.unknown.as_slice()) {
        ([], []) => Decoded::Good(object),
        ([], unknown) => Decoded::Closed {
            object,
            why: format!(
                "unknown field {}: what is not understood allows nothing; use a version of xskiff \
                 that knows it, or remove it",
                told(unknown)
            ),
        },
        (invalid, _) => Decoded::Unreadable { object, why: told(invalid) },
    }
}

/// A NetworkPolicy of which nothing but the name is read: whom it isolates nobody knows, so that it is
/// everybody of its namespace, in both directions.
fn unread_policy(text: &RawValue, why: String) -> Decoded {
    let name = name(Kind::NetworkPolicy, text);
    let metadata = |name: &ObjectName| json!({ "name": *name.name, "namespace": *name.namespace });
    let document = name.as_ref().map(|name| json!({ "metadata": metadata(name) }));
    match document.map(|document| network_policy_closed(&document)) {
        Some(Ok(closed)) => Decoded::Unreadable { object: closed.policy.into(), why },
        _ => Decoded::Refused { name, why },
    }
}

fn told(fields: &[String]) -> String {
    let mut told = fields.iter().take(FIELDS_TOLD).cloned().collect::<Vec<_>>().join(", ");
    if let Some(more) = fields.len().checked_sub(FIELDS_TOLD).filter(|more| *more > 0) {
        told += &format!(" and {more} more");
    }
    told
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn raw(value: &Value) -> Box<RawValue> {
        RawValue::from_string(value.to_string()).unwrap()
    }

    fn refusal(kind: Kind, value: &Value) -> (Option<ObjectName>, String) {
        match decode(kind, &raw(value)) {
            Decoded::Refused { name, why } => (name, why),
            other => panic!("{other:?}"),
        }
    }

    fn pod(labels: Value) -> Value {
        json!({"metadata": {"name": "a", "namespace": "shop", "labels": labels, "managedFields": [{}]},
               "spec": {"containers": [], "fromTheFuture": 1}, "status": {"podIP": "10.1.0.5"}})
    }

    #[test]
    fn a_pod_of_a_newer_server_is_good() {
        assert!(matches!(decode(Kind::Pod, &raw(&pod(json!({})))), Decoded::Good(Object::Pod(_))));
    }

    #[test]
    fn what_is_too_large_or_has_absurd_labels_is_refused_by_name() {
        let shop_a = Some(ObjectName::new("shop", "a"));
        let mut large = pod(json!({}));
        large["metadata"]["annotations"] = json!({"x": "y".repeat(OBJECT_BYTES_MAX)});
        let (name, why) = refusal(Kind::Pod, &large);
        assert_eq!(name, shop_a);
        assert!(why.contains("bytes") && why.len() < 200, "{why}");
        let many: serde_json::Map<_, _> =
            (0..=LABELS_MAX).map(|number| (format!("l{number}"), json!("v"))).collect();
        assert_eq!(refusal(Kind::Pod, &pod(Value::Object(many))).0, shop_a);
        let (name, why) = refusal(Kind::Pod, &pod(json!({"a": "b".repeat(300_000)})));
        assert_eq!(name, shop_a);
        assert!(why.contains("label") && why.len() < 800, "{why}");
    }

    #[test]
    fn a_policy_that_is_too_large_or_too_deep_to_be_read_isolates_its_whole_namespace() {
        let policy = |port: Value, note: String| {
            json!({"metadata": {"name": "p", "namespace": "shop", "annotations": {"x": note}},
                   "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
                            "ingress": [{"ports": [{"port": port}]}]}})
        };
        let deep = (0..200).fold(json!(80), |inner, _| json!([inner]));
        let large = policy(json!(80), "y".repeat(OBJECT_BYTES_MAX));
        for (document, told) in [(large, "bytes"), (policy(deep, String::new()), "recursion")] {
            let Decoded::Unreadable { object: Object::NetworkPolicy(own), why } =
                decode(Kind::NetworkPolicy, &raw(&document))
            else {
                panic!("{told}: it is not in force")
            };
            assert!(why.contains(told) && why.len() < 200, "{why}");
            assert_eq!(own.name, ObjectName::new("shop", "p"));
            assert_eq!(own.subject, control::model::LabelSelector::default());
            assert_eq!((&own.ingress, &own.egress), (&Some(Vec::new()), &Some(Vec::new())));
        }
    }

    #[test]
    fn what_is_no_object_is_refused_and_named_as_far_as_it_can_be() {
        assert_eq!(refusal(Kind::Pod, &json!([1])).0, None);
        let (name, why) = refusal(Kind::Node, &json!({"metadata": {"name": "n"}, "spec": 7}));
        assert_eq!(name, Some(ObjectName::new("", "n")));
        assert!(why.contains("spec"), "{why}");
        assert_eq!(refusal(Kind::NetworkPolicy, &json!({"spec": {}})).0, None);
    }

    #[test]
    fn a_policy_with_unknown_fields_is_closed_and_an_invalid_one_unreadable() {
        let policy = |rule: Value| {
            json!({"metadata": {"name": "p", "namespace": "shop", "newer": 1},
                   "spec": {"podSelector": {}, "ingress": [rule]}, "status": {}})
        };
        let decoded = |rule| decode(Kind::NetworkPolicy, &raw(&policy(rule)));
        assert!(matches!(decoded(json!({})), Decoded::Good(_)));
        let Decoded::Closed { why, .. } = decoded(json!({"when": "night"})) else { panic!() };
        assert!(why.contains("spec.ingress[0].when"), "{why}");
        let Decoded::Unreadable { why, .. } = decoded(json!({"ports": [{"port": 0}]})) else {
            panic!()
        };
        assert!(why.contains("spec.ingress[0].ports[0].port"), "{why}");
    }
}
