//! An object as the bytes it is sent as.
//!
//! Kept is the whole line of the watch event that announced it; a list's item, which the API
//! server sends without kind and apiVersion, and the event of another type are parts of it.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, LazyLock};

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::Value;

use crate::resource::Resource;

/// Objects with the same content have the same mark; the key is random, so that nobody can make
/// two that collide.
static MARKS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The end of an event.
const EVENT_END: &[u8] = b"}\n";

/// A value that is no object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {problem}")]
pub struct InvalidValue {
    /// The kind it was handed in as.
    pub kind: &'static str,
    /// What it lacks.
    pub problem: String,
}

/// What became of an object (Kubernetes API, `watch.EventType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventType {
    Added,
    Modified,
    Deleted,
}

impl EventType {
    /// The beginning of an event of this type, up to the object.
    pub(super) const fn start(self) -> &'static [u8] {
        match self {
            Self::Added => b"{\"type\":\"ADDED\",\"object\":",
            Self::Modified => b"{\"type\":\"MODIFIED\",\"object\":",
            Self::Deleted => b"{\"type\":\"DELETED\",\"object\":",
        }
    }
}

/// An object to be stored, with what the protocol has to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Empty for kinds of the cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its resourceVersion.
    pub version: u64,
    /// A Pod's `spec.nodeName`.
    pub node: Option<String>,
    /// The object in JSON, without kind and apiVersion, with its resourceVersion.
    pub fields: Vec<u8>,
    /// The same for objects that differ in nothing but their resourceVersion; `None` when that is
    /// not known.
    pub mark: Option<u64>,
}

/// A mark of `content`, for [`Encoded::mark`].
#[must_use]
pub fn mark(content: &[u8]) -> u64 {
    MARKS.hash_one(content)
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}

impl Encoded {
    /// Takes a whole Kubernetes object and gives it `version`.
    ///
    /// # Errors
    /// No JSON object, or one without a name.
    pub fn from_value(
        resource: &Resource,
        mut value: Value,
        version: u64,
    ) -> Result<Self, InvalidValue> {
        let invalid = |problem: &str| InvalidValue {
            kind: resource.kind.name(),
            problem: problem.to_owned(),
        };
        let name = text(&value, "/metadata/name").unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(invalid("metadata.name is missing"));
        }
        let namespace = match resource.namespaced {
            true => text(&value, "/metadata/namespace").unwrap_or("default").to_owned(),
            false => String::new(),
        };
        let node = text(&value, "/spec/nodeName").map(str::to_owned);
        let object = value.as_object_mut().ok_or_else(|| invalid("is no JSON object"))?;
        object.remove("kind");
        object.remove("apiVersion");
        object["metadata"]["resourceVersion"] = Value::String(version.to_string());
        if resource.namespaced {
            object["metadata"]["namespace"] = Value::String(namespace.clone());
        }
        let fields = value.to_string().into_bytes();
        Ok(Self { namespace, name, version, node, fields, mark: None })
    }

    /// `namespace/name`, or the name alone for kinds of the cluster.
    #[must_use]
    pub fn key(&self) -> String {
        key(&self.namespace, &self.name)
    }

    /// The same object with another resourceVersion.
    pub(super) fn with_version(&self, resource: &Resource, version: u64) -> Self {
        let rebuilt = serde_json::from_slice::<Value>(&self.fields)
            .ok()
            .and_then(|value| Self::from_value(resource, value, version).ok());
        let own = rebuilt.unwrap_or_else(|| Self { version, ..self.clone() });
        Self { node: self.node.clone(), mark: self.mark, ..own }
    }
}

/// Namespace and name as one word, which orders objects as the API server does.
pub(super) fn key(namespace: &str, name: &str) -> String {
    match namespace {
        "" => name.to_owned(),
        _ => format!("{namespace}/{name}"),
    }
}

/// An object as it is kept.
#[derive(Debug)]
pub(crate) struct Stored {
    /// Its [`key`].
    pub(super) key: Arc<str>,
    /// Its resourceVersion.
    pub(crate) version: u64,
    /// A Pod's node.
    pub(super) node: Option<Box<str>>,
    /// [`Encoded::mark`].
    pub(super) mark: Option<u64>,
    /// The event that announced it, with the line's end.
    line: Bytes,
    /// Where the object begins in it.
    object_at: u16,
    /// Where the object's fields begin, behind kind and apiVersion.
    fields_at: u16,
}

impl Stored {
    pub(super) fn new(
        resource: &Resource,
        event: EventType,
        key: Arc<str>,
        encoded: &Encoded,
    ) -> Self {
        let start = event.start();
        // Kinds and groups are a few dozen bytes.
        let head = format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",",
            resource.kind.name(),
            resource.api_version()
        );
        let fields = encoded.fields.get(1..).unwrap_or(b"}");
        let mut line = BytesMut::with_capacity(start.len() + head.len() + fields.len() + 2);
        line.put_slice(start);
        line.put_slice(head.as_bytes());
        line.put_slice(fields);
        line.put_slice(EVENT_END);
        let object_at = u16::try_from(start.len()).unwrap_or(0);
        let fields_at = u16::try_from(start.len() + head.len()).unwrap_or(0);
        Self {
            key,
            version: encoded.version,
            node: encoded.node.as_deref().map(Box::from),
            mark: encoded.mark,
            line: line.freeze(),
            object_at,
            fields_at,
        }
    }

    /// `namespace/name`, or the name alone for kinds of the cluster.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The namespace, empty for kinds of the cluster.
    pub(super) fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    pub(super) fn name(&self) -> &str {
        self.key.split_once('/').map_or(&self.key, |(_, name)| name)
    }

    /// The event that announced it; shared, not copied.
    pub(super) fn line(&self) -> Bytes {
        self.line.clone()
    }

    /// Bytes that it takes.
    pub(super) fn size(&self) -> usize {
        self.line.len()
    }

    /// With kind and apiVersion.
    pub(crate) fn object(&self) -> Bytes {
        self.line.slice(self.object_at.into()..self.line.len() - EVENT_END.len())
    }

    /// Appends an event of another type than it was announced by.
    pub(super) fn event_into(&self, event: EventType, to: &mut BytesMut) {
        to.put_slice(event.start());
        to.put_slice(&self.line[self.object_at.into()..]);
    }

    /// Appends it as an item of a list.
    pub(super) fn item_into(&self, to: &mut BytesMut) {
        to.put_u8(b'{');
        to.put_slice(&self.line[self.fields_at.into()..self.line.len() - EVENT_END.len()]);
    }

    /// The same object with another resourceVersion.
    pub(super) fn with_version(&self, resource: &Resource, version: u64) -> Encoded {
        let rebuilt = serde_json::from_slice::<Value>(&self.object())
            .ok()
            .and_then(|value| Encoded::from_value(resource, value, version).ok());
        // What is kept was encoded here, and so can be read again.
        rebuilt.unwrap_or_else(|| Encoded {
            namespace: self.namespace().to_owned(),
            name: self.name().to_owned(),
            version,
            node: self.node.as_deref().map(str::to_owned),
            fields: self.object().to_vec(),
            mark: self.mark,
        })
    }
}
