//! SCTP's checksum, CRC32c (RFC 9260, 6.8 and appendix A), for whole packets and for changes.
//!
//! A CRC is linear: what a change of some bytes does to it depends on their difference and on how many
//! bytes follow, and on nothing else of the packet.

/// The polynomial 0x1EDC6F41, its bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// What one byte does.
const TABLE: [u32; 256] = table();
/// By place k, what 2^k bytes of zero multiply by.
const ZEROS: [u32; 16] = zeros();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0u32;
    let mut place = 0;
    while place < 256 {
        let mut crc = byte;
        let mut bit = 0;
        while bit < 8 {
            crc = times_x(crc);
            bit += 1;
        }
        table[place] = crc;
        byte += 1;
        place += 1;
    }
    table
}

const fn zeros() -> [u32; 16] {
    // x^8: one byte. The highest power is the lowest bit.
    let mut powers = [0x0080_0000; 16];
    let mut place = 1;
    while place < 16 {
        powers[place] = multiplied(powers[place - 1], powers[place - 1]);
        place += 1;
    }
    powers
}

const fn times_x(value: u32) -> u32 {
    if value & 1 == 1 { (value >> 1) ^ POLYNOMIAL } else { value >> 1 }
}

/// The product modulo the polynomial.
const fn multiplied(mut one: u32, other: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        if other & (0x8000_0000 >> bit) != 0 {
            product ^= one;
        }
        one = times_x(one);
        bit += 1;
    }
    product
}

/// A sum over bytes that have come so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crc32c(u32);

impl Crc32c {
    /// Of no bytes.
    pub const NONE: Self = Self(u32::MAX);

    /// And these.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(self.0, |crc, byte| advanced(crc, *byte)))
    }

    /// As it stands in the packet.
    #[must_use]
    pub fn field(self) -> [u8; 4] {
        (!self.0).to_le_bytes()
    }
}

fn advanced(crc: u32, byte: u8) -> u32 {
    let [low, ..] = crc.to_le_bytes();
    crc >> 8 ^ TABLE[usize::from(low ^ byte)]
}

/// `field`, the checksum of a packet whose 4 bytes `old` become `new`, with `following` bytes behind
/// them.
#[must_use]
pub fn changed(field: [u8; 4], old: [u8; 4], new: [u8; 4], following: u16) -> [u8; 4] {
    let difference = old.iter().zip(new).map(|(old, new)| old ^ new);
    let mut change = difference.fold(0, advanced);
    for (place, power) in ZEROS.iter().enumerate() {
        if following >> place & 1 == 1 {
            change = multiplied(change, *power);
        }
    }
    (u32::from_le_bytes(field) ^ change).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 3720, B.4 (iSCSI has the same checksum).
    #[test]
    fn examples_of_rfc_3720_come_out() {
        let of = |bytes: &[u8]| Crc32c::NONE.bytes(bytes).field();
        assert_eq!(of(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(of(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(of(&rising), [0x4e, 0x79, 0xdd, 0x46]);
    }

    proptest! {
        #[test]
        fn change_equals_a_sum_made_anew(
            mut bytes in proptest::collection::vec(any::<u8>(), 4..2000),
            new in any::<[u8; 4]>(),
        ) {
            let before = Crc32c::NONE.bytes(&bytes).field();
            let old = [bytes[0], bytes[1], bytes[2], bytes[3]];
            bytes[..4].copy_from_slice(&new);
            let following = u16::try_from(bytes.len() - 4).expect("less than 2,000");
            let after = Crc32c::NONE.bytes(&bytes).field();
            prop_assert_eq!(changed(before, old, new, following), after);
        }
    }
}
