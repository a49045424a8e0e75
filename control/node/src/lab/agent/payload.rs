//! Bytes that both ends can predict from a seed and a position, so that every byte of a transfer
//! is checked as it arrives, also of one that ends early.

/// Bytes made at once; a multiple of a word.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// The 64-bit word number `index` of stream `seed`: SplitMix64 (Steele, Lea, Flood 2014), whose
/// n-th output needs no earlier one.
fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fills `bytes` with stream `seed` from byte `position` on.
pub fn fill(seed: u64, position: u64, bytes: &mut [u8]) {
    let mut filled = 0;
    let mut index = position / 8;
    let mut skip = usize::try_from(position % 8).unwrap_or(0);
    while filled < bytes.len() {
        let source = &word(seed, index).to_le_bytes()[skip..];
        let length = source.len().min(bytes.len() - filled);
        bytes[filled..filled + length].copy_from_slice(&source[..length]);
        filled += length;
        index += 1;
        skip = 0;
    }
}

/// Whether `bytes` are stream `seed` from byte `position` on. `scratch` saves allocations.
pub fn matches(seed: u64, position: u64, bytes: &[u8], scratch: &mut Vec<u8>) -> bool {
    scratch.resize(bytes.len(), 0);
    fill(seed, position, scratch);
    scratch == bytes
}

#[cfg(test)]
mod tests {
    use super::{fill, matches};

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let mut whole = [0u8; 100];
        fill(7, 0, &mut whole);
        for start in 0..40u8 {
            let part = &whole[usize::from(start)..90];
            assert!(matches(7, u64::from(start), part, &mut Vec::new()), "from byte {start}");
        }
    }

    #[test]
    fn another_seed_another_position_or_one_wrong_bit_is_noticed() {
        let mut bytes = [0u8; 64];
        fill(7, 8, &mut bytes);
        let scratch = &mut Vec::new();
        assert!(!matches(8, 8, &bytes, scratch));
        assert!(!matches(7, 16, &bytes, scratch));
        bytes[63] ^= 1;
        assert!(!matches(7, 8, &bytes, scratch));
    }
}
