//! Whether live frames arrive: what a veth interface counts of them.
//!
//! A peer that polls nothing (no XDP program, GRO off) has no ring, and the kernel throws live
//! frames away without a counter or an error: that shows only in that fewer were taken than were
//! sent. A full ring (256 packets) refuses what comes, which is counted.

use std::ffi::c_void;
use std::io;

use crate::error::Error;
use crate::ethtool;

const STRING_BYTES: usize = 32;
/// Statistics of one interface that are read at most: a veth has some ten for each queue.
const STATISTICS_MAX: usize = 8192;
/// `ETHTOOL_GSSET_INFO`, `ETHTOOL_GSTRINGS`, `ETHTOOL_GSTATS`, `ETH_SS_STATS`.
const GET_SET_INFO: u32 = 0x37;
const GET_STRINGS: u32 = 0x1b;
const GET_STATISTICS: u32 = 0x1d;
const SET_STATISTICS: u32 = 1;

/// What the peers' rings of a veth interface did with redirected frames, since it was made; those of
/// everybody, not of this process alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delivery {
    /// Taken.
    pub taken: u64,
    /// Refused: the ring was full, or a frame longer than the peer's MTU.
    pub refused: u64,
}

impl Delivery {
    /// Both since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            taken: self.taken.saturating_sub(before.taken),
            refused: self.refused.saturating_sub(before.refused),
        }
    }
}

/// Reads what `interface`, in this thread's network namespace, delivered; `None` when it counts no
/// such thing, as all but veth.
///
/// # Errors
/// [`Error::Kernel`], such as ENODEV.
pub fn delivery(interface: &str) -> Result<Option<Delivery>, Error> {
    let refuse = |source: io::Error| {
        if source.raw_os_error() == Some(libc::EOPNOTSUPP) {
            return Ok(None);
        }
        Err(Error::Kernel { action: format!("read the statistics of {interface}"), source })
    };
    match read(interface) {
        Ok(found) => Ok(found),
        Err(source) => refuse(source),
    }
}

fn read(interface: &str) -> io::Result<Option<Delivery>> {
    // Between two of the calls queues may come: the kernel writes as many as there are then, so there
    // is room for more than it says, and the second answer has to be of as many as the first.
    let count = count(interface)?;
    if count == 0 || count > STATISTICS_MAX / 2 {
        return Ok(None);
    }
    let mut names = header(GET_STRINGS, SET_STATISTICS, 12, STATISTICS_MAX * STRING_BYTES);
    call(interface, &mut names)?;
    let mut values = header(GET_STATISTICS, 0, 8, STATISTICS_MAX * 8);
    call(interface, &mut values)?;
    let mut found = None;
    for number in 0..count {
        let name = &names[12 + number * STRING_BYTES..][..STRING_BYTES];
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let Some(rest) = name.strip_prefix(b"tx_queue_") else { continue };
        let mut value = [0; 8];
        value.copy_from_slice(&values[8 + number * 8..][..8]);
        let sum: &mut Delivery = found.get_or_insert_default();
        if rest.ends_with(b"_xdp_xmit") {
            sum.taken += u64::from_ne_bytes(value);
        } else if rest.ends_with(b"_xdp_xmit_errors") {
            sum.refused += u64::from_ne_bytes(value);
        }
    }
    Ok(found)
}

fn count(interface: &str) -> io::Result<usize> {
    // struct ethtool_sset_info: command, reserved, mask, one length.
    let mut request = header(GET_SET_INFO, 0, 16, 8);
    request[8..16].copy_from_slice(&(1u64 << SET_STATISTICS).to_ne_bytes());
    call(interface, &mut request)?;
    let mut length = [0; 4];
    length.copy_from_slice(&request[16..20]);
    Ok(usize::try_from(u32::from_ne_bytes(length)).unwrap_or(usize::MAX))
}

/// A request with room for its answer behind it.
fn header(command: u32, second: u32, header_bytes: usize, answer_bytes: usize) -> Vec<u8> {
    let mut request = vec![0; header_bytes + answer_bytes];
    request[..4].copy_from_slice(&command.to_ne_bytes());
    request[4..8].copy_from_slice(&second.to_ne_bytes());
    request
}

fn call(interface: &str, request: &mut [u8]) -> io::Result<()> {
    // SAFETY: each request has room for what its command writes: one number for one set; for
    // strings and statistics twice as many as were there a moment ago, and more than any veth's
    // queues (4,096) have of those that are looked at.
    unsafe { ethtool::control(interface, request.as_mut_ptr().cast::<c_void>()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_without_such_counters_has_none_and_an_absent_one_is_an_error() {
        assert_eq!(delivery("lo").expect("it is there"), None);
        let error = delivery("no-such-if0").unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENODEV));
    }
}
