//! A region that goes from one process to the next: its memory, what holds its registration, and who has
//! each chunk.
//!
//! The table of holders is what makes nothing be lost or used twice. Whatever the kernel has of a socket
//! (entries of its fill and receive rings, of its transmit ring, transmissions that are not reported yet)
//! is the socket's there, and comes back by the rings, which are the same. What was free is free. What a
//! packet held that ended with the process before is free as well.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use super::{FREE, HELD, Mapped, SOCKET_BASE, Umem, lock};
use crate::anchor::Anchor;
use crate::cast::index;
use crate::hand_over::message::{AnchorRecord, RegionRecord};
use crate::mapping::Mapping;

/// What a region had before it went on with another's memory: to be dropped when there is time.
#[derive(Default)]
pub(crate) struct Replaced {
    _anchor: Option<Anchor>,
    _mapped: Option<Mapped>,
}

/// Memory and anchor of a process before, looked at and not in use yet.
pub(crate) struct Offered {
    mapped: Mapped,
    anchor: Option<Anchor>,
}

impl Umem {
    /// What the next process needs of the region, with descriptors; `None` while it has no memory. Nobody
    /// may use the region any more.
    ///
    /// # Errors
    /// The kernel's, when there are too many open files.
    pub(crate) fn record(&self) -> io::Result<Option<(RegionRecord, Vec<OwnedFd>)>> {
        let mapped = lock(&self.shared.memory.mapped);
        let Some(mapped) = mapped.as_ref() else { return Ok(None) };
        let mut fds = vec![mapped.file.try_clone()?];
        let mut anchor = AnchorRecord::None;
        if let Some(Anchor::Tap { socket, device }) = self.anchor().as_deref() {
            fds.extend([socket.try_clone()?, device.try_clone()?]);
            anchor = AnchorRecord::Tap;
        }
        let config = self.config();
        let holders = self.shared.holders.iter().map(|holder| holder.load(Ordering::Acquire));
        let record = RegionRecord {
            number: self.region(),
            frames: config.frames,
            chunk_bytes: config.chunk_bytes,
            fill_ring: config.fill_ring,
            completion_ring: config.completion_ring,
            multi_buffer: config.multi_buffer,
            huge_pages: mapped.huge_pages,
            anchor,
            holders: holders.collect(),
        };
        Ok(Some((record, fds)))
    }

    /// Goes on with the memory of a process before, before anybody uses the region. Answers which numbers
    /// have chunks that no socket of `sockets` has: those of sockets that were not handed on, to be
    /// [reclaimed](Self::reclaim) once they are closed.
    pub(crate) fn go_on(
        &self,
        record: &RegionRecord,
        offered: Offered,
        sockets: &BTreeSet<u16>,
    ) -> (Replaced, BTreeSet<u16>) {
        let Offered { mapped, anchor } = offered;
        let mut scratch = Vec::new();
        while self.shared.depot.take(&mut scratch) {}
        lock(&self.shared.remainder).clear();
        let (mut free, mut orphans) = (Vec::new(), BTreeSet::new());
        for ((chunk, holder), was) in (0..).zip(&self.shared.holders).zip(&record.holders) {
            let is = if *was == HELD { FREE } else { *was };
            holder.store(is, Ordering::Relaxed);
            if is == FREE {
                free.push(chunk);
            } else if !sockets.contains(&is) {
                orphans.insert(is);
            }
        }
        {
            let mut numbers = lock(&self.shared.sockets);
            let used = |number: &u16| sockets.contains(number) || orphans.contains(number);
            let last =
                sockets.iter().chain(&orphans).max().map_or(0, |last| last - SOCKET_BASE + 1);
            numbers.next = last;
            numbers.unused = (SOCKET_BASE..SOCKET_BASE + last).filter(|one| !used(one)).collect();
            let bound = u32::try_from(sockets.len() + orphans.len()).unwrap_or(u32::MAX);
            self.shared.sockets_bound.store(bound, Ordering::Relaxed);
            self.shared.sockets_most.fetch_max(bound, Ordering::Relaxed);
        }
        self.shared.base.store(mapped.start(), Ordering::Release);
        let before = lock(&self.shared.memory.mapped).replace(mapped);
        let held = self
            .anchor()
            .map(|mut own| std::mem::replace(&mut *own, anchor.unwrap_or(Anchor::Unbound(None))));
        self.give_back(free.into_iter().rev());
        (Replaced { _anchor: held, _mapped: before }, orphans)
    }
}

impl Offered {
    /// Maps what was offered.
    pub(crate) fn new(
        record: &RegionRecord,
        fds: &mut impl Iterator<Item = OwnedFd>,
    ) -> io::Result<Self> {
        let missing = || io::Error::other("a descriptor is missing");
        let file = fds.next().ok_or_else(missing)?;
        let bytes = index(record.frames) * index(record.chunk_bytes);
        let mapping = Mapping::of_memory(&file, bytes)?;
        let anchor = match record.anchor {
            AnchorRecord::None => None,
            AnchorRecord::Tap => {
                let [socket, device] = [fds.next(), fds.next()].map(|fd| fd.ok_or_else(missing));
                Some(Anchor::Tap { socket: socket?, device: device? })
            }
        };
        Ok(Self { mapped: Mapped { mapping, file, huge_pages: record.huge_pages }, anchor })
    }
}
