//! The pod's link as the kernel has it: the interface inside, and the node's end of its veth pair.
//!
//! The kernel is asked, not the plugins before: what they name may be incomplete, and what carries
//! packets is a fact.

use std::fs::File;
use std::io;
use std::path::Path;

use netlink_packet_core::{
    NLM_F_ECHO, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sched::{CloneFlags, setns};

use super::error::{CniError, Code};

/// The kernel's index of an interface that is not there.
const NO_SUCH_DEVICE: i32 = 19;
/// What a bandwidth plugin gives the node's end of a veth pair.
const LIMITING: &str = "tbf";

/// A pod's link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLink {
    /// The node's end.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// The link address of the pod's end.
    pub mac: String,
}

/// An interface as the kernel tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    index: u32,
    name: String,
    /// `veth`, `ipvlan` and so on; empty for a device that is no virtual one.
    kind: String,
    mac: Option<[u8; 6]>,
    /// Index of the other end, in whichever namespace that is.
    peer: Option<u32>,
}

/// Finds the node's end of the veth pair whose other end is `interface` in the namespace at `netns`.
///
/// # Errors
/// Code 4 (the namespace or the interface is not there), 5 (the kernel) or 102 (it is no veth, has no
/// Ethernet, or its other end is not here).
pub fn find(netns: &Path, interface: &str) -> Result<PodLink, CniError> {
    let inside = look_inside(netns, interface)?;
    let unservable = |why: String| {
        let message = format!("{interface} in the container cannot be served");
        CniError::new(Code::UnservableInterface, message, why)
    };
    let Some(mac) = inside.mac else {
        let kind = if inside.kind.is_empty() { "device" } else { &inside.kind };
        return Err(unservable(format!(
            "it is a layer-3 {kind} without a link address: chain xskiff-cni behind a plugin that \
             makes a veth pair"
        )));
    };
    if inside.kind != "veth" {
        let kind = if inside.kind.is_empty() { "no virtual device" } else { &inside.kind };
        return Err(unservable(format!(
            "it is {kind}, not veth: chain xskiff-cni behind a plugin that makes a veth pair, such \
             as ptp or bridge"
        )));
    }
    let peer = inside.peer.ok_or_else(|| unservable("it has no other end".into()))?;
    let own = link(Wanted::Index(peer)).map_err(|error| kernel("the host's interfaces", &error))?;
    // An interface with that index may be another one: the other end may be in a third namespace.
    let is_other_end = |own: &Link| own.kind == "veth" && own.peer == Some(inside.index);
    let own = own
        .filter(is_other_end)
        .ok_or_else(|| unservable("its other end is not in the host's network namespace".into()))?;
    let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
    Ok(PodLink { interface: own.name, ifindex: own.index, mac })
}

fn kernel(what: &str, error: &io::Error) -> CniError {
    CniError::new(
        Code::InputOutput,
        format!("the kernel does not tell of {what}"),
        error.to_string(),
    )
}

fn no_netns(netns: &Path, error: &io::Error) -> CniError {
    CniError::new(
        Code::InvalidEnvironment,
        "CNI_NETNS cannot be entered",
        format!("{}: {error}; is the container still there?", netns.display()),
    )
}

/// The interface inside the namespace. A thread of its own enters it, and ends there.
fn look_inside(netns: &Path, interface: &str) -> Result<Link, CniError> {
    let found = std::thread::scope(|scope| {
        let look = || -> Result<Option<Link>, CniError> {
            let file = File::open(netns).map_err(|error| no_netns(netns, &error))?;
            setns(file, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| no_netns(netns, &errno.into()))?;
            link(Wanted::Name(interface))
                .map_err(|error| kernel("the container's interfaces", &error))
        };
        scope.spawn(look).join()
    });
    let panicked = |_| kernel("the container", &io::Error::other("the thread inside panicked"));
    found.map_err(panicked)??.ok_or_else(|| {
        CniError::new(
            Code::InvalidEnvironment,
            "CNI_IFNAME is not there",
            format!("{} has no interface {interface}", netns.display()),
        )
    })
}

enum Wanted<'a> {
    Name(&'a str),
    Index(u32),
}

/// Asks the kernel, in this thread's namespace.
fn link(wanted: Wanted<'_>) -> io::Result<Option<Link>> {
    let mut request = LinkMessage::default();
    match wanted {
        Wanted::Name(name) => request.attributes.push(LinkAttribute::IfName(name.to_owned())),
        Wanted::Index(index) => request.header.index = index,
    }
    match ask(RouteNetlinkMessage::GetLink(request)) {
        Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(Some(decode(&link))),
        Ok(other) => Err(io::Error::other(format!("an answer to another question: {other:?}"))),
        Err(gone) if gone.raw_os_error() == Some(NO_SUCH_DEVICE) => Ok(None),
        Err(other) => Err(other),
    }
}

/// Whether the node's end has the discipline by which a bandwidth plugin limits what goes to the pod. A
/// kernel that does not tell has none.
#[must_use]
pub fn is_limited(ifindex: u32) -> bool {
    let mut request = TcMessage::default();
    request.header.index = i32::try_from(ifindex).unwrap_or_default();
    request.header.parent = TcHandle::ROOT;
    let answer = ask(RouteNetlinkMessage::GetQueueDiscipline(request));
    let Ok(Some(RouteNetlinkMessage::NewQueueDiscipline(answer))) = answer else { return false };
    let kinds = |one: &TcAttribute| matches!(one, TcAttribute::Kind(kind) if kind == LIMITING);
    answer.attributes.iter().any(kinds)
}

/// The kernel's answer, in this thread's namespace; `None` where it says nothing, as about a discipline that
/// it has made by itself.
fn ask(question: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
    let payload = NetlinkPayload::from(question);
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
    // Kernel 6.8 and newer answer about a discipline only whoever wants an echo.
    message.header.flags = NLM_F_REQUEST | NLM_F_ECHO;
    message.header.sequence_number = 1;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    socket.send(&bytes, 0)?;
    // The kernel answers before `send` returns.
    let answer = match socket.recv_from_full() {
        Ok((answer, _)) => answer,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    };
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|error| io::Error::other(error.to_string()))?;
    match answer.payload {
        NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        other => Err(io::Error::other(format!("an answer to another question: {other:?}"))),
    }
}

fn decode(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: String::new(),
        mac: None,
        peer: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Link(index) => link.peer = Some(*index),
            LinkAttribute::Address(bytes) => {
                let octets: Option<[u8; 6]> = bytes.as_slice().try_into().ok();
                link.mac = octets.filter(|octets| octets.iter().any(|octet| *octet != 0));
            }
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(InfoKind::Veth) => Some("veth".to_owned()),
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                link.kind = kind.unwrap_or_default();
            }
            _ => {}
        }
    }
    link
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_read_by_name_and_by_index_and_one_that_is_not_there_is_none() {
        let lo = link(Wanted::Name("lo")).unwrap().unwrap();
        assert_eq!((lo.name.as_str(), lo.mac), ("lo", None));
        assert_eq!(link(Wanted::Index(lo.index)).unwrap(), Some(lo));
        assert_eq!(link(Wanted::Name("xskiff-none")).unwrap(), None);
        assert_eq!(link(Wanted::Index(1 << 30)).unwrap(), None);
    }

    #[test]
    fn an_interface_without_a_discipline_of_its_own_is_not_limited_and_nobody_waits_for_it() {
        let lo = link(Wanted::Name("lo")).unwrap().unwrap();
        assert!(!is_limited(lo.index) && !is_limited(1 << 30));
    }

    #[test]
    fn a_namespace_that_is_not_there_is_named_with_code_4() {
        for path in ["/nonexistent/netns", "/dev/null"] {
            let error = find(Path::new(path), "eth0").unwrap_err();
            assert_eq!(error.code(), 4, "{error}");
            assert!(error.to_string().contains(path), "{error}");
        }
    }
}
