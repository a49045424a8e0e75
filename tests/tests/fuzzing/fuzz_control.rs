//! Text of anybody's choice: configuration, manifests, and requests on the admin socket.

use std::path::Path;

use control::admin::{decode_frame, decode_request, encode_frame, parse_mac};
use control::config::Config;
use control::manifests;

use crate::{Damage, damaged};

const CONFIG: &str = "node_ports: {first: 30100, last: 30200, address_cidrs: [192.0.2.0/24]}\n";

const MANIFEST: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
    spec: {clusterIP: 10.2.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n\
    ---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
    metadata: {name: only-shop, namespace: shop}\n\
    spec:\n  podSelector: {matchLabels: {app: web}}\n  policyTypes: [Ingress]\n  \
    ingress:\n  - from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]\n    \
    ports: [{port: 8080, endPort: 8090}]\n";

const REQUEST: &str = r#"{"version":1,"request":"status"}"#;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn damaged_configuration_is_read_or_refused() {
    assert!(Config::parse(CONFIG).is_ok(), "{:?}", Config::parse(CONFIG));
    bolero::check!().with_type::<Damage>().for_each(|damage| {
        // What was read can be printed and means the same.
        if let Ok(config) = Config::parse(&text(&damaged(CONFIG.as_bytes(), damage))) {
            let printed = config.print().expect("a configuration prints");
            assert!(Config::parse(&printed).is_ok(), "printed: {printed}");
        }
    });
}

#[test]
fn damaged_manifests_are_read_or_refused() {
    assert!(manifests::parse(Path::new("a.yaml"), MANIFEST).is_ok());
    bolero::check!().with_type::<Damage>().for_each(|damage| {
        let manifest = text(&damaged(MANIFEST.as_bytes(), damage));
        let _ = manifests::parse(Path::new("a.yaml"), &manifest);
    });
}

#[test]
fn any_text_is_a_manifest_or_refused() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let _ = manifests::parse(Path::new("a.yaml"), &text(bytes));
        let _ = Config::parse(&text(bytes));
    });
}

#[test]
fn any_line_is_a_request_or_refused() {
    bolero::check!().for_each(|line: &[u8]| {
        let _ = decode_request(line);
        let _ = parse_mac(&text(line));
        if let Ok(frame) = decode_frame(&text(line)) {
            assert_eq!(decode_frame(&encode_frame(&frame)).ok(), Some(frame));
        }
    });
}

#[test]
fn damaged_request_is_read_or_refused() {
    assert!(decode_request(REQUEST.as_bytes()).is_ok());
    bolero::check!().with_type::<Damage>().for_each(|damage| {
        let _ = decode_request(&damaged(REQUEST.as_bytes(), damage));
    });
}
