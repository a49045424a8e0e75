//! The way between the node's own stack and the pipeline: a veth pair, routes and rules.
//!
//! There is no way back to the kernel after a redirect, so the host is a port like any other.
//! [`HOST_INTERFACE`] is the stack's end, [`PORT_INTERFACE`] ours. Host processes reach pods and
//! services by a routing table of our own, which a rule asks before `main`; its routes lead to a
//! gateway that is nobody's address and has a permanent neighbour entry, so that no ARP or ND is
//! needed, and name the node's own address as the source. Replies of host-network backends come
//! back by rules on protocol and source port.
//!
//! It promises to find and mend what a killed process left (its own interfaces by their alias,
//! its own rules by their protocol number), to touch nothing else, and to leave nothing behind
//! when removed. Reading order: this file, [`routing`], [`route_batch`],
//! [`reserved_ports`], [`sysctl`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use control::config::Segments;
use dataplane::address::MacAddr;
use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth};
use tokio::task::JoinHandle;
use xdp_redirect::ethtool::{OffloadError, set_offload};

use crate::netlink::{Link, decode};
use crate::offloads;

pub mod reserved_ports;
mod route_batch;
pub mod routing;
pub mod sysctl;

pub use routing::{HostRoutes, Making};

use reserved_ports::ReservedPorts;

/// The stack's end of the pair.
pub const HOST_INTERFACE: &str = "xskiff-host";
/// Our end of the pair.
pub const PORT_INTERFACE: &str = "xskiff-port";
/// How we know our own interfaces.
pub const ALIAS: &str = "xskiff host port";
/// Gateway of the IPv4 routes; nobody has this address. A host process that reaches a backend in the node's
/// own network by a service is seen by it as this.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 1);
/// Gateway of the IPv6 routes; nobody has this address.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x0007, 1);
/// As whom a host process is seen by IPv6 in the same way; nobody has this address. Toward the gateway's,
/// which is link-local, a UDP server's stack would answer from a link-local address, and not from the one
/// that was asked.
pub const HOST_PROCESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd78, 0x736b, 0x6966, 7, 0, 0, 0, 1);
/// The stack's own link-local address on the pair, given without duplicate detection: nobody
/// could answer it.
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x0007, 2);

/// How to make the host port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPortPlan {
    /// Receive and transmit queues at both ends: one per worker.
    pub queues: u32,
    /// Largest IP packet, in bytes: at least the largest of the uplinks and pods.
    pub mtu: u16,
    /// What becomes of TCP segments longer than that.
    pub segments: Segments,
    /// The routing table for pods and services; the next number is used for backends' replies.
    pub routing_table: u32,
    /// Priority of the rule that asks it; the number before is used for backends' replies. Below
    /// 32766, where `main` is asked.
    pub rule_priority: u32,
    /// L4 ports the kernel must not use, since we translate to them.
    pub snat_l4_ports: RangeInclusive<u16>,
    /// Where to record what must be given back.
    pub state_directory: PathBuf,
}

/// Why there is no host port.
#[derive(Debug, thiserror::Error)]
pub enum HostPortError {
    /// The name is somebody else's.
    #[error(
        "interface {interface} exists and is not ours (its alias is not {ALIAS:?}): remove it \
         with `ip link del {interface}` if nothing needs it"
    )]
    Taken {
        /// The interface.
        interface: String,
    },
    /// The kernel refused.
    #[error("cannot {action}: {source}")]
    Kernel {
        /// What was tried, naming the object.
        action: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A kernel setting cannot be read or written.
    #[error(
        "sysctl {name}: {source}; the node process needs a writable /proc/sys/net, or, in a container, the node's mounted at \
             /host/proc/sys/net"
    )]
    Sysctl {
        /// The setting.
        name: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The record of what is to be given back cannot be kept.
    #[error("{path}: {source}; the state directory must be writable")]
    Record {
        /// The file.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// An offload cannot be switched off.
    #[error(transparent)]
    Offload(#[from] OffloadError),
}

type Connection = rtnetlink::proto::Connection<rtnetlink::packet_route::RouteNetlinkMessage>;

fn connect() -> Result<(Connection, Handle), HostPortError> {
    let opened = rtnetlink::new_connection();
    let (connection, handle, _) = opened.map_err(|source| HostPortError::Kernel {
        action: "open a netlink socket".into(),
        source,
    })?;
    Ok((connection, handle))
}

/// What rtnetlink said, as an error of the operating system where it is one.
fn kernel(action: impl Into<String>, error: rtnetlink::Error) -> HostPortError {
    let source = match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => std::io::Error::other(other.to_string()),
    };
    HostPortError::Kernel { action: action.into(), source }
}

fn is_errno(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message)
        if message.to_io().raw_os_error() == Some(errno))
}

/// One end of the pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairEnd {
    /// The kernel's index.
    pub index: u32,
    /// Its link address.
    pub mac: MacAddr,
}

/// The host port, in place.
#[derive(Debug)]
pub struct HostPort {
    handle: Handle,
    driver: JoinHandle<()>,
    plan: HostPortPlan,
    reserved: ReservedPorts,
    /// The stack's end.
    pub host: PairEnd,
    /// Our end.
    pub port: PairEnd,
}

impl Drop for HostPort {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl HostPort {
    /// Mends what a killed process left, then makes the pair, its settings and its neighbours,
    /// and reserves the L4 ports. Routes come with [`set_routes`](Self::set_routes). When it
    /// fails it leaves nothing behind.
    ///
    /// # Errors
    /// [`HostPortError`], naming the object and the way out.
    pub async fn create(plan: HostPortPlan) -> Result<Self, HostPortError> {
        let (connection, handle) = connect()?;
        let driver = tokio::spawn(connection);
        remove_leftovers(&handle, &plan).await?;
        let reserved = ReservedPorts::reserve(&plan.state_directory, plan.snat_l4_ports.clone())?;
        let made = make(&handle, &plan).await;
        match made {
            Ok((host, port)) => Ok(Self { handle, driver, plan, reserved, host, port }),
            Err(error) => {
                let cleaned = remove_leftovers(&handle, &plan).await.and(reserved.release());
                if let Err(second) = cleaned {
                    tracing::warn!(error = %second, "cleaning up after a failed host port");
                }
                driver.abort();
                Err(error)
            }
        }
    }

    /// Goes on with the pair of a process that handed over, so that its sockets stay bound and its routes in
    /// place, where it is as it would be made; makes it anew otherwise.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub async fn go_on(plan: HostPortPlan) -> Result<Self, HostPortError> {
        let (connection, handle) = connect()?;
        let driver = tokio::spawn(connection);
        if let Some((host, port)) = find_pair(&handle, &plan).await? {
            let range = plan.snat_l4_ports.clone();
            let reserved = ReservedPorts::reserve(&plan.state_directory, range)?;
            let is_up = match set_offloads(&plan) {
                Ok(()) => set_up(&handle, &host, &port).await,
                Err(error) => Err(error),
            };
            match is_up {
                Ok(()) => return Ok(Self { handle, driver, plan, reserved, host, port }),
                Err(error) => tracing::warn!(%error, "the host port is made anew"),
            }
        }
        driver.abort();
        Self::create(plan).await
    }

    /// Makes routes and rules what `routes` says, and repairs what anything else changed. Cheap
    /// when nothing differs; call it whenever the view or the services change.
    ///
    /// # Errors
    /// [`HostPortError::Kernel`], naming the route or rule.
    pub async fn set_routes(&self, routes: &HostRoutes) -> Result<(), HostPortError> {
        let making = self.begin_routes(routes).await?;
        self.made(making).await
    }

    /// Begins to, and leaves the rest to [`Self::made`]: tens of thousands of routes take a while,
    /// in a thread of their own.
    ///
    /// # Errors
    /// [`HostPortError::Kernel`]: those that there are cannot be read.
    pub async fn begin_routes(&self, routes: &HostRoutes) -> Result<Making, HostPortError> {
        routing::begin(&self.handle, &self.plan, self.host.index, routes).await
    }

    /// The same where routes and rules are known to be what `before` said: the kernel is not asked for
    /// those that there are, which takes the longer the more pods there are.
    #[must_use]
    pub fn begin_change(&self, before: &HostRoutes, routes: &HostRoutes) -> Making {
        routing::begin_change(&self.plan, self.host.index, (before, routes))
    }

    /// Waits until what was begun is made.
    ///
    /// # Errors
    /// [`HostPortError::Kernel`], naming the route or rule; [`Self::set_routes`] is to be called then.
    pub async fn made(&self, making: Making) -> Result<(), HostPortError> {
        making.made(&self.handle).await
    }

    /// Takes away what a process before has left.
    ///
    /// # Errors
    /// [`HostPortError`] for the first thing that could not be taken away.
    pub async fn remove_left(plan: HostPortPlan) -> Result<(), HostPortError> {
        let (connection, handle) = connect()?;
        let driver = tokio::spawn(connection);
        // What is recorded as reserved is found by reserving it.
        let range = plan.snat_l4_ports.clone();
        let reserved = ReservedPorts::reserve(&plan.state_directory, range);
        let links = remove_leftovers(&handle, &plan).await;
        driver.abort();
        links.and(reserved?.release())
    }

    /// Takes everything away.
    ///
    /// # Errors
    /// [`HostPortError`] for the first thing that could not be taken away; the rest is tried.
    pub async fn remove(self) -> Result<(), HostPortError> {
        let links = remove_leftovers(&self.handle, &self.plan).await;
        links.and(self.reserved.release())
    }
}

async fn remove_leftovers(handle: &Handle, plan: &HostPortPlan) -> Result<(), HostPortError> {
    routing::remove_rules(handle, plan).await?;
    for interface in [HOST_INTERFACE, PORT_INTERFACE] {
        let Some((index, link)) = find(handle, interface).await? else { continue };
        // The pair's second end goes with the first, so that it is seldom found.
        if link.alias.as_deref() != Some(ALIAS) {
            return Err(HostPortError::Taken { interface: interface.to_owned() });
        }
        match handle.link().del(index).execute().await {
            Err(error) if !is_errno(&error, libc::ENODEV) => {
                return Err(kernel(format!("delete interface {interface}"), error));
            }
            _ => {}
        }
    }
    Ok(())
}

async fn find(handle: &Handle, interface: &str) -> Result<Option<(u32, Link)>, HostPortError> {
    let mut answers =
        std::pin::pin!(handle.link().get().match_name(interface.to_owned()).execute());
    match answers.try_next().await {
        Ok(message) => Ok(message.as_ref().and_then(decode::decode_link)),
        Err(error) if is_errno(&error, libc::ENODEV) => Ok(None),
        Err(error) => Err(kernel(format!("look for interface {interface}"), error)),
    }
}

/// Both ends of a pair of ours that is as the plan has it.
async fn find_pair(
    handle: &Handle,
    plan: &HostPortPlan,
) -> Result<Option<(PairEnd, PairEnd)>, HostPortError> {
    let mut ends = Vec::with_capacity(2);
    for interface in [HOST_INTERFACE, PORT_INTERFACE] {
        let Some((index, link)) = find(handle, interface).await? else { return Ok(None) };
        let is_as_planned = link.alias.as_deref() == Some(ALIAS)
            && link.virtual_kind.as_deref() == Some("veth")
            && (link.mtu, link.receive_queues) == (plan.mtu.into(), plan.queues);
        if !is_as_planned {
            return Ok(None);
        }
        ends.push(PairEnd { index, mac: link.mac.unwrap_or_default() });
    }
    let ends: Option<[PairEnd; 2]> = ends.try_into().ok();
    Ok(ends.map(|[host, port]| (host, port)))
}

/// At both ends, and for a pair that is kept as well: it may be another's plan that they are as.
fn set_offloads(plan: &HostPortPlan) -> Result<(), HostPortError> {
    for interface in [HOST_INTERFACE, PORT_INTERFACE] {
        let off = offloads::unwanted(plan.segments).iter().map(|offload| (offload, false));
        let on = offloads::wanted(plan.segments).iter().map(|offload| (offload, true));
        on.chain(off).try_for_each(|(offload, on)| set_offload(interface, *offload, on))?;
    }
    Ok(())
}

async fn make(handle: &Handle, plan: &HostPortPlan) -> Result<(PairEnd, PairEnd), HostPortError> {
    let pair = format!("make the veth pair {HOST_INTERFACE} and {PORT_INTERFACE}");
    let add = handle.link().add(pair_message(plan)).execute().await;
    add.map_err(|error| kernel(pair, error))?;
    let mut ends = Vec::with_capacity(2);
    for interface in [HOST_INTERFACE, PORT_INTERFACE] {
        let (index, link) = find(handle, interface).await?.ok_or_else(|| {
            kernel(
                format!("find interface {interface} after making it"),
                rtnetlink::Error::RequestFailed,
            )
        })?;
        let alias = LinkUnspec::new_with_index(index).alias(ALIAS).build();
        let set = handle.link().set(alias).execute().await;
        set.map_err(|error| kernel(format!("name interface {interface} as ours"), error))?;
        ends.push(PairEnd { index, mac: link.mac.unwrap_or_default() });
    }
    let [host, port]: [PairEnd; 2] = ends
        .try_into()
        .map_err(|_| kernel("find both ends of the pair", rtnetlink::Error::RequestFailed))?;
    set_offloads(plan)?;
    set_up(handle, &host, &port).await?;
    Ok((host, port))
}

/// Settings, addresses and neighbours of the pair, whatever of them there is. Not offloads: what they are
/// is fixed while a program is attached.
async fn set_up(handle: &Handle, host: &PairEnd, port: &PairEnd) -> Result<(), HostPortError> {
    configure()?;
    for (interface, index) in [(HOST_INTERFACE, host.index), (PORT_INTERFACE, port.index)] {
        let up = handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await;
        up.map_err(|error| kernel(format!("bring interface {interface} up"), error))?;
    }
    address_host(handle, host.index).await?;
    add_neighbours(handle, host.index, port.mac).await
}

fn pair_message(plan: &HostPortPlan) -> rtnetlink::packet_route::link::LinkMessage {
    let queues = [LinkAttribute::NumTxQueues(plan.queues), LinkAttribute::NumRxQueues(plan.queues)];
    let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(PORT_INTERFACE)
        .mtu(u32::from(plan.mtu))
        .arp(false);
    let mut host =
        LinkVeth::new(HOST_INTERFACE, PORT_INTERFACE).mtu(u32::from(plan.mtu)).arp(false);
    for attribute in queues {
        peer = peer.append_extra_attribute(attribute.clone());
        host = host.append_extra_attribute(attribute);
    }
    host.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build()))).build()
}

/// Settings that must stand before the interfaces come up.
fn configure() -> Result<(), HostPortError> {
    let host =
        |family: &str, setting: &str| format!("net/{family}/conf/{HOST_INTERFACE}/{setting}");
    let port =
        |family: &str, setting: &str| format!("net/{family}/conf/{PORT_INTERFACE}/{setting}");
    sysctl::loosen_source_validation(HOST_INTERFACE)?;
    sysctl::write(&host("ipv4", "send_redirects"), "0")?;
    // Until the XDP program is attached our end delivers to the stack, which must not route it.
    sysctl::write(&port("ipv4", "forwarding"), "0")?;
    if sysctl::exists("net/ipv6/conf/all") {
        sysctl::write(&port("ipv6", "disable_ipv6"), "1")?;
        sysctl::write(&host("ipv6", "disable_ipv6"), "0")?;
        sysctl::write(&host("ipv6", "accept_ra"), "0")?;
        sysctl::write(&host("ipv6", "accept_redirects"), "0")?;
        // 1: none. The address below is the only one.
        sysctl::write(&host("ipv6", "addr_gen_mode"), "1")?;
    }
    Ok(())
}

async fn address_host(handle: &Handle, index: u32) -> Result<(), HostPortError> {
    if !sysctl::exists("net/ipv6/conf/all") {
        return Ok(());
    }
    let mut request = handle.address().add(index, IpAddr::V6(HOST_V6), 64).replace();
    let nodad = AddressAttribute::Flags(AddressFlags::Nodad);
    request.message_mut().attributes.push(nodad);
    let added = request.execute().await;
    added.map_err(|error| kernel(format!("give {HOST_V6} to {HOST_INTERFACE}"), error))
}

async fn add_neighbours(handle: &Handle, index: u32, mac: MacAddr) -> Result<(), HostPortError> {
    let mut gateways = vec![IpAddr::V4(GATEWAY_V4)];
    if sysctl::exists("net/ipv6/conf/all") {
        gateways.push(IpAddr::V6(GATEWAY_V6));
    }
    for gateway in gateways {
        let request = handle.neighbours().add(index, gateway).link_layer_address(&mac.0).replace();
        let action = format!("make {gateway} a permanent neighbour on {HOST_INTERFACE}");
        request.execute().await.map_err(|error| kernel(action, error))?;
    }
    Ok(())
}
