//! Pods whose labels no other pod has: identities are what selectors make, however many pods come.
//!
//! `XSKIFF_FLOOD_PODS` is how many there are (100,000, under 200 policies), `XSKIFF_FLOOD_JOBS` how many more
//! come and go one after the other, as Jobs' do (1,000). Of 100,000 the memory of the whole process is judged;
//! `xskiff-perf cluster` tells what of it is the control thread's.

use control::model::Kind;
use serde_json::{Value, json};
use xskiff::lab::wait_until;
use xskiff_tests::cluster_server::{Setup, Size, Synthetic};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::followed::{ApiServer, follow};
use crate::large_cluster::resident_mib;
use crate::world::{PATIENCE, Shape, World, number_from};

/// Pods of which the memory is judged.
const JUDGED_PODS: usize = 100_000;
/// What each may take of the process: the control thread's KiB, and as much for the thread that follows the
/// server, with whatever their allocator keeps.
const BYTES_A_POD: f64 = 2048.0;

/// A pod of a Job: what tells it apart is its own.
fn unique(cluster: &Synthetic, number: usize) -> Value {
    let mut pod = cluster.pod(number);
    let uid = pod["metadata"]["uid"].clone();
    let job = format!("nightly-report-{number:06}");
    pod["metadata"]["labels"]["job-name"] = json!(job);
    pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] = json!(job);
    pod["metadata"]["labels"]["controller-uid"] = uid.clone();
    pod["metadata"]["labels"]["batch.kubernetes.io/controller-uid"] = uid;
    pod["metadata"]["labels"][format!("only-of-{number}")] = json!("me");
    pod
}

fn identities(world: &World) -> u64 {
    let told = world.ask_json(&["policy", "status"]);
    told["identities"].as_u64().unwrap_or_else(|| panic!("{told}"))
}

/// Pods that the node follows, and failures of the source.
fn pods_of(world: &World) -> u64 {
    let followed = world.status().kubernetes.expect("an API server is followed");
    let row = followed.kinds.iter().find(|row| row.kind == "Pod").expect("pods");
    let failures: u64 = row.failures.iter().map(|(_, count)| count).sum();
    assert_eq!((row.refused, failures), (0, 0), "{row:?}");
    row.objects
}

fn wait_for(world: &World, wanted: u64) {
    let is_there = || pods_of(world) == wanted;
    assert!(wait_until(PATIENCE, is_there).is_some(), "{} of {wanted}", pods_of(world));
}

/// So many come before the node is waited for: a server remembers some changes, not all.
const AT_ONCE: usize = 500;

/// Makes these pods such, or lets them come; `own` are there beside.
fn come((world, own): (&World, u64), server: &ApiServer, cluster: &Synthetic, pods: usize) {
    let mut there = pods_of(world) - own;
    for number in 0..pods {
        server.set(Kind::Pod, unique(cluster, number));
        there = there.max(number as u64 + 1);
        if number % AT_ONCE == 0 {
            wait_for(world, own + there);
        }
    }
    wait_for(world, own + there);
    // What was published for the last of them came before this answer.
    assert_eq!(world.ask_json(&["audit"])["found"], 0);
}

#[test]
fn a_flood_of_pods_with_labels_of_their_own_makes_no_identities() {
    if !root_or_skip("a flood of labels") {
        return;
    }
    let flood = usize::try_from(number_from("XSKIFF_FLOOD_PODS", 2000)).expect("a size");
    let jobs = usize::try_from(number_from("XSKIFF_FLOOD_JOBS", 200)).expect("a size");
    let size =
        Size { nodes: 400, namespaces: 50, pods: flood + jobs, services: 300, policies: 200 };
    let cluster = Synthetic { size, detail: Default::default(), seed: 3 };
    let shape = Shape { label: "flood-of-labels", mtu: 1500, xdp_mode: "native" };
    // The snapshot's copy, which is made and freed again, would be counted as pods'.
    let (world, server) =
        follow(shape, (Setup::default(), "snapshot_seconds: 3600"), PATIENCE * 4, |server| {
            let but_pods = cluster.objects().filter(|(kind, _)| *kind != Kind::Pod);
            but_pods.for_each(|(kind, object)| server.set(kind, object));
            // One pod of each application of each namespace, for every selector to match one.
            let applications = (0..flood).take(size.services * 4);
            applications.for_each(|number| server.set(Kind::Pod, cluster.pod(number)));
        });
    let plain = flood.min(size.services * 4);
    let (own, process) = (pods_of(&world) - plain as u64, world.node.process().id());
    let (before, memory) = (identities(&world), resident_mib(process));

    come((&world, own), &server, &cluster, flood);
    let now = identities(&world);
    let bytes =
        (resident_mib(process) - memory) * f64::from(1 << 20) / (flood - plain).max(1) as f64;
    println!(
        "{flood} pods with labels of their own under {} policies: {now} identities, {before} before \
         them; {bytes:.0} bytes of the process for each",
        size.policies
    );
    assert_eq!(now, before, "labels that no selector asks about tell nobody apart");
    assert!(flood < JUDGED_PODS || bytes <= BYTES_A_POD, "{bytes:.0} bytes a pod");

    for number in flood..flood + jobs {
        let job = unique(&cluster, number);
        let name = job["metadata"]["name"].as_str().expect("a name").to_owned();
        let namespace = job["metadata"]["namespace"].as_str().expect("a namespace").to_owned();
        server.set(Kind::Pod, job);
        if number % 50 == 0 {
            assert_eq!(identities(&world), before);
        }
        server.store.delete(Kind::Pod, &namespace, &name).expect("it is there");
    }
    wait_for(&world, own + flood as u64);
    assert_eq!(identities(&world), before);
    let rows = world.status().reconciles;
    let source = rows.iter().find(|row| row.reconcile == "source-Pod").expect("a row");
    let (all, longest) = (source.microseconds, source.longest_microseconds);
    assert!(longest > Some(0) && all >= longest && source.runs > jobs as u64, "{source:?}");
    println!("{jobs} pods of Jobs came and went: {before} identities");
}
