//! Which objects of a collection are meant: namespace, fieldSelector, labelSelector.

use std::collections::BTreeMap;

use control::model::Kind;
use serde::Deserialize;

use super::object::Stored;
use super::status::Failure;
use crate::resource::Resource;

/// Longest selector, in bytes.
const SELECTOR_BYTES_MAX: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
    Node,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldTerm {
    field: Field,
    value: String,
    equal: bool,
}

/// One condition on a label, by the values that fulfil or break it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum LabelTerm {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

/// What is asked for; all of it must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Scope {
    pub(super) namespace: Option<String>,
    fields: Vec<FieldTerm>,
    labels: Vec<LabelTerm>,
}

/// Of an object, only what a label selector reads.
#[derive(Deserialize)]
struct Labelled {
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Deserialize, Default)]
struct Metadata {
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

impl Scope {
    /// Reads the selectors of a request.
    ///
    /// # Errors
    /// A field that `resource` cannot be selected by, or what is no selector.
    pub(super) fn parse(
        resource: &Resource,
        namespace: Option<String>,
        fields: &str,
        labels: &str,
    ) -> Result<Self, Failure> {
        if fields.len() > SELECTOR_BYTES_MAX || labels.len() > SELECTOR_BYTES_MAX {
            let text = format!("a selector is longer than {SELECTOR_BYTES_MAX} bytes");
            return Err(Failure::bad_request(text));
        }
        let split = |text: &str| -> Vec<String> { split_terms(text) };
        let fields = split(fields)
            .iter()
            .map(|term| field_term(resource, term))
            .collect::<Result<_, _>>()?;
        let labels = split(labels).iter().map(|term| label_term(term)).collect::<Result<_, _>>()?;
        Ok(Self { namespace, fields, labels })
    }

    /// Whether every object of the kind is meant.
    pub(super) fn is_everything(&self) -> bool {
        self.namespace.is_none() && self.fields.is_empty() && self.labels.is_empty()
    }

    pub(super) fn holds(&self, object: &Stored) -> bool {
        if self.namespace.as_ref().is_some_and(|namespace| namespace != object.namespace()) {
            return false;
        }
        let fields = self.fields.iter().all(|term| {
            let value = match term.field {
                Field::Name => object.name(),
                Field::Namespace => object.namespace(),
                Field::Node => object.node.as_deref().unwrap_or(""),
            };
            (value == term.value) == term.equal
        });
        fields && (self.labels.is_empty() || self.labels_hold(object))
    }

    /// Labels are not kept apart: few ask for them, and those pay.
    fn labels_hold(&self, object: &Stored) -> bool {
        let read = serde_json::from_slice::<Labelled>(&object.object());
        let labels = read.ok().and_then(|read| read.metadata.labels).unwrap_or_default();
        self.labels.iter().all(|term| match term {
            LabelTerm::In(key, values) => labels.get(key).is_some_and(|own| values.contains(own)),
            LabelTerm::NotIn(key, values) => {
                labels.get(key).is_none_or(|own| !values.contains(own))
            }
            LabelTerm::Exists(key) => labels.contains_key(key),
            LabelTerm::Absent(key) => !labels.contains_key(key),
        })
    }
}

/// Splits at commas outside of parentheses.
fn split_terms(text: &str) -> Vec<String> {
    let mut depth = 0_u32;
    let mut terms = vec![String::new()];
    for character in text.chars() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                terms.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(term) = terms.last_mut() {
            term.push(character);
        }
    }
    terms.retain_mut(|term| {
        *term = term.trim().to_owned();
        !term.is_empty()
    });
    terms
}

/// `key`, whether equal, `value`.
fn comparison(term: &str) -> Option<(&str, bool, &str)> {
    let (key, value, equal) = match term.split_once("!=") {
        Some((key, value)) => (key, value, false),
        None => {
            let (key, value) = term.split_once('=')?;
            (key, value.strip_prefix('=').unwrap_or(value), true)
        }
    };
    Some((key.trim(), equal, value.trim()))
}

fn field_term(resource: &Resource, term: &str) -> Result<FieldTerm, Failure> {
    let Some((key, equal, value)) = comparison(term) else {
        let text = format!("invalid selector: {term:?}; can't understand");
        return Err(Failure::bad_request(text));
    };
    let field = match key {
        "metadata.name" => Field::Name,
        "metadata.namespace" if resource.namespaced => Field::Namespace,
        "spec.nodeName" if resource.kind == Kind::Pod => Field::Node,
        _ => return Err(Failure::bad_request(format!("field label not supported: {key}"))),
    };
    Ok(FieldTerm { field, value: value.to_owned(), equal })
}

fn label_term(term: &str) -> Result<LabelTerm, Failure> {
    if let Some((key, equal, value)) = comparison(term) {
        let (key, values) = (key.to_owned(), vec![value.to_owned()]);
        return Ok(if equal { LabelTerm::In(key, values) } else { LabelTerm::NotIn(key, values) });
    }
    let bad = || Failure::bad_request(format!("unable to parse requirement: {term:?}"));
    let words = term.split_once('(').map_or(term, |(words, _)| words).trim();
    let mut words = words.split_whitespace();
    let key = words.next().ok_or_else(bad)?;
    let operator = words.next();
    if words.next().is_some() {
        return Err(bad());
    }
    let Some(operator) = operator else {
        return Ok(match key.strip_prefix('!') {
            Some(key) => LabelTerm::Absent(key.trim().to_owned()),
            None => LabelTerm::Exists(key.to_owned()),
        });
    };
    let list = term.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).ok_or_else(bad)?;
    let values = list.split(',').map(|value| value.trim().to_owned()).collect();
    match operator {
        "in" => Ok(LabelTerm::In(key.to_owned(), values)),
        "notin" => Ok(LabelTerm::NotIn(key.to_owned(), values)),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::object::{Encoded, EventType};
    use super::*;

    fn pod() -> Stored {
        let resource = Resource::of(Kind::Pod);
        let value = json!({
            "metadata": { "name": "a", "namespace": "shop", "labels": { "tier": "web" } },
            "spec": { "nodeName": "n1" },
        });
        let encoded = Encoded::from_value(resource, value, 7).unwrap();
        Stored::new(resource, EventType::Added, Arc::from(encoded.key()), &encoded)
    }

    fn holds(fields: &str, labels: &str) -> bool {
        Scope::parse(Resource::of(Kind::Pod), None, fields, labels).unwrap().holds(&pod())
    }

    #[test]
    fn fields_and_labels_select() {
        assert!(holds("spec.nodeName=n1,metadata.name!=b", ""));
        assert!(!holds("spec.nodeName=n2", ""));
        assert!(holds("", "tier in (db, web),!other,tier"));
        assert!(holds("", "tier==web,other!=x,other notin (y)"));
        assert!(!holds("", "tier notin (web)"));
        assert!(!holds("", "other"));
    }

    #[test]
    fn what_cannot_be_selected_by_is_named() {
        let refused = |fields: &str, labels: &str| {
            Scope::parse(Resource::of(Kind::Pod), None, fields, labels).unwrap_err().message
        };
        assert!(refused("spec.hostIP=1", "").contains("spec.hostIP"));
        assert!(refused("what", "").contains("what"));
        assert!(refused("", "tier within (a)").contains("within"));
    }
}
