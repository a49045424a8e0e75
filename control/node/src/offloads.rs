//! What local stacks may leave to the interfaces that lead to us, and what ways out need of them.

use control::config::{Segments, Transmit};
use xdp_redirect::ethtool::Offload;

/// An offload, and whether it is to be on.
pub type Switch = (Offload, bool);

/// Offloads that must be off at the other end of a port, since what they leave to be done is not done here.
#[must_use]
pub fn unwanted(segments: Segments) -> &'static [Offload] {
    match segments {
        Segments::Cut => &[Offload::TransmitChecksum, Offload::TcpSegmentation],
        // How long the datagrams are to be is told by nothing that AF_XDP shows, nor that a segment counts
        // congestion by AccECN: its number looks like the flag that the first piece alone may bear.
        Segments::Whole => &[Offload::UdpSegmentation],
    }
}

/// Offloads that are to be on there, each after those that it needs.
#[must_use]
pub fn wanted(segments: Segments) -> &'static [Offload] {
    match segments {
        Segments::Cut => &[],
        Segments::Whole => &[Offload::TransmitChecksum, Offload::TcpSegmentation],
    }
}

/// Offloads that the ways out of a pod's port need at the pod's end.
#[must_use]
pub fn needed(segments: Segments, transmit: Transmit) -> &'static [Offload] {
    match (segments, transmit) {
        // Whose programs run in generic mode, where there are no live frames.
        (Segments::Whole, _) | (_, Transmit::AfXdp) => &[],
        // Without it (or a program of its own) the end polls nothing, and the kernel throws live frames
        // away without a word.
        (_, Transmit::Auto | Transmit::LiveFrames) => &[Offload::GenericReceive],
    }
}

/// What is to be switched at a pod's end: off what is unwanted, on what is needed, and back what a process
/// before has changed for a way that is none any more. A pod's owner may have segmentation off: that
/// alone is turned on which `changed` says was on. In the order in which it is to be done.
#[must_use]
pub fn switches(
    (segments, transmit): (Segments, Transmit),
    on: &[Offload],
    changed: &[Offload],
) -> Vec<Switch> {
    let is_to_be = |one: Offload| {
        let is_back_on = wanted(segments).contains(&one) && changed.contains(&one);
        let is_back_off = one == Offload::GenericReceive && changed.contains(&one);
        match one {
            one if unwanted(segments).contains(&one) => Some(false),
            one if needed(segments, transmit).contains(&one) || is_back_on => Some(true),
            _ => is_back_off.then_some(false),
        }
    };
    let all = Offload::ALL.into_iter();
    let switches = all.filter_map(|one| is_to_be(one).map(|to_be| (one, to_be)));
    let (mut on_first, off): (Vec<Switch>, Vec<Switch>) = switches.partition(|(_, to_be)| *to_be);
    // Of what was changed, a part may be on by itself.
    on_first.retain(|(one, _)| !on.contains(one) || changed.contains(one));
    // What needs checksums comes back with them.
    let comes_back = |one: Offload| {
        one == Offload::UdpSegmentation && on_first.contains(&(Offload::TransmitChecksum, true))
    };
    let off: Vec<Switch> =
        off.into_iter().filter(|(one, _)| on.contains(one) || comes_back(*one)).collect();
    on_first.extend(off);
    on_first
}

/// Whether a switch takes an offload away from what it was before any of ours: receive offload was off
/// where it was changed, and every other one on.
#[must_use]
pub fn is_a_change((offload, on): Switch) -> bool {
    on == (offload == Offload::GenericReceive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Offload::{GenericReceive, TcpSegmentation, TransmitChecksum, UdpSegmentation};

    const CUT: (Segments, Transmit) = (Segments::Cut, Transmit::AfXdp);
    const WHOLE: (Segments, Transmit) = (Segments::Whole, Transmit::AfXdp);

    #[test]
    fn each_way_has_what_it_needs_switched_and_nothing_else() {
        let usual = [TransmitChecksum, TcpSegmentation, UdpSegmentation];
        let off = |one| (one, false);
        assert_eq!(switches(CUT, &usual, &[]), [off(TransmitChecksum), off(TcpSegmentation)]);
        assert_eq!(switches(WHOLE, &usual, &[]), [off(UdpSegmentation)]);
        let live = (Segments::Cut, Transmit::Auto);
        assert_eq!(switches(live, &[], &[]), [(GenericReceive, true)]);
        assert_eq!(switches(live, &[GenericReceive], &[]), []);
        assert_eq!(switches((Segments::Whole, Transmit::Auto), &[], &[]), []);
        // Its owner has them off, and it serves all the same.
        assert_eq!(switches(WHOLE, &[], &[]), []);
    }

    #[test]
    fn what_a_process_before_changed_for_another_way_is_given_back() {
        let changed = [TransmitChecksum, TcpSegmentation];
        let back = [(TransmitChecksum, true), (TcpSegmentation, true), (UdpSegmentation, false)];
        assert_eq!(switches(WHOLE, &[], &changed), back);
        assert_eq!(back.map(is_a_change), [false, false, true]);
        assert_eq!(switches(CUT, &[], &changed), []);
        let back = (GenericReceive, false);
        assert_eq!(switches(CUT, &[GenericReceive], &[GenericReceive]), [back]);
        assert!(!is_a_change(back) && is_a_change((GenericReceive, true)));
        assert_eq!(switches(CUT, &[GenericReceive], &[]), [], "its owner wants it");
    }
}
