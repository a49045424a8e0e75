//! The rules of the house that the compiler does not keep: who may import whom, where `unsafe` and
//! clocks may be, how long a file may grow, and under which licences we build.

mod bounds;
mod imports;
mod licences;
mod plugin;
mod rust_source;
mod sources;
mod workspace;
