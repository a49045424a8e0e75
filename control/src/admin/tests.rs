use proptest::prelude::*;

use super::*;

fn line(request: &str) -> Vec<u8> {
    format!(r#"{{"version":1,"request":{request}}}"#).into_bytes()
}

fn endpoint() -> EndpointAdd {
    EndpointAdd {
        name: "shop/cart-0".into(),
        interface: "veth1234".into(),
        netns: None,
        addresses: vec!["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        mac: Some("02:00:00:00:00:0a".into()),
        attachment: None,
        pod_uid: None,
        bandwidth: None,
    }
}

fn attachment() -> Attachment {
    let (network, interface) = ("pods".into(), "eth0".into());
    Attachment { network, container_id: "0123abc".into(), interface }
}

fn refusal(change: impl FnOnce(&mut EndpointAdd)) -> String {
    let mut endpoint = endpoint();
    change(&mut endpoint);
    let bytes = encode_request(Request::EndpointAdd(endpoint)).unwrap();
    decode_request(bytes.trim_ascii_end()).unwrap_err().to_string()
}

#[test]
fn every_request_survives_the_wire() {
    let requests = [
        Request::Status,
        Request::EndpointAdd(endpoint()),
        Request::EndpointCheck(endpoint()),
        Request::EndpointDetach(attachment()),
        Request::EndpointRetain(Retained {
            network: "pods".into(),
            attachments: vec![("0123abc".into(), "eth0".into())],
        }),
        Request::EndpointRemove { name: "shop/cart-0".into() },
        Request::EndpointList,
        Request::ServiceList,
        Request::ServiceShow { name: "shop/web".into() },
        Request::ServiceTrace(service::ServiceTraceQuestion {
            from: "10.0.0.1".parse().unwrap(),
            source_port: Some(4000),
            to: "10.96.0.1".parse().unwrap(),
            l4_port: 80,
            protocol: "sctp".into(),
        }),
        Request::CtList { filter: FlowFilter::default(), limit: 10 },
        Request::CtCount {
            filter: FlowFilter { protocol: Some("tcp".into()), ..FlowFilter::default() },
        },
        Request::CtFlush { filter: FlowFilter { l4_port: Some(80), ..FlowFilter::default() } },
        Request::CtTop { by: TopBy::Service },
        Request::CtWatch { filter: FlowFilter::default() },
        Request::CtResize { v4: Some(1000), v6: None },
        Request::PolicyExplain(PolicyQuestion {
            from: "a/b".into(),
            to: "world".into(),
            l4_port: 443,
            protocol: "tcp".into(),
        }),
        Request::Drops,
        Request::Flows { filter: FlowFilter::default(), follow: true },
        Request::Capture(CaptureRequest {
            direction: Some(CaptureDirection::Received),
            reason: Some("spoofed".into()),
            ..CaptureRequest::default()
        }),
        Request::Trace { frame: "00 01:02".into(), port: "eth0".into() },
        Request::ConfigShow,
        Request::ConfigDiff { candidate: "a: 1".into() },
        Request::ManifestsStatus,
    ];
    for request in requests {
        let bytes = encode_request(request.clone()).unwrap();
        assert_eq!(bytes.last(), Some(&b'\n'));
        assert_eq!(decode_request(bytes.trim_ascii_end()), Ok(request));
    }
}

#[test]
fn another_protocol_version_is_refused_by_number() {
    let refused = decode_request(br#"{"version":2,"request":"status"}"#);
    assert_eq!(refused, Err(AdminError::Version { got: 2 }));
    // Also where nothing else of it is known.
    let refused = decode_request(br#"{"version":3,"request":{"of_tomorrow":{}},"more":[]}"#);
    assert_eq!(refused, Err(AdminError::Version { got: 3 }));
    let refused = decode_request(br#"{"version":1,"request":{"of_tomorrow":{}}}"#).unwrap_err();
    assert!(refused.to_string().contains("of_tomorrow"), "{refused}");
}

#[test]
fn an_unknown_field_is_refused_by_name() {
    let bytes = line(r#"{"ct_count":{"filter":{"adress":"10.0.0.1"}}}"#);
    let error = decode_request(&bytes).unwrap_err().to_string();
    assert!(error.contains("adress"), "{error}");
}

#[test]
fn a_line_beyond_the_bound_is_refused_unparsed() {
    let long = vec![b' '; REQUEST_BYTES_MAX + 1];
    assert!(matches!(decode_request(&long), Err(AdminError::TooLong { .. })));
}

#[test]
fn impossible_endpoints_are_refused_by_field() {
    assert!(refusal(|e| e.name = "cart".into()).starts_with("name:"));
    assert!(refusal(|e| e.name = "Shop/cart".into()).starts_with("name:"));
    assert!(refusal(|e| e.interface = "a-name-far-too-long".into()).starts_with("interface:"));
    assert!(refusal(|e| e.interface = "../eth0".into()).starts_with("interface:"));
    assert!(refusal(|e| e.addresses.clear()).starts_with("addresses:"));
    assert!(refusal(|e| e.addresses[0] = "0.0.0.0".parse().unwrap()).starts_with("addresses:"));
    assert!(refusal(|e| e.addresses[1] = e.addresses[0]).contains("twice"));
    assert!(refusal(|e| e.mac = Some("ff:ff:ff:ff:ff:ff".into())).contains("group"));
    assert!(refusal(|e| e.netns = Some("pod".into())).starts_with("netns:"));
}

#[test]
fn a_misspelt_drop_reason_is_answered_with_the_right_ones() {
    let error = parse_reason("spoof").unwrap_err().to_string();
    assert!(error.contains("spoofed") && error.contains("no-route"), "{error}");
}

#[test]
fn a_listing_without_bound_is_refused() {
    assert!(decode_request(&line(r#"{"ct_list":{"limit":0}}"#)).is_err());
    assert!(decode_request(&line(r#"{"ct_list":{"limit":65537}}"#)).is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = decode_request(&bytes);
    }

    #[test]
    fn no_mutation_of_a_request_makes_the_decoder_panic(
        at in 0usize..200, with in any::<u8>(), cut in 0usize..200,
    ) {
        let mut bytes = encode_request(Request::EndpointAdd(endpoint())).unwrap();
        if let Some(byte) = bytes.get_mut(at) { *byte = with; }
        bytes.truncate(bytes.len().saturating_sub(cut));
        let _ = decode_request(&bytes);
    }

    #[test]
    fn a_frame_survives_hexadecimal(bytes in proptest::collection::vec(any::<u8>(), 1..300)) {
        prop_assert_eq!(decode_frame(&encode_frame(&bytes)), Ok(bytes));
    }
}

#[test]
fn a_resize_of_nothing_is_refused() {
    let bytes = encode_request(Request::CtResize { v4: None, v6: None }).unwrap();
    let refused = decode_request(bytes.trim_ascii_end()).unwrap_err().to_string();
    assert!(refused.contains("say how many flows"), "{refused}");
}

/// Of each list one, and all that may be absent.
fn told_status() -> status::Status {
    let error = status::ObjectError { object: "Service shop/web".into(), ..Default::default() };
    status::Status {
        ports: vec![status::PortStatus {
            limits: vec![status::LimitInfo { burst_bits: Some(1), ..Default::default() }],
            ..Default::default()
        }],
        workers: vec![status::WorkerStatus::default()],
        handed_on: Some(status::HandedOn {
            reason: Some("none came".into()),
            ..Default::default()
        }),
        http_listen: Some("127.0.0.1:9977".parse().unwrap()),
        tables: vec![status::TableUsage::default()],
        flow_tables: vec![status::FlowTableStatus {
            file: Some("/run/xskiff/flows4".into()),
            ..Default::default()
        }],
        drops: vec![reply::DropCount {
            causes: vec![policy::DropCause {
                endpoint: Some("shop/web".into()),
                ..Default::default()
            }],
            ..Default::default()
        }],
        reconciles: vec![status::ReconcileStatus::default()],
        manifests: reply::ManifestsStatus { errors: vec![error.clone()], ..Default::default() },
        kubernetes: Some(kubernetes::KubernetesStatus {
            servers: vec![kubernetes::ServerStatus::default()],
            kinds: vec![kubernetes::KindStatus::default()],
            refused: vec![error.clone()],
            ..Default::default()
        }),
        kube_proxy: vec![status::TraceStatus::default()],
        bypassed_chains: vec![status::BypassedChains::default()],
        errors: vec![error],
        ..Default::default()
    }
}

/// The JSON pointers (RFC 6901) of all members of objects.
fn members(of: &serde_json::Value, at: &str, found: &mut Vec<(String, String)>) {
    match of {
        serde_json::Value::Object(all) => {
            for (name, member) in all {
                found.push((at.to_owned(), name.clone()));
                members(member, &format!("{at}/{name}"), found);
            }
        }
        serde_json::Value::Array(all) => {
            for (place, member) in all.iter().enumerate() {
                members(member, &format!("{at}/{place}"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn a_status_is_read_whatever_an_earlier_or_a_later_version_tells() {
    let told = serde_json::to_value(told_status()).unwrap();
    let mut found = Vec::new();
    members(&told, "", &mut found);
    assert!(found.len() > 200, "{}", found.len());
    for level in [status::Level::Ok, status::Level::Degraded, status::Level::Failing] {
        let word = serde_json::to_value(level).unwrap();
        assert_eq!(serde_json::from_value::<status::Level>(word).unwrap(), level);
    }
    let later = serde_json::from_value::<status::Level>("of_tomorrow".into());
    assert_eq!(later.unwrap(), status::Level::Degraded);
    for (at, name) in found {
        let mut other = told.clone();
        let object = other.pointer_mut(&at).and_then(|object| object.as_object_mut()).unwrap();
        object.remove(&name);
        object.insert("what a later version tells".into(), 1.into());
        serde_json::from_value::<status::Status>(other)
            .unwrap_or_else(|error| panic!("without {at}/{name}: {error}"));
    }
}
