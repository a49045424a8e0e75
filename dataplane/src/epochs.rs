//! What a flow has cached, and whether it still holds: when something that concerns an address last
//! changed.
//!
//! A flow's decision depends on who its two ends are, what their policies say and how they are
//! reached. [`Tables::generation`](crate::tables::Tables::generation) counts the changes of all of
//! that for everybody, so a flow that was decided under the generation in force is not looked at
//! again. Of one that was not, the epochs tell whether any change since concerned one of its ends: a
//! pod that comes or goes elsewhere judges no other pod's flow again.
//!
//! Addresses share [`SLOTS`] slots by their hash. Whoever makes addresses share one causes flows to be
//! judged again without need, and nothing else.
//!
//! To find that its decision still holds costs a flow's next packet some ten nanoseconds, of every
//! flow at every change. So the generation does not grow at all while nothing that changes is an end
//! of any flow: see [`crate::flow_ends`].

use std::net::IpAddr;

use crate::address_hash::AddressHash;

/// Slots that addresses share. So many that a change of a few addresses passes 99.9 % of the other
/// flows by, and so few that all of them stay in the processor's first cache (16 KiB).
pub const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 12;

/// The generation under which something last changed, by slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epochs {
    slots: Box<[u32; SLOTS]>,
}

impl Epochs {
    /// Those of tables of this generation that have nothing in common with any before.
    #[must_use]
    pub fn beginning_at(generation: u32) -> Self {
        Self { slots: Box::new([generation; SLOTS]) }
    }

    /// Notes that under `generation`, the greatest so far, something concerns these addresses.
    pub fn concern(&mut self, generation: u32, addresses: impl IntoIterator<Item = IpAddr>) {
        for address in addresses {
            self.slots[slot_of(address.into())] = generation;
        }
    }

    /// Whether nothing concerned a flow between these ends since `generation`. Generations are
    /// compared as they wrap: a flow that slept through 2^31 of them is past its time.
    #[inline(always)]
    #[must_use]
    pub fn hold_since(&self, generation: u32, ends: [AddressHash; 2]) -> bool {
        let is_not_after = |epoch: u32| generation.wrapping_sub(epoch) <= u32::MAX / 2;
        let [one, other] = ends.map(|end| self.slots[slot_of(end) % SLOTS]);
        is_not_after(one) & is_not_after(other)
    }
}

/// The slot of an address with this hash.
#[inline(always)]
fn slot_of(address: AddressHash) -> usize {
    address.upper(SLOT_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_change_concerns_the_flows_of_its_addresses_and_no_other() {
        let [pod, peer, other] = ["10.0.0.1", "fd00::2", "10.0.0.3"].map(address);
        let mut epochs = Epochs::beginning_at(7);
        let hold = |epochs: &Epochs, generation, a: IpAddr, b: IpAddr| {
            epochs.hold_since(generation, [a.into(), b.into()])
        };
        assert!(hold(&epochs, 7, pod, peer) && !hold(&epochs, 6, pod, peer));
        epochs.concern(8, [pod]);
        assert!(!hold(&epochs, 7, pod, peer) && !hold(&epochs, 7, peer, pod));
        assert!(hold(&epochs, 7, peer, other) && hold(&epochs, 8, pod, peer));
        epochs.concern(9, [peer]);
        assert!(!hold(&epochs, 8, pod, peer) && hold(&epochs, 8, pod, other));
    }

    #[test]
    fn generations_wrap_around() {
        let ends = [address("10.0.0.1").into(), address("10.0.0.2").into()];
        let mut epochs = Epochs::beginning_at(u32::MAX);
        assert!(epochs.hold_since(u32::MAX, ends) && epochs.hold_since(0, ends));
        epochs.concern(0, [address("10.0.0.1")]);
        assert!(!epochs.hold_since(u32::MAX, ends) && epochs.hold_since(0, ends));
    }

    #[test]
    fn addresses_of_a_cluster_are_spread_over_the_slots() {
        let slots = |addresses: &mut dyn Iterator<Item = IpAddr>| {
            let mut used = vec![0_u32; SLOTS];
            addresses.for_each(|address| used[slot_of(address.into())] += 1);
            (used.iter().filter(|number| **number > 0).count(), used.into_iter().max())
        };
        let v4 = |pod: u32| IpAddr::V4((0x0a01_0000 + pod).into());
        let v6 = |pod: u32| IpAddr::V6(((0xfd00_u128 << 112) + (u128::from(pod) << 16) + 1).into());
        for (used, most) in [slots(&mut (0..16_384).map(v4)), slots(&mut (0..16_384).map(v6))] {
            assert!(used > SLOTS * 9 / 10 && most < Some(24), "{used} used, {most:?} in one");
        }
    }
}
