//! Manifests: what is read, and what is refused by name.

use std::fs;
use std::path::Path;

use control::manifests::{self, Fingerprint, Manifests};
use control::model::ObjectName;

fn errors(text: &str) -> String {
    match manifests::parse(Path::new("test.yaml"), text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(errors) => errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    }
}

fn read(text: &str) -> Manifests {
    manifests::parse(Path::new("test.yaml"), text)
        .unwrap_or_else(|errors| panic!("refused: {errors:?}"))
}

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: one, containers: [{name: c, image: i, ports: [{name: http, containerPort: 80}]}]}
status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
";

#[test]
fn documents_of_every_kind_are_read_from_one_file() {
    let text = format!(
        "{POD}---
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{team: a}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop}}
spec: {{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{{port: 80}}]}}
---
# a comment alone is no object
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: shop}}
"
    );
    let manifests = read(&text);
    let pod = &manifests.state.pods[&ObjectName::new("shop", "web")];
    assert_eq!(pod.addresses.len(), 2);
    assert_eq!(manifests.state.counts().iter().map(|(_, count)| count).sum::<usize>(), 3);
    assert_eq!(manifests.ignored, ["Deployment shop/web"]);
}

#[test]
fn lists_and_json_are_read_as_well() {
    let text = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}},
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}}]}"#;
    assert_eq!(read(text).state.namespaces.len(), 2);
}

#[test]
fn misspelt_peer_is_refused_and_does_not_become_an_empty_one() {
    let message = errors(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec:
  podSelector: {}
  ingress: [{from: [{podSelektor: {matchLabels: {app: web}}}]}]
",
    );
    assert!(message.contains("NetworkPolicy shop/deny"), "{message}");
    assert!(message.contains("podSelektor"), "{message}");
}

#[test]
fn two_pods_with_one_address_are_refused_by_both_names() {
    let message = errors(&format!("{POD}---{}", POD.replace("name: web,", "name: other,")));
    assert!(message.contains("shop/web") && message.contains("shop/other"), "{message}");
    assert!(message.contains("10.0.0.1"), "{message}");
}

#[test]
fn same_object_twice_is_refused_with_both_places() {
    let message = errors(&format!("{POD}---{POD}"));
    assert!(message.contains("document 1") && message.contains("document 2"), "{message}");
}

#[test]
fn nonsense_is_refused_by_place_object_and_field() {
    let service = |ports: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: n}}\n\
             spec: {{clusterIP: 10.96.0.1, ports: {ports}}}\n"
        )
    };
    for (text, wanted) in [
        ("a: [".to_owned(), "test.yaml"),
        ("kind: Pod".to_owned(), "apiVersion"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: [1]}".to_owned(), "Pod"),
        (service("[]"), "ports"),
        (service("[{port: 70000}]"), "70000"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {}".to_owned(), "name"),
        ("apiVersion: v1beta9\nkind: Pod\nmetadata: {name: a}".to_owned(), "v1beta9"),
    ] {
        let message = errors(&text);
        assert!(message.contains(wanted), "{text}: {message}");
    }
}

/// Each was once passed by in silence, and what it says was not in force.
#[test]
fn misspelt_kind_or_list_is_refused_and_other_kinds_are_not() {
    for (text, wanted) in [
        ("{apiVersion: networking.k8s.io/v1, kind: Networkpolicy}", "write NetworkPolicy"),
        ("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicies}", "write NetworkPolicy"),
        ("{apiVersion: networking.k8s.io/v1, kind: NetwrokPolicy}", "write NetworkPolicy"),
        ("{apiVersion: v1, kind: pod}", "write Pod"),
        ("{apiVersion: v1, kind: Services}", "write Service"),
        ("{apiVersion: v1, kind: List}", "items is missing"),
        ("{apiVersion: v1, kind: List, items: {a: b}}", "items is missing or no list"),
        ("{apiVersion: v1, kind: List, items: [], itmes: [1]}", "unknown field itmes"),
    ] {
        let message = errors(text);
        assert!(message.contains(wanted), "{text}: {message}");
    }
    for kind in [
        "ConfigMap",
        "Secret",
        "Ingress",
        "Role",
        "Job",
        "Endpoints",
        "Lease",
        "Event",
        "Binding",
        "ServiceAccount",
        "PodTemplate",
        "IngressClass",
        "IPAddress",
        "ServiceCIDR",
        "NodeClass",
        "PodDisruptionBudget",
        "RuntimeClass",
        "CiliumNetworkPolicy",
        "ClusterNetworkPolicy",
    ] {
        let text =
            format!("{{apiVersion: networking.k8s.io/v1, kind: {kind}, metadata: {{name: a}}}}");
        assert_eq!(read(&text).ignored.len(), 1, "{kind}");
    }
}

#[test]
fn wrong_type_and_unknown_field_are_refused_by_the_fields_path() {
    let service = "{apiVersion: v1, kind: Service, metadata: {name: s, namespace: n}, \
                   spec: {clusterIP: 10.96.0.1, ports: [{port: eighty}]}}";
    let message = errors(service);
    let wanted = "(document 1): Service n/s: spec.ports[0].port: invalid type: string \"eighty\"";
    assert!(message.contains(wanted), "{message}");
    let message = errors(&service.replace("port: eighty", "port: 80, prot: 1"));
    assert!(message.contains("unknown field spec.ports[0].prot"), "{message}");
}

#[test]
fn folder_is_read_in_order_and_seen_to_change() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("write");
    write("pod.yaml", POD);
    write("notes.txt", "not a manifest: [");
    write(".hidden.yaml", "a: [");
    assert_eq!(manifests::read(folder.path()).expect("readable").state.pods.len(), 1);
    let before = Fingerprint::of(folder.path()).expect("fingerprint");
    assert_eq!(Fingerprint::of(folder.path()).expect("fingerprint"), before);
    write("more.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n");
    assert_ne!(Fingerprint::of(folder.path()).expect("fingerprint"), before);
    fs::remove_dir_all(folder.path()).expect("remove");
    let errors = manifests::read(folder.path()).expect_err("the folder is gone");
    assert!(errors[0].to_string().contains(&folder.path().display().to_string()));
}
