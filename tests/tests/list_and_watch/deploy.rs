//! What is deployed fits the code: manifests are of their types, roles hold what is watched and no
//! more, and flags are flags.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Parser as _;
use cluster::resource::{VERBS, WATCHED};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, Namespace, PodSpec, Secret, ServiceAccount,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::de::DeserializeOwned;
use serde_json::Value;
use xskiff::cli::{Cli, Command};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes")
}

/// Every document, by file.
fn documents() -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        all.extend(documents.into_iter().map(|document| (name.clone(), document)));
    }
    assert!(all.len() > 8, "{all:?}");
    all
}

/// Reads `value`, and fails on a field that its type does not have.
fn typed<T: DeserializeOwned>(file: &str, value: &Value) -> T {
    let mut unknown = Vec::new();
    let read = serde_ignored::deserialize(value, |path| unknown.push(path.to_string()));
    let read = read.unwrap_or_else(|error| panic!("{file}: {error}: {value}"));
    unknown.retain(|path| path != "apiVersion" && path != "kind");
    assert_eq!(unknown, Vec::<String>::new(), "{file}: unknown fields");
    read
}

fn of_kind<T: DeserializeOwned>(kind: &str) -> Vec<T> {
    let documents = documents();
    let own = documents.iter().filter(|(_, document)| document["kind"] == kind);
    own.map(|(file, document)| typed(file, document)).collect()
}

#[test]
fn every_manifest_is_of_its_type() {
    for (file, document) in documents() {
        let (file, document) = (file.as_str(), &document);
        match document["kind"].as_str().unwrap() {
            "Namespace" => drop(typed::<Namespace>(file, document)),
            "ServiceAccount" => drop(typed::<ServiceAccount>(file, document)),
            "Secret" => drop(typed::<Secret>(file, document)),
            "ConfigMap" => drop(typed::<ConfigMap>(file, document)),
            "ClusterRole" => drop(typed::<ClusterRole>(file, document)),
            "ClusterRoleBinding" => drop(typed::<ClusterRoleBinding>(file, document)),
            "DaemonSet" => drop(typed::<DaemonSet>(file, document)),
            "Deployment" => drop(typed::<Deployment>(file, document)),
            "PodDisruptionBudget" => drop(typed::<PodDisruptionBudget>(file, document)),
            other => panic!("{file}: {other} is not checked"),
        }
    }
}

#[test]
fn roles_allow_what_is_watched_and_nothing_else() {
    let mut wanted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for resource in WATCHED {
        let verbs = VERBS.map(str::to_owned);
        wanted.insert(format!("{}/{}", resource.group, resource.plural), verbs.into());
    }
    let roles: Vec<ClusterRole> = of_kind("ClusterRole");
    assert_eq!(roles.len(), 2);
    for role in roles {
        let mut allowed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for rule in role.rules.unwrap_or_default() {
            assert_eq!(rule.non_resource_urls, None);
            for group in rule.api_groups.unwrap_or_default() {
                for resource in rule.resources.clone().unwrap_or_default() {
                    let verbs = allowed.entry(format!("{group}/{resource}")).or_default();
                    verbs.extend(rule.verbs.clone());
                }
            }
        }
        assert_eq!(allowed, wanted, "{:?}", role.metadata.name);
    }
}

#[test]
fn every_account_has_the_role_of_its_name_and_every_pod_an_account() {
    let name = |name: Option<String>| name.unwrap_or_default();
    let accounts: BTreeSet<String> = of_kind::<ServiceAccount>("ServiceAccount")
        .into_iter()
        .map(|account| name(account.metadata.name))
        .collect();
    let mut bound = BTreeSet::new();
    for binding in of_kind::<ClusterRoleBinding>("ClusterRoleBinding") {
        let [subject] = &binding.subjects.unwrap()[..] else { panic!("one account a role") };
        assert_eq!(
            (&*subject.kind, subject.namespace.as_deref()),
            ("ServiceAccount", Some("xskiff"))
        );
        assert_eq!(binding.role_ref.name, subject.name);
        bound.insert(subject.name.clone());
    }
    assert_eq!(accounts, bound);
    for spec in pods() {
        assert!(accounts.contains(&spec.service_account_name.unwrap()));
    }
}

fn pods() -> Vec<PodSpec> {
    let nodes = of_kind::<DaemonSet>("DaemonSet").into_iter().map(|own| own.spec.template);
    let relays = of_kind::<Deployment>("Deployment").into_iter().map(|own| own.spec.template);
    nodes.chain(relays).map(|template| template.spec.unwrap()).collect()
}

fn command(container: &Container) -> Command {
    let words = container.command.iter().flatten().chain(container.args.iter().flatten());
    let cli = Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
    cli.command
}

#[test]
fn flags_are_flags_and_their_files_are_mounted() {
    let mut commands = Vec::new();
    for spec in pods() {
        let [container] = &spec.containers[..] else { panic!("one container a pod") };
        let mounts: Vec<&str> =
            container.volume_mounts.iter().flatten().map(|mount| &*mount.mount_path).collect();
        for word in container.args.iter().flatten() {
            let Some((_, path)) = word.split_once("=/") else { continue };
            let path = format!("/{path}");
            assert!(mounts.iter().any(|mount| path.starts_with(mount)), "{path} is not mounted");
        }
        let volumes: BTreeSet<_> =
            spec.volumes.iter().flatten().map(|volume| volume.name.clone()).collect();
        let mounted: BTreeSet<_> =
            container.volume_mounts.iter().flatten().map(|mount| mount.name.clone()).collect();
        assert_eq!(volumes, mounted);
        match command(container) {
            Command::Run(arguments) => {
                assert_eq!(arguments.config, Path::new("/etc/xskiff/config/xskiff.yaml"));
                commands.push("run");
            }
            Command::Relay(arguments) => {
                let settings = xskiff::relay::settings(arguments).unwrap();
                assert!(settings.tls.is_some() && settings.token_file.is_some());
                let ports: Vec<u16> = container
                    .ports
                    .iter()
                    .flatten()
                    .map(|port| u16::try_from(port.container_port).unwrap())
                    .collect();
                let metrics = settings.metrics.unwrap().port();
                assert_eq!(ports, [settings.listen.port(), metrics]);
                commands.push("relay");
            }
            other => panic!("{other:?}"),
        }
    }
    commands.sort_unstable();
    assert_eq!(commands, ["relay", "run"]);
}
