//! The follower behind a relay, and without it.

use std::net::SocketAddr;

use super::*;
use crate::relay::{self, Relay, Times};
use crate::serve::{Counts, Limits};

/// A relay between `server` and whoever asks at `listen`, once it is ready.
async fn relay(server: &Server, listen: SocketAddr) -> Relay {
    relay_that_holds(server, listen, Duration::from_secs(1)).await
}

async fn relay_that_holds(server: &Server, listen: SocketAddr, hold: Duration) -> Relay {
    let backoff = (Duration::from_millis(10), Duration::from_millis(100));
    let settings = relay::Settings {
        listen,
        metrics: None,
        tls: None,
        token_file: None,
        upstream: settings(&[url(server)]).access,
        times: Times { silence: Duration::from_secs(62), backoff, hold },
        limits: Limits { bookmarks: Duration::from_millis(100), ..Limits::default() },
        history: HistoryLimits::default(),
        writes: None,
    };
    // A port that was just given up may be another's for a moment.
    let relay = async {
        loop {
            if let Ok(relay) = Relay::start(settings.clone()).await {
                break relay;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let relay = tokio::time::timeout(PATIENCE, relay).await.unwrap();
    let ready = async {
        while !relay.store().is_filled() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.unwrap();
    relay
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn behind(relay: &Relay, server: &Server) -> Settings {
    let mut own = settings(&[url(server)]);
    own.access.relays = vec![at(relay).parse().unwrap()];
    own
}

fn at(relay: &Relay) -> String {
    format!("http://{}", relay.address())
}

#[tokio::test]
async fn a_relay_that_dies_and_returns_costs_nothing_that_is_in_force() {
    let store = store();
    fill(&store, 60);
    let server = serve_at("127.0.0.1:0", &store, &judge(|_| Fault::No)).await;
    let first = relay(&server, any()).await;
    let (address, relay_url, server_url) = (first.address(), at(&first), url(&server));
    let mut node = Node::start(behind(&first, &server));
    node.complete().await;
    assert_eq!((node.state.pods.len(), node.state.network_policies.len()), (60, 1));
    assert_eq!((node.state.namespaces.len(), node.state.nodes.len()), (1, 1));
    store.set(Kind::Pod, pod("by-relay")).unwrap();
    store.delete(Kind::Pod, "shop", "p7").unwrap();
    node.until("a change", |node| node.has("by-relay") && !node.has("p7")).await;
    assert_eq!(node.status().server.as_ref(), Some(&relay_url));

    // The API server goes on where the relay was, without a list.
    drop(first);
    store.set(Kind::Pod, pod("by-server")).unwrap();
    node.until("a change", |node| node.has("by-server")).await;
    let watched = |server: &Server| Counts::get(&server.counts().watches);
    node.until("watches of all", |node| {
        watched(&server) == 6 && node.status().kinds.iter().all(|own| own.in_step)
    })
    .await;
    assert_eq!(node.status().server.as_ref(), Some(&server_url));
    assert!(node.gone == 1 && node.status().kinds.iter().all(|own| own.relists == 0));
    assert!(node.status().servers[0].failures > 0);

    // The next relay does not know what was before it, and is listed.
    let second = relay(&server, address).await;
    node.until("the return", |node| node.status().server.as_ref() == Some(&relay_url)).await;
    store.set(Kind::Pod, pod("by-second")).unwrap();
    node.until("a change", |node| node.has("by-second")).await;

    // Nor does one whose history is gone while all kinds are watched there.
    node.until("watches of all", |_| watched(second.server()) == 6).await;
    let relists = |node: &Node| node.status().kinds.iter().map(|own| own.relists).collect();
    let before: Vec<u64> = relists(&node);
    second.store().forget_history();
    store.delete(Kind::Pod, "shop", "p8").unwrap();
    node.until("the end", |node| !node.has("p8")).await;
    node.until("lists of all", |node| {
        let after: Vec<u64> = relists(node);
        after.iter().zip(&before).all(|(after, before)| after > before)
    })
    .await;
    assert_eq!(node.status().server.as_ref(), Some(&relay_url));
    assert_eq!((node.gone, node.state.pods.len()), (2, 61), "only what was deleted went");
    assert_eq!((node.state.namespaces.len(), node.state.nodes.len()), (1, 1));
    assert_eq!(node.state.network_policies.len(), 1);
}

/// A relay of before told nobody how much it keeps, and knew nothing of labels, say.
#[tokio::test]
async fn what_a_relay_of_an_earlier_version_leaves_out_is_told_and_listed_where_it_is() {
    let (left, whole) = (store(), store());
    let mut labelled = pod("p0");
    labelled["metadata"]["labels"] = json!({"app": "web"});
    for (store, first) in [(&left, pod("p0")), (&whole, labelled)] {
        fill(store, 5);
        store.set(Kind::Pod, first).unwrap();
    }
    let server = serve_at("127.0.0.1:0", &whole, &judge(|_| Fault::No)).await;
    let earlier = serve_at("127.0.0.1:0", &left, &judge(|_| Fault::No)).await;
    let mut own = settings(&[url(&server)]);
    own.access.relays = vec![url(&earlier).parse().unwrap()];
    let mut node = Node::start(own);
    node.complete().await;
    let has_labels = |node: &Node| {
        let pod = &node.state.pods[&ObjectName::new("shop", "p0")];
        !pod.labels.is_empty()
    };
    assert!(!has_labels(&node));
    let of_earlier = |node: &Node| {
        let servers = node.status().servers;
        servers.iter().map(|server| server.of_earlier_version).collect::<Vec<_>>()
    };
    assert_eq!(of_earlier(&node), [true, false]);
    let lists = node.kind(Kind::Pod).lists;
    drop(earlier);
    node.until("what was left out", has_labels).await;
    assert!(node.kind(Kind::Pod).lists > lists && node.gone == 0);

    // A relay of this version is told from it, and costs no further list.
    let relay = relay(&server, any()).await;
    let mut node = Node::start(behind(&relay, &server));
    node.complete().await;
    assert!(has_labels(&node));
    assert_eq!(of_earlier(&node), [false, false]);
    let lists = node.kind(Kind::Pod).lists;
    drop(relay);
    whole.set(Kind::Pod, pod("later")).unwrap();
    node.until("a change", |node| node.has("later")).await;
    assert_eq!(node.kind(Kind::Pod).lists, lists);
}

#[tokio::test]
async fn a_kind_that_no_server_has_is_normal_behind_a_relay_and_picked_up() {
    let store = store();
    fill(&store, 5);
    let faults = judge(lacks_groups);
    let server = serve_at("127.0.0.1:0", &store, &faults).await;
    let relay = relay(&server, any()).await;
    let mut node = Node::start(behind(&relay, &server));
    node.complete().await;
    assert!(node.kind(Kind::EndpointSlice).absent);
    assert_eq!(node.status().server, Some(at(&relay)));
    let slice = json!({"metadata": {"name": "s", "namespace": "shop"}, "addressType": "IPv4",
                       "endpoints": []});
    store.set(Kind::EndpointSlice, slice).unwrap();
    set(&faults, |_| Fault::No);
    node.until("the kind", |node| node.state.endpoint_slices.len() == 1).await;
    assert_eq!(node.status().server, Some(at(&relay)));
}

/// A slice of these endpoints.
fn slice(numbers: std::ops::Range<u8>) -> Value {
    let all: Vec<Value> =
        numbers.map(|number| json!({"addresses": [format!("10.1.0.{number}")]})).collect();
    json!({"metadata": {"name": "s", "namespace": "shop"}, "addressType": "IPv4", "ports": [],
           "endpoints": all})
}

fn endpoints(node: &Node) -> usize {
    node.state.endpoint_slices.values().map(|own| own.endpoints.len()).sum()
}

/// A relay whose last list has lost most of a slice's endpoints, until a second one says so after
/// `hold`, and a node behind it.
async fn holding(store: &Arc<Store>, hold: Duration) -> (Server, Relay, Node) {
    fill(store, 5);
    store.set(Kind::EndpointSlice, slice(0..100)).unwrap();
    let faults = judge(|_| Fault::No);
    let server = serve_at("127.0.0.1:0", store, &faults).await;
    let relay = relay_that_holds(&server, any(), hold).await;
    let mut node = Node::start(behind(&relay, &server));
    node.complete().await;
    assert_eq!(endpoints(&node), 100);
    // Nobody hears of it but by a list.
    set(&faults, |asked| match asked.contains("/endpointslices") {
        true => Fault::Code(500),
        false => Fault::No,
    });
    store.forget_history();
    node.until("a failure", |_| relay.standing().of(Kind::EndpointSlice).failures > 0).await;
    store.set(Kind::EndpointSlice, slice(0..20)).unwrap();
    store.forget_history();
    set(&faults, |_| Fault::No);
    node.until("a hold", |_| relay.standing().of(Kind::EndpointSlice).held == 1).await;
    (server, relay, node)
}

#[tokio::test]
async fn endpoints_that_a_list_lost_are_held_for_nodes_behind_a_relay() {
    let store = store();
    let (_server, relay, mut node) = holding(&store, Duration::from_secs(1)).await;
    node.take();
    assert_eq!(endpoints(&node), 100);
    node.until("the second list", |node| endpoints(node) == 20).await;
    assert_eq!(relay.standing().of(Kind::EndpointSlice).held, 0);
}

#[tokio::test]
async fn a_relay_that_dies_while_it_holds_leaves_nothing_behind_that_is_gone() {
    let store = store();
    let (server, relay, mut node) = holding(&store, Duration::from_secs(600)).await;
    // A node that begins now learns what is held, too.
    let mut late = Node::start(behind(&relay, &server));
    late.complete().await;
    assert_eq!(endpoints(&late), 100);
    drop(relay);
    node.until("the truth", |node| endpoints(node) == 20).await;
    late.until("the truth", |late| endpoints(late) == 20).await;
    assert_eq!(node.gone + late.gone, 0);
}
