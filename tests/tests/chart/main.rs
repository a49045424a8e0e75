//! deploy/chart: rendered with its own values it is what deploy/kubernetes says, and what it refuses; both
//! and the demo's manifests fit the schemas of Kubernetes, by which kubectl and API servers validate.
//!
//! `make chart` runs this. It needs helm and kubernetes-validate, which neither Debian nor cargo has, so
//! that it is no part of `make test`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use control::config::Config;
use serde_json::Value;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn helm(more: &[&str]) -> Output {
    let chart = deploy().join("chart");
    let mut command = Command::new("helm");
    command.args(["template", "xskiff"]).arg(chart).args(["--namespace", "xskiff"]).args(more);
    command.output().expect("install helm (https://helm.sh/docs/intro/install)")
}

/// Documents by kind and name. Text that is YAML itself is compared by what it says.
fn by_name(text: &str) -> BTreeMap<String, Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML");
    let documents = documents.into_iter().filter(|document| !document.is_null());
    let named = documents.map(|mut document| {
        let name = format!("{} {}", document["kind"], document["metadata"]["name"]);
        if let Some(text) = document["data"]["xskiff.yaml"].as_str() {
            Config::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            document["data"]["xskiff.yaml"] = serde_saphyr::from_str(text).expect("YAML");
        }
        (name, document)
    });
    named.collect()
}

fn rendered(more: &[&str]) -> BTreeMap<String, Value> {
    let output = helm(more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    by_name(&String::from_utf8_lossy(&output.stdout))
}

#[test]
fn the_chart_with_its_own_values_is_the_plain_manifests() {
    let mut plain = BTreeMap::new();
    for entry in std::fs::read_dir(deploy().join("kubernetes")).expect("manifests") {
        let path = entry.expect("an entry").path();
        plain.extend(by_name(&std::fs::read_to_string(path).expect("a manifest")));
    }
    // `helm install --create-namespace` makes it, or whoever is allowed to.
    assert!(plain.remove("\"Namespace\" \"xskiff\"").is_some());
    let chart = rendered(&[]);
    let names = |documents: &BTreeMap<String, Value>| documents.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&chart), names(&plain));
    for (name, document) in &plain {
        assert_eq!(&chart[name], document, "{name}");
    }
}

/// Whether documents fit the schemas, unknown fields refused; what was said.
fn validated(path: &Path) -> (bool, String) {
    let mut command = Command::new("kubernetes-validate");
    let output = command.args(["--strict", "-k", "1.36"]).arg(path).output();
    let output = output
        .expect("install kubernetes-validate (https://github.com/willthames/kubernetes-validate)");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn manifests_and_the_rendered_chart_fit_the_schemas_of_kubernetes() {
    let scratch = tempfile::tempdir().expect("a directory");
    let chart = scratch.path().join("chart.yaml");
    std::fs::write(&chart, helm(&[]).stdout).expect("written");
    let mut paths = vec![chart.clone()];
    for folder in ["kubernetes", "demo"] {
        for entry in std::fs::read_dir(deploy().join(folder)).expect("manifests") {
            let path = entry.expect("an entry").path();
            // The demo's configuration is ours.
            if path.file_name().is_some_and(|name| name != "xskiff.yaml") {
                paths.push(path);
            }
        }
    }
    for path in &paths {
        let (fits, said) = validated(path);
        assert!(fits && said.contains("passed"), "{}: {said}", path.display());
    }
    // It would notice.
    let text = std::fs::read_to_string(&chart).expect("rendered");
    std::fs::write(&chart, text.replace("hostNetwork:", "hostNetworks:")).expect("written");
    let (fits, said) = validated(&chart);
    assert!(!fits && said.contains("hostNetworks"), "{said}");
}

#[test]
fn values_reach_where_they_belong() {
    let chart = rendered(&[
        "--set=apiServers={https://198.51.100.7:6443}",
        "--set-json=relays=[]",
        "--set=relay.enabled=false",
        "--set=image.tag=9.9",
        "--set=node.config.uplinks[0].interface=bond0",
        "--set=node.maxUnavailable=25%",
        "--set=node.config.cni.bin_dir=/var/lib/cni/bin",
    ]);
    assert!(!chart.contains_key("\"Deployment\" \"xskiff-relay\""), "{:?}", chart.keys());
    let config = &chart["\"ConfigMap\" \"xskiff-node\""]["data"]["xskiff.yaml"];
    assert_eq!(config["kubernetes"]["api_servers"][0], "https://198.51.100.7:6443");
    assert_eq!(config["uplinks"][0]["interface"], "bond0");
    let node = &chart["\"DaemonSet\" \"xskiff-node\""]["spec"];
    assert_eq!(node["updateStrategy"]["rollingUpdate"]["maxUnavailable"], "25%");
    let pod = &node["template"]["spec"];
    assert_eq!(pod["containers"][0]["image"], "registry.example/xskiff:9.9");
    // The plugin is copied to, and looked for in, the directory that the configuration names.
    assert_eq!(config["cni"]["bin_dir"], "/var/lib/cni/bin");
    let named = |list: &Value| {
        let mut all = list.as_array().expect("a list").iter();
        all.find(|one| one["name"] == "cni-plugins").expect("the plugins").clone()
    };
    assert_eq!(named(&pod["volumes"])["hostPath"]["path"], "/var/lib/cni/bin");
    let mount = named(&pod["containers"][0]["volumeMounts"]);
    assert_eq!(mount["mountPath"], "/var/lib/cni/bin");
}

#[test]
fn values_that_cannot_work_are_refused_by_name() {
    for (value, word) in [
        ("--set-json=apiServers=[]", "apiServers"),
        ("--set=apiServers={http://192.0.2.11}", "apiServers"),
        ("--set-json=node.config.uplinks=[]", "uplinks"),
        ("--set=relay.replicas=0", "replicas"),
        ("--set=node.config.cni.bin_dir=opt/cni/bin", "bin_dir"),
    ] {
        let output = helm(&[value]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(word), "{value}: {said}");
    }
}
