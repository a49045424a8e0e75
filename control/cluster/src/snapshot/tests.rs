use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use control::model::{Kind, Namespace, Object, PolicyMode};

use super::file::{SnapshotError, VERSION, encode, path, read, write};
use super::*;
use crate::compact;
use crate::follow::known::{Known, key};

fn namespaces(names: &[&str]) -> Vec<u8> {
    namespaces_of(names, SystemTime::now())
}

fn namespaces_of(names: &[&str], written: SystemTime) -> Vec<u8> {
    let mut known = Kind::ALL.map(Known::new);
    for name in names {
        let labels = [("tier".to_owned(), "one".to_owned())].into_iter().collect();
        let object =
            Object::Namespace(Namespace { name: (*name).into(), labels, mode: PolicyMode::Audit });
        known[0].set(key(&object.key().name), compact::encode(&object));
    }
    encode(Kind::ALL.into_iter().zip(&known), written).seal()
}

fn names(directory: &Path) -> Vec<String> {
    let snapshot = read(directory).unwrap();
    let name = |restored: Result<(Kind, &[u8]), _>| {
        let (kind, bytes) = restored.unwrap();
        compact::decode(kind, bytes).unwrap().to_string()
    };
    snapshot.objects().map(name).collect()
}

fn refusal(directory: &Path, bytes: &[u8]) -> String {
    std::fs::write(path(directory), bytes).unwrap();
    std::fs::set_permissions(path(directory), PermissionsExt::from_mode(0o600)).unwrap();
    read(directory).unwrap_err().to_string()
}

#[test]
fn what_was_written_is_read_and_takes_the_place_of_what_was_there() {
    let above = tempfile::tempdir().unwrap();
    let directory = above.path().join("state");
    assert_eq!(read(&directory).unwrap_err(), SnapshotError::Absent);
    write(&directory, &namespaces(&["shop", "bank"])).unwrap();
    assert_eq!(names(&directory), ["Namespace bank", "Namespace shop"]);
    write(&directory, &namespaces(&["mine"])).unwrap();
    assert_eq!(names(&directory), ["Namespace mine"]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&directory), mode(&path(&directory))), (0o700, 0o600));
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
    assert_eq!(read(&directory).unwrap().ahead(), None);
    let age = read(&directory).unwrap().written.elapsed().unwrap();
    assert!(age < Duration::from_secs(60), "{age:?}");
}

#[test]
fn what_a_clock_that_was_wrong_dates_is_read_all_the_same() {
    let state = tempfile::tempdir().unwrap();
    let day = Duration::from_secs(86_400);
    let future = SystemTime::now() + 400 * day;
    write(state.path(), &namespaces_of(&["shop"], future)).unwrap();
    let written = read(state.path()).unwrap().written;
    assert!(written.elapsed().is_err() && names(state.path()) == ["Namespace shop"]);
    assert!(read(state.path()).unwrap().ahead().is_some_and(|ahead| ahead > 399 * day));
    write(state.path(), &namespaces_of(&["shop"], SystemTime::UNIX_EPOCH - day)).unwrap();
    assert_eq!(read(state.path()).unwrap().written, SystemTime::UNIX_EPOCH);
    assert_eq!(names(state.path()), ["Namespace shop"]);
}

#[test]
fn what_is_cut_damaged_foreign_or_of_another_version_is_named() {
    let state = tempfile::tempdir().unwrap();
    let good = namespaces(&["shop", "bank"]);
    for length in 0..good.len() {
        let error = refusal(state.path(), &good[..length]);
        assert!(error.contains("ends too early") || error.contains("no snapshot"), "{error}");
        assert!(error.contains("cluster.snapshot"), "{error}");
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let error = refusal(state.path(), &bad);
        assert!(error.contains("written anew"), "{error}");
    }
    let mut other = good.clone();
    other[8] = VERSION as u8 + 1;
    let error = refusal(state.path(), &other);
    let versions = format!("version {}, and {VERSION} is read", VERSION + 1);
    assert!(error.contains(&versions), "{error}");
    let error = refusal(state.path(), b"#!/bin/sh and more than a header's length of other text");
    assert!(error.contains("no snapshot of a cluster"), "{error}");
    assert_eq!(names_of(&good), 2);
}

fn names_of(bytes: &[u8]) -> usize {
    let state = tempfile::tempdir().unwrap();
    write(state.path(), bytes).unwrap();
    read(state.path()).unwrap().objects().map(Result::unwrap).count()
}

#[test]
fn what_others_may_write_or_a_link_leads_to_is_not_believed() {
    let state = tempfile::tempdir().unwrap();
    write(state.path(), &namespaces(&["shop"])).unwrap();
    let file = path(state.path());
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
    let error = read(state.path()).unwrap_err().to_string();
    assert!(error.contains("nobody else may write"), "{error}");
    let elsewhere = state.path().join("elsewhere");
    std::fs::rename(&file, &elsewhere).unwrap();
    std::fs::set_permissions(&elsewhere, PermissionsExt::from_mode(0o600)).unwrap();
    symlink(&elsewhere, &file).unwrap();
    assert!(matches!(read(state.path()).unwrap_err(), SnapshotError::Io { .. }));
    write(state.path(), &namespaces(&["bank"])).unwrap();
    assert_eq!(names(state.path()), ["Namespace bank"], "the link is replaced, not followed");
    std::fs::set_permissions(state.path(), PermissionsExt::from_mode(0o777)).unwrap();
    assert!(matches!(read(state.path()).unwrap_err(), SnapshotError::Foreign { .. }));
    let refused = write(state.path(), &namespaces(&["mine"])).unwrap_err();
    assert!(matches!(refused, SnapshotError::Foreign { .. }), "{refused}");
}

#[test]
fn a_writing_that_fails_leaves_what_was_there_and_says_why() {
    let state = tempfile::tempdir().unwrap();
    write(state.path(), &namespaces(&["shop"])).unwrap();
    // A directory in the way stands for a disk that takes no more.
    std::fs::create_dir(state.path().join("cluster.snapshot.new")).unwrap();
    let error = write(state.path(), &namespaces(&["bank"])).unwrap_err().to_string();
    assert!(error.contains("cluster.snapshot.new"), "{error}");
    assert_eq!(names(state.path()), ["Namespace shop"]);
    let error = write(Path::new("/proc/none"), &namespaces(&[])).unwrap_err().to_string();
    assert!(error.contains("/proc/none"), "{error}");
}

#[test]
fn a_file_left_by_a_killed_process_is_no_hindrance() {
    let state = tempfile::tempdir().unwrap();
    std::fs::write(state.path().join("cluster.snapshot.new"), b"half").unwrap();
    std::fs::set_permissions(state.path(), PermissionsExt::from_mode(0o700)).unwrap();
    write(state.path(), &namespaces(&["shop"])).unwrap();
    assert_eq!(names(state.path()), ["Namespace shop"]);
}
