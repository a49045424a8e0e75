//! Reads what another process wrote, perhaps of another version: entry by entry, since one that cannot be
//! understood must not cost the others. A field that is not known is left out, and an offload is kept for
//! whoever knows it, with a word; what else is wrong with an entry makes it one that was not read.

use std::collections::BTreeSet;

use control::admin::other_version::{Fields, leave_unknown_out};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Recorded, Remembered};

/// What was understood of a record, and what was not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// What can be gone on with.
    pub remembered: Remembered,
    /// Entries that cannot be read.
    pub unread: Vec<Unread>,
}

/// An entry that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// What it is of, for people: `endpoint shop/cart-0` where that can be told.
    pub object: String,
    /// What is wrong with it.
    pub why: String,
}

/// The file, its entries as they are.
#[derive(Deserialize)]
pub(super) struct RawContents<'a> {
    pub version: u32,
    pub boot_id: String,
    #[serde(borrow)]
    pub endpoints: Vec<&'a RawValue>,
    #[serde(default)]
    pub removed: BTreeSet<u32>,
}

/// Fields of an entry, and of what was changed.
const FIELDS: [Fields<'_>; 2] = [
    (&[], &["endpoint", "ifindex", "changed"]),
    (&["changed"], &["source_validation", "offloads"]),
];

/// One entry; `number` is its place, from 1.
pub(super) fn entry(raw: &RawValue, number: usize) -> Result<Recorded, Unread> {
    let mut object = format!("entry {number} of the record of endpoints");
    let recorded = decode(raw, &mut object);
    recorded.map_err(|why| Unread { object, why })
}

fn decode(raw: &RawValue, object: &mut String) -> Result<Recorded, String> {
    let mut value: Value = serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
    if let Some(name) = value["endpoint"]["name"].as_str() {
        // It goes to the log, however it came here.
        let name: String = name.chars().filter(|one| one.is_ascii_graphic()).take(320).collect();
        *object = format!("endpoint {name}");
    }
    let unknown = leave_unknown_out(&mut value, &FIELDS);
    if !unknown.is_empty() {
        tracing::warn!(
            object,
            ?unknown,
            "its entry in the record has fields that are not known here"
        );
    }
    let recorded: Recorded = serde_json::from_value(value).map_err(|error| error.to_string())?;
    recorded.endpoint.validate().map_err(|error| error.to_string())?;
    recorded.changed.validate()?;
    let unknown: Vec<&String> = recorded.changed.unknown_offloads().collect();
    if !unknown.is_empty() {
        tracing::warn!(object, ?unknown, "its offloads that are not known here stay switched");
    }
    Ok(recorded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(value: &Value) -> Box<RawValue> {
        RawValue::from_string(value.to_string()).unwrap()
    }

    fn whole() -> Value {
        serde_json::json!({
            "endpoint": {
                "name": "shop/cart-0",
                "interface": "veth0",
                "netns": "/run/netns/pod",
                "addresses": ["10.1.0.5"],
                "mac": "02:00:00:00:00:05",
                "attachment": { "network": "pods", "container_id": "one", "interface": "eth0" },
                "pod_uid": "uid-1",
                "bandwidth": {
                    "ingress_rate": 1_000_000, "ingress_burst": 80_000,
                    "egress_rate": 0, "egress_burst": 0,
                },
            },
            "ifindex": 7,
            "changed": { "source_validation": "1", "offloads": ["tso"] },
        })
    }

    /// A field that is added to what is recorded must be added to the known ones, or it is left out here.
    #[test]
    fn every_field_that_is_written_is_read() {
        let read = entry(&raw(&whole()), 1).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), whole());
    }

    #[test]
    fn a_field_of_another_version_is_left_out_wherever_it_is() {
        let wanted = entry(&raw(&whole()), 1).unwrap();
        for path in ["", "/endpoint", "/endpoint/attachment", "/endpoint/bandwidth", "/changed"] {
            let mut newer = whole();
            newer.pointer_mut(path).unwrap()["of_tomorrow"] = true.into();
            assert_eq!(entry(&raw(&newer), 1), Ok(wanted.clone()), "{path}");
        }
    }

    /// What another version switched stays in the record: it alone can give it back.
    #[test]
    fn an_offload_of_another_version_is_kept_and_not_touched() {
        let mut newer = whole();
        newer["changed"]["offloads"] = serde_json::json!(["of-tomorrow", "tso"]);
        let read = entry(&raw(&newer), 1).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), newer);
        assert_eq!(read.changed.back(), entry(&raw(&whole()), 1).unwrap().changed.back());
    }

    #[test]
    fn what_cannot_be_read_is_told_by_its_name_or_its_place() {
        for (value, object, why) in [
            (Value::Null, "entry 3 ", "invalid type"),
            (serde_json::json!({ "endpoint": { "name": "a/b" } }), "endpoint a/b", "missing"),
            (
                serde_json::json!({ "endpoint": { "name": "a\n/\u{7}b" } }),
                "endpoint a/b",
                "missing",
            ),
        ] {
            let unread = entry(&raw(&value), 3).unwrap_err();
            assert!(unread.object.starts_with(object) && unread.why.contains(why), "{unread:?}");
        }
    }
}
