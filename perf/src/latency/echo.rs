//! The client and the pod's server: one request under way at a time, each of one byte.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pinning::CpuId;

use super::network::Place;
use crate::interrupt;

/// How long the client waits for an answer before it counts the request as lost.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often the server looks whether it is to stop.
const LOOK: Duration = Duration::from_secs(1);
/// Lost requests in a row after which a measurement fails.
const LOST_MAX: u32 = 50;

/// Round trips of one measurement.
#[derive(Debug, Clone, Copy)]
pub struct RoundTrips {
    /// The middle one, in microseconds.
    pub median_us: f64,
    /// The one that 99 of 100 do not exceed, in microseconds.
    pub p99_us: f64,
    /// Requests that nobody answered.
    pub lost: u32,
}

/// The client, on the thread that calls it.
pub struct Client {
    socket: UdpSocket,
    next: u8,
}

impl Client {
    /// Of a subject.
    ///
    /// # Errors
    /// No socket.
    pub fn new(place: &Place) -> Result<Self> {
        Ok(Self { socket: place.client_socket(PATIENCE)?, next: 0 })
    }

    /// Asks until so many requests were answered, after a `pause` before each.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn ask(&mut self, requests: usize, pause: Duration) -> Result<RoundTrips> {
        let mut times = Vec::with_capacity(requests);
        let (mut lost, mut lost_in_a_row) = (0, 0);
        while times.len() < requests {
            if !pause.is_zero() {
                thread::sleep(pause);
            }
            match self.round_trip()? {
                Some(time) => {
                    times.push(time);
                    lost_in_a_row = 0;
                }
                None => {
                    interrupt::check()?;
                    lost += 1;
                    lost_in_a_row += 1;
                    if lost_in_a_row >= LOST_MAX {
                        bail!("{lost_in_a_row} requests in a row were not answered");
                    }
                }
            }
        }
        times.sort_unstable();
        let at = |percent: usize| micros(times[(times.len() - 1) * percent / 100]);
        Ok(RoundTrips { median_us: at(50), p99_us: at(99), lost })
    }

    /// `None`: nobody answered in time.
    fn round_trip(&mut self) -> Result<Option<Duration>> {
        self.next = self.next.wrapping_add(1);
        let (request, mut answer) = ([self.next], [0; 2]);
        let sent = Instant::now();
        self.socket.send(&request).context("send a request")?;
        loop {
            match self.socket.recv(&mut answer) {
                // An answer to an earlier request that was given up is no answer to this one.
                Ok(1) if answer[0] == request[0] => return Ok(Some(sent.elapsed())),
                Ok(_) => {}
                // Port unreachable, while the server is not there yet.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => return Ok(None),
                Err(error) => return Err(error).context("receive an answer"),
            }
            if sent.elapsed() > PATIENCE {
                return Ok(None);
            }
        }
    }
}

/// The pod's server, a thread that ends when this is dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Sends back what comes, on `core`.
    ///
    /// # Errors
    /// No socket, no thread.
    pub fn start(place: &Place, core: CpuId) -> Result<Self> {
        let socket = place.pod_socket(LOOK)?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let serve = move || {
            if let Err(error) = pinning::apply::pin_current_thread(core) {
                eprintln!("the server runs where the system puts it: {error}");
            }
            let mut request = [0; 2];
            while !told.load(Ordering::Relaxed) {
                // What fails here the client misses.
                if let Ok((length, from)) = socket.recv_from(&mut request) {
                    drop(socket.send_to(&request[..length], from));
                }
            }
        };
        let thread = thread::Builder::new().name("server".into()).spawn(serve)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic has printed its message already.
            drop(thread.join());
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
