//! Refusals, as the Kubernetes API's `Status` objects.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use serde_json::json;

use super::server::Answer;

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The HTTP status.
    pub code: StatusCode,
    /// The word that clients go by (Kubernetes API, `metav1.StatusReason`).
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// When to ask again, in seconds.
    pub retry_after_seconds: Option<u32>,
    /// Where an expired list may go on, at the cost of consistency.
    pub go_on: Option<String>,
}

impl Failure {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), retry_after_seconds: None, go_on: None }
    }

    /// 400: a parameter that cannot be meant.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 422: parameters that exclude each other.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
    }

    /// 401.
    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// 403.
    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// 404: no such collection or object.
    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    /// 405: everything but reading.
    pub(super) fn method() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    /// 406: only JSON is spoken.
    pub(super) fn not_acceptable() -> Self {
        let message = "only application/json is served";
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    /// 410: the history does not reach back to `asked`.
    pub(super) fn expired(asked: u64, oldest: u64) -> Self {
        let message = format!("too old resource version: {asked} ({oldest})");
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// 429.
    pub(super) fn too_many(message: impl Into<String>, seconds: u32) -> Self {
        let mut failure = Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message);
        failure.retry_after_seconds = Some(seconds);
        failure
    }

    /// 503.
    pub(super) fn unavailable(message: impl Into<String>, seconds: u32) -> Self {
        let mut failure = Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message);
        failure.retry_after_seconds = Some(seconds);
        failure
    }

    /// 504: a resourceVersion that is not here yet.
    pub(super) fn too_large(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let mut failure = Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message);
        failure.retry_after_seconds = Some(1);
        failure
    }

    /// The `Status` object.
    #[must_use]
    pub fn object(&self) -> serde_json::Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16(),
        });
        if let Some(seconds) = self.retry_after_seconds {
            status["details"] = json!({ "retryAfterSeconds": seconds });
        }
        if let Some(token) = &self.go_on {
            status["metadata"]["continue"] = json!(token);
        }
        status
    }

    /// As the last event of a watch.
    pub(super) fn event(&self) -> Bytes {
        format!("{}\n", json!({ "type": "ERROR", "object": self.object() })).into()
    }

    /// As an answer of its own.
    #[must_use]
    pub fn answer(&self) -> Answer {
        let text = Bytes::from(format!("{}\n", self.object()));
        let mut answer =
            Response::new(Full::new(text).map_err(|never| match never {}).boxed_unsync());
        *answer.status_mut() = self.code;
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        answer
    }
}
