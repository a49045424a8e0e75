//! The plugin's file is put where the runtime looks for it, by the very command that the init container of
//! deploy/kubernetes/node.yaml runs: whole or not at all.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use xskiff_tests::xskiff_binary::{path, plugin, root_or_skip};

const NAME: &str = "xskiff-cni";

/// The words of the init container, with a directory in the place of the mounted one.
fn words(bin: &Path) -> Vec<String> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes/node.yaml");
    let text = fs::read_to_string(manifest).expect("the manifest");
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    let set = documents.iter().find(|document| document["kind"] == "DaemonSet").expect("a set");
    let all = set["spec"]["template"]["spec"]["initContainers"].as_array().expect("a list");
    let own = all.iter().find(|container| container["name"] == "cni-plugin").expect("a container");
    assert_eq!(own["command"], serde_json::json!(["xskiff"]));
    let words = own["args"].as_array().expect("words").iter();
    let words = words.map(|word| word.as_str().expect("a word").to_owned());
    let words = words.map(|word| match word.split_once("--bin-dir=") {
        Some(_) => format!("--bin-dir={}", bin.display()),
        None => word,
    });
    words.collect()
}

/// An image's directory of programs, where the plugin lies beside `xskiff`, and a host's of plugins.
struct Image {
    directory: tempfile::TempDir,
}

impl Image {
    fn new(plugin: &[u8]) -> Self {
        let image = Self { directory: tempfile::tempdir().expect("a directory") };
        fs::create_dir(image.at("host")).expect("made");
        // No link: the program looks for the plugin beside the file that it really is.
        fs::copy(path(), image.at("xskiff")).expect("copied");
        image.update(plugin);
        image
    }

    fn update(&self, plugin: &[u8]) {
        fs::write(self.at(NAME), plugin).expect("written");
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn installed(&self) -> PathBuf {
        self.at("host").join(NAME)
    }

    fn install(&self) -> Output {
        Command::new(self.at("xskiff")).args(words(&self.at("host"))).output().expect("it runs")
    }

    fn done(&self) -> String {
        let output = self.install();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What is there beside the plugin.
    fn others(&self) -> Vec<String> {
        let entries = fs::read_dir(self.at("host")).expect("a directory").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name != NAME).collect()
    }
}

/// One that has been called, and waits for its configuration.
fn call(plugin: &Path) -> Child {
    let mut command = Command::new(plugin);
    command.env("CNI_COMMAND", "VERSION").stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().expect("it runs")
}

fn answer(mut called: Child) -> String {
    let mut input = called.stdin.take().expect("its standard input");
    input.write_all(b"{\"cniVersion\":\"1.0.0\"}").expect("it reads");
    drop(input);
    let output = called.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_plugin_that_is_there_stays_and_one_that_is_called_meanwhile_is_replaced() {
    let old = fs::read(plugin()).expect("the plugin");
    let image = Image::new(&old);
    assert!(image.done().contains("copied"));
    let first = fs::metadata(image.installed()).expect("a plugin");
    assert_eq!(first.permissions().mode() & 0o7777, 0o755);
    assert!(image.done().contains("nothing to do"));
    let same = fs::metadata(image.installed()).expect("a plugin");
    assert_eq!((same.ino(), same.mtime_nsec()), (first.ino(), first.mtime_nsec()));

    let called = call(&image.installed());
    assert!(fs::File::options().write(true).open(image.installed()).is_err(), "it is not running");
    // Another one, as far as bytes tell, that still runs.
    let new = [&*old, b"newer"].concat();
    image.update(&new);
    assert!(image.done().contains("copied"));
    assert!(fs::read(image.installed()).expect("a plugin") == new);
    for called in [called, call(&image.installed())] {
        assert!(answer(called).contains("\"1.1.0\""));
    }
    assert_eq!(image.others(), Vec::<String>::new());

    // One that nobody may run, and what a killed copy has left.
    fs::set_permissions(image.installed(), fs::Permissions::from_mode(0o644)).expect("set");
    fs::write(image.at("host").join(format!(".{NAME}.xskiff-new")), "half").expect("written");
    assert!(image.done().contains("copied"));
    let mended = fs::metadata(image.installed()).expect("a plugin");
    assert_eq!(mended.permissions().mode() & 0o7777, 0o755);
    assert_eq!(image.others(), Vec::<String>::new());
}

/// Runs it with the host's directory on a file system of its own, which `options` says more of; the
/// plugin that was there before must be there to the byte, and nothing beside it.
fn refused(image: &Image, size: &str, then: &str) -> String {
    let (host, before) = (image.at("host"), image.at("before"));
    let (host, before) = (host.display(), before.display());
    let program = image.at("xskiff");
    let script = format!(
        "set -e; mount -t tmpfs -o size={size} tmpfs {host}; cp {before} {host}/{NAME}; {then}; set +e; \
         \"$@\"; code=$?; cmp {before} {host}/{NAME} || exit 99; \
         test \"$(ls -A {host})\" = {NAME} || exit 98; exit $code"
    );
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", &script, "sh"])
        .arg(program)
        .args(words(&image.at("host")));
    let output = command.output().expect("unshare, of util-linux, runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

#[test]
fn a_directory_that_is_full_or_read_only_is_named_and_has_what_it_had() {
    if !root_or_skip("file systems for a plugin") {
        return;
    }
    let image = Image::new(&vec![1; 200 << 10]);
    fs::write(image.at("before"), vec![2; 4096]).expect("written");
    for (size, then, word) in [
        ("64k", "true".to_owned(), "No space left on device"),
        (
            "1m",
            format!("mount -o remount,ro {}", image.at("host").display()),
            "Read-only file system",
        ),
    ] {
        let said = refused(&image, size, &then);
        let named = image.installed().display().to_string();
        assert!(said.contains(word) && said.contains(&named), "{said}");
        assert!(said.contains("204800 bytes"), "{said}");
    }
    assert_eq!(image.others(), Vec::<String>::new());
}
