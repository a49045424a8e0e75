//! What the XDP program is told, against the real one and its bounded maps.

#[expect(dead_code, reason = "the tests beside this one use the rest")]
mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use common::may_run;
use dataplane::forwarding::Forwarding;
use dataplane::tables::Tables;
use xdp_redirect::Redirect;
use xdp_redirect::limits::NODE_ADDRESSES_MAX;
use xdp_redirect::rules::L4Bitmap;
use xskiff::ours::{Ours, RulesInForce};

/// A node with `count` addresses that begin with `network`.
fn node(network: u8, count: u32) -> Ours {
    let address = |host: u32| IpAddr::from(Ipv4Addr::from_bits(u32::from(network) << 24 | host));
    let node_addresses = (1..=count).map(address).collect();
    let forwarding = Arc::new(Forwarding { node_addresses, ..Forwarding::default() });
    Ours::of(&Tables { forwarding, ..Tables::default() }, false)
}

/// What a failed change had left in the maps was forgotten, and took its room for good; and what
/// found no room kept all that followed from being told.
#[test]
fn a_change_that_finds_no_room_is_made_good_once_there_is_some() {
    if !may_run("a_change_that_finds_no_room_is_made_good_once_there_is_some") {
        return;
    }
    let mut redirect = Redirect::load(false).unwrap();
    let mut in_force = RulesInForce::default();
    in_force.update(node(10, NODE_ADDRESSES_MAX), &mut redirect).unwrap();
    let refused = in_force.update(node(11, NODE_ADDRESSES_MAX + 1), &mut redirect).unwrap_err();
    assert!(refused.to_string().contains("node_addresses4"), "{refused}");
    assert_ne!(*in_force.certain(), node(11, NODE_ADDRESSES_MAX + 1));
    // The refused change has made room by what it took away; the rest of it goes now.
    let mut told = Err(refused);
    for _ in 0..2 {
        told = in_force.update(node(12, NODE_ADDRESSES_MAX), &mut redirect);
    }
    told.unwrap();
    assert_eq!(*in_force.certain(), node(12, NODE_ADDRESSES_MAX));
    // And so does the first, of which nothing may be left.
    in_force.update(Ours::default(), &mut redirect).unwrap();
    in_force.update(node(10, NODE_ADDRESSES_MAX), &mut redirect).unwrap();
}

/// Somebody else may write the program's maps; what they hold then is found and mended.
#[test]
fn rules_that_somebody_else_changed_are_read_back_and_mended() {
    if !may_run("rules_that_somebody_else_changed_are_read_back_and_mended") {
        return;
    }
    let mut redirect = Redirect::load(false).unwrap();
    let mut in_force = RulesInForce::default();
    let wanted = node(10, 3);
    in_force.update(wanted.clone(), &mut redirect).unwrap();
    assert_eq!(in_force.read_back(&mut redirect).unwrap(), Vec::<String>::new());

    let [lost, stray]: [IpAddr; 2] =
        [Ipv4Addr::new(10, 0, 0, 2).into(), Ipv4Addr::new(11, 0, 0, 9).into()];
    redirect.change_node_addresses(&[stray], &[lost]).unwrap();
    redirect.set_l4_ports(L4Bitmap::Udp, 53..=54, true).unwrap();
    let told = in_force.read_back(&mut redirect).unwrap();
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(told[0], "node address 10.0.0.2 is missing");
    assert!(told[1].contains("11.0.0.9") && told[2].contains("UDP port 53-54"), "{told:?}");

    in_force.update(wanted.clone(), &mut redirect).unwrap();
    assert_eq!(in_force.read_back(&mut redirect).unwrap(), Vec::<String>::new());
    assert_eq!(*in_force.certain(), wanted);
}
