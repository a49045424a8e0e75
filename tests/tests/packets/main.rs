//! Single packets: what a frame means, and what rewriting and answering make of it.
//!
//! The frames come from Linux ([`captured`]) or from the naive builder, which shares no code with
//! the dataplane, and are read back by the builder: two views of each byte.
#![forbid(unsafe_code)]

mod answers;
mod captured;
mod errors_translated;
mod extensions;
mod fragments;
mod frames;
mod hostile;
mod refused;
mod translation;
