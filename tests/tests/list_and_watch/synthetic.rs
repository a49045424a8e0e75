//! Clusters that are made up look like clusters.

use std::collections::{BTreeMap, BTreeSet};

use control::model::{Kind, convert};
use serde_json::Value;
use xskiff_tests::cluster_server::synthetic::{Detail, Size, Synthetic};

const SIZE: Size = Size { nodes: 40, namespaces: 7, pods: 2000, services: 63, policies: 20 };

fn cluster(detail: Detail) -> Synthetic {
    Synthetic { size: SIZE, detail, seed: 11 }
}

/// Reads `object` as a node does.
fn read(kind: Kind, object: &Value) -> Result<(), String> {
    fn typed<T: serde::de::DeserializeOwned>(object: &Value) -> Result<T, String> {
        serde_json::from_value(object.clone()).map_err(|error| error.to_string())
    }
    let read = match kind {
        Kind::Namespace => convert::namespace(typed(object)?).map(drop),
        Kind::Node => convert::node(typed(object)?).map(drop),
        Kind::Pod => convert::pod(typed(object)?).map(drop),
        Kind::Service => convert::service(typed(object)?).map(drop),
        Kind::EndpointSlice => convert::endpoint_slice(typed(object)?).map(drop),
        Kind::NetworkPolicy => convert::network_policy(typed(object)?).map(drop),
    };
    read.map_err(|error| error.to_string())
}

#[test]
fn every_object_can_be_read_and_there_are_as_many_as_asked_for() {
    for detail in [Detail::Lean, Detail::Real] {
        let mut counts = BTreeMap::new();
        for (kind, object) in cluster(detail).objects() {
            read(kind, &object).unwrap_or_else(|error| panic!("{error}: {object}"));
            *counts.entry(kind).or_insert(0) += 1;
        }
        let wanted = [
            (Kind::Namespace, 7),
            (Kind::Node, 40),
            (Kind::Pod, 2000),
            (Kind::Service, 63),
            (Kind::EndpointSlice, 63),
            (Kind::NetworkPolicy, 20),
        ];
        assert_eq!(counts.into_iter().collect::<Vec<_>>(), wanted);
    }
}

#[test]
fn addresses_are_unique_and_slices_name_every_pod_of_a_service_once() {
    let cluster = cluster(Detail::Lean);
    let addresses: BTreeSet<_> = (0..SIZE.pods).map(|pod| cluster.pod_address(pod)).collect();
    assert_eq!(addresses.len(), SIZE.pods);
    let mut served = BTreeSet::new();
    for service in 0..SIZE.services {
        for slice in cluster.slices(service) {
            for endpoint in slice["endpoints"].as_array().unwrap() {
                let name = endpoint["targetRef"]["name"].as_str().unwrap().to_owned();
                assert!(served.insert(name.clone()), "{name} is named twice");
                let application =
                    slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str().unwrap();
                assert!(name.starts_with(&format!("{application}-")), "{name}: {application}");
            }
        }
    }
    assert_eq!(served.len(), SIZE.pods);
}

#[test]
fn the_seed_repeats_a_cluster_and_another_makes_another() {
    let all = |seed| -> Vec<String> {
        let cluster = Synthetic { size: Size::SMALL, detail: Detail::Real, seed };
        cluster.objects().map(|(_, object)| object.to_string()).collect()
    };
    assert_eq!(all(3), all(3));
    assert_ne!(all(3), all(4));
}

#[test]
fn a_real_pod_has_the_size_of_a_real_pod() {
    let bytes = cluster(Detail::Real).pod(5).to_string().len();
    assert!((6000..8500).contains(&bytes), "{bytes}");
    let lean = cluster(Detail::Lean).pod(5).to_string().len();
    assert!(lean < 1200, "{lean}");
}
