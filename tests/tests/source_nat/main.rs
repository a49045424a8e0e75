//! What pods look like from outside, and who reaches them there: source translation as RFC 4787
//! (UDP), 5382 (TCP) and 5508 (ICMP) ask for it. `dataplane/src/nat/requirements.md` says which
//! test is for which requirement.
#![forbid(unsafe_code)]

mod crowded;
mod dependent;
mod errors;
mod hairpin;
mod independent;
mod requirements;
mod rules;

use std::net::SocketAddr;

use xskiff_tests::packet_builder::{Seen, read};

fn at(text: &str) -> SocketAddr {
    text.parse().expect("socket address")
}

fn seen(frame: &[u8]) -> Seen {
    read(frame).expect("a well-formed frame with right checksums")
}
