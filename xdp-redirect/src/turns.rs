//! Whose turn it is to be looked at, among a worker's receiving sockets.
//!
//! With a handful of sockets every pass looks at all of them. With more, only those are looked at
//! whose flag is raised ([`crate::ready`]) and those that the program cannot speak for. No packet
//! is left behind for want of a flag:
//!
//! - a flag is cleared after [`VAIN_LOOKS_MAX`] vain looks, one a pass, and the ring is looked at
//!   once more behind a fence: what is seen then is not lost, and what comes from then on raises
//!   the flag again;
//! - a packet whose flag was read as raised before it was cleared, and which could be seen only
//!   after that last look (its NAPI poll took longer), is found by the next sweep: every receive
//!   ring is looked at once in every [`SWEEP_INTERVAL`].

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use crate::ready::{FlagPlace, ReadyFlags, WORD_FLAGS};

/// With no more sockets than this all are looked at in every pass: about what the flags cost.
pub const ALL_LOOKED_AT_MAX: usize = 8;
/// The longest a packet without a flag waits while the worker makes passes. All rings begin at a
/// page, so that 500 of them crowd into few sets of the cache: a sweep takes some microseconds.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(1);
/// So many sweeps make one that does all that a look does: takes back what completed of packets
/// that were sent long ago, and fills rings that went short of frames.
const SWEEPS_PER_THOROUGH: u32 = 16;
/// Vain looks before a flag is cleared. A NAPI poll of 64 packets takes some 5 us, about as long
/// as so many passes of a worker that finds nothing; and a look at a ring in the cache costs 4 ns.
pub const VAIN_LOOKS_MAX: u8 = 64;
/// Passes between two looks at the clock, which take 30 ns.
const PASSES_PER_CLOCK: u32 = 16;

/// Eight flags in a row, and which of them are ours.
#[derive(Debug, Clone, Copy)]
struct Word {
    /// Which flags.
    number: u16,
    /// Those of our sockets.
    ours: u64,
    /// Those of our sockets that are looked at whether the flag is raised or not.
    always: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// The socket's place among the worker's.
    place: u16,
    vain_looks: u8,
}

/// The order of turns. Allocates nothing after it is made.
#[derive(Debug)]
pub(crate) struct Turns {
    flags: Option<ReadyFlags>,
    words: Vec<Word>,
    /// Of each word.
    slots: Vec<[Slot; WORD_FLAGS]>,
    sockets: usize,
    /// Where the last look was: the next pass goes on behind it.
    last: (usize, u64),
    /// Words in which every socket is still to be looked at.
    sweep_words: usize,
    sweeps: u32,
    passes: u32,
    swept: Instant,
    stranded: u64,
}

/// One pass over all words, from the last look round to it.
#[derive(Debug)]
pub(crate) struct Pass {
    word: usize,
    words_left: usize,
    /// What is still to be looked at in the word.
    candidates: u64,
    /// Of the word: flags that are raised.
    raised: u64,
    /// Of the word: sockets to look at more closely only when their ring has something.
    peeked: u64,
}

/// A socket to look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    /// The socket's place among the worker's.
    pub place: u16,
    word: usize,
    byte: u8,
    is_raised: bool,
    /// Only a sweep asks: it is enough to look at the receive ring.
    pub is_peek: bool,
}

impl Turns {
    /// No sockets yet, `sockets_max` at most; all are looked at while there are no flags.
    pub(crate) fn new(sockets_max: usize) -> Self {
        Self {
            flags: None,
            words: Vec::with_capacity(sockets_max),
            slots: Vec::with_capacity(sockets_max),
            sockets: 0,
            last: (0, 0),
            sweep_words: 0,
            sweeps: 0,
            passes: 0,
            swept: Instant::now(),
            stranded: 0,
        }
    }

    pub(crate) fn set_flags(&mut self, flags: ReadyFlags) {
        self.flags = Some(flags);
    }

    /// Packets' sockets found by a sweep, without a flag.
    pub(crate) fn stranded(&self) -> u64 {
        self.stranded
    }

    /// Adds a socket; with `always` it is looked at in every pass.
    pub(crate) fn add(&mut self, flag: FlagPlace, place: u16, always: bool) {
        let found = self.words.iter().position(|word| word.number == flag.word);
        let word = found.unwrap_or_else(|| {
            self.words.push(Word { number: flag.word, ours: 0, always: 0 });
            self.slots.push([Slot::default(); WORD_FLAGS]);
            self.words.len() - 1
        });
        self.slots[word][usize::from(flag.byte)] = Slot { place, vain_looks: 0 };
        let entry = &mut self.words[word];
        // A socket that has this flag already has lost its queue: the new one takes its turns.
        self.sockets += usize::from(entry.ours & flag.bit() == 0);
        entry.ours |= flag.bit();
        entry.always = if always { entry.always | flag.bit() } else { entry.always & !flag.bit() };
        self.sweep();
    }

    /// Removes a socket, if it has turns.
    pub(crate) fn remove(&mut self, flag: FlagPlace, place: u16) {
        let found = self.words.iter().position(|word| word.number == flag.word);
        let Some(word) = found.filter(|word| {
            let is_ours = self.words[*word].ours & flag.bit() != 0;
            is_ours && self.slots[*word][usize::from(flag.byte)].place == place
        }) else {
            return;
        };
        let entry = &mut self.words[word];
        entry.ours &= !flag.bit();
        entry.always &= !flag.bit();
        if entry.ours == 0 {
            self.words.swap_remove(word);
            self.slots.swap_remove(word);
        }
        self.sockets -= 1;
        self.last = (0, 0);
        self.sweep();
    }

    /// Has every socket looked at.
    fn sweep(&mut self) {
        // One more than there are: the first may be looked at from its middle on.
        self.sweep_words = self.words.len() + 1;
    }

    /// Raises a flag, so that its socket is looked at.
    pub(crate) fn raise(&self, flag: FlagPlace) {
        if let Some(flags) = &self.flags {
            flags.raise(flag);
        }
    }

    /// Begins a pass.
    #[inline]
    pub(crate) fn begin(&mut self) -> Pass {
        self.passes = self.passes.wrapping_add(1);
        if self.passes.is_multiple_of(PASSES_PER_CLOCK) && self.swept.elapsed() >= SWEEP_INTERVAL {
            self.swept = Instant::now();
            self.sweeps = self.sweeps.wrapping_add(1);
            self.sweep();
        }
        let (word, last) = self.last;
        let words_left = self.words.len();
        let mut pass = Pass { word, words_left, candidates: 0, raised: 0, peeked: 0 };
        if pass.words_left > 0 {
            self.enter(&mut pass);
            pass.candidates &= behind(last);
        }
        pass
    }

    /// What to look at in the pass's word.
    #[inline]
    fn enter(&self, pass: &mut Pass) {
        let word = &self.words[pass.word];
        match &self.flags {
            Some(flags) if self.sockets > ALL_LOOKED_AT_MAX => {
                pass.raised = flags.load(word.number) & word.ours;
                pass.candidates = pass.raised | word.always;
                if self.sweep_words > 0 {
                    let is_thorough = self.sweeps.is_multiple_of(SWEEPS_PER_THOROUGH);
                    pass.peeked = if is_thorough { 0 } else { word.ours & !pass.candidates };
                    pass.candidates = word.ours;
                }
            }
            _ => {
                pass.raised = 0;
                pass.candidates = word.ours;
            }
        }
    }

    /// Goes on to right before the next word with something in it, or to the last word or the
    /// word before the last one of the pass: what an idle worker does all the time, in one loop.
    #[inline]
    fn skip_unraised(&self, pass: &mut Pass) {
        let Some(flags) = &self.flags else { return };
        if self.sweep_words > 0 || self.sockets <= ALL_LOOKED_AT_MAX {
            return;
        }
        let ahead = &self.words[pass.word + 1..];
        let ahead = &ahead[..ahead.len().min(pass.words_left - 1)];
        let is_empty = |word: &Word| flags.load(word.number) & word.ours | word.always == 0;
        let skipped = ahead.iter().position(|word| !is_empty(word)).unwrap_or(ahead.len());
        pass.word += skipped;
        pass.words_left -= skipped;
    }

    /// The next socket to look at in a pass.
    #[inline]
    pub(crate) fn next(&mut self, pass: &mut Pass) -> Option<Turn> {
        while pass.candidates == 0 {
            if pass.words_left == 0 {
                return None;
            }
            self.skip_unraised(pass);
            pass.words_left -= 1;
            pass.word = if pass.word + 1 < self.words.len() { pass.word + 1 } else { 0 };
            self.sweep_words = self.sweep_words.saturating_sub(1);
            self.enter(pass);
            if pass.words_left == 0 {
                // Round to where the pass began.
                pass.candidates &= !behind(self.last.1);
            }
        }
        let bit = pass.candidates & pass.candidates.wrapping_neg();
        pass.candidates &= !bit;
        let byte = (bit.trailing_zeros() / 8).to_le_bytes()[0];
        let slot = &self.slots[pass.word][usize::from(byte)];
        let (is_raised, is_peek) = (pass.raised & bit != 0, pass.peeked & bit != 0);
        Some(Turn { place: slot.place, word: pass.word, byte, is_raised, is_peek })
    }

    /// Says that the socket had packets: the next pass begins behind it.
    #[inline]
    pub(crate) fn found(&mut self, turn: &Turn) {
        let flag = self.flag(turn);
        self.last = (turn.word, flag.bit());
        self.slots[turn.word][usize::from(turn.byte)].vain_looks = 0;
        if turn.is_raised || self.sockets <= ALL_LOOKED_AT_MAX {
            return;
        }
        let is_always = self.words[turn.word].always & flag.bit() != 0;
        if let Some(flags) = self.flags.as_ref().filter(|_| !is_always) {
            // The flag may have been raised since the pass came to this word.
            if flags.load(flag.word) & flag.bit() == 0 {
                self.stranded += 1;
                flags.raise(flag);
            }
        }
    }

    /// Says that the socket had none. When that clears its flag, the answer is the flag: look at
    /// the ring once more, and raise it again if there is something.
    #[inline]
    pub(crate) fn in_vain(&mut self, turn: &Turn) -> Option<FlagPlace> {
        if !turn.is_raised {
            return None;
        }
        let looks = &mut self.slots[turn.word][usize::from(turn.byte)].vain_looks;
        *looks += 1;
        if *looks < VAIN_LOOKS_MAX {
            return None;
        }
        *looks = 0;
        let flag = self.flag(turn);
        self.flags.as_ref()?.clear(flag);
        // The flag is clear before the ring is read. A packet that was published before is seen
        // now; one whose flag is read after raises it.
        fence(Ordering::SeqCst);
        Some(flag)
    }

    fn flag(&self, turn: &Turn) -> FlagPlace {
        FlagPlace { word: self.words[turn.word].number, byte: turn.byte }
    }
}

/// The bits above `bit`; all for none.
fn behind(bit: u64) -> u64 {
    if bit == 0 { u64::MAX } else { !(bit | (bit - 1)) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd};

    use dataplane::port::PortId;

    use super::*;

    /// Flags in memory of this process.
    fn flags() -> ReadyFlags {
        // SAFETY: a string that lives through the call; the result is checked.
        let fd = unsafe { libc::memfd_create(c"flags".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0, "memfd: {}", std::io::Error::last_os_error());
        // SAFETY: just opened, owned by nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(1 << 20).expect("memory");
        ReadyFlags::of_file(file.as_raw_fd()).expect("mapped")
    }

    fn flag(port: u16) -> FlagPlace {
        FlagPlace::of(PortId(port), 0).expect("in range")
    }

    /// Turns of `ports`, each socket's place being its port's number, after the first sweep.
    fn turns(ports: impl IntoIterator<Item = u16>, flags: Option<ReadyFlags>) -> Turns {
        let mut turns = Turns::new(64);
        if let Some(flags) = flags {
            turns.set_flags(flags);
        }
        ports.into_iter().for_each(|port| turns.add(flag(port), port, false));
        vain_pass(&mut turns);
        vain_pass(&mut turns);
        turns
    }

    /// A pass that finds nothing: what it looked at.
    fn vain_pass(turns: &mut Turns) -> Vec<u16> {
        let (mut pass, mut seen) = (turns.begin(), Vec::new());
        while let Some(turn) = turns.next(&mut pass) {
            assert_eq!(turns.in_vain(&turn), None);
            seen.push(turn.place);
        }
        seen
    }

    #[test]
    fn sockets_take_turns_and_each_is_looked_at_once_a_pass() {
        let mut turns = turns([3, 4, 5, 17, 40], None);
        let mut found = Vec::new();
        for _ in 0..10 {
            let mut pass = turns.begin();
            let turn = turns.next(&mut pass).expect("sockets");
            turns.found(&turn);
            found.push(turn.place);
            let mut seen = vain_pass(&mut turns);
            assert_eq!(seen.last(), Some(&turn.place), "the last one's turn comes last");
            seen.sort_unstable();
            assert_eq!(seen, [3, 4, 5, 17, 40]);
        }
        assert_eq!(found, [3, 4, 5, 17, 40, 3, 4, 5, 17, 40]);
    }

    #[test]
    fn only_raised_flags_are_looked_at_and_cleared_after_many_vain_looks() {
        let flags = flags();
        let mut turns = turns(0..40, Some(flags.clone()));
        turns.swept = Instant::now() + Duration::from_secs(3600);
        turns.add(flag(50), 50, true);
        for _ in 0..3 {
            vain_pass(&mut turns);
        }
        assert_eq!(vain_pass(&mut turns), [50], "one that the program cannot speak for");
        flags.raise(flag(17));
        flags.raise(flag(60));
        for _ in 1..VAIN_LOOKS_MAX {
            assert_eq!(vain_pass(&mut turns), [17, 50], "60 is another worker's");
        }
        let mut pass = turns.begin();
        let turn = turns.next(&mut pass).expect("17");
        assert_eq!(turns.in_vain(&turn), Some(flag(17)), "time for the last look");
        assert_eq!(vain_pass(&mut turns), [50]);
        assert_ne!(flags.load(flag(60).word) & flag(60).bit(), 0);
    }

    #[test]
    fn packets_without_a_flag_are_found_by_the_next_sweep_and_counted() {
        let mut turns = turns(0..40, Some(flags()));
        turns.swept = Instant::now();
        while turns.swept.elapsed() < SWEEP_INTERVAL {}
        let mut seen = Vec::new();
        for _ in 0..=PASSES_PER_CLOCK {
            let mut pass = turns.begin();
            while let Some(turn) = turns.next(&mut pass) {
                seen.push(turn.place);
                if turn.place == 23 {
                    turns.found(&turn);
                    break;
                }
            }
        }
        assert!(
            (0..40).all(|place| seen.contains(&place)),
            "a sweep goes on after a find: {seen:?}"
        );
        assert!(turns.stranded() > 0);
        assert_eq!(vain_pass(&mut turns), [23], "there may be more");
    }

    #[test]
    fn socket_that_left_has_no_turns_and_its_successor_has() {
        let flags = flags();
        let mut turns = turns(0..20, Some(flags.clone()));
        turns.remove(flag(7), 99);
        turns.remove(flag(7), 7);
        turns.remove(flag(16), 16);
        turns.add(flag(7), 30, false);
        let mut seen = vain_pass(&mut turns);
        seen.sort_unstable();
        let expected = (0..20).filter(|port| ![7, 16].contains(port)).chain([30]);
        assert_eq!(seen, expected.collect::<Vec<_>>(), "whoever comes is looked at at once");
        for port in 0..20 {
            turns.remove(flag(port), if port == 7 { 30 } else { port });
        }
        assert_eq!(vain_pass(&mut turns), []);
    }
}
