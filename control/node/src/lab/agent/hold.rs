//! Many connections at once, each made once and never again, so that one that breaks is seen.
//!
//! An idle connection does not know that its way is gone; so, when told to stop, every connection
//! that is left makes one more request, and those that are answered are counted.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;

use super::fetch::RequestBody;
use super::report::{Held, Report, Trouble};
use super::{Stop, fetch, stopped};

/// Connections opened at the same time.
const OPENING_MAX: usize = 128;

/// How long a connection may take to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the last request of every connection may take: retransmissions back off, so that a
/// connection may need seconds after an outage to notice that it is over.
const LAST_TIMEOUT: Duration = Duration::from_secs(4);

/// How often counts are said.
const REPORT_PERIOD: Duration = Duration::from_secs(1);

/// Hold many connections and count those that break.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Address and port of an HTTP server
    #[arg(long)]
    to: SocketAddr,
    /// Connections to hold
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=25_000))]
    connections: u32,
    /// How many of them ask again and again; the others ask once and stay idle
    #[arg(long, default_value_t = 0)]
    active: u32,
    /// Pause between two requests of an active one, in milliseconds
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    interval_ms: u64,
}

struct Holder {
    to: SocketAddr,
    interval: Duration,
    opening: Semaphore,
    held: Cell<Held>,
}

impl Holder {
    fn count(&self, change: impl FnOnce(&mut Held)) {
        let mut held = self.held.get();
        change(&mut held);
        self.held.set(held);
    }
}

pub(super) async fn run(arguments: &Arguments, stop: Stop) -> anyhow::Result<()> {
    let holder = Rc::new(Holder {
        to: arguments.to,
        interval: Duration::from_millis(arguments.interval_ms),
        opening: Semaphore::new(OPENING_MAX),
        held: Cell::new(Held { wanted: arguments.connections.into(), ..Held::default() }),
    });
    let tasks = LocalSet::new();
    for number in 0..arguments.connections {
        tasks.spawn_local(hold(Rc::clone(&holder), number < arguments.active, stop.clone()));
    }
    let reporting = async {
        loop {
            tokio::time::sleep(REPORT_PERIOD).await;
            Report::Held(holder.held.get()).say();
        }
    };
    let until_stopped = async {
        tokio::select! {
            () = reporting => {}
            () = stopped(stop) => {}
        }
    };
    tasks.run_until(until_stopped).await;
    // Every connection that is left is asked for the last time, and its task ends.
    let _ = tokio::time::timeout(LAST_TIMEOUT * 2, tasks).await;
    Report::Held(holder.held.get()).say();
    Ok(())
}

async fn hold(holder: Rc<Holder>, active: bool, stop: Stop) {
    let opened = {
        // The semaphore is never closed.
        let Ok(_permit) = holder.opening.acquire().await else { return };
        fetch::open(holder.to, OPEN_TIMEOUT).await
    };
    let Ok((mut sender, connection)) = opened else {
        return holder.count(|held| held.refused += 1);
    };
    holder.count(|held| {
        held.opened += 1;
        held.alive += 1;
    });
    let asking = async {
        ask_until_stopped(&holder, &mut sender, active, stop).await;
        let last = answered(&holder, &mut sender);
        if tokio::time::timeout(LAST_TIMEOUT, last).await.unwrap_or(false) {
            holder.count(|held| held.answered_last += 1);
        }
    };
    let ended = tokio::select! {
        ended = connection => ended,
        () = asking => return,
    };
    let reset = ended.is_err_and(|error| fetch::trouble(&error) == Trouble::Reset);
    holder.count(|held| {
        held.alive -= 1;
        if reset {
            held.resets += 1;
        } else {
            held.ended += 1;
        }
    });
}

/// Never cut off in the middle of a request, for that would close the connection.
async fn ask_until_stopped(
    holder: &Holder,
    sender: &mut SendRequest<RequestBody>,
    active: bool,
    stop: Stop,
) {
    while answered(holder, sender).await {
        if !active {
            return stopped(stop).await;
        }
        tokio::select! {
            () = tokio::time::sleep(holder.interval) => {}
            () = stopped(stop.clone()) => return,
        }
    }
    // Only the connection itself knows how it ends.
    std::future::pending::<()>().await;
}

async fn answered(holder: &Holder, sender: &mut SendRequest<RequestBody>) -> bool {
    let answered = fetch::ask(sender, holder.to).await.is_ok();
    holder.count(|held| held.requests += u64::from(answered));
    answered
}
