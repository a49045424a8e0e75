//! What a worker sent whole and what it cut, as plain numbers.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! segment_counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What one worker did.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct SegmentStatistics {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl SegmentStatistics {
            /// Both together.
            #[must_use]
            pub fn plus(self, other: &Self) -> Self {
                Self { $($name: self.$name + other.$name,)+ }
            }
        }

        /// The same while it is counted: one writer, any readers.
        #[derive(Debug, Default)]
        pub struct SegmentCounters {
            $(pub(crate) $name: AtomicU64,)+
        }

        impl SegmentCounters {
            /// The numbers now.
            #[must_use]
            pub fn read(&self) -> SegmentStatistics {
                SegmentStatistics { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

segment_counters! {
    /// Packets that left by the packet socket as whole segments.
    whole_packets,
    /// Segments that were made of packets of a link, and left by it.
    joined_segments,
    /// The packets that they were made of.
    joined_packets,
    /// Packets of links that left by it as they were: behind others to the same port, or with nothing to join.
    following_packets,
    /// Calls into the kernel.
    calls,
    /// Packets that the kernel refused for their header (EINVAL, EMSGSIZE).
    refused_header_packets,
    /// Packets that it refused for want of memory, or since too many wait at their receivers (EAGAIN,
    /// ENOBUFS, ENOMEM).
    refused_memory_packets,
    /// Packets that were lost since their interface was down or gone (ENETDOWN, ENXIO, ENODEV), or their
    /// port removed.
    abandoned_packets,
    /// Whole segments that were cut here, since their port takes packets of its link alone.
    cut_packets,
    /// Packets that those were cut into.
    cut_pieces,
    /// Pieces that were lost for want of packet memory or of room in the transmit ring.
    lost_pieces,
}
