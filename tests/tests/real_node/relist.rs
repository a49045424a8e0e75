//! Pods come while a large cluster is listed again and policies change: each ADD is as fast as ever, and
//! as many at once as a node may have pods are all served.
//!
//! `XSKIFF_CLUSTER_PODS` is how many pods are listed again (150,000), `XSKIFF_RELIST_ADDS` how many are
//! added at a time (110); `XSKIFF_CHURN_ADD_MS` (2,000) bounds the 99th percentile of an ADD.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use control::admin::{Reply, Request};
use control::model::Kind;
use serde_json::json;
use xskiff::lab::wait_until;
use xskiff_tests::cluster_server::{Fault, On, Setup, Synthetic};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::churn::{Caller, Churn, RATE, per_mille};
use crate::followed::{ApiServer, follow};
use crate::large_cluster::size;
use crate::world::{PATIENCE, Shape, number_from};

const SHAPE: Shape = Shape { label: "relist", mtu: 1500, xdp_mode: "native" };
/// ADDs that a percentile is taken of, at least.
const SAMPLES_MIN: usize = 200;
/// Lists of pods that were complete meanwhile, at least.
const LISTS_MIN: u64 = 2;
/// Between two changes of policy.
const POLICY_PAUSE: Duration = Duration::from_millis(100);

/// How often the node has listed all pods, and whether it is in step with them.
fn pod_lists(caller: &Caller) -> (u64, bool) {
    let Reply::Status(status) = caller.ask(Request::Status) else { panic!("no status") };
    let followed = status.kubernetes.expect("an API server is followed");
    let pods = followed.kinds.iter().find(|kind| kind.kind == "Pod").expect("pods are followed");
    (pods.lists, pods.in_step)
}

/// Lets everything be listed again, over and over; counts the lists.
fn list_again(caller: &Caller, server: &ApiServer, listed: &AtomicU64, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        let (before, _) = pod_lists(caller);
        // Where nothing has changed it would only watch again.
        server.faults.once(On::WATCHES.of("pods"), Fault::GONE);
        server.kill();
        server.come_back();
        let is_listed = || {
            let (lists, in_step) = pod_lists(caller);
            ended.load(Ordering::Relaxed) || lists > before && in_step
        };
        assert!(wait_until(PATIENCE * 4, is_listed).is_some(), "{:?}", pod_lists(caller));
        listed.fetch_add(pod_lists(caller).0 - before, Ordering::Relaxed);
    }
}

/// A policy about all pods that come changes all the time.
fn change_policies(server: &ApiServer, ended: &AtomicBool) {
    for round in 0.. {
        if ended.load(Ordering::Relaxed) {
            break;
        }
        server.set(
            Kind::NetworkPolicy,
            json!({
                "metadata": { "name": "churn", "namespace": "churn" },
                "spec": {
                    "podSelector": {},
                    "ingress": [{ "ports": [{ "protocol": "TCP", "port": 8000 + round % 100 }] }],
                },
            }),
        );
        std::thread::sleep(POLICY_PAUSE);
    }
}

#[test]
fn pods_that_come_while_a_large_cluster_is_listed_again_come_as_fast_as_ever() {
    if !root_or_skip("ADDs during a relist") {
        return;
    }
    let pods = usize::try_from(number_from("XSKIFF_CLUSTER_PODS", 600)).expect("a size");
    let count = usize::try_from(number_from("XSKIFF_RELIST_ADDS", 40)).expect("few");
    let bound = Duration::from_millis(number_from("XSKIFF_CHURN_ADD_MS", 2_000));
    let cluster = Synthetic { size: size(pods), detail: Default::default(), seed: 1 };
    let (world, server) =
        follow(SHAPE, (Setup::default(), "snapshot_seconds: 1"), PATIENCE * 4, |server| {
            cluster.objects().for_each(|(kind, object)| server.set(kind, object));
        });
    let churn = Churn::in_world(world, count);
    let caller = &churn.caller;
    let quiet = {
        let mut taken = caller.add_steadily(count, |number| caller.add(number), |_| ());
        caller.with_threads(count, |number| caller.remove(number));
        churn.wait_until_all_is_closed();
        per_mille(&mut taken, 990)
    };

    let (ended, listed) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut taken, mut at_once) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| list_again(caller, &server, &listed, &ended));
        scope.spawn(|| change_policies(&server, &ended));
        while taken.len() < SAMPLES_MIN || listed.load(Ordering::Relaxed) < LISTS_MIN {
            taken.extend(caller.add_steadily(count, |number| caller.add(number), |_| ()));
            caller.with_threads(count, |number| caller.remove(number));
            churn.wait_until_all_is_closed();
            let began = Instant::now();
            caller.with_threads(count, |number| {
                caller.add(number);
            });
            at_once.push(began.elapsed());
            assert!((0..count).step_by((count / 4).max(1)).all(|number| caller.answers(number)));
            caller.with_threads(count, |number| caller.remove(number));
            churn.wait_until_all_is_closed();
        }
        ended.store(true, Ordering::Relaxed);
    });
    let samples = taken.len();
    let (median, most) = (per_mille(&mut taken, 500), per_mille(&mut taken, 990));
    let slowest = at_once.iter().max().expect("one at least");
    println!(
        "{samples} ADDs at {RATE} a second while {pods} pods were listed again {} times and policy \
         changed: median {median:?}, 99 % within {most:?} ({quiet:?} before); {count} at once within \
         {slowest:?}",
        listed.load(Ordering::Relaxed)
    );
    assert!(most < bound, "99 % within {most:?}");
    assert!(*slowest < Duration::from_secs_f64(1.0 + 15.0 * count as f64 / 500.0), "{at_once:?}");
    let arrivals = churn.arrivals();
    assert_eq!((arrivals.failed, arrivals.abandoned, arrivals.late), (0, 0, 0), "{arrivals:?}");
    assert_eq!((arrivals.waiting, arrivals.under_way), (0, 0), "{arrivals:?}");
}
