//! The store against a plain model: every moment that the history reaches can be listed as it was.

use std::collections::BTreeMap;

use control::model::Kind;
use proptest::prelude::*;
use serde_json::json;

use super::super::store::{Gone, Moment};
use super::*;

type Listed = Vec<(String, u64)>;

fn listed(store: &Store, moment: Moment, after: Option<&str>) -> Result<Listed, Gone> {
    let mut list = Vec::new();
    let whole = store.visit(Kind::Pod, moment, after, |object| {
        list.push((object.key.to_string(), object.version));
        true
    })?;
    assert!(whole);
    Ok(list)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_moment_of_the_history_is_listed_as_it_was(
        steps in proptest::collection::vec((0..8_u8, any::<bool>()), 1..60),
        events in 1..20_usize,
    ) {
        let store = Store::numbering(HistoryLimits { events, bytes: 1 << 20 });
        let mut model = BTreeMap::new();
        let mut past = vec![(store.now(Kind::Pod), model.clone())];
        for (name, sets) in steps {
            let name = format!("p{name}");
            if sets {
                let version = store.set(Kind::Pod, pod("shop", &name, "n1")).unwrap();
                model.insert(format!("shop/{name}"), version);
            } else if store.delete(Kind::Pod, "shop", &name).is_some() {
                model.remove(&format!("shop/{name}"));
            } else {
                continue;
            }
            past.push((store.now(Kind::Pod), model.clone()));
        }
        let reach = past.len() - 1;
        for (age, (moment, model)) in past.iter().rev().enumerate() {
            let wanted: Listed = model.clone().into_iter().collect();
            let by_version = store.moment(Kind::Pod, moment.version);
            if age <= events.min(reach) {
                prop_assert_eq!(by_version, Ok(*moment));
                prop_assert_eq!(listed(&store, *moment, None), Ok(wanted.clone()));
                let behind: Listed =
                    wanted.into_iter().filter(|(key, _)| &**key > "shop/p3").collect();
                prop_assert_eq!(listed(&store, *moment, Some("shop/p3")), Ok(behind));
            } else {
                prop_assert!(by_version.is_err());
                prop_assert!(listed(&store, *moment, None).is_err());
            }
        }
    }
}

#[test]
fn the_history_is_bounded_by_bytes_too() {
    let store = Store::numbering(HistoryLimits { events: 1000, bytes: 4096 });
    fill_pods(&store, 100);
    let history = store.counts(Kind::Pod).history;
    assert!((1..40).contains(&history), "{history} changes of 100 bytes and more in 4 KiB");
    assert_eq!(store.counts(Kind::Pod).objects, 100);
}

#[test]
fn a_value_that_is_no_object_is_named_and_changes_nothing() {
    let store = Store::numbering(HistoryLimits::default());
    for value in [json!(7), json!({}), json!({ "metadata": { "name": "" } })] {
        let error = store.set(Kind::Pod, value).unwrap_err().to_string();
        assert!(error.starts_with("Pod: "), "{error}");
    }
    assert_eq!(store.counts(Kind::Pod).objects, 0);
    let other = Store::following(HistoryLimits::default());
    assert!(other.set(Kind::Pod, pod("shop", "a", "n1")).is_err());
}
