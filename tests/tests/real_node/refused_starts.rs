//! `xskiff run` that cannot work: it says what is wrong with which thing, and the way out, exits
//! non-zero, and leaves the node's interfaces, rules and settings as they were.

use nix::sys::signal::Signal;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::bare::Bare;
use crate::world::PATIENCE;

/// Each of `words` must be in what the process said.
fn assert_says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word:?} is missing: {said}");
    }
}

#[test]
fn an_interface_that_is_absent_or_not_ethernet_is_named() {
    if !root_or_skip("an absent interface") {
        return;
    }
    let bare = Bare::new("absent");
    let run = bare.directory("run");
    let said = bare.refused(&[], &bare.configuration("no-such0", &run, ""));
    assert_says(&said, &["no-such0", "ip link"]);
    let said = bare.refused(&[], &bare.configuration("lo", &run, ""));
    assert_says(&said, &["uplink lo", "Ethernet"]);
}

#[test]
fn an_mtu_that_packet_memory_cannot_hold_is_named_with_what_can() {
    if !root_or_skip("a large MTU") {
        return;
    }
    let bare = Bare::new("mtu");
    let run = bare.directory("run");
    bare.node.ip("link set up0 mtu 9000").expect("an MTU");
    let single = bare.configuration("up0", &run, "packet_memory: {jumbo: false}");
    assert_says(&bare.refused(&[], &single), &["up0", "9000", "jumbo"]);
    bare.node.ip("link set up0 mtu 65535").expect("an MTU");
    let said = bare.refused(&[], &bare.configuration("up0", &run, ""));
    assert_says(&said, &["up0", "65535", "packet_memory.frame_bytes", "lower the MTU to"]);
}

#[test]
fn a_missing_privilege_is_named_and_nothing_is_left_attached() {
    if !root_or_skip("missing privileges") {
        return;
    }
    let bare = Bare::new("privileges");
    let run = bare.directory("run");
    let configuration = bare.configuration("up0", &run, "");
    for (capabilities, word) in [
        ("-net_admin", "CAP_NET_ADMIN"),
        ("-net_raw", "CAP_NET_RAW"),
        ("-bpf,-sys_admin", "CAP_BPF"),
    ] {
        let before = ["setpriv", "--bounding-set", capabilities, "--inh-caps", capabilities];
        let said = bare.refused(&before, &configuration);
        assert_says(&said, &[word]);
        assert!(said.contains("root"), "{said}");
    }
}

#[test]
fn a_run_directory_that_cannot_be_written_is_named() {
    if !root_or_skip("a read-only run directory") {
        return;
    }
    let bare = Bare::new("readonly");
    // Root may write everywhere but to a file system that nobody may write to.
    let place = bare.directory("readonly");
    std::fs::create_dir(&place).expect("a directory");
    let run = format!("{place}/run");
    let script = format!("mount -t tmpfs -o ro none {place} && exec \"$@\"");
    let before = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let said = bare.refused(&before, &bare.configuration("up0", &run, ""));
    assert_says(&said, &[&run, "ead-only", "run_directory"]);
    std::fs::write(bare.directory("file"), "").expect("a file");
    let run = bare.directory("file/run");
    let said = bare.refused(&[], &bare.configuration("up0", &run, ""));
    assert_says(&said, &[&run]);
}

#[test]
fn a_second_node_on_the_same_interface_or_directory_is_refused_and_the_first_goes_on() {
    if !root_or_skip("a second node") {
        return;
    }
    let bare = Bare::new("second");
    let (run, socket) = (bare.directory("run"), bare.directory("run/admin.sock"));
    let first = bare.spawn(&[], &bare.configuration("up0", &run, ""));
    bare.ready(&first, &socket);
    let said = bare.refused(&[], &bare.configuration("up1", &run, ""));
    assert_says(&said, &[&run, "another node process"]);
    // Apart from the first in everything but the interface.
    let other = bare.directory("other");
    let more = "host_port: {enabled: false}\nhttp: {listen: null}";
    let said = bare.refused(&[], &bare.configuration("up0", &other, more));
    assert_says(&said, &["network namespace", &format!("process {}", first.id()), "stop it"]);
    bare.ready(&first, &socket);
    assert!(first.ended().is_none());
    // A process that stands still is there all the same.
    first.signal(Signal::SIGSTOP).expect("stopped");
    let said = bare.refused(&[], &bare.configuration("up0", &other, more));
    assert_says(&said, &["network namespace"]);
    first.signal(Signal::SIGCONT).expect("going on");
    // And one that was killed is not: the next begins at once.
    first.signal(Signal::SIGKILL).expect("killed");
    first.wait(PATIENCE).expect("ended");
    let next = bare.spawn(&[], &bare.configuration("up0", &other, ""));
    bare.ready(&next, &bare.directory("other/admin.sock"));
}

/// A program that passes everything, of nobody we know.
const FOREIGN: &str = "__attribute__((section(\"xdp\"), used)) int foreign(void *context) \
                       { return 2; }\n\
                       char licence[] __attribute__((section(\"license\"), used)) = \"GPL\";\n";

#[test]
fn an_uplink_that_is_held_by_a_foreign_program_is_named_and_left_to_it() {
    if !root_or_skip("a busy uplink") {
        return;
    }
    let bare = Bare::new("busy");
    let (source, object) = (bare.directory("foreign.c"), bare.directory("foreign.o"));
    std::fs::write(&source, FOREIGN).expect("written");
    let built = ["-O2", "-target", "bpf", "-c", &source, "-o", &object];
    bare.node.run("clang", &built).expect("clang builds it");
    bare.node.ip(&format!("link set dev up0 xdp obj {object} sec xdp")).expect("attached");
    let said = bare.refused(&[], &bare.configuration("up0", &bare.directory("run"), ""));
    assert_says(&said, &["up0", "another XDP program holds it", "bpftool link", "stop it first"]);
    let link = bare.node.ip("-details link show up0").expect("ip");
    assert!(link.contains("prog/xdp"), "the foreign program is still there: {link}");
}

#[test]
fn an_uplink_with_too_few_or_too_many_queues_is_named_with_the_way_out() {
    if !root_or_skip("queues that do not fit") {
        return;
    }
    let bare = Bare::new("queues");
    let run = bare.directory("run");
    let pair = |name: &str, own: u32, peer: u32| {
        let sizes = |queues: u32| format!("numrxqueues {queues} numtxqueues {queues}");
        let (own, peer) = (sizes(own), sizes(peer));
        let link = format!("link add {name} {own} type veth peer name {name}p {peer}");
        bare.node.ip(&link).expect("a pair");
        for end in [name, &format!("{name}p")] {
            bare.node.ip(&format!("link set {end} up")).expect("up");
        }
        bare.settle(name);
    };
    // XDP in the driver wants a receive queue for every transmit queue of the peer.
    pair("few", 1, 2);
    let native = bare.configuration("few\n    xdp_mode: native", &run, "");
    let said = bare.refused(&[], &native);
    assert_says(&said, &["few", "numrxqueues", "generic mode"]);
    pair("many", 65, 65);
    let said = bare.refused(&[], &bare.configuration("many", &run, ""));
    assert_says(&said, &["many", "65 receive queues", "ethtool -L many combined 64"]);
}

#[test]
fn manifests_that_are_refused_start_nothing_and_are_named() {
    if !root_or_skip("refused manifests") {
        return;
    }
    let bare = Bare::new("manifests");
    let folder = bare.directory("manifests");
    std::fs::create_dir(&folder).expect("a folder");
    let configuration =
        bare.configuration("up0", &bare.directory("run"), &format!("manifests: {folder}"));
    for (text, words) in [
        (
            "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny, \
             namespace: shop}, spec: {podSelektor: {}}}",
            ["NetworkPolicy shop/deny", "podSelektor"],
        ),
        ("{apiVersion: v1, kind: [", ["a.yaml", "line 1"]),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: \
             {clusterIP: 10.96.0.1, ports: []}}",
            ["Service shop/web", "port"],
        ),
    ] {
        std::fs::write(format!("{folder}/a.yaml"), text).expect("written");
        assert_says(&bare.refused(&[], &configuration), &words);
    }
}
