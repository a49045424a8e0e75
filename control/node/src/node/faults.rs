//! `xskiff debug`: things made to fail by order.

use std::time::Duration;

use control::admin::reply::Reply;
use control::admin::{AdminError, Fault};
use tokio::sync::mpsc;

use super::Node;
use crate::workers;

impl Node {
    /// Makes something fail. The answer to a failure of this thread is sent before.
    #[allow(clippy::panic, reason = "it is what was asked for")]
    pub(super) fn inject(
        &mut self,
        fault: Fault,
        reply: &mpsc::Sender<Reply>,
    ) -> Result<Option<Reply>, AdminError> {
        if !self.settings.faults {
            let detail = "this node is not there to be tried out: set debug.faults to true in its \
                          configuration, for as long as that is so";
            return Err(AdminError::Failed { detail: detail.into() });
        }
        tracing::warn!(?fault, "by order of `xskiff debug`");
        match fault {
            Fault::WorkerPanic { worker } => self.inject_into(worker, workers::Fault::Panic)?,
            Fault::WorkerStall { worker, ms } => {
                let time = Duration::from_millis(ms.into());
                self.inject_into(worker, workers::Fault::Stall(time))?;
            }
            Fault::ControlPanic => {
                let _ = reply.try_send(Reply::Injected);
                panic!("by order of `xskiff debug`");
            }
            Fault::WayChanges { every_ms, ms } => {
                let [every, time] = [every_ms, ms].map(|ms| Duration::from_millis(ms.into()));
                self.ports.change_ways(every, time);
            }
            Fault::AddPanic { step } => self.arrivals.fault = Some(step),
            Fault::ControlStall { ms } => {
                let _ = reply.try_send(Reply::Injected);
                // All that this thread does stands still with it.
                std::thread::sleep(Duration::from_millis(ms.into()));
                return Ok(None);
            }
        }
        Ok(Some(Reply::Injected))
    }

    fn inject_into(&self, worker: u16, fault: workers::Fault) -> Result<(), AdminError> {
        if self.workers.inject(worker.into(), fault) {
            return Ok(());
        }
        Err(AdminError::NotFound {
            what: "worker".into(),
            name: worker.to_string(),
            list_command: "xskiff status".into(),
        })
    }
}
