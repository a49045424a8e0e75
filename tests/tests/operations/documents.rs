//! What documents name exists: every command with its options, every metric, every file of the tree
//! that they link or show.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use clap::{Command, CommandFactory};
use control::admin::Status;
use control::admin::cni::{ChainStatus, CniStatus};
use control::admin::kubernetes::{KindStatus, KubernetesStatus, ServerStatus, SnapshotStatus};
use control::config::{Config, OnExit};
use xskiff::cli::Cli;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every document for operators, with its name.
fn documents() -> Vec<(String, String)> {
    let mut files = vec![root().join("README.md"), root().join("ARCHITECTURE.md")];
    let docs = std::fs::read_dir(root().join("docs")).expect("docs");
    files.extend(docs.map(|entry| entry.expect("an entry").path()));
    files.push(root().join("deploy/prometheus/alerts.yaml"));
    files
        .into_iter()
        .map(|file| {
            let text =
                std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
            let name = file.file_name().expect("a file").to_string_lossy().into_owned();
            (name, text)
        })
        .collect()
}

/// What stands in `...`, and lines of code blocks.
fn code(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut prose = String::new();
    let mut is_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_block = !is_block;
            prose.push('\n');
        } else if is_block {
            found.push(line.trim().to_owned());
        } else {
            prose.push_str(line);
            // An inline command may go on in the next line.
            prose.push(' ');
        }
    }
    found.extend(prose.split('`').skip(1).step_by(2).map(str::to_owned));
    found
}

/// The words behind `xskiff`, where a line or span runs it: at its start, behind `sudo`, or behind `--`
/// of `kubectl exec`.
fn words_of(code: &str) -> Option<Vec<&str>> {
    let code = code.split(" #").next().unwrap_or_default();
    let code = code.split(" | ").next().unwrap_or_default();
    let words: Vec<&str> = code.split_whitespace().collect();
    // A namespace has the same name.
    let runs = |at: usize| at == 0 || matches!(words[at - 1], "sudo" | "--");
    let at = (0..words.len()).find(|at| words[*at] == "xskiff" && runs(*at))?;
    Some(words[at + 1..].to_vec())
}

/// What is wrong with a command line, as far as it can be told without its arguments.
fn wrong(words: &[&str], cli: &Command) -> Option<String> {
    let mut command = cli;
    let mut arguments = 0;
    for word in words {
        let name = word.split('=').next().unwrap_or_default();
        if let Some(long) = name.strip_prefix("--") {
            let has = |command: &Command| {
                command.get_arguments().any(|argument| argument.get_long() == Some(long))
            };
            if !has(command) && !has(cli) && !["help", "version"].contains(&long) {
                return Some(format!("{} has no --{long}", command.get_name()));
            }
        } else if !name.starts_with('-') && arguments == 0 && command.has_subcommands() {
            match command.find_subcommand(name) {
                Some(found) => command = found,
                None if name.chars().all(|c| c.is_ascii_lowercase() || c == '-') => {
                    return Some(format!("{} has no {name}", command.get_name()));
                }
                // A placeholder, as in `xskiff COMMAND`.
                None => arguments += 1,
            }
        } else {
            arguments += 1;
        }
    }
    None
}

#[test]
fn every_command_in_a_document_exists_with_its_options() {
    let mut cli = Cli::command();
    cli.build();
    let (mut seen, mut faults) = (BTreeSet::new(), Vec::new());
    for (file, text) in documents() {
        for code in code(&text) {
            let Some(words) = words_of(&code) else { continue };
            faults.extend(wrong(&words, &cli).map(|fault| format!("{file}: `{code}`: {fault}")));
            seen.extend(words.first().map(|word| (*word).to_owned()));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    for command in ["status", "preflight", "kube-proxy", "drops", "config"] {
        assert!(seen.contains(command), "no document shows {command}: {seen:?}");
    }
}

#[test]
fn a_wrong_command_would_be_seen() {
    let mut cli = Cli::command();
    cli.build();
    for (line, is_right) in [
        ("xskiff ct list --endpoint shop/cart-0", true),
        ("sudo xskiff --json status", true),
        ("xskiff ct lsit", false),
        ("xskiff status --fast", false),
        ("kubectl -n xskiff exec NODE -- xskiff kube-proxy clean --yes", true),
        ("xskiff kube-proxy clean --force", false),
        ("xskiff frobnicate", false),
    ] {
        let words = words_of(line).expect("a command");
        assert_eq!(wrong(&words, &cli).is_none(), is_right, "{line}");
    }
    assert_eq!(words_of("apt install xskiff"), None);
}

/// Names in `/metrics` of a node that has everything.
fn metrics() -> BTreeSet<String> {
    let kubernetes = KubernetesStatus {
        kinds: vec![KindStatus::default()],
        servers: vec![ServerStatus::default()],
        snapshot: SnapshotStatus { age_seconds: Some(1), ..SnapshotStatus::default() },
        ..KubernetesStatus::default()
    };
    let cni = CniStatus { chain: Some(ChainStatus::default()), ..CniStatus::default() };
    let status = Status { kubernetes: Some(kubernetes), cni, ..Status::default() };
    let page = xskiff::metrics::encode(&status).expect("metrics");
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    types.map(str::to_owned).collect()
}

fn named(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c| !is_name(c)).filter(|word| word.starts_with("xskiff_"));
    words.filter(|word| !word.ends_with('_')).map(str::to_owned).collect()
}

#[test]
fn every_metric_in_a_document_exists() {
    let known = metrics();
    assert!(known.len() > 60, "{known:?}");
    let mut faults = Vec::new();
    for (file, text) in documents() {
        // Crates and programs of this tree have such names, too.
        let own = ["xskiff_binary", "xskiff_tests", "xskiff_perf", "xskiff_frags"];
        let named = named(&text).into_iter().filter(|name| !own.contains(&name.as_str()));
        let unknown =
            named.filter(|name| !known.contains(name) && !name.starts_with("xskiff_relay_"));
        faults.extend(unknown.map(|name| format!("{file}: {name}")));
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn every_alert_is_one_that_prometheus_takes_and_operators_are_told_what_to_do() {
    let file = root().join("deploy/prometheus/alerts.yaml");
    let checked = Process::new("promtool").args(["check", "rules"]).arg(&file).output();
    let checked = checked.expect("promtool, of Debian's package `prometheus`, is needed");
    assert!(checked.status.success(), "{checked:?}");
    let text = std::fs::read_to_string(&file).expect("alerts");
    let manual = std::fs::read_to_string(root().join("docs/operations.md")).expect("the manual");
    let alerts = text.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let mut count = 0;
    for alert in alerts {
        assert!(
            manual.contains(&format!("`{alert}`")),
            "docs/operations.md knows nothing of {alert}"
        );
        count += 1;
    }
    assert!(count >= 8, "{count}");
}

#[test]
fn every_file_that_a_document_links_is_there() {
    let mut faults = Vec::new();
    for (folder, file) in [("", "README.md"), ("docs", "operations.md"), ("docs", "from-cilium.md")]
    {
        let text = std::fs::read_to_string(root().join(folder).join(file)).expect("a document");
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let path = link.split('#').next().unwrap_or_default();
            if !root().join(folder).join(path).exists() {
                faults.push(format!("{file}: {link}"));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// The code blocks of a document's section, lines that go on joined.
fn section(document: &str, title: &str) -> String {
    let documents = documents();
    let (_, text) = documents.iter().find(|(name, _)| name == document).expect("a document");
    let (_, rest) = text.split_once(&format!("\n{title}\n")).expect("its section");
    let level = title.split(' ').next().expect("a title");
    let end = rest.find(&format!("\n{level} ")).unwrap_or(rest.len());
    code(&rest[..end].replace("\\\n", " ")).join("\n")
}

/// The configuration of the chart's own values, with what a command line sets on it.
fn chart_config(line: &str) -> Config {
    let values = std::fs::read_to_string(root().join("deploy/chart/values.yaml")).expect("values");
    let mut values: serde_json::Value = serde_saphyr::from_str(&values).expect("YAML");
    let mut words = line.split_whitespace();
    while words.by_ref().any(|word| word == "--set") {
        let (key, value) = words.next().and_then(|set| set.split_once('=')).expect("KEY=VALUE");
        let place = key.split('.').fold(&mut values, |place, part| &mut place[part]);
        *place = value.parse::<bool>().map_or_else(|_| value.into(), Into::into);
    }
    // As the template does.
    let servers = values["apiServers"].take();
    values["node"]["config"]["kubernetes"]["api_servers"] = servers;
    Config::parse(&values["node"]["config"].to_string()).unwrap_or_else(|error| panic!("{error}"))
}

/// The last processes left their programs, and every pod was cut off for good.
#[test]
fn whoever_takes_the_chart_away_as_documented_leaves_nothing_attached() {
    assert_eq!(chart_config("").stall.on_exit, OnExit::Drop);
    let commands = section("operations.md", "## Take it away");
    let upgrade = commands.lines().find(|line| line.starts_with("helm upgrade")).expect("it");
    let config = chart_config(upgrade);
    assert_eq!((config.stall.on_exit, config.cni.keep_chained), (OnExit::Detach, false));
    // In force before the plugin is taken out, and that before the node goes.
    let order =
        ["helm upgrade", "rollout restart", "rollout status", "cni uninstall", "helm uninstall"];
    let places = order.map(|step| commands.find(step).unwrap_or_else(|| panic!("no {step}")));
    assert!(places.is_sorted(), "{commands}");
}

/// `helm install --create-namespace` gives it none, and the pods were not admitted.
#[test]
fn whoever_installs_the_chart_is_told_the_label_of_its_namespace() {
    let file = root().join("deploy/kubernetes/namespace.yaml");
    let namespace = std::fs::read_to_string(file).expect("a manifest");
    let namespace: serde_json::Value = serde_saphyr::from_str(&namespace).expect("YAML");
    let commands = section("operations.md", "### On Kubernetes");
    for (key, value) in namespace["metadata"]["labels"].as_object().expect("labels") {
        let value = value.as_str().expect("text");
        let line = format!("kubectl label namespace xskiff {key}={value}");
        assert!(commands.contains(&line), "{line}: {commands}");
    }
}
