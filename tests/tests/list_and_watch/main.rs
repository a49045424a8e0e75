//! The API server that tests stand on, with its faults, and the relay between it and nodes.

mod deploy;
mod faults;
mod leader;
mod process;
mod relay;
mod synthetic;

use std::time::Duration;

use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::{Client, Config};
use serde_json::Value;
use xskiff_tests::cluster_server::{Authority, ClusterServer};

/// Nothing here takes longer on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn client(server: &ClusterServer, authority: Option<&Authority>) -> Client {
    let mut config = Config::new(server.url().parse().expect("a URL"));
    // What fails is to be seen, not asked for again.
    config.default_retry = false;
    if let Some(authority) = authority {
        config.root_cert = Some(vec![certificate(authority)]);
    }
    Client::try_from(config).expect("a client")
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The authority's certificate, in DER.
fn certificate(authority: &Authority) -> Vec<u8> {
    let pem = authority.pem();
    let lines: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    from_base64(&lines)
}

/// As kubeconfig files hold what is binary (RFC 4648, section 4).
fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
        let word = word << (8 * (3 - group.len()));
        for place in 0..4 {
            let value = (word >> (18 - 6 * place) & 63) as usize;
            text.push(if place <= group.len() { char::from(ALPHABET[value]) } else { '=' });
        }
    }
    text
}

fn from_base64(text: &str) -> Vec<u8> {
    let mut bits = 0_u32;
    let mut number = 0;
    let mut bytes = Vec::new();
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let value = ALPHABET.iter().position(|own| *own == byte).expect("base64");
        bits = bits << 6 | u32::try_from(value).expect("below 64");
        number += 6;
        if number >= 8 {
            number -= 8;
            bytes.push(u8::try_from(bits >> number & 0xff).expect("a byte"));
        }
    }
    bytes
}

/// An answer, as far as it came.
#[derive(Debug)]
struct Got {
    code: u16,
    retry_after: Option<String>,
    bytes: Vec<u8>,
    /// Whether the body ended as it should.
    whole: bool,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).expect("JSON")
    }
}

/// Asks for `path`; `None` when there was no answer, or no end of it, in `patience`.
async fn get(client: &Client, path: &str, patience: Duration) -> Option<Got> {
    let asking = async {
        let request = http::Request::get(path).body(Body::empty()).expect("a request");
        let answer = client.send(request).await.expect("an answer");
        let code = answer.status().as_u16();
        let retry_after = answer.headers().get("retry-after").cloned();
        let retry_after = retry_after.map(|value| value.to_str().expect("text").to_owned());
        let mut body = answer.into_body();
        let mut got = Got { code, retry_after, bytes: Vec::new(), whole: true };
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => got.bytes.extend(frame.into_data().unwrap_or_default()),
                Err(_) => {
                    got.whole = false;
                    break;
                }
            }
        }
        got
    };
    tokio::time::timeout(patience, asking).await.ok()
}
