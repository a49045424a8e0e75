//! An API server inside a node's network namespace, and a world whose node follows it.

use std::fs::File;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use cluster::serve::Store;
use control::model::Kind;
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use xskiff::demo::files::MANIFESTS;
use xskiff::demo::scene::Scene;
use xskiff::lab::Namespace;
use xskiff_tests::cluster_server::{ClusterServer, Faults, SERVICES, Setup};

use crate::world::{PATIENCE, Shape, Source, Stage, World};

enum Order {
    Kill,
    ComeBack,
    ComeBackAt(IpAddr),
}

/// An API server; ends when dropped.
pub struct ApiServer {
    /// What it serves.
    pub store: Arc<Store>,
    /// What goes wrong with it.
    pub faults: Arc<Faults>,
    /// Where it is.
    pub url: String,
    orders: Option<UnboundedSender<(Order, mpsc::Sender<()>)>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl ApiServer {
    /// Starts one that has no objects yet.
    pub fn start(namespace: &Namespace, setup: Setup) -> Self {
        let network = format!("/run/netns/{}", namespace.system_name());
        let (orders, mut ordered) = unbounded_channel::<(Order, mpsc::Sender<()>)>();
        let (up, is_up) = mpsc::channel();
        let work = async move {
            let mut server = ClusterServer::start(setup).await.expect("it listens");
            let shared = (Arc::clone(server.store()), Arc::clone(server.faults()), server.url());
            up.send(shared).expect("somebody waits");
            while let Some((order, done)) = ordered.recv().await {
                match order {
                    Order::Kill => server.kill(),
                    Order::ComeBack => server.come_back().await.expect("it listens again"),
                    Order::ComeBackAt(address) => {
                        server.come_back_at(address).await.expect("it listens there");
                    }
                }
                done.send(()).expect("somebody waits");
            }
        };
        let thread = std::thread::spawn(move || {
            setns(File::open(network).expect("the namespace"), CloneFlags::CLONE_NEWNET)
                .expect("entered");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(work);
        });
        let (store, faults, url) = is_up.recv_timeout(PATIENCE).expect("it is up");
        Self { store, faults, url, orders: Some(orders), thread: Some(thread) }
    }

    fn order(&self, order: Order) {
        let (done, is_done) = mpsc::channel();
        let orders = self.orders.as_ref().expect("it was not dropped");
        orders.send((order, done)).expect("its thread lives");
        is_done.recv_timeout(PATIENCE).expect("done");
    }

    /// Gone at once, as by SIGKILL.
    pub fn kill(&self) {
        self.order(Order::Kill);
    }

    /// Back at the same place, without its past.
    pub fn come_back(&self) {
        self.order(Order::ComeBack);
    }

    /// Back at another address, with the same port.
    pub fn come_back_at(&self, address: IpAddr) {
        self.order(Order::ComeBackAt(address));
    }

    /// Serves this object.
    pub fn set(&self, kind: Kind, object: Value) {
        self.store.set(kind, object).expect("an object");
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The objects of the demo's manifests.
pub fn demo_objects() -> Vec<(Kind, Value)> {
    let read = |(name, text): (&str, &str)| -> Vec<Value> {
        serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let objects = MANIFESTS.into_iter().flat_map(read);
    let kind_of = |object: &Value| {
        let kind = Kind::ALL.into_iter().find(|kind| object["kind"] == kind.name());
        kind.unwrap_or_else(|| panic!("{object}"))
    };
    objects.map(|object| (kind_of(&object), object)).collect()
}

/// A world whose node follows `server`, which `fill` gives its objects beside the demo's. `more` is
/// what the node's configuration says of following.
pub fn follow(
    shape: Shape,
    of_following: (Setup, &str),
    patience: Duration,
    fill: impl FnOnce(&ApiServer),
) -> (World, ApiServer) {
    follow_beside(shape, of_following, patience, |_, server| fill(server))
}

/// The same; `fill` may start something else in the scene.
pub fn follow_beside(
    shape: Shape,
    (setup, more): (Setup, &str),
    patience: Duration,
    fill: impl FnOnce(&Scene, &ApiServer),
) -> (World, ApiServer) {
    let mut stage = Stage::build(shape, |text| {
        text.replace("service_cidrs: [", &format!("service_cidrs: [{SERVICES}, "))
    });
    let state = stage.scene.laboratory.directory().join("state").display().to_string();
    let section = format!("\nkubernetes: {{state_directory: {state}, {more}}}\n");
    stage.edit_configuration(|text| text + &section);
    let server = ApiServer::start(&stage.scene.node, setup);
    demo_objects().into_iter().for_each(|(kind, object)| server.set(kind, object));
    fill(&stage.scene, &server);
    let words = vec!["--api-server".to_owned(), server.url.clone()];
    stage.source = Source { words, patience };
    (stage.begin(), server)
}
