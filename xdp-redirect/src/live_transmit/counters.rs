//! What a worker sent as live frames, as plain numbers.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use dataplane::port::PortId;

use crate::cast::index;
use crate::limits::PORTS_MAX;
use crate::statistics::add;

macro_rules! live_counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What one worker did.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct LiveStatistics {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl LiveStatistics {
            /// Both together.
            #[must_use]
            pub fn plus(self, other: &Self) -> Self {
                Self { $($name: self.$name + other.$name,)+ }
            }
        }

        /// The same while it is counted: one writer, any readers.
        #[derive(Debug)]
        pub struct LiveCounters {
            $(pub(crate) $name: AtomicU64,)+
            ports: Box<[AtomicU64]>,
        }

        impl Default for LiveCounters {
            fn default() -> Self {
                let ports = (0..index(PORTS_MAX)).map(|_| AtomicU64::new(0)).collect();
                Self { $($name: AtomicU64::new(0),)+ ports }
            }
        }

        impl LiveCounters {
            /// The numbers now.
            #[must_use]
            pub fn read(&self) -> LiveStatistics {
                LiveStatistics { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

live_counters! {
    /// Calls into the kernel.
    calls,
    /// Packets handed to interfaces. What a full or deaf peer then lost of them, the interface
    /// counts ([`super::delivery`]).
    sent_packets,
    /// Calls that the kernel refused for want of a number for one more page pool (ENOSPC): too many
    /// packets wait unread in their receivers.
    refused_no_space,
    /// Calls that the kernel refused for want of memory (ENOMEM, ENOBUFS).
    refused_no_memory,
    /// Calls that the kernel refused for any other reason.
    refused_otherwise,
    /// Packets that a call did not take, and which left by AF_XDP or wait for it.
    returned_packets,
    /// Packets whose interface was no longer there when they were to leave, and which AF_XDP had to
    /// find out about.
    no_interface_packets,
    /// Packets that left by AF_XDP from ports that can take live frames, since they were too few
    /// for a call.
    too_few_packets,
    /// Packets that waited for a port to change its way, since they would have overtaken others.
    settling_packets,
    /// Packets that were lost while they waited, since their port was removed or its link went down.
    abandoned_packets,
}

impl LiveCounters {
    /// Packets handed to the interface of `port` so far; ports that had its number before count.
    #[must_use]
    pub fn port(&self, port: PortId) -> u64 {
        self.ports.get(usize::from(port.0)).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    pub(crate) fn sent(&self, port: PortId) {
        add(&self.sent_packets, 1);
        if let Some(count) = self.ports.get(usize::from(port.0)) {
            add(count, 1);
        }
    }
}
