//! A hash of an address that anybody can compute, for what may take two addresses for one now and
//! then: when something that concerns it changed ([`crate::epochs`]), whether some flow has it for an
//! end ([`crate::flow_ends`]). Whoever makes addresses share one causes work, and nothing else.

use std::net::IpAddr;

use crate::flow_key::halves;

/// The odd number nearest to 2^64 divided by the golden ratio.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Of one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressHash(u64);

impl AddressHash {
    /// Of the IPv4 address with these bits.
    #[inline(always)]
    pub(crate) fn of_v4(bits: u32) -> Self {
        Self::of_word(bits.into())
    }

    /// Of the IPv6 address with these halves.
    #[inline(always)]
    pub(crate) fn of_v6(high: u64, low: u64) -> Self {
        Self::of_word(high.rotate_left(32) ^ low)
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self(word.wrapping_mul(MULTIPLIER))
    }

    /// The upper `bits` of it: well spread for few of them, and cheap.
    #[inline(always)]
    pub(crate) fn upper(self, bits: u32) -> usize {
        usize::try_from(self.0 >> (u64::BITS - bits)).unwrap_or_default()
    }

    /// All of it, with each bit of the address in many places.
    #[inline]
    pub(crate) fn mixed(self) -> u64 {
        let folded = self.0 ^ self.0 >> 32;
        let mixed = folded.wrapping_mul(MULTIPLIER);
        mixed ^ mixed >> 29
    }
}

impl From<IpAddr> for AddressHash {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address.to_bits()),
            IpAddr::V6(address) => {
                let (high, low) = halves(address.to_bits());
                Self::of_v6(high, low)
            }
        }
    }
}
