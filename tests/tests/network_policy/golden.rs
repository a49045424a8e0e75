//! Cases with their verdicts written out: a cluster, policies as a user writes them, and a table of
//! packets. Both the model and the compiled tables must say what the table says.
//!
//! A cluster is written by lines: `namespace NAME key=value...`, and `NAMESPACE/POD NODE key=value...`
//! with `port:name/PROTOCOL=number` for a named port. The pod of line N has the addresses 10.1.0.N and
//! fd01::N; nodes `one` and `two` have 10.0.0.1, fd00::1 and 10.0.0.2, fd00::2.
//!
//! A packet is written `FROM TO PROTOCOL[/PORT] VERDICT`. An end is a pod, a node or an address; the
//! verdict is `passes`, or the direction that denies it. Between names it is sent over both families.

mod documentation;
mod edges;
mod recipes;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;
use xskiff_tests::policy_model::{Objects, Packet, Transport};

use crate::nodes::{End, Nodes};
use crate::property::difference;

/// Names and what addresses they have.
type Names = BTreeMap<String, Vec<IpAddr>>;

/// A cluster as manifests, and who has which addresses.
fn cluster(lines: &str) -> (String, Names) {
    let mut yaml = String::new();
    let mut names = Names::new();
    for (number, name) in [(1, "one"), (2, "two")] {
        let own = [format!("10.0.0.{number}"), format!("fd00::{number}")];
        let _ = write!(
            yaml,
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus: {{addresses: [\
             {{type: InternalIP, address: {}}}, {{type: InternalIP, address: \"{}\"}}]}}\n",
            own[0], own[1]
        );
        names.insert(name.to_owned(), own.map(|text| text.parse().expect("an address")).into());
    }
    for (number, line) in (1..).zip(lines.lines().map(str::trim).filter(|line| !line.is_empty())) {
        let mut words = line.split_whitespace();
        let first = words.next().expect("a word");
        let second = words.next().unwrap_or_else(|| panic!("{line}: what is it?"));
        let (ports, labels): (Vec<&str>, Vec<&str>) =
            words.partition(|word| word.starts_with("port:"));
        let labels: String = labels
            .iter()
            .map(|label| label.split_once('=').unwrap_or_else(|| panic!("{label}: no value")))
            .map(|(key, value)| format!("{key}: \"{value}\", "))
            .collect();
        if first == "namespace" {
            let _ = write!(
                yaml,
                "---\napiVersion: v1\nkind: Namespace\n\
                 metadata: {{name: {second}, labels: {{{labels}}}}}\n"
            );
            continue;
        }
        let (namespace, name) = first.split_once('/').unwrap_or_else(|| panic!("{line}: no pod"));
        let own = [format!("10.1.0.{number}"), format!("fd01::{number}")];
        let _ = write!(
            yaml,
            "---\napiVersion: v1\nkind: Pod\n\
             metadata: {{namespace: {namespace}, name: {name}, labels: {{{labels}}}}}\n\
             spec: {{nodeName: {second}, containers: [{{name: c, ports: [{}]}}]}}\n\
             status: {{phase: Running, podIPs: [{{ip: {}}}, {{ip: \"{}\"}}]}}\n",
            ports.iter().map(|port| container_port(port)).collect::<String>(),
            own[0],
            own[1]
        );
        names.insert(first.to_owned(), own.map(|text| text.parse().expect("an address")).into());
    }
    (yaml, names)
}

/// `port:http/TCP=80` as a container has it.
fn container_port(text: &str) -> String {
    let (name, number) = text.trim_start_matches("port:").split_once('=').expect("a number");
    let (name, protocol) = name.split_once('/').expect("a protocol");
    format!("{{name: {name}, protocol: {protocol}, containerPort: {number}}}, ")
}

/// The objects of manifests, as the API's types have them.
fn objects(yaml: &str) -> Objects {
    fn typed<T: DeserializeOwned>(document: Value) -> T {
        serde_json::from_value(document).expect("an object of its kind")
    }
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).expect("YAML");
    let mut objects = Objects::default();
    for document in documents {
        match document["kind"].as_str().expect("a kind") {
            "Namespace" => objects.namespaces.push(typed(document)),
            "Node" => objects.nodes.push(typed(document)),
            "Pod" => objects.pods.push(typed(document)),
            "NetworkPolicy" => objects.policies.push(typed(document)),
            other => panic!("{other} is no kind that matters here"),
        }
    }
    objects
}

/// The packets of one line, one for each family, and where they end.
fn packets(names: &Names, line: &str) -> (Vec<Packet>, End) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [from, to, transport, verdict] = words[..] else { panic!("{line}: write four words") };
    let ends = |text: &str| match names.get(text) {
        Some(addresses) => addresses.clone(),
        None => vec![text.parse().unwrap_or_else(|_| panic!("{text}: nobody"))],
    };
    let (protocol, l4_port) = transport.split_once('/').unwrap_or((transport, "0"));
    let l4_port = l4_port.parse().unwrap_or_else(|_| panic!("{transport}: no port"));
    let transport = match protocol {
        "TCP" => Transport::Tcp(l4_port),
        "UDP" => Transport::Udp(l4_port),
        "SCTP" => Transport::Sctp(l4_port),
        "ICMP" => Transport::Icmp,
        other => panic!("{other}: no protocol"),
    };
    let end = match verdict {
        "passes" => End::Passed,
        "egress" => End::DeniedByEgress,
        "ingress" => End::DeniedByIngress,
        other => panic!("{other}: no verdict"),
    };
    let mut packets = Vec::new();
    for from in ends(from) {
        let of_its_family = ends(to).into_iter().filter(|to| to.is_ipv4() == from.is_ipv4());
        packets.extend(of_its_family.map(|to| Packet { from, to, transport }));
    }
    assert!(!packets.is_empty(), "{line}: the ends are of two families");
    (packets, end)
}

/// Checks every line of `table` against the model and against the tables, and the two against each
/// other for every other packet of the cluster.
fn check(lines: &str, policies: &str, table: &str) {
    let (yaml, names) = cluster(lines);
    check_manifests(&(yaml + policies), &names, table);
}

fn check_manifests(yaml: &str, names: &Names, table: &str) {
    let manifests = control::manifests::parse(Path::new("golden.yaml"), yaml)
        .unwrap_or_else(|errors| panic!("{errors:#?}\n{yaml}"));
    let objects = objects(yaml);
    let nodes = Nodes::new(&objects, &manifests.state, None);
    let in_force = nodes.in_force();
    let mut wrong = Vec::new();
    for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (packets, meant) = packets(names, line);
        for packet in packets {
            let model = End::meant(objects.judge(&packet));
            let tables = in_force.pass(&packet);
            if (model, tables) != (meant, meant) {
                wrong.push(format!("{line}: model {model:?}, tables {tables:?}, {packet:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{objects:?}");
    difference(&objects, &nodes).unwrap_or_else(|told| panic!("{told}\n{objects:?}"));
}

/// A policy of a namespace, with the `spec` that is given.
fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{namespace: {namespace}, name: {name}}}\nspec:\n{spec}\n"
    )
}

#[test]
#[should_panic(expected = "model Passed, tables Passed")]
fn a_wrong_table_fails() {
    check(
        "namespace default\n default/a one\n default/b one",
        &policy("default", "none", "  podSelector: {matchLabels: {app: none}}"),
        "default/a default/b TCP/80 ingress",
    );
}
