//! Of routes, only those of the main table are told: the host's way into the pipeline alone is a table
//! of 20,000 in a large cluster, whose notifications would fill the socket faster than they are read.

use std::os::fd::AsFd;

use libc::{BPF_ABS, BPF_B, BPF_H, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET};
use rtnetlink::packet_route::route::RouteHeader;
use socket2::{SockFilter, SockRef};

/// Where a message's type is (struct nlmsghdr), and a route's table (struct rtmsg, after it).
const TYPE_AT: u32 = 4;
const TABLE_AT: u32 = 16 + 4;
/// Messages of this length at most pass, which are all.
const WHOLE: u32 = u32::MAX;

/// Lets the kernel leave out notifications of routes in other tables than `main`.
///
/// # Errors
/// What setsockopt(2) says to `SO_ATTACH_FILTER`.
pub fn leave_out_others(socket: &impl AsFd) -> std::io::Result<()> {
    SockRef::from(socket).attach_filter(&program())
}

/// A classic BPF program (the kernel's Documentation/networking/filter.rst). It loads words in network
/// order, in which netlink's are not.
fn program() -> [SockFilter; 7] {
    let instruction = |code: u32, jump_if, jump_if_not, operand| {
        SockFilter::new(u16::try_from(code).unwrap_or_default(), jump_if, jump_if_not, operand)
    };
    let is = |value: u32, jump_if, jump_if_not| {
        instruction(BPF_JMP | BPF_JEQ | BPF_K, jump_if, jump_if_not, value)
    };
    let load = |size: u32, at: u32| instruction(BPF_LD | size | BPF_ABS, 0, 0, at);
    let end = |length: u32| instruction(BPF_RET | BPF_K, 0, 0, length);
    let [new, gone] = [libc::RTM_NEWROUTE, libc::RTM_DELROUTE].map(|kind| u32::from(kind.to_be()));
    [
        load(BPF_H, TYPE_AT),
        is(new, 1, 0),
        is(gone, 0, 2),
        load(BPF_B, TABLE_AT),
        is(RouteHeader::RT_TABLE_MAIN.into(), 0, 1),
        end(WHOLE),
        end(0),
    ]
}
