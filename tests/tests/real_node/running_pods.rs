//! A first installation on a node that is in use: its pods ran before anything of ours was there, so no
//! CNI ADD ever told of them. The API server knows their names and addresses, the kernel whose veth pairs
//! lead there; from then on they are pods like any other.

use std::fs;

use control::admin::status::Status;
use control::admin::{EndpointInfo, Reply, Request};
use control::model::Kind;
use nix::sys::signal::Signal;
use serde_json::json;
use xskiff::cli::client::Client;
use xskiff::demo::expectation::{Outcome, Seen};
use xskiff::demo::scene::{BALANCER, BUYER, CLIENT, HTTP, PODS, STRANGER, WEB_1};
use xskiff::demo::traffic::{forbidden, http};
use xskiff::lab::{ForwardCounters, Process, wait_until};
use xskiff_tests::cluster_server::Setup;
use xskiff_tests::xskiff_binary::{path, root_or_skip};

use crate::followed::{ApiServer, demo_objects};
use crate::world::{PATIENCE, Shape, Stage};

/// A node in use: the kernel leads to its pods.
struct InUse {
    process: Option<Process>,
    server: ApiServer,
    stage: Stage,
}

impl InUse {
    fn build(label: &'static str) -> Self {
        let stage = Stage::build(Shape { label, mtu: 1500, xdp_mode: "native" }, |text| text);
        let state = stage.scene.laboratory.directory().join("state").display().to_string();
        let more = format!(
            "\nkubernetes: {{state_directory: {state}, snapshot_seconds: 1}}\n\
             cni: {{adopt_running_pods: true}}\n"
        );
        stage.edit_configuration(|text| text + &more);
        let node = &stage.scene.node;
        let forward = [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")];
        node.set(&forward).expect("forwarding");
        // As ptp and Calico make them.
        for plan in PODS {
            for address in plan.addresses {
                node.ip(&format!("route add {address} dev {}", plan.name)).expect("a route");
            }
        }
        let server = ApiServer::start(node, Setup::default());
        demo_objects().into_iter().for_each(|(kind, object)| server.set(kind, object));
        Self { process: None, server, stage }
    }

    /// A Pod of this node that the kernel leads to nowhere.
    fn set_absent_pod(&self) {
        let (metadata, status) = (
            json!({"name": "elsewhere", "namespace": "shop"}),
            json!({"podIPs": [{"ip": "10.244.0.99"}], "phase": "Running"}),
        );
        let spec = json!({"nodeName": "demo-node", "containers": []});
        let pod = json!({"metadata": metadata, "spec": spec, "status": status});
        self.server.set(Kind::Pod, pod);
    }

    fn begin(&mut self) {
        let configuration = self.stage.files.configuration.to_string_lossy().into_owned();
        let words = ["run", "--config", &configuration, "--api-server", &self.server.url];
        let program = path().to_string_lossy();
        let process = self.stage.scene.node.spawn("xskiff", &program, &words).expect("started");
        let answers = || Client::connect(&self.stage.files.socket).is_ok();
        assert!(wait_until(PATIENCE, answers).is_some(), "{}", process.log_tail());
        self.process = Some(process);
    }

    fn end(&mut self, signal: Signal) {
        let process = self.process.take().expect("it runs");
        process.signal(signal).expect("told");
        process.wait(PATIENCE).expect("ended");
    }

    fn ask(&self, request: Request) -> Reply {
        let client = Client::connect(&self.stage.files.socket);
        let answer = client.and_then(|mut client| client.ask(request));
        answer.unwrap_or_else(|error| panic!("{error}"))
    }

    fn status(&self) -> Status {
        match self.ask(Request::Status) {
            Reply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    fn endpoints(&self) -> Vec<EndpointInfo> {
        match self.ask(Request::EndpointList) {
            Reply::Endpoints(endpoints) => endpoints,
            other => panic!("{other:?}"),
        }
    }

    /// Why a Pod is outside.
    fn why(&self, pod: &str) -> Option<String> {
        let named = self.status().running_pods.named;
        named.into_iter().find(|one| one.pod == pod).map(|one| one.why)
    }

    fn wait(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let log = || self.process.as_ref().map(Process::log_tail).unwrap_or_default();
        let seen = wait_until(PATIENCE, || is_so(self));
        assert!(seen.is_some(), "{what}: {:#?}\n{}", self.status().running_pods, log());
    }

    fn forwarded(&self) -> ForwardCounters {
        self.stage.scene.node.forward_counters().expect("counters")
    }

    /// Services, policy and the way outside, both families, none of it by the kernel.
    fn assert_served(&self) {
        let (scene, webs) = (&self.stage.scene, ["web-1", "web-2"]);
        let (buyer, stranger) = (scene.pod(BUYER), scene.pod(STRANGER));
        let before = self.forwarded();
        let ok = |what: &str, seen: Seen| {
            assert_eq!(seen.outcome, Outcome::Ok, "{what}: {seen:?}, {:#?}", self.status().drops);
        };
        let service = http(&scene.client, BALANCER, HTTP[0], &webs, Some(CLIENT)).expect("asked");
        ok("a service from outside", service);
        let own = Some(BUYER.addresses);
        let pods = http(buyer, WEB_1.addresses, HTTP[2], &["web-1"], own).expect("asked");
        ok("pod to pod", pods);
        let policed = forbidden(stranger, WEB_1.addresses, HTTP[2]).expect("asked");
        ok("policy", policed);
        let probed = http(&scene.node, WEB_1.addresses, HTTP[2], &["web-1"], None).expect("asked");
        ok("the node itself", probed);
        assert_eq!(self.forwarded(), before, "all of it through AF_XDP");
    }
}

fn interfaces(endpoints: &[EndpointInfo]) -> Vec<(String, String)> {
    endpoints.iter().map(|one| (one.name.clone(), one.interface.clone())).collect()
}

#[test]
fn pods_that_ran_before_the_node_was_installed_are_served_and_policed_from_then_on() {
    if !root_or_skip("a first installation on a node in use") {
        return;
    }
    let mut node = InUse::build("running");
    node.set_absent_pod();
    // Before: the kernel leads everybody to everybody.
    let before = node.forwarded();
    let stranger = node.stage.scene.pod(STRANGER);
    let open = http(stranger, WEB_1.addresses, HTTP[2], &["web-1"], None).expect("asked");
    assert_eq!(open.outcome, Outcome::Ok, "{open:?}");
    let after = node.forwarded();
    assert!(after.ipv4 > before.ipv4 && after.ipv6 > before.ipv6, "{before:?}, {after:?}");

    node.begin();
    node.wait("all are adopted", |node| node.status().running_pods.adopted == PODS.len() as u64);
    let endpoints = node.endpoints();
    assert_eq!(endpoints.len(), PODS.len());
    for plan in PODS {
        let name = format!("{}/{}", plan.kubernetes_namespace, plan.name);
        let endpoint = endpoints.iter().find(|one| one.name == name).expect("it is there");
        assert_eq!(endpoint.interface, plan.name);
        assert!(endpoint.mac.is_some() && endpoint.attachment.is_none(), "{endpoint:?}");
        // Its end is set up as by an ADD.
        let offloads = node.stage.scene.pod(plan).run("ethtool", &["-k", "eth0"]).expect("ethtool");
        assert!(offloads.contains("tx-checksumming: off"), "{offloads}");
    }
    node.wait("all are ready", |node| node.endpoints().iter().all(|one| one.state == "ready"));
    node.assert_served();
    let why = node.why("shop/elsewhere").expect("it is named");
    assert!(why.contains("no veth pair"), "{why}");
    assert_eq!(node.status().running_pods.outside, 1);

    // The next process knows them, whoever is there to ask.
    let known = interfaces(&endpoints);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        node.end(signal);
        node.server.kill();
        node.begin();
        assert_eq!(interfaces(&node.endpoints()), known, "after {signal}");
        assert_eq!(node.status().running_pods.adopted, 0);
        node.assert_served();
        node.server.come_back();
    }
}

#[test]
fn a_pod_that_was_removed_on_request_and_those_of_a_node_that_is_told_not_to_are_not_adopted() {
    if !root_or_skip("pods that are left alone") {
        return;
    }
    let mut node = InUse::build("not-running");
    let file = node.stage.files.configuration.clone();
    let text = fs::read_to_string(&file).expect("the configuration");
    let (on, off) = ("adopt_running_pods: true", "adopt_running_pods: false");
    fs::write(&file, text.replace(on, off)).expect("written");
    node.begin();
    // Two looks, and their time.
    std::thread::sleep(std::time::Duration::from_secs(12));
    assert_eq!((node.endpoints().len(), node.status().running_pods.outside), (0, 0));

    fs::write(&file, &text).expect("written");
    node.wait("all are adopted", |node| node.endpoints().len() == PODS.len());
    let removed = "market/buyer";
    node.ask(Request::EndpointRemove { name: removed.into() });
    let stays_out = |node: &InUse| {
        node.wait("it is named", |node| {
            node.why(removed).is_some_and(|why| why.contains("was removed"))
        });
        assert_eq!(node.endpoints().len(), PODS.len() - 1);
    };
    stays_out(&node);
    node.end(Signal::SIGTERM);
    node.begin();
    stays_out(&node);
}
