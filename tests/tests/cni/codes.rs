//! Which of the specification's error codes each verb ends in, to the letter, in front of nodes that are
//! not there, hang, are busy, refuse, are of another version, or whose socket cannot be used.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use control::admin::{AdminError, Reply};
use serde_json::{Value, json};
use xskiff::demo::scene::WEB_1;
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::{plugin, root_or_skip};

use crate::cluster::{Cluster, PATIENCE, Primary};
use crate::driver::{Container, Network};

/// Who listens at the socket.
enum Listener {
    Nobody,
    /// Takes no connection.
    Hanging,
    /// Says this line to whoever asks.
    Saying(String),
    /// Its path cannot be one.
    Unusable,
}

/// What each verb ends in; DEL always ends well.
struct Wanted {
    add: u64,
    check: u64,
    collect: u64,
    status: u64,
    /// `msg` of the first three.
    message: &'static str,
    /// What `details` say, where SOCKET stands for the socket's path.
    details: String,
}

fn wanted(codes: [u64; 4], message: &'static str, details: &str) -> Wanted {
    let [add, check, collect, status] = codes;
    Wanted { add, check, collect, status, message, details: details.to_owned() }
}

const MISUNDERSTOOD: &str = "plugin and node do not understand each other";

fn line(reply: &Reply) -> String {
    serde_json::to_string(reply).expect("JSON") + "\n"
}

fn cases() -> Vec<(&'static str, Listener, Wanted)> {
    let busy = AdminError::Busy { what: "admin clients".into(), limit: 32 };
    let refusal = AdminError::Conflict { detail: "it is another's".into() };
    let said = |error: &AdminError| error.to_string();
    vec![
        (
            "absent",
            Listener::Nobody,
            wanted(
                [11, 11, 11, 51],
                "no node process is there",
                "no node process answers at SOCKET: No such file or directory (os error 2)",
            ),
        ),
        (
            "hanging",
            Listener::Hanging,
            wanted(
                [11, 11, 11, 50],
                "the node process hangs",
                "the node process at SOCKET does not answer within 1 s",
            ),
        ),
        (
            "busy",
            Listener::Saying(line(&Reply::Error(busy.clone()))),
            wanted([11, 11, 11, 50], "the node process is busy", &said(&busy)),
        ),
        (
            "refusing",
            Listener::Saying(line(&Reply::Error(refusal.clone()))),
            wanted([100, 100, 100, 50], "the node refuses the pod", &said(&refusal)),
        ),
        (
            "of another version",
            Listener::Saying("{\"moved\":7}\n".into()),
            wanted([101, 101, 101, 50], MISUNDERSTOOD, "the node's answer cannot be read"),
        ),
        (
            "answering another question",
            Listener::Saying(line(&Reply::Removed(true))),
            wanted(
                [101, 101, 101, 101],
                MISUNDERSTOOD,
                "it answered another question: install both of one version",
            ),
        ),
        (
            "unusable",
            Listener::Unusable,
            wanted(
                [5, 5, 5, 50],
                "the node's socket cannot be used",
                "SOCKET: Not a directory (os error 20)",
            ),
        ),
    ]
}

/// Says `line` to each that asks, until `is_over`.
fn say(listener: &UnixListener, line: &str, is_over: &AtomicBool) {
    listener.set_nonblocking(true).expect("set");
    while !is_over.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => answer(&stream, line),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn answer(mut stream: &UnixStream, line: &str) {
    stream.set_nonblocking(false).expect("set");
    let mut request = String::new();
    // Whoever hangs up needs no answer.
    let _ = BufReader::new(stream).read_line(&mut request);
    let _ = stream.write_all(line.as_bytes());
}

/// Asks with every verb.
fn assert_codes(
    cluster: &Cluster,
    network: &Network,
    (container, result): (&Container, &Value),
    (name, socket, wanted): (&str, &Path, &Wanted),
) {
    let more = |keys: Value| {
        let mut more = json!({
            "socket": socket, "nodeAbsent": "fail", "answerSeconds": 1, "waitSeconds": 1,
        });
        for (key, value) in keys.as_object().expect("an object") {
            more[key] = value.clone();
        }
        more
    };
    let details = wanted.details.replace("SOCKET", &socket.display().to_string());
    for (verb, code, keys) in [
        ("ADD", wanted.add, json!({ "prevResult": result })),
        ("CHECK", wanted.check, json!({ "prevResult": result })),
        ("GC", wanted.collect, json!({ "cni.dev/valid-attachments": [] })),
        ("STATUS", wanted.status, json!({})),
    ] {
        let named = Some(container).filter(|_| ["ADD", "CHECK"].contains(&verb));
        let began = Instant::now();
        let refused = network.ours(&cluster.node, verb, named, more(keys));
        let refusal = refused.expect_err(name);
        assert!(began.elapsed() < Duration::from_secs(10), "{name}, {verb}: {:?}", began.elapsed());
        let said: Value = serde_json::from_str(refusal.text.trim()).expect("JSON alone");
        let keys: BTreeSet<&str> =
            said.as_object().expect("an object").keys().map(|k| &**k).collect();
        assert_eq!(keys, BTreeSet::from(["cniVersion", "code", "details", "msg"]), "{said}");
        assert_eq!((&said["cniVersion"], &said["code"]), (&"1.1.0".into(), &code.into()), "{said}");
        let has_own_words = verb == "STATUS" && code < 100;
        let message =
            if has_own_words { "the node process cannot serve pods now" } else { wanted.message };
        assert_eq!(said["msg"], message, "{name}, {verb}");
        let told = said["details"].as_str().expect("text");
        assert!(told.starts_with(&details), "{name}, {verb}: {told}");
    }
    let gone = network.ours(&cluster.node, "DEL", Some(container), more(json!({})));
    assert_eq!(gone.expect("DEL ends well"), "", "{name}");
}

#[test]
fn each_verb_has_the_specifications_code_for_whatever_is_wrong_with_the_node() {
    if !root_or_skip("codes") {
        return;
    }
    let cluster = Cluster::build("codes");
    let network = cluster.network(Primary::Ptp, "1.0.0", json!({}));
    let container = cluster.container(WEB_1, "one");
    let others = network.without_ours();
    let result = others.add(&cluster.node, &container).unwrap_or_else(|r| panic!("{r:?}"));
    let newest = Network { version: "1.1.0", ..network.clone() };
    for (number, (name, listener, wanted)) in cases().into_iter().enumerate() {
        let directory = cluster.laboratory.directory().join(format!("node{number}"));
        std::fs::create_dir(&directory).expect("made");
        let is_over = AtomicBool::new(false);
        let socket = match listener {
            Listener::Unusable => {
                std::fs::write(directory.join("file"), "").expect("written");
                directory.join("file/admin.sock")
            }
            _ => directory.join("admin.sock"),
        };
        let listens = !matches!(listener, Listener::Nobody | Listener::Unusable);
        let bound = listens.then(|| UnixListener::bind(&socket).expect("a socket"));
        std::thread::scope(|scope| {
            let is_over = &is_over;
            if let (Listener::Saying(line), Some(bound)) = (&listener, &bound) {
                scope.spawn(move || say(bound, line, is_over));
            }
            // The end of the scope waits for it, also when an assertion fails.
            let _over = Over(is_over);
            let attached = (&container, &result);
            assert_codes(&cluster, &newest, attached, (name, &socket, &wanted));
        });
    }
    network.delete(&cluster.node, &container, None).expect("gone");
    assert_eq!((cluster.leased(), cluster.words_left()), (0, 0));
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The specification's own example of code 5.
#[test]
fn a_configuration_that_cannot_be_read_from_standard_input_has_code_5() {
    // A directory can be opened, and not read.
    let input = File::open("/").expect("a directory");
    let mut command = Command::new(plugin());
    command.env_clear().env("CNI_COMMAND", "STATUS").stdin(Stdio::from(input));
    let output = command.output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let golden = json!({
        "cniVersion": "1.1.0",
        "code": 5,
        "msg": "the network configuration does not come",
        "details": "standard input: Is a directory (os error 21)",
    });
    assert_eq!(said, golden);
}

/// What a container runtime writes that uses the specification's own library (1.1.0 has the list under
/// one name and its first edition had another one, so that it writes both).
const COLLECT: &str = r#"{"cni.dev/attachments":[{"containerID":"KEPT","ifname":"eth0"}],
  "cni.dev/valid-attachments":[{"containerID":"KEPT","ifname":"eth0"}],
  "cniVersion":"1.1.0","name":"pods","socket":"SOCKET","type":"xskiff-cni"}"#;

const STATUS: &str =
    r#"{"cniVersion":"1.1.0","name":"pods","socket":"SOCKET","type":"xskiff-cni"}"#;

#[test]
fn a_runtimes_own_words_for_status_and_garbage_are_understood_to_the_letter() {
    if !root_or_skip("a runtime's own words") {
        return;
    }
    let mut cluster = Cluster::start("words");
    cluster.wait_well();
    let network = cluster.network(Primary::Ptp, "1.0.0", json!({}));
    let pods = cluster.add_pods(&network);
    let socket = cluster.files.socket.display().to_string();
    let kept = &pods[0].0.id;
    for (verb, input) in [("STATUS", STATUS), ("GC", COLLECT), ("GC", COLLECT)] {
        let call = crate::driver::Call {
            host: &cluster.node,
            verb,
            program: plugin(),
            variables: Vec::new(),
            input: input.replace("SOCKET", &socket).replace("KEPT", kept),
        };
        assert_eq!(call.answer().unwrap_or_else(|refusal| panic!("{refusal:?}")), "", "{verb}");
    }
    let there: Vec<_> = cluster.endpoints().into_iter().map(|one| one.name).collect();
    assert_eq!(there, ["shop/web-1"]);
}

#[test]
fn a_namespace_that_vanishes_takes_its_pod_along_whenever_that_is() {
    if !root_or_skip("namespaces that vanish") {
        return;
    }
    let cluster = Cluster::start("vanish");
    let network = cluster.network(Primary::Ptp, "1.0.0", json!({}));
    let (before, served) = (cluster.state(), cluster.served());
    for round in 0..12_u32 {
        let namespace = cluster.laboratory.namespace(&format!("v{round}")).expect("a namespace");
        let path = format!("/run/netns/{}", namespace.system_name());
        let container = Container::of_pod(&format!("v{round}"), &namespace, "shop/web-1");
        let result = network.add(&cluster.node, &container).unwrap_or_else(|r| panic!("{r:?}"));
        let previous = json!({ "prevResult": result });
        network.ours(&cluster.node, "DEL", Some(&container), json!({})).expect("gone");
        // It vanishes before, while or after ours is asked again.
        let call = network.our_call(&cluster.node, "ADD", Some(&container), previous.clone());
        let child = call.start();
        std::thread::sleep(Duration::from_millis(round.into()));
        drop(namespace);
        let output = child.wait_with_output().expect("it ends");
        if !output.status.success() {
            let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            let code = said["code"].as_u64().expect("a code");
            println!("after {round} ms: {said}");
            assert!([4, 100, 102].contains(&code), "{said}");
        }
        let is_gone = || cluster.endpoints().is_empty() && !cluster.state().contains("veth");
        assert!(wait_until(PATIENCE, is_gone).is_some(), "{:?}", cluster.endpoints());
        cluster.settle();
        assert_eq!(cluster.served(), served, "round {round}");
        let refused = network.ours(&cluster.node, "CHECK", Some(&container), previous);
        let refusal = refused.expect_err("it is gone");
        assert!(refusal.code == 4 && refusal.text.contains(&path), "{refusal:?}");
        network.delete(&cluster.node, &container, Some(&result)).expect("gone without an error");
        assert_eq!((cluster.leased(), cluster.state()), (0, before.clone()), "round {round}");
    }
    cluster.wait_well();
}

/// It was found as it had been added, though no packet came to it or from it.
#[test]
fn a_pod_whose_link_is_down_does_not_pass_a_check() {
    if !root_or_skip("a link that is down") {
        return;
    }
    let (cluster, network, container, result) = crate::life::attached("down");
    network.check(&cluster.node, &container, &result).expect("as it was added");
    let interface = cluster.endpoints().pop().expect("it is served").interface;
    let previous = json!({ "prevResult": result });
    let check = || network.ours(&cluster.node, "CHECK", Some(&container), previous.clone());
    cluster.node.ip(&format!("link set {interface} down")).expect("down");
    let refused = || check().err();
    assert!(wait_until(PATIENCE, || refused().is_some()).is_some(), "it passes");
    let refusal = refused().expect("still down");
    assert!(refusal.code == 100 && refusal.text.contains("link is down"), "{refusal:?}");
    cluster.node.ip(&format!("link set {interface} up")).expect("up");
    assert!(wait_until(PATIENCE, || check().is_ok()).is_some(), "it does not pass any more");
}

/// The name that a container is to get is there already, and the interface that a container has is
/// another one's: whoever came first is served on.
#[test]
fn an_interface_that_is_there_already_is_refused_and_stays_its_pods() {
    if !root_or_skip("interfaces that are there already") {
        return;
    }
    let (cluster, network, first, result) = crate::life::attached("taken");
    let served = cluster.served();
    // The first plugin of the chain makes no second eth0.
    let again = Container { id: "two".into(), runtime: serde_json::Map::new(), ..first.clone() };
    let refusal = network.add(&cluster.node, &again).unwrap_err();
    assert!(refusal.plugin.ends_with("ptp") && refusal.text.contains("eth0"), "{refusal:?}");
    // Another pod on the first one's interface.
    let other = Container::of_pod("three", cluster.pod(WEB_1), "market/buyer");
    let previous = json!({ "prevResult": { "ips": [{ "address": "10.244.0.77/24" }] } });
    let refused = network.ours(&cluster.node, "ADD", Some(&other), previous.clone());
    let refusal = refused.unwrap_err();
    assert_eq!(refusal.code, 100, "{refusal:?}");
    assert!(refusal.text.contains("shop/web-1"), "{refusal:?}");
    let refusal = network.ours(&cluster.node, "CHECK", Some(&other), previous).unwrap_err();
    assert_eq!(refusal.code, 100, "{refusal:?}");
    network.ours(&cluster.node, "DEL", Some(&other), json!({})).expect("there was none");
    assert_eq!(cluster.container_of("shop/web-1").as_deref(), Some("one"));
    assert_eq!((cluster.endpoints().len(), cluster.served()), (1, served));
    network.check(&cluster.node, &first, &result).expect("as it was added");
}
