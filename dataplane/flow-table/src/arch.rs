//! What depends on the processor: prefetching, and comparing all slots of a bucket at once.
//!
//! A vector load over atomics that others write is a data race in Rust's memory model, so the one
//! load is an `asm!` statement, and nothing is believed of what it read: it only says which slots
//! are worth an ordinary atomic load, which checks the slot again and acquires it. Each lane is an
//! aligned 8-byte word, which x86 reads whole; were one ever torn, it could only hide a slot that
//! is being written at that instant.

use crate::entry::Handle;
use crate::index::Bucket;

/// Asks for the cache line of `place`, without waiting for it.
#[inline(always)]
pub fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that the program sees and never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// A way to find the slots of a bucket that may hold a hash.
pub(crate) trait Compare: Copy {
    /// A bit for every slot whose hash bits are those of `hash`, slot 0 in bit 0. Empty slots
    /// have the hash bits of zero.
    fn candidates(self, bucket: &Bucket, hash: u64) -> u32;

    /// The first handle under `hash` that `decide` accepts. A slot that was published before, in
    /// the order of all sequentially consistent operations, is seen: on x86, which alone has vector
    /// paths, a load that follows a locked instruction comes after it in that order.
    #[inline(always)]
    fn find<T>(
        self,
        bucket: &Bucket,
        hash: u64,
        decide: &mut impl FnMut(Handle) -> Option<T>,
    ) -> Option<T> {
        let mut candidates = self.candidates(bucket, hash);
        while candidates != 0 {
            let handle = bucket.handle(candidates.trailing_zeros() as usize, hash);
            if let Some(found) = handle.and_then(&mut *decide) {
                return Some(found);
            }
            candidates &= candidates - 1;
        }
        None
    }
}

/// Slot by slot, on any processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Portable;

impl Compare for Portable {
    #[inline(always)]
    fn candidates(self, bucket: &Bucket, hash: u64) -> u32 {
        bucket.candidates(hash)
    }

    #[inline(always)]
    fn find<T>(
        self,
        bucket: &Bucket,
        hash: u64,
        decide: &mut impl FnMut(Handle) -> Option<T>,
    ) -> Option<T> {
        bucket.find(hash, decide)
    }
}

/// The way chosen for this processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    Portable,
    #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
    Avx2(vector::Avx2),
    #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
    Avx512(vector::Avx512),
}

impl Path {
    /// Every way this processor knows, the best one last.
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        let paths = [
            Some(Self::Portable),
            #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
            vector::Avx2::detect().map(Self::Avx2),
            #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
            vector::Avx512::detect().map(Self::Avx512),
        ];
        paths.into_iter().flatten()
    }

    /// The best way this processor knows.
    pub(crate) fn best() -> Self {
        Self::available().last().unwrap_or(Self::Portable)
    }
}

#[cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
pub(crate) mod vector {
    //! AVX2 and AVX-512. A value of either type proves that the processor has the feature.

    use std::arch::asm;
    use std::arch::x86_64::{
        __m256i, __m512i, _mm256_castsi256_pd, _mm256_cmpeq_epi64, _mm256_movemask_pd,
        _mm256_set1_epi64x, _mm256_setzero_si256, _mm256_srli_epi64, _mm256_xor_si256,
        _mm512_set1_epi64, _mm512_srli_epi64, _mm512_testn_epi64_mask, _mm512_xor_si512,
    };

    use super::{Bucket, Compare};
    use crate::entry::HANDLE_BITS;

    /// Two loads of 32 bytes.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Avx2(());

    impl Avx2 {
        pub(crate) fn detect() -> Option<Self> {
            is_x86_feature_detected!("avx2").then_some(Self(()))
        }
    }

    impl Compare for Avx2 {
        #[inline(always)]
        fn candidates(self, bucket: &Bucket, hash: u64) -> u32 {
            // SAFETY: `self` exists only where AVX2 was detected.
            unsafe { candidates_avx2(bucket, hash) }
        }
    }

    /// One load of the whole line.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Avx512(());

    impl Avx512 {
        pub(crate) fn detect() -> Option<Self> {
            is_x86_feature_detected!("avx512f").then_some(Self(()))
        }
    }

    impl Compare for Avx512 {
        #[inline(always)]
        fn candidates(self, bucket: &Bucket, hash: u64) -> u32 {
            // SAFETY: `self` exists only where AVX-512F was detected.
            unsafe { candidates_avx512(bucket, hash) }
        }
    }

    const SHIFT_256: i32 = HANDLE_BITS.cast_signed();

    #[inline]
    #[target_feature(enable = "avx2")]
    fn candidates_avx2(bucket: &Bucket, hash: u64) -> u32 {
        let (low, high): (__m256i, __m256i);
        // SAFETY: reads the 64 bytes of `bucket`, which is aligned to 64 and lives through the
        // statement; other threads may write them meanwhile (see the module's text).
        unsafe {
            asm!(
                "vmovdqa {low}, ymmword ptr [{bucket}]",
                "vmovdqa {high}, ymmword ptr [{bucket} + 32]",
                bucket = in(reg) bucket,
                low = out(ymm_reg) low,
                high = out(ymm_reg) high,
                options(readonly, nostack, preserves_flags),
            );
        }
        let wanted = _mm256_set1_epi64x(hash.cast_signed());
        let equal = |half: __m256i| {
            let differing = _mm256_srli_epi64::<SHIFT_256>(_mm256_xor_si256(half, wanted));
            let equal = _mm256_cmpeq_epi64(differing, _mm256_setzero_si256());
            _mm256_movemask_pd(_mm256_castsi256_pd(equal)).cast_unsigned()
        };
        // Lane 0 is the meta word.
        (equal(low) | equal(high) << 4) >> 1
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn candidates_avx512(bucket: &Bucket, hash: u64) -> u32 {
        let line: __m512i;
        // SAFETY: as in `candidates_avx2`.
        unsafe {
            asm!(
                "vmovdqa64 {line}, zmmword ptr [{bucket}]",
                bucket = in(reg) bucket,
                line = out(zmm_reg) line,
                options(readonly, nostack, preserves_flags),
            );
        }
        let wanted = _mm512_set1_epi64(hash.cast_signed());
        let differing = _mm512_srli_epi64::<HANDLE_BITS>(_mm512_xor_si512(line, wanted));
        // Lane 0 is the meta word.
        u32::from(_mm512_testn_epi64_mask(differing, differing)) >> 1
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Hashes that collide often, in the bits that count and in those that do not.
    fn word() -> impl Strategy<Value = u64> {
        prop_oneof![
            Just(0),
            (0u64..4, 0u64..3).prop_map(|(hash, rest)| hash << HANDLE_BITS | rest),
            (0u64..4).prop_map(|hash| hash << 62),
            any::<u64>(),
        ]
    }
    use crate::entry::HANDLE_BITS;

    proptest! {
        #[test]
        fn every_path_finds_the_slots_that_the_portable_one_finds(
            words in prop::array::uniform8(word()),
            hash in word(),
        ) {
            let bucket = Bucket::of_words(words);
            let expected = Portable.candidates(&bucket, hash);
            for path in Path::available() {
                let found = match path {
                    Path::Portable => expected,
                    #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
                    Path::Avx2(avx2) => avx2.candidates(&bucket, hash),
                    #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
                    Path::Avx512(avx512) => avx512.candidates(&bucket, hash),
                };
                prop_assert_eq!(found, expected, "{:?}", path);
            }
        }
    }
}
