//! Many connections at once, each made once and never again, so that one that breaks is seen.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::LocalSet;

use super::report::{Held, Report, Trouble};
use super::{Stop, fetch, stopped};

/// Connections opened at the same time.
const OPENING_MAX: usize = 128;

/// How long a connection may take to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

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
        tasks.spawn_local(hold(Rc::clone(&holder), number < arguments.active));
    }
    let reporting = async {
        loop {
            tokio::time::sleep(REPORT_PERIOD).await;
            Report::Held(holder.held.get()).say();
        }
    };
    let all = tasks.run_until(reporting);
    tokio::select! {
        () = all => {}
        () = stopped(stop) => {}
    }
    Report::Held(holder.held.get()).say();
    Ok(())
}

async fn hold(holder: Rc<Holder>, active: bool) {
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
    let requests = async {
        while fetch::ask(&mut sender, holder.to).await.is_ok() {
            holder.count(|held| held.requests += 1);
            if !active {
                break;
            }
            tokio::time::sleep(holder.interval).await;
        }
        // Only the connection itself knows how it ends.
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = connection => ended,
        () = requests => Ok(()),
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
