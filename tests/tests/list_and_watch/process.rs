//! `xskiff relay` as a process: a kubeconfig in, HTTPS out, SIGTERM.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::{Client, Config};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xskiff_tests::cluster_server::synthetic::{Detail, Size, Synthetic};
use xskiff_tests::cluster_server::{Authority, ClusterServer, Setup};
use xskiff_tests::xskiff_binary;

use super::relay::until;
use super::{PATIENCE, certificate, get};

const PODS: &str = "/api/v1/pods";

/// The process; killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Whether it ended well within the patience.
    async fn ended(&mut self) -> bool {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.success();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }
}

/// A port of loopback that nobody has.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn kubeconfig(server: &str, authority: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
         contexts: [{{ name: a, context: {{ cluster: a, user: a }} }}]\n\
         clusters: [{{ name: a, cluster: {{ server: '{server}', \
         certificate-authority: {authority} }} }}]\n\
         users: [{{ name: a, user: {{ token: relay }} }}]\n",
    )
}

fn client(url: String, token: Option<&str>, authority: Option<&Authority>) -> Client {
    let mut config = Config::new(url.parse().unwrap());
    config.default_retry = false;
    config.root_cert = authority.map(|authority| vec![certificate(authority)]);
    config.auth_info.token = token.map(|token| token.to_owned().into());
    Client::try_from(config).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_is_a_process_that_ends_in_order() {
    let authority = Arc::new(Authority::default());
    let setup = Setup { authority: Some(Arc::clone(&authority)), ..Setup::default() };
    let server = ClusterServer::start(setup).await.unwrap();
    Synthetic { size: Size::SMALL, detail: Detail::Lean, seed: 3 }.fill(server.store());
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let identity = authority.sign("relay");
    let kubeconfig = kubeconfig(&server.url(), &file("ca.pem", &authority.pem()));
    let (listen, metrics) = (free(), free());
    let mut command = Command::new(xskiff_binary::path());
    command
        .args(["relay", "--listen", &listen.to_string(), "--metrics-listen", &metrics.to_string()])
        .args(["--tls-certificate", &file("tls.crt", &identity.certificate)])
        .args(["--tls-key", &file("tls.key", &identity.key)])
        .args(["--token-file", &file("tokens", "of-a-node\n")])
        .args(["--kubeconfig", &file("kubeconfig", &kubeconfig)])
        .stdin(Stdio::null());
    let mut process = Process(command.spawn().unwrap());

    let probe = client(format!("http://{metrics}"), None, None);
    let began = Instant::now();
    let ready = || http::Request::get("/readyz").body(Body::empty()).unwrap();
    while !matches!(probe.send(ready()).await, Ok(answer) if answer.status().as_u16() == 200) {
        assert!(began.elapsed() < PATIENCE, "it does not become ready");
        assert!(process.0.try_wait().unwrap().is_none(), "it ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let url = format!("https://{listen}");
    let stranger = client(url.clone(), Some("nobody"), Some(&authority));
    assert_eq!(get(&stranger, PODS, PATIENCE).await.unwrap().code, 401);
    let node = client(url, Some("of-a-node"), Some(&authority));
    let list = get(&node, PODS, PATIENCE).await.unwrap().json();
    assert_eq!(list["items"].as_array().unwrap().len(), Size::SMALL.pods);
    let text = get(&probe, "/metrics", PATIENCE).await.unwrap().bytes;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("xskiff_relay_objects{resource=\"pods\"} 60\n"), "{text}");

    until("a leader", || server.written().holder("xskiff-relay").is_some()).await;

    let request = http::Request::get(format!("{PODS}?watch=true")).body(Body::empty()).unwrap();
    let mut watch = node.send(request).await.unwrap().into_body();
    assert!(watch.frame().await.unwrap().is_ok());
    kill(Pid::from_raw(i32::try_from(process.0.id()).unwrap()), Signal::SIGTERM).unwrap();
    let end = async {
        while let Some(frame) = watch.frame().await {
            assert!(frame.is_ok(), "the watch was torn off: {frame:?}");
        }
    };
    tokio::time::timeout(PATIENCE, end).await.expect("an end of the watch");
    assert!(process.ended().await);
    assert_eq!(server.written().holder("xskiff-relay"), None, "the lead was given up");
}

#[test]
fn wrong_flags_are_wrong_usage_or_named() {
    let run = |words: &[&str]| {
        let output = Command::new(xskiff_binary::path()).arg("relay").args(words).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = run(&["--plain"]);
    assert!(code == Some(1) && text.contains("--token-file"), "{text}");
    let (code, text) = run(&["--listen", "nowhere"]);
    assert!(code == Some(64), "{text}");
    let (code, text) = run(&["--listen", "127.0.0.1:0", "--kubeconfig", "/nonexistent"]);
    assert!(code == Some(1) && text.contains("/nonexistent"), "{text}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    let own = ["--listen", "127.0.0.1:0", "--kubeconfig", path.to_str().unwrap()];
    std::fs::write(&path, kubeconfig("https://127.0.0.1:1", "/none.pem")).unwrap();
    let (code, text) = run(&[&own[..], &["--token-file", "/nonexistent"]].concat());
    assert!(code == Some(1) && text.contains("/nonexistent"), "{text}");
    let (code, text) = run(&own);
    assert!(code == Some(1) && text.contains("/none.pem"), "{text}");
    let (code, text) = run(&["--listen", "127.0.0.1:0"]);
    assert!(code == Some(1) && text.contains("--api-server"), "{text}");
    let (code, text) = run(&[&own[..], &["--lease", "nowhere"]].concat());
    assert!(code == Some(1) && text.contains("NAMESPACE/NAME"), "{text}");
}
