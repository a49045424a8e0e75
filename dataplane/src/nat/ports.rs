//! Which L4 port a translated flow takes: a short search, however crowded its destination is.
//!
//! A port serves many flows toward different destinations, so what is free depends on the
//! destination, and only the flow table knows. Among few flows a guess is free at once. Where
//! guesses fail, the destination is crowded, and is given a bitmap of the ports that are not known
//! to be taken: a port is looked up once, and never again before its flow has ended. When none is
//! left, a few ports are looked at in turn for flows that are over, and then the flow is refused.
//!
//! The bitmaps are hints: a wrong one costs look-ups, never a connection. With all 4,536 ports of a
//! destination taken, a refused SYN costs 1.5 us in all (2-core virtual machine, other load beside);
//! 256 look-ups took 130 to 150.

use std::ops::RangeInclusive;
use std::time::Duration;

use flow_table::Handle;

use crate::DropReason;
use crate::time::Nanos;

/// Ports guessed before a destination counts as crowded: at half of them taken, one flow in 256
/// gets there.
const GUESSES: usize = 8;
/// Ports of a bitmap looked up for one flow at most. Only a new bitmap needs so many: with 19 ports
/// of 20 taken, one flow in 27 is refused until it is tried again.
const LOOKUPS_MAX: usize = 64;
/// Crowded destinations that a worker keeps a bitmap for; the one that was used longest ago goes.
const CROWDED_MAX: usize = 32;
/// Ports looked at for flows that are over, for one flow, when none is free.
const EXAMINED_MAX: u32 = 16;
/// After all ports were looked at in vain, nobody looks again for so long: deadlines are kept in
/// seconds, and a flood of refused flows costs no more look-ups.
const REST: Duration = Duration::from_secs(1);

/// What an L4 port is to one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortUse {
    /// Nobody has it.
    Free,
    /// A flow past its deadline has it, which no packet belongs to any more.
    Expired(Handle),
    /// A connection has it that both ends closed or one reset, and that has been silent since.
    Closed(Handle),
    /// A flow has it that must not lose it.
    Taken,
}

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Stands for the destination: a keyed hash of all that a reply tuple holds beside the port.
    pub destination: u64,
    /// Where guesses begin: a keyed hash of the flow, so that a stranger cannot tell which port it
    /// gets (RFC 6056, 3.3.3).
    pub seed: u64,
    /// The port the flow has, to be kept where it is ours to give.
    pub own: u16,
    /// Whether an even port should stay even, and an odd one odd (RFC 4787, REQ-4).
    pub keeps_parity: bool,
}

/// A port that can be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// It.
    pub l4_port: u16,
    /// The flow that has to give it up first; it is over.
    pub instead_of: Option<Handle>,
    /// Whether that flow is not past its deadline, but closed on both sides or reset.
    pub evicts: bool,
}

impl Choice {
    fn of(l4_port: u16, found: PortUse, may_evict: bool) -> Option<Self> {
        let (instead_of, evicts) = match found {
            PortUse::Free => (None, false),
            PortUse::Expired(flow) => (Some(flow), false),
            PortUse::Closed(flow) if may_evict => (Some(flow), true),
            PortUse::Closed(_) | PortUse::Taken => return None,
        };
        Some(Self { l4_port, instead_of, evicts })
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Crowded {
    destination: u64,
    /// When it was last asked for a port, counted in flows; 0: never.
    asked: u64,
    /// Ports known to be taken: the bits of the bitmap that are not set.
    taken: u32,
    /// Next port to look at when none is free, counted from the share's first.
    cursor: u32,
    /// Ports looked at since one was found.
    in_vain: u32,
    rests_until: Nanos,
}

/// One worker's ports.
#[derive(Debug)]
pub struct NatPorts {
    share: Option<RangeInclusive<u16>>,
    crowded: Vec<Crowded>,
    /// A bit for each port of each of `crowded`: set when it is not known to be taken.
    bits: Vec<u64>,
    asked: u64,
    /// The most [`Crowded::taken`]; `None` after one has changed. It is asked for at every tick.
    taken_most: Option<u32>,
    /// Whether end points ever had mappings here: otherwise no flow's end looks for one.
    pub(crate) has_mappings: bool,
}

impl NatPorts {
    /// All of `share`; with `None` every flow is refused. Takes the memory for all bitmaps.
    #[must_use]
    pub fn new(share: Option<RangeInclusive<u16>>) -> Self {
        let words = share.as_ref().map_or(0, |share| count(share).div_ceil(64) as usize);
        Self {
            share,
            crowded: vec![Crowded::default(); CROWDED_MAX],
            bits: vec![0; CROWDED_MAX * words],
            asked: 0,
            taken_most: Some(0),
            has_mappings: false,
        }
    }

    /// The ports to choose from.
    #[must_use]
    pub fn share(&self) -> Option<&RangeInclusive<u16>> {
        self.share.as_ref()
    }

    /// A port for a flow, of which `look` knows the use: its own if that is free, otherwise one
    /// of its parity if asked, otherwise any. Looks at 90 ports at most, and at one or two in most
    /// cases.
    ///
    /// # Errors
    /// [`DropReason::NatPortsExhausted`].
    pub fn choose(
        &mut self,
        wanted: &Wanted,
        now: Nanos,
        mut look: impl FnMut(u16) -> PortUse,
    ) -> Result<Choice, DropReason> {
        let share = self.share.clone().ok_or(DropReason::NatPortsExhausted)?;
        if share.contains(&wanted.own)
            && let Some(choice) = Choice::of(wanted.own, look(wanted.own), false)
        {
            self.take(wanted.destination, wanted.own);
            return Ok(choice);
        }
        let mut seed = wanted.seed;
        let place = match self.place_of(wanted.destination) {
            Some(place) => place,
            None => {
                for _ in 0..GUESSES {
                    let l4_port = guess(&share, seed, wanted);
                    if let Some(choice) = Choice::of(l4_port, look(l4_port), false) {
                        return Ok(choice);
                    }
                    seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
                }
                self.crowd(wanted.destination, &share)
            }
        };
        self.asked += 1;
        self.crowded[place].asked = self.asked;
        let start = u32::from(guess(&share, seed, wanted) - share.start());
        for _ in 0..LOOKUPS_MAX {
            let Some(at) = self.next(place, &share, start, wanted) else {
                return self.examine(place, &share, now, look);
            };
            self.set(place, at, false);
            let l4_port = nth(&share, at);
            if let Some(choice) = Choice::of(l4_port, look(l4_port), false) {
                return Ok(choice);
            }
        }
        Err(DropReason::NatPortsExhausted)
    }

    /// Ports known to be taken toward the most crowded destination. As many as there are once none
    /// is left; a bitmap that is new does not know all of them yet.
    #[must_use]
    pub fn taken_most(&mut self) -> u32 {
        let most = |crowded: &[Crowded]| crowded.iter().map(|one| one.taken).max().unwrap_or(0);
        *self.taken_most.get_or_insert_with(|| most(&self.crowded))
    }

    /// A flow toward `destination` gave `l4_port` back.
    pub fn release(&mut self, destination: u64, l4_port: u16) {
        self.mark(destination, l4_port, true);
    }

    /// A flow toward `destination` has taken `l4_port`.
    pub fn take(&mut self, destination: u64, l4_port: u16) {
        self.mark(destination, l4_port, false);
    }

    fn mark(&mut self, destination: u64, l4_port: u16, free: bool) {
        let Some(share) = self.share.as_ref().filter(|share| share.contains(&l4_port)) else {
            return;
        };
        let at = u32::from(l4_port - share.start());
        if let Some(place) = self.place_of(destination) {
            self.set(place, at, free);
        }
    }

    fn place_of(&self, destination: u64) -> Option<usize> {
        self.crowded.iter().position(|one| one.destination == destination && one.asked > 0)
    }

    /// Gives `destination` the bitmap that was used longest ago.
    fn crowd(&mut self, destination: u64, share: &RangeInclusive<u16>) -> usize {
        let oldest = self.crowded.iter().enumerate().min_by_key(|(_, one)| one.asked);
        let place = oldest.map_or(0, |(place, _)| place);
        self.crowded[place] = Crowded { destination, ..Crowded::default() };
        self.taken_most = None;
        let words = self.words();
        self.bits[place * words..][..words].fill(u64::MAX);
        let past_the_end = count(share) % 64;
        if past_the_end != 0 {
            self.bits[place * words + words - 1] = (1 << past_the_end) - 1;
        }
        place
    }

    fn words(&self) -> usize {
        self.bits.len() / CROWDED_MAX
    }

    fn set(&mut self, place: usize, at: u32, free: bool) {
        let word = place * self.words() + at as usize / 64;
        let bit = 1 << (at % 64);
        let was_free = self.bits[word] & bit != 0;
        if free {
            self.bits[word] |= bit
        } else {
            self.bits[word] &= !bit
        }
        let taken = &mut self.crowded[place].taken;
        *taken = *taken + u32::from(was_free && !free) - u32::from(!was_free && free);
        self.taken_most = None;
    }

    /// The next port from `start` on that is not known to be taken, of the wanted parity if there
    /// is one.
    fn next(
        &self,
        place: usize,
        share: &RangeInclusive<u16>,
        start: u32,
        wanted: &Wanted,
    ) -> Option<u32> {
        let words = &self.bits[place * self.words()..][..self.words()];
        let same_parity = wanted.keeps_parity.then(|| {
            // Bit 0 is the share's first port.
            let is_first = (share.start() ^ wanted.own) & 1 == 0;
            next_set(words, start, if is_first { EVEN } else { !EVEN })
        });
        same_parity.flatten().or_else(|| next_set(words, start, u64::MAX))
    }

    /// Looks at the ports whose turn it is for one whose flow is over.
    fn examine(
        &mut self,
        place: usize,
        share: &RangeInclusive<u16>,
        now: Nanos,
        mut look: impl FnMut(u16) -> PortUse,
    ) -> Result<Choice, DropReason> {
        let one = &mut self.crowded[place];
        for _ in 0..EXAMINED_MAX.min(count(share)) {
            if now < one.rests_until {
                break;
            }
            let l4_port = nth(share, one.cursor);
            one.cursor = (one.cursor + 1) % count(share);
            if let Some(choice) = Choice::of(l4_port, look(l4_port), true) {
                one.in_vain = 0;
                return Ok(choice);
            }
            one.in_vain += 1;
            if one.in_vain >= count(share) {
                one.in_vain = 0;
                one.rests_until = now.after(REST);
            }
        }
        Err(DropReason::NatPortsExhausted)
    }
}

const EVEN: u64 = 0x5555_5555_5555_5555;

/// The first bit that is set in `words` and in `mask`, from `start` on and round.
fn next_set(words: &[u64], start: u32, mask: u64) -> Option<u32> {
    let first = start as usize / 64;
    let from_start = u64::MAX << (start % 64);
    let ahead = words.get(first).map(|word| word & mask & from_start).filter(|word| *word != 0);
    let (at, word) = match ahead {
        Some(word) => (first, word),
        None => (1..=words.len())
            .map(|step| (first + step) % words.len())
            .map(|at| (at, words[at] & mask))
            .find(|(_, word)| *word != 0)?,
    };
    Some(u32::try_from(at).ok()? * 64 + word.trailing_zeros())
}

fn count(share: &RangeInclusive<u16>) -> u32 {
    u32::from(*share.end()) - u32::from(*share.start()) + 1
}

fn nth(share: &RangeInclusive<u16>, at: u32) -> u16 {
    u16::try_from(u32::from(*share.start()) + at).unwrap_or(*share.end()).min(*share.end())
}

/// The port of `share` that `seed` stands for, or its neighbour of the wanted parity.
fn guess(share: &RangeInclusive<u16>, seed: u64, wanted: &Wanted) -> u16 {
    let at = ((seed >> 32) * u64::from(count(share))) >> 32;
    let l4_port = nth(share, u32::try_from(at).unwrap_or(0));
    if !wanted.keeps_parity || (l4_port ^ wanted.own) & 1 == 0 {
        return l4_port;
    }
    match l4_port {
        _ if l4_port < *share.end() => l4_port + 1,
        _ if l4_port > *share.start() => l4_port - 1,
        _ => l4_port,
    }
}

#[cfg(test)]
mod tests;
