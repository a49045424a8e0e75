//! Objects that another server numbers: a client may go on at either.

use std::collections::BTreeSet;

use control::model::Kind;

use super::super::object::{EventType, mark};
use super::*;
use crate::resource::Resource;

fn encoded(name: &str, version: u64) -> Encoded {
    Encoded::from_value(Resource::of(Kind::Pod), pod("shop", name, "n1"), version).unwrap()
}

fn following(list: &[Encoded], version: u64) -> Store {
    let store = Store::following(HistoryLimits::default());
    store.replace(Kind::Pod, list, version, &BTreeSet::new());
    store
}

/// Name, type and the resourceVersion that is sent, of all changes after `version`.
fn changes(store: &Store, version: u64) -> Vec<(String, EventType, u64)> {
    let moment = store.moment(Kind::Pod, version).unwrap();
    let (events, _) = store.events(Kind::Pod, moment.turn, 1000).unwrap();
    let told = |event: &super::super::store::Event| {
        (event.object.name().to_owned(), event.kind, event.object.version)
    };
    events.iter().map(told).collect()
}

#[test]
fn a_list_announces_only_what_differs_and_in_an_order_to_go_on_from() {
    let store = following(&["a", "b", "c", "d"].map(|name| encoded(name, 10)), 20);
    store.put(Kind::Pod, &encoded("a", 30));
    let list = [encoded("a", 30), encoded("b", 45), encoded("c", 10), encoded("e", 40)];
    let replaced = store.replace(Kind::Pod, &list, 50, &BTreeSet::new());
    assert_eq!(replaced, Replaced { added: 1, modified: 1, deleted: 1, reset: false });
    // Whoever stops anywhere and goes on at the API server from the last resourceVersion it saw
    // misses nothing: 30 was known before, then all up to 40, then all up to 45.
    let wanted = [
        ("d".to_owned(), EventType::Deleted, 30),
        ("e".to_owned(), EventType::Added, 40),
        ("b".to_owned(), EventType::Modified, 45),
    ];
    assert_eq!(changes(&store, 30), wanted);
    // It may have come from the API server, and does not know of what was deleted since.
    assert_eq!(changes(&store, 40), wanted);
    assert_eq!(changes(&store, 50), []);
    assert_eq!(store.now(Kind::Pod).version, 50);
}

#[tokio::test]
async fn a_client_that_was_ahead_of_the_relay_is_told_of_what_only_lists_show() {
    let list = ["a", "b", "c"].map(|name| encoded(name, 10));
    let store = Store::following(HistoryLimits::default());
    for kind in Kind::ALL {
        store.replace(kind, &[], 20, &BTreeSet::new());
    }
    store.replace(Kind::Pod, &list, 20, &BTreeSet::new());
    let (server, store) = serving_store(store, |_| {}).await;
    let client = client(&server);
    // It has seen everything up to 30 elsewhere, and the relay everything up to 20.
    let mut early = conversations::Lines::of(&client, "resourceVersion=30").await;
    store.put(Kind::Pod, &encoded("a", 25));
    store.replace(Kind::Pod, &[encoded("a", 25), encoded("c", 35)], 40, &BTreeSet::new());
    assert_eq!(early.kinds(2).await, ["DELETED b", "MODIFIED c"]);
    let mut late = conversations::Lines::of(&client, "resourceVersion=30").await;
    assert_eq!(late.kinds(2).await, ["DELETED b", "MODIFIED c"]);
    let mut later = conversations::Lines::of(&client, "resourceVersion=40").await;
    store.put(Kind::Pod, &encoded("d", 41));
    assert_eq!(later.kinds(1).await, ["ADDED d"]);
}

#[test]
fn a_list_that_is_older_than_what_is_known_makes_everybody_begin_anew() {
    let store = following(&[encoded("a", 10)], 20);
    let before = store.now(Kind::Pod);
    let replaced = store.replace(Kind::Pod, &[encoded("a", 5)], 8, &BTreeSet::new());
    assert!(replaced.reset);
    assert!(store.events(Kind::Pod, before.turn, 10).is_err());
    assert_eq!(store.now(Kind::Pod).version, 8);
    assert!(store.moment(Kind::Pod, 7).is_err());
}

#[test]
fn what_a_spoilt_list_lost_and_the_next_one_finds_is_announced_both_times() {
    let list = [encoded("a", 10), encoded("b", 10)];
    let store = following(&list, 20);
    store.replace(Kind::Pod, &list[..1], 20, &BTreeSet::new());
    store.replace(Kind::Pod, &list, 20, &BTreeSet::new());
    let seen = changes(&store, 20);
    let wanted = [("b".to_owned(), EventType::Deleted, 20), ("b".to_owned(), EventType::Added, 10)];
    assert_eq!(seen, wanted);
}

#[test]
fn what_is_believed_after_its_list_is_told_to_who_has_seen_that_list() {
    let store = following(&["a", "b", "c"].map(|name| encoded(name, 10)), 20);
    let kept = ["shop/a", "shop/b"].map(str::to_owned).into();
    store.replace(Kind::Pod, &[encoded("c", 10)], 30, &kept);
    let seen = store.now(Kind::Pod).version;
    assert_eq!(changes(&store, seen), []);
    store.believe(Kind::Pod, &["shop/a".into()].into(), &[encoded("b", 15)]);
    let wanted =
        [("a".to_owned(), EventType::Deleted, 20), ("b".to_owned(), EventType::Modified, 15)];
    assert_eq!(changes(&store, seen), wanted);
}

#[test]
fn while_a_list_is_doubted_nobody_is_told_a_version_from_which_what_it_lost_is_never_heard_of() {
    let store = following(&["a", "b", "c"].map(|name| encoded(name, 10)), 20);
    let kept: BTreeSet<String> = ["shop/a".to_owned()].into();
    let list = [encoded("b", 10), encoded("c", 25)];
    store.replace(Kind::Pod, &list, 30, &kept);
    assert_eq!(store.now(Kind::Pod).version, 20);
    store.put(Kind::Pod, &encoded("d", 31));
    store.remove(Kind::Pod, "shop", "b", 32);
    store.advance(Kind::Pod, 33);
    assert_eq!(store.now(Kind::Pod).version, 20);
    let told = [("c", EventType::Modified), ("d", EventType::Added), ("b", EventType::Deleted)];
    let told = told.map(|(name, kind)| (name.to_owned(), kind, 20));
    assert_eq!(changes(&store, 20), told, "who has seen all up to 20 is told");
    // Who comes from the API server is told what it has not seen there.
    assert_eq!(changes(&store, 31), told[2..]);
    assert_eq!(changes(&store, 32), []);
    // A second list ends it.
    let list = [encoded("c", 25), encoded("d", 31)];
    store.replace(Kind::Pod, &list, 40, &BTreeSet::new());
    assert_eq!(store.now(Kind::Pod).version, 40);
    let versions = [("shop/c".to_owned(), 25), ("shop/d".to_owned(), 31)];
    assert_eq!(store.versions(Kind::Pod), versions);
    assert!(changes(&store, 33).iter().any(|own| own.0 == "a" && own.1 == EventType::Deleted));
    store.put(Kind::Pod, &encoded("e", 41));
    assert_eq!(changes(&store, 40), [("e".to_owned(), EventType::Added, 41)]);
}

#[test]
fn while_a_list_of_an_older_store_is_doubted_who_goes_elsewhere_lists_anew() {
    let store = following(&["a", "b"].map(|name| encoded(name, 10)), 20);
    let kept: BTreeSet<String> = ["shop/a".to_owned()].into();
    assert!(store.replace(Kind::Pod, &[encoded("b", 4)], 8, &kept).reset);
    assert_eq!(store.now(Kind::Pod).version, 1);
    let replaced = store.replace(Kind::Pod, &[encoded("b", 4)], 9, &BTreeSet::new());
    assert!(!replaced.reset && replaced.deleted == 1);
    assert_eq!(store.now(Kind::Pod).version, 9);
    assert_eq!(changes(&store, 1).first().map(|own| own.1), Some(EventType::Deleted));
}

#[test]
fn a_change_of_nothing_but_the_version_is_kept_and_not_announced() {
    let with_mark = |version| Encoded { mark: Some(mark(b"the same")), ..encoded("a", version) };
    let store = following(&[with_mark(10)], 10);
    store.put(Kind::Pod, &with_mark(11));
    let counts = store.counts(Kind::Pod);
    assert_eq!((counts.unannounced, counts.history, counts.version), (1, 0, 11));
    assert_eq!(store.versions(Kind::Pod), [("shop/a".to_owned(), 11)]);
    let other = Encoded { mark: Some(mark(b"another")), ..encoded("a", 12) };
    store.put(Kind::Pod, &other);
    assert_eq!(changes(&store, 10), [("a".to_owned(), EventType::Modified, 12)]);
}

#[tokio::test]
async fn nothing_is_served_before_every_kind_was_listed_once() {
    let (server, store) = serving_store(Store::following(HistoryLimits::default()), |_| {}).await;
    let client = client(&server);
    let filled = |kind: Kind| store.replace(kind, &[], 7, &BTreeSet::new());
    for kind in Kind::ALL {
        let (code, status) = get_json(&client, "/api/v1/pods").await;
        assert_eq!((code, &status["reason"]), (503, &json!("ServiceUnavailable")));
        assert_eq!(get(&client, "/readyz").await.0, 503);
        filled(kind);
    }
    let (code, list) = get_json(&client, "/api/v1/pods").await;
    assert_eq!((code, &list["metadata"]["resourceVersion"]), (200, &json!("7")));
    assert_eq!(get(&client, "/readyz").await.0, 200);
}
