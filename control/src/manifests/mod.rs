//! A folder of ordinary Kubernetes manifests as the cluster's state.
//!
//! Files are YAML (many documents each) or JSON, read in the order of their names. Fields that the
//! Kubernetes API does not have are refused by path: its own client drops them in silence, and a
//! misspelt peer would become an empty one, which allows everybody. A folder with any error is
//! refused whole, so that what was in force stays in force; all its errors are told at once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::model::read::{self, ReadError, UnknownFields};
use crate::model::{InvalidObject, Kind, Object};
use crate::shown::shortened;
use crate::store::{ClusterState, Conflict};
use crate::{text_file, yaml};

pub mod folder;

pub use folder::{Fingerprint, FolderError};

/// Objects in one folder, at most.
pub const OBJECTS_MAX: usize = 400_000;

/// Readings of a folder that changes meanwhile, at most.
const READS_MAX: usize = 5;

/// Where an object was read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The file.
    pub file: PathBuf,
    /// Which document of the file, counted from 1.
    pub document: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (document {})", self.file.display(), self.document)
    }
}

/// Why a folder is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The folder or a file cannot be read.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A file is not YAML or JSON.
    #[error("{}: {message}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// What is wrong, with line and column.
        message: String,
    },
    /// A document is no Kubernetes object.
    #[error("{origin}: {message}")]
    NoObject {
        /// Where.
        origin: Origin,
        /// What is missing.
        message: String,
    },
    /// A value has the wrong type.
    #[error("{origin}: {object}: {field}: {message}")]
    Type {
        /// Where.
        origin: Origin,
        /// Kind, namespace and name.
        object: String,
        /// Path of the field, `spec.ports[0].port`.
        field: String,
        /// What is wrong.
        message: String,
    },
    /// Fields the Kubernetes API does not have.
    #[error("{origin}: {object}: unknown field {}: it would be ignored, correct or remove it",
        fields.join(", "))]
    Unknown {
        /// Where.
        origin: Origin,
        /// Kind, namespace and name.
        object: String,
        /// Their paths.
        fields: Vec<String>,
    },
    /// A value that cannot work.
    #[error("{origin}: {invalid}")]
    Invalid {
        /// Where.
        origin: Origin,
        /// Object, field and problem.
        invalid: InvalidObject,
    },
    /// One object twice.
    #[error("{object} is in {first} and again in {second}: keep one")]
    Duplicate {
        /// Kind, namespace and name.
        object: String,
        /// Where first.
        first: Origin,
        /// Where again.
        second: Origin,
    },
    /// Two objects that cannot both hold.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// More than anybody needs.
    #[error("more than {OBJECTS_MAX} objects: split the cluster or use an API server")]
    TooMany,
}

impl ManifestError {
    /// What the error is about: the file, or the object.
    #[must_use]
    pub fn subject(&self) -> String {
        match self {
            Self::Folder(error) => error.path().display().to_string(),
            Self::Syntax { file, .. } => file.display().to_string(),
            Self::NoObject { origin, .. } => origin.to_string(),
            Self::Type { object, .. }
            | Self::Unknown { object, .. }
            | Self::Duplicate { object, .. } => object.clone(),
            Self::Invalid { invalid, .. } => invalid.object.clone(),
            Self::Conflict(_) | Self::TooMany => "manifests".to_owned(),
        }
    }
}

/// What a folder says.
#[derive(Debug, Clone, Default)]
pub struct Manifests {
    /// The cluster's state.
    pub state: ClusterState,
    /// Objects of kinds that say nothing about the network, for a remark: `Deployment shop/web`.
    pub ignored: Vec<String>,
}

/// Reads a folder as it was at one moment. One that changed meanwhile, as when a ConfigMap volume
/// swaps all its files at once, is read again: half of the old and half of the new may say what
/// neither does.
///
/// # Errors
/// Every [`ManifestError`] found; the folder then counts for nothing.
pub fn read(directory: &Path) -> Result<Manifests, Vec<ManifestError>> {
    let mut before = Fingerprint::of(directory);
    for _ in 0..READS_MAX {
        let outcome = match &before {
            Ok(look) => read_files(look),
            Err(error) => Err(vec![error.clone().into()]),
        };
        let after = Fingerprint::of(directory);
        if after == before {
            return outcome;
        }
        before = after;
    }
    Err(vec![FolderError::Changing { path: directory.to_owned() }.into()])
}

fn read_files(look: &Fingerprint) -> Result<Manifests, Vec<ManifestError>> {
    let mut reader = Reader::default();
    for file in look.files() {
        match text_file::read(file, folder::FILE_BYTES_MAX) {
            Ok(text) => reader.file(file, &text),
            Err(error) => reader.errors.push(FolderError::from(error).into()),
        }
    }
    reader.finish()
}

/// Reads one file's text, as if it were the only one of its folder.
///
/// # Errors
/// As [`read`].
pub fn parse(file: &Path, text: &str) -> Result<Manifests, Vec<ManifestError>> {
    let mut reader = Reader::default();
    reader.file(file, text);
    reader.finish()
}

#[derive(Default)]
struct Reader {
    manifests: Manifests,
    origins: BTreeMap<String, Origin>,
    errors: Vec<ManifestError>,
}

impl Reader {
    fn file(&mut self, file: &Path, text: &str) {
        let options = yaml::manifest_options(text);
        match serde_saphyr::from_multiple_with_options::<Value>(text, options) {
            Ok(documents) => {
                for (index, document) in documents.into_iter().enumerate() {
                    let origin = Origin { file: file.to_owned(), document: index + 1 };
                    self.document(&origin, document);
                }
            }
            Err(error) => self.errors.push(ManifestError::Syntax {
                file: file.to_owned(),
                message: yaml::message(&error),
            }),
        }
    }

    fn document(&mut self, origin: &Origin, document: Value) {
        let field = |name: &str| document.get(name).and_then(Value::as_str).map(str::to_owned);
        if document.is_null() {
            return;
        }
        let (Some(version), Some(kind)) = (field("apiVersion"), field("kind")) else {
            self.errors.push(ManifestError::NoObject {
                origin: origin.clone(),
                message: "apiVersion or kind is missing: is this a Kubernetes manifest?".into(),
            });
            return;
        };
        if kind == "List" || (kind.ends_with("List") && document.get("items").is_some()) {
            return self.list(origin, &kind, document);
        }
        if self.origins.len() >= OBJECTS_MAX {
            if self.errors.last() != Some(&ManifestError::TooMany) {
                self.errors.push(ManifestError::TooMany);
            }
            return;
        }
        let object = title(&kind, &document);
        match self.object(origin, &version, &kind, document) {
            Some(Ok(read)) => self.insert(origin, object, read),
            Some(Err(error)) => self.errors.push(error),
            None => self.manifests.ignored.push(object),
        }
    }

    /// A list whose items were not found would be a folder without policies, which allows all.
    fn list(&mut self, origin: &Origin, kind: &str, mut document: Value) {
        let Some(Value::Array(items)) = document.get_mut("items").map(Value::take) else {
            let message = format!("{kind}: items is missing or no list: write the objects there");
            self.errors.push(ManifestError::NoObject { origin: origin.clone(), message });
            return;
        };
        let known = ["apiVersion", "kind", "metadata", "items"];
        let names = document.as_object().into_iter().flat_map(serde_json::Map::keys);
        let fields: Vec<String> = names
            .filter(|name| !known.contains(&name.as_str()))
            .map(|name| shortened(name))
            .collect();
        if !fields.is_empty() {
            let object = kind.to_owned();
            self.errors.push(ManifestError::Unknown { origin: origin.clone(), object, fields });
        }
        items.into_iter().for_each(|item| self.document(origin, item));
    }

    /// `None` for kinds that say nothing about the network.
    fn object(
        &self,
        origin: &Origin,
        version: &str,
        kind: &str,
        document: Value,
    ) -> Option<Result<Object, ManifestError>> {
        let Some(known) = Kind::ALL.into_iter().find(|known| known.name() == kind) else {
            let meant = misspelt(version, kind)?;
            let message = format!("{kind} is no kind that is read here: write {meant}");
            return Some(Err(ManifestError::NoObject { origin: origin.clone(), message }));
        };
        if version != known.api_version() {
            let message = format!(
                "{kind} of apiVersion {version} is not read here: write {}",
                known.api_version()
            );
            return Some(Err(ManifestError::NoObject { origin: origin.clone(), message }));
        }
        let object = title(kind, &document);
        let origin = || origin.clone();
        Some(read::object(known, document, UnknownFields::Refuse).map_err(|error| match error {
            ReadError::Type { field, message } => {
                ManifestError::Type { origin: origin(), object, field, message }
            }
            ReadError::Unknown(fields) => {
                ManifestError::Unknown { origin: origin(), object, fields }
            }
            ReadError::Invalid(invalid) => ManifestError::Invalid { origin: origin(), invalid },
        }))
    }

    fn insert(&mut self, origin: &Origin, object: String, read: Object) {
        if let Some(first) = self.origins.get(&object) {
            self.errors.push(ManifestError::Duplicate {
                object,
                first: first.clone(),
                second: origin.clone(),
            });
            return;
        }
        self.origins.insert(object, origin.clone());
        self.manifests.state.insert(read);
    }

    fn finish(mut self) -> Result<Manifests, Vec<ManifestError>> {
        let conflicts = self.manifests.state.conflicts();
        self.errors.extend(conflicts.into_iter().map(ManifestError::Conflict));
        if self.errors.is_empty() { Ok(self.manifests) } else { Err(self.errors) }
    }
}

/// The kind that was probably meant, for one of an API group that is read and that differs from it
/// by case, number or a slip of two letters: passed by as a stranger, a policy would not come into
/// force. Other groups' kinds may be spelt alike by right.
fn misspelt(version: &str, kind: &str) -> Option<&'static str> {
    let group = version.rsplit_once('/').map_or("", |(group, _)| group);
    if !matches!(group, "" | "discovery.k8s.io" | "networking.k8s.io") {
        return None;
    }
    let kind = kind.to_ascii_lowercase();
    let singular = match kind.strip_suffix("ies") {
        Some(stem) => format!("{stem}y"),
        None => kind.strip_suffix('s').unwrap_or(&kind).to_owned(),
    };
    Kind::ALL.into_iter().map(Kind::name).find(|known| {
        let known = known.to_ascii_lowercase();
        let slips_max = if known.len() > 4 { 2 } else { 1 };
        singular == known || distance(&known, &kind) <= slips_max
    })
}

/// Levenshtein's distance, for words.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, candidate) in other.bytes().enumerate() {
            let substituted = diagonal + usize::from(letter != candidate);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

fn title(kind: &str, document: &Value) -> String {
    let field = |name| document.get("metadata").and_then(|meta| meta.get(name)?.as_str());
    let name = shortened(field("name").unwrap_or("(no name)"));
    let kind = shortened(kind);
    // Namespaced objects without one are in `default`, as kubectl has it.
    let namespace = match kind.as_str() {
        "Namespace" | "Node" => None,
        _ => Some(shortened(field("namespace").unwrap_or("default"))),
    };
    namespace.map_or_else(|| format!("{kind} {name}"), |own| format!("{kind} {own}/{name}"))
}
