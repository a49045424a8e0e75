//! The other ends of the node's veth pairs, in whichever network namespaces they are.
//!
//! The kernel tells of another namespace by its number in this one (`IFLA_LINK_NETNSID`), and answers
//! about it without anybody having to enter it or to know its path (`IFLA_TARGET_NETNSID` and
//! `IFA_TARGET_NETNSID`, kernel 4.20): so whose a veth pair is does not depend on how a plugin names
//! interfaces, nor on the routes it makes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::Path;

use dataplane::address::MacAddr;
use rtnetlink::packet_core::DefaultNla;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::asking::Asking;
use super::decode;

/// Where container runtimes (and `ip netns`) keep their pods' namespaces, each as a file.
const NAMESPACES: [&str; 2] = ["/run/netns", "/run/docker/netns"];
/// linux/if_addr.h.
const IFA_TARGET_NETNSID: u16 = 10;

/// The other end of a veth pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEnd {
    /// The node's end.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Addresses of the other end.
    pub addresses: Vec<IpAddr>,
    /// Link address of the other end.
    pub mac: Option<MacAddr>,
    /// Path of the other end's namespace, where it is found in one of the usual places.
    pub netns: Option<String>,
}

/// The node's end, and where the other one is.
struct Pair {
    interface: String,
    ifindex: u32,
    /// Of the namespace, in this one.
    number: i32,
    /// The other end's index there.
    other: u32,
}

/// The other ends of all veth pairs but those with an index of `known`, as far as they are in other
/// namespaces. Takes two questions for each.
///
/// # Errors
/// What the kernel says. A pair that went away meanwhile is left out.
pub fn pod_ends(known: &BTreeSet<u32>) -> io::Result<Vec<PodEnd>> {
    let asking = Asking::open()?;
    let links = asking.all(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let pairs = links.iter().filter_map(|link| match link {
        RouteNetlinkMessage::NewLink(link) => decode_pair(link),
        _ => None,
    });
    let pairs: Vec<Pair> = pairs.filter(|pair| !known.contains(&pair.ifindex)).collect();
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    let paths = paths(&asking);
    let ends = pairs.into_iter().filter_map(|pair| {
        // Whatever the kernel does not tell of is gone, or not for us to see.
        let end = look(&asking, &pair, paths.get(&pair.number).cloned());
        end.inspect_err(|error| {
            tracing::debug!(interface = pair.interface, %error, "its other end cannot be seen");
        })
        .ok()
    });
    Ok(ends.collect())
}

/// Whether the other end of the veth `ifindex` runs an XDP program. Takes two questions.
///
/// # Errors
/// What the kernel says, or that it is no veth's end whose other one is in another namespace.
pub fn runs_program(ifindex: u32) -> io::Result<bool> {
    let asking = Asking::open()?;
    let pair = pair(&asking, ifindex)?;
    let pair = pair.ok_or_else(|| io::Error::other("it has no other end in another namespace"))?;
    match asking.one(RouteNetlinkMessage::GetLink(other_end(&pair)))? {
        RouteNetlinkMessage::NewLink(link) => Ok(link.attributes.iter().any(is_program)),
        _ => Ok(false),
    }
}

/// What of the other end of a veth decides whether it takes live frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FarEnd {
    /// Its name.
    pub interface: String,
    /// Whether it runs an XDP program.
    pub runs_program: bool,
    /// Where it is.
    pub place: FarPlace,
}

/// In which network namespace the other end of a veth is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FarPlace {
    /// In this one.
    Here,
    /// In that at this path.
    Named(String),
    /// In another one, which has no name in the usual places.
    Unnamed,
}

/// The other end of the veth `ifindex`, in whichever namespace.
///
/// # Errors
/// What the kernel says, or that it tells of none.
pub fn far_end(ifindex: u32) -> io::Result<FarEnd> {
    let asking = Asking::open()?;
    let (question, place) = match pair(&asking, ifindex)? {
        Some(pair) => {
            let path = paths(&asking).remove(&pair.number);
            (other_end(&pair), path.map_or(FarPlace::Unnamed, FarPlace::Named))
        }
        None => (here(&asking, ifindex)?, FarPlace::Here),
    };
    let RouteNetlinkMessage::NewLink(link) = asking.one(RouteNetlinkMessage::GetLink(question))?
    else {
        return Err(io::Error::other("the kernel tells of no other end"));
    };
    let interface = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    let runs_program = link.attributes.iter().any(is_program);
    Ok(FarEnd { interface: interface.unwrap_or_default(), runs_program, place })
}

/// The veth and where its other end is, when that is in another namespace.
fn pair(asking: &Asking, ifindex: u32) -> io::Result<Option<Pair>> {
    Ok(decode_pair(&link(asking, ifindex)?))
}

fn link(asking: &Asking, ifindex: u32) -> io::Result<LinkMessage> {
    let mut question = LinkMessage::default();
    question.header.index = ifindex;
    match asking.one(RouteNetlinkMessage::GetLink(question))? {
        RouteNetlinkMessage::NewLink(link) => Ok(link),
        _ => Err(io::Error::other("the kernel does not tell of it")),
    }
}

/// Asks for the other end in this namespace.
fn here(asking: &Asking, ifindex: u32) -> io::Result<LinkMessage> {
    let own = link(asking, ifindex)?;
    let other = own.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(other) => Some(*other),
        _ => None,
    });
    let mut question = LinkMessage::default();
    question.header.index = other.ok_or_else(|| io::Error::other("it has no other end"))?;
    Ok(question)
}

fn is_program(attribute: &LinkAttribute) -> bool {
    let LinkAttribute::Xdp(all) = attribute else { return false };
    all.iter().any(|one| matches!(one, LinkXdp::Attached(how) if *how != XdpAttached::None))
}

fn other_end(pair: &Pair) -> LinkMessage {
    let mut question = LinkMessage::default();
    question.header.index = pair.other;
    question.attributes.push(LinkAttribute::IfNetnsId(pair.number));
    question
}

fn decode_pair(link: &LinkMessage) -> Option<Pair> {
    let (mut interface, mut number, mut other, mut is_veth) = (None, None, None, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface = Some(name.clone()),
            LinkAttribute::LinkNetNsId(own) => number = Some(*own).filter(|number| *number >= 0),
            LinkAttribute::Link(index) => other = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                is_veth = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
            }
            _ => {}
        }
    }
    let (interface, number, other) = (interface?, number?, other?);
    is_veth.then_some(Pair { interface, ifindex: link.header.index, number, other })
}

fn look(asking: &Asking, pair: &Pair, netns: Option<String>) -> io::Result<PodEnd> {
    let mac = match asking.one(RouteNetlinkMessage::GetLink(other_end(pair)))? {
        RouteNetlinkMessage::NewLink(link) => {
            decode::decode_link(&link).and_then(|(_, link)| link.mac)
        }
        _ => None,
    };
    let mut addresses = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = AddressMessage::default();
        question.header.family = family;
        question.header.index = pair.other;
        let number = pair.number.to_ne_bytes().to_vec();
        let number = DefaultNla::new(IFA_TARGET_NETNSID, number);
        question.attributes.push(AddressAttribute::Other(number));
        let answers = asking.all(RouteNetlinkMessage::GetAddress(question))?;
        addresses.extend(answers.iter().filter_map(|answer| {
            match answer {
                RouteNetlinkMessage::NewAddress(address) => decode::decode_address(address)
                    .filter(|(index, _)| *index == pair.other)
                    .map(|(_, own)| own.address),
                _ => None,
            }
        }));
    }
    let (interface, ifindex) = (pair.interface.clone(), pair.ifindex);
    Ok(PodEnd { interface, ifindex, addresses, mac, netns })
}

/// Paths of namespaces by their numbers in this one.
fn paths(asking: &Asking) -> BTreeMap<i32, String> {
    let mut paths = BTreeMap::new();
    for directory in NAMESPACES {
        // Most nodes have one of them.
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            if let Some(number) = number(asking, &path) {
                paths.entry(number).or_insert_with(|| path.to_string_lossy().into_owned());
            }
        }
    }
    paths
}

/// The number of a namespace in this one; `None` when it has none here, or the file is of none.
fn number(asking: &Asking, path: &Path) -> Option<i32> {
    let file = File::open(path).ok()?;
    let mut question = NsidMessage::default();
    let descriptor = u32::try_from(file.as_raw_fd()).ok()?;
    question.attributes.push(NsidAttribute::Fd(descriptor));
    let answer = asking.one(RouteNetlinkMessage::GetNsId(question)).ok()?;
    let RouteNetlinkMessage::NewNsId(answer) = answer else { return None };
    answer.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(number) if *number >= 0 => Some(*number),
        _ => None,
    })
}
