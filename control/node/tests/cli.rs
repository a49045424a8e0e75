//! The `xskiff` binary as a shell sees it: exit codes, and what goes to which stream. A node is
//! played by a socket; root is not needed.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use control::admin::policy::{
    Excerpt, FoundIdentity, IdentityInfo, IdentityListing, PolicyInfo, PolicyListing, PolicyStatus,
};
use control::admin::status::{Level, Verdict};
use control::admin::{CaptureDirection, CaptureRecord, Reply, StreamItem};
use serde_json::Value;

fn xskiff(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xskiff"));
    command.args(words).stdin(Stdio::null()).output().expect("the binary runs")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&out(output)).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Answers one client of `socket` with `replies`; gives what it asked.
fn play_node(socket: &Path, replies: Vec<Reply>) -> std::thread::JoinHandle<Value> {
    let listener = UnixListener::bind(socket).expect("a socket");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut request = String::new();
        BufReader::new(stream.try_clone().expect("a handle"))
            .read_line(&mut request)
            .expect("asked");
        for reply in replies {
            writeln!(stream, "{}", serde_json::to_string(&reply).expect("JSON")).expect("told");
        }
        serde_json::from_str(&request).expect("a request")
    })
}

/// What a command asks of the node, and what it makes of the answer.
fn ask(words: &[&str], reply: Reply) -> (Value, Output) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("admin.sock");
    let node = play_node(&socket, vec![reply]);
    let output = xskiff(&[&["--socket", socket.to_str().unwrap()], words].concat());
    assert_eq!(output.status.code(), Some(0), "{words:?}: {output:?}");
    (node.join().unwrap()["request"].clone(), output)
}

#[test]
fn identities_are_asked_for_by_page_or_by_name_and_shown_as_a_table_or_json() {
    let info = IdentityInfo { number: 257, kind: "pod".into(), ..IdentityInfo::default() };
    let page = IdentityListing { rows: vec![info.clone()], total: 100_006, next: Some(257) };
    let words = ["identity", "list", "--limit", "1", "--after", "256"];
    let (request, output) = ask(&words, Reply::Identities(page.clone()));
    assert_eq!(request, serde_json::json!({"identity_list": {"limit": 1, "after": 256}}));
    let text = out(&output);
    assert!(text.starts_with("IDENTITY  KIND"), "{text}");
    assert!(text.ends_with("1 of 100 006 are shown; go on with --after 257\n"), "{text}");
    let (_, output) = ask(&["--json", "identity", "list"], Reply::Identities(page));
    assert_eq!(json(&output)["next"], 257);

    let of = vec!["10.1.0.5".parse().unwrap()];
    let found = || Reply::Identity(vec![FoundIdentity { of: of.clone(), identity: info.clone() }]);
    let (request, output) = ask(&["identity", "get", "shop/cart-0"], found());
    assert_eq!(request["identity_get"]["what"], "shop/cart-0");
    assert!(out(&output).starts_with("10.1.0.5 is identity 257: pod\n"), "{output:?}");
    let (_, output) = ask(&["--json", "identity", "get", "257"], found());
    assert_eq!(json(&output)[0]["identity"]["number"], 257);
}

#[test]
fn policies_are_listed_by_namespace_and_a_status_opens_with_the_verdict() {
    let row = PolicyInfo {
        name: "shop/web".into(),
        problems: Excerpt { first: vec!["unknown field spec.x".into()], left_out: 0 },
        ..PolicyInfo::default()
    };
    let page = PolicyListing { rows: vec![row], total: 1, ..PolicyListing::default() };
    let (request, output) = ask(&["policy", "list", "-n", "shop"], Reply::Policies(page));
    assert_eq!(request, serde_json::json!({"policy_list": {"namespace": "shop", "limit": 100}}));
    assert!(out(&output).contains("problem: shop/web: unknown field spec.x\n"), "{output:?}");

    let verdict = Verdict {
        level: Level::Degraded,
        summary: "1 problem".into(),
        next_step: "mend it".into(),
    };
    let status = || {
        Reply::PolicyStatus(Box::new(PolicyStatus {
            verdict: verdict.clone(),
            ..PolicyStatus::default()
        }))
    };
    let (request, output) = ask(&["policy", "status", "shop/web"], status());
    assert_eq!(request["policy_status"]["name"], "shop/web");
    assert!(out(&output).starts_with("DEGRADED: 1 problem\nnext: mend it\n"), "{output:?}");
    let (_, output) = ask(&["--json", "policy", "status"], status());
    assert_eq!(json(&output)["verdict"]["level"], "degraded");
}

#[test]
fn a_checked_configuration_is_told_as_json_with_everything_that_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("xskiff.yaml");
    let path = file.to_str().unwrap();
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        xskiff(&["--json", "config", "check", path])
    };
    let good = check("timeouts: {udp_stream_seconds: 5}");
    assert_eq!(good.status.code(), Some(0));
    let told = json(&good);
    assert_eq!((&told["ok"], &told["errors"]), (&Value::Bool(true), &Value::Array(Vec::new())));
    assert!(told["cautions"][0].as_str().unwrap().contains("udp_stream_seconds"), "{told}");

    let bad = check("workers: {count: 0}\npacket_memory: {frame_bytes: 100}");
    assert_eq!(bad.status.code(), Some(1));
    let told = json(&bad);
    assert_eq!(told["ok"], Value::Bool(false));
    let errors: Vec<&str> =
        told["errors"].as_array().unwrap().iter().map(|e| e.as_str().unwrap()).collect();
    assert!(errors.iter().any(|error| error.contains("workers.count")), "{errors:?}");
    assert!(errors.iter().any(|error| error.contains("packet_memory.frame_bytes")), "{errors:?}");
    assert!(err(&bad).contains("workers.count"), "{bad:?}");

    std::fs::remove_file(&file).unwrap();
    let absent = xskiff(&["--json", "config", "check", path]);
    assert_eq!(absent.status.code(), Some(1));
    assert!(json(&absent)["errors"][0].as_str().unwrap().contains(path));
}

#[test]
fn a_capture_ends_with_a_summary_as_json_beside_the_packets() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, file) = (directory.path().join("admin.sock"), directory.path().join("out.pcapng"));
    let record = || {
        let record = CaptureRecord {
            time_unix_ns: 1,
            interface: "veth1".into(),
            direction: CaptureDirection::Received,
            reason: None,
            length_bytes: 60,
            frame: "0102".into(),
        };
        Reply::Item(StreamItem::Packet(record))
    };
    let words = |to: &str| {
        let socket = socket.to_str().unwrap();
        ["--socket", socket, "--json", "capture", "-w", to].map(str::to_owned)
    };
    let run = |to: &str| xskiff(&words(to).each_ref().map(String::as_str));

    let node = play_node(&socket, vec![record(), record(), Reply::End { lost: 3 }]);
    let to_file = run(file.to_str().unwrap());
    node.join().unwrap();
    assert_eq!(to_file.status.code(), Some(0), "{to_file:?}");
    let told = json(&to_file);
    assert_eq!((told["packets"].as_u64(), told["lost"].as_u64()), (Some(2), Some(3)));
    assert_eq!(told["file"].as_str(), file.to_str());
    assert!(std::fs::metadata(&file).unwrap().len() > 0);

    std::fs::remove_file(&socket).unwrap();
    let node = play_node(&socket, vec![record(), Reply::End { lost: 0 }]);
    let to_output = run("-");
    node.join().unwrap();
    assert_eq!(to_output.stdout, {
        let written = std::fs::read(&file).unwrap();
        // One packet less than the file: the blocks before it are the same.
        written[..to_output.stdout.len()].to_vec()
    });
    let told: Value = serde_json::from_str(&err(&to_output)).expect("the summary alone");
    assert_eq!(told["packets"].as_u64(), Some(1));
}

#[test]
fn wrong_usage_is_64_and_goes_to_standard_error() {
    for words in [
        &[][..],
        &["frobnicate"],
        &["status", "--no-such-option"],
        &["ct", "list", "--port", "70000"],
        &["identity", "get"],
        &["identity", "list", "--limit", "0"],
        &["policy", "list", "--limit", "1001"],
        &["policy", "status", "shop/web", "--namespace", "shop"],
        // Understood by itself, and makes no sense.
        &["ct", "flush"],
        &["ct", "flush", "--all", "--address", "10.0.0.1"],
    ] {
        let output = xskiff(&[&["--socket", "/nonexistent/admin.sock"], words].concat());
        assert_eq!(output.status.code(), Some(64), "{words:?}: {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{words:?}: {output:?}");
    }
}

#[test]
fn what_was_asked_for_is_0_and_what_cannot_be_done_is_1_and_names_the_thing() {
    for words in [&["--help"][..], &["--version"], &["ct", "--help"]] {
        let output = xskiff(words);
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        assert!(out(&output).contains("xskiff") && output.stderr.is_empty(), "{output:?}");
    }
    for (words, thing) in [
        (&["--socket", "/nonexistent/admin.sock", "status"][..], "/nonexistent/admin.sock"),
        (&["config", "check", "/nonexistent/xskiff.yaml"], "/nonexistent/xskiff.yaml"),
        (&["run", "--config", "/nonexistent/xskiff.yaml"], "/nonexistent/xskiff.yaml"),
    ] {
        let output = xskiff(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
        assert!(output.stdout.is_empty() && err(&output).contains(thing), "{output:?}");
    }
}

/// Commands that a person may type, by their path.
const COMMANDS: [&str; 12] = [
    "run", "status", "endpoint", "service", "ct", "identity", "policy", "drops", "flows",
    "capture", "config", "demo",
];

#[test]
fn completions_of_every_shell_know_the_commands_and_are_good_shell() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = xskiff(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let script = out(&output);
        for command in COMMANDS {
            assert!(script.contains(command), "{shell} does not know {command}");
        }
        if shell == "bash" {
            let file = directory.path().join("xskiff.bash");
            std::fs::write(&file, script).unwrap();
            let checked = Command::new("bash").arg("-n").arg(&file).output().expect("bash");
            assert!(checked.status.success() && checked.stderr.is_empty(), "{checked:?}");
        }
    }
    assert_eq!(xskiff(&["completions", "ksh"]).status.code(), Some(64));
}

#[test]
fn manual_pages_are_printed_or_written_one_for_every_command() {
    let printed = xskiff(&["man"]);
    assert_eq!(printed.status.code(), Some(0));
    let first = out(&printed);
    assert!(first.contains(".TH xskiff 1") && first.contains("SUBCOMMANDS"), "{first}");
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man1");
    assert_eq!(xskiff(&["man", "--directory", pages.to_str().unwrap()]).status.code(), Some(0));
    let commands = COMMANDS.map(|command| format!("xskiff-{command}.1"));
    let deeper = [
        "xskiff.1",
        "xskiff-ct-list.1",
        "xskiff-config-diff.1",
        "xskiff-endpoint-add.1",
        "xskiff-identity-get.1",
        "xskiff-policy-status.1",
    ];
    for page in commands.iter().map(String::as_str).chain(deeper) {
        let text = std::fs::read_to_string(pages.join(page))
            .unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
    let taken = directory.path().join("file");
    std::fs::write(&taken, "").unwrap();
    let refused = xskiff(&["man", "--directory", taken.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(err(&refused).contains(taken.to_str().unwrap()), "{refused:?}");
}
