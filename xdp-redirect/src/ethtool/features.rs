//! Offloads that have a name and no command of their own (`ETHTOOL_GFEATURES`, `ETHTOOL_SFEATURES`).

use std::io;

use super::control;

const GET_SET_INFO: u32 = 0x37;
const GET_STRINGS: u32 = 0x1b;
const GET_FEATURES: u32 = 0x3a;
const SET_FEATURES: u32 = 0x3b;
/// `ETH_SS_FEATURES`: the set of the names of features.
const NAMES: u32 = 4;
/// `ETH_GSTRING_LEN`.
const NAME_BYTES: usize = 32;
/// Features that are asked for at most; kernels have about sixty.
const FEATURES: usize = 256;
const BLOCKS: usize = FEATURES / 32;

/// `struct ethtool_sset_info`, of one set.
#[repr(C)]
struct SetInfo {
    command: u32,
    reserved: u32,
    mask: u64,
    count: u32,
}

/// `struct ethtool_gstrings`.
#[repr(C)]
struct Strings {
    command: u32,
    set: u32,
    count: u32,
    names: [[u8; NAME_BYTES]; FEATURES],
}

/// `struct ethtool_gfeatures`, whose blocks are of four words: available, requested, active, and those
/// that never change.
#[repr(C)]
struct Read {
    command: u32,
    blocks: u32,
    features: [[u32; 4]; BLOCKS],
}

/// `struct ethtool_sfeatures`, whose blocks are of two words: which are meant, and which of them are on.
#[repr(C)]
struct Write {
    command: u32,
    blocks: u32,
    features: [[u32; 2]; BLOCKS],
}

/// Whether the feature of this name is on; `None` when the kernel does not know it.
pub(super) fn read(interface: &str, name: &str) -> io::Result<Option<bool>> {
    let Some((block, bit, blocks)) = place(interface, name)? else { return Ok(None) };
    let mut request = Read { command: GET_FEATURES, blocks, features: [[0; 4]; BLOCKS] };
    // SAFETY: the kernel writes at most as many blocks as it is told there are, of `BLOCKS`.
    unsafe { control(interface, (&raw mut request).cast()) }?;
    Ok(Some(request.features[block][2] & bit != 0))
}

/// Switches the feature of this name.
pub(super) fn write(interface: &str, name: &str, on: bool) -> io::Result<()> {
    let Some((block, bit, blocks)) = place(interface, name)? else {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel has no such feature"));
    };
    let mut request = Write { command: SET_FEATURES, blocks, features: [[0; 2]; BLOCKS] };
    request.features[block] = [bit, if on { bit } else { 0 }];
    // SAFETY: the kernel reads as many blocks as it is told there are, of `BLOCKS`.
    unsafe { control(interface, (&raw mut request).cast()) }
}

/// The block and bit of a feature, and how many blocks there are.
fn place(interface: &str, name: &str) -> io::Result<Option<(usize, u32, u32)>> {
    let mut info = SetInfo { command: GET_SET_INFO, reserved: 0, mask: 1 << NAMES, count: 0 };
    // SAFETY: one bit of the mask is set, so that the kernel writes one count.
    unsafe { control(interface, (&raw mut info).cast()) }?;
    let count = usize::try_from(info.count).unwrap_or(usize::MAX);
    if count > FEATURES {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "it has more features than are known",
        ));
    }
    let mut strings = Box::new(Strings {
        command: GET_STRINGS,
        set: NAMES,
        count: info.count,
        names: [[0; NAME_BYTES]; FEATURES],
    });
    // SAFETY: the kernel writes `count` names, for which there is room as just checked; their number is
    // the kernel's own and does not change while it runs.
    unsafe { control(interface, (&raw mut *strings).cast()) }?;
    let is_named =
        |found: &[u8; NAME_BYTES]| found.split(|byte| *byte == 0).next() == Some(name.as_bytes());
    let found = strings.names[..count].iter().position(is_named);
    Ok(found.map(|number| (number / 32, 1 << (number % 32), info.count.div_ceil(32))))
}
