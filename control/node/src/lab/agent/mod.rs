//! Traffic agents: what `xskiff lab-agent` does inside a namespace of the laboratory.
//!
//! Each says what it saw as JSON lines ([`report::Report`]) on its standard output and stops when
//! its standard input closes, so that none outlives whoever started it. None runs outside a
//! namespace of the laboratory: what they send stays among namespaces made for it.
//!
//! Reading order: [`report`] (what is said), [`payload`] (bytes both ends can predict), [`serve`]
//! and [`fetch`] (HTTP/1.1), [`udp`], [`probe`], [`hold`] and [`hold_flows`] (connections over time), [`flood`].

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpSocket;
use tokio::sync::watch;

use super::registry::{NETNS_DIRECTORY, PREFIX};

pub mod fetch;
pub mod flood;
pub mod hold;
pub mod hold_flows;
pub mod payload;
pub mod probe;
pub mod report;
pub mod serve;
pub mod udp;

/// Files a process may have open: connections of [`hold`] and [`serve`], and some more.
const OPEN_FILES: u64 = 65_536;

/// A traffic agent for the laboratory.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    kind: Kind,
    /// Run on when standard input closes
    #[arg(long, global = true)]
    detached: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Kind {
    /// Serve HTTP/1.1 and echo UDP
    Serve(serve::Arguments),
    /// Make one HTTP request, or a few, and check every byte of the answers
    Fetch(fetch::Arguments),
    /// Send datagrams and count their echoes
    Udp(udp::Arguments),
    /// Connect anew, again and again, and say when that stops and starts to work
    Probe(probe::Arguments),
    /// Hold many connections and count those that break
    Hold(hold::Arguments),
    /// Hold many UDP flows and count those that are answered no more
    HoldFlows(hold_flows::Arguments),
    /// Send TCP SYN segments that are never completed
    Flood(flood::Arguments),
}

/// Runs an agent until its work is done or its standard input closes.
///
/// # Errors
/// Outside a network namespace of its own, or when it cannot do its work at all; failures of the
/// traffic itself are reported, not returned.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    refuse_foreign_network()?;
    raise_open_files();
    let stop = watch_input(arguments.detached)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match arguments.kind {
            Kind::Serve(arguments) => serve::run(&arguments, stop).await,
            Kind::Fetch(arguments) => fetch::run(&arguments, stop).await,
            Kind::Udp(arguments) => udp::run(&arguments, stop).await,
            Kind::Probe(arguments) => probe::run(&arguments, stop).await,
            Kind::Hold(arguments) => hold::run(&arguments, stop).await,
            Kind::HoldFlows(arguments) => hold_flows::run(arguments, stop).await,
            Kind::Flood(arguments) => flood::run(&arguments, stop).await,
        }
    })
}

/// Load may only ever meet hosts of the laboratory, so the namespace must be one that it named.
fn refuse_foreign_network() -> anyhow::Result<()> {
    let own = std::fs::metadata("/proc/self/ns/net").context("cannot read /proc/self/ns/net")?;
    let named = std::fs::read_dir(NETNS_DIRECTORY).into_iter().flatten().flatten();
    let mut ours = named.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    let inside = ours.any(|entry| {
        std::fs::metadata(entry.path())
            .is_ok_and(|other| (other.dev(), other.ino()) == (own.dev(), own.ino()))
    });
    if !inside {
        bail!("lab-agent runs only in a namespace of the laboratory ({PREFIX}*): ip netns exec");
    }
    Ok(())
}

fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // Root may raise both limits. A refusal leaves the old one, and connections beyond it are
    // reported as failed.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, hard.max(OPEN_FILES)).is_err()
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.min(hard), hard);
    }
}

/// Becomes true when the agent shall stop.
type Stop = watch::Receiver<bool>;

fn watch_input(detached: bool) -> anyhow::Result<Stop> {
    let (sender, stop) = watch::channel(false);
    let wait = move || {
        if detached {
            // Nobody will ask; the sender must not go, for that would read as a request to stop.
            loop {
                std::thread::park();
            }
        }
        let mut input = std::io::stdin().lock();
        let mut ignored = [0u8; 64];
        while input.read(&mut ignored).is_ok_and(|length| length > 0) {}
        // The agent may have ended meanwhile.
        let _ = sender.send(true);
    };
    std::thread::Builder::new().name("input".into()).spawn(wait)?;
    Ok(stop)
}

async fn stopped(mut stop: Stop) {
    // A closed channel means the watching thread is gone: stop as well.
    let _ = stop.wait_for(|asked| *asked).await;
}

/// A new TCP connection, from any address of the client or one that it has, within `timeout`.
async fn connect(
    to: SocketAddr,
    from: Option<IpAddr>,
    timeout: Duration,
) -> std::io::Result<tokio::net::TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(from) = from {
        socket.bind((from, 0).into())?;
    }
    let connecting = socket.connect(to);
    match tokio::time::timeout(timeout, connecting).await {
        Ok(stream) => stream.inspect(|stream| drop(stream.set_nodelay(true))),
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

/// Milliseconds as reports carry them.
fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
