//! `xskiff relay`: a process of its own beside the nodes' ones, configured by flags alone.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use cluster::relay::{Credentials, Relay, RelayError, Settings, Times, TlsFiles, Upstream};
use cluster::serve::{HistoryLimits, Limits};
use hyper::Uri;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// Files open beside connections: listeners, certificates, connections to API servers.
const OTHER_FILES: u64 = 256;

/// Of `relay`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Where nodes ask.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:8443")]
    pub listen: SocketAddr,
    /// Where /metrics, /livez and /readyz are served, without TLS.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics_listen: Option<SocketAddr>,
    /// The certificate that nodes see, PEM; read again when it changes.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// Nodes must show a certificate of this authority, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub client_authority: Option<PathBuf>,
    /// Nodes must show one of these bearer tokens, one a line; read again when it changes.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Serve plain HTTP on an address that others reach.
    #[arg(long, conflicts_with = "tls_certificate")]
    pub plain: bool,
    /// Serve whoever connects, on an address that others reach.
    #[arg(long, conflicts_with_all = ["token_file", "client_authority"])]
    pub anyone: bool,
    /// Follow the API server at this address; repeat for more, the preferred one first. Default:
    /// as the credentials say.
    #[arg(long = "api-server", value_name = "URL")]
    pub api_servers: Vec<Uri>,
    /// Follow API servers as this kubeconfig file says. Default: the Pod's ServiceAccount.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Whom the API servers' certificates must come from, PEM. Default: as the credentials say.
    #[arg(long, value_name = "FILE")]
    pub authority: Option<PathBuf>,
    /// Watches at most; a node has one for each of six kinds.
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().watches)]
    pub watches: usize,
    /// Changes of each kind that are kept for those who come back.
    #[arg(long, value_name = "NUMBER", default_value_t = HistoryLimits::default().events)]
    pub history: usize,
}

/// The relay does not run.
#[derive(Debug, thiserror::Error)]
pub enum RelayProcessError {
    /// Flags that are not safe together.
    #[error("{0}")]
    Unsafe(&'static str),
    /// It cannot start.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// No threads, signals or files.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> RelayProcessError {
    move |source| RelayProcessError::System { action, source }
}

/// What the flags say.
///
/// # Errors
/// [`RelayProcessError::Unsafe`]: objects of the cluster would be open to others.
pub fn settings(arguments: Arguments) -> Result<Settings, RelayProcessError> {
    let known = arguments.token_file.is_some() || arguments.client_authority.is_some();
    if !arguments.listen.ip().is_loopback() {
        if arguments.tls_certificate.is_none() && !arguments.plain {
            let text = "objects would be sent in clear: give --tls-certificate and --tls-key, \
                listen on loopback, or say --plain";
            return Err(RelayProcessError::Unsafe(text));
        }
        if !known && !arguments.anyone {
            let text = "anybody could read the cluster's objects: give --token-file or \
                --client-authority, listen on loopback, or say --anyone";
            return Err(RelayProcessError::Unsafe(text));
        }
    }
    let client_authority = arguments.client_authority;
    let tls = arguments.tls_certificate.zip(arguments.tls_key);
    Ok(Settings {
        listen: arguments.listen,
        metrics: arguments.metrics_listen,
        tls: tls.map(|(certificate, key)| TlsFiles { certificate, key, client_authority }),
        token_file: arguments.token_file,
        upstream: Upstream {
            credentials: match arguments.kubeconfig {
                Some(path) => Credentials::Kubeconfig(path),
                None => Credentials::ServiceAccount,
            },
            servers: arguments.api_servers,
            authority: arguments.authority,
        },
        times: Times::default(),
        limits: Limits {
            connections: arguments.watches + Limits::default().lists,
            watches: arguments.watches,
            ..Limits::default()
        },
        history: HistoryLimits { events: arguments.history, ..HistoryLimits::default() },
    })
}

/// Relays until SIGTERM or SIGINT.
///
/// # Errors
/// [`RelayProcessError`], before anything is served.
pub fn run(arguments: Arguments) -> Result<(), RelayProcessError> {
    crate::node::launch::start_log();
    let settings = settings(arguments)?;
    allow_files(settings.limits.connections as u64 + OTHER_FILES);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("xskiff-relay")
        .build()
        .map_err(system("start threads"))?;
    runtime.block_on(async {
        let stop = signals().map_err(system("take signals"))?;
        let relay = Relay::start(settings).await?;
        tracing::info!(address = %relay.address(), metrics = ?relay.metrics_address(), "relaying");
        relay.until(stop).await;
        tracing::info!("ended");
        Ok(())
    })
}

/// SIGTERM or SIGINT.
fn signals() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Every connection is a file; says so when there may not be as many.
fn allow_files(wanted: u64) {
    let Ok((now, most)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let possible = wanted.min(most);
    if now < possible
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, possible, most)
    {
        tracing::warn!(%error, now, possible, "the number of open files cannot be raised");
    }
    if most < wanted {
        tracing::warn!(wanted, most, "fewer files may be open than watches are allowed");
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(words: &str) -> Result<Settings, String> {
        let words = std::iter::once("relay").chain(words.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        settings(line.arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn what_would_open_the_cluster_to_others_must_be_said() {
        assert!(parse("").unwrap_err().contains("--plain"));
        assert!(parse("--plain").unwrap_err().contains("--anyone"));
        let tls = "--tls-certificate a.pem --tls-key a.key";
        assert!(parse(tls).unwrap_err().contains("--token-file"));
        assert!(parse("--plain --anyone").is_ok());
        assert!(parse("--listen 127.0.0.1:0").is_ok());
        assert!(parse(&format!("{tls} --token-file tokens")).is_ok());
        assert!(parse("--tls-certificate a.pem").is_err(), "a certificate needs its key");
        assert!(parse(&format!("{tls} --plain")).is_err());
    }

    #[test]
    fn flags_are_settings() {
        let settings = parse(
            "--listen 127.0.0.1:8443 --metrics-listen [::]:9464 --tls-certificate a.pem \
             --tls-key a.key --client-authority ca.pem --api-server https://10.0.0.1:6443 \
             --api-server https://[fd00::1]:6443 --kubeconfig k --watches 7 --history 9",
        )
        .unwrap();
        assert_eq!(settings.upstream.servers.len(), 2);
        assert_eq!(settings.upstream.credentials, Credentials::Kubeconfig("k".into()));
        assert_eq!((settings.limits.watches, settings.history.events), (7, 9));
        assert_eq!(settings.tls.unwrap().client_authority, Some("ca.pem".into()));
    }
}
