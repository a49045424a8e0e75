//! A program of ours that an earlier process left on an interface: found and detached.
//!
//! Nothing is left as long as attachments are held by file descriptors alone; a program attached
//! by netlink (kernels without links for XDP) or by a pinned link stays behind a killed process.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::error::Error;
use crate::loader::{PROGRAM_PREFIX, interface_index};
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

/// Finds a program of ours on `interface`, whoever attached it.
///
/// # Errors
/// [`Error::NoInterface`], [`Error::Kernel`].
pub fn find(interface: &str) -> Result<Option<LeftOver>, Error> {
    let ifindex = interface_index(interface)?;
    let refuse =
        |source| Error::Kernel { action: format!("ask what is attached to {interface}"), source };
    let Some(attached) = netlink::attached(ifindex).map_err(refuse)? else { return Ok(None) };
    let program = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == attached.program_id);
    Ok(program
        .as_ref()
        .and_then(|program| program.name_as_str())
        .filter(|name| name.starts_with(PROGRAM_PREFIX))
        .map(|name| LeftOver {
            interface: interface.into(),
            program_id: attached.program_id,
            program: name.into(),
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
            detach_link(ifindex).map_err(refuse)?;
        }
        result => result.map_err(refuse)?,
    }
    Ok(true)
}

/// `bpf(2)` commands and the one link type used (`linux/bpf.h`).
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_GET_FD_BY_ID: libc::c_long = 30;
const LINK_GET_NEXT_ID: libc::c_long = 31;
const LINK_DETACH: libc::c_long = 34;
const LINK_TYPE_XDP: u32 = 6;

/// The part of `union bpf_attr` these commands read: three 32-bit words, or two and an address.
#[derive(Default)]
#[repr(C)]
struct Attributes {
    word: [u32; 2],
    address: u64,
}

/// `struct bpf_link_info`, up to the interface of an XDP link.
#[derive(Default)]
#[repr(C, align(8))]
struct LinkInfo {
    kind: u32,
    id: u32,
    program_id: u32,
    padding: u32,
    ifindex: u32,
    rest: [u32; 11],
}

fn bpf(command: libc::c_long, attributes: &mut Attributes) -> io::Result<RawFd> {
    let length = mem::size_of::<Attributes>();
    // SAFETY: the attributes live through the call and have the length that is passed; an address
    // in them is that of a live `LinkInfo`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, length) };
    RawFd::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)
}

fn detach_link(ifindex: u32) -> io::Result<()> {
    let mut id = 0;
    loop {
        let mut next = Attributes { word: [id, 0], address: 0 };
        match bpf(LINK_GET_NEXT_ID, &mut next) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                return Err(io::Error::from_raw_os_error(libc::EBUSY));
            }
            result => result?,
        };
        id = next.word[1];
        // A link may vanish between the two calls.
        let Ok(fd) = bpf(LINK_GET_FD_BY_ID, &mut Attributes { word: [id, 0], address: 0 }) else {
            continue;
        };
        // SAFETY: just opened by the kernel for us.
        let link = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut info = LinkInfo::default();
        let fd = u32::try_from(link.as_raw_fd()).unwrap_or(u32::MAX);
        let length = u32::try_from(mem::size_of::<LinkInfo>()).unwrap_or(0);
        let address = (&raw mut info).expose_provenance() as u64;
        bpf(OBJ_GET_INFO_BY_FD, &mut Attributes { word: [fd, length], address })?;
        if info.kind == LINK_TYPE_XDP && info.ifindex == ifindex {
            bpf(LINK_DETACH, &mut Attributes { word: [fd, 0], address: 0 })?;
            return Ok(());
        }
    }
}
