//! The server before real clients: kube's, and plain bytes where a client would hide the protocol.

mod conversations;
mod following;
mod model;
mod watcher;

use std::sync::Arc;
use std::time::Duration;

use control::model::Kind;
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::{Client, Config};
use serde_json::{Value, json};

use super::*;

/// Nothing here takes longer on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A pod as the API server has it, as far as tests look.
pub fn pod(namespace: &str, name: &str, node: &str) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": { "name": name, "namespace": namespace, "labels": { "app": name } },
        "spec": { "nodeName": node, "containers": [] },
    })
}

/// A server of an empty cluster, and its store.
pub async fn serving(change: impl FnOnce(&mut Options)) -> (Server, Arc<Store>) {
    serving_store(Store::numbering(HistoryLimits::default()), change).await
}

pub async fn serving_store(
    store: Store,
    change: impl FnOnce(&mut Options),
) -> (Server, Arc<Store>) {
    let store = Arc::new(store);
    let mut options = Options::plain("127.0.0.1:0".parse().unwrap());
    change(&mut options);
    (start(options, Arc::clone(&store)).await.unwrap(), store)
}

pub fn client(server: &Server) -> Client {
    let uri = format!("http://{}", server.address()).parse().unwrap();
    let mut config = Config::new(uri);
    // What is refused is to be seen, not asked for again for minutes.
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

/// Status code and text of an answer to `GET path`.
pub async fn get(client: &Client, path: &str) -> (u16, String) {
    let request = http::Request::get(path).body(Body::empty()).unwrap();
    let answer = client.send(request).await.unwrap();
    let code = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (code, String::from_utf8(bytes.to_vec()).unwrap())
}

/// The same as JSON.
pub async fn get_json(client: &Client, path: &str) -> (u16, Value) {
    let (code, text) = get(client, path).await;
    (code, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

/// Names of a list's items.
pub fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("items");
    items.iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

pub fn fill_pods(store: &Store, number: usize) {
    for index in 0..number {
        store.set(Kind::Pod, pod("shop", &format!("p{index:03}"), "n1")).unwrap();
    }
}

/// Waits until `is` holds; a change is noticed within milliseconds.
pub async fn until(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..10_000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("{what} did not come true");
}
