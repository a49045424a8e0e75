//! What a label may be (Kubernetes, "Labels and Selectors": syntax and character set). The API
//! server has checked it; in a folder, a stray space would make a policy select nothing.

use std::collections::BTreeMap;

use super::Labels;
use super::convert::{Problem, problem};
use crate::shown::shortened;

/// Longest name and value, in bytes.
const BYTES_MAX: usize = 63;
/// Longest prefix of a key, in bytes: a DNS subdomain (RFC 1123).
const PREFIX_BYTES_MAX: usize = 253;

/// An object's labels, each of which can be one.
pub(super) fn labels(
    field: &str,
    labels: Option<BTreeMap<String, String>>,
) -> Result<Labels, Problem> {
    let labels = labels.unwrap_or_default();
    for (key, value) in &labels {
        check_key(field, key)?;
        check_value(&format!("{field}.{}", shortened(key)), value)?;
    }
    Ok(labels.into())
}

pub(super) fn check_key(field: &str, key: &str) -> Result<(), Problem> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(own, name)| (Some(own), name));
    let prefix_ok = prefix.is_none_or(|prefix| {
        let legal =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        (1..=PREFIX_BYTES_MAX).contains(&prefix.len()) && prefix.bytes().all(legal)
    });
    if prefix_ok && !name.is_empty() && is_word(name) {
        return Ok(());
    }
    let rule = "use at most 63 letters, digits, '-', '_' and '.', after a DNS name and '/' if any";
    Err(problem(field, format!("{:?} is not a legal label key; {rule}", shortened(key))))
}

pub(super) fn check_value(field: &str, value: &str) -> Result<(), Problem> {
    if is_word(value) {
        return Ok(());
    }
    let rule = "use at most 63 letters, digits, '-', '_' and '.', beginning and ending with one \
                of the first two";
    Err(problem(field, format!("{:?} is not a legal label value; {rule}", shortened(value))))
}

/// Empty, or letters and digits with `-`, `_` and `.` between them.
fn is_word(text: &str) -> bool {
    let ends = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    text.len() <= BYTES_MAX
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && ends(text.bytes().next())
        && ends(text.bytes().last())
}
