//! Direct server return over two nodes of xskiff, in network namespaces: the matrix of backends (pod, in the
//! host network), ways back (SNAT and the three forms), frontends (NodePort, LoadBalancer, externalIP) and
//! families. Each cell is real TCP and UDP; the backend says whom it saw, and scapy, which shares no code
//! with xskiff, decodes what was on the wire between the nodes.
//!
//! No cell is impossible: each of the 48 is asked. What takes another way than the configured one (clients
//! in the cluster, SCTP, services between families) is told by the simulated nodes (`tests/direct`).
#![forbid(unsafe_code)]

mod nodes;
mod stateless;

use std::net::SocketAddr;

use serde::Deserialize;
use xskiff::demo::traffic::{fetch, next_fetched};
use xskiff::lab::agent::report::{Echoed, Report};
use xskiff_tests::xskiff_binary::root_or_skip;

use nodes::{CLIENT, Nodes, PATIENCE};

/// Who serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Pod,
    Host,
}

/// By what it is addressed.
#[derive(Debug, Clone, Copy)]
enum Kind {
    NodePort,
    LoadBalancer,
    ExternalIp,
}

/// One cell in one of the four ways.
#[derive(Debug, Clone, Copy)]
struct Cell {
    backend: Backend,
    kind: Kind,
    family: usize,
}

fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for backend in [Backend::Pod, Backend::Host] {
        for kind in [Kind::NodePort, Kind::LoadBalancer, Kind::ExternalIp] {
            cells.extend((0..2).map(|family| Cell { backend, kind, family }));
        }
    }
    cells
}

impl Cell {
    /// Where TCP and UDP are asked.
    fn frontends(self) -> [SocketAddr; 2] {
        let (place, of_host) = (self.family, self.backend == Backend::Host);
        let (address, l4_ports) = match self.kind {
            Kind::NodePort if of_host => (nodes::A[place], [30_090, 30_091]),
            Kind::NodePort => (nodes::A[place], [30_080, 30_081]),
            Kind::LoadBalancer => (nodes::BALANCER[usize::from(of_host)][place], [80, 53]),
            Kind::ExternalIp => (nodes::EXTERNAL[usize::from(of_host)][place], [80, 53]),
        };
        l4_ports.map(|l4_port| SocketAddr::new(address.parse().expect("an address"), l4_port))
    }

    fn backends(self) -> [SocketAddr; 2] {
        let (address, l4_ports) = match self.backend {
            Backend::Pod => (nodes::POD[self.family], [8080, 5353]),
            Backend::Host => (nodes::B[self.family], [9080, 9053]),
        };
        l4_ports.map(|l4_port| SocketAddr::new(address.parse().expect("an address"), l4_port))
    }

    fn server(self) -> &'static str {
        if self.backend == Backend::Pod { "pod" } else { "host" }
    }
}

/// A packet between the nodes, as scapy tells of it.
#[derive(Debug, Clone, Deserialize)]
struct Told {
    mac: String,
    form: String,
    outer: [String; 2],
    says: Option<(String, u16)>,
    ends: (String, u16, String, u16),
    tcp: bool,
    right: bool,
    length: usize,
}

impl Told {
    fn source(&self) -> SocketAddr {
        SocketAddr::new(self.ends.0.parse().expect("an address"), self.ends.1)
    }

    fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.ends.2.parse().expect("an address"), self.ends.3)
    }

    fn says(&self) -> Option<SocketAddr> {
        let (address, l4_port) = self.says.as_ref()?;
        Some(SocketAddr::new(address.parse().expect("an address"), *l4_port))
    }
}

/// Asks by one cell; what is wrong with it.
fn ask(nodes: &Nodes, cell: Cell, form: &str) -> Result<(), String> {
    let [http, echo] = cell.frontends();
    let seen_as = if form == "snat" { nodes::A } else { CLIENT }[cell.family];
    for answer in
        fetch(&nodes.client, &format!("--to={http}"), 5, &[]).map_err(|e| e.to_string())?
    {
        let client = answer.client.map(|own| own.to_string());
        let is_right = answer.ok && answer.server.as_deref() == Some(cell.server());
        if !is_right || client.as_deref() != Some(seen_as) {
            return Err(format!("{answer:?}"));
        }
    }
    let to = format!("--to={http}");
    let words = ["fetch", &to, "--upload-bytes=300000", "--timeout-ms=10000"];
    let agent = nodes.client.agent(&words).map_err(|error| error.to_string())?;
    let fetched = next_fetched(&agent, PATIENCE).map_err(|error| error.to_string())?;
    if !fetched.ok {
        return Err(format!("upload: {fetched:?}"));
    }
    let words = ["udp", &format!("--to={echo}"), "--count=5", "--new-socket-each"];
    let agent = nodes.client.agent(&words).map_err(|error| error.to_string())?;
    let echoed = agent.expect("echoes", PATIENCE, |report| match report {
        Report::Echoed(echoed) => Some(echoed),
        _ => None,
    });
    let Echoed { received, wrong, .. } = echoed.map_err(|error| error.to_string())?;
    if (received, wrong) != (5, 0) {
        return Err(format!("{received} of 5 echoes, {wrong} wrong"));
    }
    Ok(())
}

/// What the capture says against a cell.
fn look(told: &[Told], nodes: &Nodes, cell: Cell, form: &str) -> Result<(), String> {
    let (a, client) = (nodes::A[cell.family], CLIENT[cell.family]);
    for (is_tcp, (frontend, backend)) in
        [true, false].into_iter().zip(cell.frontends().into_iter().zip(cell.backends()))
    {
        let of_protocol = || told.iter().filter(move |one| one.tcp == is_tcp);
        let there: Vec<&Told> = match form {
            "snat" => of_protocol()
                .filter(|one| one.destination() == backend && one.source().ip().to_string() == a)
                .collect(),
            "option" => of_protocol()
                .filter(|one| one.destination() == backend && one.says() == Some(frontend))
                .collect(),
            _ => of_protocol().filter(|one| one.destination() == frontend).collect(),
        };
        let wanted = if form == "snat" { "plain" } else { form };
        let is_right = |one: &&Told| {
            let outer = match form {
                "ipip" => [a.to_owned(), backend.ip().to_string()],
                "geneve" => [a.to_owned(), nodes::B[cell.family].to_owned()],
                _ => one.outer.clone(),
            };
            let source_is_right = form == "snat" || one.source().ip().to_string() == client;
            let says_right = form != "geneve" || one.says() == Some(backend);
            one.form == wanted
                && one.right
                && one.length <= 1500
                && one.mac == nodes.mac_of_a
                && one.outer == outer
                && source_is_right
                && says_right
        };
        if there.len() < 5 {
            return Err(format!("{} packets to the backend on the wire", there.len()));
        }
        if let Some(wrong) = there.iter().find(|one| !is_right(one)) {
            return Err(format!("on the wire: {wrong:?}"));
        }
        if form == "snat" {
            continue;
        }
        let back: Vec<&Told> = of_protocol().filter(|one| one.source() == frontend).collect();
        let direct =
            |one: &&Told| one.mac == nodes.mac_of_b && one.destination().ip().to_string() == client;
        if back.len() < 5 || !back.iter().all(|one| direct(one) && one.right) {
            return Err(format!("{} answers, first {:?}", back.len(), back.first()));
        }
    }
    Ok(())
}

fn matrix(form: &'static str) {
    if !root_or_skip("direct server return") {
        return;
    }
    let nodes = Nodes::start(form);
    let capture = nodes.capture();
    let mut wrong = Vec::new();
    for cell in cells() {
        if let Err(why) = ask(&nodes, cell, form) {
            wrong.push(format!("{cell:?} by {form}: {why}"));
        }
    }
    let told: Vec<Told> = capture.decode();
    for cell in cells() {
        if let Err(why) = look(&told, &nodes, cell, form) {
            wrong.push(format!("{cell:?} by {form}: {why}"));
        }
    }
    println!(
        "{form}: {} cells, {} packets decoded, {} wrong",
        cells().len(),
        told.len(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), nodes.say());
}

#[test]
fn clients_are_seen_as_the_node_by_snat() {
    matrix("snat");
}

#[test]
fn clients_are_seen_as_themselves_by_an_option() {
    matrix("option");
}

#[test]
fn clients_are_seen_as_themselves_by_ip_in_ip() {
    matrix("ipip");
}

#[test]
fn clients_are_seen_as_themselves_by_geneve() {
    matrix("geneve");
}
