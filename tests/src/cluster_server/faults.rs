//! What goes wrong with an API server's answers: planned one by one, by chance, or while watches are
//! open.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cluster::serve::{Answer, Failure, Layer};
use http::StatusCode;
use http::request::Parts;
use tokio::sync::watch;

use super::bodies;
use crate::random::Random;

/// What happens to one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request is taken, and nothing is ever said.
    Stall,
    /// After so many bytes nothing more comes, and the connection stays open.
    HalfOpen {
        /// Bytes that still come.
        after: usize,
    },
    /// A `Status` instead: 410, 429, 500, ...
    Refusal {
        /// The HTTP status.
        code: u16,
        /// Its `Retry-After`, in seconds.
        retry_after_seconds: Option<u32>,
    },
    /// Bytes that are no JSON.
    Garbage {
        /// Bytes that are still as they should be.
        after: usize,
    },
    /// The connection is closed, in the middle of an object as like as not.
    Cut {
        /// Bytes that still come.
        after: usize,
    },
    /// A few bytes at a time.
    Slow {
        /// So many.
        bytes: usize,
        /// So long apart.
        pause: Duration,
    },
    /// A list that misses a third of its objects, and does not say so.
    Lossy,
}

impl Fault {
    /// 429, to be asked again after a second.
    pub const TOO_MANY: Self = Self::Refusal { code: 429, retry_after_seconds: Some(1) };
    /// 410: the past is lost.
    pub const GONE: Self = Self::Refusal { code: 410, retry_after_seconds: None };
    /// 500.
    pub const INTERNAL: Self = Self::Refusal { code: 500, retry_after_seconds: None };

    /// Its name, for counts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stall => "stall",
            Self::HalfOpen { .. } => "half-open",
            Self::Refusal { .. } => "refusal",
            Self::Garbage { .. } => "garbage",
            Self::Cut { .. } => "cut",
            Self::Slow { .. } => "slow",
            Self::Lossy => "lossy",
        }
    }
}

/// Which requests are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct On {
    /// Watches (true) or all others (false); both when absent.
    pub watch: Option<bool>,
    /// Only watches that begin with a list.
    pub streamed_lists: bool,
    /// The last word of the path, `pods`; every when absent.
    pub plural: Option<&'static str>,
}

impl On {
    /// Every request.
    pub const ALL: Self = Self { watch: None, streamed_lists: false, plural: None };
    /// Every list.
    pub const LISTS: Self = Self { watch: Some(false), ..Self::ALL };
    /// Every watch.
    pub const WATCHES: Self = Self { watch: Some(true), ..Self::ALL };
    /// Every list that is asked for as a stream.
    pub const STREAMED_LISTS: Self = Self { streamed_lists: true, ..Self::ALL };

    /// The same for one kind.
    #[must_use]
    pub fn of(self, plural: &'static str) -> Self {
        Self { plural: Some(plural), ..self }
    }

    fn holds(&self, parts: &Parts) -> bool {
        let query = parts.uri.query().unwrap_or_default();
        self.watch.is_none_or(|watch| watch == is_watch(parts))
            && (!self.streamed_lists || query.contains("sendInitialEvents=true"))
            && self.plural.is_none_or(|plural| parts.uri.path().ends_with(plural))
    }
}

fn is_watch(parts: &Parts) -> bool {
    let query = parts.uri.query().unwrap_or_default();
    query.split('&').any(|term| ["watch=true", "watch=1", "watch"].contains(&term))
}

/// What happens to watches that are open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Live {
    /// Nothing.
    #[default]
    Flowing,
    /// Half-open: nothing comes, and nothing ends.
    Silent,
    /// They end in mid-object.
    Cut,
    /// They end with bytes that are no JSON.
    Garbage,
}

struct Plan {
    random: Random,
    /// Each meets the next request that it is meant for.
    next: VecDeque<(On, Fault)>,
    /// Each meets every request that it is meant for.
    lasting: Vec<(On, Fault)>,
    /// One of these meets one request in so many.
    chance: Option<(usize, Vec<Fault>)>,
    met: BTreeMap<&'static str, u64>,
}

/// All that goes wrong.
pub struct Faults {
    plan: Mutex<Plan>,
    live: watch::Sender<Live>,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        let random = Random::new(seed);
        let (next, lasting, met) = (VecDeque::new(), Vec::new(), BTreeMap::new());
        let plan = Plan { random, next, lasting, chance: None, met };
        Self { plan: Mutex::new(plan), live: watch::channel(Live::Flowing).0 }
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request that `on` means meets `fault`; several form a queue.
    pub fn once(&self, on: On, fault: Fault) {
        self.plan().next.push_back((on, fault));
    }

    /// Every request that `on` means meets `fault`, until [`Self::clear`].
    pub fn always(&self, on: On, fault: Fault) {
        self.plan().lasting.push((on, fault));
    }

    /// One request in `times` meets one of `faults`, by the seed.
    ///
    /// # Panics
    /// `times` is 0, or there are no faults.
    pub fn by_chance(&self, times: usize, faults: Vec<Fault>) {
        assert!(times > 0 && !faults.is_empty(), "chance needs something to choose from");
        self.plan().chance = Some((times, faults));
    }

    /// What happens to open watches from now on.
    pub fn live(&self, live: Live) {
        self.live.send_replace(live);
    }

    /// Nothing goes wrong any more; what is under way goes on as it began.
    pub fn clear(&self) {
        let mut plan = self.plan();
        plan.next.clear();
        plan.lasting.clear();
        plan.chance = None;
        drop(plan);
        self.live(Live::Flowing);
    }

    /// How often each fault was met, by name.
    #[must_use]
    pub fn met(&self) -> BTreeMap<&'static str, u64> {
        self.plan().met.clone()
    }

    /// What this request meets.
    fn draw(&self, parts: &Parts) -> Option<Fault> {
        let mut plan = self.plan();
        let planned = plan.next.iter().position(|(on, _)| on.holds(parts));
        let fault = match planned {
            Some(index) => plan.next.remove(index).map(|(_, fault)| fault),
            None => plan.lasting.iter().find(|(on, _)| on.holds(parts)).map(|(_, fault)| *fault),
        };
        let fault = fault.or_else(|| {
            let Plan { random, chance, .. } = &mut *plan;
            let (times, faults) = chance.as_ref()?;
            random.one_in(*times).then(|| *random.pick(faults))
        })?;
        *plan.met.entry(fault.name()).or_default() += 1;
        Some(fault)
    }

    pub(super) fn layer(self: &Arc<Self>) -> Layer {
        let this = Arc::clone(self);
        Arc::new(move |parts, answer| {
            let this = Arc::clone(&this);
            Box::pin(async move { this.spoil(&parts, answer).await })
        })
    }

    async fn spoil(&self, parts: &Parts, answer: Answer) -> Answer {
        let answer = match self.draw(parts) {
            None => answer,
            Some(Fault::Stall) => std::future::pending().await,
            Some(Fault::Refusal { code, retry_after_seconds }) => {
                refusal(code, retry_after_seconds)
            }
            Some(Fault::HalfOpen { after }) => answer.map(|body| bodies::half_open(body, after)),
            Some(Fault::Garbage { after }) => answer.map(|body| bodies::garbage(body, after)),
            Some(Fault::Cut { after }) => answer.map(|body| bodies::cut(body, after)),
            Some(Fault::Slow { bytes, pause }) => {
                answer.map(|body| bodies::slow(body, bytes, pause))
            }
            Some(Fault::Lossy) if is_watch(parts) => answer,
            Some(Fault::Lossy) => bodies::lossy(answer).await,
        };
        if !is_watch(parts) {
            return answer;
        }
        let live = self.live.subscribe();
        answer.map(|body| bodies::live(body, live))
    }
}

fn refusal(code: u16, retry_after_seconds: Option<u32>) -> Answer {
    let code = StatusCode::from_u16(code).expect("an HTTP status");
    let reason = match code {
        StatusCode::GONE => "Expired",
        StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
        StatusCode::UNAUTHORIZED => "Unauthorized",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
        _ => "InternalError",
    };
    let message = format!("a fault of the test: {code}");
    Failure { code, reason, message, retry_after_seconds, go_on: None }.answer()
}
