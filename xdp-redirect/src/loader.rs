//! Loads the XDP program once and puts it on interfaces.
//!
//! One program and one set of maps serve all interfaces, so adding a port is an attach and a few
//! map entries. Dropping [`Redirect`] detaches everything. The end of the process, however it comes,
//! does so too, since the kernel ties the attachment to a file descriptor of ours, unless it is
//! pinned ([`Redirect::with_pins`]).

use std::collections::BTreeMap;
use std::ffi::CString;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aya::maps::{MapData, PerCpuArray};
use aya::programs::Xdp;
use dataplane::lpm::Prefix;
use dataplane::port::PortId;

use crate::attachment::Attached;
use crate::counters::RedirectCounters;
use crate::error::{Error, io_error};
use crate::heartbeat::{HeartbeatWriter, Heartbeats};
use crate::pins::Pins;
use crate::ready::ReadyFlags;
use crate::rules::{HeldRules, L4Bitmap, OurPrefix, PortRule, Rules, typed};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/redirect.bpf.o"));

/// Program names as the kernel shows them (`bpftool prog`); all start with
/// [`PROGRAM_PREFIX`].
const PROGRAM: &str = "xskiff";
const PROGRAM_FRAGS: &str = "xskiff_frags";
/// How a left-over program of ours is known.
pub(crate) const PROGRAM_PREFIX: &str = "xskiff";

/// A worker is stalled when it has not ticked for this long, unless told otherwise.
pub const STALL_AFTER: Duration = Duration::from_millis(500);
/// First kernel whose AF_XDP sockets take frames of several buffers.
pub const FRAGS_SINCE: (u32, u32) = (6, 6);

/// Where the program is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Native where the driver can, generic elsewhere.
    #[default]
    Auto,
    /// In the driver, before a socket buffer exists.
    Native,
    /// In the stack, on socket buffers: any interface.
    Generic,
}

/// Where the program runs, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunningMode {
    /// In the driver.
    Native,
    /// In the stack.
    Generic,
    /// In the device.
    Hardware,
}

impl From<RunningMode> for Mode {
    fn from(running: RunningMode) -> Self {
        match running {
            RunningMode::Native | RunningMode::Hardware => Self::Native,
            RunningMode::Generic => Self::Generic,
        }
    }
}

/// What an attachment really got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attachment {
    /// Kernel index of the interface.
    pub ifindex: u32,
    /// Where the program runs.
    pub mode: RunningMode,
    /// Whether frames of several buffers (jumbo) are taken.
    pub multi_buffer: bool,
    /// Why native mode was not got, when [`Mode::Auto`] fell back to generic.
    pub native_refused: Option<i32>,
}

/// What became of the programs of a process before ([`Redirect::take_over`]).
#[derive(Debug, Default)]
pub struct TakeOver {
    /// On how many interfaces ours is in its place now.
    pub interfaces: usize,
    /// Why not on others ([`Error::Attach`]), or why one that is no port any more keeps it
    /// ([`Error::Pins`]).
    pub failures: Vec<Error>,
}

/// The loaded program, its maps and its attachments. One per process, owned by the control side.
pub struct Redirect {
    // Fields drop in order: attachments go before the program.
    attachments: BTreeMap<u32, Attached>,
    rules: Rules,
    counters: PerCpuArray<MapData, u64>,
    heartbeats: Arc<Heartbeats>,
    ready: ReadyFlags,
    attacher: Attacher,
}

/// Attaches the program, from any thread: the kernel makes whoever attaches wait for everybody who
/// changes an interface, and the control thread must not. One at a time, since they wait for the same.
#[derive(Clone)]
pub struct Attacher {
    ebpf: Arc<Mutex<aya::Ebpf>>,
    pins: Option<Pins>,
    /// What a process before has left is taken over as soon as it is attached to.
    takes_over: bool,
    multi_buffer: bool,
}

/// The program on an interface. Dropping it detaches, unless [`Redirect::adopt`] has it.
pub struct Attaching(Attached);

impl Attacher {
    /// Attaches the program to an interface whose rule and sockets are there
    /// ([`Redirect::set_rule`], [`Redirect::set_socket`]).
    ///
    /// # Errors
    /// [`Error::Attach`] with the way out, [`Error::Pins`], [`Error::Kernel`].
    pub fn attach(&self, interface: &str, ifindex: u32, mode: Mode) -> Result<Attaching, Error> {
        let how = (mode, self.multi_buffer);
        self.with_program(|program| {
            let pins = self.pins.as_ref();
            let mut attached = Attached::attach(program, interface, ifindex, how, pins)?;
            if self.takes_over && attached.is_from_before() {
                attached.take_over(program)?;
            }
            Ok(Attaching(attached))
        })
    }

    /// Whether a process before has left its program on an interface, to be taken over.
    #[must_use]
    pub fn has_left(&self, ifindex: u32) -> bool {
        self.pins.as_ref().is_some_and(|pins| pins.has(ifindex))
    }

    fn with_program<T>(&self, act: impl FnOnce(&mut Xdp) -> Result<T, Error>) -> Result<T, Error> {
        // A panic in between leaves at worst a link that nobody holds, which the kernel then closes.
        let mut ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        act(program(&mut ebpf, self.multi_buffer)?)
    }
}

impl Redirect {
    /// Loads the program and its maps. Frames of several buffers are taken when `multi_buffer` is
    /// asked for and the kernel (6.6) can; see [`Redirect::multi_buffer`].
    ///
    /// # Errors
    /// [`Error::Load`] without privileges or BPF.
    pub fn load(multi_buffer: bool) -> Result<Self, Error> {
        crate::umem::raise_memory_lock_limit();
        let refuse = |error: &(dyn std::error::Error + 'static)| Error::Load {
            reason: chain(error),
            errno: io_error(error).raw_os_error().unwrap_or(0),
        };
        let mut ebpf = aya::EbpfLoader::new().load(OBJECT).map_err(|error| refuse(&error))?;
        let multi_buffer = multi_buffer && kernel_release() >= FRAGS_SINCE;
        program(&mut ebpf, multi_buffer)?.load().map_err(|error| refuse(&error))?;
        let mut rules = Rules::take(&mut ebpf)?;
        rules.set_stall_after(STALL_AFTER)?;
        let counters = typed(&mut ebpf, "counters")?;
        let heartbeats = match ebpf.take_map("heartbeats") {
            Some(aya::maps::Map::Array(map)) => Heartbeats::map(&map)?,
            _ => return Err(Error::Load { reason: "it has no heartbeats".into(), errno: 0 }),
        };
        let ready = match ebpf.take_map("ready") {
            Some(aya::maps::Map::Array(map)) => ReadyFlags::map(&map)?,
            _ => return Err(Error::Load { reason: "it has no ready flags".into(), errno: 0 }),
        };
        Ok(Self {
            attachments: BTreeMap::new(),
            rules,
            counters,
            heartbeats,
            ready,
            attacher: Attacher {
                ebpf: Arc::new(Mutex::new(ebpf)),
                pins: None,
                takes_over: false,
                multi_buffer,
            },
        })
    }

    /// The same whose attachments outlive this process unless it detaches them, and which takes over
    /// what one before has left.
    #[must_use]
    pub fn with_pins(self, pins: Pins) -> Self {
        Self { attacher: Attacher { pins: Some(pins), ..self.attacher }, ..self }
    }

    /// Whether frames of several buffers (jumbo) are taken: sockets must then be made for them.
    #[must_use]
    pub fn multi_buffer(&self) -> bool {
        self.attacher.multi_buffer
    }

    /// What attaches the program on other threads.
    #[must_use]
    pub fn attacher(&self) -> Attacher {
        self.attacher.clone()
    }

    /// Says whose an interface is, before the program is [attached](Attacher::attach) there.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Map`].
    pub fn set_rule(&mut self, ifindex: u32, rule: &PortRule) -> Result<(), Error> {
        self.rules.set_port(ifindex, rule)
    }

    /// Takes charge of what an [`Attacher`] attached.
    pub fn adopt(&mut self, Attaching(attached): Attaching) -> Attachment {
        let report = attached.report;
        self.attachments.insert(report.ifindex, attached);
        report
    }

    /// Says whose `interface` is and attaches the program. Bind and enter its sockets before
    /// ([`Self::set_socket`]): what is ours is dropped from here on while none is there.
    ///
    /// # Errors
    /// [`Error::NoInterface`], [`Error::Attach`] with the way out, [`Error::OutOfRange`]; nothing is left behind then.
    pub fn attach(
        &mut self,
        interface: &str,
        rule: &PortRule,
        mode: Mode,
    ) -> Result<Attachment, Error> {
        let ifindex = interface_index(interface)?;
        self.rules.set_port(ifindex, rule)?;
        match self.attacher.attach(interface, ifindex, mode) {
            Ok(attaching) => Ok(self.adopt(attaching)),
            Err(error) => {
                if !self.attachments.contains_key(&ifindex) {
                    self.rules.remove_port(ifindex)?;
                }
                Err(error)
            }
        }
    }

    /// Puts our program in the place of those that a process before has left, on every interface that
    /// was [attached](Self::attach), and takes what it left on others away but for those that `is_spared`
    /// says. To be called once what is ours is known: until then the programs before go on dropping what was.
    /// One that can neither be taken over nor attached anew keeps no other from it: call again.
    pub fn take_over(&mut self, is_spared: impl Fn(u32) -> bool) -> TakeOver {
        self.attacher.takes_over = true;
        let Self { attachments, attacher, .. } = self;
        let (pins, multi_buffer) = (attacher.pins.as_ref(), attacher.multi_buffer);
        let taken = attacher.with_program(|program| {
            let mut done = TakeOver::default();
            for attached in attachments.values_mut().filter(|one| one.is_from_before()) {
                let taken = attached.take_over(program).or_else(|error| {
                    tracing::warn!(%error, "not in one step: attached anew");
                    attached.attach_anew(program, multi_buffer, pins)
                });
                match taken {
                    Ok(()) => done.interfaces += 1,
                    Err(error) => done.failures.push(error),
                }
            }
            Ok(done)
        });
        let failed = |error| TakeOver { failures: vec![error], ..TakeOver::default() };
        let mut done = taken.unwrap_or_else(failed);
        let Some(pins) = pins else { return done };
        for ifindex in pins.interfaces() {
            if !attachments.contains_key(&ifindex) && !is_spared(ifindex) {
                tracing::info!(ifindex, "no port of ours any more: its XDP program is detached");
                done.failures.extend(pins.detach(ifindex).err());
            }
        }
        done
    }

    /// Ends without detaching what is pinned: what is ours is dropped until the next process comes.
    pub fn leave(mut self) {
        for (_, attached) in std::mem::take(&mut self.attachments) {
            attached.leave();
        }
    }

    /// Attachments that would stay if this process were killed.
    #[must_use]
    pub fn pinned(&self) -> usize {
        self.attachments.values().filter(|attached| attached.is_pinned()).count()
    }

    /// Whether a process before has left its program on an interface, to be taken over.
    #[must_use]
    pub fn has_left(&self, ifindex: u32) -> bool {
        self.attacher.has_left(ifindex)
    }

    /// Changes the rule of an interface that the program is attached to.
    ///
    /// # Errors
    /// [`Error::NoInterface`] when it is not attached, [`Error::OutOfRange`]; the old rule stays.
    pub fn set_port(&mut self, ifindex: u32, rule: &PortRule) -> Result<(), Error> {
        if !self.attachments.contains_key(&ifindex) {
            return Err(Error::NoInterface { interface: format!("#{ifindex}").into() });
        }
        self.rules.set_port(ifindex, rule)
    }

    /// Detaches the program from an interface; one that is gone, or was never attached, is no
    /// error. Remove its sockets after ([`Self::remove_socket`]).
    ///
    /// # Errors
    /// [`Error::Map`] when its rule cannot be removed.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), Error> {
        if let Some(attached) = self.attachments.remove(&ifindex) {
            attached.detach(self.attacher.pins.as_ref())?;
        }
        self.rules.remove_port(ifindex)
    }

    /// Takes off what is pinned for an interface without being among the attachments: a panic has lost
    /// it before it was [adopted](Self::adopt).
    ///
    /// # Errors
    /// [`Error::Pins`].
    pub fn detach_lost(&mut self, ifindex: u32) -> Result<(), Error> {
        let is_known = self.attachments.contains_key(&ifindex);
        if let Some(pins) = self.attacher.pins.as_ref().filter(|_| !is_known) {
            pins.detach(ifindex)?;
        }
        Ok(())
    }

    /// What the program is attached to.
    pub fn attachments(&self) -> impl Iterator<Item = Attachment> {
        self.attachments.values().map(|attached| attached.report)
    }

    /// Enters a bound socket: `worker` serves `queue` of `port` from here on.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Map`].
    pub fn set_socket(
        &mut self,
        port: PortId,
        queue: u32,
        worker: u32,
        socket: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        self.rules.set_socket(port, queue, worker, socket)
    }

    /// Removes a socket. (Closing it removes it, too.)
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Map`].
    pub fn remove_socket(&mut self, port: PortId, queue: u32) -> Result<(), Error> {
        self.rules.remove_socket(port, queue)
    }

    /// Adds or changes prefixes that are ours on uplinks, then takes others away, so that one in
    /// both is never missing. A node address ([`Self::change_node_addresses`]) goes before any
    /// prefix that contains it.
    ///
    /// # Errors
    /// [`Error::PassRefused`] before anything is changed; [`Error::Map`] when the table
    /// ([`crate::limits::PREFIXES_MAX`] per family) is full: what came before is in force then.
    pub fn change_prefixes(&mut self, set: &[OurPrefix], remove: &[Prefix]) -> Result<(), Error> {
        for ours in set.iter().filter(|ours| ours.translated) {
            if ours.on_stall == crate::rules::OnStall::Pass {
                return self.rules.set_prefix(ours);
            }
        }
        set.iter().try_for_each(|ours| self.rules.set_prefix(ours))?;
        remove.iter().try_for_each(|prefix| self.rules.remove_prefix(*prefix))
    }

    /// Adds addresses that the kernel shares with us, then takes others away.
    ///
    /// # Errors
    /// [`Error::Map`] when the table ([`crate::limits::NODE_ADDRESSES_MAX`] per family) is full.
    pub fn change_node_addresses(
        &mut self,
        set: &[IpAddr],
        remove: &[IpAddr],
    ) -> Result<(), Error> {
        set.iter().try_for_each(|address| self.rules.set_node_address(*address))?;
        remove.iter().try_for_each(|address| self.rules.remove_node_address(*address))
    }

    /// Adds addresses that the pods behind ports may claim on their links by ARP and neighbour
    /// discovery, then takes others away. Claims of other addresses are redirected, for the
    /// pipeline to drop.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::Map`] when the table
    /// ([`crate::limits::POD_ADDRESSES_MAX`] per family) is full.
    pub fn change_pod_addresses(
        &mut self,
        set: &[(PortId, IpAddr)],
        remove: &[(PortId, IpAddr)],
    ) -> Result<(), Error> {
        set.iter().try_for_each(|(port, address)| self.rules.set_pod_address(*port, *address))?;
        let gone = remove.iter();
        gone.copied().try_for_each(|(port, address)| self.rules.remove_pod_address(port, address))
    }

    /// Says whether a range of L4 ports (or echo identifiers) of the node's addresses is ours:
    /// NodePorts, the range sources are translated to, host-network backends.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn set_l4_ports(
        &mut self,
        bitmap: L4Bitmap,
        range: RangeInclusive<u16>,
        ours: bool,
    ) -> Result<(), Error> {
        self.rules.set_l4_ports(bitmap, range, ours)
    }

    /// What the kernel holds of all that, read back.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn held(&mut self) -> Result<HeldRules, Error> {
        self.rules.held()
    }

    /// Sets after how long without a tick a worker counts as stalled; 500 ms at first. Shorter
    /// than a few timer ticks of the kernel (4 ms each) calls healthy workers stalled.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn set_stall_after(&mut self, limit: Duration) -> Result<(), Error> {
        self.rules.set_stall_after(limit)
    }

    /// A worker's heartbeat; until its first beat nothing is redirected to the worker.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn heartbeat(&self, worker: u32) -> Result<HeartbeatWriter, Error> {
        self.heartbeats.writer(worker)
    }

    /// The program's flags for sockets that may have packets, for every worker
    /// ([`crate::WorkerPorts::with_ready_flags`]).
    #[must_use]
    pub fn ready_flags(&self) -> ReadyFlags {
        self.ready.clone()
    }

    /// What the program did since it was loaded.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn counters(&self) -> Result<RedirectCounters, Error> {
        RedirectCounters::read(&self.counters)
    }
}

fn program(ebpf: &mut aya::Ebpf, multi_buffer: bool) -> Result<&mut Xdp, Error> {
    let name = if multi_buffer { PROGRAM_FRAGS } else { PROGRAM };
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| Error::Load { reason: format!("it has no program {name}"), errno: 0 })
}

/// The kernel's index of an interface.
///
/// # Errors
/// [`Error::NoInterface`].
pub fn interface_index(interface: &str) -> Result<u32, Error> {
    let missing = || Error::NoInterface { interface: interface.into() };
    let name = CString::new(interface).map_err(|_| missing())?;
    // SAFETY: a NUL-terminated string that lives through the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(missing()),
        ifindex => Ok(ifindex),
    }
}

/// Major and minor version of the running kernel; zeros when it does not say.
#[must_use]
pub fn kernel_release() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    let mut next = || numbers.next().flatten().unwrap_or(0);
    (next(), next())
}

/// An error with its causes, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        let part = current.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = current.source();
    }
    text
}
