use std::ops::Range;

use serde_json::{Value, json};

use super::*;
use crate::resource::Resource;
use crate::serve::HistoryLimits;

/// What is served behind what is held, and the next resourceVersion.
struct World {
    holds: Holds,
    store: Arc<Store>,
    standing: Arc<Standing>,
    version: u64,
}

fn world() -> World {
    let store = Arc::new(Store::following(HistoryLimits::default()));
    let standing = Arc::new(Standing::default());
    let holds = Holds::new(Arc::clone(&store), Arc::clone(&standing));
    World { holds, store, standing, version: 1 }
}

impl World {
    fn encoded(&mut self, kind: Kind, object: &Value) -> Encoded {
        self.version += 1;
        Encoded::from_value(Resource::of(kind), object.clone(), self.version).unwrap()
    }

    /// A complete list, of new versions and a while after another; gives how many of its losses are
    /// held.
    fn list(&mut self, kind: Kind, objects: &[Value]) -> usize {
        let list = objects.iter().map(|object| self.encoded(kind, object)).collect();
        let held = self.holds.list(kind, list, self.version, true).held;
        assert_eq!(self.standing.of(kind).held, held);
        held
    }

    fn put(&mut self, kind: Kind, object: &Value) -> Vec<Key> {
        let object = self.encoded(kind, object);
        self.holds.put(kind, &object)
    }

    fn len(&self, kind: Kind) -> usize {
        self.store.counts(kind).objects
    }

    /// Endpoints of all slices, as they are served.
    fn endpoints(&self) -> usize {
        let slices = self.store.all(Kind::EndpointSlice);
        slices.iter().map(|slice| lost_of_slice(slice, None)).sum()
    }

    fn has(&self, name: &str) -> bool {
        self.store.get(Kind::Pod, "shop", name).is_some()
    }

    fn held(&self, kind: Kind) -> usize {
        self.standing.of(kind).held
    }
}

fn address(number: usize) -> String {
    format!("10.1.{}.{}", number / 200, number % 200 + 1)
}

fn pod_at(name: &str, address: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"containers": []},
           "status": {"phase": "Running", "podIPs": [{"ip": address}]}})
}

fn pods(range: Range<usize>) -> Vec<Value> {
    range.map(|number| pod_at(&format!("p{number}"), &address(number))).collect()
}

fn slice(name: &str, numbers: Range<usize>) -> Value {
    let endpoints: Vec<Value> = numbers.map(|n| json!({"addresses": [address(n)]})).collect();
    json!({"metadata": {"name": name, "namespace": "shop"}, "addressType": "IPv4",
           "ports": [], "endpoints": endpoints})
}

#[test]
fn a_large_loss_is_believed_when_a_second_list_agrees() {
    let mut world = world();
    world.list(Kind::Pod, &pods(0..100));
    assert_eq!(world.list(Kind::Pod, &pods(34..100)), 34);
    assert_eq!(world.len(Kind::Pod), 100);
    assert_eq!(world.list(Kind::Pod, &pods(34..100)), 0);
    assert_eq!(world.len(Kind::Pod), 66);
}

#[test]
fn a_loss_that_the_second_list_does_not_have_was_none() {
    let mut world = world();
    world.list(Kind::Pod, &pods(0..100));
    assert_eq!(world.list(Kind::Pod, &pods(50..100)), 50);
    assert_eq!(world.list(Kind::Pod, &pods(0..100)), 0);
    // Another half is another loss, and needs a second list of its own.
    assert_eq!(world.list(Kind::Pod, &pods(0..50)), 50);
    assert_eq!(world.list(Kind::Pod, &pods(50..100)), 50);
    assert_eq!(world.len(Kind::Pod), 100);
}

#[test]
fn a_small_loss_is_believed_at_once() {
    let mut world = world();
    world.list(Kind::Pod, &pods(0..100));
    assert_eq!(world.list(Kind::Pod, &pods(30..100)), 0);
    assert_eq!(world.len(Kind::Pod), 70);
    // A third of three is as much as a third of a thousand.
    let mut world = self::world();
    world.list(Kind::Pod, &pods(0..3));
    assert_eq!(world.list(Kind::Pod, &pods(0..2)), 1);
}

#[test]
fn objects_of_any_kind_are_held() {
    let mut world = world();
    let namespaces: Vec<Value> =
        (0..30).map(|number| json!({"metadata": {"name": format!("n{number}")}})).collect();
    world.list(Kind::Namespace, &namespaces);
    assert_eq!(world.list(Kind::Namespace, &namespaces[20..]), 20);
    assert_eq!(world.len(Kind::Namespace), 30);
}

#[test]
fn what_is_said_of_an_object_ends_its_hold() {
    let mut world = world();
    world.list(Kind::Pod, &pods(0..100));
    assert_eq!(world.list(Kind::Pod, &pods(0..10)), 90);
    let gone = world.encoded(Kind::Pod, &pod_at("p50", &address(50)));
    world.holds.gone(Kind::Pod, &gone);
    world.put(Kind::Pod, &pod_at("p51", &address(51)));
    assert_eq!((world.held(Kind::Pod), world.has("p50"), world.has("p51")), (88, false, true));
}

#[test]
fn a_pod_whose_address_another_claims_is_never_held() {
    let mut world = world();
    world.list(Kind::Pod, &pods(0..100));
    // Within the list that loses it, and afterwards.
    let listed = [pods(0..10), vec![pod_at("heir", &address(50))]].concat();
    assert_eq!(world.list(Kind::Pod, &listed), 89);
    assert!(!world.has("p50") && world.has("heir") && world.has("p60"));
    let gone = world.put(Kind::Pod, &pod_at("late-heir", &address(60)));
    assert_eq!(gone, [Key::from("shop/p60")]);
    assert!(!world.has("p60") && world.has("late-heir") && world.has("p61"));
    // Who ends, or is the host's, claims nothing.
    let mut done = pod_at("done", &address(61));
    done["status"]["phase"] = json!("Succeeded");
    world.put(Kind::Pod, &done);
    let mut host = pod_at("host", &address(61));
    host["spec"]["hostNetwork"] = json!(true);
    world.put(Kind::Pod, &host);
    assert!(world.has("p61"));
    assert_eq!(world.held(Kind::Pod), 88);
}

#[test]
fn a_slice_whose_address_a_new_pod_claims_is_not_held() {
    let mut world = world();
    let slices: Vec<Value> = (0..40).map(|at| slice(&format!("s{at}"), at..at + 1)).collect();
    world.list(Kind::Pod, &pods(100..110));
    world.list(Kind::EndpointSlice, &slices);
    // Claimed before, by a list of pods; and afterwards, by a watch and by a list.
    world.list(Kind::Pod, &[pods(100..110), vec![pod_at("heir", &address(30))]].concat());
    assert_eq!(world.list(Kind::EndpointSlice, &slices[..10]), 29);
    world.put(Kind::Pod, &pod_at("late-heir", &address(31)));
    assert_eq!(world.held(Kind::EndpointSlice), 28);
    world.list(Kind::Pod, &[pods(100..110), vec![pod_at("later", &address(32))]].concat());
    assert_eq!((world.held(Kind::EndpointSlice), world.len(Kind::EndpointSlice)), (27, 37));
}

#[test]
fn endpoints_that_a_list_lost_are_held_in_slices_that_went_and_that_shrank() {
    let mut world = world();
    let before = [slice("a", 0..50), slice("b", 50..100)];
    world.list(Kind::EndpointSlice, &before);
    assert_eq!(world.endpoints(), 100);
    assert_eq!(world.list(Kind::EndpointSlice, &before[..1]), 1, "half of them went");
    assert_eq!(world.endpoints(), 100);
    assert_eq!(world.list(Kind::EndpointSlice, &before), 0);
    let shrunk = [slice("a", 0..10), before[1].clone()];
    assert_eq!(world.list(Kind::EndpointSlice, &shrunk), 1, "one has less");
    assert_eq!(world.endpoints(), 100);
    assert_eq!(world.list(Kind::EndpointSlice, &shrunk), 0, "and so it is");
    assert_eq!(world.endpoints(), 60);
    // Less than 30 % is believed at once, and so is a change of a single slice.
    assert_eq!(world.list(Kind::EndpointSlice, &[slice("a", 0..10), slice("b", 60..100)]), 0);
    world.put(Kind::EndpointSlice, &slice("b", 0..0));
    assert_eq!(world.endpoints(), 10);
}

#[test]
fn slices_without_endpoints_are_no_loss() {
    let mut world = world();
    let empty: Vec<Value> = (0..30).map(|at| slice(&format!("s{at}"), 0..0)).collect();
    world.list(Kind::EndpointSlice, &[empty, vec![slice("a", 0..50)]].concat());
    assert_eq!(world.list(Kind::EndpointSlice, &[slice("a", 0..50)]), 0);
    assert_eq!(world.len(Kind::EndpointSlice), 1);
}

#[test]
fn a_shrunk_slice_whose_address_a_new_pod_claims_is_as_its_list_had_it() {
    let mut world = world();
    world.list(Kind::EndpointSlice, &[slice("a", 0..100)]);
    world.list(Kind::Pod, &pods(0..1));
    assert_eq!(world.list(Kind::EndpointSlice, &[slice("a", 0..50)]), 1);
    world.put(Kind::Pod, &pod_at("kept", &address(8)));
    assert_eq!(world.endpoints(), 100, "it still has that one");
    world.put(Kind::Pod, &pod_at("heir", &address(60)));
    assert_eq!((world.endpoints(), world.held(Kind::EndpointSlice)), (50, 0));
}

#[test]
fn what_is_said_of_a_shrunk_slice_ends_its_hold() {
    let mut world = world();
    world.list(Kind::EndpointSlice, &[slice("a", 0..100)]);
    assert_eq!(world.list(Kind::EndpointSlice, &[slice("a", 0..50)]), 1);
    world.put(Kind::EndpointSlice, &slice("a", 0..40));
    assert_eq!((world.endpoints(), world.held(Kind::EndpointSlice)), (40, 0));
}
