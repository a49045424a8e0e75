//! The configuration file: the example is whole and true, and nonsense is refused by name.

use std::collections::BTreeSet;
use std::path::Path;

use control::config::{Config, ConfigError, Effect};

fn example() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/xskiff.example.yaml");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Fields whose example shows something other than the default, since an empty one shows nothing.
const SHOWN_OTHERWISE: [&str; 5] =
    ["manifests", "uplinks", "nat.ipv4_source", "nat.ipv6_source", "cluster.pod_cidrs"];

#[test]
fn example_has_every_field_with_its_default() {
    let text = example();
    let config = Config::parse(&text).expect("the example is valid");
    for change in Config::default().diff(&config) {
        let shown = SHOWN_OTHERWISE.contains(&change.field.as_str())
            || change.field == "cluster.service_cidrs";
        assert!(shown, "{}: default {}, example {}", change.field, change.from, change.to);
    }
    let written: BTreeSet<&str> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| line.trim().trim_start_matches("- ").split(':').next())
        .collect();
    for field in config.leaves().keys() {
        let name = field.rsplit('.').next().expect("a path has an end");
        assert!(written.contains(name), "{field} is not in the example");
    }
}

#[test]
fn example_says_of_every_setting_what_changing_it_does() {
    let config = Config::parse(&example()).expect("valid");
    let mut other = config.clone();
    other.timeouts.udp_seconds += 1;
    other.workers.count += 1;
    let effects: Vec<_> =
        config.diff(&other).into_iter().map(|change| (change.field, change.effect)).collect();
    assert_eq!(
        effects,
        vec![
            ("timeouts.udp_seconds".to_owned(), Effect::Live),
            ("workers.count".to_owned(), Effect::Restart)
        ]
    );
}

#[test]
fn printed_configuration_reads_back_as_itself() {
    let config = Config::parse(&example()).expect("valid");
    let printed = config.print().expect("printable");
    assert_eq!(Config::parse(&printed).expect("reads back"), config);
}

#[test]
fn empty_file_is_the_default() {
    assert_eq!(Config::parse("").expect("valid"), Config::default());
    assert_eq!(Config::parse("# nothing\n").expect("valid"), Config::default());
}

fn refused(text: &str) -> String {
    match Config::parse(text) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("accepted: {text}"),
    }
}

#[test]
fn misspelt_fields_are_refused_by_their_path() {
    let message = refused("workers:\n  cuont: 2\nnode_nam: x\n");
    assert!(message.contains("workers.cuont") && message.contains("node_nam"), "{message}");
}

#[test]
fn impossible_values_are_refused_with_field_value_and_way_out() {
    for (text, field, value) in [
        ("workers: {count: 0}", "workers.count", "0"),
        ("workers: {cores: [1, 1]}", "workers.cores[1]", "1"),
        (
            "pods: {receive_ring: 100, transmit_ring: 512, fill_frames: 64}",
            "pods.receive_ring",
            "100",
        ),
        ("packet_memory: {frame_bytes: 1000}", "packet_memory.frame_bytes", "1000"),
        ("nat: {l4_port_first: 65000, l4_port_last: 61000}", "nat.l4_port_first", "65000-61000"),
        ("nat: {l4_port_first: 30000, l4_port_last: 31000}", "node_ports", "30000-31000"),
        ("uplinks: [{interface: ''}]", "uplinks[0].interface", "\"\""),
        ("uplinks: [{interface: a}, {interface: a}]", "uplinks[1].interface", "a"),
        ("stall: {after_ms: 1}", "stall.after_ms", "1"),
        ("timeouts: {udp_seconds: 0}", "timeouts.udp_seconds", "0"),
        ("run_directory: run", "run_directory", "run"),
        ("host_port: {routing_table: 254}", "host_port.routing_table", "254"),
    ] {
        let message = refused(text);
        assert!(message.contains(field) && message.contains(value), "{text}: {message}");
    }
}

#[test]
fn wrong_types_and_units_are_refused_where_they_stand() {
    for text in
        ["workers: {count: two}", "stall: {after_ms: 500ms}", "cluster: {pod_cidrs: [10.0.0.0/99]}"]
    {
        assert!(matches!(Config::parse(text), Err(ConfigError::Syntax(_))), "{text}");
    }
}

#[test]
fn every_problem_is_told_at_once() {
    let message = refused("workers: {count: 0}\nstall: {after_ms: 1}\n");
    assert!(message.contains("workers.count") && message.contains("stall.after_ms"), "{message}");
}

#[test]
fn what_a_section_of_sockets_leaves_out_is_as_without_the_section() {
    let text = "pods: {xdp_mode: generic}\nuplink_sockets: {receive_ring: 4096}\n";
    let (config, default) = (Config::parse(text).expect("valid"), Config::default());
    let changed: Vec<_> = default.diff(&config).into_iter().map(|change| change.field).collect();
    assert_eq!(changed, ["pods.xdp_mode", "uplink_sockets.receive_ring"]);
    let error = Config::parse("uplink_sockets: {recieve_ring: 1}").unwrap_err().to_string();
    assert!(error.contains("uplink_sockets.recieve_ring"), "{error}");
}
