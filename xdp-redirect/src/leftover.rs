//! A program of ours that an earlier process left on an interface: found and detached.
//!
//! Nothing is left as long as attachments are held by file descriptors alone; a program attached
//! by netlink (kernels without links for XDP) or by a pinned link ([`crate::pins`]) stays behind a
//! killed process.

use std::os::fd::AsFd;

use crate::bpf_link;
use crate::error::Error;
use crate::loader::{PROGRAM_PREFIX, RunningMode, interface_index};
use crate::netlink;

/// A program of ours on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOver {
    /// Kernel name of the interface.
    pub interface: Box<str>,
    /// The kernel's number of the program.
    pub program_id: u32,
    /// Its name.
    pub program: Box<str>,
}

/// A program on an interface, whosever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnInterface {
    /// Where it runs.
    pub mode: RunningMode,
    /// The kernel's number of it; 0 when several are attached at once.
    pub program_id: u32,
    /// Its name, for whoever may ask (`CAP_SYS_ADMIN`).
    pub name: Option<Box<str>>,
}

impl OnInterface {
    /// Whether it is ours, by its name.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.name.as_ref().is_some_and(|name| name.starts_with(PROGRAM_PREFIX))
    }
}

/// What is attached to `interface`.
///
/// # Errors
/// [`Error::NoInterface`], [`Error::Kernel`].
pub fn attached(interface: &str) -> Result<Option<OnInterface>, Error> {
    let ifindex = interface_index(interface)?;
    let refuse =
        |source| Error::Kernel { action: format!("ask what is attached to {interface}"), source };
    let Some(found) = netlink::attached(ifindex).map_err(refuse)? else { return Ok(None) };
    let program_id = found.program_id;
    let program = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == program_id);
    let name = program.and_then(|program| program.name_as_str().map(Into::into));
    Ok(Some(OnInterface { mode: found.mode, program_id, name }))
}

/// Finds a program of ours on `interface`, whoever attached it.
///
/// # Errors
/// [`Error::NoInterface`], [`Error::Kernel`].
pub fn find(interface: &str) -> Result<Option<LeftOver>, Error> {
    let ours = attached(interface)?.filter(OnInterface::is_ours);
    Ok(ours.and_then(|found| {
        let (interface, program_id) = (interface.into(), found.program_id);
        found.name.map(|program| LeftOver { interface, program_id, program })
    }))
}

/// Detaches a program of ours from `interface`; says whether there was one. The caller makes sure
/// first that no living process relies on it.
///
/// # Errors
/// [`Error::NoInterface`], [`Error::Kernel`].
pub fn detach(interface: &str) -> Result<bool, Error> {
    if find(interface)?.is_none() {
        return Ok(false);
    }
    let ifindex = interface_index(interface)?;
    let refuse = |source| Error::Kernel {
        action: format!("detach the left-over XDP program from {interface}"),
        source,
    };
    let Some(attached) = netlink::attached(ifindex).map_err(refuse)? else { return Ok(false) };
    match netlink::detach(ifindex, attached.mode) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            let wanted = bpf_link::XdpLinkInfo { ifindex, program_id: attached.program_id };
            let link = bpf_link::find(wanted).map_err(refuse)?;
            bpf_link::detach(link.as_fd()).map_err(refuse)?;
        }
        result => result.map_err(refuse)?,
    }
    Ok(true)
}
