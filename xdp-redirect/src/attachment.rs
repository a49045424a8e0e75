//! One interface that the program is on, or that a process before has left its own on.

use std::path::PathBuf;

use aya::programs::Xdp;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};

use crate::error::{Error, io_error};
use crate::loader::{Attachment, Mode, RunningMode};
use crate::netlink;
use crate::pins::{self, Pins};

/// Dropping it detaches, whatever is pinned; [`Self::leave`] does not. What a process before has left
/// and was not taken over stays, so that a start that fails lets nothing pass.
pub(crate) struct Attached {
    /// `None` when another program could not be put behind it.
    link: Option<XdpLink>,
    /// It runs the program of a process before.
    is_from_before: bool,
    pin: Option<PathBuf>,
    pub interface: Box<str>,
    pub report: Attachment,
}

impl Attached {
    /// Attaches `program` to an interface. Where a link is pinned that runs in such a mode, the
    /// program behind it stays until [`Self::take_over`].
    pub fn attach(
        program: &mut Xdp,
        interface: &str,
        ifindex: u32,
        (mode, multi_buffer): (Mode, bool),
        pins: Option<&Pins>,
    ) -> Result<Self, Error> {
        if let Some(pins) = pins.filter(|pins| pins.has(ifindex)) {
            match Self::find(interface, ifindex, (mode, multi_buffer), pins) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => tracing::info!(interface, "left in another mode: attached anew"),
                Err(error) => tracing::warn!(interface, %error, "attached anew"),
            }
            pins.detach(ifindex)?;
        }
        let mut native_refused = None;
        let link = match mode {
            Mode::Native => attach_in(program, interface, ifindex, XdpMode::Driver)?,
            Mode::Generic => attach_in(program, interface, ifindex, XdpMode::Skb)?,
            Mode::Auto => match attach_in(program, interface, ifindex, XdpMode::Driver) {
                Ok(link) => link,
                Err(error) if is_mode_specific(&error) => {
                    tracing::warn!(interface, %error, "native XDP refused: generic mode instead");
                    native_refused = error.errno();
                    attach_in(program, interface, ifindex, XdpMode::Skb)?
                }
                Err(error) => return Err(error),
            },
        };
        let mode = running_mode(interface, ifindex)?;
        let report = Attachment { ifindex, mode, multi_buffer, native_refused };
        let mut attached = Self {
            link: Some(link),
            is_from_before: false,
            pin: None,
            interface: interface.into(),
            report,
        };
        attached.pin(program, pins)?;
        Ok(attached)
    }

    /// What is pinned for an interface, if it runs in such a mode.
    fn find(
        interface: &str,
        ifindex: u32,
        (mode, multi_buffer): (Mode, bool),
        pins: &Pins,
    ) -> Result<Option<Self>, Error> {
        let running = running_mode(interface, ifindex)?;
        let is_meant = match mode {
            Mode::Auto => true,
            Mode::Native => running != RunningMode::Generic,
            Mode::Generic => running == RunningMode::Generic,
        };
        if !is_meant {
            return Ok(None);
        }
        let path = pins.path(ifindex);
        let refuse = |error: &(dyn std::error::Error + 'static)| Error::Pins {
            path: path.display().to_string().into(),
            source: io_error(error),
        };
        let link = PinnedLink::from_pin(&path).map_err(|error| refuse(&error))?;
        let link = XdpLink::try_from(FdLink::from(link)).map_err(|error| refuse(&error))?;
        let report = Attachment { ifindex, mode: running, multi_buffer, native_refused: None };
        Ok(Some(Self {
            link: Some(link),
            is_from_before: true,
            pin: Some(path),
            interface: interface.into(),
            report,
        }))
    }

    /// Pins the link. A program that is not pinned works as well, but ends with this process.
    fn pin(&mut self, program: &mut Xdp, pins: Option<&Pins>) -> Result<(), Error> {
        let Some(pins) = pins else { return Ok(()) };
        let Some(link) = self.link.take() else { return Ok(()) };
        match pins.pin(self.report.ifindex, link) {
            Ok((link, pin)) => (self.link, self.pin) = (Some(link), Some(pin)),
            Err(error) => {
                let interface = &*self.interface;
                tracing::warn!(interface, %error, "the XDP program would go with this process");
                let mode = match self.report.mode {
                    RunningMode::Generic => XdpMode::Skb,
                    RunningMode::Native | RunningMode::Hardware => XdpMode::Driver,
                };
                // The link went with the attempt.
                self.link = Some(attach_in(program, interface, self.report.ifindex, mode)?);
            }
        }
        Ok(())
    }

    /// Whether the program of a process before runs there.
    pub fn is_from_before(&self) -> bool {
        self.is_from_before
    }

    /// Whether it stays when this process is killed.
    pub fn is_pinned(&self) -> bool {
        self.pin.is_some()
    }

    /// Puts `program` in the place of the one before, in one step.
    pub fn take_over(&mut self, program: &mut Xdp) -> Result<(), Error> {
        if !self.is_from_before {
            return Ok(());
        }
        let refuse =
            |source| Error::Attach { interface: self.interface.clone(), mode: "present", source };
        // It was lost with a vain attempt.
        let gone = || refuse(std::io::Error::from_raw_os_error(libc::ENOENT));
        let before = self.link.take().ok_or_else(gone)?;
        let taken = program.attach_to_link(before).and_then(|id| program.take_link(id));
        self.link = Some(taken.map_err(|error| refuse(io_error(&error)))?);
        self.is_from_before = false;
        Ok(())
    }

    /// Takes the program before off, and attaches `program`.
    pub fn attach_anew(
        &mut self,
        program: &mut Xdp,
        multi_buffer: bool,
        pins: Option<&Pins>,
    ) -> Result<(), Error> {
        let Attachment { ifindex, mode, .. } = self.report;
        pins.map(|pins| pins.detach(ifindex)).transpose()?;
        let interface = self.interface.clone();
        *self = Self::attach(program, &interface, ifindex, (mode.into(), multi_buffer), pins)?;
        Ok(())
    }

    /// Lets go of it and leaves it attached, if it is pinned.
    pub fn leave(mut self) {
        self.pin = None;
    }

    /// Detaches it, whoever's program it runs.
    pub fn detach(mut self, pins: Option<&Pins>) -> Result<(), Error> {
        if self.is_from_before {
            self.pin = None;
            pins.map(|pins| pins.detach(self.report.ifindex)).transpose()?;
        }
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // A process that panics is as one that is killed: the next one takes over.
        if std::thread::panicking() {
            return;
        }
        if let Some(pin) = self.pin.as_ref().filter(|_| !self.is_from_before)
            && let Err(error) = pins::remove(pin)
        {
            tracing::warn!(pin = %pin.display(), %error, "the XDP program stays attached");
        }
    }
}

/// Where the program on an interface runs, as the kernel says.
fn running_mode(interface: &str, ifindex: u32) -> Result<RunningMode, Error> {
    let attached = netlink::attached(ifindex).map_err(|source| Error::Kernel {
        action: format!("ask what is attached to {interface}"),
        source,
    })?;
    attached.map(|attached| attached.mode).ok_or_else(|| Error::Kernel {
        action: format!("find the program just attached to {interface}"),
        source: std::io::Error::from_raw_os_error(libc::ENOENT),
    })
}

fn attach_in(
    program: &mut Xdp,
    interface: &str,
    ifindex: u32,
    mode: XdpMode,
) -> Result<XdpLink, Error> {
    let refuse = |source| Error::Attach {
        interface: interface.into(),
        mode: if mode == XdpMode::Skb { "generic" } else { "native" },
        source,
    };
    let id = program.attach_to_if_index(ifindex, mode).map_err(|error| refuse(io_error(&error)))?;
    program.take_link(id).map_err(|error| refuse(io_error(&error)))
}

/// Whether generic mode may succeed where native failed with this error.
fn is_mode_specific(error: &Error) -> bool {
    // 524 is ENOTSUPP, which some drivers return; it has no name in user space.
    matches!(
        error.errno(),
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ERANGE | libc::ENOSPC | libc::ENOMEM | 524)
    )
}
