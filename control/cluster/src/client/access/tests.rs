use control::config::Kubernetes;

use super::*;

fn in_pod(name: &str) -> Option<String> {
    (name == "KUBERNETES_SERVICE_HOST").then(|| "10.96.0.1".to_owned())
}

fn nowhere(_: &str) -> Option<String> {
    None
}

fn account() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token"), "one").unwrap();
    std::fs::write(directory.path().join("ca.crt"), "pem").unwrap();
    directory
}

fn kubeconfig(directory: &Path, server: &str) -> PathBuf {
    let path = directory.join("kubeconfig");
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: a, \
         contexts: [{{name: a, context: {{cluster: c, user: u}}}}], \
         clusters: [{{name: c, cluster: {{server: \"{server}\"}}}}], \
         users: [{{name: u, user: {{token: secret}}}}]}}"
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn servers_that_are_named_are_taken_with_the_pods_own_account() {
    let directory = account();
    let settings = Kubernetes {
        api_servers: vec!["https://10.0.0.1:6443".into(), "https://[fd00::1]:6443".into()],
        relays: vec!["https://relay-0.internal:8443".into()],
        service_account: directory.path().into(),
        ..Kubernetes::default()
    };
    let access = Access::settle(&settings, &in_pod).unwrap();
    assert_eq!((access.api_servers.len(), access.relays.len()), (2, 1));
    assert_eq!(access.credentials, Credentials::ServiceAccount(directory.path().into()));
    std::fs::remove_file(directory.path().join("token")).unwrap();
    let error = Access::settle(&settings, &in_pod).unwrap_err().to_string();
    assert!(error.contains("/token cannot be read") && error.contains("kubeconfig"), "{error}");
}

#[test]
fn the_service_of_the_api_servers_alone_is_refused_with_the_way_out() {
    let error = Access::settle(&Kubernetes::default(), &in_pod).unwrap_err().to_string();
    assert!(error.contains("10.96.0.1") && error.contains("--api-server https://"), "{error}");
    let error = Access::settle(&Kubernetes::default(), &nowhere).unwrap_err();
    assert_eq!(error, AccessError::Nobody);
}

#[test]
fn the_service_of_the_api_servers_is_refused_wherever_it_is_named() {
    let directory = account();
    for server in ["https://10.96.0.1", "https://kubernetes.default.svc.cluster.local:443"] {
        let named = Kubernetes { api_servers: vec![server.into()], ..Kubernetes::default() };
        let error = Access::settle(&named, &in_pod).unwrap_err().to_string();
        assert!(error.starts_with("kubernetes.api_servers"), "{error}");
        let path = kubeconfig(directory.path(), server);
        let file = Kubernetes { kubeconfig: Some(path), ..Kubernetes::default() };
        let error = Access::settle(&file, &in_pod).unwrap_err().to_string();
        assert!(error.starts_with("kubernetes.kubeconfig"), "{error}");
    }
}

#[test]
fn a_kubeconfig_names_the_server_unless_another_is_named() {
    let directory = account();
    let path = kubeconfig(directory.path(), "https://10.0.0.7:6443");
    let mut settings = Kubernetes { kubeconfig: Some(path.clone()), ..Kubernetes::default() };
    let access = Access::settle(&settings, &in_pod).unwrap();
    assert_eq!(access.api_servers[0].host(), Some("10.0.0.7"));
    settings.api_servers.push("https://10.0.0.8:6443".into());
    let access = Access::settle(&settings, &in_pod).unwrap();
    assert_eq!(access.api_servers.len(), 1);
    assert_eq!(access.api_servers[0].host(), Some("10.0.0.8"));
    std::fs::write(&path, "{clusters: [}").unwrap();
    let error = Access::settle(&settings, &in_pod).unwrap_err().to_string();
    assert!(error.contains("kubeconfig"), "{error}");
}
