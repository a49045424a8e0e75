//! The Internet checksum: RFC 1071 for whole sums, RFC 1624 for changes.

/// An unfolded one's complement sum. Additions commute, so parts may be added in any order as long
/// as each begins at an even offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes that begin at an even offset; an odd last byte is padded with zero (RFC 1071, 1).
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        // Words are added as they lie in memory and the result is swapped once (RFC 1071, 2 B):
        // this is what the compiler can do for many words in one instruction. Four bytes at a time
        // into 64 bits, so that 2^32 additions fit before a carry is lost (RFC 1071, 2 C).
        let (words, rest) = bytes.as_chunks::<4>();
        let mut last = [0; 4];
        for (into, byte) in last.iter_mut().zip(rest) {
            *into = *byte;
        }
        let sum = words.iter().fold(u64::from(u32::from_ne_bytes(last)), |sum, word| {
            sum + u64::from(u32::from_ne_bytes(*word))
        });
        self.word(u16::from_be(fold(sum)))
    }

    /// Adds one 16-bit word.
    #[inline(always)]
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word))
    }

    /// Folds to 16 bits, not complemented.
    #[inline(always)]
    #[must_use]
    pub fn fold(self) -> u16 {
        fold(self.0)
    }

    /// The checksum: the one's complement of the folded sum.
    #[must_use]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// Adds the carries back in (RFC 1071, 2 C): of a word and the same with its halves exchanged, the
/// upper half of the sum is both halves and the carry of the lower one.
#[inline(always)]
fn fold(sum: u64) -> u16 {
    let [a, b, c, d, ..] = sum.wrapping_add(sum.rotate_left(32)).to_be_bytes();
    let sum = u32::from_be_bytes([a, b, c, d]);
    let [high, low, ..] = sum.wrapping_add(sum.rotate_left(16)).to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// The four 32-bit words of an address, added.
#[inline(always)]
fn sum_of_words(address: u128) -> u64 {
    let half = |half: u128| u64::try_from(half & u128::from(u64::MAX)).unwrap_or(u64::MAX);
    let (high, low) = (half(address >> 64), half(address));
    (high >> 32) + (high & 0xffff_ffff) + (low >> 32) + (low & 0xffff_ffff)
}

/// What a change of covered bytes does to a checksum, to be applied to every checksum that covers
/// them.
///
/// RFC 1624, eqn. 3: `HC' = ~(~HC + ~m + m')`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delta(Sum);

impl Delta {
    /// Also replaces the 16-bit word `old` by `new`.
    #[inline(always)]
    #[must_use]
    pub fn word(self, old: u16, new: u16) -> Self {
        Self(self.0.word(!old).word(new))
    }

    /// Also replaces the 32-bit word `old` by `new`.
    #[inline(always)]
    #[must_use]
    pub fn word32(self, old: u32, new: u32) -> Self {
        Self(Sum(self.0.0 + u64::from(!old) + u64::from(new)))
    }

    /// Also replaces the 64-bit word `old` by `new`.
    #[inline(always)]
    #[must_use]
    pub fn word64(self, old: u64, new: u64) -> Self {
        // A carry out of 64 bits is worth one, as one out of 16 is.
        let (sum, carry) = (!old).overflowing_add(new);
        let sum = sum + u64::from(carry);
        Self(Sum(self.0.0 + (sum >> 32) + (sum & 0xffff_ffff)))
    }

    /// Also replaces the IPv6 address `old` by `new`.
    #[inline(always)]
    #[must_use]
    pub fn word128(self, old: u128, new: u128) -> Self {
        Self(Sum(self.0.0 + sum_of_words(!old) + sum_of_words(new)))
    }

    /// The checksum after the change.
    #[inline(always)]
    #[must_use]
    pub fn apply(self, checksum: u16) -> u16 {
        !self.0.word(!checksum).fold()
    }
}

/// The sum over the pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1): addresses as they stand in the
/// IP header, protocol and upper-layer length in bytes.
#[must_use]
pub fn pseudo_header(addresses: &[u8], protocol: u8, len: usize) -> Sum {
    let len = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
    Sum::default().bytes(addresses).word(u16::from(protocol)).bytes(&len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sum_of_the_example_in_rfc_1071() {
        let example = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().bytes(&example).fold(), 0xddf2);
    }

    #[test]
    fn update_of_the_example_in_rfc_1624() {
        assert_eq!(Delta::default().word(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    proptest! {
        #[test]
        fn folding_is_the_remainder_by_all_ones(sum in any::<u64>()) {
            let remainder = u16::try_from(sum % 0xffff).expect("less than 16 bits hold");
            let expected = if sum != 0 && remainder == 0 { 0xffff } else { remainder };
            prop_assert_eq!(fold(sum), expected);
        }

        #[test]
        fn incremental_update_equals_a_full_sum(
            mut bytes in proptest::collection::vec(any::<u8>(), 8..64),
            new in any::<u32>(),
        ) {
            prop_assume!(bytes.iter().any(|byte| *byte != 0));
            bytes[6] = 1; // the sum of all zeros has no complement to tell apart
            let before = Sum::default().bytes(&bytes).checksum();
            let old = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            bytes[..4].copy_from_slice(&new.to_be_bytes());
            let after = Sum::default().bytes(&bytes).checksum();
            prop_assert_eq!(Delta::default().word32(old, new).apply(before), after);
        }

        #[test]
        fn update_of_an_ipv6_address_equals_a_full_sum(
            old in any::<u128>(),
            new in any::<u128>(),
            rest in any::<u32>(),
        ) {
            let sum_of = |address: u128| {
                Sum::default().bytes(&address.to_be_bytes()).bytes(&(rest | 1).to_be_bytes())
            };
            let updated = Delta::default().word128(old, new).apply(sum_of(old).checksum());
            prop_assert_eq!(updated, sum_of(new).checksum());
        }

        #[test]
        fn sum_may_be_split_at_any_even_offset(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            at in 0usize..100,
        ) {
            let at = (at * 2).min(bytes.len() & !1);
            let parts = Sum::default().bytes(&bytes[..at]).bytes(&bytes[at..]);
            prop_assert_eq!(parts.fold(), Sum::default().bytes(&bytes).fold());
        }
    }
}
