//! A probe: connects anew, again and again, so that an outage has a beginning and an end.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::report::{Report, Trouble};
use super::{Stop, fetch, milliseconds, stopped};

/// Connect anew, again and again, and say when that stops and starts to work.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Address and port of an HTTP server
    #[arg(long)]
    to: SocketAddr,
    /// Pause between two attempts, in milliseconds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    interval_ms: u64,
    /// How long an attempt may take, in milliseconds
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    timeout_ms: u64,
}

/// What the attempts so far showed.
struct Attempts {
    made: u64,
    failed: u64,
    worked_last: Instant,
    longest_gap: Duration,
    said: Option<bool>,
}

pub(super) async fn run(arguments: &Arguments, stop: Stop) -> anyhow::Result<()> {
    let mut attempts = Attempts {
        made: 0,
        failed: 0,
        worked_last: Instant::now(),
        longest_gap: Duration::ZERO,
        said: None,
    };
    let probing = async {
        loop {
            attempts.count(attempt(arguments).await);
            tokio::time::sleep(Duration::from_millis(arguments.interval_ms)).await;
        }
    };
    tokio::select! {
        () = probing => {}
        () = stopped(stop) => {}
    }
    let gap = attempts.longest_gap.max(attempts.worked_last.elapsed());
    Report::ProbedInAll {
        attempts: attempts.made,
        failures: attempts.failed,
        longest_gap_ms: milliseconds(gap),
    }
    .say();
    Ok(())
}

async fn attempt(arguments: &Arguments) -> Result<(), Trouble> {
    let patience = Duration::from_millis(arguments.timeout_ms);
    let work = async {
        let (sender, connection) = fetch::open(arguments.to, None, patience).await?;
        drop(tokio::spawn(connection));
        fetch::hello(sender, arguments.to).await.map(drop)
    };
    tokio::time::timeout(patience, work).await.unwrap_or(Err(Trouble::TimedOut))
}

impl Attempts {
    fn count(&mut self, result: Result<(), Trouble>) {
        self.made += 1;
        if result.is_ok() {
            self.longest_gap = self.longest_gap.max(self.worked_last.elapsed());
            self.worked_last = Instant::now();
        } else {
            self.failed += 1;
        }
        if self.said != Some(result.is_ok()) {
            self.said = Some(result.is_ok());
            Report::Probed { ok: result.is_ok(), error: result.err() }.say();
        }
    }
}
