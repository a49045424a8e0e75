//! Leases and Events, as clients write them: created, replaced by resourceVersion, patched. Checked
//! as the API server checks them, as far as clients of ours can err.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cluster::serve::{Answer, Failure, Writes};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::events::v1::Event;
use serde_json::{Value, json};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/";

/// One request that was taken.
#[derive(Debug, Clone)]
pub struct Write {
    /// When it was.
    pub at: Instant,
    /// `POST`, `PUT` or `PATCH`.
    pub method: String,
    /// Its path.
    pub path: String,
    /// The object as it is from then on.
    pub object: Value,
}

impl Write {
    /// Whether it is of an Event.
    #[must_use]
    pub fn is_event(&self) -> bool {
        self.path.starts_with(EVENTS)
    }
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    log: Vec<Write>,
    /// Paths that begin so are refused with 403.
    forbidden: Option<&'static str>,
    refused: u64,
}

/// All that was written.
#[derive(Default)]
pub struct Written(Mutex<State>);

type Refusal = (StatusCode, &'static str, String);

fn refusal(code: u16, reason: &'static str, message: impl Into<String>) -> Refusal {
    (StatusCode::from_u16(code).expect("an HTTP status"), reason, message.into())
}

impl Written {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn taker(self: &Arc<Self>) -> Writes {
        let this = Arc::clone(self);
        Arc::new(move |parts, body| {
            let path = parts.uri.path();
            if !path.starts_with(LEASES) && !path.starts_with(EVENTS) {
                return None;
            }
            Some(match this.take(parts, body) {
                Ok((code, object)) => answer(code, &object),
                Err((code, reason, message)) => {
                    let retry_after_seconds = None;
                    Failure { code, reason, message, retry_after_seconds, go_on: None }.answer()
                }
            })
        })
    }

    /// Refuses whatever is below this path with 403; nothing when absent.
    pub fn forbid(&self, path: Option<&'static str>) {
        self.lock().forbidden = path;
    }

    /// Refuses Events.
    pub const EVENTS: &'static str = EVENTS;
    /// Refuses Leases.
    pub const LEASES: &'static str = LEASES;

    /// Requests that were refused with 403.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.lock().refused
    }

    /// Forgets an object, as the API server forgets Events after a time.
    pub fn forget(&self, of: impl Fn(&Value) -> bool) {
        self.lock().objects.retain(|_, object| !of(object));
    }

    /// All requests that were taken, in order.
    #[must_use]
    pub fn log(&self) -> Vec<Write> {
        self.lock().log.clone()
    }

    /// Events as they are.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        let state = self.lock();
        let events = state.objects.iter().filter(|(path, _)| path.starts_with(EVENTS));
        events.map(|(_, event)| event.clone()).collect()
    }

    /// Who holds the Lease at the end of this path.
    #[must_use]
    pub fn holder(&self, name: &str) -> Option<String> {
        let state = self.lock();
        let lease = state.objects.iter().find(|(path, _)| {
            path.starts_with(LEASES) && path.ends_with(&format!("/leases/{name}"))
        });
        let holder = lease?.1["spec"]["holderIdentity"].as_str()?;
        (!holder.is_empty()).then(|| holder.to_owned())
    }

    fn take(&self, parts: &Parts, body: &[u8]) -> Result<(StatusCode, Value), Refusal> {
        let path = parts.uri.path().to_owned();
        let mut state = self.lock();
        if state.forbidden.is_some_and(|forbidden| path.starts_with(forbidden)) {
            state.refused += 1;
            return Err(refusal(403, "Forbidden", format!("{path} is forbidden")));
        }
        let (path, object) = match parts.method {
            Method::GET => {
                let found = state.objects.get(&path).cloned();
                let object = found.ok_or_else(|| refusal(404, "NotFound", "not found"))?;
                return Ok((StatusCode::OK, object));
            }
            Method::POST => {
                let object = parse(body)?;
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                (format!("{path}/{name}"), state.created(&format!("{path}/{name}"), &object)?)
            }
            Method::PUT => {
                let object = state.replaced(&path, &parse(body)?)?;
                (path, object)
            }
            Method::PATCH => {
                let found = state.objects.get(&path).cloned();
                let before = found.ok_or_else(|| refusal(404, "NotFound", "not found"))?;
                let patch = parse(body)?;
                if patch == json!({}) {
                    return Ok((StatusCode::OK, before));
                }
                let mut object = before.clone();
                merge(&mut object, &patch);
                check_kept(&before, &object)?;
                (path, object)
            }
            _ => return Err(refusal(405, "MethodNotAllowed", "not allowed")),
        };
        check(&path, &object)?;
        let is_new = !state.objects.contains_key(&path);
        let object = state.keep(path, object, &parts.method);
        Ok((if is_new { StatusCode::CREATED } else { StatusCode::OK }, object))
    }
}

impl State {
    fn created(&self, path: &str, object: &Value) -> Result<Value, Refusal> {
        match self.objects.contains_key(path) {
            true => Err(refusal(409, "AlreadyExists", format!("{path} already exists"))),
            false => Ok(object.clone()),
        }
    }

    fn replaced(&self, path: &str, object: &Value) -> Result<Value, Refusal> {
        let before = self.objects.get(path);
        let before = before.ok_or_else(|| refusal(404, "NotFound", "not found"))?;
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        if version(object) != version(before) {
            let message = "the object has been modified; please apply your changes to the latest \
                version and try again";
            return Err(refusal(409, "Conflict", message));
        }
        Ok(object.clone())
    }

    fn keep(&mut self, path: String, mut object: Value, method: &Method) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let (at, method) = (Instant::now(), method.to_string());
        self.log.push(Write { at, method, path: path.clone(), object: object.clone() });
        self.objects.insert(path, object.clone());
        object
    }
}

fn parse(body: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(body).map_err(|error| refusal(400, "BadRequest", error.to_string()))
}

/// A merge patch (RFC 7396).
fn merge(object: &mut Value, patch: &Value) {
    let (Some(to), Some(from)) = (object.as_object_mut(), patch.as_object()) else {
        *object = patch.clone();
        return;
    };
    for (key, value) in from {
        match value {
            Value::Null => drop(to.remove(key)),
            value => merge(to.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}

/// Fields of an Event that may not change (Kubernetes validation of Events).
fn check_kept(before: &Value, after: &Value) -> Result<(), Refusal> {
    let fields = [
        "regarding",
        "reason",
        "note",
        "type",
        "eventTime",
        "action",
        "reportingController",
        "reportingInstance",
    ];
    match fields.iter().find(|field| before[**field] != after[**field]) {
        Some(field) => Err(refusal(422, "Invalid", format!("{field}: field is immutable"))),
        None => Ok(()),
    }
}

fn check(path: &str, object: &Value) -> Result<(), Refusal> {
    let invalid = |message: String| refusal(422, "Invalid", message);
    if path.starts_with(LEASES) {
        return typed::<Lease>(object).map_err(invalid);
    }
    typed::<Event>(object).map_err(invalid)?;
    let namespace = path.strip_prefix(EVENTS).and_then(|rest| rest.split('/').next());
    let regarding = object["regarding"]["namespace"].as_str().unwrap_or("default");
    if namespace != Some(regarding) {
        return Err(invalid(format!("regarding.namespace: {regarding} is not {namespace:?}")));
    }
    for (field, most) in
        [("reason", 128), ("action", 128), ("reportingInstance", 128), ("note", 1024)]
    {
        let length = object[field].as_str().map_or(0, str::len);
        if length == 0 || length > most {
            return Err(invalid(format!("{field}: has {length} bytes, 1 to {most} are allowed")));
        }
    }
    // The layout is exact in Go (`metav1.RFC3339Micro`).
    let time = object["eventTime"].as_str().unwrap_or_default();
    if time.len() != "2026-01-01T00:00:00.000000Z".len() {
        return Err(invalid(format!("eventTime: {time:?}")));
    }
    match object["series"]["count"].as_u64() {
        Some(..2) => Err(invalid("series.count: should be at least 2".to_owned())),
        _ => Ok(()),
    }
}

/// Reads it as its type, without a field that this does not have.
fn typed<T: serde::de::DeserializeOwned>(object: &Value) -> Result<(), String> {
    let mut unknown = Vec::new();
    let read: Result<T, _> =
        serde_ignored::deserialize(object, |path| unknown.push(path.to_string()));
    read.map_err(|error| error.to_string())?;
    unknown.retain(|path| path != "apiVersion" && path != "kind");
    if unknown.is_empty() { Ok(()) } else { Err(format!("unknown fields {unknown:?}")) }
}

fn answer(code: StatusCode, object: &Value) -> Answer {
    let body = Full::from(object.to_string()).map_err(|never| match never {}).boxed_unsync();
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(body)
        .expect("an answer")
}
