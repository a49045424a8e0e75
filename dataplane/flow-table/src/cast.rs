//! Numbers from one width to another. All of them count what a table has, below 2^32, so nothing is
//! ever cut; were one larger, it would be the largest instead, which every check of a bound refuses.

/// A number in a word of memory, as a number of things.
#[inline(always)]
pub(crate) fn index(word: u64) -> usize {
    usize::try_from(word).unwrap_or(usize::MAX)
}

/// A number of things, as half a word.
#[inline(always)]
pub(crate) fn half_word(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_the_largest_and_never_something_else() {
        assert_eq!((index(7), half_word(7)), (7, 7));
        assert_eq!(half_word(1 << 40), u32::MAX);
    }
}
