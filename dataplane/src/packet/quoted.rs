//! The packet that an ICMP error quotes.

use super::{Packet, is_mapped, ports};
use crate::DropReason;
use crate::address::Protocol;
use crate::flow_key::{FlowKey, FlowKey4, FlowKey6};
use crate::wire::{self, ETHERNET_LEN, Fragment, IPV4_LEN, IPV6_LEN};

/// The packet that an ICMP error quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    /// Its tuple, as its sender's packet looked where the error arose.
    pub key: FlowKey,
    /// Where its IP header begins in the frame.
    pub ip_offset: usize,
    /// Where its L4 header begins in the frame.
    pub l4_offset: usize,
}

/// Reads what an ICMP error is about. Of the quoted L4 header only eight bytes are promised
/// (RFC 792), which hold the ports or the identifier.
///
/// # Errors
/// [`DropReason::Truncated`] or [`DropReason::Malformed`]; [`DropReason::IcmpUnrelated`] for a
/// quoted fragment without ports.
pub fn quoted(packet: &Packet, bytes: &[u8]) -> Result<Quoted, DropReason> {
    let ip_offset = packet.l4_offset + wire::ICMP_LEN;
    // Padding is no part of the quote.
    let bytes = bytes.get(..ETHERNET_LEN + packet.ip_len).unwrap_or(bytes);
    let (addresses, transport) = match packet.key {
        FlowKey::V4(_) => quoted_ipv4(bytes, ip_offset)?,
        FlowKey::V6(_) => quoted_ipv6(bytes, ip_offset)?,
    };
    let l4: &[u8; 8] = wire::array_at(bytes, transport.1).ok_or(DropReason::Truncated)?;
    let (source_port, destination_port) = match transport.0 {
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => ports(l4),
        Protocol::ICMP | Protocol::ICMPV6 => {
            // RFC 1122, 3.2.2: never an error about an error.
            if !matches!(
                (transport.0, l4[0]),
                (Protocol::ICMP, 0 | 8 | 13 | 14) | (Protocol::ICMPV6, 128 | 129)
            ) {
                return Err(DropReason::IcmpUnrelated);
            }
            let identifier = u16::from_be_bytes([l4[4], l4[5]]);
            (identifier, identifier)
        }
        _ => (0, 0),
    };
    let key = match addresses {
        Addresses::V4(source, destination) => FlowKey::V4(FlowKey4::new(
            transport.0,
            (source, source_port),
            (destination, destination_port),
        )),
        Addresses::V6(source, destination) => FlowKey::V6(FlowKey6 {
            source,
            destination,
            source_port,
            destination_port,
            protocol: transport.0,
        }),
    };
    Ok(Quoted { key, ip_offset, l4_offset: transport.1 })
}

enum Addresses {
    V4(u32, u32),
    V6(u128, u128),
}

fn quoted_ipv4(bytes: &[u8], at: usize) -> Result<(Addresses, (Protocol, usize)), DropReason> {
    let header: &[u8; IPV4_LEN] = wire::array_at(bytes, at).ok_or(DropReason::Truncated)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_len < IPV4_LEN {
        return Err(DropReason::Malformed);
    }
    if Fragment::of_ipv4(header).is_some_and(|fragment| !fragment.is_first()) {
        return Err(DropReason::IcmpUnrelated);
    }
    let source = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
    let destination = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
    Ok((Addresses::V4(source, destination), (Protocol(header[9]), at + header_len)))
}

fn quoted_ipv6(bytes: &[u8], at: usize) -> Result<(Addresses, (Protocol, usize)), DropReason> {
    let header: &[u8; IPV6_LEN] = wire::array_at(bytes, at).ok_or(DropReason::Truncated)?;
    if header[0] >> 4 != 6 {
        return Err(DropReason::Malformed);
    }
    let inner = wire::ipv6_extensions(bytes, header[6], at + IPV6_LEN, bytes.len())?;
    if inner.fragment.is_some_and(|fragment| !fragment.is_first()) {
        return Err(DropReason::IcmpUnrelated);
    }
    let (source, destination) = (wire::u128_at(header, 8), wire::u128_at(header, 24));
    // No packet bears such an address; a flow that changes family has it in its tuples.
    if is_mapped(source) || is_mapped(destination) {
        return Err(DropReason::Malformed);
    }
    let addresses = Addresses::V6(source, destination);
    Ok((addresses, (inner.protocol, inner.offset)))
}
