//! Captured packets to pcapng (draft-ietf-opsawg-pcapng): one interface block per interface, the
//! direction as flags, the drop reason as a comment.

use std::borrow::Cow;
use std::io::Write;
use std::time::Duration;

use control::admin::{AdminError, CaptureDirection, CaptureRecord, decode_frame};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, PcapError};

/// if_tsresol: nanoseconds.
const NANOSECONDS: u8 = 9;
/// epb_flags, bits 0 and 1: inbound.
const INBOUND: u32 = 1;
/// epb_flags, bits 0 and 1: outbound.
const OUTBOUND: u32 = 2;

/// A packet could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be written.
    #[error("writing pcapng: {0}")]
    Write(#[from] PcapError),
    /// The node sent no frame.
    #[error("a captured packet cannot be read: {0}")]
    Record(#[from] AdminError),
}

/// Writes packets as pcapng.
pub struct CaptureWriter<W: Write> {
    writer: PcapNgWriter<W>,
    interfaces: Vec<String>,
}

impl<W: Write> CaptureWriter<W> {
    /// Begins a section in `out`.
    ///
    /// # Errors
    /// [`CaptureError::Write`].
    pub fn new(out: W) -> Result<Self, CaptureError> {
        Ok(Self { writer: PcapNgWriter::new(out)?, interfaces: Vec::new() })
    }

    /// Writes one packet, and its interface when it is the first of it.
    ///
    /// # Errors
    /// [`CaptureError`].
    pub fn write(&mut self, record: &CaptureRecord) -> Result<(), CaptureError> {
        let interface_id = self.interface(&record.interface)?;
        let data = if record.frame.is_empty() { Vec::new() } else { decode_frame(&record.frame)? };
        let flags = match record.direction {
            CaptureDirection::Received => INBOUND,
            CaptureDirection::Transmitted => OUTBOUND,
        };
        let mut options = vec![EnhancedPacketOption::Flags(flags)];
        if let Some(reason) = &record.reason {
            options.push(EnhancedPacketOption::Comment(Cow::Owned(format!("dropped: {reason}"))));
        }
        self.writer.write_pcapng_block(EnhancedPacketBlock {
            interface_id,
            timestamp: Duration::from_nanos(record.time_unix_ns),
            original_len: record.length_bytes,
            data: Cow::Owned(data),
            options,
        })?;
        Ok(())
    }

    /// Sends what is buffered on its way, so that a reader of the growing file sees it.
    ///
    /// # Errors
    /// [`CaptureError::Write`].
    pub fn flush(&mut self) -> Result<(), CaptureError> {
        self.writer.get_mut().flush().map_err(|error| PcapError::IoError(error).into())
    }

    /// The stream the packets went to.
    pub fn into_inner(self) -> W {
        self.writer.into_inner()
    }

    fn interface(&mut self, name: &str) -> Result<u32, CaptureError> {
        let known = self.interfaces.iter().position(|known| known == name);
        let index = match known {
            Some(index) => index,
            None => {
                self.writer.write_pcapng_block(InterfaceDescriptionBlock {
                    linktype: DataLink::ETHERNET,
                    snaplen: 0,
                    options: vec![
                        InterfaceDescriptionOption::IfName(Cow::Owned(name.to_owned())),
                        InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
                    ],
                })?;
                self.interfaces.push(name.to_owned());
                self.interfaces.len() - 1
            }
        };
        Ok(u32::try_from(index).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;

    #[test]
    fn a_capture_is_read_back_with_interface_direction_time_and_drop_reason() {
        let mut writer = CaptureWriter::new(Vec::new()).unwrap();
        for (interface, reason) in [("veth1", None), ("up0", Some("spoofed")), ("veth1", None)] {
            let record = CaptureRecord {
                time_unix_ns: 1_700_000_000_123_456_789,
                interface: interface.into(),
                direction: CaptureDirection::Transmitted,
                reason: reason.map(str::to_owned),
                length_bytes: 60,
                frame: "0102ff".into(),
            };
            writer.write(&record).unwrap();
        }
        let bytes = writer.into_inner();
        let mut reader = PcapNgReader::new(bytes.as_slice()).unwrap();
        let (mut interfaces, mut packets) = (0, Vec::new());
        while let Some(block) = reader.next_block() {
            match block.unwrap() {
                Block::InterfaceDescription(_) => interfaces += 1,
                Block::EnhancedPacket(packet) => packets.push(packet.into_owned()),
                _ => {}
            }
        }
        assert_eq!(interfaces, 2);
        assert_eq!(packets.iter().map(|p| p.interface_id).collect::<Vec<_>>(), [0, 1, 0]);
        assert!(packets.iter().all(|p| *p.data == [1, 2, 0xff] && p.original_len == 60));
        assert_eq!(packets[0].timestamp, Duration::from_nanos(1_700_000_000_123_456_789));
        let comment = EnhancedPacketOption::Comment("dropped: spoofed".into());
        assert!(packets[1].options.contains(&comment));
    }
}
