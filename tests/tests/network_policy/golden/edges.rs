//! What the documentation only mentions: named ports of several pods, pods' and nodes' addresses in
//! blocks, pods that end, pods on their node's network.

use super::{check, check_manifests, cluster, policy};

/// `http` is 80 in one pod and 8080 in the other, and nothing in the third.
#[test]
fn named_port_means_what_the_destination_pod_means_by_it() {
    let lines = "
    namespace default
    default/old     one  app=web   port:http/TCP=80
    default/new     two  app=web   port:http/TCP=8080
    default/none    one  app=web   port:http/UDP=80
    default/client  one  app=cli   port:http/TCP=9
    ";
    let ingress = "  podSelector: {matchLabels: {app: web}}\n  ingress: [{ports: [{port: http}]}]";
    let egress = "
  podSelector: {matchLabels: {app: cli}}
  policyTypes: [Egress]
  egress: [{ports: [{port: http}]}]";
    check(
        lines,
        &policy("default", "ingress", ingress),
        "
        default/client  default/old   TCP/80    passes
        default/client  default/old   TCP/8080  ingress
        default/client  default/old   TCP/9     ingress
        default/client  default/new   TCP/8080  passes
        default/client  default/new   TCP/80    ingress
        default/client  default/none  TCP/80    ingress
        default/client  default/none  UDP/80    ingress
        ",
    );
    check(
        lines,
        &policy("default", "egress", egress),
        "
        default/client  default/old   TCP/80    passes
        default/client  default/old   TCP/9     egress
        default/client  default/new   TCP/8080  passes
        default/client  default/none  TCP/80    egress
        default/client  192.0.2.1     TCP/80    egress
        ",
    );
}

/// A block is about addresses, whoever has them.
#[test]
fn block_matches_pods_and_nodes() {
    let spec = "
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/14, except: [10.1.0.4/32]}}]}]
  egress: [{to: [{ipBlock: {cidr: 10.0.0.1/31}}, {ipBlock: {cidr: \"fd00::1/128\"}}]}]";
    check(
        "
        namespace default
        default/web    one  app=web
        default/seen   two
        default/left   one
        ",
        &policy("default", "blocks", spec),
        "
        10.1.0.3     10.1.0.2  TCP/80  passes
        10.1.0.4     10.1.0.2  TCP/80  ingress
        10.0.0.2     10.1.0.2  TCP/80  passes
        10.4.0.0     10.1.0.2  TCP/80  ingress
        fd01::3      fd01::2   TCP/80  ingress
        10.1.0.2     10.0.0.1  TCP/80  passes
        10.1.0.2     10.0.0.2  TCP/80  egress
        fd01::2      fd00::1   TCP/80  passes
        fd01::2      fd00::2   TCP/80  egress
        10.1.0.2     10.1.0.3  TCP/80  egress
        ",
    );
}

/// Completed jobs have lost their addresses, terminating pods keep theirs until somebody live has it,
/// and a pod on its node's network is its node.
#[test]
fn address_is_that_of_whoever_has_it_now() {
    let (yaml, mut names) = cluster("namespace default\n default/web one app=web");
    let pod = |name: &str, rest: &str, spec: &str, phase: &str, address: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: default, name: {name}, {rest}}}\n\
             spec: {{nodeName: two, containers: [], {spec}}}\n\
             status: {{phase: {phase}, podIP: {address}}}\n"
        )
    };
    let friend = "labels: {app: friend}";
    let ending = "labels: {app: friend}, deletionTimestamp: \"2026-01-01T00:00:00Z\"";
    let pods = [
        pod("job", friend, "", "Succeeded", "10.1.0.20"),
        pod("leaving", ending, "", "Running", "10.1.0.21"),
        pod("left", ending, "", "Running", "10.1.0.22"),
        pod("successor", "labels: {app: stranger}", "", "Running", "10.1.0.22"),
        pod("failed", "labels: {app: stranger}", "", "Failed", "10.1.0.23"),
        pod("heir", friend, "", "Running", "10.1.0.23"),
        pod("agent", friend, "hostNetwork: true", "Running", "10.0.0.2"),
    ];
    names.insert("leaving".to_owned(), vec!["10.1.0.21".parse().expect("an address")]);
    let spec = "
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]";
    check_manifests(
        &(yaml + &pods.concat() + &policy("default", "friends", spec)),
        &names,
        "
        10.1.0.20  10.1.0.2     TCP/80  ingress
        leaving    default/web  TCP/80  passes
        10.1.0.22  10.1.0.2     TCP/80  ingress
        10.1.0.23  10.1.0.2     TCP/80  passes
        10.0.0.2   10.1.0.2     TCP/80  ingress
        ",
    );
}
