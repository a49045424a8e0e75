//! `xskiff relay`: a process of its own beside the nodes' ones, configured by flags alone.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use cluster::client::{Access, AccessError};
use cluster::relay::writes::{ElectionTimes, LeaseName, Rates, WriteSettings};
use cluster::relay::{Relay, RelayError, Settings, Times, TlsFiles};
use cluster::serve::{HistoryLimits, Limits};
use control::config::{Kubernetes, check_server};
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
    /// Follow the API server at this address, never its Service's; repeat for more, the preferred
    /// one first. Default: as the kubeconfig file says.
    #[arg(long = "api-server", value_name = "URL")]
    pub api_servers: Vec<String>,
    /// Follow API servers as this kubeconfig file says. Default: the Pod's ServiceAccount.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Whom the API servers' certificates must come from, PEM. Default: as the credentials say.
    #[arg(long, value_name = "FILE")]
    pub authority: Option<PathBuf>,
    /// For an answer of the API server to begin, and for a list to go on, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = Kubernetes::default().request_timeout_seconds,
          value_parser = clap::value_parser!(u32).range(1..=600))]
    pub request_timeout: u32,
    /// Seconds without a byte after which a watch of the API server is given up and asked for anew:
    /// all nodes lag for so long where a connection is half open.
    #[arg(long, value_name = "SECONDS", default_value_t = 75,
          value_parser = clap::value_parser!(u16).range(4..=3600))]
    pub silence: u16,
    /// The Lease by which relays agree on a leader, which alone writes Events about objects that
    /// nodes cannot use as they are.
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "xskiff/xskiff-relay")]
    pub lease: String,
    /// Write nothing to the API server: no Lease, no Events.
    #[arg(long)]
    pub read_only: bool,
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
    /// An API server that is none.
    #[error("--api-server {server}: wanted {wanted}")]
    ApiServer {
        /// As it was given.
        server: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A Lease that is none.
    #[error("--lease {lease}: wanted NAMESPACE/NAME, such as xskiff/xskiff-relay")]
    Lease {
        /// As it was given.
        lease: String,
    },
    /// No API server can be followed.
    #[error(transparent)]
    Access(#[from] AccessError),
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

/// What the flags say, in a process with this environment.
///
/// # Errors
/// [`RelayProcessError::Unsafe`]: objects of the cluster would be open to others;
/// [`RelayProcessError::Access`], [`RelayProcessError::ApiServer`]: nobody can be followed.
pub fn settings(
    arguments: Arguments,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Settings, RelayProcessError> {
    check_openness(&arguments)?;
    let upstream = access(&arguments, environment)?;
    let writes = match arguments.read_only {
        true => None,
        false => Some(write_settings(&arguments.lease)?),
    };
    let client_authority = arguments.client_authority;
    let tls = arguments.tls_certificate.zip(arguments.tls_key);
    Ok(Settings {
        listen: arguments.listen,
        metrics: arguments.metrics_listen,
        tls: tls.map(|(certificate, key)| TlsFiles { certificate, key, client_authority }),
        token_file: arguments.token_file,
        upstream,
        times: Times { silence: Duration::from_secs(arguments.silence.into()), ..Times::default() },
        limits: Limits {
            connections: arguments.watches + Limits::default().lists,
            watches: arguments.watches,
            ..Limits::default()
        },
        history: HistoryLimits { events: arguments.history, ..HistoryLimits::default() },
        writes,
    })
}

/// How it takes part in who leads.
fn write_settings(lease: &str) -> Result<WriteSettings, RelayProcessError> {
    let is_word = |text: &str| {
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&text.len()) && text.bytes().all(legal)
    };
    let (namespace, name) = lease
        .split_once('/')
        .filter(|(namespace, name)| is_word(namespace) && name.split('.').all(is_word))
        .ok_or_else(|| RelayProcessError::Lease { lease: lease.to_owned() })?;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_err(system("read the host's name"))?;
    // The same host's next process is another: what the one before holds is not its own.
    let identity = format!("{}_{:016x}", host.trim(), fastrand::u64(..));
    Ok(WriteSettings {
        identity,
        lease: LeaseName { namespace: namespace.to_owned(), name: name.to_owned() },
        times: ElectionTimes::default(),
        rates: Rates::default(),
    })
}

/// A relay is told of servers as a node is, and reaches them in the same way.
fn access(
    arguments: &Arguments,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Access, RelayProcessError> {
    for server in &arguments.api_servers {
        check_server(server)
            .map_err(|wanted| RelayProcessError::ApiServer { server: server.clone(), wanted })?;
    }
    let of_node = Kubernetes {
        api_servers: arguments.api_servers.clone(),
        kubeconfig: arguments.kubeconfig.clone(),
        ca_file: arguments.authority.clone(),
        request_timeout_seconds: arguments.request_timeout,
        ..Kubernetes::default()
    };
    Ok(Access::settle(&of_node, environment)?)
}

fn check_openness(arguments: &Arguments) -> Result<(), RelayProcessError> {
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
    Ok(())
}

/// Relays until SIGTERM or SIGINT.
///
/// # Errors
/// [`RelayProcessError`], before anything is served.
pub fn run(arguments: Arguments) -> Result<(), RelayProcessError> {
    crate::node::launch::start_log();
    let settings = settings(arguments, &|name| std::env::var(name).ok())?;
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
    use cluster::client::Credentials;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(words: &str) -> Result<Settings, String> {
        let words = std::iter::once("relay").chain(words.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        settings(line.arguments, &|_| None).map_err(|error| error.to_string())
    }

    /// A kubeconfig file, which names a server.
    fn kubeconfig(directory: &std::path::Path) -> String {
        let path = directory.join("kubeconfig");
        let text = "{apiVersion: v1, kind: Config, current-context: a, \
            contexts: [{name: a, context: {cluster: c, user: u}}], \
            clusters: [{name: c, cluster: {server: \"https://10.0.0.9:6443\"}}], \
            users: [{name: u, user: {token: secret}}]}";
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    #[test]
    fn what_would_open_the_cluster_to_others_must_be_said() {
        assert!(parse("").unwrap_err().contains("--plain"));
        assert!(parse("--plain").unwrap_err().contains("--anyone"));
        let tls = "--tls-certificate a.pem --tls-key a.key";
        assert!(parse(tls).unwrap_err().contains("--token-file"));
        let directory = tempfile::tempdir().unwrap();
        let from = format!("--kubeconfig {}", kubeconfig(directory.path()));
        assert!(parse(&format!("{from} --plain --anyone")).is_ok());
        assert!(parse(&format!("{from} --listen 127.0.0.1:0")).is_ok());
        assert!(parse(&format!("{from} {tls} --token-file tokens")).is_ok());
        assert!(parse("--tls-certificate a.pem").is_err(), "a certificate needs its key");
        assert!(parse(&format!("{tls} --plain")).is_err());
    }

    #[test]
    fn two_processes_of_a_host_are_two_and_a_relay_may_write_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let words = format!("--listen 127.0.0.1:0 --kubeconfig {}", kubeconfig(directory.path()));
        let own = || parse(&words).unwrap().writes.unwrap().identity;
        assert_ne!(own(), own());
        assert!(parse(&format!("{words} --read-only")).unwrap().writes.is_none());
        assert_eq!(
            parse(&format!("{words} --lease a/b.c")).unwrap().writes.unwrap().lease.name,
            "b.c"
        );
        for lease in ["a", "/b", "a/", "a/b/c", "A/b"] {
            assert!(parse(&format!("{words} --lease {lease}")).unwrap_err().contains("NAMESPACE"));
        }
    }

    #[test]
    fn api_servers_are_never_reached_through_their_own_service_or_in_clear() {
        let words = "relay --listen 127.0.0.1:0";
        let in_pod =
            |name: &str| (name == "KUBERNETES_SERVICE_HOST").then(|| "10.96.0.1".to_owned());
        let settle = |more: &str| {
            let words = words.split(' ').chain(more.split_whitespace());
            let line = Line::try_parse_from(words).unwrap();
            settings(line.arguments, &in_pod).unwrap_err().to_string()
        };
        assert!(settle("").contains("--api-server https://ADDRESS:6443"));
        assert!(settle("--api-server https://10.96.0.1").contains("own Service"));
        assert!(settle("--api-server http://10.0.0.1:6443").contains("without TLS"));
    }

    #[test]
    fn flags_are_settings() {
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = kubeconfig(directory.path());
        let settings = parse(&format!(
            "--listen 127.0.0.1:8443 --metrics-listen [::]:9464 --tls-certificate a.pem \
             --tls-key a.key --client-authority ca.pem --api-server https://10.0.0.1:6443 \
             --api-server https://[fd00::1]:6443 --kubeconfig {kubeconfig} --watches 7 --history 9 \
             --request-timeout 3 --silence 9",
        ))
        .unwrap();
        assert_eq!(settings.upstream.api_servers.len(), 2);
        assert_eq!(settings.upstream.credentials, Credentials::Kubeconfig(kubeconfig.into()));
        assert_eq!((settings.limits.watches, settings.history.events), (7, 9));
        assert_eq!(settings.upstream.request_timeout.as_secs(), 3);
        assert_eq!(settings.times.silence.as_secs(), 9);
        let lease = settings.writes.unwrap().lease;
        assert_eq!((&*lease.namespace, &*lease.name), ("xskiff", "xskiff-relay"));
        assert_eq!(settings.tls.unwrap().client_authority, Some("ca.pem".into()));
    }
}
