//! YAML as operators write it: how much of it is read, and what is wrong with it in one line.

use serde_saphyr::{Error, MessageFormatter as _, Options, UserMessageFormatter};

use crate::shown::shortened;

/// Values in one file of manifests, at most: a hundred thousand pods as `kubectl get` prints them.
/// Each takes about 64 bytes of memory while the file is read.
const NODES_MAX: usize = 16 << 20;
/// Documents in one file, at most.
const DOCUMENTS_MAX: usize = 1 << 20;
/// Bytes of text that anchors may add to a file by being repeated.
const REPEATED_BYTES_MAX: usize = 64 << 20;

/// How manifests are read. What aliases repeat stays under the library's own, far lower bounds, so
/// that a few lines cannot become gigabytes.
pub(crate) fn manifest_options(text: &str) -> Options {
    // YAML 1.2: `no` and `n` are words, not booleans, and make good names.
    serde_saphyr::options! {
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_nodes: NODES_MAX,
            max_events: 2 * NODES_MAX,
            max_documents: DOCUMENTS_MAX,
            max_total_scalar_bytes: text.len() + REPEATED_BYTES_MAX,
        },
    }
}

/// `error` for people: line, column, and what is wrong, in one line for logs.
pub(crate) fn message(error: &Error) -> String {
    let bare = error.without_snippet();
    let text = match bare {
        Error::InvalidScalar { ty, .. } => wanted(ty),
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("{} is said twice: keep one", shortened(key))
        }
        Error::MultipleDocuments { .. } => "a second document begins here: keep one".into(),
        other => UserMessageFormatter.format_message(other).into_owned(),
    };
    match error.location() {
        Some(at) if at.line() > 0 => format!("line {} column {}: {text}", at.line(), at.column()),
        _ => text,
    }
}

/// What a number's type takes.
fn wanted(kind: &str) -> String {
    let largest = match kind {
        "u8" => u64::from(u8::MAX),
        "u16" => u64::from(u16::MAX),
        "u32" => u64::from(u32::MAX),
        "u64" => u64::MAX,
        _ => return format!("this is no {kind}"),
    };
    format!("a whole number from 0 to {largest} is wanted, without a unit")
}

/// A field's path as people write it; serde_ignored shows optional fields as `?` and indices as
/// names.
pub(crate) fn dotted(path: &serde_ignored::Path<'_>) -> String {
    let mut dotted = String::new();
    for step in path.to_string().split('.').filter(|step| *step != "?") {
        if step.parse::<usize>().is_ok() {
            dotted += &format!("[{step}]");
        } else {
            dotted += if dotted.is_empty() { "" } else { "." };
            dotted += step;
        }
    }
    shortened(&dotted)
}
