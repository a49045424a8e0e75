//! Ports on the control side: an interface becomes a port of every worker, and stops being one.
//!
//! Adding binds one socket per receive queue (queue q belongs to worker q modulo workers), gives
//! every worker without a queue of its own a socket that only transmits, hands all of them to
//! their workers, and only then attaches the XDP program: nothing is redirected before somebody
//! serves it. Whatever fails undoes what came before.

use std::collections::BTreeMap;

use control::config::Transmit;
use dataplane::address::MacAddr;
use dataplane::counters::PORTS_MAX;
use dataplane::port::{PortId, PortKind};
use xdp_redirect::limits::QUEUES_MAX;
use xdp_redirect::loader::{Attacher, Attaching, Attachment, Mode};
use xdp_redirect::rules::PortRule;
use xdp_redirect::socket::SocketConfig;
use xdp_redirect::statistics::{KernelStatistics, SocketMonitor};
use xdp_redirect::{Error, Redirect, Regions, Socket};

use crate::leaving::{Held, Leaving};
use crate::live_ways::LiveWays;
use crate::privileges;
use crate::workers::Workers;

mod error;
mod link;
mod untold;
mod way_changes;

pub use error::PortError;
pub use link::{index, mtu, receive_queues};

use link::Link;
use untold::Untold;
use way_changes::WayChanges;

/// What is to become a port.
#[derive(Debug, Clone)]
pub struct PortRequest {
    /// Kernel name of the interface.
    pub interface: String,
    /// What stands at its other end.
    pub kind: PortKind,
    /// Where the XDP program is to run.
    pub mode: Mode,
    /// Ring sizes and polling.
    pub sockets: SocketConfig,
    /// Take everything, not only what is ours (uplinks with the host firewall on).
    pub everything: bool,
    /// Whether its other end takes TCP segments that are longer than the MTU.
    pub takes_whole: bool,
}

/// A port that is up.
#[derive(Debug)]
pub struct ActivePort {
    /// Its number.
    pub port: PortId,
    /// Kernel name.
    pub interface: String,
    /// What stands at the other end.
    pub kind: PortKind,
    /// Our side's link address.
    pub mac: MacAddr,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// How the program is attached, as the kernel says.
    pub attachment: Attachment,
    /// Receive queues served.
    pub queues: u32,
    /// Whether its sockets are zero-copy, as the kernel says.
    pub zero_copy: bool,
    /// Whether it is to be given TCP segments that are longer than the MTU ([`PortTable::is_given_whole`]).
    pub takes_whole: bool,
    /// Sockets that workers have of it.
    sockets: usize,
    monitors: Vec<SocketMonitor>,
}

impl ActivePort {
    /// XDP_STATISTICS of all its sockets together.
    #[must_use]
    pub fn kernel_statistics(&self) -> KernelStatistics {
        let read = self.monitors.iter().filter_map(|one| one.kernel_statistics().ok().flatten());
        read.fold(KernelStatistics::default(), |sum, one| sum.plus(&one))
    }
}

/// What binds and attaches, on any thread: the kernel takes milliseconds for either, and longer while
/// others change interfaces.
#[derive(Clone)]
pub struct Tools {
    regions: Regions,
    attacher: Attacher,
    workers: usize,
}

/// Bound sockets of a port to be.
pub struct Bound {
    link: Link,
    /// One for each queue, in order.
    receiving: Vec<Socket>,
    /// For workers without a queue of their own.
    transmitting: Vec<(usize, Socket)>,
    zero_copy: bool,
    monitors: Vec<SocketMonitor>,
}

/// A port whose sockets are served, and whose interface has no program yet.
pub struct Serving {
    port: PortId,
    request: PortRequest,
    link: Link,
    zero_copy: bool,
    monitors: Vec<SocketMonitor>,
}

impl Serving {
    /// Kernel index of the interface.
    #[must_use]
    pub fn ifindex(&self) -> u32 {
        self.link.ifindex
    }
}

impl Tools {
    /// Binds a socket to each of the interface's queues, after taking a left-over program of ours away.
    ///
    /// # Errors
    /// Any [`PortError`]; nothing is left behind then.
    pub fn bind(&self, request: &PortRequest) -> Result<Bound, PortError> {
        let interface = &request.interface;
        let link = Link::read(interface)?;
        if link.queues > QUEUES_MAX {
            let (interface, queues) = (interface.clone(), link.queues);
            return Err(PortError::Queues { interface, queues });
        }
        // What a process before has pinned is taken over; one of somebody else's is refused on attach.
        let detach = || xdp_redirect::leftover::detach(interface);
        if !self.attacher.has_left(link.ifindex)
            && privileges::with(caps::Capability::CAP_SYS_ADMIN, detach)?
        {
            tracing::info!(interface, "detached a left-over XDP program of ours");
        }
        let mut bound = Bound {
            link,
            receiving: Vec::new(),
            transmitting: Vec::new(),
            zero_copy: true,
            monitors: Vec::new(),
        };
        let bind = || self.bind_queues(request, &mut bound);
        privileges::with(caps::Capability::CAP_IPC_LOCK, bind)?;
        Ok(bound)
    }

    /// Takes the sockets that the process before had there, or binds: pods' queues lie in a region of
    /// pods, with frames enough for each; all others in the large one.
    fn bind_queues(&self, request: &PortRequest, bound: &mut Bound) -> Result<(), Error> {
        let (interface, sockets, queues) =
            (&request.interface, &request.sockets, bound.link.queues);
        let transmitting: Vec<(usize, u32)> = (0..queues)
            .flat_map(|queue| {
                let others = workers_without_queue(self.workers, queues, queue);
                others.map(move |worker| (worker, queue))
            })
            .collect();
        let is_pod = request.kind == PortKind::Pod;
        let handed = self.regions.take_handed(interface, queues, sockets, &transmitting, is_pod);
        if let Some((receiving, transmitting)) = handed {
            bound.zero_copy = receiving.iter().all(Socket::is_zero_copy);
            bound.monitors = receiving.iter().map(Socket::monitor).collect();
            (bound.receiving, bound.transmitting) = (receiving, transmitting);
            return Ok(());
        }
        let place = match request.kind {
            PortKind::Pod => Some(self.regions.admit(sockets, queues)?),
            PortKind::Uplink | PortKind::Host => None,
        };
        for queue in 0..queues {
            let socket = match &place {
                Some(place) => {
                    Socket::bind_in(place, interface, queue, sockets, bound.receiving.first())?
                }
                None => Socket::bind(self.regions.large(), interface, queue, sockets)?,
            };
            bound.zero_copy &= socket.is_zero_copy();
            bound.monitors.push(socket.monitor());
            for other in workers_without_queue(self.workers, queues, queue) {
                bound.transmitting.push((other, socket.bind_transmit_only(sockets)?));
            }
            bound.receiving.push(socket);
        }
        if let Some(place) = place {
            place.fill();
        }
        Ok(())
    }

    /// Attaches the program to the interface of a port that is [served](PortTable::serve).
    ///
    /// # Errors
    /// [`PortError::Redirect`].
    pub fn attach(&self, request: &PortRequest, ifindex: u32) -> Result<Attaching, PortError> {
        Ok(self.attacher.attach(&request.interface, ifindex, request.mode)?)
    }
}

/// A port that is being made, as far as it is.
#[derive(Debug, Clone, Copy)]
struct Half {
    ifindex: u32,
    queues: u32,
    /// Sockets that workers were given.
    given: usize,
}

/// All ports, with the program and the packet memory they share.
pub struct PortTable {
    redirect: Redirect,
    regions: Regions,
    active: Vec<Option<ActivePort>>,
    /// Numbers of ports that are being made, with what workers and the program have of them.
    making: BTreeMap<u16, Option<Half>>,
    leaving: Leaving,
    live: LiveWays,
    untold: Untold,
    changes: Option<WayChanges>,
    /// Where the search for a free number goes on, so that one is used again as late as possible:
    /// workers may still hold packets of its last port.
    next: usize,
}

impl PortTable {
    /// No ports yet.
    #[must_use]
    pub fn new(redirect: Redirect, regions: Regions, live: LiveWays) -> Self {
        let active = (0..PORTS_MAX).map(|_| None).collect();
        let (making, leaving) = (BTreeMap::new(), Leaving::new());
        let untold = Untold::default();
        let changes = None;
        Self { redirect, regions, active, making, leaving, live, untold, changes, next: 0 }
    }

    /// The XDP program, to say what is ours.
    pub fn redirect(&mut self) -> &mut Redirect {
        &mut self.redirect
    }

    /// Ends with the program left on every interface where it is pinned; says on how many, and gives what
    /// takes the kernel a while to free (tap devices, packet memory).
    pub fn leave(self) -> (usize, impl Sized) {
        let pinned = self.redirect.pinned();
        self.redirect.leave();
        (pinned, (self.regions, self.leaving, self.live))
    }

    /// Which ports are sent live frames.
    #[must_use]
    pub fn live(&self) -> &LiveWays {
        &self.live
    }

    /// Looks which ports can be sent live frames, and whether those that are get them. To be called
    /// every second.
    pub fn tend_live(&mut self, wanted: Transmit, workers: &Workers) {
        let frame_bytes = self.regions.large().config().chunk_bytes;
        self.live.tend(wanted, frame_bytes, self.active.iter().flatten(), workers);
    }

    /// The same at once for every port: what is wanted changed.
    pub fn reconsider_live(&mut self, wanted: Transmit, workers: &Workers) {
        self.live.reconsider();
        self.tend_live(wanted, workers);
    }

    /// The packet memory.
    #[must_use]
    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    /// Every port that is up.
    pub fn iter(&self) -> impl Iterator<Item = &ActivePort> {
        self.active.iter().flatten()
    }

    /// A port by number.
    #[must_use]
    pub fn get(&self, port: PortId) -> Option<&ActivePort> {
        self.active.get(usize::from(port.0))?.as_ref()
    }

    /// A port by interface.
    #[must_use]
    pub fn by_interface(&self, interface: &str) -> Option<&ActivePort> {
        self.iter().find(|port| port.interface == interface)
    }

    /// Makes `request`'s interface a port, step by step on this thread.
    ///
    /// # Errors
    /// Any [`PortError`]; nothing is left behind then.
    pub fn add(&mut self, workers: &Workers, request: &PortRequest) -> Result<PortId, PortError> {
        let tools = self.tools(workers);
        let port = self.reserve(&request.interface)?;
        let bound = tools.bind(request).inspect_err(|_| self.abandon(workers, port))?;
        let serving = self.serve(workers, port, request, bound)?;
        let attached = tools.attach(request, serving.ifindex());
        self.finish(workers, serving, attached)
    }

    /// What binds and attaches on other threads.
    #[must_use]
    pub fn tools(&self, workers: &Workers) -> Tools {
        let (regions, attacher) = (self.regions.clone(), self.redirect.attacher());
        Tools { regions, attacher, workers: workers.count() }
    }

    /// Takes a number for a port to be; it is given up by [`Self::abandon`], or when the port is
    /// [finished](Self::finish).
    ///
    /// # Errors
    /// [`PortError::Exists`], [`PortError::Full`]; [`PortError::Held`] while sockets of a port that
    /// the interface was are open.
    pub fn reserve(&mut self, interface: &str) -> Result<PortId, PortError> {
        if let Some(port) = self.by_interface(interface) {
            return Err(PortError::Exists { interface: interface.into(), port: port.port });
        }
        if let Some(held) = index(interface).and_then(|ifindex| self.leaving.on(ifindex)) {
            let Held { sockets, since } = held;
            return Err(PortError::Held { interface: interface.into(), sockets, since });
        }
        let port = self.free_number()?;
        self.making.insert(port.0, None);
        Ok(port)
    }

    /// Gives up a port that is being made, as far as it is; one that is not is left alone.
    pub fn abandon(&mut self, workers: &Workers, port: PortId) {
        let Some(half) = self.making.remove(&port.0).flatten() else { return };
        if let Err(error) = self.redirect.detach(half.ifindex) {
            tracing::warn!(port = port.0, %error, "its rule stays");
        }
        self.take_down(workers, port, (half.ifindex, half.queues), half.given);
    }

    /// Takes off what a panic may have left attached to the interface of a port that is being made.
    pub fn detach_lost(&mut self, port: PortId) {
        if let Some(Some(half)) = self.making.get(&port.0)
            && let Err(error) = self.redirect.detach_lost(half.ifindex)
        {
            tracing::warn!(port = port.0, %error, "the program stays attached");
        }
    }

    /// Ports that are being made.
    pub fn making(&self) -> impl Iterator<Item = PortId> {
        self.making.keys().map(|number| PortId(*number))
    }

    /// Hands the sockets to the program and to their workers, and says whose the interface is.
    /// Nothing comes by it before the program is attached there.
    ///
    /// # Errors
    /// Any [`PortError`]; nothing is left behind then.
    pub fn serve(
        &mut self,
        workers: &Workers,
        port: PortId,
        request: &PortRequest,
        bound: Bound,
    ) -> Result<Serving, PortError> {
        let Bound { link, receiving, transmitting, zero_copy, monitors } = bound;
        let half = Half { ifindex: link.ifindex, queues: link.queues, given: 0 };
        self.making.insert(port.0, Some(half));
        let outcome = self.hand_over(workers, port, receiving, transmitting);
        let rule = PortRule {
            port,
            kind: request.kind,
            queues: link.queues,
            everything: request.everything,
        };
        let ruled = outcome.and_then(|()| Ok(self.redirect.set_rule(link.ifindex, &rule)?));
        if let Err(error) = ruled {
            self.abandon(workers, port);
            return Err(error);
        }
        workers.wake();
        Ok(Serving { port, request: request.clone(), link, zero_copy, monitors })
    }

    fn hand_over(
        &mut self,
        workers: &Workers,
        port: PortId,
        receiving: Vec<Socket>,
        transmitting: Vec<(usize, Socket)>,
    ) -> Result<(), PortError> {
        for (queue, socket) in (0u32..).zip(receiving) {
            let worker = queue as usize % workers.count();
            let number = u32::try_from(worker).unwrap_or(u32::MAX);
            self.redirect.set_socket(port, queue, number, socket.fd())?;
            self.give(workers, worker, port, socket)?;
        }
        for (worker, socket) in transmitting {
            self.give(workers, worker, port, socket)?;
        }
        Ok(())
    }

    fn give(
        &mut self,
        workers: &Workers,
        worker: usize,
        port: PortId,
        socket: Socket,
    ) -> Result<(), PortError> {
        if let Some(Err((error, _socket))) =
            workers.ports(worker).map(|ports| ports.add(port, socket))
        {
            return Err(error.into());
        }
        if let Some(Some(half)) = self.making.get_mut(&port.0) {
            half.given += 1;
        }
        Ok(())
    }

    /// The port is up, once the program is attached; else it is taken away again.
    ///
    /// # Errors
    /// The one of `attached`.
    pub fn finish(
        &mut self,
        workers: &Workers,
        serving: Serving,
        attached: Result<Attaching, PortError>,
    ) -> Result<PortId, PortError> {
        let Serving { port, request, link, zero_copy, monitors } = serving;
        let attaching = attached.inspect_err(|_| self.abandon(workers, port))?;
        let attachment = self.redirect.adopt(attaching);
        let sockets = self.making.remove(&port.0).flatten().map_or(0, |half| half.given);
        if request.takes_whole {
            self.untold.add(port, link.ifindex, workers.count());
            self.give_whole(workers);
        }
        self.active[usize::from(port.0)] = Some(ActivePort {
            port,
            interface: request.interface,
            kind: request.kind,
            mac: link.mac,
            mtu: link.mtu,
            attachment,
            queues: link.queues,
            zero_copy,
            takes_whole: request.takes_whole,
            sockets,
            monitors,
        });
        Ok(port)
    }

    /// Tells workers that whole segments may leave by ports. One that does not listen cuts them until it
    /// does.
    fn give_whole(&mut self, workers: &Workers) {
        self.untold.tell(|worker, port, ifindex| {
            workers.ports(worker).map_or(Ok(()), |ports| ports.set_whole(port, ifindex))
        });
    }

    /// Whether every worker was told that a port takes whole segments, if it does.
    #[must_use]
    pub fn is_given_whole(&self, port: &ActivePort) -> bool {
        port.takes_whole && !self.untold.has(port.port)
    }

    /// Stops `port` being one; a port that is not there is no error. The interface may be gone.
    pub fn remove(&mut self, workers: &Workers, port: PortId) -> Option<ActivePort> {
        let active = self.active.get_mut(usize::from(port.0))?.take()?;
        self.live.forget(port);
        self.untold.forget(port);
        if let Err(error) = self.redirect.detach(active.attachment.ifindex) {
            tracing::warn!(interface = active.interface, %error, "detach");
        }
        let place = (active.attachment.ifindex, active.queues);
        self.take_down(workers, port, place, active.sockets);
        Some(active)
    }

    /// Takes the sockets of `port` from everybody. They are closed by [`Self::collect`].
    fn take_down(
        &mut self,
        workers: &Workers,
        port: PortId,
        (ifindex, queues): (u32, u32),
        given: usize,
    ) {
        for queue in 0..queues {
            // Closing the socket removes it, too; an entry that is not there is no matter.
            let _ = self.redirect.remove_socket(port, queue);
        }
        self.leaving.add(workers, port, ifindex, given);
    }

    /// Has the sockets closed that workers gave up, and tells workers what they did not listen to. To be
    /// called every few milliseconds.
    pub fn collect(&mut self, workers: &Workers) {
        self.give_whole(workers);
        self.go_on_changing(workers);
        if !self.leaving.is_empty() {
            self.leaving.collect(workers);
        }
    }

    /// What is left of ports that are none any more.
    #[must_use]
    pub fn leaving(&self) -> &Leaving {
        &self.leaving
    }

    fn free_number(&mut self) -> Result<PortId, PortError> {
        let found = (0..PORTS_MAX)
            .map(|step| (self.next + step) % PORTS_MAX)
            .find(|number| self.active[*number].is_none() && !self.is_taken(*number))
            .ok_or(PortError::Full)?;
        self.next = found + 1;
        Ok(PortId(u16::try_from(found).map_err(|_| PortError::Full)?))
    }

    /// By a port that is being made, or one that is not gone yet.
    fn is_taken(&self, number: usize) -> bool {
        u16::try_from(number).is_ok_and(|number| {
            self.making.contains_key(&number) || self.leaving.has(PortId(number))
        })
    }
}

/// Workers that have no queue of their own, and transmit by `queue`.
fn workers_without_queue(workers: usize, queues: u32, queue: u32) -> impl Iterator<Item = usize> {
    let queues = queues as usize;
    (queues..workers).filter(move |worker| worker % queues == queue as usize)
}

#[cfg(test)]
mod tests {
    use super::workers_without_queue;

    #[test]
    fn every_worker_has_exactly_one_way_to_transmit() {
        for workers in 1..=8usize {
            for queues in 1..=8u32 {
                let mut ways = vec![0; workers];
                for queue in 0..queues {
                    if (queue as usize) < workers {
                        ways[queue as usize] += 1;
                    }
                    workers_without_queue(workers, queues, queue).for_each(|one| ways[one] += 1);
                }
                assert!(ways.iter().all(|count| *count == 1), "{workers}/{queues}: {ways:?}");
            }
        }
    }
}
