//! The `xskiff-cni` binary: environment and standard input to [`xskiff_cni::run`].
#![forbid(unsafe_code)]

use std::io::{Read, Write, stdin, stdout};
use std::process::ExitCode;

use xskiff_cni::configuration::CONFIGURATION_BYTES_MAX;

fn main() -> ExitCode {
    let mut input = Vec::new();
    // One byte more than is taken, so that too much is seen as too much.
    let bound = CONFIGURATION_BYTES_MAX as u64 + 1;
    let read = stdin().take(bound).read_to_end(&mut input).map(|_| input.as_slice());
    let outcome = xskiff_cni::run(|name| std::env::var(name).ok(), read);
    let mut out = stdout().lock();
    if let Err(error) = out.write_all(outcome.output.as_bytes()).and_then(|()| out.flush()) {
        // A runtime that reads no answer takes the pod away again.
        eprintln!("xskiff-cni: standard output: {error}");
        return ExitCode::FAILURE;
    }
    if outcome.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
