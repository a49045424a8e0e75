//! Files in a directory of their own.

use std::os::unix::fs::symlink;

use super::*;

const LIST: &str =
    "{\"name\":\"pods\",\"cniVersion\":\"1.0.0\",\"plugins\":[{\"type\":\"ptp\"}]}\n";
const SINGLE: &str = "{\"name\":\"pods\",\"cniVersion\":\"0.4.0\",\"type\":\"bridge\"}\n";

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn text(directory: &Path, name: &str) -> String {
    fs::read_to_string(directory.join(name)).unwrap()
}

#[test]
fn the_first_file_by_name_is_chained_once_and_given_back_to_the_byte() {
    let directory =
        directory(&[("20-b.conflist", LIST), ("10-a.conflist", LIST), ("00-x.txt", "{")]);
    let directory = directory.path();
    let entry = Entry::default();
    let chained = chain(directory, &entry).unwrap();
    assert_eq!((chained.file.ends_with("10-a.conflist"), chained.written), (true, true));
    assert!(!chain(directory, &entry).unwrap().written);
    assert!(look(directory).chained);
    assert_eq!(text(directory, "20-b.conflist"), LIST);
    assert_eq!(unchain(directory).unwrap(), [directory.join("10-a.conflist")]);
    assert_eq!(text(directory, "10-a.conflist"), LIST);
    assert_eq!(names(directory), ["00-x.txt", "10-a.conflist", "20-b.conflist"]);
    assert!(unchain(directory).unwrap().is_empty());
}

#[test]
fn owner_and_permissions_stay_and_so_does_a_link() {
    let directory = directory(&[("real.txt", LIST)]);
    let directory = directory.path();
    let real = directory.join("real.txt");
    fs::set_permissions(&real, Permissions::from_mode(0o640)).unwrap();
    symlink("real.txt", directory.join("10-a.conflist")).unwrap();
    chain(directory, &Entry::default()).unwrap();
    let found = fs::metadata(&real).unwrap();
    assert_eq!(found.mode() & 0o7777, 0o640);
    assert!(fs::symlink_metadata(directory.join("10-a.conflist")).unwrap().is_symlink());
    assert!(text(directory, "real.txt").contains(PLUGIN));
}

#[test]
fn a_single_plugins_file_is_set_aside_and_brought_back() {
    let directory = directory(&[("10-a.conf", SINGLE)]);
    let directory = directory.path();
    assert!(!look(directory).chained && look(directory).error.is_none());
    let chained = chain(directory, &Entry::default()).unwrap();
    assert!(chained.file.ends_with("10-a.conflist"));
    assert_eq!(names(directory), ["10-a.conf.before-xskiff", "10-a.conflist"]);
    assert!(!chain(directory, &Entry::default()).unwrap().written);
    unchain(directory).unwrap();
    assert_eq!(names(directory), ["10-a.conf"]);
    assert_eq!(text(directory, "10-a.conf"), SINGLE);
}

#[test]
fn a_single_plugins_list_that_others_edited_keeps_their_edits() {
    let directory = directory(&[("10-a.conf", SINGLE)]);
    let directory = directory.path();
    chain(directory, &Entry::default()).unwrap();
    let edited = text(directory, "10-a.conflist").replace("bridge", "ptp");
    fs::write(directory.join("10-a.conflist"), edited).unwrap();
    unchain(directory).unwrap();
    assert_eq!(names(directory), ["10-a.conflist"]);
    let left = text(directory, "10-a.conflist");
    assert!(left.contains("ptp") && !left.contains(PLUGIN), "{left}");
}

/// As a process that was killed between the two renames leaves it.
#[test]
fn a_single_plugins_file_that_is_still_in_force_is_set_aside_by_the_next_try() {
    let directory = directory(&[("10-a.conf", SINGLE)]);
    let directory = directory.path();
    chain(directory, &Entry::default()).unwrap();
    fs::rename(set_aside(&directory.join("10-a.conf")), directory.join("10-a.conf")).unwrap();
    assert!(!look(directory).chained, "its name comes first");
    assert!(chain(directory, &Entry::default()).unwrap().written);
    assert_eq!(names(directory), ["10-a.conf.before-xskiff", "10-a.conflist"]);
}

#[test]
fn another_list_of_the_same_name_is_not_overwritten() {
    let directory = directory(&[("10-a.conf", SINGLE), ("10-a.conflist", LIST)]);
    let error = chain(directory.path(), &Entry::default()).unwrap_err().to_string();
    assert!(error.contains("10-a.conf:") && error.contains("10-a.conflist"), "{error}");
    assert_eq!(text(directory.path(), "10-a.conflist"), LIST);
}

#[test]
fn what_is_no_json_is_left_and_named_with_its_place() {
    let broken = "{\n  \"name\": \"pods\",\n  plugins: []\n}\n";
    for name in ["10-a.conflist", "10-a.conf"] {
        let directory = directory(&[(name, broken)]);
        let error = chain(directory.path(), &Entry::default()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("line 3 column"), "{error}");
        assert_eq!(text(directory.path(), name), broken);
        assert_eq!(names(directory.path()), [name]);
        assert!(look(directory.path()).error.unwrap().contains(name));
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_not_overwritten() {
    let directory = directory(&[("10-a.conflist", LIST)]);
    let path = directory.path().join("10-a.conflist");
    let (_, stamp) = read(&path).unwrap();
    let newer = LIST.replace("ptp", "bridge");
    fs::write(&path, &newer).unwrap();
    let error = replace(&path, &stamp, "ours").unwrap_err();
    assert!(matches!(error, CniFileError::Changed { .. }), "{error}");
    assert_eq!(text(directory.path(), "10-a.conflist"), newer);
    assert_eq!(names(directory.path()), ["10-a.conflist"]);
}

#[test]
fn a_directory_without_a_configuration_or_that_is_not_there_is_named() {
    let directory = directory(&[]);
    let error = chain(directory.path(), &Entry::default()).unwrap_err().to_string();
    assert!(error.contains("install the primary plugin first"), "{error}");
    assert_eq!(look(directory.path()).file, None);
    let error = chain(Path::new("/nonexistent/net.d"), &Entry::default()).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/net.d"), "{error}");
}

#[test]
fn the_plugin_is_copied_once_and_may_be_run() {
    let directory = directory(&[("plugin", "#!/bin/sh\n")]);
    let (plugin, bin) = (directory.path().join("plugin"), directory.path().join("bin"));
    assert!(install_plugin(&plugin, &bin).unwrap());
    assert!(!install_plugin(&plugin, &bin).unwrap());
    fs::write(&plugin, "#!/bin/sh\nexit 1\n").unwrap();
    assert!(install_plugin(&plugin, &bin).unwrap());
    assert_eq!(fs::metadata(bin.join(PLUGIN)).unwrap().mode() & 0o777, 0o755);
    assert_eq!(names(&bin), [PLUGIN]);
    assert!(remove_plugin(&bin).unwrap());
    assert!(!remove_plugin(&bin).unwrap());
}
