//! `xskiff debug`: failures by order, for game days.

use clap::Subcommand;
use control::admin::{Fault, Request};

/// What is to fail.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum DebugCommand {
    /// Let a worker stand still, whatever comes: what is ours on its queues is dropped meanwhile.
    StallWorker {
        /// Its number, from 0.
        worker: u16,
        /// For how long, in milliseconds. Longer than stall.restart_after_ms ends the process.
        #[arg(long, value_name = "MS", default_value_t = 3000)]
        for_ms: u32,
    },
    /// Let a worker panic: it goes on by itself, a few times a minute.
    PanicWorker {
        /// Its number, from 0.
        worker: u16,
    },
    /// Let the control thread stand still: tables stay in force, nothing new comes into force.
    StallControl {
        /// For how long, in milliseconds.
        #[arg(long, value_name = "MS", default_value_t = 3000)]
        for_ms: u32,
    },
    /// Let the control thread panic: it begins anew, a few times a minute.
    PanicControl,
}

impl From<DebugCommand> for Request {
    fn from(command: DebugCommand) -> Self {
        Self::Inject(match command {
            DebugCommand::StallWorker { worker, for_ms } => {
                Fault::WorkerStall { worker, ms: for_ms }
            }
            DebugCommand::PanicWorker { worker } => Fault::WorkerPanic { worker },
            DebugCommand::StallControl { for_ms } => Fault::ControlStall { ms: for_ms },
            DebugCommand::PanicControl => Fault::ControlPanic,
        })
    }
}
