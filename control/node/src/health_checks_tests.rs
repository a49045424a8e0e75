use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Mutex;

use serde_json::{Value, json};

use super::*;

fn get(l4_port: u16, path: &str) -> Option<(u16, String, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", l4_port)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let code = head.split(' ').nth(1)?.parse().ok()?;
    Some((code, head.to_lowercase(), body.to_owned()))
}

/// A port that nobody listens on at the moment.
fn free_port() -> u16 {
    TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

fn wanted(checks: &[(&str, u16, u32)], proxy: Option<u16>) -> Wanted {
    let check = |l4_port, local_endpoints| HealthCheck { l4_port, local_endpoints };
    Wanted {
        proxy: proxy.map(|port| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)),
        checks: Arc::new(
            checks.iter().map(|(of, port, local)| (name(of), check(*port, *local))).collect(),
        ),
        addresses: None,
        is_eligible: true,
    }
}

fn body(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_service_is_answered_for_as_kube_proxy_does_and_followed_live() {
    let stalled = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&stalled);
    let mut checks = HealthChecks::start(Arc::new(move || shared.lock().unwrap().clone())).unwrap();
    let (web, other) = (free_port(), free_port());
    let told = checks.follow(wanted(&[("web", web, 2), ("idle", other, 0)], None), |_| None);
    assert!(told.iter().all(|(_, told)| told.is_ok()) && told.len() == 2, "{told:?}");

    let (code, head, text) = get(web, "/anything").unwrap();
    assert_eq!(code, 200);
    assert!(head.contains("x-load-balancing-endpoint-weight: 2"), "{head}");
    assert!(head.contains("content-type: application/json") && head.contains("nosniff"), "{head}");
    let service = json!({"namespace": "shop", "name": "web"});
    let wanted_body = json!({"service": service, "localEndpoints": 2, "serviceProxyHealthy": true});
    assert_eq!(body(&text), wanted_body);
    let (code, head, text) = get(other, "/").unwrap();
    assert_eq!((code, &body(&text)["localEndpoints"]), (503, &json!(0)));
    assert!(head.contains("x-load-balancing-endpoint-weight: 0"), "{head}");

    // The last endpoint goes, and comes back; the other service goes for good.
    assert!(checks.follow(wanted(&[("web", web, 0)], None), |_| None).is_empty());
    assert_eq!(get(web, "/").unwrap().0, 503);
    checks.follow(wanted(&[("web", web, 1)], None), |_| None);
    assert_eq!(get(web, "/").unwrap().0, 200);
    let until = Instant::now() + Duration::from_secs(10);
    while get(other, "/").is_some() {
        assert!(Instant::now() < until, "its socket is closed");
        std::thread::sleep(Duration::from_millis(10));
    }

    stalled.lock().unwrap().push(1);
    let (code, _, text) = get(web, "/").unwrap();
    assert_eq!((code, &body(&text)["serviceProxyHealthy"]), (503, &json!(false)));
}

#[test]
fn a_port_that_cannot_be_had_is_told_by_its_service_and_tried_again() {
    let mut checks = HealthChecks::start(Arc::new(Vec::new)).unwrap();
    let taken = TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let web = wanted(&[("web", port, 1)], None);
    let told = checks.follow(web.clone(), |_| None);
    let [(subject, Err(why))] = &told[..] else { panic!("{told:?}") };
    assert_eq!(subject.to_string(), "health check of Service shop/web");
    assert!(why.contains(&port.to_string()), "{why}");
    drop(taken);
    let told = checks.follow(web.clone(), |_| None);
    assert_eq!(told, [(Subject::Service(name("web")), Ok(()))]);
    // A service has it for a node port now.
    let told = checks.follow(web, |_| Some("is a node port".into()));
    assert!(told[0].1.is_err() && checks.sockets() == 0, "{told:?}");
}

#[test]
fn only_addresses_that_serve_node_ports_answer() {
    let mut checks = HealthChecks::start(Arc::new(Vec::new)).unwrap();
    let port = free_port();
    let mut web = wanted(&[("web", port, 1)], None);
    web.addresses = Some(["192.0.2.1".parse().unwrap()].into());
    checks.follow(web.clone(), |_| None);
    assert_eq!(get(port, "/"), None, "it comes to 127.0.0.1");
    web.addresses = Some(["127.0.0.1".parse().unwrap()].into());
    checks.follow(web, |_| None);
    assert_eq!(get(port, "/").unwrap().0, 200);
}

#[test]
fn a_node_that_is_about_to_go_is_not_healthy_and_lives() {
    let mut checks = HealthChecks::start(Arc::new(Vec::new)).unwrap();
    let port = free_port();
    let mut all = wanted(&[], Some(port));
    checks.follow(all.clone(), |_| None);
    let (code, _, text) = get(port, "/healthz").unwrap();
    assert_eq!((code, &body(&text)["nodeEligible"]), (200, &json!(true)));
    assert!(body(&text)["lastUpdated"].as_str().unwrap().ends_with(" +0000 UTC"), "{text}");
    all.is_eligible = false;
    checks.follow(all.clone(), |_| None);
    let (code, _, text) = get(port, "/healthz").unwrap();
    assert_eq!((code, &body(&text)["nodeEligible"]), (503, &json!(false)));
    let (code, _, text) = get(port, "/livez").unwrap();
    assert_eq!(code, 200);
    assert!(body(&text).get("nodeEligible").is_none(), "{text}");
    assert_eq!(get(port, "/metrics").unwrap().0, 404);
    all.proxy = None;
    checks.follow(all, |_| None);
    assert_eq!(checks.sockets(), 0);
}

#[test]
fn a_control_thread_that_is_silent_is_not_healthy() {
    let heard = Instant::now().checked_sub(SILENCE).unwrap();
    let known = Known { wanted: wanted(&[("web", 1, 1)], None), heard };
    let code = |subject| answer(&subject, "/livez", None, &known, &[]).unwrap().status();
    assert_eq!(code(Subject::Service(name("web"))), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(code(Subject::Proxy), StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn times_are_written_as_kube_proxy_writes_them() {
    for (seconds, text) in [
        (0, "1970-01-01 00:00:00 +0000 UTC"),
        (951_827_696, "2000-02-29 12:34:56 +0000 UTC"),
        (1_796_040_300, "2026-11-30 12:05:00 +0000 UTC"),
    ] {
        assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
    }
}
