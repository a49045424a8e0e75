//! How packets spread over flows: numbers that look random, the same in every run.

/// The exponent of [`Zipf`], as is usual for traffic.
const ZIPF_EXPONENT: f64 = 0.99;

/// Numbers that look random (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Begins at a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        splitmix(self.0)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// From 0 to 1.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// How packets spread over flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// Every flow has as many.
    Uniform,
    /// The flow of rank k has a share of k to the power of -0.99.
    Zipf,
}

impl Spread {
    /// As cases name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
        }
    }
}

/// SplitMix64's output for this state.
pub fn splitmix(state: u64) -> u64 {
    let word = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Ranks by rejection-inversion (Hormann and Derflinger 1996): the integral of x to the power of
/// minus the exponent is inverted, and what falls between its steps is drawn again.
#[derive(Debug)]
pub struct Zipf {
    ranks: f64,
    low: f64,
    high: f64,
    /// Up to so far right of its rank a point is accepted without a look.
    sure: f64,
}

impl Zipf {
    /// Of so many ranks.
    pub fn new(ranks: usize) -> Self {
        let ranks = ranks as f64;
        let low = integral(1.5) - 1.0;
        let sure = 2.0 - inverse(integral(2.5) - 2f64.powf(-ZIPF_EXPONENT));
        Self { ranks, low, high: integral(ranks + 0.5), sure }
    }

    /// From 0, the most frequent one.
    pub fn rank(&self, random: &mut Random) -> usize {
        loop {
            let area = self.high + random.fraction() * (self.low - self.high);
            let point = inverse(area);
            let rank = point.round().clamp(1.0, self.ranks);
            let is_sure = rank - point <= self.sure;
            if is_sure || area >= integral(rank + 0.5) - rank.powf(-ZIPF_EXPONENT) {
                return rank as usize - 1;
            }
        }
    }
}

fn integral(x: f64) -> f64 {
    (x.powf(1.0 - ZIPF_EXPONENT) - 1.0) / (1.0 - ZIPF_EXPONENT)
}

fn inverse(area: f64) -> f64 {
    (1.0 + area * (1.0 - ZIPF_EXPONENT)).powf(1.0 / (1.0 - ZIPF_EXPONENT))
}

#[cfg(test)]
mod tests {
    use super::{Random, ZIPF_EXPONENT, Zipf};

    #[test]
    fn zipf_ranks_have_their_shares() {
        const RANKS: usize = 1000;
        const DRAWS: usize = 1_000_000;
        let (zipf, mut random) = (Zipf::new(RANKS), Random::new(1));
        let mut drawn = vec![0usize; RANKS];
        (0..DRAWS).for_each(|_| drawn[zipf.rank(&mut random)] += 1);
        let weight = |rank: usize| (rank as f64 + 1.0).powf(-ZIPF_EXPONENT);
        let whole: f64 = (0..RANKS).map(weight).sum();
        for rank in [0, 1, 2, 9, 99] {
            let wanted = weight(rank) / whole * DRAWS as f64;
            let deviation = wanted.sqrt() * 6.0;
            assert!((drawn[rank] as f64 - wanted).abs() < deviation, "{rank}: {}", drawn[rank]);
        }
        assert!(drawn[RANKS - 1] > 0);
    }
}
