//! What one process tells the next of its sockets and packet memory: bytes, with a version, their
//! length and a checksum in front. Descriptors go beside them, in the order of [`Message`]'s fields.
//!
//! Whoever reads them takes nothing for granted: what is cut off, changed, of another version or
//! contradicts itself is refused as a whole, and sockets are bound anew.

use crate::cast::index;
use crate::limits::QUEUES_MAX;
use crate::regions::REGIONS_MAX;
use crate::umem::{FRAMES_MAX, SOCKET_BASE, SOCKETS_MAX};

/// What the bytes begin with.
const MAGIC: [u8; 8] = *b"xskiffho";
/// Of the layout. Processes of different versions bind anew.
pub const VERSION: u32 = 1;
/// Magic, version, length of what follows, and its checksum.
pub const HEADER_BYTES: usize = 24;
/// Bytes behind the header at most: two for each frame of the largest region, and as much again.
pub const BODY_BYTES_MAX: usize = 4 * FRAMES_MAX as usize;
/// Entries of a ring at most that is believed.
const RING_ENTRIES_MAX: u32 = 1 << 24;

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// They are something else.
    #[error("they do not begin as a hand-over does")]
    Foreign,
    /// They are of another version's layout.
    #[error("their version is {0}, and this process knows {VERSION}")]
    Version(u32),
    /// More than there can be.
    #[error("they are {0} bytes, more than there can be")]
    Long(usize),
    /// The checksum is another one.
    #[error("their checksum does not fit")]
    Damaged,
    /// They end early, or go on too long.
    #[error("their length does not fit")]
    Length,
    /// A value that cannot be.
    #[error("{0} cannot be")]
    Value(&'static str),
}

/// Sockets and packet memory of a process whose workers have stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its workers.
    pub workers: u32,
    /// Regions that have memory. Descriptors: the memory, then the anchor's.
    pub regions: Vec<RegionRecord>,
    /// Sockets, one descriptor each.
    pub sockets: Vec<SocketRecord>,
}

/// What holds the registration of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnchorRecord {
    /// Nothing: each port registers it, or no socket is bound yet.
    None,
    /// A socket on a tap device. Descriptors: the socket and the device.
    Tap,
}

/// A region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionRecord {
    /// Its number.
    pub number: u8,
    /// Chunks.
    pub frames: u32,
    /// Bytes of each.
    pub chunk_bytes: u32,
    /// Entries of every socket's fill ring.
    pub fill_ring: u32,
    /// Entries of every socket's completion ring.
    pub completion_ring: u32,
    /// Frames of several chunks are taken.
    pub multi_buffer: bool,
    /// It lies on huge pages.
    pub huge_pages: bool,
    /// What holds it.
    pub anchor: AnchorRecord,
    /// Who has each chunk: 0 nobody, 1 a packet that ended with the process, others a socket's number.
    pub holders: Vec<u16>,
}

/// A socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketRecord {
    /// The kernel's index of its interface.
    pub ifindex: u32,
    /// Its queue.
    pub queue: u32,
    /// The number of its region.
    pub region: u8,
    /// Under which the region keeps its frames: shared by all sockets of the queue.
    pub number: u16,
    /// Entries of its transmit ring.
    pub transmit_ring: u32,
    /// What it does.
    pub role: Role,
}

/// What a socket does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It receives and transmits.
    Receives {
        /// Entries of its receive ring.
        receive_ring: u32,
        /// Frames that the kernel has for packets to come, and that wait in the receive ring.
        posted: u32,
        /// Frames to keep with the kernel.
        wanted: u32,
        /// The rest of a packet of several chunks is to be thrown away.
        discarding: bool,
    },
    /// It transmits only, for a worker without a queue.
    Transmits {
        /// The worker.
        worker: u32,
    },
}

impl RegionRecord {
    fn descriptors(&self) -> usize {
        match self.anchor {
            AnchorRecord::None => 1,
            AnchorRecord::Tap => 3,
        }
    }
}

impl Message {
    /// Descriptors that go with it.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        let of_regions: usize = self.regions.iter().map(RegionRecord::descriptors).sum();
        of_regions + self.sockets.len()
    }

    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let mut word = |value: u32| body.extend(value.to_le_bytes());
        let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        word(self.workers);
        word(length(self.regions.len()));
        word(length(self.sockets.len()));
        for region in &self.regions {
            word(region.number.into());
            word(region.frames);
            word(region.chunk_bytes);
            word(region.fill_ring);
            word(region.completion_ring);
            word(region.multi_buffer.into());
            word(region.huge_pages.into());
            word(u32::from(region.anchor == AnchorRecord::Tap));
        }
        for socket in &self.sockets {
            word(socket.ifindex);
            word(socket.queue);
            word(socket.region.into());
            word(socket.number.into());
            word(socket.transmit_ring);
            let role = match socket.role {
                Role::Receives { receive_ring, posted, wanted, discarding } => {
                    [1 + u32::from(discarding), receive_ring, posted, wanted]
                }
                Role::Transmits { worker } => [0, worker, 0, 0],
            };
            role.into_iter().for_each(&mut word);
        }
        for region in &self.regions {
            region.holders.iter().for_each(|holder| body.extend(holder.to_le_bytes()));
        }
        with_header(&body)
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, MessageError> {
        let (header, body) = bytes.split_first_chunk().ok_or(MessageError::Length)?;
        let header = Header::parse(header)?;
        if header.body_bytes != body.len() {
            return Err(MessageError::Length);
        }
        if header.checksum != checksum(body) {
            return Err(MessageError::Damaged);
        }
        let mut reader = Reader { rest: body };
        let workers = reader.word()?;
        let (regions, sockets) = (index(reader.word()?), index(reader.word()?));
        if regions > REGIONS_MAX + 1 {
            return Err(MessageError::Value("the number of regions"));
        }
        if sockets > SOCKETS_MAX * (REGIONS_MAX + 1) || sockets > body.len() {
            return Err(MessageError::Value("the number of sockets"));
        }
        let regions = (0..regions).map(|_| reader.region()).collect::<Result<Vec<_>, _>>()?;
        let sockets = (0..sockets).map(|_| reader.socket()).collect::<Result<Vec<_>, _>>()?;
        let mut message = Self { workers, regions, sockets };
        for region in &mut message.regions {
            region.holders = reader.holders(region.frames)?;
        }
        if !reader.rest.is_empty() {
            return Err(MessageError::Length);
        }
        message.check()?;
        Ok(message)
    }

    /// What no single field shows.
    fn check(&self) -> Result<(), MessageError> {
        let mut numbers: Vec<u8> = self.regions.iter().map(|region| region.number).collect();
        numbers.sort_unstable();
        if numbers.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(MessageError::Value("two regions of one number"));
        }
        let is_known = |socket: &SocketRecord| numbers.binary_search(&socket.region).is_ok();
        if !self.sockets.iter().all(is_known) {
            return Err(MessageError::Value("a socket's region"));
        }
        // One of each queue receives, and its number is no other queue's of the region.
        let receiving = |socket: &&SocketRecord| matches!(socket.role, Role::Receives { .. });
        let mut queues: Vec<_> =
            self.sockets.iter().filter(receiving).map(|one| (one.ifindex, one.queue)).collect();
        let mut leases: Vec<_> =
            self.sockets.iter().filter(receiving).map(|one| (one.region, one.number)).collect();
        queues.sort_unstable();
        leases.sort_unstable();
        let is_twice = queues.windows(2).any(|pair| pair[0] == pair[1])
            || leases.windows(2).any(|pair| pair[0] == pair[1]);
        if is_twice {
            return Err(MessageError::Value("two sockets of one queue"));
        }
        let is_served = |socket: &SocketRecord| {
            queues.binary_search(&(socket.ifindex, socket.queue)).is_ok()
                && leases.binary_search(&(socket.region, socket.number)).is_ok()
        };
        if !self.sockets.iter().all(is_served) {
            return Err(MessageError::Value("a socket of a queue that none receives from"));
        }
        Ok(())
    }
}

/// What stands in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes that follow.
    pub body_bytes: usize,
    checksum: u64,
}

impl Header {
    /// From the first bytes.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, MessageError> {
        let mut reader = Reader { rest: bytes };
        if reader.take::<8>()? != MAGIC {
            return Err(MessageError::Foreign);
        }
        let version = reader.word()?;
        if version != VERSION {
            return Err(MessageError::Version(version));
        }
        let body_bytes = index(reader.word()?);
        if body_bytes > BODY_BYTES_MAX {
            return Err(MessageError::Long(body_bytes));
        }
        Ok(Self { body_bytes, checksum: u64::from_le_bytes(reader.take()?) })
    }
}

/// What has not been read yet.
struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(MessageError::Length)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn word(&mut self) -> Result<u32, MessageError> {
        self.take().map(u32::from_le_bytes)
    }

    /// A word of at most `max`.
    fn bounded<T: TryFrom<u32>>(
        &mut self,
        what: &'static str,
        max: u32,
    ) -> Result<T, MessageError> {
        let word = self.word()?;
        let value = T::try_from(word).ok().filter(|_| word <= max);
        value.ok_or(MessageError::Value(what))
    }

    fn flag(&mut self, what: &'static str) -> Result<bool, MessageError> {
        Ok(self.bounded::<u32>(what, 1)? == 1)
    }

    fn ring(&mut self, what: &'static str) -> Result<u32, MessageError> {
        let entries: u32 = self.bounded(what, RING_ENTRIES_MAX)?;
        if entries.is_power_of_two() { Ok(entries) } else { Err(MessageError::Value(what)) }
    }

    fn region(&mut self) -> Result<RegionRecord, MessageError> {
        let regions_max = u32::try_from(REGIONS_MAX).unwrap_or(u32::MAX);
        Ok(RegionRecord {
            number: self.bounded("a region's number", regions_max)?,
            frames: self.bounded("a region's frames", FRAMES_MAX)?,
            chunk_bytes: self.ring("a region's chunk size")?,
            fill_ring: self.ring("a fill ring")?,
            completion_ring: self.ring("a completion ring")?,
            multi_buffer: self.flag("several buffers")?,
            huge_pages: self.flag("huge pages")?,
            anchor: match self.flag("an anchor")? {
                true => AnchorRecord::Tap,
                false => AnchorRecord::None,
            },
            holders: Vec::new(),
        })
    }

    fn socket(&mut self) -> Result<SocketRecord, MessageError> {
        let regions_max = u32::try_from(REGIONS_MAX).unwrap_or(u32::MAX);
        let ifindex = self.word()?;
        let queue = self.bounded("a queue", QUEUES_MAX - 1)?;
        let region = self.bounded("a socket's region", regions_max)?;
        let number = self.bounded("a socket's number", u16::MAX.into())?;
        let transmit_ring = self.ring("a transmit ring")?;
        let [kind, first] = [self.bounded::<u32>("a socket's role", 2)?, self.word()?];
        let [posted, wanted] = [self.word()?, self.word()?];
        if !is_socket(number) {
            return Err(MessageError::Value("a socket's number"));
        }
        let role = match kind {
            0 if [posted, wanted] != [0, 0] => {
                return Err(MessageError::Value("a socket's role"));
            }
            0 => Role::Transmits { worker: first },
            discarding => {
                if !first.is_power_of_two() || first > RING_ENTRIES_MAX {
                    return Err(MessageError::Value("a receive ring"));
                }
                Role::Receives { receive_ring: first, posted, wanted, discarding: discarding == 2 }
            }
        };
        Ok(SocketRecord { ifindex, queue, region, number, transmit_ring, role })
    }

    fn holders(&mut self, frames: u32) -> Result<Vec<u16>, MessageError> {
        let (holders, rest) =
            self.rest.split_at_checked(2 * index(frames)).ok_or(MessageError::Length)?;
        self.rest = rest;
        let words = holders.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]]));
        let holders: Vec<u16> = words.collect();
        if holders.iter().all(|holder| *holder < SOCKET_BASE || is_socket(*holder)) {
            Ok(holders)
        } else {
            Err(MessageError::Value("a chunk's holder"))
        }
    }
}

/// The bytes with what stands in front of them.
#[must_use]
pub fn with_header(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(checksum(body).to_le_bytes());
    bytes.extend(body);
    bytes
}

fn is_socket(number: u16) -> bool {
    number.checked_sub(SOCKET_BASE).is_some_and(|number| usize::from(number) < SOCKETS_MAX)
}

/// FNV-1a, of 64 bits: against damage, not against malice, which root alone could mean.
fn checksum(bytes: &[u8]) -> u64 {
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        let region = |number, anchor, holders: &[u16]| RegionRecord {
            number,
            frames: 4,
            chunk_bytes: 2048,
            fill_ring: 64,
            completion_ring: 128,
            multi_buffer: true,
            huge_pages: false,
            anchor,
            holders: holders.to_vec(),
        };
        let receives =
            Role::Receives { receive_ring: 256, posted: 3, wanted: 16, discarding: true };
        let socket = |ifindex, queue, region, role| SocketRecord {
            ifindex,
            queue,
            region,
            number: SOCKET_BASE,
            transmit_ring: 512,
            role,
        };
        Message {
            workers: 2,
            regions: vec![
                region(0, AnchorRecord::Tap, &[0, 1, SOCKET_BASE, 0]),
                region(7, AnchorRecord::None, &[0, 0, 0, SOCKET_BASE]),
            ],
            sockets: vec![
                socket(3, 0, 0, receives),
                socket(3, 0, 0, Role::Transmits { worker: 1 }),
                socket(9, 0, 7, receives),
            ],
        }
    }

    /// The bytes with another body, and a checksum that fits.
    fn with_body(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut body = message().encode().split_off(HEADER_BYTES);
        change(&mut body);
        with_header(&body)
    }

    #[test]
    fn what_is_written_is_read_and_counts_its_descriptors() {
        let message = message();
        assert_eq!(Message::parse(&message.encode()), Ok(message.clone()));
        assert_eq!(message.descriptors(), 3 + 1 + 3);
    }

    /// Change what is written, and raise the version: another one's bytes must not be taken for one's own.
    #[test]
    fn what_is_written_is_what_the_version_says() {
        let sum = checksum(&message().encode());
        assert_eq!((VERSION, sum), (1, 0x0fb7_671b_52d8_daf2), "{sum:#x}");
    }

    #[test]
    fn bytes_of_others_of_other_versions_and_damaged_ones_are_refused() {
        let whole = message().encode();
        let changed = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            Message::parse(&bytes)
        };
        assert_eq!(changed(0), Err(MessageError::Foreign));
        assert_eq!(changed(8), Err(MessageError::Version(VERSION ^ 0x40)));
        assert!(matches!(changed(15), Err(MessageError::Long(_))));
        assert_eq!(changed(16), Err(MessageError::Damaged));
        assert_eq!(changed(HEADER_BYTES), Err(MessageError::Damaged));
        assert_eq!(Message::parse(&whole[..whole.len() - 1]), Err(MessageError::Length));
        assert_eq!(Message::parse(&whole[..HEADER_BYTES - 1]), Err(MessageError::Length));
        assert_eq!(Message::parse(&with_body(|body| body.push(0))), Err(MessageError::Length));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let refused = |change: fn(&mut Message), what| {
            let mut changed = message();
            change(&mut changed);
            assert_eq!(Message::parse(&changed.encode()), Err(MessageError::Value(what)));
        };
        refused(|m| m.regions[1].number = 0, "two regions of one number");
        refused(|m| m.sockets[2].region = 8, "a socket's region");
        refused(|m| m.sockets[2].ifindex = 3, "two sockets of one queue");
        refused(|m| m.sockets[1].queue = 1, "a socket of a queue that none receives from");
        refused(|m| m.sockets[0].number = 1, "a socket's number");
        refused(|m| m.sockets[0].transmit_ring = 100, "a transmit ring");
        refused(|m| m.sockets[0].queue = QUEUES_MAX, "a queue");
        refused(|m| m.regions[0].holders[0] = u16::MAX, "a chunk's holder");
        refused(|m| m.regions[0].fill_ring = 0, "a fill ring");
        // Numbers of regions and sockets.
        let many = with_body(|body| body[4..8].fill(0xff));
        assert_eq!(Message::parse(&many), Err(MessageError::Value("the number of regions")));
        let many = with_body(|body| body[8..12].fill(0xff));
        assert_eq!(Message::parse(&many), Err(MessageError::Value("the number of sockets")));
    }
}
