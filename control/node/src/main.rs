//! The `xskiff` binary: reads the command line, does it, and tells how it went.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use xskiff::cli::execute::ExecuteError;
use xskiff::cli::{Cli, EXIT_USAGE, execute};

/// Hundreds of thousands of objects are made by the thread that reads a cluster and kept and freed by
/// those that compile it. glibc's grows such a thread's arena page by page, a system call each. It asks for
/// no huge pages: where memory is in pieces, the kernel moves others' about for as long as all else takes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for, and go to standard output.
            let wrong = error.use_stderr();
            let _ = error.print();
            return if wrong { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(ExecuteError::Usage(text)) => {
            eprintln!("xskiff: {text}");
            ExitCode::from(EXIT_USAGE)
        }
        // A reader that went away, as in `xskiff flows | head`, is no failure of ours.
        Err(ExecuteError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("xskiff: {error}");
            ExitCode::FAILURE
        }
    }
}
