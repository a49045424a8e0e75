//! Many connections at once, each made once and never again, so that one that breaks is seen.
//!
//! An idle connection does not know that its way is gone; so, when told to stop, every connection
//! that is left makes one more request, and those that are answered are counted.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use hyper::client::conn::http1::SendRequest;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;

use super::fetch::RequestBody;
use super::report::{Connection, Held, Report, Trouble};
use super::{Stop, fetch, milliseconds, stopped};

/// Connections that are opened, or asked for the last time, at the same time: more would wait for the
/// client and its servers, not for what is between them.
const AT_ONCE_MAX: usize = 128;

/// How long a connection may take to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the last request of every connection may take: retransmissions back off, so that a
/// connection may need seconds after an outage to notice that it is over.
const LAST_TIMEOUT: Duration = Duration::from_secs(4);

/// Last requests that a second is enough for, on any machine.
const LAST_EACH_SECOND: u32 = 1000;

/// How often counts are said.
const REPORT_PERIOD: Duration = Duration::from_secs(1);

/// Hold many connections and count those that break.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Address and port of an HTTP server
    #[arg(long)]
    to: SocketAddr,
    /// Address to connect from, such as one of a prefix that is routed to the client's loopback
    #[arg(long)]
    from: Option<IpAddr>,
    /// Connections to hold
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=25_000))]
    connections: u32,
    /// How many of them ask again and again; the others ask once and stay idle
    #[arg(long, default_value_t = 0)]
    active: u32,
    /// Pause between two requests of an active one, in milliseconds
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    interval_ms: u64,
    /// Open one again that broke, and say of each which server it had and when
    #[arg(long)]
    again: bool,
}

struct Holder {
    again: bool,
    to: SocketAddr,
    from: Option<IpAddr>,
    interval: Duration,
    /// Who may open a connection, or ask for the last time.
    turn: Semaphore,
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
        again: arguments.again,
        to: arguments.to,
        from: arguments.from,
        interval: Duration::from_millis(arguments.interval_ms),
        turn: Semaphore::new(AT_ONCE_MAX),
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
    let turns = arguments.connections / LAST_EACH_SECOND;
    let _ = tokio::time::timeout(LAST_TIMEOUT * 2 + Duration::from_secs(turns.into()), tasks).await;
    Report::Held(holder.held.get()).say();
    Ok(())
}

async fn hold(holder: Rc<Holder>, active: bool, stop: Stop) {
    while hold_one(&holder, active, stop.clone()).await && holder.again && !*stop.borrow() {}
}

/// Opens a connection and holds it; whether it broke.
async fn hold_one(holder: &Holder, active: bool, stop: Stop) -> bool {
    let opened = {
        // The semaphore is never closed.
        let Ok(_turn) = holder.turn.acquire().await else { return false };
        fetch::open(holder.to, holder.from, OPEN_TIMEOUT).await
    };
    let Ok((mut sender, connection)) = opened else {
        holder.count(|held| held.refused += 1);
        return false;
    };
    holder.count(|held| {
        held.opened += 1;
        held.alive += 1;
    });
    let one = Cell::new(Connection { opened_ms: wall_ms(), ..Connection::default() });
    let asking = async {
        ask_until_stopped(holder, &mut sender, &one, active, stop).await;
        let Ok(_turn) = holder.turn.acquire().await else { return };
        let last = answered(holder, &mut sender, &one);
        if tokio::time::timeout(LAST_TIMEOUT, last).await.unwrap_or(false) {
            holder.count(|held| held.answered_last += 1);
            if holder.again {
                Report::Answers(Connection { until_ms: wall_ms(), ..one.get() }).say();
            }
        }
    };
    let ended = tokio::select! {
        ended = connection => ended,
        () = asking => return false,
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
    if holder.again {
        Report::Broke(Connection { until_ms: wall_ms(), ..one.get() }).say();
    }
    true
}

/// The time that other processes of the machine have too.
fn wall_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, milliseconds)
}

/// Never cut off in the middle of a request, for that would close the connection.
async fn ask_until_stopped(
    holder: &Holder,
    sender: &mut SendRequest<RequestBody>,
    one: &Cell<Connection>,
    active: bool,
    stop: Stop,
) {
    while answered(holder, sender, one).await {
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

async fn answered(
    holder: &Holder,
    sender: &mut SendRequest<RequestBody>,
    one: &Cell<Connection>,
) -> bool {
    let answer = fetch::ask(sender, holder.to).await;
    holder.count(|held| held.requests += u64::from(answer.is_ok()));
    if let Ok(hello) = &answer {
        one.set(Connection { server: Some(hello.address), ..one.get() });
    }
    answer.is_ok()
}
