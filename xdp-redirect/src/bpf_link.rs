//! What the kernel tells of the links by which programs are attached (`bpf(2)`, `linux/bpf.h`), as
//! far as no crate asks it: which interface an XDP link is on, and taking it off there.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `bpf(2)` commands and the one link type used.
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_GET_FD_BY_ID: libc::c_long = 30;
const LINK_GET_NEXT_ID: libc::c_long = 31;
const LINK_DETACH: libc::c_long = 34;
const LINK_TYPE_XDP: u32 = 6;

/// The parts of `union bpf_attr` that these commands read are two 64-bit words at most: two 32-bit
/// words and an address, or an address and two 32-bit words.
#[derive(Default)]
#[repr(C)]
struct Attributes([u64; 2]);

impl Attributes {
    fn words(first: u32, second: u32) -> Self {
        Self([joined(first, second), 0])
    }
}

/// Two 32-bit words that follow each other in memory.
fn joined(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
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
    // in them is that of a `LinkInfo` or of a terminated string that outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, length) };
    RawFd::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)
}

fn descriptor(command: libc::c_long, attributes: &mut Attributes) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)
}

fn terminated(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Which program an XDP link has put where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct XdpLinkInfo {
    /// Index of the interface, in a network namespace that is not told: 0 once it is gone.
    pub ifindex: u32,
    /// The kernel's number of the program.
    pub program_id: u32,
}

/// What the kernel tells of an XDP link; `None` for a link of another kind.
pub(crate) fn info(link: BorrowedFd<'_>) -> io::Result<Option<XdpLinkInfo>> {
    let mut info = LinkInfo::default();
    let length = u32::try_from(mem::size_of::<LinkInfo>()).unwrap_or(0);
    let address = (&raw mut info).expose_provenance() as u64;
    bpf(OBJ_GET_INFO_BY_FD, &mut Attributes([joined(number(link), length), address]))?;
    let LinkInfo { kind, ifindex, program_id, .. } = info;
    Ok((kind == LINK_TYPE_XDP).then_some(XdpLinkInfo { ifindex, program_id }))
}

/// Opens the object that is pinned at `path`.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = terminated(path)?;
    descriptor(OBJ_GET, &mut Attributes([path.as_ptr().expose_provenance() as u64, 0]))
}

/// The XDP link that has put this program on this interface. (Interfaces of two network namespaces
/// may have one index, but one program is in one namespace.)
///
/// # Errors
/// `ENOENT` when there is none.
pub(crate) fn find(wanted: XdpLinkInfo) -> io::Result<OwnedFd> {
    let mut id = 0;
    loop {
        let mut next = Attributes::words(id, 0);
        bpf(LINK_GET_NEXT_ID, &mut next)?;
        let [_, _, _, _, a, b, c, d] = next.0[0].to_ne_bytes();
        id = u32::from_ne_bytes([a, b, c, d]);
        // A link may vanish between the two calls.
        let Ok(link) = descriptor(LINK_GET_FD_BY_ID, &mut Attributes::words(id, 0)) else {
            continue;
        };
        if info(link.as_fd())? == Some(wanted) {
            return Ok(link);
        }
    }
}

/// Takes a link off its interface, whoever holds it.
pub(crate) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(LINK_DETACH, &mut Attributes::words(number(link), 0))?;
    Ok(())
}
