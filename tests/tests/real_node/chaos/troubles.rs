//! What goes wrong with the servers that the node follows, and how it ends.

use std::time::Duration;

use control::model::Kind;
use nix::sys::signal::Signal;
use serde_json::Value;
use xskiff::demo::scene::Scene;
use xskiff::lab::Process;
use xskiff_tests::cluster_server::{Fault, Live, On, Synthetic};

use crate::followed::{ApiServer, demo_objects};
use crate::relayed::start_relay;
use crate::world::PATIENCE;

use super::changes::Changes;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// The server dies, and comes back without its past.
    Death,
    /// It comes back having forgotten a third of all pods and endpoints, which it then hears of again.
    Amnesia,
    /// Watches stay open and say nothing.
    Silence,
    /// Watches end in mid-object.
    Cuts,
    /// Watches end with bytes that are no JSON.
    Garbage,
    /// The past is lost: 410.
    Expiry,
    /// One answer of two is refused, stalls, is slow, is cut or is garbage.
    Everything,
    /// The relay dies, where there is one.
    Relay,
}

impl Trouble {
    /// What befalls a node.
    pub fn all(has_relay: bool) -> Vec<Self> {
        let of_server = [
            Self::Death,
            Self::Amnesia,
            Self::Silence,
            Self::Cuts,
            Self::Garbage,
            Self::Expiry,
            Self::Everything,
        ];
        of_server.into_iter().chain(has_relay.then_some(Self::Relay)).collect()
    }
}

const FAULTS: [Fault; 8] = [
    Fault::Stall,
    Fault::HalfOpen { after: 700 },
    Fault::TOO_MANY,
    Fault::GONE,
    Fault::INTERNAL,
    Fault::Garbage { after: 900 },
    Fault::Cut { after: 1100 },
    Fault::Slow { bytes: 400, pause: Duration::from_millis(20) },
];

/// The API server and what is wrong with it now.
pub struct Chaos {
    pub server: ApiServer,
    /// Between it and the node.
    relay: Option<Process>,
    /// What it has forgotten.
    forgotten: Vec<(Kind, Value)>,
    is_down: bool,
}

impl Chaos {
    pub fn new(server: ApiServer, relay: Option<Process>) -> Self {
        Self { server, relay, forgotten: Vec::new(), is_down: false }
    }

    pub fn begin(&mut self, trouble: Trouble, cluster: &Synthetic) {
        let faults = &self.server.faults;
        match trouble {
            Trouble::Death => {
                self.server.kill();
                self.is_down = true;
            }
            Trouble::Amnesia => {
                self.server.kill();
                self.forget(cluster);
                self.server.come_back();
            }
            Trouble::Silence => faults.live(Live::Silent),
            Trouble::Cuts => faults.live(Live::Cut),
            Trouble::Garbage => faults.live(Live::Garbage),
            Trouble::Expiry => {
                faults.always(On::ALL, Fault::GONE);
                self.server.store.forget_history();
            }
            Trouble::Everything => {
                faults.by_chance(2, FAULTS.to_vec());
                // Whatever is open ends, so that it is asked for.
                faults.live(Live::Cut);
                std::thread::sleep(Duration::from_millis(50));
                faults.live(Live::Flowing);
            }
            Trouble::Relay => {
                if let Some(relay) = &self.relay {
                    relay.signal(Signal::SIGKILL).expect("killed");
                    relay.wait(PATIENCE).expect("gone");
                }
            }
        }
    }

    /// Two of five pods and endpoints, the demo's own among them.
    fn forget(&mut self, cluster: &Synthetic) {
        let demo = demo_objects().into_iter();
        let demo = demo.filter(|(kind, object)| match kind {
            Kind::Pod => object["metadata"]["name"] != "stranger",
            Kind::EndpointSlice => object["metadata"]["name"] != "web-ipv4",
            _ => false,
        });
        let rest = cluster.objects().filter(|(kind, object)| match kind {
            Kind::Pod => object["metadata"]["uid"].as_str().is_some_and(|uid| uid < "6"),
            Kind::EndpointSlice => true,
            _ => false,
        });
        for (kind, object) in demo.chain(rest) {
            let metadata = &object["metadata"];
            let [namespace, name] = ["namespace", "name"].map(|key| metadata[key].as_str());
            let [namespace, name] = [namespace, name].map(Option::unwrap_or_default);
            // Pods of other nodes may have gone before.
            if self.server.store.delete(kind, namespace, name).is_some() {
                self.forgotten.push((kind, object));
            }
        }
    }

    /// All is well again. What was forgotten comes back as it was in the beginning.
    pub fn end(&mut self, trouble: Trouble, changes: &mut Changes, scene: &Scene) {
        self.server.faults.clear();
        if std::mem::take(&mut self.is_down) {
            self.server.come_back();
        }
        for (kind, object) in self.forgotten.drain(..) {
            changes.history.set(kind, &object);
            self.server.set(kind, object);
        }
        if trouble == Trouble::Relay {
            self.relay = Some(start_relay(scene, &self.server));
        }
    }
}
