//! The API server as the relay follows it: one list and one watch per kind, for ever.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use control::model::Kind;
use http::{Request, StatusCode, Uri, header};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout};

use super::hold::Hold;
use super::standing::Standing;
use super::strip::strip;
use crate::resource::Resource;
use crate::serve::{Encoded, Store};

/// Objects of a page of a list.
const PAGE: usize = 500;
/// Longest page; as many objects of the largest that etcd takes would have more, and are not met.
const PAGE_BYTES_MAX: usize = 256 << 20;
/// Longest event: etcd takes no object larger than 1.5 MiB.
const EVENT_BYTES_MAX: usize = 8 << 20;
/// A watch that ended sooner, without an event, was none.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

/// Who we are to the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// The Pod's ServiceAccount.
    ServiceAccount,
    /// A kubeconfig file's current context.
    Kubeconfig(PathBuf),
    /// Nobody.
    Anonymous,
}

/// Whom to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Who we are.
    pub credentials: Credentials,
    /// Asked in this order, each when the one before fails; as the credentials say when empty.
    pub servers: Vec<Uri>,
    /// Whom the servers' certificates must come from, in PEM; as the credentials say when absent.
    pub authority: Option<PathBuf>,
}

/// When to lose patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// A connection, TLS included, may take so long.
    pub connect: Duration,
    /// An answer may take so long to begin, and a list to go on.
    pub answer: Duration,
    /// A watch is asked for this time, and given up when it says nothing until a little later: an
    /// empty kind gets no bookmarks, so silence alone proves nothing.
    pub watch: Duration,
    /// Beyond that time.
    pub silence: Duration,
    /// The first pause after a failure, and the longest.
    pub backoff: (Duration, Duration),
    /// Until the second list, when the first has lost too much to be believed.
    pub hold: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            watch: Duration::from_secs(120),
            silence: Duration::from_secs(15),
            backoff: (Duration::from_millis(500), Duration::from_secs(30)),
            hold: Duration::from_secs(20),
        }
    }
}

/// Nobody can be followed.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No ServiceAccount, or a kubeconfig that cannot be used.
    #[error("no credentials for the API server: {0}; give --kubeconfig, or run in a Pod")]
    Credentials(String),
    /// The authority cannot be read.
    #[error("{}: {problem}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// No server is named.
    #[error("no API server is named; give --api-server, --kubeconfig, or run in a Pod")]
    Nobody,
    /// A client cannot be made.
    #[error("{server}: {problem}")]
    Client {
        /// The server.
        server: Uri,
        /// What is wrong.
        problem: String,
    },
}

impl Upstream {
    /// A client for each server.
    pub(super) async fn clients(
        &self,
        times: Times,
    ) -> Result<Arc<[(Uri, Client)]>, UpstreamError> {
        let bad = |error: &dyn std::fmt::Display| UpstreamError::Credentials(error.to_string());
        let mut config = match &self.credentials {
            Credentials::ServiceAccount => Config::incluster().map_err(|error| bad(&error))?,
            Credentials::Kubeconfig(path) => {
                let file = Kubeconfig::read_from(path).map_err(|error| bad(&error))?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .map_err(|error| bad(&error))?
            }
            Credentials::Anonymous => {
                Config::new(self.servers.first().ok_or(UpstreamError::Nobody)?.clone())
            }
        };
        if let Some(path) = &self.authority {
            let unreadable = |problem: &dyn std::fmt::Display| UpstreamError::Authority {
                path: path.clone(),
                problem: problem.to_string(),
            };
            let all = CertificateDer::pem_file_iter(path)
                .and_then(|all| all.collect::<Result<Vec<_>, _>>())
                .map_err(|error| unreadable(&error))?;
            config.root_cert = Some(all.iter().map(|own| own.to_vec()).collect());
        }
        config.connect_timeout = Some(times.connect);
        // Silence is judged here, by what is asked for; and failures are counted, not hidden.
        config.read_timeout = None;
        config.default_retry = false;
        let servers = match self.servers.as_slice() {
            [] => vec![config.cluster_url.clone()],
            named => named.to_vec(),
        };
        let client = |server: Uri| {
            let mut config = config.clone();
            config.cluster_url = server.clone();
            match Client::try_from(config) {
                Ok(client) => Ok((server, client)),
                Err(error) => Err(UpstreamError::Client { server, problem: error.to_string() }),
            }
        };
        servers.into_iter().map(client).collect()
    }
}

/// Why a list or watch failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Transport(String),
    #[error("said nothing for {0:?}")]
    Silent(Duration),
    #[error("answered {code}: {message}")]
    Refused { code: StatusCode, message: String, retry_after: Option<Duration> },
    #[error("the history is lost: {0}")]
    Gone(String),
    #[error("sent what is no answer: {0}")]
    Nonsense(String),
    #[error("ended a watch at once")]
    TooShort,
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Nonsense(error.to_string())
    }
}

#[derive(Deserialize)]
struct Page<'a> {
    metadata: PageMetadata,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(rename = "continue", default)]
    rest: Option<String>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: PageMetadata,
}

fn number(version: &str) -> Result<u64, Failure> {
    let bad = || Failure::Nonsense(format!("{version:?} is no resourceVersion"));
    version.parse().map_err(|_| bad())
}

/// Follows one kind.
pub(super) struct Follower {
    pub(super) kind: Kind,
    pub(super) clients: Arc<[(Uri, Client)]>,
    pub(super) store: Arc<Store>,
    pub(super) standing: Arc<Standing>,
    pub(super) times: Times,
}

impl Follower {
    /// Lists and watches until dropped.
    pub(super) async fn run(self) {
        let mut hold = Hold::default();
        let (mut turn, mut failures) = (0_usize, 0_u32);
        let mut version = None;
        loop {
            let Some((server, client)) = self.clients.get(turn % self.clients.len().max(1)) else {
                return;
            };
            let failure = match self.go_on(client, &mut version, &mut hold, &mut failures).await {
                Ok(()) => continue,
                Err(failure) => failure,
            };
            self.standing.failed(self.kind, &format!("{server}: {failure}"));
            if let Failure::Gone(_) = failure {
                version = None;
            } else {
                turn += 1;
            }
            failures += 1;
            tokio::time::sleep(self.pause(&failure, failures)).await;
        }
    }

    /// The next list or watch.
    async fn go_on(
        &self,
        client: &Client,
        version: &mut Option<u64>,
        hold: &mut Hold,
        failures: &mut u32,
    ) -> Result<(), Failure> {
        let Some(from) = version else {
            self.standing.listing(self.kind);
            let listed = self.list(client).await?;
            *version = Some(self.take(listed, hold));
            *failures = 0;
            return Ok(());
        };
        let time = if hold.is_holding() { self.times.hold } else { self.times.watch };
        let began = Instant::now();
        let events = self.watch(client, from, time, failures).await?;
        if hold.is_holding() && began.elapsed() >= time {
            *version = None;
        } else if events == 0 && began.elapsed() < SHORTEST_WATCH.min(time) {
            return Err(Failure::TooShort);
        }
        Ok(())
    }

    /// Longer each time, between half and all of it, and never sooner than the server asked.
    fn pause(&self, failure: &Failure, failures: u32) -> Duration {
        let (least, most) = self.times.backoff;
        let pause = least.saturating_mul(1 << failures.min(10)).min(most);
        let random = RandomState::new().hash_one(failures) % 1000;
        let pause = pause.mul_f64(0.5 + random as f64 / 2000.0);
        match failure {
            Failure::Refused { retry_after: Some(asked), .. } => pause.max((*asked).min(most)),
            _ => pause,
        }
    }

    /// Takes a whole list, what it has lost beyond belief left out. Returns its version.
    fn take(&self, (list, version): (Vec<Encoded>, u64), hold: &mut Hold) -> u64 {
        let keys: Vec<String> = list.iter().map(Encoded::key).collect();
        let listed: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
        let known = self.store.versions(self.kind);
        let kept = hold.judge(known.iter().map(|(name, _)| name.as_str()), &listed);
        let replaced = self.store.replace(self.kind, &list, version, &kept);
        self.standing.listed(self.kind, replaced, hold.len());
        if hold.is_holding() {
            let (kind, lost) = (self.kind.name(), hold.len());
            tracing::warn!(kind, lost, "a list lost much of what there was; a second one decides");
        }
        version
    }

    async fn get(&self, client: &Client, path: &str) -> Result<Body, Failure> {
        let request = Request::get(path).body(Body::empty());
        let request = request.map_err(|error| Failure::Transport(error.to_string()))?;
        let answer = timeout(self.times.answer, client.send(request))
            .await
            .map_err(|_| Failure::Silent(self.times.answer))?
            .map_err(|error| Failure::Transport(chain(&error)))?;
        let code = answer.status();
        if code == StatusCode::OK {
            return Ok(answer.into_body());
        }
        let retry_after = answer.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let text = self.whole(answer.into_body()).await.unwrap_or_default();
        let message = serde_json::from_slice::<Status>(&text)
            .map_or_else(|_| "no Status object".to_owned(), |status| status.message);
        match code {
            StatusCode::GONE => Err(Failure::Gone(message)),
            _ => Err(Failure::Refused { code, message, retry_after }),
        }
    }

    /// The next bytes of `body`.
    async fn next(body: &mut Body, silence: Duration) -> Result<Option<bytes::Bytes>, Failure> {
        match timeout(silence, body.frame()).await {
            Err(_) => Err(Failure::Silent(silence)),
            Ok(None) => Ok(None),
            Ok(Some(Ok(frame))) => Ok(Some(frame.into_data().unwrap_or_default())),
            Ok(Some(Err(error))) => Err(Failure::Transport(chain(&error))),
        }
    }

    async fn whole(&self, mut body: Body) -> Result<Vec<u8>, Failure> {
        let mut text = Vec::new();
        while let Some(bytes) = Self::next(&mut body, self.times.answer).await? {
            if text.len() + bytes.len() > PAGE_BYTES_MAX {
                return Err(Failure::Nonsense(format!("more than {PAGE_BYTES_MAX} bytes")));
            }
            text.extend_from_slice(&bytes);
        }
        Ok(text)
    }

    async fn list(&self, client: &Client) -> Result<(Vec<Encoded>, u64), Failure> {
        let root = Resource::of(self.kind).path();
        let (mut list, mut version, mut rest) = (Vec::new(), None, None::<String>);
        loop {
            let path = page_path(&root, rest.as_deref());
            let text = self.whole(self.get(client, &path).await?).await?;
            let page: Page<'_> = serde_json::from_slice(&text)?;
            version.get_or_insert(number(&page.metadata.resource_version)?);
            for item in page.items.unwrap_or_default() {
                match strip(self.kind, item.get().as_bytes()) {
                    Ok(object) => list.push(object),
                    Err(error) => self.standing.refused(self.kind, &error.to_string()),
                }
            }
            rest = page.metadata.rest.filter(|token| !token.is_empty());
            if rest.is_none() {
                return Ok((list, version.unwrap_or_default()));
            }
        }
    }

    /// Watches for about `time`. Returns how many events came.
    async fn watch(
        &self,
        client: &Client,
        version: &mut u64,
        time: Duration,
        failures: &mut u32,
    ) -> Result<u64, Failure> {
        let root = Resource::of(self.kind).path();
        let seconds = time.as_secs().max(1);
        let path = format!(
            "{root}?watch=true&allowWatchBookmarks=true&resourceVersion={version}\
             &timeoutSeconds={seconds}"
        );
        let mut body = self.get(client, &path).await?;
        self.standing.watching(self.kind);
        let silence = Duration::from_secs(seconds) + self.times.silence;
        let (mut text, mut events) = (Vec::new(), 0);
        while let Some(bytes) = Self::next(&mut body, silence).await? {
            let mut from = text.len();
            text.extend_from_slice(&bytes);
            let mut done = 0;
            while let Some(end) = text[from..].iter().position(|byte| *byte == b'\n') {
                let line = &text[done..from + end];
                if !line.iter().all(u8::is_ascii_whitespace) {
                    self.event(line, version)?;
                    events += 1;
                    *failures = 0;
                }
                done = from + end + 1;
                from = done;
            }
            text.drain(..done);
            if text.len() > EVENT_BYTES_MAX {
                return Err(Failure::Nonsense(format!("an event of over {EVENT_BYTES_MAX} bytes")));
            }
        }
        match text.iter().all(u8::is_ascii_whitespace) {
            true => Ok(events),
            false => Err(Failure::Nonsense("the watch ended within an event".to_owned())),
        }
    }

    fn event(&self, line: &[u8], version: &mut u64) -> Result<(), Failure> {
        let event: Event<'_> = serde_json::from_slice(line)?;
        let text = event.object.get();
        match event.kind {
            "BOOKMARK" => {
                let bookmark: Bookmark = serde_json::from_str(text)?;
                *version = number(&bookmark.metadata.resource_version)?;
                self.store.advance(self.kind, *version);
                self.standing.bookmark(self.kind);
                return Ok(());
            }
            "ERROR" => {
                let status: Status = serde_json::from_str(text)?;
                return Err(match status.code {
                    410 => Failure::Gone(status.message),
                    code => Failure::Refused {
                        code: StatusCode::from_u16(code)
                            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
                        message: status.message,
                        retry_after: None,
                    },
                });
            }
            "ADDED" | "MODIFIED" | "DELETED" => {}
            other => return Err(Failure::Nonsense(format!("an event of type {other:?}"))),
        }
        self.standing.event(self.kind, line.len());
        let object = match strip(self.kind, text.as_bytes()) {
            Ok(object) => object,
            Err(error) => {
                self.standing.refused(self.kind, &error.to_string());
                return Ok(());
            }
        };
        *version = object.version;
        match event.kind {
            "DELETED" => {
                self.store.remove(self.kind, &object.namespace, &object.name, object.version);
            }
            _ => self.store.put(self.kind, &object),
        }
        Ok(())
    }
}

/// Where a page of a list is.
fn page_path(root: &str, rest: Option<&str>) -> String {
    let mut query = form_urlencoded::Serializer::new(format!("limit={PAGE}"));
    if let Some(token) = rest {
        query.append_pair("continue", token);
    }
    format!("{root}?{}", query.finish())
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
