//! Attachments that outlive their process, and what the next one does with them.

use std::path::Path;

use dataplane::port::PortKind;
use xdp_redirect::loader::{Mode, RunningMode, TakeOver};
use xdp_redirect::pins::{self, Pins};
use xdp_redirect::{Redirect, leftover};

use crate::world::{Plan, eventually, ip, rule, world};

const ROOT: &str = "/sys/fs/bpf";

fn load() -> Redirect {
    Redirect::load(false)
        .expect("load")
        .with_pins(Pins::open(Path::new(ROOT)).expect("the BPF filesystem"))
}

fn program_on(interface: &str) -> Option<u32> {
    leftover::find(interface).expect("ask").map(|found| found.program_id)
}

fn index(interface: &str) -> u32 {
    xdp_redirect::loader::interface_index(interface).expect("it is there")
}

fn is_pinned(interface: &str) -> bool {
    Pins::open(Path::new(ROOT)).expect("the BPF filesystem").has(index(interface))
}

/// On how many interfaces, and nowhere in vain.
fn taken(done: TakeOver) -> usize {
    assert!(done.failures.is_empty(), "{:?}", done.failures);
    done.interfaces
}

#[test]
fn what_is_left_stays_attached_and_is_taken_over_in_place() {
    let Some(_world) = world(Plan::default()) else { return };
    for mode in [Mode::Native, Mode::Generic] {
        let mut first = load();
        first.attach("left", &rule(0, PortKind::Pod), mode).expect("attach");
        assert_eq!(first.pinned(), 1);
        let before = program_on("left").expect("ours");
        first.leave();
        assert_eq!(program_on("left"), Some(before), "it left with its process");

        let mut second = load();
        let attached = second.attach("left", &rule(0, PortKind::Pod), mode).expect("attach");
        assert_eq!(attached.mode == RunningMode::Generic, mode == Mode::Generic);
        assert_eq!(program_on("left"), Some(before), "taken over before it was asked for");
        assert_eq!(taken(second.take_over(|_| false)), 1);
        let now = program_on("left").expect("ours");
        assert_ne!(now, before);
        assert_eq!(taken(second.take_over(|_| false)), 0);
        drop(second);
        assert!(eventually(|| program_on("left").is_none()), "{mode:?} left a program");
        assert!(!is_pinned("left"));
    }
}

#[test]
fn a_start_that_fails_leaves_what_was_left_before() {
    let Some(_world) = world(Plan::default()) else { return };
    let mut first = load();
    first.attach("left", &rule(0, PortKind::Pod), Mode::Native).expect("attach");
    let before = program_on("left");
    first.leave();
    let mut second = load();
    second.attach("left", &rule(0, PortKind::Pod), Mode::Auto).expect("attach");
    drop(second);
    assert_eq!(program_on("left"), before);
    let mut third = load();
    let attached = third.attach("left", &rule(0, PortKind::Pod), Mode::Native).expect("attach");
    third.detach(attached.ifindex).expect("detach");
    assert!(eventually(|| program_on("left").is_none()), "asked to detach, it did not");
}

#[test]
fn another_mode_is_attached_anew() {
    let Some(_world) = world(Plan::default()) else { return };
    let mut first = load();
    first.attach("left", &rule(0, PortKind::Pod), Mode::Native).expect("attach");
    first.leave();
    let mut second = load();
    let attached = second.attach("left", &rule(0, PortKind::Pod), Mode::Generic).expect("attach");
    assert_eq!(attached.mode, RunningMode::Generic);
    assert_eq!(taken(second.take_over(|_| false)), 0);
    assert_eq!(second.pinned(), 1);
}

#[test]
fn what_is_no_port_any_more_is_detached_unless_it_is_spared() {
    let Some(_world) = world(Plan::default()) else { return };
    let mut first = load();
    for (number, interface) in [(0, "left"), (1, "right")] {
        first.attach(interface, &rule(number, PortKind::Pod), Mode::Native).expect("attach");
    }
    first.leave();
    let mut second = load();
    taken(second.take_over(|ifindex| ifindex == index("right")));
    assert!(eventually(|| program_on("left").is_none()));
    assert!(program_on("right").is_some());
    // What comes after is taken over at once.
    let before = program_on("right");
    second.attach("right", &rule(1, PortKind::Pod), Mode::Native).expect("attach");
    assert_ne!(program_on("right"), before);
}

/// The first one's failure left all others to the program before, for good.
#[test]
fn one_that_cannot_be_taken_over_keeps_no_other_from_it() {
    let Some(_world) = world(Plan::default()) else { return };
    let mut first = load();
    for (number, interface) in [(0, "left"), (1, "right")] {
        first.attach(interface, &rule(number, PortKind::Pod), Mode::Native).expect("attach");
    }
    first.leave();
    let mut second = load();
    for (number, interface) in [(0, "left"), (1, "right")] {
        second.attach(interface, &rule(number, PortKind::Pod), Mode::Native).expect("attach");
    }
    let before = program_on("right");
    ip(&["link", "del", "left"]);
    for interfaces in [1, 0] {
        let done = second.take_over(|_| false);
        assert_eq!((done.interfaces, done.failures.len()), (interfaces, 1), "{done:?}");
        assert!(done.failures[0].to_string().contains("left"), "{done:?}");
    }
    assert_ne!(program_on("right"), before);
}

#[test]
fn the_pin_of_an_interface_that_is_gone_is_swept_away() {
    let Some(_world) = world(Plan::default()) else { return };
    let mut first = load();
    first.attach("left", &rule(0, PortKind::Pod), Mode::Native).expect("attach");
    first.leave();
    let pins = Pins::open(Path::new(ROOT)).expect("the BPF filesystem");
    assert_eq!(pins.interfaces(), [index("left")]);
    ip(&["link", "del", "left"]);
    pins::sweep(Path::new(ROOT));
    assert!(pins.interfaces().is_empty());
    assert!(!pins.detach(77).expect("nothing there"));
}
