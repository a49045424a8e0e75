//! What container runtimes and primary plugins write: the plugin's input, and their conflists.

use serde_json::value::RawValue;
use xskiff::cni::conflist::{self, Entry};
use xskiff_cni::configuration::{Configuration, version_text};
use xskiff_cni::environment::{Environment, Verb, parse_arguments};
use xskiff_cni::previous::Previous;

use crate::{Damage, damaged};

const INPUT: &str = r#"{"cniVersion":"1.0.0","name":"pods","type":"xskiff-cni","socket":"/run/x.sock",
    "nodeAbsent":"wait","waitSeconds":3,"runtimeConfig":{"bandwidth":{"ingressRate":1000}},
    "cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}],
    "prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"v0"},{"name":"eth0","sandbox":"/x"}],
    "ips":[{"interface":1,"address":"10.1.0.5/24"},{"address":"fd00::5/64"}]}}"#;

const CONFLIST: &str = "{\n \"name\": \"cbr0\", \"cniVersion\": \"0.3.1\",\n \"plugins\": [ {\"type\": \
    \"flannel\"}, {\"type\":\"portmap\"} ]\n}\n";

const VERBS: [Verb; 5] = [Verb::Add, Verb::Check, Verb::Delete, Verb::CollectGarbage, Verb::Status];

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn read(input: &str) {
    let _ = version_text(input);
    for verb in VERBS {
        match Configuration::parse(input, verb) {
            Ok(configuration) => {
                let _ = Previous::parse(configuration.previous, "eth0");
            }
            Err(error) => {
                // Whatever it says can be read by a runtime.
                let json = serde_json::from_str::<serde_json::Value>(&error.json("1.0.0"));
                assert!(json.is_ok_and(|json| json["code"].is_u64()));
            }
        }
    }
}

#[test]
fn damaged_plugin_input_is_read_or_refused() {
    assert!(Configuration::parse(INPUT, Verb::Add).is_ok());
    bolero::check!().with_type::<Damage>().for_each(|damage| {
        read(&text(&damaged(INPUT.as_bytes(), damage)));
    });
}

#[test]
fn any_text_is_plugin_input_or_refused() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let text = text(bytes);
        read(&text);
        let _ = parse_arguments(&text);
        let _ = Environment::read(|_| Some(text.clone()));
        if let Ok(raw) = serde_json::from_str::<Box<RawValue>>(&text) {
            let _ = Previous::parse(Some(&raw), "eth0");
        }
    });
}

/// Whatever was chained can be unchained, to the byte, and is chained once.
fn chained_and_back(list: &str) {
    let entry = Entry::new("/run/x.sock", "admit", 3);
    let _ = conflist::from_single(list, &entry);
    let _ = conflist::unchain(list);
    let was_chained = conflist::Conflist::parse(list).is_ok_and(|list| list.position().is_some());
    if let Ok(Some(chained)) = conflist::chain(list, &entry) {
        assert_eq!(conflist::chain(&chained, &entry), Ok(None), "{list}");
        let back = conflist::unchain(&chained).expect("it was chained");
        assert!(was_chained || back.as_deref() == Some(list), "{list}: {back:?}");
    }
}

#[test]
fn damaged_conflists_are_chained_and_given_back_or_refused() {
    assert!(conflist::chain(CONFLIST, &Entry::default()).is_ok_and(|chained| chained.is_some()));
    bolero::check!().with_type::<Damage>().for_each(|damage| {
        chained_and_back(&text(&damaged(CONFLIST.as_bytes(), damage)));
    });
}

#[test]
fn any_text_is_a_conflist_or_refused() {
    bolero::check!().for_each(|bytes: &[u8]| chained_and_back(&text(bytes)));
}
