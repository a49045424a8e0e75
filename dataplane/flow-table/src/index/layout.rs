//! Which half of the index a hash lies in, while the index is moved from one half to the other.

use super::Group;
use crate::cast::index;
use crate::entry::HANDLE_BITS;
use crate::sync::{AtomicU64, Ordering};

const HASH_BITS: u32 = u64::BITS - HANDLE_BITS;

/// One word that tells all: from bit 0 the groups moved so far (32 bits), whether the next one is
/// being moved, whether the index moves at all, and which half it is in or moves from; the rest
/// counts moves, so that no two layouts of a table's life are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout(u64);

impl Layout {
    const MOVED_MASK: u64 = u32::MAX as u64;
    const GROUP_MOVES: u64 = 1 << 32;
    const RESIZES: u64 = 1 << 33;
    const HALF: u64 = 1 << 34;
    const NEXT: u64 = 1 << 35;

    /// The half in use, or moved from: 0 or 1.
    #[inline(always)]
    pub(crate) fn half(self) -> usize {
        usize::from(self.0 & Self::HALF != 0)
    }

    /// Whether the index is being moved.
    #[inline(always)]
    pub(crate) fn resizes(self) -> bool {
        self.0 & Self::RESIZES != 0
    }

    /// Groups that have been moved.
    #[inline(always)]
    pub(crate) fn moved(self) -> usize {
        (self.0 & Self::MOVED_MASK) as usize
    }

    #[inline(always)]
    fn group_moves(self) -> bool {
        self.0 & Self::GROUP_MOVES != 0
    }

    pub(super) fn begin(self) -> Self {
        Self(self.0 | Self::RESIZES)
    }

    pub(super) fn begin_group(self) -> Self {
        Self(self.0 | Self::GROUP_MOVES)
    }

    pub(super) fn end_group(self) -> Self {
        Self((self.0 & !Self::GROUP_MOVES) + 1)
    }

    pub(super) fn end(self) -> Self {
        Self((self.0 & !(Self::MOVED_MASK | Self::RESIZES)).wrapping_add(Self::NEXT) ^ Self::HALF)
    }
}

/// A group of one of the halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) half: usize,
    pub(crate) group: Group,
}

/// Where the keys of a hash are, by the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    /// In one group.
    Settled(Place),
    /// On the way from the first to the second; new ones go to the second.
    Moving(Place, Place),
}

impl Whereabouts {
    /// Where new keys go.
    pub(crate) fn inbound(self) -> Place {
        match self {
            Self::Settled(place) | Self::Moving(_, place) => place,
        }
    }
}

/// A layout with the sizes that belong to it. It may become outdated at any moment; who misses a
/// key looks whether its whereabouts are what they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) layout: Layout,
    groups: [u64; 2],
}

impl View {
    /// The group of a hash among so many: its top 36 bits, scaled.
    #[inline(always)]
    pub(super) fn group(hash: u64, groups: u64) -> Group {
        Group((((hash >> HANDLE_BITS) * groups) >> HASH_BITS) as usize)
    }

    /// The same sizes under another layout.
    pub(super) fn with(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// Groups of the half that is in use, or moved from.
    pub(crate) fn groups(&self) -> usize {
        index(self.groups[self.layout.half()])
    }

    #[inline(always)]
    fn place(&self, half: usize, hash: u64) -> Place {
        Place { half, group: Self::group(hash, self.groups[half]) }
    }

    /// Where keys of this hash are.
    #[inline(always)]
    pub(crate) fn whereabouts(&self, hash: u64) -> Whereabouts {
        let from = self.place(self.layout.half(), hash);
        if self.layout.resizes() && from.group.0 <= self.layout.moved() {
            self.whereabouts_while_resizing(hash, from)
        } else {
            Whereabouts::Settled(from)
        }
    }

    #[cold]
    fn whereabouts_while_resizing(&self, hash: u64, from: Place) -> Whereabouts {
        let to = self.place(1 - from.half, hash);
        let moved = self.layout.moved();
        if from.group.0 < moved {
            Whereabouts::Settled(to)
        } else if self.layout.group_moves() {
            Whereabouts::Moving(from, to)
        } else {
            Whereabouts::Settled(from)
        }
    }
}

/// The words that make a view: read at every burst, written when a group has moved.
#[repr(align(64))]
pub(crate) struct LayoutWords {
    layout: AtomicU64,
    groups: [AtomicU64; 2],
}

impl LayoutWords {
    /// An index at rest in a half that has so many groups.
    pub(super) fn new(half: usize, groups: usize) -> Self {
        let words = Self {
            layout: AtomicU64::new(if half == 0 { 0 } else { Layout::HALF }),
            groups: [AtomicU64::new(0), AtomicU64::new(0)],
        };
        words.set_target(half, groups);
        words
    }

    /// The layout now. The sizes of the half in use never change, and those of the half moved to
    /// were stored before the layout that names it.
    #[inline(always)]
    pub(crate) fn view(&self) -> View {
        let layout = Layout(self.layout.load(Ordering::SeqCst));
        let groups = [0, 1].map(|half: usize| self.groups[half].load(Ordering::Relaxed));
        View { layout, groups }
    }

    /// For the one who moves.
    pub(super) fn store(&self, layout: Layout) {
        self.layout.store(layout.0, Ordering::SeqCst);
    }

    /// For the one who moves, before the layout that begins it.
    pub(super) fn set_target(&self, half: usize, groups: usize) {
        self.groups[half].store(groups as u64, Ordering::Relaxed);
    }
}
