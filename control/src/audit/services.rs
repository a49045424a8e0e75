//! Where services listen and where they lead: the tables beside the objects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::address::Protocol;
use dataplane::lb::{BackendSet, Frontend, FrontendKind, ServiceId};

use super::objects;
use super::{Audited, Auditor, Moment};
use crate::compile::maglev;
use crate::model::{Endpoint, EndpointSlice, Hints, Pod, Service, ServicePort, WEIGHT_DEFAULT};

type Backends = BTreeSet<(IpAddr, u16)>;

impl Auditor {
    /// A service's frontends and their backends.
    pub(super) fn check_service(&mut self, moment: &Moment<'_>, service: &Service) {
        if service.headless {
            return;
        }
        let slices = self.index.slices(moment.state, &service.name);
        for port in &service.ports {
            if is_ambiguous(service, port) {
                continue;
            }
            let frontends = listens(moment, service, port);
            for ipv4 in [true, false] {
                let mut here =
                    frontends.iter().filter(|at| at.address.is_ipv4() == ipv4).peekable();
                if here.peek().is_none() {
                    continue;
                }
                let wanted = serving(moment, &slices, port, ipv4);
                for frontend in here {
                    self.round.checked += 1;
                    let checked = self
                        .check_told(moment, frontend)
                        .and_then(|()| self.check_frontend(moment, service, &wanted, frontend));
                    if let Err(detail) = checked {
                        self.note_frontend(format!("Service {}", service.name), *frontend, &detail);
                    }
                }
                self.check_host_backends(moment, service, (port, &slices), ipv4);
            }
        }
    }

    /// L4 ports of its endpoints in the node's own network, whatever they say of themselves. More than
    /// those do no harm, and are not looked for.
    fn check_host_backends(
        &mut self,
        moment: &Moment<'_>,
        service: &Service,
        (port, slices): (&ServicePort, &[&EndpointSlice]),
        ipv4: bool,
    ) {
        for slice in slices {
            let Some(l4_port) = target(slice, port) else { continue };
            let at = (port.protocol, l4_port);
            let is_here = slice.endpoints.iter().any(|one| {
                one.address.is_ipv4() == ipv4 && moment.node.addresses.contains(&one.address)
            });
            if is_here && !moment.tables.services.host_backends.contains(&at) {
                let detail = format!(
                    "{} {l4_port}: is in the node's own network; its answers are not led here",
                    port.protocol
                );
                self.round.note(Audited::Services, format!("Service {}", service.name), detail);
            }
        }
    }

    /// An L4 port that is led here from the node's addresses: something must listen there on one of them.
    pub(super) fn check_stray_node_port(&mut self, moment: &Moment<'_>, at: (Protocol, u16)) {
        self.round.checked += 1;
        let (protocol, l4_port) = at;
        let services = &moment.tables.services;
        let is_there = |address: &IpAddr| {
            let frontend = Frontend { address: *address, protocol, l4_port };
            services.frontends.contains_key(&frontend)
        };
        let has_holder = services.node_ports.get(&at).is_none_or(|id| services.get(*id).is_some());
        if !has_holder || !moment.node.addresses.iter().any(is_there) {
            let detail = "is led here from the node's addresses, and nothing listens there";
            let object = format!("node port {l4_port}/{protocol}");
            self.round.note(Audited::Services, object, detail);
        }
    }

    /// An address that is led here as a whole: some service must have it, and no node.
    pub(super) fn check_stray_service_address(&mut self, moment: &Moment<'_>, address: IpAddr) {
        self.round.checked += 1;
        let services = self.index.services(moment.state, address);
        let listening = services.filter(|one| !one.headless && !one.ports.is_empty());
        // One that a service lists as both is an external one to it.
        let is_cluster = |service: &Service| {
            let has = |list: &[IpAddr]| list.contains(&address);
            has(&service.cluster_ips)
                && !has(&service.external_ips)
                && !has(&service.load_balancer_ips)
        };
        let of_cluster: Vec<bool> = listening.map(is_cluster).collect();
        let is_external = moment.tables.services.external.contains(&address);
        let detail = if of_cluster.is_empty() || !self.is_led_whole(moment, address) {
            "is led here as a service's, which it is not"
        } else if is_external == of_cluster.contains(&true) {
            "is taken for an external address where it is a ClusterIP, or the other way round"
        } else {
            return;
        };
        self.round.note(Audited::Services, format!("address {address}"), detail);
    }

    /// A frontend of the tables: some service must listen there.
    pub(super) fn check_stray_frontend(&mut self, moment: &Moment<'_>, frontend: Frontend) {
        self.round.checked += 1;
        let Some((id, kind)) = moment.tables.services.frontends.get(&frontend) else { return };
        if *kind == FrontendKind::HostPort {
            let holder = name_of(moment, *id);
            let name = holder.strip_prefix("Pod ").and_then(|name| name.parse().ok());
            let pod = name.and_then(|name| moment.state.pods.get(&name));
            if pod.and_then(|pod| listens_by_host_port(moment, pod, frontend)).is_none() {
                self.note_frontend(holder, frontend, "is a host port that it has not any more");
            }
            return;
        }
        let name = name_of(moment, *id);
        let is_listening = name.parse().is_ok_and(|name| {
            moment.state.services.get(&name).is_some_and(|service| {
                let mut ports = service.ports.iter();
                ports.any(|port| listens(moment, service, port).contains(&frontend))
            })
        });
        if !is_listening {
            self.note_frontend(
                format!("Service {name}"),
                frontend,
                "does not listen there any more",
            );
        }
    }

    /// A pod's host ports here: each leads to it, or to whom a service or another pod leads.
    pub(super) fn check_host_ports(&mut self, moment: &Moment<'_>, pod: &Pod) {
        for port in &pod.host_ports {
            for address in &moment.node.addresses {
                let frontend =
                    Frontend { address: *address, protocol: port.protocol, l4_port: port.l4_port };
                let Some(wanted) = listens_by_host_port(moment, pod, frontend) else { continue };
                self.round.checked += 1;
                let held = moment.tables.services.frontends.get(&frontend);
                let service = held.and_then(|(id, _)| moment.tables.services.get(*id));
                let leads_there = service.is_some_and(|service| {
                    let mut backends = service.cluster.backends.iter();
                    backends.any(|one| (one.address, one.l4_port) == wanted)
                });
                let is_others = held.is_some() && self.is_shared(moment, pod, frontend);
                let told = self.check_told(moment, &frontend);
                let detail = match told {
                    Err(detail) => detail,
                    Ok(()) if leads_there || is_others => continue,
                    Ok(()) => format!("should lead to {} port {}", wanted.0, wanted.1),
                };
                self.note_frontend(format!("Pod {}", pod.name), frontend, &detail);
            }
        }
    }

    /// Whether a service or another pod wants the frontend, too.
    fn is_shared(&self, moment: &Moment<'_>, pod: &Pod, frontend: Frontend) -> bool {
        let mut services = moment.state.services.values().filter(|service| !service.headless);
        let mut pods = moment.state.pods.values().filter(|other| other.name != pod.name);
        pods.any(|other| listens_by_host_port(moment, other, frontend).is_some())
            || services.any(|service| {
                let mut ports = service.ports.iter();
                ports.any(|port| listens(moment, service, port).contains(&frontend))
            })
    }

    /// Whether it is the services' alone, so that all that is sent to it is led here.
    fn is_led_whole(&self, moment: &Moment<'_>, address: IpAddr) -> bool {
        !moment.node.addresses.contains(&address)
            && self.index.nodes(moment.state, address).next().is_none()
    }

    /// Whether what must be led here for somebody to reach `frontend` is told to those who lead it.
    fn check_told(&self, moment: &Moment<'_>, frontend: &Frontend) -> Result<(), String> {
        let Frontend { address, protocol, l4_port } = *frontend;
        let services = &moment.tables.services;
        if moment.node.addresses.contains(&address) {
            let is_told = services.node_ports.contains_key(&(protocol, l4_port));
            return is_told.then_some(()).ok_or_else(|| "its L4 port is not led here".into());
        }
        let is_told = services.addresses.contains(&address) || !self.is_led_whole(moment, address);
        is_told.then_some(()).ok_or_else(|| "its address is not led here".into())
    }

    fn note_frontend(&mut self, object: String, frontend: Frontend, detail: &str) {
        let Frontend { address, protocol, l4_port } = frontend;
        let detail = format!("{address} {protocol} {l4_port}: {detail}");
        self.round.note(Audited::Services, object, detail);
    }

    fn check_frontend(
        &self,
        moment: &Moment<'_>,
        service: &Service,
        wanted: &[Target<'_>],
        frontend: &Frontend,
    ) -> Result<(), String> {
        let services = &moment.tables.services;
        let Some((id, _)) = services.frontends.get(frontend) else {
            return Err("should be listened on; it is not".into());
        };
        let holder = name_of(moment, *id);
        if holder != service.name.to_string() {
            // Another that listens there as well keeps it.
            let other = holder.parse().ok().and_then(|name| moment.state.services.get(&name));
            let shares = other.is_some_and(|other| {
                other.ports.iter().any(|port| listens(moment, other, port).contains(frontend))
            });
            return if shares { Ok(()) } else { Err(format!("is answered by {holder:?}")) };
        }
        let held = services.get(*id).ok_or("has no service behind it")?;
        for (word, set, local_only) in [("", &held.cluster, false), ("local ", &held.local, true)] {
            let wanted = usable(moment, wanted, local_only);
            let found: Backends =
                set.backends.iter().map(|one| (one.address, one.l4_port)).collect();
            if wanted.len() <= maglev::BACKENDS_MAX && found != wanted {
                let (more, less) = (listed(&found - &wanted), listed(&wanted - &found));
                return Err(format!("{word}backends: too many {more}; missing {less}"));
            }
            self.check_weights(moment, set)
                .map_err(|detail| format!("{word}backends: {detail}"))?;
            check_choice(set).map_err(|detail| format!("{word}backends: {detail}"))?;
        }
        Ok(())
    }

    /// Each backend must weigh what its pod does: most weigh the same, and a second look is for what
    /// seems odd.
    fn check_weights(&self, moment: &Moment<'_>, set: &BackendSet) -> Result<(), String> {
        for one in &set.backends {
            let likely = self.weights.get(&one.address).copied().unwrap_or(WEIGHT_DEFAULT);
            if one.weight == likely {
                continue;
            }
            let wanted = objects::weight_at(moment, &self.index, one.address);
            if one.weight != wanted {
                return Err(format!("{} weighs {}, not {wanted}", one.address, one.weight));
            }
        }
        Ok(())
    }
}

/// The L4 port that `slice` has for a service's port.
fn target(slice: &EndpointSlice, port: &ServicePort) -> Option<u16> {
    let mut targets = slice.ports.iter();
    let named = targets.find(|one| one.name == port.name && one.protocol == port.protocol);
    named.and_then(|target| target.l4_port)
}

/// Where `frontend` leads if the pod has it by a host port and is here.
fn listens_by_host_port(
    moment: &Moment<'_>,
    pod: &Pod,
    frontend: Frontend,
) -> Option<(IpAddr, u16)> {
    let here = moment.node.endpoints.contains_key(&pod.name);
    let is_here = pod.node.as_deref().map_or(here, |node| *node == *moment.node.name);
    if !is_here || pod.is_completed() || pod.host_network {
        return None;
    }
    let of_family = |one: &&IpAddr| one.is_ipv4() == frontend.address.is_ipv4();
    let port = pod.host_ports.iter().find(|port| {
        let is_meant = match port.address {
            None => true,
            Some(all) if all.is_unspecified() => of_family(&&all),
            Some(one) => one == frontend.address,
        };
        is_meant && (port.protocol, port.l4_port) == (frontend.protocol, frontend.l4_port)
    })?;
    let to = pod.addresses.iter().find(of_family)?;
    moment.node.addresses.contains(&frontend.address).then_some((*to, port.container_port))
}

/// Whether another port of the service has its name or number: an API server takes no such service.
fn is_ambiguous(service: &Service, port: &ServicePort) -> bool {
    let alike = |other: &&ServicePort| {
        other.protocol == port.protocol
            && (other.name == port.name
                || other.l4_port == port.l4_port
                || other.node_port.is_some() && other.node_port == port.node_port)
    };
    service.ports.iter().filter(alike).count() > 1
}

/// `namespace/name` of a service's number.
fn name_of(moment: &Moment<'_>, id: ServiceId) -> String {
    let service = moment.tables.services.get(id);
    service.map_or_else(String::new, |service| {
        service.name.rsplit_once(':').map_or("", |(name, _)| name).to_owned()
    })
}

fn listens(moment: &Moment<'_>, service: &Service, port: &ServicePort) -> BTreeSet<Frontend> {
    let at = |address, l4_port| Frontend { address, protocol: port.protocol, l4_port };
    let mut all: BTreeSet<Frontend> =
        service.addresses().map(|address| at(address, port.l4_port)).collect();
    let range = &moment.node.node_port_range;
    if let Some(l4_port) = port.node_port.filter(|l4_port| range.contains(l4_port)) {
        // In the families that the service has addresses of.
        let of_family = |address: &&IpAddr| {
            let mut own = service.cluster_ips.iter();
            service.cluster_ips.is_empty() || own.any(|own| own.is_ipv4() == address.is_ipv4())
        };
        let addresses = moment.node.node_port_addresses.iter().filter(of_family);
        all.extend(addresses.map(|address| at(*address, l4_port)));
    }
    all
}

fn listed(backends: Backends) -> String {
    let texts: Vec<String> = backends.iter().map(|(at, port)| format!("{at} {port}")).collect();
    format!("[{}]", texts.join(", "))
}

/// Every slot must lead to a backend, and each backend must have one.
fn check_choice(set: &BackendSet) -> Result<(), String> {
    let backends = set.backends.len();
    if backends < 2 {
        return Ok(());
    }
    let mut chosen = vec![false; backends];
    for slot in &set.maglev {
        *chosen.get_mut(usize::from(*slot)).ok_or("a slot leads to none of them")? = true;
    }
    match chosen.iter().position(|chosen| !chosen) {
        Some(index) => Err(format!("{} is never chosen", set.backends[index].address)),
        None => Ok(()),
    }
}

/// An endpoint with its target port.
type Target<'a> = ((IpAddr, u16), &'a Endpoint);

/// The endpoints of a port in one family, or else in the other, where the node itself does not
/// count.
fn serving<'a>(
    moment: &Moment<'a>,
    slices: &[&'a EndpointSlice],
    port: &ServicePort,
    ipv4: bool,
) -> Vec<Target<'a>> {
    let mut known: BTreeMap<(IpAddr, u16), &'a Endpoint> = BTreeMap::new();
    for slice in slices {
        let Some(l4_port) = target(slice, port) else { continue };
        for endpoint in &slice.endpoints {
            // One that is in two slices while it moves counts as it is ready in either.
            let known = known.entry((endpoint.address, l4_port)).or_insert(endpoint);
            if endpoint.ready && !known.ready {
                *known = endpoint;
            }
        }
    }
    let mut all: Vec<Target<'a>> = known.into_iter().collect();
    let mut own = all.clone();
    own.retain(|((address, _), _)| address.is_ipv4() == ipv4);
    if own.is_empty() && port.protocol != Protocol::SCTP {
        all.retain(|((address, _), _)| !moment.node.addresses.contains(address));
        return all;
    }
    own
}

/// The ready ones, or else those that still serve while they end.
fn usable(moment: &Moment<'_>, all: &[Target<'_>], local_only: bool) -> Backends {
    let is_local = |endpoint: &Endpoint| endpoint.node.as_deref() == Some(&*moment.node.name);
    let pick = |wanted: &dyn Fn(&Endpoint) -> bool| -> Backends {
        let here = all.iter().filter(|(_, one)| !local_only || is_local(one));
        here.filter(|(_, one)| wanted(one)).map(|(at, _)| *at).collect()
    };
    let hinted: Vec<&Endpoint> = all.iter().map(|(_, one)| *one).filter(|one| one.ready).collect();
    let own = moment.state.nodes.get(&moment.node.name).and_then(|node| node.zone.as_deref());
    let for_node = for_here(&hinted, |hints| &hints.nodes, Some(&moment.node.name));
    let for_zone = for_here(&hinted, |hints| &hints.zones, own);
    let meant = for_node.or(for_zone).filter(|_| !local_only);
    let is_meant = |one: &Endpoint| {
        meant.as_ref().is_none_or(|meant| meant.iter().any(|other| std::ptr::eq(*other, one)))
    };
    let ready = pick(&|one| one.ready && is_meant(one));
    if ready.is_empty() { pick(&|one| one.serving && one.terminating) } else { ready }
}

/// Those that have a hint of a kind for `here`, where all of them have any of that kind; `None` where
/// there is none, or another has none.
fn for_here<'a>(
    ready: &[&'a Endpoint],
    of: impl Fn(&Hints) -> &[Arc<str>],
    here: Option<&str>,
) -> Option<Vec<&'a Endpoint>> {
    let names = |one: &'a Endpoint| one.hints.as_deref().map_or(&[][..], &of);
    if ready.iter().any(|one| names(one).is_empty()) {
        return None;
    }
    let is_for_here = |one: &&'a Endpoint| names(one).iter().any(|name| Some(&**name) == here);
    let meant: Vec<&Endpoint> = ready.iter().copied().filter(is_for_here).collect();
    (!meant.is_empty()).then_some(meant)
}
