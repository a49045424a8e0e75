//! What changed in the cluster, the kernel or the list of endpoints becomes tables, XDP rules and
//! routes. Everything here may be repeated: what is as it should be is left alone. A failure is
//! noted with its object, leaves the last good state in force, and is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::compile::NodeView;
use control::config::Segments;
use control::model::ObjectName;
use dataplane::event::NeighbourRequest;
use dataplane::port::{Checksums, Port, PortId, PortKind};
use dataplane::time::Nanos;
use xdp_redirect::rules::OnStall;

use super::endpoints::Endpoint;
use super::fitting::{check_uplink, lower_first};
use super::publisher::FlowSettings;
use super::reconciles::Reconcile;
use super::settings::{Settings, Uplink};
use super::{Node, NodeError, check_mtu};
use crate::forwarding_view::{EndpointAddress, ForwardingPort, HostWay, Inputs};
use crate::host_port::{HOST_V6, PORT_INTERFACE};
use crate::netlink::KernelView;
use crate::netlink::neighbours::{ASKED_MAX, FORGET_FAILED};
use crate::ours::Ours;
use crate::ports::{self, ActivePort, PortRequest, PortTable};
use crate::workers::{Workers, monotonic_now};

/// What is told of an uplink that may come later.
const ABSENT: &str = "it is not there yet, so that nothing goes and comes by it; it becomes a port when it \
                      is made";

pub(super) fn add_uplink(
    ports: &mut PortTable,
    workers: &Workers,
    settings: &Settings,
    uplink: &Uplink,
) -> Result<PortId, NodeError> {
    let request = PortRequest {
        interface: uplink.interface.clone(),
        kind: PortKind::Uplink,
        mode: uplink.mode,
        sockets: settings.uplink_sockets,
        everything: uplink.everything,
        takes_whole: false,
    };
    add_port(ports, workers, &request)
}

pub(super) fn add_host_port(
    ports: &mut PortTable,
    workers: &Workers,
    settings: &Settings,
) -> Result<PortId, NodeError> {
    let request = PortRequest {
        interface: PORT_INTERFACE.to_owned(),
        kind: PortKind::Host,
        mode: settings.pod_mode,
        sockets: settings.uplink_sockets,
        everything: false,
        takes_whole: settings.segments == Segments::Whole,
    };
    add_port(ports, workers, &request)
}

pub(super) fn add_port(
    ports: &mut PortTable,
    workers: &Workers,
    request: &PortRequest,
) -> Result<PortId, NodeError> {
    let interface = request.interface.clone();
    ports.add(workers, request).map_err(|source| NodeError::Port { interface, source })
}

/// The node as the compiler wants it; `stack` is the host port's end in the host's stack.
pub(super) fn view_of_node(
    settings: &Settings,
    view: &KernelView,
    stack: Option<u32>,
    endpoints: BTreeMap<ObjectName, BTreeSet<IpAddr>>,
) -> NodeView {
    let addresses = node_addresses(view, stack);
    let within = |address: &IpAddr| {
        let prefixes = &settings.node_port_addresses;
        prefixes.is_empty() || prefixes.iter().any(|prefix| prefix.contains(*address))
    };
    NodeView {
        name: settings.node_name.clone(),
        node_port_addresses: addresses.iter().copied().filter(within).collect(),
        addresses,
        node_port_range: settings.node_port_range.clone(),
        endpoints,
        unknown_pods: settings.unknown_pods,
        returns_directly: settings.returns_directly,
    }
}

fn node_addresses(view: &KernelView, stack: Option<u32>) -> BTreeSet<IpAddr> {
    view.addresses
        .iter()
        .filter(|(interface, own)| Some(*interface) != stack && own.usable)
        .map(|(_, own)| own.address)
        .filter(|address| !address.is_loopback() && !is_link_local(*address))
        .collect()
}

impl Node {
    /// Brings tables, XDP rules and routes in step with everything known.
    pub(super) async fn reconcile(&mut self) {
        let view = self.follower.view();
        let mut began = Instant::now();
        self.follow_interfaces(&view).await;
        self.check_mtus(&view);
        self.lap(Reconcile::Interfaces, &mut began);
        let update = {
            let (audit, pods) = (&mut self.audit, &mut self.running_pods);
            self.publisher.take(self.cluster.take(), |change| {
                audit.note(change);
                pods.note(&self.settings.node_name, change);
            });
            self.lap(Reconcile::Changes, &mut began);
            self.compile(&view);
            began = Instant::now();
            let service_ranges = self.service_ranges(&view);
            let source_nat = self.source_nat(&view, &service_ranges);
            let (limits, direct) = (self.limits(), self.direct(&view));
            let listed = &self.publisher.compiled().services.host_backends;
            let host_backends = self.host_backends.follow(listed, monotonic_now());
            self.lap(Reconcile::SourceNat, &mut began);
            let (forwarding, endpoints) = (self.forwarding_ports(&view), self.endpoint_addresses());
            let asked: BTreeSet<_> = self.asked.keys().copied().collect();
            let inputs = Inputs {
                view: &view,
                ports: &forwarding,
                endpoints: &endpoints,
                host: self.host_way(),
                asked: &asked,
            };
            let ports = self.table_ports(&forwarding, &view);
            let flows = FlowSettings {
                timeouts: self.settings.timeouts,
                tcp_windows: self.settings.tcp_windows,
                lost_replies_until: self.lost_replies_until(),
                per_endpoint_max: self.settings.workers.capacities.per_endpoint,
                counted_by: self.workers.counted_by(),
                limits,
                direct,
                service_ranges,
                host_backends,
            };
            let census = self.workers.census_mut();
            self.publisher.update(ports, &inputs, &source_nat, flows, census)
        };
        self.lap(Reconcile::Forwarding, &mut began);
        self.follower.set_gateways(update.gateways);
        self.lap(Reconcile::Neighbours, &mut began);
        if update.next_hops_left_out > 0 {
            let message = format!("{} next hops found no room", update.next_hops_left_out);
            self.failed(Reconcile::Forwarding, "table next_hops", message);
        }
        if let Some(tables) = update.tables {
            self.workers.publish(&tables);
            self.lap(Reconcile::Workers, &mut began);
        }
        let leading = self.begin_to_lead_host(&view).await;
        self.tell_program();
        self.follow_health_checks();
        self.end_to_lead_host(leading).await;
        self.note_control_tables();
    }

    /// Notes the end of a run that began at `began`, where the next one begins.
    fn lap(&mut self, what: Reconcile, began: &mut Instant) {
        let now = Instant::now();
        self.reconciles.ran(what, now.duration_since(*began));
        *began = now;
    }

    fn compile(&mut self, view: &KernelView) {
        let node = self.node_view(view);
        let began = Instant::now();
        let (reconciles, mut stage_began) = (&mut self.reconciles, began);
        self.publisher.compile(&node, |stage| {
            let now = Instant::now();
            reconciles.ran(stage.into(), now.duration_since(stage_began));
            stage_began = now;
        });
        self.reconciles.ran(Reconcile::Compile, began.elapsed());
        self.log_fresh_warnings();
    }

    /// Each once, when it comes.
    pub(super) fn log_fresh_warnings(&mut self) {
        let (warnings, left_out) = self.publisher.take_fresh_warnings();
        for control::compile::Warning { object, message } in warnings {
            tracing::warn!(
                object,
                warning = message,
                "in force otherwise than it was probably meant"
            );
        }
        if left_out > 0 {
            tracing::warn!(left_out, "more warnings, which `xskiff status` may show");
        }
    }

    /// Never, where the workers began with every flow of the process before.
    fn lost_replies_until(&self) -> Nanos {
        match (self.settings.lost_replies, self.flows_began) {
            (Duration::ZERO, _) | (_, None) => Nanos::default(),
            (time, Some(began)) => began.after(time),
        }
    }

    /// Tells the XDP program what is ours, unless it knows: after what failed, and after a setting
    /// that no table holds has changed, too.
    pub(super) fn tell_program(&mut self) {
        let (tables, on_stall) = (self.publisher.tables(), self.settings.on_stall);
        let pass = on_stall == OnStall::Pass;
        let is_told = self.told.as_ref().is_some_and(|(told, then)| {
            let is_same = || Ours::is_surely_same(told, tables, pass);
            *then == on_stall && (Arc::ptr_eq(told, tables) || is_same())
        });
        let tables = Arc::clone(tables);
        if is_told {
            self.told = Some((tables, on_stall));
            return;
        }
        let began = Instant::now();
        let ours = Ours::of(&tables, pass);
        let updated = self.ours.update(ours, self.ports.redirect());
        self.reconciles.ran(Reconcile::XdpMaps, began.elapsed());
        match updated {
            Ok(()) => {
                self.told = Some((tables, on_stall));
                self.errors.clear("XDP rules");
            }
            Err(error) => {
                self.told = None;
                self.failed(Reconcile::XdpMaps, "XDP rules", error);
            }
        }
    }

    /// Ports whose interface went away are removed; uplinks that came back are added again.
    async fn follow_interfaces(&mut self, view: &KernelView) {
        let is_gone = |port: &&ActivePort| {
            let (interface, ifindex) = (port.interface.as_str(), port.attachment.ifindex);
            is_gone(view, (interface, ifindex), ports::index)
        };
        let gone = self.ports.iter().filter(is_gone);
        let gone: Vec<_> = gone.map(|port| (port.port, port.interface.clone())).collect();
        for (port, interface) in gone {
            tracing::info!(interface, "the interface is gone; its port goes with it");
            let name = self.endpoints.by_port(port).map(|endpoint| endpoint.spec.name.clone());
            match name {
                Some(name) => {
                    self.leaving.extend(self.endpoints.remove(&name));
                    self.flush_addresses_of_port(port);
                    self.record_endpoints();
                }
                None => {
                    let object = format!("interface {interface}");
                    self.failed(Reconcile::Interfaces, object, "it is gone");
                }
            }
            self.ports.remove(&self.workers, port);
        }
        self.follow_uplinks(view);
    }

    /// Uplinks that came become ports, from below: they come again, or for the first time.
    fn follow_uplinks(&mut self, view: &KernelView) {
        let uplinks = self.settings.uplinks.clone();
        for uplink in lower_first(&uplinks) {
            let interface = &uplink.interface;
            let object = format!("interface {interface}");
            let Some((_, link)) = view.link_by_name(interface) else {
                let is_told = !self.absent.insert(interface.clone());
                // Of others it was told that they are gone, or that they are missing at the start.
                if !is_told && uplink.optional && self.ports.by_interface(interface).is_none() {
                    self.errors.clear(&object);
                    self.failed(Reconcile::Interfaces, object, ABSENT);
                }
                continue;
            };
            self.absent.remove(interface);
            if self.ports.by_interface(interface).is_some() {
                continue;
            }
            let fits = check_uplink(&self.settings, uplink, link);
            let added = fits.and_then(|()| {
                let added = add_uplink(&mut self.ports, &self.workers, &self.settings, uplink);
                added.map_err(|error| error.to_string())
            });
            match added {
                Ok(_) => {
                    tracing::info!(interface, "the uplink has come; it is a port");
                    self.errors.clear(&object);
                }
                Err(error) => self.failed(Reconcile::Interfaces, object, error),
            }
        }
    }

    /// Tries those uplinks again that are there and could not become ports.
    pub(super) async fn retry_uplinks(&mut self) {
        let view = self.follower.view();
        let is_missing = |uplink: &Uplink| {
            view.link_by_name(&uplink.interface).is_some()
                && self.ports.by_interface(&uplink.interface).is_none()
        };
        if self.settings.uplinks.iter().any(is_missing) {
            self.reconcile().await;
        }
    }

    /// Says whose packets may have become too large for packet memory: the kernel drops those.
    fn check_mtus(&mut self, view: &KernelView) {
        let wrong: BTreeMap<String, String> = self
            .ports
            .iter()
            .filter_map(|port| {
                let link = view.links.get(&port.attachment.ifindex)?;
                let detail = check_mtu(&self.settings, link.mtu).err()?;
                Some((format!("interface {}", port.interface), detail))
            })
            .collect();
        let before = std::mem::replace(&mut self.wrong_mtus, wrong.clone());
        self.failed_anew(Reconcile::Interfaces, &before, &wrong);
    }

    fn node_view(&self, view: &KernelView) -> NodeView {
        let stack = self.host.as_ref().map(|host| host.pair.host.index);
        let named = self.endpoints.iter().map(|endpoint| {
            let addresses = endpoint.spec.addresses.iter().copied().collect();
            (endpoint.spec.name.clone(), addresses)
        });
        view_of_node(&self.settings, view, stack, named.collect())
    }

    /// The node's own addresses, those that mean something beyond their link.
    pub(super) fn node_addresses(&self, view: &KernelView) -> BTreeSet<IpAddr> {
        node_addresses(view, self.host.as_ref().map(|host| host.pair.host.index))
    }

    /// The first address of each family on the first uplink that has one, and on one that may come and
    /// go only if no other has.
    pub(super) fn uplink_addresses(
        &self,
        view: &KernelView,
    ) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let (mut v4, mut v6) = (None, None);
        // A tunnel between nodes leads nowhere else.
        let (tunnels, others): (Vec<&Uplink>, Vec<&Uplink>) =
            self.settings.uplinks.iter().partition(|uplink| uplink.optional);
        for uplink in others.into_iter().chain(tunnels) {
            let Some((index, _)) = view.link_by_name(&uplink.interface) else { continue };
            for (_, own) in view.addresses.iter().filter(|(on, own)| *on == index && own.usable) {
                match own.address {
                    address if is_link_local(address) => {}
                    IpAddr::V4(address) => v4 = v4.or(Some(address)),
                    IpAddr::V6(address) => v6 = v6.or(Some(address)),
                }
            }
        }
        (v4, v6)
    }

    fn forwarding_ports(&self, view: &KernelView) -> Vec<ForwardingPort> {
        self.ports
            .iter()
            .map(|port| {
                // The link may have changed since the port was made.
                let link = view.links.get(&port.attachment.ifindex);
                let mtu = link.and_then(|link| u16::try_from(link.mtu).ok()).unwrap_or(port.mtu);
                // What the other end does not take is lost there without a word.
                let others = self.endpoints.by_port(port.port).and_then(|endpoint| endpoint.mtu);
                ForwardingPort {
                    port: port.port,
                    kind: port.kind,
                    interface: port.attachment.ifindex,
                    mac: link.and_then(|link| link.mac).unwrap_or(port.mac),
                    mtu: others.map_or(mtu, |others| others.min(mtu)),
                }
            })
            .collect()
    }

    fn table_ports(&self, ports: &[ForwardingPort], view: &KernelView) -> Vec<Option<Port>> {
        let length = ports.iter().map(|port| usize::from(port.port.0) + 1).max().unwrap_or(0);
        let mut table: Vec<Option<Port>> = vec![None; length];
        for port in ports {
            let endpoint = self.endpoints.by_port(port.port);
            let addresses = endpoint.map(|endpoint| endpoint.spec.addresses.as_slice());
            let link = view.links.get(&port.interface);
            let is_virtual = link.is_some_and(|link| link.virtual_kind.is_some());
            let checksums = match (port.kind, endpoint) {
                (PortKind::Pod, Some(endpoint)) => endpoint.checksums,
                // Its offloads are off.
                (PortKind::Host, _) if self.settings.segments == Segments::Cut => {
                    Checksums::Complete
                }
                // Behind a virtual uplink there may be another stack that leaves them unfinished.
                (PortKind::Uplink, _) if !is_virtual => Checksums::Complete,
                _ => Checksums::Unknown,
            };
            table[usize::from(port.port.0)] = Some(Port {
                name: link.map_or_else(String::new, |link| link.name.clone()).into(),
                kind: port.kind,
                mac: port.mac,
                mtu: port.mtu,
                checksums,
                addresses: addresses.unwrap_or_default().into(),
            });
        }
        table
    }

    fn endpoint_addresses(&self) -> Vec<EndpointAddress> {
        let of = |endpoint: &Endpoint| {
            let (port, mac) = (endpoint.port, endpoint.spec.mac);
            let addresses = endpoint.spec.addresses.clone();
            addresses.into_iter().map(move |address| EndpointAddress { address, port, mac })
        };
        self.endpoints.iter().flat_map(of).collect()
    }

    fn host_way(&self) -> Option<HostWay> {
        let host = self.host.as_ref()?;
        Some(HostWay {
            port: host.port,
            mac: host.pair.host.mac,
            address: IpAddr::V6(HOST_V6),
            stack_interface: host.pair.host.index,
        })
    }

    /// Asks the kernel for a neighbour that a worker needs. Gives whether tables must say so.
    pub(super) fn ask_neighbour(&mut self, request: NeighbourRequest) -> bool {
        let key = (request.port, request.address);
        let Some(port) = self.ports.get(request.port) else { return false };
        self.follower.ask((port.attachment.ifindex, request.address));
        let is_new = !self.asked.contains_key(&key);
        if is_new && self.asked.len() >= ASKED_MAX {
            return false;
        }
        self.asked.insert(key, Instant::now());
        is_new
    }

    /// Forgets neighbours that nobody answered for and no worker asks for any more. Those that are
    /// known are in the kernel's view.
    pub(super) fn forget_silent_neighbours(&mut self) {
        let now = Instant::now();
        self.asked.retain(|_, at| now.duration_since(*at) < FORGET_FAILED);
    }
}

/// Whether a port's interface went away. One that is missing from the view may be newer than that, or have
/// been left out of what the kernel told: only the kernel itself, asked for it, knows.
fn is_gone(
    view: &KernelView,
    (interface, ifindex): (&str, u32),
    index: impl FnOnce(&str) -> Option<u32>,
) -> bool {
    !view.links.contains_key(&ifindex) && index(interface) != Some(ifindex)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of links that lacked a pod's took its port away, and its flows.
    #[test]
    fn an_interface_is_gone_when_the_kernel_asked_for_it_says_so_and_not_when_a_list_lacks_it() {
        let view = KernelView::default();
        assert!(!is_gone(&view, ("veth1", 7), |_| Some(7)), "the list lacked it");
        assert!(is_gone(&view, ("veth1", 7), |_| None));
        assert!(is_gone(&view, ("veth1", 7), |_| Some(8)), "another one has its name");
        let (name, mac) = ("veth1".to_owned(), None);
        let link = crate::netlink::view::Link {
            name,
            alias: None,
            mac,
            mtu: 1500,
            up: true,
            receive_queues: 1,
            virtual_kind: None,
        };
        let view = KernelView { links: [(7, link)].into(), ..KernelView::default() };
        assert!(!is_gone(&view, ("veth1", 7), |_| panic!("it is on the list")));
    }
}
