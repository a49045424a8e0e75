//! `xskiff preflight`: a machine that will do, machines that will not, and nothing left behind.

use std::time::Duration;

use serde_json::Value;
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::{Machine, err, json, out};

/// A machine with an interface of `own` receive queues whose far end has `far` transmit queues.
fn machine(label: &str, own: u32, far: u32) -> Machine {
    let machine = Machine::new(label);
    let sizes = |queues: u32| format!("numrxqueues {queues} numtxqueues {queues}");
    let (own, far) = (sizes(own), sizes(far));
    let link = format!("link add eth7 {own} type veth peer name far7 {far}");
    machine.namespace.ip(&link).expect("a pair");
    for end in ["eth7", "far7"] {
        machine.namespace.ip(&format!("link set {end} up")).expect("up");
    }
    // The kernel settles the state of links in its own time.
    let links = || machine.namespace.ip("link show").expect("ip");
    let settled = || links().matches("state UP").count() == 2;
    assert!(wait_until(Duration::from_secs(60), settled).is_some(), "{}", links());
    machine
}

/// Verdict, finding and remedy of a check.
fn check(report: &Value, name: &str) -> (String, String) {
    let checks = report["checks"].as_array().expect("checks");
    let found = checks.iter().find(|check| check["check"] == name);
    let found = found.unwrap_or_else(|| panic!("{name} was not checked: {report:#}"));
    let word = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (word("verdict"), format!("{} -> {}", word("found"), word("remedy")))
}

fn state(machine: &Machine) -> String {
    let links = machine.namespace.ip("-details link show").expect("ip");
    // The kernel's own countdowns.
    let routes = machine.namespace.ip("route show table all").expect("ip");
    format!("{links}{routes}")
}

/// BPF programs and links of ours, on the whole machine; other tests may have theirs.
fn namespaces() -> String {
    String::from_utf8(std::process::Command::new("ip").args(["netns"]).output().unwrap().stdout)
        .expect("text")
}

#[test]
fn a_machine_that_will_do_passes_every_check_and_stays_as_it_was() {
    if !root_or_skip("a good machine") {
        return;
    }
    let machine = machine("prefgood", 2, 2);
    let before = state(&machine);
    let done = machine.xskiff(&["--json", "preflight", "eth7"]);
    let report = json(&done);
    assert_eq!(done.status.code(), Some(0), "{report:#}\n{}", err(&done));
    assert_eq!(report["ok"], true);
    for name in [
        "privileges",
        "kernel",
        "locked-memory",
        "open-files",
        "tap-device",
        "network-settings",
        "interface eth7",
        "mtu eth7",
        "xdp-program eth7",
        "qdisc eth7",
        "forward-native",
        "forward-generic",
        "queues",
        "jumbo",
        "live-frames",
        "whole-segments",
        "whole-segments eth7",
        "host-rules",
    ] {
        let (verdict, words) = check(&report, name);
        assert_eq!(verdict, "pass", "{name}: {words}");
    }
    // A machine of many CPUs has it remarked that queues are few.
    assert_ne!(check(&report, "queues eth7").0, "fail");
    assert_eq!(check(&report, "driver eth7").0, "skipped");
    assert_eq!(state(&machine), before, "something was left");
    assert!(!namespaces().contains("preflight"));

    let attached = machine.xskiff(&["preflight", "--attach", "eth7"]);
    let text = out(&attached);
    assert_eq!(attached.status.code(), Some(0), "{text}");
    for line in
        ["pass  attach eth7", "in native mode", "WARN  bind-zero-copy eth7", "pass  bind-copy eth7"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(text.contains("good, with"), "{text}");
    let after = state(&machine);
    assert!(!after.contains("xdp"), "the program is still there: {after}");
}

#[test]
fn an_interface_that_is_absent_or_carries_no_ethernet_fails() {
    if !root_or_skip("no interface") {
        return;
    }
    let machine = machine("prefabsent", 1, 1);
    for (name, word) in [("no-such0", "ip link"), ("lo", "no Ethernet frames")] {
        let done = machine.xskiff(&["--json", "preflight", name]);
        assert_eq!(done.status.code(), Some(1));
        let (verdict, words) = check(&json(&done), &format!("interface {name}"));
        assert_eq!(verdict, "fail");
        assert!(words.contains(word), "{words}");
        assert!(err(&done).contains("1 checks failed"), "{}", err(&done));
    }
}

#[test]
fn an_mtu_beyond_packet_memory_fails_with_what_would_fit() {
    if !root_or_skip("a large MTU") {
        return;
    }
    let machine = machine("prefmtu", 1, 1);
    machine.namespace.ip("link set eth7 mtu 65535").expect("an MTU");
    let done = machine.xskiff(&["--json", "preflight", "eth7"]);
    assert_eq!(done.status.code(), Some(1));
    let (verdict, words) = check(&json(&done), "mtu eth7");
    assert_eq!(verdict, "fail");
    assert!(
        words.contains("lower it to") && words.contains("packet_memory.frame_bytes"),
        "{words}"
    );
}

#[test]
fn too_few_and_too_many_queues_are_told_with_the_way_out() {
    if !root_or_skip("queues that do not fit") {
        return;
    }
    // XDP in the driver wants a receive queue for every transmit queue of the peer.
    let few = machine("preffew", 1, 2);
    let done = few.xskiff(&["--json", "preflight", "--attach", "eth7"]);
    let (verdict, words) = check(&json(&done), "attach eth7");
    assert_eq!(verdict, "warn", "{words}");
    assert!(words.contains("generic mode") && words.contains("receive queues"), "{words}");
    let many = machine("prefmany", 65, 65);
    let done = many.xskiff(&["--json", "preflight", "eth7"]);
    assert_eq!(done.status.code(), Some(1));
    let (verdict, words) = check(&json(&done), "queues eth7");
    assert_eq!(verdict, "fail");
    assert!(words.contains("ethtool -L eth7 combined 64"), "{words}");
}

/// The check of live frames out of the interface, looked at and, with `--attach`, tried.
fn live_frames(machine: &Machine, tried: bool) -> (String, String) {
    let words = ["--json", "preflight", "--attach", "eth7"];
    let words = words.iter().filter(|word| tried || **word != "--attach").copied();
    let done = machine.xskiff(&words.collect::<Vec<_>>());
    check(&json(&done), "live-frames eth7")
}

#[test]
fn live_frames_out_of_a_veth_are_told_by_its_other_end_wherever_that_is() {
    if !root_or_skip("other ends") {
        return;
    }
    let machine = machine("prefends", 1, 1);
    let vanish = "the other end has neither GRO on nor an XDP program";
    for tried in [false, true] {
        let (verdict, words) = live_frames(&machine, tried);
        assert_eq!(verdict, "warn", "{words}");
        assert!(words.contains(vanish) && words.contains("gro on"), "{words}");
    }
    machine.run("ethtool", &["-K", "far7", "gro", "on"]);
    let (verdict, words) = live_frames(&machine, false);
    assert!(verdict == "pass" && words.contains("stack"), "{verdict}: {words}");
    let far = machine.laboratory.namespace("far").expect("a namespace");
    machine.namespace.ip(&format!("link set far7 netns {}", far.system_name())).expect("moved");
    far.ip("link set far7 up").expect("up");
    let gro = |word| far.features("far7", &format!("gro {word}")).expect("a feature");
    // It came up with GRO on, which some kernels do not tell the near end.
    let (verdict, words) = live_frames(&machine, true);
    assert!(verdict == "pass" || words.contains("off and on"), "{verdict}: {words}");
    gro("off");
    gro("on");
    for tried in [false, true] {
        let (verdict, words) = live_frames(&machine, tried);
        assert_eq!(verdict, "pass", "{words}");
    }
    gro("off");
    let (verdict, words) = live_frames(&machine, false);
    assert!(verdict == "warn" && words.contains(vanish), "{verdict}: {words}");
    far.ip(&format!("link set dev far7 xdp obj {} sec xdp", foreign_program(&machine)))
        .expect("on");
    let (verdict, words) = live_frames(&machine, true);
    assert!(verdict == "pass" && words.contains("program"), "{verdict}: {words}");
}

#[test]
fn links_that_live_frames_do_not_fit_are_named_with_the_way_out() {
    if !root_or_skip("links that do not fit") {
        return;
    }
    let queues = machine("prefqueues", 2, 2);
    let (verdict, words) = live_frames(&queues, false);
    assert_eq!(verdict, "warn");
    assert!(
        words.contains("2 receive queues") && words.contains("transmit: live-frames"),
        "{words}"
    );
    let mtu = machine("preflarge", 1, 1);
    mtu.namespace.ip("link set eth7 mtu 1775").expect("an MTU");
    let (verdict, words) = live_frames(&mtu, true);
    assert_eq!(verdict, "warn");
    assert!(words.contains("MTU of 1775") && words.contains("1774 or less"), "{words}");
    mtu.shell("ip link del eth7; ip tuntap add eth7 mode tap; ip link set eth7 up");
    let (verdict, words) = live_frames(&mtu, false);
    assert_eq!(verdict, "skipped");
    assert!(words.contains("it is no veth"), "{words}");
}

#[test]
fn without_a_tun_device_ways_out_are_told_not_to_work_and_why() {
    if !root_or_skip("no /dev/net/tun") {
        return;
    }
    let machine = machine("preftun", 1, 1);
    let hide = "mount -t tmpfs none /dev/net && exec \"$@\"";
    let before = ["unshare", "--mount", "sh", "-c", hide, "sh"];
    let done = machine.xskiff_behind(&before, &["--json", "preflight", "eth7"]);
    assert_eq!(done.status.code(), Some(1), "packet memory needs it: {}", err(&done));
    let report = json(&done);
    for name in ["live-frames", "whole-segments"] {
        let (verdict, words) = check(&report, name);
        assert_eq!(verdict, "warn", "{name}: {words}");
        assert!(words.contains("/dev/net/tun"), "{name}: {words}");
    }
}

/// A program that passes everything, of nobody we know.
const FOREIGN: &str = "__attribute__((section(\"xdp\"), used)) int foreign(void *context) \
                       { return 2; }\n\
                       char licence[] __attribute__((section(\"license\"), used)) = \"GPL\";\n";

/// Compiles it; gives its path.
fn foreign_program(machine: &Machine) -> String {
    let file = |name: &str| machine.laboratory.directory().join(name).display().to_string();
    let (source, object) = (file("foreign.c"), file("foreign.o"));
    std::fs::write(&source, FOREIGN).expect("written");
    machine.run("clang", &["-O2", "-g", "-target", "bpf", "-c", &source, "-o", &object]);
    object
}

#[test]
fn a_foreign_program_is_named_and_left_alone() {
    if !root_or_skip("a foreign program") {
        return;
    }
    let machine = machine("prefforeign", 1, 1);
    let object = foreign_program(&machine);
    machine.namespace.ip(&format!("link set dev eth7 xdp obj {object} sec xdp")).expect("attached");
    let done = machine.xskiff(&["--json", "preflight", "eth7"]);
    assert_eq!(done.status.code(), Some(1));
    let (verdict, words) = check(&json(&done), "xdp-program eth7");
    assert_eq!(verdict, "fail", "{words}");
    assert!(
        words.contains("program foreign") && words.contains("ip link set dev eth7 xdp off"),
        "{words}"
    );
    assert!(state(&machine).contains("prog/xdp"), "it is still there");
}

#[test]
fn without_privileges_the_missing_one_is_named_and_trials_are_left_out() {
    if !root_or_skip("no privileges") {
        return;
    }
    let machine = machine("prefnone", 1, 1);
    let before = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"];
    let done = machine.xskiff_behind(&before, &["--json", "preflight", "eth7"]);
    assert_eq!(done.status.code(), Some(1));
    let report = json(&done);
    let (verdict, words) = check(&report, "privileges");
    assert_eq!(verdict, "fail");
    assert!(words.contains("CAP_NET_RAW") && words.contains("AF_XDP"), "{words}");
    for name in ["trial", "live-frames", "whole-segments"] {
        assert_eq!(check(&report, name).0, "skipped", "{name}");
    }
    let nobody = ["setpriv", "--reuid=65534", "--clear-groups"];
    let done = machine.xskiff_behind(&nobody, &["--json", "preflight", "eth7"]);
    let (verdict, words) = check(&json(&done), "privileges");
    assert_eq!((&*verdict, words.contains("not root")), ("fail", true), "{words}");
}

#[test]
fn limits_and_rules_that_packets_will_pass_by_are_named_with_their_owner() {
    if !root_or_skip("bypassed rules") {
        return;
    }
    let machine = machine("prefbypass", 1, 1);
    machine.shell(
        "tc qdisc add dev eth7 root tbf rate 10mbit burst 32kb latency 50ms
        iptables-legacy -t nat -N CNI-HOSTPORT-DNAT
        iptables-nft -N cali-FORWARD
        nft add table ip kube-proxy; nft add chain ip kube-proxy services",
    );
    let done = machine.xskiff(&["preflight", "eth7"]);
    let text = out(&done);
    assert_eq!(done.status.code(), Some(0), "{text}");
    for line in [
        "tbf: bypassed",
        "1 chains of portmap (CNI): bypassed",
        "1 chains of Calico: bypassed",
        "1 chains of kube-proxy: bypassed",
        "xskiff kube-proxy clean",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}
