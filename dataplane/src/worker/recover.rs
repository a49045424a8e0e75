//! How a worker goes on after a panic has cut one of its ticks short.

use super::Worker;
use crate::DropReason;
use crate::port::Ports;
use crate::time::Nanos;

impl<P: Ports> Worker<P> {
    /// Makes the worker whole again after [`Self::tick`] ended by a panic; answers how many packets
    /// were lost by it.
    ///
    /// Flows, ports and mail are as they were. What the pipeline remembered beside them (fragments,
    /// L4 ports found to be taken, budgets) begins anew, what waited is dropped, and so is counted what
    /// was on its way ([`DropReason::WorkerRestarted`]): the conservation law holds again. Buffers that
    /// were on their way are lost to packet memory, a burst or two each time, so whoever calls this
    /// must bound how often.
    pub fn recover(&mut self) -> u64 {
        self.counters.restarts.add(1);
        let sent = std::mem::take(&mut self.sent);
        self.count_sent(sent);
        // It copies packets, and so may be what failed.
        self.stop_capture();
        while let Some(held) = self.held.pop() {
            self.discard(Nanos::default(), held.packet, DropReason::WorkerRestarted);
        }
        while let Some(packet) = self.fragments.take_late(Nanos(u64::MAX)) {
            self.discard(Nanos::default(), packet, DropReason::WorkerRestarted);
        }
        self.count_held();
        let ports = &mut self.ports;
        self.handoff.flush(&self.counters, &mut |buffer| ports.release(buffer));
        self.pipeline.begin_anew();
        let (came, went) = self.counters.balance();
        let lost = came.saturating_sub(went);
        self.counters.drop_many(DropReason::WorkerRestarted, lost);
        lost
    }
}
