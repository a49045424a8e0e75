//! Which servers there are, and who we are to them: decided once, before anything starts.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Where a Pod finds its ServiceAccount's token and the authority of the API servers.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// `token` and `ca.crt` in this directory.
    ServiceAccount(PathBuf),
    /// What a kubeconfig file says of its current context.
    Kubeconfig(PathBuf),
}

/// Which servers there are, and how they are spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Asked first, whichever of them is well.
    pub relays: Vec<Uri>,
    /// Asked when no relay answers, in this order.
    pub api_servers: Vec<Uri>,
    /// Who we are.
    pub credentials: Credentials,
    /// Whom servers' certificates must come from; absent: as the credentials say.
    pub ca_file: Option<PathBuf>,
    /// A connection, TLS included, may take so long.
    pub connect_timeout: Duration,
    /// An answer may take so long to begin, and a list to go on.
    pub request_timeout: Duration,
    /// Rest of a server that failed: at first, and at most.
    pub rest: (Duration, Duration),
}

/// Nobody can be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// Only the Service of the API servers is known.
    #[error(
        "the only API server known is {address} (KUBERNETES_SERVICE_HOST), which is a Service that \
         this node serves itself, so an outage could never be ended through it: name the API \
         servers' own addresses (kubernetes.api_servers, or --api-server https://ADDRESS:6443)"
    )]
    OnlyService {
        /// The Service's address.
        address: String,
    },
    /// A server is that Service.
    #[error(
        "{origin}: {server} is the API servers' own Service (KUBERNETES_SERVICE_HOST), which this \
         node serves itself, so an outage could never be ended through it: name the API servers' \
         own addresses (kubernetes.api_servers, or --api-server https://ADDRESS:6443)"
    )]
    Service {
        /// The setting.
        origin: &'static str,
        /// The server.
        server: String,
    },
    /// No server is named.
    #[error(
        "kubernetes is enabled and no API server is named: give kubernetes.api_servers, \
         kubernetes.kubeconfig, --api-server or --kubeconfig"
    )]
    Nobody,
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {}: {message}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// No credentials.
    #[error(
        "{} cannot be read: {message}: run as a Pod with a ServiceAccount, or give a kubeconfig \
         (kubernetes.kubeconfig)",
        path.display()
    )]
    ServiceAccount {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// What the environment of a Pod says.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The address of the API servers' Service, as a Pod is told.
#[must_use]
pub fn service_host(environment: Environment<'_>) -> Option<String> {
    environment("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty())
}

impl Access {
    /// What `settings` mean in this environment.
    ///
    /// # Errors
    /// [`AccessError`], naming the setting and the way out.
    pub fn settle(
        settings: &control::config::Kubernetes,
        environment: Environment<'_>,
    ) -> Result<Self, AccessError> {
        let uris = |list: &[String]| -> Vec<Uri> {
            list.iter().filter_map(|text| text.parse().ok()).collect()
        };
        let (relays, mut api_servers) = (uris(&settings.relays), uris(&settings.api_servers));
        let own = service_host(environment);
        let credentials = match &settings.kubeconfig {
            Some(path) => {
                let server = server_of(path)?;
                if api_servers.is_empty() {
                    api_servers.push(server);
                }
                Credentials::Kubeconfig(path.clone())
            }
            None => {
                if api_servers.is_empty() && relays.is_empty() {
                    return Err(match own {
                        Some(address) => AccessError::OnlyService { address },
                        None => AccessError::Nobody,
                    });
                }
                Credentials::ServiceAccount(settings.service_account.clone())
            }
        };
        let named = settings.api_servers.is_empty();
        let origin = if named { "kubernetes.kubeconfig" } else { "kubernetes.api_servers" };
        for (origin, list) in [(origin, &api_servers), ("kubernetes.relays", &relays)] {
            let is_own = |server: &&Uri| own.as_deref().is_some_and(|own| is_host(server, own));
            if let Some(server) = list.iter().find(is_own) {
                return Err(AccessError::Service { origin, server: server.to_string() });
            }
        }
        let access = Self {
            relays,
            api_servers,
            credentials,
            ca_file: settings.ca_file.clone(),
            connect_timeout: Duration::from_secs(settings.connect_timeout_seconds.into()),
            request_timeout: Duration::from_secs(settings.request_timeout_seconds.into()),
            rest: (Duration::from_secs(1), Duration::from_secs(30)),
        };
        access.check()?;
        Ok(access)
    }

    /// Whether the credentials are there, so that a start fails where it can be mended.
    fn check(&self) -> Result<(), AccessError> {
        let Credentials::ServiceAccount(directory) = &self.credentials else { return Ok(()) };
        let ca = self.ca_file.clone().unwrap_or_else(|| directory.join("ca.crt"));
        let servers = self.relays.iter().chain(&self.api_servers);
        if servers.clone().all(|server| server.scheme_str() == Some("http")) {
            return Ok(());
        }
        for path in [directory.join("token"), ca] {
            std::fs::read(&path).map_err(|error| AccessError::ServiceAccount {
                path: path.clone(),
                message: error.to_string(),
            })?;
        }
        Ok(())
    }

    /// How kube is to reach `server`, with files read anew.
    ///
    /// # Errors
    /// What cannot be read.
    pub(super) async fn config(&self, server: &Uri) -> Result<Config, String> {
        let mut config = match &self.credentials {
            Credentials::ServiceAccount(directory) => {
                let mut config = Config::new(server.clone());
                let token = directory.join("token");
                // A server without TLS is one on this machine, which needs no token.
                if server.scheme_str() == Some("https") {
                    config.auth_info.token_file = Some(token.display().to_string());
                    config.root_cert_file = Some(directory.join("ca.crt"));
                }
                config
            }
            Credentials::Kubeconfig(path) => {
                let text = Kubeconfig::read_from(path).map_err(|error| error.to_string())?;
                let options = KubeConfigOptions::default();
                let config = Config::from_custom_kubeconfig(text, &options).await;
                config.map_err(|error| error.to_string())?
            }
        };
        if let Some(file) = &self.ca_file {
            config.root_cert_file = Some(file.clone());
        }
        config.cluster_url = server.clone();
        Ok(config)
    }
}

/// The server of a kubeconfig's current context.
fn server_of(path: &Path) -> Result<Uri, AccessError> {
    let refuse = |message: String| AccessError::Kubeconfig { path: path.to_owned(), message };
    let text = Kubeconfig::read_from(path).map_err(|error| refuse(super::error::chain(&error)))?;
    let current = text.current_context.as_deref().unwrap_or_default();
    let context = text.contexts.iter().find(|context| context.name == current);
    let context = context
        .and_then(|named| named.context.as_ref())
        .ok_or_else(|| refuse(format!("it has no context {current:?}: set current-context")))?;
    let cluster = text.clusters.iter().find(|cluster| cluster.name == context.cluster);
    let server = cluster.and_then(|named| named.cluster.as_ref()?.server.as_deref());
    let server =
        server.ok_or_else(|| refuse(format!("its cluster {:?} has no server", context.cluster)))?;
    server.parse().map_err(|error| refuse(format!("its server {server:?}: {error}")))
}

/// Whether `server` is spelt as this host, which may be an address of either family.
fn is_host(server: &Uri, host: &str) -> bool {
    let own = server.host().unwrap_or_default();
    let bare = |text: &str| text.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let (own, host) = (bare(own), bare(host));
    match (own.parse::<IpAddr>(), host.parse::<IpAddr>()) {
        (Ok(own), Ok(host)) => own == host,
        // The Service's name, which the cluster's DNS resolves to the same address.
        _ => {
            own == host
                || own == "kubernetes.default.svc"
                || own.starts_with("kubernetes.default.svc.")
        }
    }
}

#[cfg(test)]
impl Access {
    /// To `servers`, whom nobody vouches for and who ask for nothing.
    pub(crate) fn in_a_test(
        servers: impl IntoIterator<Item = String>,
        timeout: Duration,
        rest: (Duration, Duration),
    ) -> Self {
        Self {
            relays: Vec::new(),
            api_servers: servers.into_iter().map(|server| server.parse().unwrap()).collect(),
            credentials: Credentials::ServiceAccount("/none".into()),
            ca_file: None,
            connect_timeout: timeout,
            request_timeout: timeout,
            rest,
        }
    }
}

#[cfg(test)]
mod tests;
