//! What is asked: path and query of a list, a watch or a single object.

use control::model::Kind;

use super::selector::Scope;
use super::status::Failure;
use crate::resource::{Resource, WATCHED};

/// The version that a `continue` which was offered with a 410 says: go on with what is there.
const INCONSISTENT: &str = "now";

/// How a resourceVersion is meant (Kubernetes API, "Resource versions").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Match {
    /// Not said.
    Unset,
    Exact,
    NotOlderThan,
}

/// Where a list goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Continue {
    /// The list's resourceVersion; `None` to go on with what is there now.
    pub(super) version: Option<u64>,
    /// The last key that was sent.
    pub(super) after: String,
}

impl Continue {
    pub(super) fn token(&self) -> String {
        match self.version {
            Some(version) => format!("v1:{version}:{}", self.after),
            None => format!("v1:{INCONSISTENT}:{}", self.after),
        }
    }

    fn parse(token: &str) -> Option<Self> {
        let (version, after) = token.strip_prefix("v1:")?.split_once(':')?;
        let version = match version {
            INCONSISTENT => None,
            number => Some(number.parse().ok()?),
        };
        Some(Self { version, after: after.to_owned() })
    }
}

/// The query of a list or watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) scope: Scope,
    /// `None` when not said; 0 means any.
    pub(super) version: Option<u64>,
    pub(super) matching: Match,
    pub(super) limit: Option<usize>,
    pub(super) go_on: Option<Continue>,
    pub(super) bookmarks: bool,
    pub(super) initial_events: Option<bool>,
    pub(super) timeout_seconds: Option<u64>,
}

/// A request that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    List(&'static Resource, Query),
    Watch(&'static Resource, Query),
    Get(&'static Resource, String, String),
}

impl Asked {
    pub(super) fn resource(&self) -> &'static Resource {
        match self {
            Self::List(resource, _) | Self::Watch(resource, _) | Self::Get(resource, ..) => {
                resource
            }
        }
    }

    pub(super) fn verb(&self) -> &'static str {
        match self {
            Self::List(..) => "list",
            Self::Watch(..) => "watch",
            Self::Get(..) => "get",
        }
    }
}

/// What is said of a collection that is not served.
pub(super) const UNKNOWN: &str = "the server could not find the requested resource";

fn unknown() -> Failure {
    Failure::not_found(UNKNOWN)
}

fn resource_of(group: &str, version: &str, plural: &str) -> Result<&'static Resource, Failure> {
    let same = |resource: &&Resource| {
        (resource.group, resource.version, resource.plural) == (group, version, plural)
    };
    WATCHED.iter().find(same).ok_or_else(unknown)
}

/// Reads path and query.
///
/// # Errors
/// 404 for collections that are not served, 400 and 422 for parameters that cannot be meant.
pub(super) fn parse(path: &str, query: &str) -> Result<Asked, Failure> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Err(unknown()),
    };
    let name = |part: &str| part.to_owned();
    let (resource, namespace, object) = match rest {
        [plural] => (resource_of(group, version, plural)?, None, None),
        ["namespaces", namespace, plural] => {
            (resource_of(group, version, plural)?, Some(name(namespace)), None)
        }
        ["namespaces", namespace, plural, object] => {
            (resource_of(group, version, plural)?, Some(name(namespace)), Some(name(object)))
        }
        [plural, object] => (resource_of(group, version, plural)?, None, Some(name(object))),
        _ => return Err(unknown()),
    };
    if namespace.is_some() && !resource.namespaced {
        return Err(unknown());
    }
    if let Some(object) = object {
        // An object of a namespace is asked for within it.
        if resource.namespaced != namespace.is_some() {
            return Err(unknown());
        }
        return Ok(Asked::Get(resource, namespace.unwrap_or_default(), object));
    }
    let (is_watch, query) = parse_query(resource, namespace, query)?;
    match is_watch {
        true => Ok(Asked::Watch(resource, query)),
        false => Ok(Asked::List(resource, query)),
    }
}

fn flag(key: &str, value: &str) -> Result<bool, Failure> {
    match value {
        "true" | "1" | "" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(Failure::bad_request(format!("{key}: {value:?} is neither true nor false"))),
    }
}

fn number<N: std::str::FromStr>(key: &str, value: &str) -> Result<N, Failure> {
    let bad = || Failure::bad_request(format!("{key}: Invalid value: {value:?}: is no number"));
    value.parse().map_err(|_| bad())
}

fn parse_query(
    resource: &Resource,
    namespace: Option<String>,
    text: &str,
) -> Result<(bool, Query), Failure> {
    let (mut fields, mut labels) = (String::new(), String::new());
    let mut is_watch = false;
    let mut query = Query {
        scope: Scope::default(),
        version: None,
        matching: Match::Unset,
        limit: None,
        go_on: None,
        bookmarks: false,
        initial_events: None,
        timeout_seconds: None,
    };
    for (key, value) in form_urlencoded::parse(text.as_bytes()) {
        let value = &*value;
        match &*key {
            "watch" => is_watch = flag(&key, value)?,
            "allowWatchBookmarks" => query.bookmarks = flag(&key, value)?,
            "sendInitialEvents" => query.initial_events = Some(flag(&key, value)?),
            "fieldSelector" => fields = value.to_owned(),
            "labelSelector" => labels = value.to_owned(),
            "resourceVersion" if !value.is_empty() => query.version = Some(number(&key, value)?),
            "resourceVersionMatch" => query.matching = matching(value)?,
            "limit" => query.limit = Some(number(&key, value)?).filter(|limit| *limit > 0),
            "timeoutSeconds" => query.timeout_seconds = Some(number(&key, value)?),
            "continue" if !value.is_empty() => {
                let bad = || Failure::bad_request("continue key is not valid");
                query.go_on = Some(Continue::parse(value).ok_or_else(bad)?);
            }
            // As the API server does, what is not known is not minded.
            _ => {}
        }
    }
    query.scope = Scope::parse(resource, namespace, &fields, &labels)?;
    check(is_watch, &query)?;
    Ok((is_watch, query))
}

fn matching(value: &str) -> Result<Match, Failure> {
    match value {
        "" => Ok(Match::Unset),
        "Exact" => Ok(Match::Exact),
        "NotOlderThan" => Ok(Match::NotOlderThan),
        other => Err(Failure::invalid(format!(
            "resourceVersionMatch: Unsupported value: {other:?}: \
             supported values: \"Exact\", \"NotOlderThan\""
        ))),
    }
}

/// Which parameters go together (Kubernetes API, "Resource versions" and "Streaming lists").
fn check(is_watch: bool, query: &Query) -> Result<(), Failure> {
    let matched = query.matching != Match::Unset;
    let problem = match (is_watch, query.initial_events) {
        (true, Some(_)) if query.matching != Match::NotOlderThan => {
            "sendInitialEvents: Forbidden: resourceVersionMatch must be NotOlderThan"
        }
        (true, None) if matched => {
            "resourceVersionMatch: Forbidden: \
             resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        }
        (false, Some(_)) => "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list",
        (false, None) if matched && query.version.is_none() => {
            "resourceVersionMatch: Forbidden: \
             resourceVersionMatch is forbidden unless resourceVersion is provided"
        }
        (false, None) if matched && query.go_on.is_some() => {
            "resourceVersionMatch: Forbidden: \
             resourceVersionMatch is forbidden when continue is provided"
        }
        (false, None) if query.matching == Match::Exact && query.version == Some(0) => {
            "resourceVersionMatch: Forbidden: \
             resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\""
        }
        _ => return Ok(()),
    };
    Err(Failure::invalid(format!("ListOptions.meta.k8s.io \"\" is invalid: {problem}")))
}

/// Whether `path` asks for objects at all.
pub(super) fn is_api(path: &str) -> bool {
    path.starts_with("/api/") || path.starts_with("/apis/")
}

/// A kind's list, by name.
pub(super) fn list_kind(kind: Kind) -> String {
    format!("{}List", kind.name())
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn refusal(path: &str, query: &str) -> StatusCode {
        parse(path, query).unwrap_err().code
    }

    #[test]
    fn collections_and_objects_are_told_apart() {
        let asked = |path| parse(path, "").unwrap();
        assert!(matches!(asked("/api/v1/namespaces"), Asked::List(resource, _)
            if resource.kind == Kind::Namespace));
        assert!(matches!(asked("/api/v1/namespaces/shop"), Asked::Get(resource, _, name)
            if resource.kind == Kind::Namespace && name == "shop"));
        assert!(matches!(asked("/api/v1/namespaces/shop/pods"), Asked::List(resource, query)
            if resource.kind == Kind::Pod && query.scope.namespace.as_deref() == Some("shop")));
        let one = asked("/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies/deny");
        assert_eq!((one.verb(), one.resource().kind), ("get", Kind::NetworkPolicy));
        for path in ["/", "/api/v1/secrets", "/apis/cilium.io/v2/ciliumnodes", "/api/v1/pods/a"] {
            assert_eq!(refusal(path, ""), StatusCode::NOT_FOUND, "{path}");
        }
    }

    #[test]
    fn parameters_that_exclude_each_other_are_refused() {
        let pods = "/api/v1/pods";
        let invalid = StatusCode::UNPROCESSABLE_ENTITY;
        for query in [
            "watch=true&sendInitialEvents=true",
            "watch=true&resourceVersionMatch=NotOlderThan&resourceVersion=3",
            "sendInitialEvents=true",
            "resourceVersionMatch=Exact",
            "resourceVersionMatch=Exact&resourceVersion=0",
            "resourceVersionMatch=Sometimes&resourceVersion=1",
            "resourceVersionMatch=Exact&resourceVersion=1&continue=v1:1:a",
        ] {
            assert_eq!(refusal(pods, query), invalid, "{query}");
        }
        for query in ["resourceVersion=x", "limit=-1", "watch=perhaps", "continue=abc"] {
            assert_eq!(refusal(pods, query), StatusCode::BAD_REQUEST, "{query}");
        }
    }

    #[test]
    fn a_token_says_where_to_go_on() {
        for version in [Some(7), None] {
            let go_on = Continue { version, after: "shop/a:b".into() };
            assert_eq!(Continue::parse(&go_on.token()), Some(go_on));
        }
    }
}
