//! A record of endpoints that the next process cannot read, in part or at all: an older binary after a roll
//! back, or a file that somebody wrote to. No pod goes past policy because of it.

use std::path::PathBuf;

use control::admin::status::Level;
use nix::sys::signal::Signal;
use serde_json::Value;
use xskiff::demo::scene::{PODS, STRANGER};
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::left_attached::{INTERFACES, assert_serves, escapes, programs, start_with};
use crate::world::{PATIENCE, World};

fn record(world: &World) -> PathBuf {
    world.files.socket.with_file_name("endpoints.json")
}

fn aside(world: &World) -> PathBuf {
    world.files.socket.with_file_name("endpoints.json.unread")
}

fn stranger() -> String {
    format!("{}/{}", STRANGER.kubernetes_namespace, STRANGER.name)
}

/// Names of the endpoints.
fn endpoints(world: &World) -> Vec<String> {
    let list = world.ask_json(&["endpoint", "list"]);
    let rows = list.as_array().expect("rows").iter();
    rows.map(|row| row["name"].as_str().expect("a name").to_owned()).collect()
}

/// Changes the entry of the stranger so that no node can read it.
fn spoil_stranger(world: &World) {
    let file = record(world);
    let text = std::fs::read_to_string(&file).expect("a record");
    let mut contents: Value = serde_json::from_str(&text).expect("JSON");
    let entries = contents["endpoints"].as_array_mut().expect("entries");
    let entry = entries.iter_mut().find(|entry| entry["endpoint"]["name"] == stranger().as_str());
    entry.expect("its entry")["endpoint"]["addresses"] = "those of tomorrow".into();
    std::fs::write(&file, contents.to_string()).expect("written");
}

fn add_stranger(world: &World) {
    let netns = format!("/run/netns/{}", world.scene.pod(STRANGER).system_name());
    let [v4, v6] = STRANGER.addresses;
    let name = stranger();
    let add = ["endpoint", "add", &name, "--interface", STRANGER.name, "--netns", &netns];
    world.ask(&[&add[..], &["--address", v4, "--address", v6]].concat());
}

/// It cost all pods of the node their program: they went past policy, by the kernel.
#[test]
fn an_entry_that_cannot_be_read_costs_no_other_pod_its_program_and_lets_its_own_pod_past_no_policy()
{
    if !root_or_skip("an unread entry") {
        return;
    }
    let more = "stall: {on_exit: drop}\ncni: {adopt_running_pods: false}";
    let world = start_with("entry", more);
    world.kill();
    spoil_stranger(&world);
    let second = world.start_again();
    let others: Vec<String> = {
        let are_there = || endpoints(&world).len() == PODS.len() - 1;
        assert!(wait_until(PATIENCE, are_there).is_some(), "{:?}", endpoints(&world));
        endpoints(&world)
    };
    assert!(!others.contains(&stranger()), "{others:?}");
    assert_eq!(programs(&world).len(), INTERFACES);
    assert!(!escapes(&world), "the stranger's packets are dropped");
    let named = |world: &World| {
        world.status().errors.iter().any(|error| error.object == format!("endpoint {}", stranger()))
    };
    assert!(named(&world), "{:#?}", world.status().errors);
    assert!(aside(&world).exists());

    // The next one reads a good record, and must know all the same.
    second.signal(Signal::SIGKILL).expect("killed");
    second.wait(PATIENCE).expect("ended");
    let _third = world.start_again();
    assert_eq!(programs(&world).len(), INTERFACES);
    assert!(!escapes(&world), "the stranger's packets are dropped");

    add_stranger(&world);
    let is_well = || !aside(&world).exists() && world.status().verdict.level == Level::Ok;
    assert!(wait_until(PATIENCE, is_well).is_some(), "{:#?}", world.status());
    assert!(!named(&world));
    assert_serves(&world);
    assert!(!escapes(&world));
    assert_eq!(programs(&world).len(), INTERFACES);
}

#[test]
fn after_a_record_that_is_no_json_every_pod_is_found_and_none_goes_past_policy_meanwhile() {
    if !root_or_skip("an unread record") {
        return;
    }
    let world = start_with("nojson", "stall: {on_exit: drop}");
    world.kill();
    std::fs::write(record(&world), "{\"version\":1,").expect("written");
    let _second = world.start_again();
    assert_eq!(programs(&world).len(), INTERFACES);
    assert!(!escapes(&world), "they are dropped");
    let are_there = || endpoints(&world).len() == PODS.len();
    assert!(wait_until(PATIENCE, are_there).is_some(), "{:#?}", world.status());
    let is_well = || !aside(&world).exists() && world.status().verdict.level == Level::Ok;
    assert!(wait_until(PATIENCE, is_well).is_some(), "{:#?}", world.status());
    assert_serves(&world);
    assert!(!escapes(&world));
    assert_eq!(programs(&world).len(), INTERFACES);
}
