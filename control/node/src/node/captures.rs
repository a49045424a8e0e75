//! The capture that runs: its packets, on their way from the workers' ring to the client.

use std::sync::Arc;

use control::admin::{
    CaptureDirection, CaptureRecord, CaptureRequest, Reply, StreamItem, encode_frame,
};
use dataplane::capture::{CapturePoint, CaptureRing, CapturedPacket};
use dataplane::port::PortId;
use dataplane::time::Nanos;
use tokio::sync::mpsc;

/// A capture under way. Workers hold one at a time, so there is one.
pub struct Capture {
    /// What workers fill.
    pub ring: Arc<CaptureRing>,
    reply: mpsc::Sender<Reply>,
    packets_left: u64,
    bytes_left: u64,
    lost: u64,
}

/// Whether a capture goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It does.
    Running,
    /// A bound was reached, or the client hung up.
    Ended,
}

fn bound(most: u64) -> u64 {
    if most == 0 { u64::MAX } else { most }
}

impl Capture {
    /// Begins to serve `reply` within the request's bounds.
    #[must_use]
    pub fn new(request: &CaptureRequest, reply: mpsc::Sender<Reply>) -> Self {
        Self {
            ring: Arc::default(),
            reply,
            packets_left: bound(request.packets_max),
            bytes_left: bound(request.bytes_max),
            lost: 0,
        }
    }

    /// Sends on what the workers have copied. `unix_ns` dates a worker's time; `interface` names a
    /// port.
    pub fn drain(
        &mut self,
        unix_ns: impl Fn(Nanos) -> u64,
        interface: impl Fn(PortId) -> String,
    ) -> Progress {
        if self.reply.is_closed() {
            return Progress::Ended;
        }
        while self.packets_left > 0 && self.bytes_left > 0 {
            let Some(packet) = self.ring.packets.pop() else { return Progress::Running };
            self.packets_left -= 1;
            self.bytes_left = self.bytes_left.saturating_sub(packet.bytes.len() as u64);
            let record = record(&packet, unix_ns(packet.time), interface(packet.port));
            if self.reply.try_send(Reply::Item(StreamItem::Packet(record))).is_err() {
                self.lost += 1;
            }
        }
        Progress::Ended
    }

    /// Tells the client that there is no more; `lost_by_workers` found the ring full.
    pub fn end(self, lost_by_workers: u64) {
        let end = Reply::End { lost: self.lost + lost_by_workers };
        tokio::spawn(async move {
            // The client may still be reading what it was sent; its own time-out ends this.
            let _ = self.reply.send(end).await;
        });
    }
}

fn record(packet: &CapturedPacket, time_unix_ns: u64, interface: String) -> CaptureRecord {
    let (direction, reason) = match packet.point {
        CapturePoint::Received => (CaptureDirection::Received, None),
        CapturePoint::Transmitted => (CaptureDirection::Transmitted, None),
        CapturePoint::Dropped(reason) => {
            (CaptureDirection::Received, Some(reason.label().to_owned()))
        }
    };
    CaptureRecord {
        time_unix_ns,
        interface,
        direction,
        reason,
        length_bytes: u32::try_from(packet.len).unwrap_or(u32::MAX),
        frame: encode_frame(&packet.bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(capture: &Capture, packets: usize) {
        for _ in 0..packets {
            let point = CapturePoint::Received;
            assert!(capture.ring.copy(Nanos(7), PortId(1), point, 60, &[0xab; 60]));
        }
    }

    fn drain(capture: &mut Capture) -> Progress {
        capture.drain(|time| time.0 + 1000, |port| format!("port{}", port.0))
    }

    #[tokio::test]
    async fn a_capture_ends_at_its_bound_of_packets() {
        let (reply, mut client) = mpsc::channel(16);
        let request = CaptureRequest { packets_max: 3, ..CaptureRequest::default() };
        let mut capture = Capture::new(&request, reply);
        fill(&capture, 2);
        assert_eq!(drain(&mut capture), Progress::Running);
        fill(&capture, 5);
        assert_eq!(drain(&mut capture), Progress::Ended);
        capture.end(4);
        for _ in 0..3 {
            let Some(Reply::Item(StreamItem::Packet(record))) = client.recv().await else {
                panic!("a packet was expected")
            };
            assert_eq!((record.time_unix_ns, record.interface.as_str()), (1007, "port1"));
        }
        assert_eq!(client.recv().await, Some(Reply::End { lost: 4 }));
    }

    #[test]
    fn a_client_that_hung_up_ends_it_and_one_that_reads_slowly_loses_packets() {
        let (reply, client) = mpsc::channel(1);
        let mut capture = Capture::new(&CaptureRequest::default(), reply);
        fill(&capture, 3);
        assert_eq!(drain(&mut capture), Progress::Running);
        assert_eq!(capture.lost, 2);
        drop(client);
        assert_eq!(drain(&mut capture), Progress::Ended);
    }
}
