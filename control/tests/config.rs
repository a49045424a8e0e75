//! The configuration file: the example is whole and true, and nonsense is refused by name.

use std::collections::BTreeSet;
use std::path::Path;

use control::config::{Config, ConfigError, Effect};

fn example() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/xskiff.example.yaml");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Fields whose example shows something other than the default, since an empty one shows nothing.
const SHOWN_OTHERWISE: [&str; 15] = [
    "manifests",
    "kubernetes.api_servers",
    "kubernetes.kubeconfig",
    "kubernetes.ca_file",
    "uplinks",
    "flow_table.ipv4_flows",
    "flow_table.ipv4_flows_max",
    "flow_table.ipv6_flows",
    "flow_table.ipv6_flows_max",
    "flow_table.flows_per_endpoint_max",
    "flow_table.directory",
    "nat.ipv4_source",
    "nat.ipv6_source",
    "nat.snat",
    "cluster.pod_cidrs",
];

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

/// What a node calls live and what it takes over are the same fields.
#[test]
fn taking_over_what_is_live_leaves_only_what_needs_a_restart() {
    let text = "timeouts: {tcp_syn_sent_seconds: 11, tcp_syn_recv_seconds: 12, \
                tcp_established_seconds: 13, tcp_fin_wait_seconds: 14, tcp_time_wait_seconds: 15, \
                tcp_close_seconds: 16, udp_seconds: 17, udp_stream_seconds: 18, icmp_seconds: 19, \
                generic_seconds: 20, sctp_closed_seconds: 21, sctp_cookie_wait_seconds: 22, \
                sctp_cookie_echoed_seconds: 23, sctp_established_seconds: 24, \
                sctp_shutdown_sent_seconds: 25, sctp_shutdown_recd_seconds: 26, \
                sctp_shutdown_ack_sent_seconds: 27, sctp_heartbeat_sent_seconds: 28}\n\
                nat: {non_masquerade_cidrs: [198.18.0.0/15], l4_port_first: 62000, mapping: endpoint-independent, \
                snat: [{sources: [10.1.0.0/24], to: [192.0.2.9]}]}\n\
                cluster: {pod_cidrs: [10.1.0.0/16], service_cidrs: [10.2.0.0/16]}\n\
                node_ports: {first: 30100, last: 30200, address_cidrs: [192.0.2.0/24]}\n\
                load_balancing: {mode: dsr, dispatch: ipip}\n\
                stall: {after_ms: 700, restart_after_ms: 7000, on_stall: pass, on_exit: drop}\n\
                debug: {faults: true}\n\
                http: {proxy_listen: \"127.0.0.1:10257\"}\n\
                transmit: live-frames\n\
                packet_memory: {pod_frames: 2048}\n\
                cni: {adopt_running_pods: false}\n\
                policy: {lost_replies_seconds: 0, unknown_pods: allow}\n\
                conntrack: {details: true, tcp_windows: strict}\n\
                flow_table: {ipv4_flows: 100, ipv4_flows_max: 200, ipv6_flows: 300, \
                ipv6_flows_max: 400, flows_per_endpoint_max: 50, directory: /dev/shm/x}\n\
                workers: {count: 2}\n";
    let (mut in_force, candidate) = (Config::default(), Config::parse(text).expect("valid"));
    let differs: Vec<_> = in_force.diff(&candidate).into_iter().map(|c| c.field).collect();
    for field in in_force.leaves().keys() {
        let live = control::config::effects::effect(field) == Effect::Live;
        assert!(!live || differs.contains(field), "{field} is live and not tried here");
    }
    in_force.take_live(&candidate);
    let left: Vec<_> = in_force.diff(&candidate).into_iter().map(|c| c.field).collect();
    assert_eq!(
        left,
        ["conntrack.details", "flow_table.directory", "nat.l4_port_first", "workers.count"]
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

/// YAML of old read it as a truth value.
#[test]
fn windows_may_be_off_with_and_without_quotes() {
    for text in ["conntrack: {tcp_windows: off}", "conntrack: {tcp_windows: \"off\"}"] {
        assert_eq!(Config::parse(text).expect("valid"), Config::default());
    }
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
        ("workers: {count: 65}", "workers.count", "65"),
        ("workers: {cores: [1, 1]}", "workers.cores[1]", "1"),
        (
            "pods: {receive_ring: 100, transmit_ring: 512, fill_frames: 64}",
            "pods.receive_ring",
            "100",
        ),
        ("packet_memory: {frame_bytes: 1000}", "packet_memory.frame_bytes", "1000"),
        ("packet_memory: {pod_frames: 1023}", "packet_memory.pod_frames", "1023"),
        ("http: {proxy_listen: \"[::]:0\"}", "http.proxy_listen", "[::]:0"),
        ("http: {proxy_listen: \"[::]:9964\"}", "http.proxy_listen", "9964"),
        ("nat: {l4_port_first: 65000, l4_port_last: 61000}", "nat.l4_port_first", "65000-61000"),
        ("nat: {l4_port_first: 30000, l4_port_last: 31000}", "node_ports", "30000-31000"),
        ("uplinks: [{interface: ''}]", "uplinks[0].interface", "\"\""),
        ("uplinks: [{interface: a}, {interface: a}]", "uplinks[1].interface", "a"),
        ("stall: {after_ms: 1}", "stall.after_ms", "1"),
        ("timeouts: {udp_seconds: 0}", "timeouts.udp_seconds", "0"),
        ("run_directory: run", "run_directory", "run"),
        ("bpf_filesystem: bpf", "bpf_filesystem", "bpf"),
        ("conntrack: {tcp_windows: strict}", "conntrack.details", "strict"),
        ("conntrack: {tcp_windows: relaxed}", "conntrack.tcp_windows", "relaxed"),
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
fn wrong_types_are_named_by_setting_line_and_column() {
    for (text, told) in [
        (
            "workers:\n  count: two\n",
            "workers.count: line 2 column 10: a whole number from 0 to 65535 is wanted",
        ),
        ("workers: {count: -1}", "workers.count: line 1 column 18: a whole number"),
        ("stall: {after_ms: 500ms}", "stall.after_ms: line 1 column 19: a whole number"),
        ("cluster:\n  pod_cidrs: [10.1.0.0/16, ten]", "cluster.pod_cidrs[1]: line 2 column 28"),
        ("uplinks:\n- {interface: a, xdp_mode: fast}", "uplinks[0].xdp_mode: line 2 column 28"),
        ("workers: [1]", "workers: line 1 column 10"),
        (
            "uplink_sockets: {receive_ring: many}",
            "uplink_sockets.receive_ring: line 1 column 32: a whole number",
        ),
        ("uplinks: [{interface: a, everthing: true}]", "unknown field: uplinks[0].everthing"),
    ] {
        let message = refused(text);
        assert!(message.starts_with(told), "{text:?}: {message:?} is not {told:?}");
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn ranges_that_overlap_are_refused_by_both_settings_and_prefixes() {
    for (text, told) in [
        (
            "cluster: {pod_cidrs: [10.0.0.0/8], service_cidrs: [10.96.0.0/12]}",
            ["cluster.service_cidrs[0]", "10.96.0.0/12", "cluster.pod_cidrs[0]", "10.0.0.0/8"],
        ),
        (
            "cluster: {pod_cidrs: ['fd00::/64', 'fd01::/64'], service_cidrs: ['fd01::/112']}",
            ["cluster.service_cidrs[0]", "fd01::/112", "cluster.pod_cidrs[1]", "fd01::/64"],
        ),
        (
            "cluster: {pod_cidrs: [10.1.0.0/16, 10.1.2.0/24]}",
            ["cluster.pod_cidrs[1]", "10.1.2.0/24", "cluster.pod_cidrs[0]", "10.1.0.0/16"],
        ),
        (
            "cluster: {service_cidrs: [10.96.0.0/12]}\nnat: {ipv4_source: 10.96.0.1}",
            ["cluster.service_cidrs[0]", "10.96.0.0/12", "nat.ipv4_source", "10.96.0.1"],
        ),
        (
            "cluster: {service_cidrs: [10.96.0.0/12]}\n\
             node_ports: {address_cidrs: [10.96.1.0/24]}",
            ["cluster.service_cidrs[0]", "10.96.0.0/12", "node_ports.address_cidrs[0]", "10.96.1"],
        ),
        (
            "cluster: {pod_cidrs: ['::/0']}",
            ["cluster.pod_cidrs[0]", "::/0", "every address", "cannot be used"],
        ),
    ] {
        let message = refused(text);
        for word in told {
            assert!(message.contains(word), "{text}: {message} has no {word}");
        }
    }
}

#[test]
fn rules_of_source_translation_that_cannot_work_are_refused_by_place_and_reason() {
    let cluster = "cluster: {pod_cidrs: [10.244.0.0/16], service_cidrs: [10.96.0.0/12]}\n";
    for (rules, field, told) in [
        ("[{to: [192.0.2.9]}]", "nat.snat[0].sources", "ranges of pods' addresses"),
        ("[{sources: [10.244.1.0/24]}]", "nat.snat[0].to", "the outside answers"),
        ("[{sources: [10.244.1.0/24], to: [10.244.9.9]}]", "nat.snat[0].to[0]", "a pod's"),
        (
            "[{sources: [10.244.1.0/24], to: [10.96.0.9]}]",
            "cluster.service_cidrs[0]",
            "a service's",
        ),
        ("[{sources: [10.244.1.0/24], to: [127.0.0.1]}]", "nat.snat[0].to[0]", "can answer to"),
        ("[{sources: [10.244.1.0/24], to: [169.254.0.1]}]", "nat.snat[0].to[0]", "can answer to"),
        ("[{sources: [10.244.1.0/24], to: [192.0.2.9, 192.0.2.9]}]", "to[1]", "listed twice"),
        ("[{sources: [10.244.1.0/24], to: ['2001:db8::9']}]", "nat.snat[0].to", "no IPv4 address"),
        (
            "[{sources: [10.244.1.0/24], to: [192.0.2.9, '2001:db8::9']}]",
            "nat.snat[0].to",
            "2001:db8::9 cannot be used: its sources have no IPv6 range",
        ),
        (
            "[{sources: [10.244.1.0/24], destinations: ['::/0'], to: [192.0.2.9]}]",
            "nat.snat[0].destinations",
            "no IPv6 range",
        ),
        ("[{sources: [10.244.1.0/24, 10.244.1.7/32], to: [192.0.2.9]}]", "sources[1]", "overlaps"),
        (
            "[{sources: [10.244.1.0/24], to: [192.0.2.9]}, \
             {sources: [10.244.1.0/24], to: [192.0.2.8]}]",
            "nat.snat[1]",
            "nat.snat[0] has the same sources",
        ),
    ] {
        let message = refused(&format!("{cluster}nat: {{snat: {rules}}}\n"));
        assert!(message.contains(field) && message.contains(told), "{rules}: {message}");
        assert!(!message.contains('\n'), "{message}");
    }
    let many = |rules: usize| {
        let rule = |at: usize| {
            format!("{{sources: [10.244.{at}.0/24], to: [192.0.2.{at}, 192.0.3.{at}]}}")
        };
        let rules: Vec<String> = (1..=rules).map(rule).collect();
        format!("nat: {{snat: [{}]}}", rules.join(", "))
    };
    Config::parse(&many(64)).expect("as many as there may be");
    let message = refused(&many(65));
    assert!(message.contains("at most 64 rules") && message.contains("at most 128 addresses"));
    let unknown = refused("nat: {snat: [{sources: [10.244.1.0/24], too: [192.0.2.9]}]}");
    assert!(unknown.contains("nat.snat[0].too"), "{unknown}");
}

#[test]
fn services_have_a_bounded_number_of_ranges() {
    let text = |ranges: usize| {
        let ranges: Vec<String> = (0..ranges).map(|at| format!("10.{at}.0.0/16")).collect();
        format!("cluster: {{service_cidrs: [{}]}}", ranges.join(", "))
    };
    Config::parse(&text(16)).expect("as many as there may be");
    let message = refused(&text(17));
    assert!(message.contains("cluster.service_cidrs") && message.contains("at most 16 ranges"));
}

#[test]
fn pods_may_live_in_the_nodes_own_subnet_and_node_addresses_may_be_meant_widely() {
    let text = "cluster: {pod_cidrs: [10.0.0.0/16], service_cidrs: [10.96.0.0/12]}\n\
                nat: {ipv4_source: 10.0.0.7}\nnode_ports: {address_cidrs: [10.0.0.0/8]}\n";
    Config::parse(text).unwrap_or_else(|error| panic!("refused: {error}"));
}

#[test]
fn timeouts_below_what_an_rfc_asks_are_taken_with_a_caution_that_names_it() {
    assert_eq!(Config::default().cautions(), []);
    for (text, field, rfc) in [
        ("udp_seconds: 29", "timeouts.udp_seconds", "RFC 4787, REQ-5"),
        ("udp_stream_seconds: 119", "timeouts.udp_stream_seconds", "RFC 4787, REQ-5"),
        ("tcp_established_seconds: 7439", "timeouts.tcp_established_seconds", "RFC 5382, REQ-5"),
        ("tcp_syn_sent_seconds: 119", "timeouts.tcp_syn_sent_seconds", "RFC 5382, REQ-5"),
        ("icmp_seconds: 59", "timeouts.icmp_seconds", "RFC 5508, REQ-2"),
    ] {
        let config = Config::parse(&format!("timeouts: {{{text}}}")).expect("taken");
        let cautions = config.cautions();
        assert_eq!(cautions.len(), 1, "{text}: {cautions:?}");
        let told = cautions[0].to_string();
        assert!(told.starts_with(field) && told.contains(rfc), "{told}");
    }
    let long = "timeouts: {tcp_established_seconds: 7440, udp_stream_seconds: 120}";
    assert_eq!(Config::parse(long).expect("taken").cautions(), []);
}

#[test]
fn text_as_editors_leave_it_is_read_and_what_was_not_meant_is_refused_in_one_line() {
    let windows = "\u{feff}workers:\r\n  count: 2\r\n";
    assert_eq!(Config::parse(windows).expect("read").workers.count, 2);
    assert_eq!(Config::parse("\u{feff}").expect("read"), Config::default());
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..12 {
        let items = vec![format!("*a{}", level - 1); 10].join(",");
        bomb += &format!("a{level}: &a{level} [{items}]\n");
    }
    let deep = "[".repeat(100_000);
    for (text, told) in [
        ("workers:\n\tcount: 2\n", "line 2 column 2: tabs"),
        (
            "stall: {after_ms: 700}\nstall: {after_ms: 800}\n",
            "line 2 column 1: stall is said twice",
        ),
        ("workers:\n  count: 2\n  count: 3\n", "count is said twice"),
        ("workers: {count: 2}\n---\nworkers: {count: 3}\n", "a second document begins"),
        ("node_name: \"a\\0b\"", "node_name"),
        ("node_name: Node_1", "node_name"),
        ("manifests: ''", "manifests"),
        ("<html>404</html>", "line 1 column 1"),
        (&bomb, "too large or too complex"),
        (&deep, "line 1"),
    ] {
        let message = refused(text);
        assert!(message.contains(told), "{message}");
        assert!(!message.contains('\n') && message.len() < 1000, "{message}");
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

#[test]
fn passing_on_stall_into_a_host_port_that_stalls_too_is_cautioned() {
    let caution = |text: &str| Config::parse(text).expect("taken").cautions();
    assert!(caution("stall: {on_stall: pass}")[0].to_string().contains("host_port.enabled"));
    let alone = caution("stall: {on_stall: pass}\nhost_port: {enabled: false}");
    assert!(alone.iter().all(|caution| caution.field == "host_port.enabled"), "{alone:?}");
}

#[test]
fn going_without_the_host_port_is_cautioned_with_what_the_node_loses() {
    let config = Config::parse("host_port: {enabled: false}").expect("taken");
    let told = config.cautions()[0].to_string();
    assert!(told.contains("fragments") && told.contains("ICMP errors"), "{told}");
}

#[test]
fn an_uplink_taken_in_whole_needs_a_way_to_the_host_and_passes_nothing_on_a_stall() {
    let uplink = "uplinks: [{interface: eth0, everything: true}]\n";
    for (more, told) in [
        ("host_port: {enabled: false}", "host_port.enabled"),
        ("stall: {on_stall: pass}", "stall.on_stall"),
    ] {
        let message = refused(&format!("{uplink}{more}"));
        assert!(message.contains("uplinks[0].everything") && message.contains(told), "{message}");
    }
    Config::parse(uplink).expect("taken");
}

#[test]
fn sizes_of_flow_tables_that_cannot_be_are_refused_by_name() {
    for (text, said) in [
        ("ipv4_flows_max: 0", "flow_table.ipv4_flows_max: 0 cannot be used: 64 to 268435455"),
        ("ipv6_flows: 63", "flow_table.ipv6_flows: 63 cannot be used"),
        ("ipv4_flows_max: 268435456", "flow_table.ipv4_flows_max: 268435456 cannot be used"),
        (
            "{ipv4_flows: 200, ipv4_flows_max: 100}",
            "flow_table.ipv4_flows: 200 cannot be used: at most",
        ),
    ] {
        let inline = if text.starts_with('{') { text.to_owned() } else { format!("{{{text}}}") };
        let message = refused(&format!("flow_table: {inline}\n"));
        assert!(message.contains(said), "{message}");
    }
    let text = "flow_table: {ipv4_flows: 200}\n";
    assert_eq!(Config::parse(text).expect("valid").flow_table.ipv4_flows, Some(200));
}

#[test]
fn api_servers_and_a_folder_exclude_each_other_and_both_are_named() {
    let both = refused("manifests: /etc/a\nkubernetes: {enabled: true}");
    assert!(both.contains("kubernetes.enabled") && both.contains("/etc/a"), "{both}");
    let text = "manifests: /etc/a\nkubernetes: {api_servers: [\"https://10.0.0.1:6443\"]}";
    assert!(Config::parse(text).is_ok(), "what is not enabled is no source");
}

#[test]
fn servers_are_named_with_tls_or_on_this_machine() {
    for good in [
        "https://10.0.0.1:6443",
        "https://[fd00::1]:6443",
        "https://api.internal/",
        "http://127.0.0.1:8001",
        "http://[::1]:8001",
        "http://localhost",
    ] {
        let text = format!("kubernetes: {{api_servers: [\"{good}\"]}}");
        assert!(Config::parse(&text).is_ok(), "{good}");
    }
    for bad in [
        "10.0.0.1:6443",
        "http://10.0.0.1:8080",
        "https://",
        "https://10.0.0.1:0",
        "https://10.0.0.1:port",
        "https://a/b",
        "https://user@a",
        "https://fd00::1",
        "https://[fd00::1",
        "ftp://a",
    ] {
        let error = refused(&format!("kubernetes: {{relays: [\"{bad}\"]}}"));
        assert!(error.contains("kubernetes.relays[0]"), "{error}");
    }
    let twice = refused("kubernetes: {relays: [\"https://a\", \"https://a\"]}");
    assert!(twice.contains("relays[1]") && twice.contains("twice"), "{twice}");
}

#[test]
fn times_of_following_have_bounds() {
    let error = refused(
        "kubernetes: {silence_seconds: 0, watch_seconds_min: 400, hold_percent: 0, \
         state_directory: var}",
    );
    for field in ["silence_seconds", "watch_seconds_min", "hold_percent", "state_directory"] {
        assert!(error.contains(&format!("kubernetes.{field}")), "{error}");
    }
}

#[test]
fn whole_segments_need_room_and_programs_that_leave_their_offload_on() {
    let parsed = |text: &str| Config::parse(text).map_err(|error| error.to_string());
    let told =
        |text: &str| parsed(text).expect("taken").cautions().first().map(ToString::to_string);
    let small = told("segments: whole").expect("a caution");
    assert!(small.contains("packet_memory.frame_bytes: 2048") && small.contains("4096"), "{small}");
    assert_eq!(told("segments: whole\npacket_memory: {frame_bytes: 4096}"), None);
    assert_eq!(told("segments: cut"), None);
    for (text, way_out) in [
        ("segments: whole\npacket_memory: {jumbo: false}", "packet_memory.jumbo must be true"),
        ("segments: whole\npods: {xdp_mode: native}", "pods.xdp_mode must be auto or generic"),
        ("segments: halves", "segments"),
    ] {
        let refused = parsed(text).expect_err("refused");
        assert!(refused.contains(way_out), "{text}: {refused}");
    }
}
