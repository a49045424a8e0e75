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
fn text_as_editors_leave_it_is_read() {
    let windows = "\u{feff}apiVersion: v1\r\nkind: Namespace\r\nmetadata:\r\n  name: a\r\n---\r\n\
                   apiVersion: v1\r\nkind: Namespace\r\nmetadata: {name: b}\r\n";
    assert_eq!(read(windows).state.namespaces.len(), 2);
    for empty in ["", "\u{feff}", "\n\n", "---\n", "# nothing yet\n"] {
        assert_eq!(read(empty).state.counts().iter().map(|(_, count)| count).sum::<usize>(), 0);
    }
}

#[test]
fn hostile_text_is_refused_in_one_short_line() {
    let long = "x".repeat(10 << 20);
    let namespace =
        |metadata: &str| format!("{{apiVersion: v1, kind: Namespace, metadata: {{{metadata}}}}}");
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..12 {
        let items = vec![format!("*a{}", level - 1); 10].join(",");
        bomb += &format!("a{level}: &a{level} [{items}]\n");
    }
    let repeated = format!("a: &a {long}\nb: [{}]\n", vec!["*a"; 40].join(","));
    for (text, told) in [
        ("metadata:\n\tname: x\n".to_owned(), "line 2 column 2: tabs"),
        (namespace("name: a, name: b"), "line 1 column 55: name is said twice: keep one"),
        (namespace(&format!("name: {long}")), "is not a legal name"),
        (namespace(&format!("name: a, labels: {{app: {long}}}")), "is not a legal label value"),
        (namespace(&format!("name: a, labels: {{? {long} : b}}")), "is not a legal label key"),
        (namespace(&format!("name: a, ? {long} : b")), "unknown field metadata.xxx"),
        (namespace("name: a, labels: {app: 'web '}"), "metadata.labels.app: \"web \""),
        (format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {long}}}\nspec: 1\n"), "Pod"),
        ("[".repeat(100_000), "line 1"),
        (bomb, "too large"),
        (repeated, "too large"),
        ("{{ if .Values.policy }}\nkind: Pod\n{{ end }}".to_owned(), "line 1 column"),
    ] {
        let message = errors(&text);
        assert!(message.contains(told), "{told}: {}", &message[..message.len().min(600)]);
        assert!(message.len() < 1500 && !message.contains('\n'), "{} bytes", message.len());
    }
}

/// `kubectl get pods -A -o yaml` of a middling cluster was refused: the YAML library's own bounds
/// are a quarter of a million values and a thousand documents.
#[test]
fn tens_of_thousands_of_objects_are_read_from_one_file_as_list_or_documents() {
    let pod = |number: u32, lead: &str, indent: &str| {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + number);
        format!(
            "{lead}apiVersion: v1\n{indent}kind: Pod\n\
             {indent}metadata: {{name: p{number}, namespace: n, labels: {{a: b, c: d}}}}\n\
             {indent}spec: {{nodeName: one, containers: [{{name: c, image: i}}]}}\n\
             {indent}status: {{podIPs: [{{ip: {address}}}], phase: Running}}\n"
        )
    };
    let documents: String = (0..20_000).map(|number| pod(number, "---\n", "")).collect();
    assert_eq!(read(&documents).state.pods.len(), 20_000);
    let items: String = (0..20_000).map(|number| pod(number, "- ", "  ")).collect();
    let list = format!("apiVersion: v1\nkind: List\nitems:\n{items}");
    assert_eq!(read(&list).state.pods.len(), 20_000);
}

#[test]
fn files_that_are_no_text_are_named_and_never_waited_for() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("a.yaml"), b"# one\n# t\xffwo\n").expect("write");
    fs::create_dir(path("b.yaml")).expect("directory");
    let pipe = std::process::Command::new("mkfifo").arg(path("c.yaml")).status().expect("mkfifo");
    assert!(pipe.success());
    std::os::unix::fs::symlink("nowhere", path("d.json")).expect("link");
    let refused = |folder: &Path| {
        let errors = manifests::read(folder).expect_err("refused");
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let message = refused(folder.path());
    assert!(message.contains("d.json: No such file"), "{message}");
    fs::remove_file(path("d.json")).expect("remove");
    let message = refused(folder.path());
    for told in [
        "a.yaml is not UTF-8 from line 2 on: save it as UTF-8",
        "b.yaml is not a regular file",
        "c.yaml is not a regular file",
    ] {
        assert!(message.contains(told), "{message}");
    }
}

/// As a kubelet updates a ConfigMap volume: `a.yaml -> ..data/a.yaml`, and `..data` is renamed.
#[test]
fn a_folder_whose_data_link_is_swapped_is_never_read_as_half_old_and_half_new() {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};
    let folder = tempfile::tempdir().expect("temporary folder");
    let root = folder.path().to_owned();
    for file in ["a.yaml", "b.yaml", "c.yaml"] {
        symlink(Path::new("..data").join(file), root.join(file)).expect("link");
    }
    let publish = move |version: u32| {
        let data = root.join(format!("..v{version}"));
        fs::create_dir(&data).expect("directory");
        for file in ["a", "b", "c"] {
            let text = format!(
                "apiVersion: v1\nkind: Namespace\n\
                 metadata: {{name: {file}, labels: {{version: '{version}'}}}}\n"
            );
            fs::write(data.join(format!("{file}.yaml")), text).expect("write");
        }
        let fresh = root.join("..data_tmp");
        symlink(format!("..v{version}"), &fresh).expect("link");
        fs::rename(fresh, root.join("..data")).expect("swap");
        if version > 2 {
            let _ = fs::remove_dir_all(root.join(format!("..v{}", version - 2)));
        }
    };
    publish(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (1..300).for_each(|version| {
                publish(version);
                std::thread::sleep(std::time::Duration::from_micros(u64::from(version % 7) * 100));
            });
            done.store(true, Ordering::SeqCst);
        });
        let mut whole = 0;
        while !done.load(Ordering::SeqCst) {
            let Ok(manifests) = manifests::read(folder.path()) else { continue };
            let versions: std::collections::BTreeSet<_> = manifests
                .state
                .namespaces
                .values()
                .map(|one| one.labels.get("version").unwrap())
                .collect();
            assert_eq!((versions.len(), manifests.state.namespaces.len()), (1, 3), "{versions:?}");
            whole += 1;
        }
        assert!(whole > 0, "not once was the folder quiet for a reading");
    });
    assert_eq!(manifests::read(folder.path()).expect("quiet").state.namespaces.len(), 3);
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
