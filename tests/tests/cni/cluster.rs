//! A node and empty namespaces for the demo's pods, whose interfaces the chains make; and the outside.

use std::path::PathBuf;
use std::time::Duration;

use control::admin::status::{Level, Status};
use control::admin::{EndpointInfo, Reply, Request};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use xskiff::cli::client::Client;
use xskiff::demo::files::Files;
use xskiff::demo::scene::{CLIENT, NODE, PODS, PodPlan};
use xskiff::lab::link::{self, End};
use xskiff::lab::{Agent, Laboratory, Namespace, Process, wait_until};
use xskiff_tests::xskiff_binary::{path, plugin};

use crate::driver::{Container, Network};

/// How long anything may take that takes milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Who makes the veth pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Primary {
    Ptp,
    Bridge,
}

pub struct Cluster {
    process: Option<Process>,
    servers: Vec<Agent>,
    pub client: Namespace,
    pub pods: Vec<Namespace>,
    pub node: Namespace,
    pub files: Files,
    pub laboratory: Laboratory,
}

impl Cluster {
    /// Builds it with a node that does not run yet.
    pub fn build(label: &str) -> Self {
        // Built before anything is timed.
        plugin();
        let laboratory = Laboratory::new(label, path()).expect("a laboratory");
        let node = laboratory.namespace("node").expect("a namespace");
        let client = laboratory.namespace("client").expect("a namespace");
        let outside = End { namespace: &client, interface: "eth0" };
        let uplink = End { namespace: &node, interface: "uplink" };
        link::pair(outside, uplink, 2, 1500).expect("a link");
        for (end, [v4, v6]) in [(outside, CLIENT), (uplink, NODE)] {
            link::address(end, &format!("{v4}/24")).expect("an address");
            link::address(end, &format!("{v6}/64")).expect("an address");
        }
        client.features("eth0", "tx off").expect("features");
        for (prefix, gateway) in [
            ("10.244.0.0/24", NODE[0]),
            ("203.0.113.0/24", NODE[0]),
            ("fd00:10:244::/64", NODE[1]),
            ("2001:db8:113::/64", NODE[1]),
        ] {
            client.ip(&format!("route add {prefix} via {gateway}")).expect("a route");
        }
        for gateway in CLIENT {
            node.ip(&format!("route add default via {gateway}")).expect("a route");
        }
        let pods = PODS.map(|plan| laboratory.namespace(plan.name).expect("a namespace"));
        let files = Files::write(laboratory.directory()).expect("files");
        Self {
            process: None,
            servers: Vec::new(),
            client,
            pods: pods.into(),
            node,
            files,
            laboratory,
        }
    }

    /// As [`Cluster::build`], and starts the node.
    pub fn start(label: &str) -> Self {
        let mut cluster = Self::build(label);
        cluster.begin();
        cluster
    }

    /// Starts the node process and waits until it answers.
    pub fn begin(&mut self) {
        let process = self.spawn("xskiff", &[]);
        let answers = || Client::connect(&self.files.socket).is_ok();
        assert!(wait_until(PATIENCE, answers).is_some(), "{}", process.log_tail());
        self.process = Some(process);
    }

    /// Starts a node process whose log is called `name`, whatever becomes of it.
    pub fn spawn(&self, name: &str, more: &[&str]) -> Process {
        let program = path().to_string_lossy();
        let [configuration, manifests] =
            [&self.files.configuration, &self.files.manifests].map(|file| file.to_string_lossy());
        let run = ["run", "--config", &*configuration, "--manifests", &*manifests];
        self.node.spawn(name, &program, &[&run, more].concat()).expect("started")
    }

    /// What the node process has said.
    pub fn log(&self) -> String {
        let process = self.process.as_ref().expect("it runs");
        std::fs::read_to_string(process.log()).expect("its log")
    }

    /// Ends the node process, by SIGKILL or in order.
    pub fn end(&mut self, kill: bool) {
        let process = self.process.take().expect("it runs");
        process.signal(if kill { Signal::SIGKILL } else { Signal::SIGTERM }).expect("told");
        process.wait(PATIENCE).expect("ended");
    }

    pub fn edit_configuration(&self, more: &str) {
        let file = &self.files.configuration;
        let text = std::fs::read_to_string(file).expect("the configuration");
        std::fs::write(file, text + more).expect("written");
    }

    pub fn ask(&self, request: Request) -> Reply {
        let answer = Client::connect(&self.files.socket).and_then(|mut client| client.ask(request));
        answer.unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn status(&self) -> Status {
        match self.ask(Request::Status) {
            Reply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    pub fn wait_well(&self) {
        let well = || self.status().verdict.level == Level::Ok;
        assert!(wait_until(PATIENCE, well).is_some(), "{:#?}", self.status().verdict);
    }

    pub fn endpoints(&self) -> Vec<EndpointInfo> {
        match self.ask(Request::EndpointList) {
            // One that is being taken away is none any more.
            Reply::Endpoints(list) => {
                list.into_iter().filter(|one| one.state != "leaving").collect()
            }
            other => panic!("{other:?}"),
        }
    }

    /// The container that an endpoint is of.
    pub fn container_of(&self, pod: &str) -> Option<String> {
        let found = self.endpoints().into_iter().find(|endpoint| endpoint.name == pod)?;
        Some(found.attachment?.container_id)
    }

    pub fn pod(&self, plan: PodPlan) -> &Namespace {
        let place = PODS.iter().position(|other| other.name == plan.name).expect("a pod");
        &self.pods[place]
    }

    /// The demo's pod as a runtime names it, with the addresses that the manifests say.
    pub fn container(&self, plan: PodPlan, id: &str) -> Container {
        let pod = format!("{}/{}", plan.kubernetes_namespace, plan.name);
        let mut container = Container::of_pod(id, self.pod(plan), &pod);
        let [v4, v6] = plan.addresses;
        let ips = json!([format!("{v4}/24"), format!("{v6}/64")]);
        container.runtime.insert("ips".into(), ips);
        container
    }

    fn leases(&self) -> PathBuf {
        self.laboratory.directory().join("leases")
    }

    /// Addresses that host-local has given and not taken back.
    pub fn leased(&self) -> usize {
        let files = std::fs::read_dir(self.leases().join("pods")).into_iter().flatten().flatten();
        let is_address = |name: &str| !name.starts_with("last_reserved") && name != "lock";
        files.filter(|file| is_address(&file.file_name().to_string_lossy())).count()
    }

    /// A chain of the reference plugins with ours at its end, `more` in our own part.
    pub fn network(&self, primary: Primary, version: &'static str, more: Value) -> Network {
        let subnet = |subnet: &str| json!([{ "subnet": subnet }]);
        let ipam = json!({
            "type": "host-local",
            "dataDir": self.leases(),
            "ranges": [subnet("10.244.0.0/24"), subnet("fd00:10:244::/64")],
        });
        let first = match primary {
            Primary::Ptp => json!({ "type": "ptp", "mtu": 1500 }),
            Primary::Bridge => json!({
                "type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
            }),
        };
        let mut first = first;
        first["ipam"] = ipam;
        if primary == Primary::Ptp {
            // The bridge makes its own of its gateway.
            first["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]);
        }
        first["capabilities"] = json!({ "ips": true });
        let tuning = json!({ "type": "tuning", "sysctl": { "net.ipv4.tcp_syn_retries": "4" } });
        let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
        let mut ours = json!({
            "type": "xskiff-cni",
            "socket": self.files.socket,
            "capabilities": { "bandwidth": true },
        });
        for (key, value) in more.as_object().expect("an object") {
            ours[key] = value.clone();
        }
        Network { version, name: "pods", plugins: vec![first, portmap, tuning, ours] }
    }

    /// Adds the demo's pods and starts servers in those that serve and outside.
    pub fn add_pods(&mut self, network: &Network) -> Vec<(Container, Value)> {
        let added: Vec<_> = PODS
            .iter()
            .map(|plan| {
                let container = self.container(*plan, &format!("sandbox-of-{}", plan.name));
                let result = network.add(&self.node, &container);
                let result = result.unwrap_or_else(|refusal| panic!("{refusal:?}"));
                (container, result)
            })
            .collect();
        let serves = |pod: &Namespace, name: &str| {
            let name = format!("--name={name}");
            let words = ["serve", "--shared", "--http=[::]:8080", "--udp=[::]:5353", &name];
            let agent = pod.agent(&words).expect("a server");
            agent.wait_ready(PATIENCE).expect("it listens");
            agent
        };
        let mut servers: Vec<Agent> = PODS
            .iter()
            .filter(|plan| plan.serves)
            .map(|plan| serves(self.pod(*plan), plan.name))
            .collect();
        servers.push(serves(&self.client, "client"));
        servers.push(serves(&self.node, "node"));
        self.servers = servers;
        added
    }

    /// The node's links, rules and routes, by which a leak is seen.
    pub fn state(&self) -> String {
        let ip = |what: &str| self.node.ip(what).expect("ip");
        let links = ip("-br link show");
        // Their flags and states settle in their own time.
        let names = links.lines().filter_map(|line| line.split_whitespace().next());
        let names: Vec<_> = names.map(|name| name.split('@').next().unwrap_or(name)).collect();
        let routes = ip("route show table all") + &ip("-6 route show table all");
        let mut routes: Vec<_> = routes
            .lines()
            .filter(|line| line.contains("10:244") || line.contains("10.244"))
            .collect();
        routes.sort_unstable();
        format!("{names:?}\n{routes:#?}\n{}{}", ip("rule show"), ip("-6 rule show"))
    }

    /// Ports of the node, and interfaces that its program is attached to.
    pub fn served(&self) -> (usize, usize) {
        let links = self.node.ip("-details link show").expect("ip");
        let programs = links.lines().filter(|line| line.contains("prog/xdp")).count();
        (self.status().ports.len(), programs)
    }

    /// Waits until nothing is being added or taken away.
    pub fn settle(&self) {
        let is_settled = || {
            let arrivals = self.status().arrivals;
            (arrivals.waiting, arrivals.under_way, arrivals.closing_sockets) == (0, 0, 0)
        };
        assert!(wait_until(PATIENCE, is_settled).is_some(), "{:?}", self.status().arrivals);
    }

    /// Files that were left for a node that was not there.
    pub fn words_left(&self) -> usize {
        let directory = self.files.socket.with_file_name("admitted");
        std::fs::read_dir(directory).map_or(0, Iterator::count)
    }
}
