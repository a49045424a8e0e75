//! `xskiff debug`: failures by order, for game days.

use clap::{Subcommand, ValueEnum};
use control::admin::{AddStep, Fault, Request};

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
    /// Let packets leave by other ways than their ports' own and back, over and over: none overtakes another
    /// of its flow, and none is lost but what is counted.
    ChangeWays {
        /// How long each way is used, in milliseconds.
        #[arg(long, value_name = "MS", default_value_t = 10)]
        every_ms: u32,
        /// For how long in all, in milliseconds.
        #[arg(long, value_name = "MS", default_value_t = 3000)]
        for_ms: u32,
    },
    /// Let the control thread stand still: tables stay in force, nothing new comes into force.
    StallControl {
        /// For how long, in milliseconds.
        #[arg(long, value_name = "MS", default_value_t = 3000)]
        for_ms: u32,
    },
    /// Let the control thread panic: it begins anew, a few times a minute.
    PanicControl {
        /// Not now, but when the next endpoint to be added has come so far.
        #[arg(long, value_enum, value_name = "STEP")]
        while_adding: Option<AddingStep>,
    },
}

/// A step of adding an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AddingStep {
    /// Its interface was looked at.
    Looked,
    /// Its sockets are bound.
    Bound,
    /// The XDP program is attached to its interface.
    Attached,
    /// It is an endpoint, and tables are to be made.
    Published,
}

impl From<AddingStep> for AddStep {
    fn from(step: AddingStep) -> Self {
        match step {
            AddingStep::Looked => Self::Looked,
            AddingStep::Bound => Self::Bound,
            AddingStep::Attached => Self::Attached,
            AddingStep::Published => Self::Published,
        }
    }
}

impl From<DebugCommand> for Request {
    fn from(command: DebugCommand) -> Self {
        Self::Inject(match command {
            DebugCommand::StallWorker { worker, for_ms } => {
                Fault::WorkerStall { worker, ms: for_ms }
            }
            DebugCommand::PanicWorker { worker } => Fault::WorkerPanic { worker },
            DebugCommand::ChangeWays { every_ms, for_ms } => {
                Fault::WayChanges { every_ms, ms: for_ms }
            }
            DebugCommand::StallControl { for_ms } => Fault::ControlStall { ms: for_ms },
            DebugCommand::PanicControl { while_adding } => {
                while_adding.map_or(Fault::ControlPanic, |at| Fault::AddPanic { step: at.into() })
            }
        })
    }
}
