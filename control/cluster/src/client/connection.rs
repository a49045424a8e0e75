//! A client of one server, whose connections notice that the server's machine is gone.
//!
//! A machine that vanishes closes nothing: a watch on it is as quiet as one without events, for as
//! long as a watch may be quiet. So the kernel asks on quiet connections whether anybody is there (TCP
//! keep-alive, RFC 9293, 3.8.4), and gives up those whose bytes are not acknowledged
//! (`TCP_USER_TIMEOUT`, tcp(7)).

use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Builder;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{ClientBuilder, ConfigExt as _};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

use super::error::chain;

/// Nobody is there who says nothing for so many times what a connection may take to be made.
const PATIENCES: u32 = 4;

/// A client that reaches its server as `config` says: connections take `patience` at most to be made,
/// TLS included, and are given up when nobody is there for four times that.
///
/// # Errors
/// What cannot be used: credentials, or a proxy.
pub(super) fn client(config: &Config, patience: Duration) -> Result<Client, String> {
    if let Some(proxy) = &config.proxy_url {
        return Err(format!(
            "a proxy, {proxy}, is asked for (the kubeconfig's proxy-url, or HTTPS_PROXY), and none is \
             supported: name the API servers' own addresses and take it out"
        ));
    }
    build(config, patience).map_err(|error| chain(&error))
}

fn build(config: &Config, patience: Duration) -> Result<Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(patience));
    tcp.set_keepalive_interval(Some(patience));
    tcp.set_keepalive_retries(Some(PATIENCES - 1));
    tcp.set_tcp_user_timeout(Some(patience * PATIENCES));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(Some(patience));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(Builder::new(TokioExecutor::new()).build(connector));
    Ok(ClientBuilder::new(service, config.default_namespace.clone()).build())
}
