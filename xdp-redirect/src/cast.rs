//! Conversions that cannot lose anything on the machines we run on, in one place.

/// `usize` has at least 32 bits wherever Linux has AF_XDP.
const _: () = assert!(usize::BITS >= 32);

/// A 32-bit number as an index.
#[inline]
pub(crate) const fn index(value: u32) -> usize {
    value as usize
}
