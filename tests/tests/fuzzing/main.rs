//! Fuzzing of every parser: packets, and what people and programs write to the control side.
//!
//! `cargo test` runs a short, bounded round of each; `make fuzz` runs each for longer.
#![forbid(unsafe_code)]

mod fuzz_cni;
mod fuzz_control;
mod fuzz_direct;
mod fuzz_hand_over;
mod fuzz_packets;

/// Damage to an honest input: bytes replaced, and a cut.
type Damage = (Vec<(u16, u8)>, Option<u16>);

fn damaged(honest: &[u8], (bytes, cut): &Damage) -> Vec<u8> {
    let mut input = honest.to_vec();
    for (at, byte) in bytes {
        let len = input.len().max(1);
        if let Some(place) = input.get_mut(usize::from(*at) % len) {
            *place = *byte;
        }
    }
    if let Some(cut) = cut {
        input.truncate(usize::from(*cut));
    }
    input
}
