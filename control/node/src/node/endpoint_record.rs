//! Which pods the node serves and what it changed for them, in a file of the run directory, so that
//! the next process serves them from its start and can give that back, however this one ends.
//!
//! It holds for one boot of one machine, and an interface is known by its index as well as its
//! name, since another pod's may have the name by then. An entry that cannot be read is told, and costs no
//! other. What was there is kept aside then ([`EndpointRecord::keep_aside`]), and for as long as it is,
//! nobody knows of all programs on interfaces whose they are.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use control::admin::EndpointAdd;
use control::text_file::{self, TextFileError};
use dataplane::counters::PORTS_MAX;
use serde::{Deserialize, Serialize};
use xdp_redirect::ethtool::Offload;

use crate::offloads::{self, Switch};

mod reading;

pub use reading::{Found, Unread};
use reading::{RawContents, entry};

/// In the run directory.
const FILE: &str = "endpoints.json";
/// What the file begins as, before it is given its name.
const DRAFT: &str = "endpoints.json.new";
/// What of a record that could not be read is kept for whoever can.
const ASIDE: &str = "endpoints.json.unread";
/// Largest record, in bytes: 1,024 endpoints of 8 KiB.
const BYTES_MAX: u64 = 8 << 20;
/// Of the file's form.
const VERSION: u32 = 1;

/// An endpoint as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// What was asked for.
    pub endpoint: EndpointAdd,
    /// The kernel's index of the interface.
    pub ifindex: u32,
    /// What is to be given back when it is removed.
    #[serde(default)]
    pub changed: Changed,
}

/// What was changed for an endpoint outside the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changed {
    /// The interface's source validation (`rp_filter`) as it was.
    pub source_validation: Option<String>,
    /// Offloads of the pod's end that were switched, in `ethtool`'s words: `gro` was off, all others on.
    pub offloads: BTreeSet<String>,
}

impl Changed {
    /// Whether there is nothing to give back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What must be given back after `later` was changed as well.
    pub fn add(&mut self, later: &Self) {
        self.source_validation = later.source_validation.clone().or(self.source_validation.take());
        self.offloads.extend(later.offloads.iter().cloned());
    }

    /// Notes what was switched; what is as it was again needs no giving back.
    pub fn note(&mut self, switches: &[Switch]) {
        for (offload, on) in switches {
            let label = offload.label();
            if offloads::is_a_change((*offload, *on)) {
                self.offloads.insert(label.to_owned());
            } else {
                self.offloads.remove(label);
            }
        }
    }

    /// The switches that give the offloads back.
    #[must_use]
    pub fn back(&self) -> Vec<Switch> {
        self.offloads().map(|one| (one, offloads::is_a_change((one, false)))).collect()
    }

    /// The offloads, as far as their words are known, in the order in which they can be turned on.
    pub fn offloads(&self) -> impl Iterator<Item = Offload> {
        Offload::ALL.into_iter().filter(|offload| self.offloads.contains(offload.label()))
    }

    /// Words of the others, which another version knows.
    fn unknown_offloads(&self) -> impl Iterator<Item = &String> {
        let is_known = |word: &str| Offload::ALL.iter().any(|offload| offload.label() == word);
        self.offloads.iter().filter(move |word| !is_known(word))
    }

    fn validate(&self) -> Result<(), String> {
        let known = ["0", "1", "2"];
        match &self.source_validation {
            Some(value) if !known.contains(&value.as_str()) => {
                Err(format!("source validation {value:?}"))
            }
            _ => Ok(()),
        }
    }
}

/// All that is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Remembered {
    /// The endpoints.
    pub endpoints: Vec<Recorded>,
    /// Indices of interfaces that are there still, and whose endpoints were removed on request: whoever
    /// looks for pods by itself leaves them alone.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub removed: BTreeSet<u32>,
}

impl From<Vec<Recorded>> for Remembered {
    fn from(endpoints: Vec<Recorded>) -> Self {
        Self { endpoints, ..Self::default() }
    }
}

#[derive(Debug, Serialize)]
struct Contents {
    version: u32,
    /// The boot it was written in.
    boot_id: String,
    #[serde(flatten)]
    remembered: Remembered,
}

/// The record cannot be kept or used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read.
    #[error("{0}")]
    Read(#[from] TextFileError),
    /// It is not what was written.
    #[error(
        "{path}: {detail}; its endpoints must come anew, by themselves or by `xskiff endpoint add`"
    )]
    Unusable {
        /// The file.
        path: String,
        /// What is wrong.
        detail: String,
    },
    /// It cannot be written.
    #[error("{path}: {source}; endpoints will be forgotten when the process ends")]
    Write {
        /// The file.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The file.
#[derive(Debug)]
pub struct EndpointRecord {
    directory: PathBuf,
    boot_id: String,
    /// What the file holds, so that it is written only when that changes.
    written: Option<Remembered>,
}

impl EndpointRecord {
    /// The boot that this is.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// In `directory`, which is root's alone.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        // Without a boot id every boot is the same: the interfaces' indices tell most of it.
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let boot_id = boot_id.unwrap_or_default().trim().to_owned();
        Self { directory: directory.to_owned(), boot_id, written: None }
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// What the process before remembered, as far as it can be read; nothing when there was none in this
    /// boot.
    ///
    /// # Errors
    /// [`RecordError::Read`], [`RecordError::Unusable`]: nothing of it can be.
    pub fn read(&self) -> Result<Found, RecordError> {
        self.read_file(FILE)
    }

    /// What an older binary could not read of the record and kept aside, as far as this one can.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_aside(&self) -> Result<Found, RecordError> {
        self.read_file(ASIDE)
    }

    fn read_file(&self, name: &str) -> Result<Found, RecordError> {
        let path = self.directory.join(name);
        let refuse =
            |detail: String| RecordError::Unusable { path: path.display().to_string(), detail };
        match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Found::default());
            }
            Ok(found) if found.is_symlink() => return Err(refuse("it is a link".into())),
            Ok(found) if found.mode() & 0o077 != 0 => {
                return Err(refuse(format!("mode {:o} lets others in", found.mode() & 0o777)));
            }
            _ => {}
        }
        let text = text_file::read(&path, BYTES_MAX)?;
        let contents: RawContents<'_> =
            serde_json::from_str(&text).map_err(|error| refuse(error.to_string()))?;
        if contents.version != VERSION {
            return Err(refuse(format!("version {} is not {VERSION}", contents.version)));
        }
        if contents.boot_id != self.boot_id {
            return Ok(Found::default());
        }
        if contents.endpoints.len() > PORTS_MAX {
            return Err(refuse(format!("more than {PORTS_MAX} endpoints")));
        }
        let (mut endpoints, mut unread) = (Vec::new(), Vec::new());
        for (place, raw) in contents.endpoints.into_iter().enumerate() {
            match entry(raw, place + 1) {
                Ok(recorded) => endpoints.push(recorded),
                Err(error) => unread.push(error),
            }
        }
        let remembered = Remembered { endpoints, removed: contents.removed };
        Ok(Found { remembered, unread })
    }

    /// Keeps what stands there now aside, before another record takes its place.
    ///
    /// # Errors
    /// [`RecordError::Write`].
    pub fn keep_aside(&mut self) -> Result<(), RecordError> {
        let aside = self.directory.join(ASIDE);
        self.written = None;
        std::fs::rename(self.path(), &aside)
            .map_err(|source| RecordError::Write { path: aside.display().to_string(), source })
    }

    /// Whether something that could not be read, by this process or one before, is kept aside.
    #[must_use]
    pub fn is_any_aside(&self) -> bool {
        std::fs::symlink_metadata(self.directory.join(ASIDE)).is_ok()
    }

    /// Nobody misses it any more.
    pub fn forget_aside(&self) {
        if let Err(error) = std::fs::remove_file(self.directory.join(ASIDE)) {
            tracing::warn!(file = ASIDE, %error, "cannot be removed");
        }
    }

    /// Writes what is to be remembered, all at once: whoever reads finds the old record or the new one.
    ///
    /// # Errors
    /// [`RecordError::Write`]; the old record stands then.
    pub fn write(&mut self, remembered: Remembered) -> Result<(), RecordError> {
        if self.written.as_ref() == Some(&remembered) {
            return Ok(());
        }
        let contents = Contents { version: VERSION, boot_id: self.boot_id.clone(), remembered };
        self.replace(&contents).map_err(|source| {
            // Whatever stands there now, it is not known.
            self.written = None;
            RecordError::Write { path: self.path().display().to_string(), source }
        })?;
        self.written = Some(contents.remembered);
        Ok(())
    }

    /// Everything but what `still_changed` tells was given back.
    ///
    /// # Errors
    /// [`RecordError::Write`].
    pub fn forget_changes(
        &mut self,
        still_changed: impl Fn(&Recorded) -> bool,
    ) -> Result<(), RecordError> {
        let Some(mut remembered) = self.written.clone() else { return Ok(()) };
        for recorded in &mut remembered.endpoints {
            if !still_changed(recorded) {
                recorded.changed = Changed::default();
            }
        }
        self.write(remembered)
    }

    /// Not flushed to the disk: a power loss begins another boot, of which it says nothing.
    fn replace(&self, contents: &Contents) -> std::io::Result<()> {
        let draft = self.directory.join(DRAFT);
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.create_new(true).write(true).mode(0o600).open(&draft)?;
        file.write_all(&serde_json::to_vec(contents)?)?;
        std::fs::rename(&draft, self.path())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn recorded(name: &str) -> Recorded {
        let endpoint = EndpointAdd {
            name: name.into(),
            interface: "veth0".into(),
            netns: Some("/run/netns/pod".into()),
            addresses: vec!["10.1.0.5".parse().unwrap()],
            mac: Some("02:00:00:00:00:05".into()),
            attachment: None,
            pod_uid: None,
            bandwidth: None,
        };
        let offloads = ["tx".to_owned(), "tso".to_owned()].into();
        let changed = Changed { source_validation: Some("1".into()), offloads };
        Recorded { endpoint, ifindex: 7, changed }
    }

    #[test]
    fn what_was_written_is_read_by_the_next_process_and_by_root_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mut record = EndpointRecord::new(directory.path());
        assert_eq!(record.read().unwrap(), Found::default());
        let endpoints = vec![recorded("shop/cart-0"), recorded("shop/cart-1")];
        record.write(vec![recorded("shop/cart-9")].into()).unwrap();
        let all = Remembered { endpoints, removed: [7, 9].into() };
        record.write(all.clone()).unwrap();
        let next = EndpointRecord::new(directory.path());
        assert_eq!(next.read().unwrap(), Found { remembered: all, unread: Vec::new() });
        let mode = std::fs::metadata(record.path()).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no draft stays");
    }

    #[test]
    fn a_record_of_another_boot_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut record = EndpointRecord::new(directory.path());
        record.boot_id = "another".into();
        record.write(vec![recorded("shop/cart-0")].into()).unwrap();
        assert_eq!(EndpointRecord::new(directory.path()).read().unwrap(), Found::default());
    }

    #[test]
    fn a_record_that_was_tampered_with_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut record = EndpointRecord::new(directory.path());
        record.write(vec![recorded("shop/cart-0")].into()).unwrap();
        let good = std::fs::read_to_string(record.path()).unwrap();
        for (text, word) in [
            (String::new(), "EOF"),
            (good[..good.len() / 2].into(), "EOF"),
            (good.replace("\"version\":1", "\"version\":2"), "version 2"),
            (good.replace("\"endpoints\":[", "\"endpoints\":7,\"others\":["), "invalid type"),
        ] {
            std::fs::write(record.path(), text).unwrap();
            let error = record.read().unwrap_err().to_string();
            assert!(error.contains(FILE) && error.contains(word), "{word}: {error}");
        }
        std::fs::write(record.path(), &good).unwrap();
        let open = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(record.path(), open).unwrap();
        assert!(record.read().unwrap_err().to_string().contains("644"));
        let elsewhere = directory.path().join("elsewhere");
        std::fs::rename(record.path(), &elsewhere).unwrap();
        symlink(&elsewhere, record.path()).unwrap();
        assert!(record.read().unwrap_err().to_string().contains("link"));
        // And the next write mends it.
        record.written = None;
        record.write(vec![recorded("shop/cart-1")].into()).unwrap();
        assert_eq!(record.read().unwrap().remembered, vec![recorded("shop/cart-1")].into());
    }

    /// One entry that could not be read cost all pods of the node their policy.
    #[test]
    fn an_entry_that_cannot_be_read_is_named_and_costs_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let mut record = EndpointRecord::new(directory.path());
        let (one, other) = (recorded("shop/cart-0"), recorded("shop/cart-1"));
        let removed = BTreeSet::from([9]);
        let both = Remembered { endpoints: vec![one.clone(), other.clone()], removed };
        record.write(both).unwrap();
        let good = std::fs::read_to_string(record.path()).unwrap();
        let first = serde_json::to_string(&one).unwrap();
        for (old, new, word) in [
            ("ifindex", "index", "ifindex"),
            ("10.1.0.5", "224.0.0.1", "224.0.0.1"),
            ("veth0", "../veth", "interface"),
            ("[\"tso\"", "[7", "invalid type"),
            ("\"source_validation\":\"1\"", "\"source_validation\":\"7\"", "7"),
            ("\"addresses\":[\"10.1.0.5\"]", "\"addresses\":\"10.1.0.5\"", "invalid type"),
        ] {
            let bad = good.replace(&first, &first.replace(old, new));
            assert_ne!(bad, good, "{old}");
            std::fs::write(record.path(), bad).unwrap();
            let Found { remembered, unread } = record.read().unwrap();
            assert_eq!(remembered.endpoints, std::slice::from_ref(&other), "{old}");
            assert_eq!(remembered.removed, [9].into());
            let [Unread { object, why }] = &unread[..] else { panic!("{unread:?}") };
            assert!(object == "endpoint shop/cart-0" && why.contains(word), "{word}: {unread:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_kept_aside_until_nobody_misses_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut record = EndpointRecord::new(directory.path());
        record.write(vec![recorded("shop/cart-0")].into()).unwrap();
        std::fs::write(record.path(), "no JSON").unwrap();
        assert!(record.read().is_err() && !record.is_any_aside());
        record.keep_aside().unwrap();
        record.write(vec![recorded("shop/cart-1")].into()).unwrap();
        let next = EndpointRecord::new(directory.path());
        assert!(next.is_any_aside(), "the next process must know, too");
        assert_eq!(std::fs::read_to_string(directory.path().join(ASIDE)).unwrap(), "no JSON");
        assert!(next.read_aside().is_err());
        next.forget_aside();
        assert!(!next.is_any_aside() && next.read().is_ok());
    }

    #[test]
    fn what_was_first_found_is_given_back_and_what_was_given_back_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let mut record = EndpointRecord::new(directory.path());
        let mut changed = recorded("shop/cart-0").changed;
        // A process that finds everything changed already.
        changed.add(&Changed::default());
        assert_eq!(changed, recorded("shop/cart-0").changed);
        record.write(vec![recorded("shop/cart-0"), recorded("shop/cart-1")].into()).unwrap();
        record.forget_changes(|one| one.endpoint.name == "shop/cart-1").unwrap();
        let read = record.read().unwrap().remembered.endpoints;
        assert!(read[0].changed.is_empty() && !read[1].changed.is_empty(), "{read:?}");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let mut record = EndpointRecord::new(Path::new("/nonexistent"));
        let error = record.write(vec![recorded("shop/cart-0")].into()).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/endpoints.json"), "{error}");
    }
}
