//! What is deployed fits the code: manifests are of their types, roles hold what is watched and no
//! more, and flags are flags.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Parser as _;
use cluster::relay::Settings;
use cluster::relay::writes::WRITTEN;
use cluster::resource::{GROUPS, VERBS, WATCHED};
use control::config::Config;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, Namespace, PodSpec, Secret, ServiceAccount, Volume,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::de::DeserializeOwned;
use serde_json::Value;
use xskiff::cli::cni::CniCommand;
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
            "Role" => drop(typed::<Role>(file, document)),
            "RoleBinding" => drop(typed::<RoleBinding>(file, document)),
            "ClusterRole" => drop(typed::<ClusterRole>(file, document)),
            "ClusterRoleBinding" => drop(typed::<ClusterRoleBinding>(file, document)),
            "DaemonSet" => drop(typed::<DaemonSet>(file, document)),
            "Deployment" => drop(typed::<Deployment>(file, document)),
            "PodDisruptionBudget" => drop(typed::<PodDisruptionBudget>(file, document)),
            other => panic!("{file}: {other} is not checked"),
        }
    }
}

/// Verbs by resource (`group/plural`) or by path, each with the only object that it is for, if there is one.
type Allowed = BTreeMap<String, BTreeSet<(String, Option<String>)>>;

fn allowed(rules: Option<Vec<PolicyRule>>) -> Allowed {
    let mut allowed = Allowed::new();
    for rule in rules.unwrap_or_default() {
        for path in rule.non_resource_urls.unwrap_or_default() {
            let verbs = rule.verbs.iter().map(|verb| (verb.clone(), None)).collect();
            allowed.insert(path, verbs);
        }
        let names = match rule.resource_names.unwrap_or_default().as_slice() {
            [] => vec![None],
            names => names.iter().cloned().map(Some).collect(),
        };
        for group in rule.api_groups.unwrap_or_default() {
            for resource in rule.resources.clone().unwrap_or_default() {
                let verbs = allowed.entry(format!("{group}/{resource}")).or_default();
                for name in &names {
                    verbs.extend(rule.verbs.iter().map(|verb| (verb.clone(), name.clone())));
                }
            }
        }
    }
    allowed
}

fn entry(
    group: &str,
    plural: &str,
    verbs: &[&str],
    name: impl Fn(&str) -> Option<String>,
) -> (String, BTreeSet<(String, Option<String>)>) {
    let verbs = verbs.iter().map(|verb| ((*verb).to_owned(), name(verb))).collect();
    (format!("{group}/{plural}"), verbs)
}

/// What the code reads, or what it writes everywhere or in its own namespace.
fn wanted_reads() -> Allowed {
    let groups = (GROUPS.to_owned(), [("get".to_owned(), None)].into());
    let kinds = WATCHED.iter().map(|own| entry(own.group, own.plural, &VERBS, |_| None));
    kinds.chain([groups]).collect()
}

fn wanted_writes(everywhere: bool) -> Allowed {
    let lease = relay_settings().writes.unwrap().lease.name;
    let own = WRITTEN.iter().filter(|own| own.everywhere == everywhere);
    // Kubernetes cannot tie what does not exist yet to a name.
    let name = |verb: &str| (!everywhere && verb != "create").then(|| lease.clone());
    own.map(|own| entry(own.group, own.plural, own.verbs, name)).collect()
}

#[test]
fn roles_allow_what_the_code_does_and_nothing_else() {
    let roles: BTreeMap<String, Allowed> = of_kind::<ClusterRole>("ClusterRole")
        .into_iter()
        .map(|role| (role.metadata.name.unwrap(), allowed(role.rules)))
        .collect();
    let wanted = [
        ("xskiff-node", wanted_reads()),
        ("xskiff-relay", wanted_reads()),
        ("xskiff-relay-events", wanted_writes(true)),
    ];
    assert_eq!(roles, wanted.map(|(name, rules)| (name.to_owned(), rules)).into());
    let [role] = &of_kind::<Role>("Role")[..] else { panic!("one role of a namespace") };
    let lease = relay_settings().writes.unwrap().lease;
    assert_eq!(role.metadata.namespace.as_ref(), Some(&lease.namespace));
    assert_eq!(allowed(role.rules.clone()), wanted_writes(false));
}

#[test]
fn every_account_has_the_roles_of_its_name_and_every_pod_an_account() {
    let name = |name: Option<String>| name.unwrap_or_default();
    let accounts: BTreeSet<String> = of_kind::<ServiceAccount>("ServiceAccount")
        .into_iter()
        .map(|account| name(account.metadata.name))
        .collect();
    let mut bound = BTreeSet::new();
    let of_cluster = of_kind::<ClusterRoleBinding>("ClusterRoleBinding").into_iter();
    let of_cluster = of_cluster.map(|own| (own.metadata, own.role_ref, own.subjects));
    let of_namespace = of_kind::<RoleBinding>("RoleBinding").into_iter();
    let of_namespace = of_namespace.map(|own| (own.metadata, own.role_ref, own.subjects));
    for (metadata, role, subjects) in of_cluster.chain(of_namespace) {
        let [subject] = &subjects.unwrap()[..] else { panic!("one account a role") };
        assert_eq!(
            (&*subject.kind, subject.namespace.as_deref()),
            ("ServiceAccount", Some("xskiff"))
        );
        assert_eq!(metadata.name.as_ref(), Some(&role.name));
        bound.insert((role.kind, role.name, subject.name.clone()));
    }
    let wanted = [
        ("ClusterRole", "xskiff-node", "xskiff-node"),
        ("ClusterRole", "xskiff-relay", "xskiff-relay"),
        // Nodes write nothing.
        ("ClusterRole", "xskiff-relay-events", "xskiff-relay"),
        ("Role", "xskiff-relay-leader", "xskiff-relay"),
    ];
    let own = |(kind, role, account): (&str, &str, &str)| {
        (kind.to_owned(), role.to_owned(), account.to_owned())
    };
    assert_eq!(bound, wanted.map(own).into());
    assert_eq!(accounts, ["xskiff-node", "xskiff-relay"].map(str::to_owned).into());
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

/// What a relay's flags say.
fn settings_of(mut arguments: xskiff::relay::Arguments) -> Settings {
    // The Pod's own account is not on this machine.
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    let text = "{apiVersion: v1, kind: Config, current-context: a, \
        contexts: [{name: a, context: {cluster: c, user: u}}], \
        clusters: [{name: c, cluster: {server: \"https://192.0.2.11:6443\"}}]}";
    std::fs::write(&kubeconfig, text).unwrap();
    assert_eq!(arguments.kubeconfig, None);
    arguments.kubeconfig = Some(kubeconfig);
    xskiff::relay::settings(arguments, &|_| None).unwrap()
}

/// The relay as it is deployed.
fn relay_settings() -> Settings {
    let containers = pods().into_iter().flat_map(|spec| spec.containers);
    let mut relay = containers.filter_map(|container| match command(&container) {
        Command::Relay(arguments) => Some(settings_of(arguments)),
        _ => None,
    });
    relay.next_back().unwrap()
}

#[test]
fn the_nodes_configuration_is_one_and_its_files_are_mounted() {
    let maps = of_kind::<ConfigMap>("ConfigMap");
    let map = maps.iter().find(|map| map.metadata.name.as_deref() == Some("xskiff-node"));
    let map = map.expect("the nodes' configuration");
    let data = map.data.as_ref().unwrap();
    let [(name, text)] = &data.iter().collect::<Vec<_>>()[..] else { panic!("one file") };
    let node = of_kind::<DaemonSet>("DaemonSet").remove(0).spec.template.spec.unwrap();
    let [container] = &node.containers[..] else { panic!("one container") };
    let Command::Run(arguments) = command(container) else { panic!("it runs a node") };
    assert_eq!(arguments.config.file_name().unwrap().to_str(), Some(name.as_str()));
    let config = Config::parse(text).unwrap_or_else(|error| panic!("{error}"));
    let kubernetes = &config.kubernetes;
    assert!(kubernetes.enabled);
    let mounts: Vec<&str> =
        container.volume_mounts.iter().flatten().map(|mount| &*mount.mount_path).collect();
    let files = [
        Some(&config.run_directory),
        Some(&kubernetes.service_account),
        Some(&kubernetes.state_directory),
        kubernetes.ca_file.as_ref(),
    ];
    for path in files.into_iter().flatten() {
        assert!(mounts.iter().any(|mount| path.starts_with(mount)), "{path:?} is not mounted");
    }
    // Relays are asked where they listen, and both follow the same API servers.
    let relay = relay_settings();
    let api_servers: Vec<String> = relay.upstream.api_servers.iter().map(plain).collect();
    assert_eq!(kubernetes.api_servers, api_servers);
    for relay_url in &kubernetes.relays {
        assert!(relay_url.ends_with(&format!(":{}", relay.listen.port())), "{relay_url}");
    }
    let probe = container.liveness_probe.as_ref().unwrap().http_get.as_ref().unwrap();
    let http = config.http.listen.unwrap();
    assert_eq!(probe.host, Some(http.ip().to_string()));
    assert_eq!(probe.port, IntOrString::Int(http.port().into()));
}

/// The kubelet reads the profile from its own folder, where an init container puts it.
#[test]
fn the_node_has_the_privileges_that_are_used_and_the_profile_that_is_tested() {
    let node = of_kind::<DaemonSet>("DaemonSet").remove(0).spec.template.spec.unwrap();
    let context = node.containers[0].security_context.as_ref().unwrap();
    assert_eq!(
        (context.privileged, context.allow_privilege_escalation),
        (Some(false), Some(false))
    );
    let capabilities = context.capabilities.as_ref().unwrap();
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
    let added = capabilities.add.iter().flatten().map(|name| format!("CAP_{name}"));
    let needed = xskiff::privileges::NEEDED.iter().map(|needed| needed.capability.to_string());
    assert_eq!(added.collect::<BTreeSet<_>>(), needed.collect());

    let profile = context.seccomp_profile.as_ref().unwrap();
    let file = profile.localhost_profile.as_ref().unwrap();
    assert_eq!(profile.type_, "Localhost");
    let maps = of_kind::<ConfigMap>("ConfigMap");
    let held = maps.iter().find_map(|map| map.data.as_ref()?.get(file)).expect("the profile");
    for path in ["../seccomp/xskiff.json", "../chart/files/xskiff.json"] {
        let text = std::fs::read_to_string(folder().join(path)).unwrap();
        assert_eq!(*held, text, "{path}");
    }
    let init = init_container(&node, "seccomp-profile");
    let [program, from, to] = &init.command.as_ref().unwrap()[..] else { panic!("{init:?}") };
    assert_eq!(program, "cp");
    let volume_of = |path: &str| volume_of(&node, &init, path);
    let (source, name) = volume_of(from);
    assert_eq!(source.config_map.unwrap().name, "xskiff-seccomp");
    let (target, copied) = volume_of(to);
    assert_eq!(target.host_path.unwrap().path, "/var/lib/kubelet/seccomp");
    assert_eq!((&*name, &*copied), (&*format!("/{file}"), &*format!("/{file}")));
}

fn init_container(node: &PodSpec, name: &str) -> Container {
    let mut all = node.init_containers.iter().flatten();
    all.find(|container| container.name == name).expect("an init container of that name").clone()
}

/// The volume that a path of a container is on, and its name in it.
fn volume_of(node: &PodSpec, container: &Container, path: &str) -> (Volume, String) {
    let mut mounts = container.volume_mounts.iter().flatten();
    let mount = mounts.rfind(|mount| path.starts_with(&mount.mount_path)).unwrap();
    let volume = node.volumes.iter().flatten().find(|volume| volume.name == mount.name);
    (volume.unwrap().clone(), path.strip_prefix(&*mount.mount_path).unwrap().to_owned())
}

/// A host's directory that a path of a container is, and whether it may be written.
fn host_directory(node: &PodSpec, container: &Container, path: &Path) -> (String, bool) {
    let path = path.to_str().unwrap();
    let (volume, name) = volume_of(node, container, path);
    assert_eq!(name, "", "{path} is mounted itself");
    let mut mounts = container.volume_mounts.iter().flatten();
    let is_written = mounts.any(|mount| mount.mount_path == path && mount.read_only != Some(true));
    (volume.host_path.unwrap().path, is_written)
}

/// The plugin is copied where the node looks for it, by a container that has nothing else; the node puts
/// it into the configuration, and cannot change the plugin.
#[test]
fn the_plugin_is_copied_by_an_init_container_and_chained_by_the_node() {
    let node = of_kind::<DaemonSet>("DaemonSet").remove(0).spec.template.spec.unwrap();
    let maps = of_kind::<ConfigMap>("ConfigMap");
    let text = maps.iter().find_map(|map| map.data.as_ref()?.get("xskiff.yaml"));
    let cni = Config::parse(text.expect("a configuration")).unwrap().cni;
    assert!(cni.keep_chained);

    let init = init_container(&node, "cni-plugin");
    let Command::Cni(CniCommand::Install(arguments)) = command(&init) else { panic!("{init:?}") };
    // Of the image, where it lies beside the program.
    assert!(arguments.plugin_only && arguments.plugin.is_none());
    let context = init.security_context.as_ref().unwrap();
    let capabilities = context.capabilities.as_ref().unwrap();
    assert_eq!(
        (&capabilities.add, capabilities.drop.as_deref().unwrap().join(" ")),
        (&None, "ALL".into())
    );
    assert_eq!(context.allow_privilege_escalation, Some(false));
    assert!(!context.privileged.unwrap_or_default());
    assert_eq!(init.volume_mounts.as_ref().map(Vec::len), Some(1), "it has that directory alone");
    let copied = host_directory(&node, &init, &arguments.directories.bin_dir);
    assert_eq!(copied, ("/opt/cni/bin".to_owned(), true));

    let own = &node.containers[0];
    assert_eq!(host_directory(&node, own, &cni.bin_dir), ("/opt/cni/bin".to_owned(), false));
    assert_eq!(host_directory(&node, own, &cni.conf_dir), ("/etc/cni/net.d".to_owned(), true));
}

fn plain(server: &http::Uri) -> String {
    server.to_string().trim_end_matches('/').to_owned()
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
        let mounted: BTreeSet<_> = spec
            .init_containers
            .iter()
            .flatten()
            .chain([container])
            .flat_map(|container| container.volume_mounts.iter().flatten())
            .map(|mount| mount.name.clone())
            .collect();
        assert_eq!(volumes, mounted);
        match command(container) {
            Command::Run(arguments) => {
                assert_eq!(arguments.config, Path::new("/etc/xskiff/config/xskiff.yaml"));
                commands.push("run");
            }
            Command::Relay(arguments) => {
                let settings = settings_of(arguments);
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
