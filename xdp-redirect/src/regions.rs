//! All regions of packet memory: the large one, and small ones for pods.
//!
//! The kernel keeps 128 bytes per frame of a region for every socket in it, so hundreds of pods in one
//! large region would take gigabytes. A region of pods has few frames, and a port is admitted to it
//! with so many of them that its queues never want: what others may take is what is left. A region has
//! memory while a port is in it; as many can be as [`Regions::set_frames_max`] allows, and whoever
//! finds none is refused, since a pod without frames could not be reached.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::Error;
use crate::hand_over::Waiting;
use crate::socket::SocketConfig;
use crate::umem::{CopyMode, Umem, UmemConfig, lock};

/// Regions of pods at most: with eight pods of two queues in each, one for every eighth port.
pub const REGIONS_MAX: usize = 128;
const _: () = assert!(REGIONS_MAX < u8::MAX as usize);
/// Fewest frames of a region of pods.
const FRAMES_MIN: u32 = 1024;
/// Frames of a region for each worker: what their pools keep of it for themselves is an eighth.
const FRAMES_PER_WORKER: u32 = 128;

/// What regions of pods are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodMemory {
    /// Frames of all of them at most. There is one region at least.
    pub frames_max: u32,
    /// Entries of every socket's fill ring, a power of two.
    pub fill_ring: u32,
    /// Entries of every socket's completion ring, a power of two.
    pub completion_ring: u32,
}

/// How much of pods' packet memory is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodMemoryUsage {
    /// Frames promised to pods' queues now.
    pub used: u32,
    /// Most that ever were.
    pub used_most: u32,
    /// Frames that can be promised.
    pub capacity: u32,
    /// Regions that have memory now.
    pub regions: u32,
    /// Regions there can be.
    pub regions_max: u32,
    /// Ports that found no place.
    pub refused: u64,
}

/// All regions. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Regions {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    large: Umem,
    of_pods: Box<[Umem]>,
    state: Mutex<State>,
    refused: AtomicU64,
    /// Sockets of the process before.
    handed: Waiting,
}

#[derive(Debug)]
struct State {
    /// Of each region of pods.
    taken: Box<[Taken]>,
    regions_max: usize,
    used_most: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    /// Frames promised to ports that are in it.
    promised: u32,
    /// Of them, to ports whose sockets are not bound yet.
    unfilled: u32,
    ports: u32,
    has_memory: bool,
}

impl State {
    fn used(&self) -> u32 {
        self.taken.iter().map(|taken| taken.promised).sum()
    }

    fn with_memory(&self) -> usize {
        self.taken.iter().filter(|taken| taken.has_memory).count()
    }
}

/// A port's place in a region of pods: it is given up when the last of its sockets is closed.
#[derive(Debug)]
pub struct Place {
    regions: Regions,
    number: usize,
    /// Frames of each queue, and of all.
    each: u32,
    frames: u32,
    /// Whether its sockets are bound.
    filled: AtomicBool,
}

impl Regions {
    /// The large region, and none of pods yet, for so many workers.
    ///
    /// # Errors
    /// As [`Umem::new`].
    pub fn new(config: UmemConfig, pods: &PodMemory, workers: usize) -> Result<Self, Error> {
        let frames = region_frames(pods, workers);
        let small = UmemConfig {
            frames,
            fill_ring: pods.fill_ring,
            completion_ring: pods.completion_ring,
            copy_mode: CopyMode::Copy,
            ..config
        };
        let number = |place: usize| u8::try_from(place + 1).unwrap_or(u8::MAX);
        let of_pods = (0..REGIONS_MAX).map(|place| Umem::for_pods(small, number(place)));
        let state = State {
            taken: vec![Taken::default(); REGIONS_MAX].into_boxed_slice(),
            regions_max: 1,
            used_most: 0,
        };
        let regions = Self {
            shared: Arc::new(Shared {
                large: Umem::new(config)?,
                of_pods: of_pods.collect::<Result<_, _>>()?,
                state: Mutex::new(state),
                refused: AtomicU64::new(0),
                handed: Waiting::default(),
            }),
        };
        regions.set_frames_max(pods.frames_max);
        Ok(regions)
    }

    /// That of uplinks and the host port.
    #[must_use]
    pub fn large(&self) -> &Umem {
        &self.shared.large
    }

    /// Every region, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Umem> {
        std::iter::once(&self.shared.large).chain(&self.shared.of_pods)
    }

    /// Bounds the frames of pods. Ports that are there keep theirs.
    pub fn set_frames_max(&self, frames_max: u32) {
        let wanted = usize::try_from(frames_max / self.frames()).unwrap_or(usize::MAX);
        lock(&self.shared.state).regions_max = wanted.clamp(1, REGIONS_MAX);
    }

    /// Frames of a region of pods.
    fn frames(&self) -> u32 {
        self.shared.of_pods[0].config().frames
    }

    /// A place for a port of so many queues, with the frames that each keeps with the kernel while it
    /// is idle, or less where that were more than a quarter of a region. It is in a region with half
    /// of its frames left, or else in a new one, or in one with a quarter left when there can be no
    /// more.
    ///
    /// # Errors
    /// [`Error::PodMemory`] when none has as many left; [`Error::Memory`] when the kernel has none.
    pub fn admit(&self, sockets: &SocketConfig, queues: u32) -> Result<Arc<Place>, Error> {
        let all = self.frames();
        let (each, frames) = promise(all, sockets, queues);
        let mut state = lock(&self.shared.state);
        let found = match self.with_room(&state, frames, all / 2) {
            Some(number) => Some(number),
            None if state.with_memory() < state.regions_max => {
                let number = state.taken.iter().position(|taken| !taken.has_memory);
                if let Some(number) = number {
                    self.shared.of_pods[number].map()?;
                    state.taken[number].has_memory = true;
                }
                number
            }
            None => self.with_room(&state, frames, promised_max(all)),
        };
        let Some(number) = found else {
            drop(state);
            return Err(self.refuse(frames));
        };
        Ok(self.settle(&mut state, number, (each, frames)))
    }

    fn settle(&self, state: &mut State, number: usize, (each, frames): (u32, u32)) -> Arc<Place> {
        let taken = &mut state.taken[number];
        taken.promised += frames;
        taken.unfilled += frames;
        taken.ports += 1;
        state.used_most = state.used_most.max(state.used());
        let filled = AtomicBool::new(false);
        Arc::new(Place { regions: self.clone(), number, each, frames, filled })
    }

    /// A place for a port whose sockets are in a region of pods already, by its number.
    pub(crate) fn place_in(&self, region: u8, sockets: &SocketConfig, queues: u32) -> Arc<Place> {
        let promised = promise(self.frames(), sockets, queues);
        self.settle(&mut lock(&self.shared.state), usize::from(region) - 1, promised)
    }

    /// A region by its number.
    pub(crate) fn by_number(&self, number: u8) -> Option<&Umem> {
        self.iter().nth(usize::from(number))
    }

    /// Writes down that a region has memory.
    pub(crate) fn note_memory(&self, number: u8) {
        if let Some(place) = usize::from(number).checked_sub(1) {
            lock(&self.shared.state).taken[place].has_memory = true;
        }
    }

    /// Sockets of the process before.
    pub(crate) fn handed(&self) -> &Waiting {
        &self.shared.handed
    }

    /// The first region with memory where so many more can be promised and are free. The first, so
    /// that the last ones become empty while pods come and go.
    fn with_room(&self, state: &State, frames: u32, promised_max: u32) -> Option<usize> {
        let has_room = |(number, taken): (usize, &Taken)| {
            let free = self.shared.of_pods[number].in_depot();
            taken.has_memory
                && taken.promised + frames <= promised_max
                && taken.unfilled + frames <= free
        };
        (0..state.taken.len()).find(|number| has_room((*number, &state.taken[*number])))
    }

    fn refuse(&self, frames: u32) -> Error {
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
        let PodMemoryUsage { used, capacity, .. } = self.usage();
        Error::PodMemory { frames, used, capacity }
    }

    /// How much is used.
    #[must_use]
    pub fn usage(&self) -> PodMemoryUsage {
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let state = lock(&self.shared.state);
        PodMemoryUsage {
            used: state.used(),
            used_most: state.used_most,
            capacity: number(state.regions_max) * promised_max(self.frames()),
            regions: number(state.with_memory()),
            regions_max: number(state.regions_max),
            refused: self.shared.refused.load(Ordering::Relaxed),
        }
    }

    /// Takes the memory of regions away that have no port any more, once no packet lies there. To be
    /// called now and then: it is tried when the last port goes, too.
    pub fn tend(&self) {
        self.free_orphans();
        let mut state = lock(&self.shared.state);
        for (umem, taken) in self.shared.of_pods.iter().zip(&mut state.taken) {
            if taken.has_memory && taken.ports == 0 {
                taken.has_memory = !umem.unmap();
            }
        }
    }

    /// Where all frames are of every region that has memory.
    #[must_use]
    pub fn census(&self) -> crate::statistics::Census {
        let state = lock(&self.shared.state);
        let there = self.shared.of_pods.iter().zip(&state.taken);
        let there = there.filter(|(_, taken)| taken.has_memory).map(|(umem, _)| umem.census());
        there.fold(self.shared.large.census(), |sum, one| sum.plus(one))
    }
}

impl Place {
    /// The region.
    pub(crate) fn umem(&self) -> &Umem {
        &self.regions.shared.of_pods[self.number]
    }

    /// Frames that each queue of the port is promised.
    pub(crate) fn each(&self) -> u32 {
        self.each
    }

    /// That others have taken what was promised.
    pub(crate) fn refused(&self) -> Error {
        self.regions.refuse(self.frames)
    }

    /// Says that every socket of the port has been given its frames.
    pub fn fill(&self) {
        if !self.filled.swap(true, Ordering::Relaxed) {
            lock(&self.regions.shared.state).taken[self.number].unfilled -= self.frames;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.fill();
        let mut state = lock(&self.regions.shared.state);
        let taken = &mut state.taken[self.number];
        taken.promised -= self.frames;
        taken.ports -= 1;
        if taken.ports == 0 {
            taken.has_memory = !self.regions.shared.of_pods[self.number].unmap();
        }
    }
}

/// Frames that each queue of a port is promised, and all of them.
fn promise(all: u32, sockets: &SocketConfig, queues: u32) -> (u32, u32) {
    let queues = queues.max(1);
    let each = sockets.idle_frames.min(sockets.fill_frames).min(all / 4 / queues).max(1);
    (each, each.saturating_mul(queues))
}

/// Frames of a region that are promised at most: what is left is for packets under way.
fn promised_max(frames: u32) -> u32 {
    frames - frames / 4
}

/// Frames of each region of pods: a power of two, and several times what a busy queue may have.
fn region_frames(pods: &PodMemory, workers: usize) -> u32 {
    let workers = u32::try_from(workers).unwrap_or(u32::MAX);
    let wanted = FRAMES_PER_WORKER.saturating_mul(workers).max(2 * pods.fill_ring);
    wanted.max(FRAMES_MIN).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_have_room_for_busy_queues_and_for_what_workers_keep() {
        let pods = |fill_ring| PodMemory { frames_max: 4096, fill_ring, completion_ring: 512 };
        assert_eq!(region_frames(&pods(256), 1), 1024);
        assert_eq!(region_frames(&pods(256), 8), 1024);
        assert_eq!(region_frames(&pods(256), 9), 2048);
        assert_eq!(region_frames(&pods(1024), 1), 2048);
    }
}
