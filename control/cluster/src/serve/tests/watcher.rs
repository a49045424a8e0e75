//! kube's own watcher, by both of its ways to list.

use std::collections::BTreeMap;
use std::pin::pin;

use control::model::Kind;
use futures_util::{Stream, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};

use super::*;

type Seen = BTreeMap<String, String>;

fn strategies() -> [watcher::Config; 2] {
    [watcher::Config::default().page_size(7), watcher::Config::default().streaming_lists()]
}

fn name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap()
}

fn node(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default()
}

/// What a watcher has told so far.
#[derive(Default)]
struct Told {
    pods: Seen,
    building: Seen,
    lists: usize,
    errors: Vec<watcher::Error>,
}

impl Told {
    /// Follows until `is` holds.
    async fn until(
        &mut self,
        events: &mut (impl Stream<Item = watcher::Result<Event<Pod>>> + Unpin),
        is: impl Fn(&Self) -> bool,
    ) {
        let follow = async {
            while !is(self) {
                match events.try_next().await {
                    Ok(Some(event)) => self.note(event),
                    Ok(None) => panic!("a watcher never ends"),
                    Err(error) => self.errors.push(error),
                }
            }
        };
        if tokio::time::timeout(PATIENCE, follow).await.is_err() {
            panic!("only {:?} in {} lists, {:?}", self.pods, self.lists, self.errors);
        }
    }

    fn note(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.building.clear(),
            Event::InitApply(pod) => {
                self.building.insert(name(&pod), node(&pod));
            }
            Event::InitDone => {
                self.pods = std::mem::take(&mut self.building);
                self.lists += 1;
            }
            Event::Apply(pod) => {
                self.pods.insert(name(&pod), node(&pod));
            }
            Event::Delete(pod) => {
                self.pods.remove(&name(&pod));
            }
        }
    }

    fn has(&self, name: &str, node: &str) -> bool {
        self.pods.get(name).is_some_and(|own| own == node)
    }
}

#[tokio::test]
async fn lists_and_changes_arrive_by_either_way() {
    for config in strategies() {
        let (server, store) = serving(|_| {}).await;
        fill_pods(&store, 30);
        let mut events = pin!(watcher(Api::<Pod>::all(client(&server)), config));
        let mut told = Told::default();
        told.until(&mut events, |told| told.lists == 1).await;
        assert_eq!(told.pods.len(), 30);
        store.set(Kind::Pod, pod("shop", "new", "n2")).unwrap();
        store.set(Kind::Pod, pod("shop", "p003", "n9")).unwrap();
        store.delete(Kind::Pod, "shop", "p004").unwrap();
        let done = |told: &Told| !told.pods.contains_key("p004");
        told.until(&mut events, done).await;
        assert!(told.has("new", "n2") && told.has("p003", "n9"));
        assert_eq!((told.pods.len(), told.lists, told.errors.len()), (30, 1, 0));
    }
}

#[tokio::test]
async fn a_lost_past_is_answered_with_410_and_listed_anew() {
    for config in strategies() {
        let (server, store) = serving(|_| {}).await;
        fill_pods(&store, 3);
        let mut events = pin!(watcher(Api::<Pod>::all(client(&server)), config));
        let mut told = Told::default();
        told.until(&mut events, |told| told.lists == 1).await;
        let open = || Counts::get(&server.counts().watches) == 1;
        // The watch that follows a list is opened by whoever asks for its first event.
        let waiting = tokio::time::timeout(Duration::from_millis(200), events.try_next()).await;
        assert!(waiting.is_err() && open(), "nothing has changed yet");
        store.set(Kind::Pod, pod("shop", "p001", "n5")).unwrap();
        store.forget_history();
        told.until(&mut events, |told| told.lists == 2).await;
        assert!(told.has("p001", "n5"));
        let [watcher::Error::WatchError(status)] = &told.errors[..] else {
            panic!("{:?}", told.errors)
        };
        assert_eq!((status.code, &*status.reason), (410, "Expired"));
    }
}

#[tokio::test]
async fn a_watch_that_times_out_goes_on_where_it_ended() {
    for config in strategies() {
        let (server, store) = serving(|_| {}).await;
        fill_pods(&store, 3);
        let mut events = pin!(watcher(Api::<Pod>::all(client(&server)), config.timeout(1)));
        let mut told = Told::default();
        told.until(&mut events, |told| told.lists == 1).await;
        let counts = server.counts().clone();
        let again = Counts::get(&counts.watches_begun) + 2;
        let mut changes = 0;
        while Counts::get(&counts.watches_begun) < again {
            changes += 1;
            let node = format!("n{changes}");
            store.set(Kind::Pod, pod("shop", "p000", &node)).unwrap();
            told.until(&mut events, |told| told.has("p000", &node)).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!((told.lists, told.errors.len()), (1, 0), "{:?}", told.errors);
    }
}
