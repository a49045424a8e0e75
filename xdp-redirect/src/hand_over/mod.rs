//! Sockets and packet memory go from one process to the next, through a Unix socket.
//!
//! The process before stops its workers, so that nobody touches a ring any more, and sends what it has
//! ([`send`]): descriptors of regions and sockets, and who has which chunk. The next one maps rings and
//! memory ([`Regions::go_on`]) and uses them from where their own indices stand. Sockets stay bound, and in
//! the table of the XDP program that is attached, so that packets wait in the receive rings meanwhile.
//!
//! A port takes its sockets when it is made, if they are all there and as it would bind them
//! ([`Regions::take_handed`]). Whatever is not taken is closed, and bound anew.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::bind::adopt;
use crate::error::Error;
use crate::loader::interface_index;
use crate::pools::LARGE;
use crate::regions::Regions;
use crate::socket::{Socket, SocketConfig};
use crate::umem::handed::{Offered, Replaced};
use crate::umem::{Umem, lock};

pub mod message;
mod passing;

use message::{Message, RegionRecord, Role, SocketRecord};
pub use passing::{ReceiveError, receive};

/// How long chunks of sockets that were not handed on rest: until then the kernel has closed them.
const CLOSED_WITHIN: Duration = Duration::from_secs(2);

/// Why nothing that was handed on can be used.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Other workers have other sockets.
    #[error("the process before has {before} workers, and this one {now}")]
    Workers {
        /// Of the process before.
        before: u32,
        /// Of this one.
        now: u32,
    },
    /// Regions are made otherwise.
    #[error("packet memory is configured otherwise: {what} was {before} and is {now}")]
    Memory {
        /// Which setting.
        what: &'static str,
        /// Of the process before.
        before: u32,
        /// Of this one.
        now: u32,
    },
    /// The kernel does not map what came.
    #[error("packet memory cannot be mapped: {0}")]
    Kernel(#[from] io::Error),
}

/// How many sockets were handed on, and what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Handed {
    /// Sockets that came.
    pub came: u32,
    /// Of them, taken by ports.
    pub taken: u32,
}

/// Sockets of a port: those that receive, in the order of queues, and for workers without a queue those
/// that only transmit.
pub type OfPort = (Vec<Socket>, Vec<(usize, Socket)>);

/// Sockets that wait to be taken.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    ports: BTreeMap<u32, HandedPort>,
    orphans: Vec<(Umem, u16)>,
    since: Option<Instant>,
    handed: Handed,
}

/// Sockets of a port.
#[derive(Debug)]
struct HandedPort {
    umem: Umem,
    sockets: Vec<(SocketRecord, OwnedFd)>,
}

impl Drop for HandedPort {
    fn drop(&mut self) {
        let receives = |record: &SocketRecord| matches!(record.role, Role::Receives { .. });
        let numbers = self.sockets.iter().filter(|(record, _)| receives(record));
        let numbers: Vec<u16> = numbers.map(|(record, _)| record.number).collect();
        // Closed first: the kernel then has none of their chunks any more.
        self.sockets.clear();
        numbers.into_iter().for_each(|number| self.umem.reclaim(number));
    }
}

/// Sends sockets, each with the number of its worker, and the regions that they are in. No worker runs any
/// more. Answers how many sockets were sent: those whose interface is gone are not.
///
/// # Errors
/// The kernel's; the receiver then uses nothing.
pub fn send(
    to: &UnixStream,
    regions: &Regions,
    workers: usize,
    sockets: &mut [(usize, Box<Socket>)],
) -> io::Result<usize> {
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let (mut records, mut fds) = (Vec::new(), Vec::new());
    for umem in regions.iter() {
        if let Some((record, of_region)) = umem.record()? {
            records.push(record);
            fds.extend(of_region);
        }
    }
    let mut sent = Vec::with_capacity(sockets.len());
    for (worker, socket) in sockets {
        let Ok(ifindex) = interface_index(socket.interface()) else { continue };
        sent.push((socket.record(ifindex, number(*worker)), &*socket));
    }
    let served: BTreeSet<(u32, u32)> = sent
        .iter()
        .filter(|(record, _)| matches!(record.role, Role::Receives { .. }))
        .map(|(record, _)| (record.ifindex, record.queue))
        .collect();
    sent.retain(|(record, _)| served.contains(&(record.ifindex, record.queue)));
    let message = Message {
        workers: number(workers),
        regions: records,
        sockets: sent.iter().map(|(record, _)| *record).collect(),
    };
    let of_sockets = sent.iter().map(|(_, socket)| socket.fd());
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).chain(of_sockets).collect();
    passing::send(to, &message, &fds)?;
    Ok(message.sockets.len())
}

impl Regions {
    /// Goes on with the regions of the process before, in which nothing may have been done yet, and keeps its
    /// sockets for the ports that take them. Answers what the regions had, to be dropped when there is time.
    ///
    /// # Errors
    /// [`Refused`]; then the regions are as they were.
    pub fn go_on(
        &self,
        message: &Message,
        fds: Vec<OwnedFd>,
        workers: usize,
    ) -> Result<Box<dyn Send>, Refused> {
        let now = u32::try_from(workers).unwrap_or(u32::MAX);
        if message.workers != now {
            return Err(Refused::Workers { before: message.workers, now });
        }
        let mut fds = fds.into_iter();
        let mut offered = Vec::with_capacity(message.regions.len());
        for record in &message.regions {
            let umem = self.by_number(record.number);
            let umem = umem.ok_or(Refused::Memory {
                what: "the number of regions",
                before: record.number.into(),
                now: 0,
            })?;
            same(umem, record)?;
            offered.push((umem, record, Offered::new(record, &mut fds)?));
        }
        // Nothing is refused any more.
        let replaced = self.go_on_with(message, offered);
        let mut waiting = lock(&self.handed().inner);
        for ((record, fd), umem) in message
            .sockets
            .iter()
            .zip(fds)
            .filter_map(|(record, fd)| Some(((record, fd), self.by_number(record.region)?)))
        {
            waiting.handed.came += 1;
            let port = waiting.ports.entry(record.ifindex);
            let port =
                port.or_insert_with(|| HandedPort { umem: umem.clone(), sockets: Vec::new() });
            port.sockets.push((*record, fd));
        }
        waiting.since = Some(Instant::now());
        Ok(Box::new(replaced))
    }

    fn go_on_with(
        &self,
        message: &Message,
        offered: Vec<(&Umem, &RegionRecord, Offered)>,
    ) -> Vec<Replaced> {
        let mut all = Vec::with_capacity(offered.len());
        for (umem, record, offered) in offered {
            let of_region = message.sockets.iter().filter(|one| one.region == record.number);
            let numbers = of_region.map(|socket| socket.number).collect();
            let (replaced, orphans) = umem.go_on(record, offered, &numbers);
            all.push(replaced);
            self.note_memory(record.number);
            let orphans = orphans.into_iter().map(|number| (umem.clone(), number));
            lock(&self.handed().inner).orphans.extend(orphans);
        }
        all
    }

    /// The sockets that were handed on for a port, if they are as it would bind them: one that receives
    /// for each of `queues` queues, and one that transmits for each of `transmitting` (worker, queue).
    /// `None` when they are not, or none were: they are closed, and the port is to bind.
    pub fn take_handed(
        &self,
        interface: &str,
        queues: u32,
        config: &SocketConfig,
        transmitting: &[(usize, u32)],
        is_pod: bool,
    ) -> Option<OfPort> {
        let ifindex = interface_index(interface).ok()?;
        let mut port = lock(&self.handed().inner).ports.remove(&ifindex)?;
        let count = u32::try_from(port.sockets.len()).unwrap_or(u32::MAX);
        let taken = port
            .fits(queues, config, transmitting, is_pod)
            .and_then(|()| self.take(interface, &mut port, config, queues));
        match taken {
            Ok(taken) => {
                lock(&self.handed().inner).handed.taken += count;
                Some(taken)
            }
            Err(reason) => {
                tracing::warn!(interface, reason, "its sockets are bound anew");
                None
            }
        }
    }

    fn take(
        &self,
        interface: &str,
        port: &mut HandedPort,
        config: &SocketConfig,
        queues: u32,
    ) -> Result<OfPort, String> {
        let region = port.umem.region();
        let place = (region != LARGE).then(|| self.place_in(region, config, queues));
        let refuse = |error: Error| error.to_string();
        let (mut receiving, mut transmitting) = (Vec::<Socket>::new(), Vec::new());
        // Those that receive first, in the order of queues.
        port.sockets.sort_by_key(|(record, _)| match record.role {
            Role::Receives { .. } => (0, record.queue),
            Role::Transmits { worker } => (1, worker),
        });
        port.sockets.reverse();
        while let Some((record, fd)) = port.sockets.pop() {
            let beside = match record.role {
                Role::Receives { .. } => None,
                Role::Transmits { .. } => Some(
                    receiving
                        .iter()
                        .find(|one| one.queue() == record.queue)
                        .ok_or("its queue has none")?,
                ),
            };
            let at = (interface, &port.umem);
            let socket = adopt(at, &record, fd, config, place.as_ref(), beside).map_err(refuse)?;
            match record.role {
                Role::Receives { .. } => receiving.push(socket),
                Role::Transmits { worker } => {
                    transmitting.push((usize::try_from(worker).unwrap_or(usize::MAX), socket));
                }
            }
        }
        if let Some(place) = place {
            place.fill();
        }
        Ok((receiving, transmitting))
    }

    /// Closes what no port has taken, and says what became of all.
    pub fn end_hand_over(&self) -> Handed {
        let mut inner = lock(&self.handed().inner);
        let left = std::mem::take(&mut inner.ports);
        let handed = inner.handed;
        drop(inner);
        drop(left);
        handed
    }

    /// Frees chunks of sockets that were not handed on, once these are closed.
    pub(crate) fn free_orphans(&self) {
        let mut inner = lock(&self.handed().inner);
        if inner.since.is_some_and(|since| since.elapsed() > CLOSED_WITHIN) {
            inner.since = None;
            let orphans = std::mem::take(&mut inner.orphans);
            drop(inner);
            orphans.into_iter().for_each(|(umem, number)| umem.reclaim(number));
        }
    }
}

impl HandedPort {
    /// Whether these are the sockets that would be bound now; else why not.
    fn fits(
        &self,
        queues: u32,
        config: &SocketConfig,
        transmitting: &[(usize, u32)],
        is_pod: bool,
    ) -> Result<(), String> {
        if (self.umem.region() != LARGE) != is_pod {
            return Err("they are in a region for others".into());
        }
        let (mut receives, mut transmits) = (Vec::new(), Vec::new());
        for (record, _) in &self.sockets {
            let receive_ring = match record.role {
                Role::Receives { receive_ring, .. } => {
                    receives.push(record.queue);
                    receive_ring
                }
                Role::Transmits { worker } => {
                    transmits.push((usize::try_from(worker).unwrap_or(usize::MAX), record.queue));
                    config.receive_ring
                }
            };
            if (receive_ring, record.transmit_ring) != (config.receive_ring, config.transmit_ring) {
                return Err("their rings have other sizes".into());
            }
        }
        receives.sort_unstable();
        transmits.sort_unstable();
        let mut wanted = transmitting.to_vec();
        wanted.sort_unstable();
        if !receives.iter().copied().eq(0..queues) || transmits != wanted {
            return Err("the interface has other queues".into());
        }
        Ok(())
    }
}

/// Whether a region is made as the record says.
fn same(umem: &Umem, record: &RegionRecord) -> Result<(), Refused> {
    let config = umem.config();
    let settings = [
        ("frames", record.frames, config.frames),
        ("chunk_bytes", record.chunk_bytes, config.chunk_bytes),
        ("fill_ring", record.fill_ring, config.fill_ring),
        ("completion_ring", record.completion_ring, config.completion_ring),
        ("multi_buffer", record.multi_buffer.into(), config.multi_buffer.into()),
    ];
    match settings.into_iter().find(|(_, before, now)| before != now) {
        Some((what, before, now)) => Err(Refused::Memory { what, before, now }),
        None => Ok(()),
    }
}
