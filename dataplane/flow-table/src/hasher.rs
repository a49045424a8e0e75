//! Hashes of tuples under a secret key.
//!
//! Whoever knows the key can fill a bucket at will, so it must be random and stay in the node. The
//! rounds of AES mix every bit of a tuple with it; a processor without AES instructions multiplies
//! instead. The two give different hashes: tables that outlive a process must be read with the
//! kind of hasher they were written with.
//!
//! A hash tells direction. A key type that wants both directions of a flow under one hash orders
//! the two endpoints before it makes the words.

/// The longest input, in words.
pub const INPUT_WORDS_MAX: usize = 8;

/// Words of key material: a pair for each pair of input words, and three for the rounds.
const PAIRS: usize = INPUT_WORDS_MAX / 2;

/// Hashes fixed-size inputs; the same key gives the same hashes on every machine of a kind.
#[derive(Clone)]
pub struct Hasher {
    /// Added to each pair of input words.
    whitening: [[u64; 2]; PAIRS],
    rounds: [[u64; 2]; 3],
    #[cfg(target_arch = "x86_64")]
    aes: Option<aes::Aes>,
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher(secret key)")
    }
}

impl Hasher {
    /// The fastest hasher this processor has. `key` must be random and secret.
    #[must_use]
    pub fn new(key: [u64; 2]) -> Self {
        #[allow(unused_mut, reason = "changed only where there may be AES instructions")]
        let mut hasher = Self::portable(key);
        #[cfg(target_arch = "x86_64")]
        {
            hasher.aes = aes::Aes::detect();
        }
        hasher
    }

    /// The hasher that every processor has.
    #[must_use]
    pub fn portable(key: [u64; 2]) -> Self {
        let mut state = key;
        let mut pair = || {
            // SplitMix64 (Steele, Lea, Flood 2014) on both halves, each word made of both.
            let [a, b] = state.map(|word| splitmix(word.wrapping_add(0x9E37_79B9_7F4A_7C15)));
            state = [a, b];
            [a ^ b.rotate_left(32), splitmix(a).wrapping_add(b)]
        };
        Self {
            whitening: std::array::from_fn(|_| pair()),
            rounds: std::array::from_fn(|_| pair()),
            #[cfg(target_arch = "x86_64")]
            aes: None,
        }
    }

    /// The hash of one input of at most [`INPUT_WORDS_MAX`] words.
    #[inline]
    #[must_use]
    pub fn hash<const N: usize>(&self, input: &[u64; N]) -> u64 {
        #[cfg(target_arch = "x86_64")]
        if let (Some(aes), [first, rest @ ..]) = (self.aes, &input[..])
            && rest.len() <= 1
        {
            return aes.hash_pair(self, *first, rest.first().copied().unwrap_or(0));
        }
        let mut hash = [0];
        self.hash_burst(std::slice::from_ref(input), &mut hash);
        hash[0]
    }

    /// The hash of each input, of as many as both slices have.
    #[inline]
    pub fn hash_burst<const N: usize>(&self, inputs: &[[u64; N]], hashes: &mut [u64]) {
        const { assert!(N > 0 && N <= INPUT_WORDS_MAX, "an input has 1 to 8 words") }
        #[cfg(target_arch = "x86_64")]
        if let Some(aes) = self.aes {
            return aes.hash_burst(self, inputs, hashes);
        }
        for (input, hash) in inputs.iter().zip(hashes) {
            *hash = self.hash_portable(input);
        }
    }

    fn hash_portable<const N: usize>(&self, input: &[u64; N]) -> u64 {
        let [[seed, a], [b, c], _] = self.rounds;
        let mixed = input.chunks(2).zip(&self.whitening).fold(seed, |mixed, (words, key)| {
            let second = words.get(1).copied().unwrap_or(0);
            fold(words[0] ^ key[0] ^ mixed, second ^ key[1] ^ mixed.rotate_left(32))
        });
        fold(mixed ^ a, b) ^ c
    }
}

/// The finaliser of SplitMix64.
fn splitmix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// Both halves of the product, added without carry.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is what is meant")]
    let lower = product as u64;
    (product >> 64) as u64 ^ lower
}

#[cfg(target_arch = "x86_64")]
mod aes {
    //! AES-NI. Every pair of words is whitened by a key of its own and takes two rounds, after
    //! which each of its bits has reached every byte; the sum of the pairs takes a third.

    use std::arch::x86_64::{
        __m128i, _mm_aesenc_si128, _mm_cvtsi128_si64, _mm_set_epi64x, _mm_setzero_si128,
        _mm_xor_si128,
    };

    use super::Hasher;

    /// Proves that the processor has AES instructions.
    #[derive(Debug, Clone, Copy)]
    pub(super) struct Aes(());

    impl Aes {
        pub(super) fn detect() -> Option<Self> {
            is_x86_feature_detected!("aes").then_some(Self(()))
        }

        #[inline]
        pub(super) fn hash_burst<const N: usize>(
            self,
            hasher: &Hasher,
            inputs: &[[u64; N]],
            hashes: &mut [u64],
        ) {
            // SAFETY: `self` exists only where the AES instructions were detected.
            unsafe { hash_burst(hasher, inputs, hashes) }
        }
    }

    impl Aes {
        /// The hash of a single input of one or two words, which come in registers: written to
        /// memory one by one and read as a pair, they would be waited for.
        #[inline]
        pub(super) fn hash_pair(self, hasher: &Hasher, first: u64, second: u64) -> u64 {
            // SAFETY: `self` exists only where the AES instructions were detected.
            unsafe { hash_pair(hasher, first, second) }
        }
    }

    #[target_feature(enable = "aes")]
    fn hash_pair(hasher: &Hasher, first: u64, second: u64) -> u64 {
        let [one, two, three] = hasher.rounds.map(|words| pair(words));
        let mixed = _mm_xor_si128(pair([first, second]), pair(hasher.whitening[0]));
        let sum = _mm_aesenc_si128(_mm_aesenc_si128(mixed, one), two);
        _mm_cvtsi128_si64(_mm_aesenc_si128(sum, three)).cast_unsigned()
    }

    #[target_feature(enable = "aes")]
    fn hash_burst<const N: usize>(hasher: &Hasher, inputs: &[[u64; N]], hashes: &mut [u64]) {
        let whitening = hasher.whitening.map(|words| pair(words));
        let rounds = hasher.rounds.map(|words| pair(words));
        for (input, hash) in inputs.iter().zip(hashes) {
            let mut sum = _mm_setzero_si128();
            for (words, key) in input.chunks(2).zip(&whitening) {
                let second = words.get(1).copied().unwrap_or(0);
                let mixed = _mm_xor_si128(pair([words[0], second]), *key);
                let mixed = _mm_aesenc_si128(mixed, rounds[0]);
                sum = _mm_xor_si128(sum, _mm_aesenc_si128(mixed, rounds[1]));
            }
            *hash = _mm_cvtsi128_si64(_mm_aesenc_si128(sum, rounds[2])).cast_unsigned();
        }
    }

    #[inline]
    #[target_feature(enable = "aes")]
    fn pair(words: [u64; 2]) -> __m128i {
        _mm_set_epi64x(words[1].cast_signed(), words[0].cast_signed())
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

    /// How often each of the 64 bits is set, and the number of equal 36-bit heads, among the
    /// hashes of inputs that differ in few bits.
    fn spread(hasher: &Hasher) -> ([u32; 64], usize) {
        let mut hashes: Vec<_> = (0..1u64 << 16)
            .map(|n| hasher.hash(&[0x0a00_0000_0a60_0000 + (n & 0xff), (n >> 8) << 16]))
            .collect();
        let ones = std::array::from_fn(|bit| hashes.iter().map(|h| (h >> bit) as u32 & 1).sum());
        hashes.sort_unstable();
        let equal = hashes.windows(2).filter(|pair| pair[0] >> 28 == pair[1] >> 28).count();
        (ones, equal)
    }

    #[test]
    fn a_key_gives_the_same_hashes_in_every_process() {
        let portable = Hasher::portable(KEY);
        assert_eq!(
            [portable.hash(&[1, 2]), portable.hash(&[1, 2, 3, 4, 5])],
            [11048799450545650311, 12054354420246176108]
        );
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("aes") {
            let hasher = Hasher::new(KEY);
            assert_eq!(
                [hasher.hash(&[1, 2]), hasher.hash(&[1, 2, 3, 4, 5])],
                [7659859629630541493, 1227911594782487393]
            );
        }
    }

    #[test]
    fn hashes_of_similar_inputs_are_spread_evenly() {
        for hasher in [Hasher::new(KEY), Hasher::portable(KEY)] {
            let (ones, equal) = spread(&hasher);
            // Each bit: mean 32,768, deviation 128. Heads: 0.03 equal pairs to be expected.
            assert!(ones.iter().all(|ones| ones.abs_diff(1 << 15) < 128 * 6), "{ones:?}");
            assert!(equal <= 2, "{equal} of 65,536 heads are equal");
        }
    }

    #[test]
    fn a_burst_hashes_as_single_inputs_do() {
        for hasher in [Hasher::new(KEY), Hasher::portable(KEY)] {
            let inputs: Vec<_> = (0..33u64).map(|n| [n, n * n, !n, 7, n << 60]).collect();
            let mut hashes = vec![0; inputs.len()];
            hasher.hash_burst(&inputs, &mut hashes);
            let single: Vec<_> = inputs.iter().map(|input| hasher.hash(input)).collect();
            assert_eq!(hashes, single);
        }
    }

    #[test]
    fn every_word_and_the_key_matter() {
        for kind in [Hasher::new, Hasher::portable] {
            let input = [1u64, 2, 3, 4, 5];
            let base = kind(KEY).hash(&input);
            for word in 0..input.len() {
                let mut changed = input;
                changed[word] ^= 1 << 63;
                assert_ne!(kind(KEY).hash(&changed), base, "word {word}");
            }
            assert_ne!(kind([KEY[0] ^ 1, KEY[1]]).hash(&input), base);
            assert_ne!(kind([KEY[0], KEY[1] ^ 1]).hash(&input), base);
            assert_ne!(kind(KEY).hash(&[1, 2, 1, 2]), kind(KEY).hash(&[2, 1, 2, 1]));
        }
    }
}
