//! Fragments: later ones carry no L4 header, so they follow what their first one showed.
//!
//! A worker remembers protocol and L4 ports of first fragments for [`FRAGMENT_SECONDS`], or until there are
//! so many that the oldest makes room: its packet has passed long ago, unless a flood comes, and
//! that of one source pushes out few others'. All fragments of a packet reach the same worker, which
//! the caller sees to. A later fragment that comes before its
//! first waits for it ([`waiting`]). Nothing is reassembled here, and the receiver judges overlaps,
//! but none changes where a packet goes: no later fragment may cover L4 ports or TCP flags (the
//! parser sees to it), and of two first fragments of one IPv6 packet that show different ports
//! the second is dropped (RFC 5722). An IPv4 sender uses an identification again so soon that
//! there the second begins another packet.

use std::collections::VecDeque;
use std::net::IpAddr;

use hashbrown::HashMap;

use crate::DropReason;
use crate::address::Protocol;
use crate::time::Nanos;

pub mod waiting;

/// Packets under reassembly that a worker follows at once.
pub const FRAGMENTED_PACKETS_MAX: usize = 4096;
/// How long a first fragment is remembered, in seconds. Linux gives up reassembly after 30
/// (`net.ipv4.ipfrag_time`).
pub const FRAGMENT_SECONDS: u64 = 30;
/// Sources are divided into so many groups, of which none takes another's room.
const GROUPS: usize = 16;
/// Packets of one group.
const GROUP_MAX: usize = FRAGMENTED_PACKETS_MAX / GROUPS;

const _: () = assert!(FRAGMENTED_PACKETS_MAX.is_multiple_of(GROUPS));

/// What all fragments of one packet share (RFC 791, 3.2; RFC 8200, 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IPv4: protocol of the payload. IPv6: 0; there it is no part of the key (RFC 8200, 4.5), since later
    /// fragments name what follows the fragment header, and the transport may lie behind options.
    pub protocol: Protocol,
    /// Identification.
    pub identification: u32,
}

/// What a first fragment shows of its packet's flow, and later ones do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport {
    /// The transport's protocol.
    pub protocol: Protocol,
    /// L4 ports: source, destination.
    pub l4_ports: (u16, u16),
}

#[derive(Debug, Clone, Copy)]
struct Known {
    transport: Transport,
    until: Nanos,
}

/// Transports by fragmented packet.
#[derive(Debug)]
pub struct FragmentTable {
    known: HashMap<FragmentKey, Known>,
    /// The same packets by their sources' groups, in order of arrival.
    arrivals: [VecDeque<FragmentKey>; GROUPS],
    /// Whether a first fragment was remembered since [`Self::take_news`].
    has_news: bool,
    /// When to forget what is too old again.
    next_sweep: Nanos,
}

impl Default for FragmentTable {
    fn default() -> Self {
        // Twice the room: a map that is not half full clears away its removed entries in place,
        // and never allocates again.
        let known = HashMap::with_capacity(2 * FRAGMENTED_PACKETS_MAX);
        let arrivals = std::array::from_fn(|_| VecDeque::with_capacity(GROUP_MAX));
        Self { known, arrivals, has_news: false, next_sweep: Nanos(0) }
    }
}

impl FragmentTable {
    /// Remembers what a first fragment showed; forgets the oldest of its group of sources when there are
    /// [`FRAGMENTED_PACKETS_MAX`] / 16.
    pub fn remember(&mut self, key: FragmentKey, transport: Transport, now: Nanos) {
        let until = now.after(std::time::Duration::from_secs(FRAGMENT_SECONDS));
        self.has_news = true;
        let is_new = self.known.insert(key, Known { transport, until }).is_none();
        if !is_new {
            return;
        }
        let arrivals = &mut self.arrivals[group_of(key.source)];
        if arrivals.len() == GROUP_MAX
            && let Some(oldest) = arrivals.pop_front()
        {
            self.known.remove(&oldest);
        }
        arrivals.push_back(key);
    }

    /// Whether a first fragment that shows `transport` may be one of `key`'s.
    ///
    /// # Errors
    /// [`DropReason::FragmentOverlap`] when another showed something else.
    pub fn check_first(
        &self,
        key: &FragmentKey,
        transport: Transport,
        now: Nanos,
    ) -> Result<(), DropReason> {
        match self.transport(key, now) {
            Ok(known) if key.source.is_ipv6() && known != transport => {
                Err(DropReason::FragmentOverlap)
            }
            _ => Ok(()),
        }
    }

    /// Whether a first fragment was remembered since this was last asked.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// The transport of a later fragment.
    ///
    /// # Errors
    /// [`DropReason::FragmentUnknown`] when its first was not seen, or too long ago.
    pub fn transport(&self, key: &FragmentKey, now: Nanos) -> Result<Transport, DropReason> {
        match self.known.get(key) {
            Some(known) if known.until > now => Ok(known.transport),
            _ => Err(DropReason::FragmentUnknown),
        }
    }

    /// Packets followed now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Forgets what is too old; at most once a second, so that no tick pays for a walk of the table.
    pub fn forget_old(&mut self, now: Nanos) {
        if self.known.is_empty() || now < self.next_sweep {
            return;
        }
        self.next_sweep = now.after(std::time::Duration::from_secs(1));
        let Self { known, arrivals, .. } = self;
        known.retain(|_, known| known.until > now);
        arrivals.iter_mut().for_each(|group| group.retain(|key| known.contains_key(key)));
    }
}

/// Neighbouring addresses, as pods of a node have them, are of different groups.
fn group_of(source: IpAddr) -> usize {
    let last = match source {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    usize::from(last) % GROUPS
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn udp(source: u16, destination: u16) -> Transport {
        Transport { protocol: Protocol::UDP, l4_ports: (source, destination) }
    }

    fn key(identification: u32) -> FragmentKey {
        FragmentKey {
            source: Ipv4Addr::new(10, 0, 0, 1).into(),
            destination: Ipv4Addr::new(10, 0, 0, 2).into(),
            protocol: Protocol::UDP,
            identification,
        }
    }

    #[test]
    fn later_fragment_follows_its_first_until_it_is_forgotten() {
        let mut table = FragmentTable::default();
        assert_eq!(table.transport(&key(7), Nanos(0)), Err(DropReason::FragmentUnknown));
        table.remember(key(7), udp(1, 2), Nanos(0));
        assert_eq!(table.transport(&key(7), Nanos(1)), Ok(udp(1, 2)));
        let late = Nanos(FRAGMENT_SECONDS * 1_000_000_000);
        assert_eq!(table.transport(&key(7), late), Err(DropReason::FragmentUnknown));
    }

    #[test]
    fn second_first_fragment_with_other_ports_is_an_overlap_in_ipv6_only() {
        let key6 = FragmentKey {
            source: std::net::Ipv6Addr::LOCALHOST.into(),
            destination: std::net::Ipv6Addr::LOCALHOST.into(),
            ..key(7)
        };
        let overlap = Err(DropReason::FragmentOverlap);
        for (key, other) in [(key(7), Ok(())), (key6, overlap)] {
            let mut table = FragmentTable::default();
            assert_eq!(table.check_first(&key, udp(1, 2), Nanos(0)), Ok(()));
            table.remember(key, udp(1, 2), Nanos(0));
            assert_eq!(table.check_first(&key, udp(1, 2), Nanos(1)), Ok(()), "sent again");
            assert_eq!(table.check_first(&key, udp(1, 3), Nanos(1)), other);
            let late = Nanos(FRAGMENT_SECONDS * 1_000_000_000);
            assert_eq!(table.check_first(&key, udp(1, 3), late), Ok(()));
            let sctp = Transport { protocol: Protocol::SCTP, ..udp(1, 2) };
            assert_eq!(table.check_first(&key, sctp, Nanos(1)), other);
        }
    }

    /// Refusing the newest for 30 s allowed 136 fragmented packets a second.
    #[test]
    fn flood_of_first_fragments_pushes_out_its_own_oldest_and_nobody_elses() {
        let mut table = FragmentTable::default();
        let other = FragmentKey { source: Ipv4Addr::new(10, 0, 0, 2).into(), ..key(1) };
        table.remember(other, udp(5, 6), Nanos(0));
        for id in 0..100_000 {
            table.remember(key(id), udp(1, 2), Nanos(id.into()));
            // What a sender has under way is known, however much it sends.
            let before = id.saturating_sub(200);
            assert_eq!(table.transport(&key(before), Nanos(id.into())), Ok(udp(1, 2)));
        }
        assert_eq!(table.known.len(), GROUP_MAX + 1);
        assert_eq!(table.transport(&key(1), Nanos(100_000)), Err(DropReason::FragmentUnknown));
        assert_eq!(table.transport(&other, Nanos(100_000)), Ok(udp(5, 6)));
    }

    #[test]
    fn identification_that_comes_again_is_the_packet_that_came_last() {
        let mut table = FragmentTable::default();
        for (round, ports) in [(0, udp(1, 2)), (1, udp(3, 4))] {
            for id in 0..100 {
                table.remember(key(id), ports, Nanos(round));
            }
        }
        assert_eq!(table.transport(&key(7), Nanos(1)), Ok(udp(3, 4)));
        assert_eq!(table.arrivals.iter().map(VecDeque::len).sum::<usize>(), table.known.len());
    }

    /// What nobody follows any more was kept until the table was full, and counted as used.
    #[test]
    fn the_table_empties_by_itself_when_no_more_fragments_come() {
        let mut table = FragmentTable::default();
        for id in 0..100 {
            table.remember(key(id), udp(1, 2), Nanos(0));
        }
        table.forget_old(Nanos(1_000_000_000));
        assert_eq!(table.len(), 100);
        table.forget_old(Nanos((FRAGMENT_SECONDS + 2) * 1_000_000_000));
        assert!(table.is_empty());
    }
}
