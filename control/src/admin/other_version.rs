//! What another version of xskiff wrote down about an endpoint. A field that is not known here is left out, by
//! name, so that the rest is gone on with; a request is not read so, since whoever asks can be told.

use serde_json::Value;

/// Where in a value, and which fields are known there.
pub type Fields<'a> = (&'a [&'a str], &'a [&'a str]);

/// Those of an [`EndpointAdd`](super::EndpointAdd), and of what is in it.
const ENDPOINT: [Fields<'_>; 3] = [
    (
        &[],
        &["name", "interface", "netns", "addresses", "mac", "attachment", "pod_uid", "bandwidth"],
    ),
    (&["attachment"], &["network", "container_id", "interface"]),
    (&["bandwidth"], &["ingress_rate", "ingress_burst", "egress_rate", "egress_burst"]),
];

/// Leaves out what is not known of a value that has an endpoint and these fields; answers what it was.
pub fn leave_unknown_out(value: &mut Value, fields: &[Fields<'_>]) -> Vec<String> {
    let mut unknown = leave_out(value, fields);
    if let Some(endpoint) = value.get_mut("endpoint") {
        unknown.extend(leave_out(endpoint, &ENDPOINT));
    }
    unknown
}

fn leave_out(value: &mut Value, fields: &[Fields<'_>]) -> Vec<String> {
    let mut unknown = Vec::new();
    for (path, known) in fields {
        let place = path.iter().try_fold(&mut *value, |place, part| place.get_mut(*part));
        let Some(Value::Object(there)) = place else { continue };
        there.retain(|field, _| {
            let is_known = known.contains(&field.as_str());
            if !is_known {
                unknown.push(field.clone());
            }
            is_known
        });
    }
    unknown
}
