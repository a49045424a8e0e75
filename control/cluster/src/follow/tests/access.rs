//! Which server is asked, and as whom.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

use super::*;
use crate::serve::Denied;

/// Who vouches for others.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut own = CertificateParams::new(Vec::<String>::new()).unwrap();
        own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = own.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(own, key) }
    }

    fn pem(&self) -> String {
        self.certificate.pem()
    }

    fn vouch(&self) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut own = CertificateParams::new(Vec::<String>::new()).unwrap();
        own.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
        (own.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// A server that it vouches for, which wants clients' certificates if `wants`.
    fn server(&self, wants: bool) -> Arc<rustls::ServerConfig> {
        let (certificate, key) = self.vouch();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if wants {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(self.certificate.der().clone()).unwrap();
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
                Arc::new(roots),
                provider,
            );
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Arc::new(builder.with_single_cert(vec![certificate.der().clone()], key).unwrap())
    }
}

/// An authority's certificate as PEM, and a server's configuration that it vouches for.
pub(super) fn tls() -> (String, Arc<rustls::ServerConfig>) {
    let authority = Authority::new();
    (authority.pem(), authority.server(false))
}

pub(super) fn account(authority: &str, token: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ca.crt"), authority).unwrap();
    std::fs::write(directory.path().join("token"), token).unwrap();
    directory
}

pub(super) fn secure(server: &Server, account: &Path) -> Settings {
    let mut settings = settings(&[format!("https://{}", server.address())]);
    settings.access.credentials = Credentials::ServiceAccount(account.to_owned());
    settings
}

#[tokio::test]
async fn a_token_that_is_rotated_is_read_again_and_followed_on() {
    let store = store();
    fill(&store, 5);
    let (authority, config) = tls();
    let account = account(&authority, "one");
    let valid = Arc::new(Mutex::new("one"));
    let asked = Arc::clone(&valid);
    let server = serve_with("127.0.0.1:0", &store, &judge(|_| Fault::No), |options| {
        options.tls = Some(config);
        options.access = Some(Arc::new(move |token, _, _| {
            if token == Some(*asked.lock().unwrap()) { Ok(()) } else { Err(Denied::Unauthorized) }
        }));
    })
    .await;
    let mut node = Node::start(secure(&server, account.path()));
    node.complete().await;
    assert_eq!(node.state.pods.len(), 5);
    // The kubelet writes the next one, and the old one ends.
    std::fs::write(account.path().join("token"), "two").unwrap();
    *valid.lock().unwrap() = "two";
    store.forget_history();
    store.set(Kind::Pod, pod("after")).unwrap();
    node.until("a change", |node| node.has("after")).await;
    assert_eq!(node.failures(Kind::Pod, "forbidden"), 0, "nobody noticed");
    // A token that nobody takes is named, and a good one mends it.
    *valid.lock().unwrap() = "three";
    store.forget_history();
    node.until("a refusal", |node| node.failures(Kind::Pod, "forbidden") > 0).await;
    assert_eq!(node.state.pods.len(), 6);
    std::fs::write(account.path().join("token"), "three").unwrap();
    store.set(Kind::Pod, pod("later")).unwrap();
    node.until("a change", |node| node.has("later")).await;
}

#[tokio::test]
async fn a_kubeconfig_with_a_clients_certificate_opens_the_door_and_without_it_stays_shut() {
    let store = store();
    fill(&store, 5);
    let authority = Authority::new();
    let tls = |options: &mut Options| options.tls = Some(authority.server(true));
    let server = serve_with("127.0.0.1:0", &store, &judge(|_| Fault::No), tls).await;
    let files = tempfile::tempdir().unwrap();
    let at = |name: &str| files.path().join(name).display().to_string();
    let (certificate, key) = authority.vouch();
    std::fs::write(at("ca.pem"), authority.pem()).unwrap();
    std::fs::write(at("own.pem"), certificate.pem()).unwrap();
    std::fs::write(at("own.key"), key.serialize_pem()).unwrap();
    for (user, opens) in [
        (format!("client-certificate: {}, client-key: {}", at("own.pem"), at("own.key")), true),
        ("token: nobody".to_owned(), false),
    ] {
        let url = format!("https://{}", server.address());
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: a, \
             contexts: [{{name: a, context: {{cluster: c, user: u}}}}], \
             clusters: [{{name: c, cluster: {{server: \"{url}\", certificate-authority: {}}}}}], \
             users: [{{name: u, user: {{{user}}}}}]}}",
            at("ca.pem")
        );
        std::fs::write(at("kubeconfig"), text).unwrap();
        let mut own = settings(&[url]);
        own.access.credentials = Credentials::Kubeconfig(at("kubeconfig").into());
        let mut node = Node::start(own);
        if opens {
            node.complete().await;
            assert_eq!(node.state.pods.len(), 5);
        } else {
            node.until("a refusal", |node| node.failures(Kind::Pod, "connection") > 1).await;
            assert!(!node.reporter().is_complete());
        }
    }
}

#[tokio::test]
async fn a_server_that_another_authority_vouches_for_is_not_believed() {
    let store = store();
    fill(&store, 5);
    let (_, config) = tls();
    let (other, _) = tls();
    let account = account(&other, "one");
    let tls = |options: &mut Options| options.tls = Some(config);
    let server = serve_with("127.0.0.1:0", &store, &judge(|_| Fault::No), tls).await;
    let mut node = Node::start(secure(&server, account.path()));
    node.until("a refusal", |node| node.failures(Kind::Pod, "connection") > 1).await;
    let message = node.kind(Kind::Pod).last_error.unwrap().message;
    assert!(message.contains("certificate"), "{message}");
    assert!(node.state.pods.is_empty() && !node.reporter().is_complete());
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_fails_and_the_preferred_one_when_it_is_back() {
    let store = store();
    fill(&store, 20);
    let faults = judge(|_| Fault::No);
    let relay = serve_at("127.0.0.1:0", &store, &faults).await;
    let server = serve_at("127.0.0.1:0", &store, &judge(|_| Fault::No)).await;
    let (relay_url, server_url) = (url(&relay), url(&server));
    let mut own = settings(std::slice::from_ref(&server_url));
    own.access.relays = vec![relay_url.parse().unwrap()];
    let mut node = Node::start(own);
    node.complete().await;
    assert_eq!(node.status().server.as_ref(), Some(&relay_url));
    let address = relay.address().to_string();
    drop(relay);
    store.set(Kind::Pod, pod("one")).unwrap();
    node.until("a change", |node| node.has("one")).await;
    assert_eq!(node.status().server.as_ref(), Some(&server_url));
    assert!(node.status().servers[0].relay && node.status().servers[0].failures > 0);
    let relay = serve_at(&address, &store, &faults).await;
    node.until("the return", |node| node.status().server.as_ref() == Some(&relay_url)).await;
    store.set(Kind::Pod, pod("two")).unwrap();
    node.until("a change", |node| node.has("two")).await;
    // One that answers with errors is left as well.
    set(&faults, |_| Fault::Code(500));
    store.forget_history();
    store.set(Kind::Pod, pod("three")).unwrap();
    node.until("a change", |node| node.has("three")).await;
    assert_eq!(node.gone, 0);
    drop(relay);
}

#[tokio::test]
async fn a_server_behind_a_service_of_ours_is_not_asked() {
    let store = store();
    fill(&store, 5);
    let server = serve_at("127.0.0.1:0", &store, &judge(|_| Fault::No)).await;
    let mut node = Node::start(settings(&[url(&server)]));
    node.complete().await;
    let service = json!({"metadata": {"name": "api", "namespace": "shop"}, "spec": {
        "clusterIPs": ["127.0.0.1"], "ports": [{"port": 1}]}});
    store.set(Kind::Service, service).unwrap();
    node.until("the Service", |node| node.state.services.len() == 1).await;
    node.until("a refusal", |node| node.failures(Kind::Pod, "own-service") > 0).await;
    let message = node.kind(Kind::Pod).last_error.unwrap().message;
    assert!(message.contains("--api-server"), "{message}");
    assert_eq!(node.state.pods.len(), 5);
}

/// A Service that has the server's own address for an external one.
fn imposter(server: &Server) -> Value {
    let port = server.address().port();
    json!({"metadata": {"name": "imposter", "namespace": "shop"}, "spec": {
        "clusterIPs": ["10.96.0.9"], "externalIPs": ["127.0.0.1", "192.0.2.9"],
        "ports": [{"port": 80, "name": "a"}, {"port": port, "name": "b"}]}})
}

#[tokio::test]
async fn a_service_that_claims_a_servers_address_is_not_served_there() {
    for by_name in [false, true] {
        let store = store();
        fill(&store, 5);
        let server = serve_at("127.0.0.1:0", &store, &judge(|_| Fault::No)).await;
        let address =
            url(&server).replace("127.0.0.1", if by_name { "localhost" } else { "127.0.0.1" });
        let mut node = Node::start(settings(&[address]));
        node.complete().await;
        store.set(Kind::Service, imposter(&server)).unwrap();
        node.until("the Service", |node| node.state.services.len() == 1).await;
        let served: Vec<_> =
            node.state.services.values().map(|own| own.external_ips.clone()).collect();
        assert_eq!(served, [["192.0.2.9".parse::<std::net::IpAddr>().unwrap()]]);
        let refused = node.status().refused;
        assert!(refused[0].object.contains("shop/imposter"), "{refused:?}");
        assert!(refused[0].message.contains("not served there"), "{refused:?}");
        // The node goes on hearing of everything, of the Service's end as well.
        store.forget_history();
        store.set(Kind::Pod, pod("after")).unwrap();
        node.until("a change", |node| node.has("after")).await;
        store.delete(Kind::Service, "shop", "imposter").unwrap();
        node.until("its end", |node| node.state.services.is_empty()).await;
        assert!(node.status().refused.is_empty());
        assert_eq!(node.failures(Kind::Pod, "own-service"), 0);
    }
}

#[tokio::test]
async fn a_server_that_knows_us_as_nobody_is_left_for_the_next() {
    let store = store();
    fill(&store, 5);
    for fault in [401, 403] {
        let faults = judge(move |_| Fault::Code(fault));
        let bad = serve_at("127.0.0.1:0", &store, &faults).await;
        let good = serve_at("127.0.0.1:0", &store, &judge(|_| Fault::No)).await;
        let mut own = settings(&[url(&good)]);
        own.access.relays = vec![url(&bad).parse().unwrap()];
        let mut node = Node::start(own);
        node.complete().await;
        assert_eq!(node.state.pods.len(), 5);
        assert!(node.status().servers[0].failures > 0, "{fault}");
    }
}

/// Of all other kinds its answers are good, so that it is never at rest.
#[tokio::test]
async fn a_server_that_spoils_one_kind_is_asked_last_for_it_and_first_for_the_others() {
    let store = store();
    fill(&store, 5);
    let faults = judge(|asked| match is_of_pods(asked) {
        true => Fault::Text("no list at all\n"),
        false => Fault::No,
    });
    let bad = serve_at("127.0.0.1:0", &store, &faults).await;
    let good = serve_at("127.0.0.1:0", &store, &judge(|_| Fault::No)).await;
    let mut own = settings(&[url(&good)]);
    own.access.relays = vec![url(&bad).parse().unwrap()];
    own.access.rest = (Duration::from_secs(60), Duration::from_secs(60));
    let mut node = Node::start(own);
    node.complete().await;
    assert_eq!(node.state.pods.len(), 5);
    assert_eq!(node.failures(Kind::Pod, "garbage"), 1);
    assert_eq!(node.failures(Kind::Service, "garbage"), 0);
    assert_eq!(node.status().servers[0].failures, 1);
}

#[tokio::test]
async fn an_answer_that_is_no_list_empties_nothing() {
    let store = store();
    fill(&store, 5);
    let faults = judge(|_| Fault::No);
    let server = serve_at("127.0.0.1:0", &store, &faults).await;
    let mut node = Node::start(settings(&[url(&server)]));
    node.complete().await;
    set(&faults, |_| Fault::Text("{\"kind\":\"Status\",\"metadata\":{},\"status\":\"Success\"}\n"));
    store.forget_history();
    node.until("garbage", |node| node.failures(Kind::NetworkPolicy, "garbage") > 2).await;
    assert_eq!((node.gone, node.state.network_policies.len()), (0, 1));
}
