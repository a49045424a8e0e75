//! The least that a node process may do: it works with the capabilities that are listed, each of them
//! is needed for what the list says, and every thread keeps only its part.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use caps::{CapSet, Capability, CapsHashSet};
use xdp_redirect::Redirect;
use xdp_redirect::ethtool::{Offload, offload, set_offload};
use xdp_redirect::umem::{Umem, UmemConfig};
use xskiff::demo::expectation::Outcome;
use xskiff::demo::scene::{BUYER, CLIENT, HTTP, WEB_1};
use xskiff::demo::traffic::http;
use xskiff::pod_netns::look;
use xskiff::privileges::{Held, NEEDED};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::bare::Bare;
use crate::world::{Shape, Stage, World, within};

/// `setpriv` with no more than `kept`, and with next to no memory that may be locked.
fn confined(kept: &[Capability]) -> Vec<String> {
    let names = kept.iter().map(|own| format!("+{}", own.to_string()[4..].to_lowercase()));
    let bounding = names.fold("-all".to_owned(), |all, name| format!("{all},{name}"));
    let words = ["prlimit", "--memlock=65536:65536", "setpriv", "--inh-caps=-all"];
    let mut words: Vec<String> = words.into_iter().map(str::to_owned).collect();
    words.push(format!("--bounding-set={bounding}"));
    words
}

fn listed_but(gone: Option<Capability>) -> Vec<Capability> {
    NEEDED.iter().map(|needed| needed.capability).filter(|own| Some(*own) != gone).collect()
}

fn stage(label: &'static str) -> Stage {
    Stage::build(Shape { label, mtu: 1500, xdp_mode: "native" }, |text| text)
}

fn begin(stage: Stage, kept: &[Capability]) -> World {
    let before = confined(kept);
    stage.begin_behind(&before.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Whether a pod's checksums are finished by its own kernel.
fn finishes_checksums(world: &World) -> bool {
    let features = world.scene.pod(WEB_1).run("ethtool", &["-k", "eth0"]).expect("ethtool");
    features.contains("tx-checksumming: off")
}

/// Capability sets of every thread, permitted and in effect, by its name.
fn sets_of_threads(world: &World) -> BTreeMap<String, (u64, u64)> {
    let tasks = format!("/proc/{}/task", world.node.process().id());
    let tasks = std::fs::read_dir(tasks).expect("it runs");
    let mut sets = BTreeMap::new();
    for task in tasks {
        let status = task.expect("a task").path().join("status");
        let Ok(status) = std::fs::read_to_string(status) else { continue };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.expect("every thread says it").trim().to_owned()
        };
        let set = |name: &str| u64::from_str_radix(&field(name), 16).expect("hexadecimal");
        assert_eq!(field("NoNewPrivs:"), "1", "{status}");
        assert_eq!((set("CapInh:"), set("CapAmb:")), (0, 0), "{status}");
        sets.insert(field("Name:"), (set("CapPrm:"), set("CapEff:")));
    }
    sets
}

fn mask(held: &[Held]) -> u64 {
    let of = NEEDED.iter().filter(|needed| held.contains(&needed.held));
    of.map(|needed| needed.capability.bitmask()).sum()
}

#[test]
fn a_node_with_the_listed_capabilities_serves_and_its_threads_keep_only_their_part() {
    if !root_or_skip("the least capabilities") {
        return;
    }
    let world = begin(stage("leastcaps"), &listed_but(None));
    let client = &world.scene.client;
    let seen = http(client, WEB_1.addresses, HTTP[2], &[WEB_1.name], Some(CLIENT)).expect("asked");
    assert_eq!(seen.outcome, Outcome::Ok, "{seen:?}, {:#?}", world.status());
    assert!(finishes_checksums(&world), "no pod's namespace was entered");
    // What is done for a node that runs; its pods came after it was ready.
    let name = format!("{}/{}", BUYER.kubernetes_namespace, BUYER.name);
    world.ask(&["endpoint", "remove", &name]);
    world.ask(&["ct", "resize", "--v4", "200000"]);
    assert_eq!(world.ask_json(&["audit"])["found"], 0);

    let sets = sets_of_threads(&world);
    let control = (mask(&[Held::Always, Held::OnUse]), mask(&[Held::Always]));
    let worker = |name: &str| sets.get(name).copied();
    assert_eq!(worker("worker-0"), Some((0, 0)), "{sets:x?}");
    assert_eq!(worker("worker-1"), Some((0, 0)), "{sets:x?}");
    assert_eq!(worker("xskiff-http"), Some((0, 0)), "{sets:x?}");
    assert_eq!(worker("xskiff"), Some(control), "{sets:x?}");
    for (name, (permitted, _)) in &sets {
        assert_eq!(permitted & !control.0, 0, "{name} has more than the control thread: {sets:x?}");
    }
    assert_eq!(world.node.end().expect("ended"), Some(0));
}

#[test]
fn without_entering_pods_namespaces_a_node_serves_and_finishes_checksums_itself() {
    if !root_or_skip("no CAP_SYS_ADMIN") {
        return;
    }
    let world = begin(stage("noadmin"), &listed_but(Some(Capability::CAP_SYS_ADMIN)));
    assert!(!finishes_checksums(&world), "CAP_SYS_ADMIN is not what it takes");
    let client = &world.scene.client;
    let seen = http(client, WEB_1.addresses, HTTP[2], &[WEB_1.name], Some(CLIENT)).expect("asked");
    assert_eq!(seen.outcome, Outcome::Ok, "{seen:?}, {:#?}", world.status());
}

#[test]
fn without_locking_memory_packet_memory_must_fit_the_limit() {
    if !root_or_skip("no CAP_IPC_LOCK") {
        return;
    }
    let bare = Bare::new("nolock");
    let before = confined(&listed_but(Some(Capability::CAP_IPC_LOCK)));
    let before: Vec<&str> = before.iter().map(String::as_str).collect();
    let said = bare.refused(&before, &bare.configuration("up0", &bare.directory("run"), ""));
    assert!(said.contains("packet memory") && said.contains("memory lock limit"), "{said}");
}

/// What a node does to the kernel, each with the capability that it takes.
fn tried(netns: &str) -> Vec<(Capability, String)> {
    let mut refused = Vec::new();
    let mut note = |capability, error: String| refused.push((capability, error));
    // To what it is not: nothing is asked of the kernel otherwise.
    let is_on = offload("up0", Offload::TransmitChecksum).expect("it is there");
    if let Err(error) = set_offload("up0", Offload::TransmitChecksum, !is_on) {
        note(Capability::CAP_NET_ADMIN, error.to_string());
    }
    if let Err(error) = Redirect::load(false) {
        // The verifier names what it does not allow; the kernel's other refusals do not.
        let by_verifier = error.to_string().contains("prohibited for !root");
        let capability = if by_verifier { Capability::CAP_PERFMON } else { Capability::CAP_BPF };
        note(capability, error.to_string());
    }
    // Opens the first socket.
    if let Err(error) = Umem::new(UmemConfig { frames: 1024, ..UmemConfig::default() }) {
        note(Capability::CAP_NET_RAW, error.to_string());
    }
    let address: IpAddr = "192.0.2.1".parse().expect("an address");
    let entered = look(netns, &[address], Duration::from_secs(5));
    if let Err(error) = entered {
        note(Capability::CAP_SYS_ADMIN, error.to_string());
    }
    refused
}

/// The process's own check is not asked here: the kernel is.
#[test]
fn the_kernel_refuses_what_each_capability_is_listed_for_and_nothing_else() {
    if !root_or_skip("each capability") {
        return;
    }
    let bare = Bare::new("eachcap");
    let netns = format!("/run/netns/{}", bare.node.system_name());
    // CAP_SYS_ADMIN includes two of them.
    let system = Capability::CAP_SYS_ADMIN;
    let cases: [&[Capability]; 6] = [
        &[],
        &[system],
        &[Capability::CAP_NET_ADMIN],
        &[Capability::CAP_NET_RAW],
        &[Capability::CAP_BPF, system],
        &[Capability::CAP_PERFMON, system],
    ];
    for gone in cases {
        let refused = within(&bare.node, || {
            let kept = listed_but(None).into_iter().filter(|own| !gone.contains(own));
            let kept: CapsHashSet = kept.collect();
            // This thread's own, and it ends.
            caps::set(None, CapSet::Effective, &kept).expect("fewer");
            caps::set(None, CapSet::Permitted, &kept).expect("fewer");
            tried(&netns)
        });
        let named: Vec<Capability> = refused.iter().map(|(capability, _)| *capability).collect();
        assert_eq!(named, gone, "{refused:#?}");
    }
}
