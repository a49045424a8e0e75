//! Where the cluster comes from: a folder of manifests, API servers, or nowhere; and the wait for
//! its first whole state, before which no policy would be in force.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cluster::client::{Access, AccessError};
use cluster::{feed, follow};
use control::config::Config;
use tokio::sync::{mpsc, watch};

use super::STATUS_REQUESTS_MAX;
use super::manifests::{RefusedAtStart, watch_folder};
use crate::http::{self, HttpServer, Readiness};
use crate::privileges;

/// How often what is waited for is said.
const SAY: Duration = Duration::from_secs(5);
/// How long a snapshot may take to be read before the wait is told.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How often probes are told.
const TELL: Duration = Duration::from_millis(200);

/// What the command line says of it, which outranks any file's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--manifests`.
    pub manifests: Option<PathBuf>,
    /// `--api-server`.
    pub api_servers: Vec<String>,
    /// `--kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
}

impl Overrides {
    /// `config` as it is meant in a process that was started so.
    pub fn apply(&self, config: &mut Config) {
        if self.manifests.is_some() {
            config.manifests.clone_from(&self.manifests);
        }
        if !self.api_servers.is_empty() {
            config.kubernetes.enabled = true;
            config.kubernetes.api_servers.clone_from(&self.api_servers);
        }
        if self.kubeconfig.is_some() {
            config.kubernetes.enabled = true;
            config.kubernetes.kubeconfig.clone_from(&self.kubeconfig);
        }
    }
}

/// The cluster cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The manifests are refused.
    #[error(transparent)]
    Manifests(#[from] RefusedAtStart),
    /// No API server can be followed.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// No thread.
    #[error("cannot start the thread that follows API servers: {0}")]
    Thread(std::io::Error),
    /// Metrics and probes.
    #[error(transparent)]
    Http(#[from] http::HttpError),
}

/// What keeps the cluster followed; ends when dropped.
#[derive(Debug, Default)]
pub struct Followed {
    follower: Option<follow::Handle>,
}

/// Starts to follow what `config` names.
///
/// # Errors
/// [`SourceError`], naming the setting and the way out.
pub async fn follow_cluster(config: &Config, node: feed::Sender) -> Result<Followed, SourceError> {
    if config.kubernetes.enabled {
        let environment = |name: &str| std::env::var(name).ok();
        let access = Access::settle(&config.kubernetes, &environment)?;
        let servers: Vec<String> =
            access.relays.iter().chain(&access.api_servers).map(ToString::to_string).collect();
        tracing::info!(?servers, "API servers are followed");
        let settings = follow::Settings::new(&config.kubernetes, access);
        // Its thread begins with what the thread has that starts it.
        let start = move || {
            privileges::drop_all();
            follow::start(settings, node)
        };
        let started = std::thread::Builder::new().spawn(start).map_err(SourceError::Thread)?.join();
        let follower = started
            .unwrap_or_else(|_| Err(std::io::Error::other("it panicked")))
            .map_err(SourceError::Thread)?;
        return Ok(Followed { follower: Some(follower) });
    }
    if let Some(folder) = &config.manifests {
        watch_folder(folder.clone(), node).await?;
    }
    Ok(Followed::default())
}

impl Followed {
    /// Waits until the whole cluster is known, unless `stop` is ready first; gives whether it is. What
    /// comes meanwhile is given to `take`, so that little is left to do in the end. Probes are
    /// answered at `probes`, where nobody else answers them: the node lives, and is not ready.
    ///
    /// # Errors
    /// [`SourceError::Http`] when probes cannot be served.
    pub async fn complete(
        &self,
        probes: Option<SocketAddr>,
        stop: impl Future<Output = ()>,
        cluster: &mut feed::Receiver,
        mut take: impl FnMut(feed::Changes),
    ) -> Result<bool, SourceError> {
        let Some(follower) = &self.follower else { return Ok(true) };
        let reporter = follower.reporter();
        let mut completed = std::pin::pin!(reporter.completed());
        let mut stop = std::pin::pin!(stop);
        let told_from = tokio::time::Instant::now() + AT_ONCE;
        loop {
            tokio::select! {
                () = &mut completed => return Ok(true),
                Ok(()) = cluster.changed() => take(cluster.take()),
                () = &mut stop => return Ok(false),
                () = tokio::time::sleep_until(told_from) => break,
            }
        }
        let (readiness, _server) = probe_server(probes)?;
        let mut said = tokio::time::interval(SAY);
        let mut told = tokio::time::interval(TELL);
        loop {
            tokio::select! {
                () = &mut completed => return Ok(true),
                Ok(()) = cluster.changed() => take(cluster.take()),
                () = &mut stop => return Ok(false),
                _ = told.tick() => {
                    readiness.send_replace(Readiness::NotReady(waiting(&reporter.waits_for())));
                }
                _ = said.tick() => tracing::warn!("{}", waiting(&reporter.waits_for())),
            }
        }
    }
}

fn waiting(kinds: &str) -> String {
    format!("nothing is served before the whole cluster is known: waiting for {kinds}")
}

/// Probes before there is a node.
fn probe_server(
    address: Option<SocketAddr>,
) -> Result<(watch::Sender<Readiness>, Option<HttpServer>), http::HttpError> {
    let (readiness, ready) = watch::channel(Readiness::NotReady(waiting("API servers")));
    let (status, _) = mpsc::channel(STATUS_REQUESTS_MAX);
    let sources = http::Sources { stalled_workers: Arc::new(Vec::new), readiness: ready, status };
    let listening = address.map(http::listen).transpose()?;
    let server = listening.map(|listening| http::start(listening, sources)).transpose()?;
    Ok((readiness, server))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_outranks_the_file_and_turns_following_on() {
        let mut config = Config::default();
        Overrides::default().apply(&mut config);
        assert_eq!(config, Config::default());
        let overrides = Overrides {
            api_servers: vec!["https://10.0.0.1:6443".into()],
            kubeconfig: Some("/etc/kubeconfig".into()),
            ..Overrides::default()
        };
        overrides.apply(&mut config);
        assert!(config.kubernetes.enabled);
        assert_eq!(config.kubernetes.api_servers, ["https://10.0.0.1:6443"]);
        assert_eq!(config.kubernetes.kubeconfig, Some("/etc/kubeconfig".into()));
    }
}
