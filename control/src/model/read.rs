//! From the text of an object to the model: the one way in for what a folder holds, what an API
//! server sends, and what a test writes.
//!
//! Who wrote an object decides about fields that its type does not have. In a folder they are
//! refused, since a person misspelt them. From an API server they are normal, since it may be newer
//! than we are, and are passed by; only in a NetworkPolicy they are not, because what is not
//! understood there must never allow more than was meant ([`network_policy_closed`]).

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::Deserializer;
use serde::de::DeserializeOwned;

use super::{InvalidObject, Kind, Object, convert};
use crate::shown::shortened;
use crate::yaml;

pub use super::convert_policy::{Closed, network_policy_closed};

/// What becomes of fields that the kind's type does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownFields {
    /// The object is refused.
    Refuse,
    /// They are passed by.
    PassBy,
}

/// An object cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A value has the wrong type.
    #[error("{field}: {message}")]
    Type {
        /// Path of the field, `spec.ports[0].port`.
        field: String,
        /// What is wrong.
        message: String,
    },
    /// Fields the Kubernetes API does not have.
    #[error("unknown field {}", .0.join(", "))]
    Unknown(Vec<String>),
    /// A value that cannot work.
    #[error(transparent)]
    Invalid(#[from] InvalidObject),
}

/// Reads an object of `kind`.
///
/// # Errors
/// [`ReadError`], naming the field.
pub fn object<'de, D>(kind: Kind, from: D, unknown: UnknownFields) -> Result<Object, ReadError>
where
    D: Deserializer<'de, Error = serde_json::Error>,
{
    match kind {
        Kind::Namespace => {
            read::<core::Namespace, _, _>(from, unknown, convert::namespace).map(Object::Namespace)
        }
        Kind::Node => read::<core::Node, _, _>(from, unknown, convert::node).map(Object::Node),
        Kind::Pod => read::<core::Pod, _, _>(from, unknown, convert::pod).map(Object::from),
        Kind::Service => {
            read::<core::Service, _, _>(from, unknown, convert::service).map(Object::from)
        }
        Kind::EndpointSlice => read::<EndpointSlice, _, _>(from, unknown, convert::endpoint_slice)
            .map(Object::EndpointSlice),
        Kind::NetworkPolicy => {
            read::<NetworkPolicy, _, _>(from, unknown, convert::network_policy).map(Object::from)
        }
    }
}

fn read<'de, T, M, D>(
    from: D,
    unknown: UnknownFields,
    convert: fn(T) -> Result<M, InvalidObject>,
) -> Result<M, ReadError>
where
    T: DeserializeOwned,
    D: Deserializer<'de, Error = serde_json::Error>,
{
    let typed = match unknown {
        UnknownFields::PassBy => serde_path_to_error::deserialize(from).map_err(type_error)?,
        UnknownFields::Refuse => {
            let (typed, mut fields) = named(from)?;
            // k8s-openapi reads these two itself and hands them to nobody.
            fields.retain(|field: &String| field != "apiVersion" && field != "kind");
            if !fields.is_empty() {
                return Err(ReadError::Unknown(fields));
            }
            typed
        }
    };
    Ok(convert(typed)?)
}

/// A value, and the paths of the fields that its type does not have.
pub(super) fn named<'de, T, D>(from: D) -> Result<(T, Vec<String>), ReadError>
where
    T: DeserializeOwned,
    D: Deserializer<'de, Error = serde_json::Error>,
{
    let mut fields = Vec::new();
    let mut ignored = |path: serde_ignored::Path<'_>| fields.push(yaml::dotted(&path));
    let fields_named = serde_ignored::Deserializer::new(from, &mut ignored);
    let typed = serde_path_to_error::deserialize(fields_named).map_err(type_error)?;
    Ok((typed, fields))
}

fn type_error(error: serde_path_to_error::Error<serde_json::Error>) -> ReadError {
    ReadError::Type {
        field: shortened(&error.path().to_string()),
        message: shortened(&error.inner().to_string()),
    }
}
