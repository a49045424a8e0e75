//! Whether links can be ports at all, fit packet memory, and uplinks can be any.

use xdp_redirect::frame::HEADROOM_BYTES;
use xdp_redirect::socket::TRANSMIT_CHUNKS_MAX;

use super::settings::Uplink;
use super::{NodeError, Settings};
use crate::netlink::{KernelView, Link};

/// An Ethernet header, which the MTU does not count.
const ETHERNET_BYTES: u32 = 14;

/// Whether every uplink is there, unless it may come later, and can be one.
pub(super) fn check_uplinks(settings: &Settings, view: &KernelView) -> Result<(), NodeError> {
    for (index, uplink) in settings.uplinks.iter().enumerate() {
        let refuse =
            |detail: String| Err(NodeError::Uplink { interface: uplink.interface.clone(), detail });
        if settings.uplinks[..index].iter().any(|other| other.interface == uplink.interface) {
            return refuse("it is configured twice".into());
        }
        match view.link_by_name(&uplink.interface) {
            Some((_, link)) => check_uplink(settings, uplink, link).or_else(refuse)?,
            None if uplink.optional => {}
            None => {
                let detail = "there is no such interface; `ip link` lists what there is, and \
                              `optional: true` lets it come later";
                return refuse(detail.into());
            }
        }
    }
    Ok(())
}

/// Whether an interface that is there can be an uplink; else what is wrong and the way out.
pub(super) fn check_uplink(
    settings: &Settings,
    uplink: &Uplink,
    link: &Link,
) -> Result<(), String> {
    check_link_layer(&uplink.interface)?;
    if link.mac.is_none() {
        return Err("it has no Ethernet address, so it cannot carry Ethernet frames".into());
    }
    check_mtu(settings, link.mtu)
}

/// The largest IP packet that a buffer of `chunk_bytes` holds.
#[must_use]
pub fn packet_bytes_max(chunk_bytes: u32) -> u32 {
    chunk_bytes.saturating_sub(HEADROOM_BYTES + ETHERNET_BYTES)
}

/// Whether a packet of the link fits packet memory; else what is wrong and the way out.
pub(super) fn check_mtu(settings: &Settings, mtu: u32) -> Result<(), String> {
    let bytes = settings.umem.chunk_bytes;
    let single = packet_bytes_max(bytes);
    if settings.umem.multi_buffer {
        let most = single * u32::from(TRANSMIT_CHUNKS_MAX);
        if mtu > most {
            return Err(format!(
                "its MTU of {mtu} does not fit {TRANSMIT_CHUNKS_MAX} buffers of {bytes} bytes; \
                 take larger buffers (packet_memory.frame_bytes), or lower the MTU to {most} or less"
            ));
        }
    } else if mtu > single {
        return Err(format!(
            "its MTU of {mtu} does not fit one buffer of {bytes} bytes; allow packets of several \
             (packet_memory.jumbo, kernel 6.6 or newer), take larger buffers \
             (packet_memory.frame_bytes), or lower the MTU to {single} or less"
        ));
    }
    Ok(())
}

/// Uplinks in the order in which the program can be attached: the kernel refuses it to a device while
/// one on top of that (a VXLAN or VLAN device) has a program.
pub(super) fn lower_first(uplinks: &[Uplink]) -> Vec<&Uplink> {
    let mut ordered: Vec<&Uplink> = uplinks.iter().collect();
    ordered.sort_by_key(|uplink| height(&uplink.interface, HEIGHT_LIMIT));
    ordered
}

/// Devices on top of each other that are followed; the kernel allows eight.
const HEIGHT_LIMIT: u32 = 8;

/// How many devices there are below an interface, on its longest way down.
fn height(interface: &str, limit: u32) -> u32 {
    let entries = std::fs::read_dir(format!("/sys/class/net/{interface}"));
    let names = entries.into_iter().flatten().flatten().map(|entry| entry.file_name());
    let below = names.filter_map(|name| {
        let lower = name.to_str()?.strip_prefix("lower_")?;
        Some(1 + if limit == 0 { 0 } else { height(lower, limit - 1) })
    });
    below.max().unwrap_or(0)
}

/// Whether an interface's frames have an Ethernet header; else what it is and the way out.
///
/// # Errors
/// What is wrong. An interface whose type cannot be read is left to whoever opens it.
pub(super) fn check_link_layer(interface: &str) -> Result<(), String> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{interface}/type"));
    match text.ok().and_then(|text| text.trim().parse().ok()).and_then(layer_3_kind) {
        None => Ok(()),
        Some(kind) => Err(format!(
            "it is a layer-3 device ({kind}), whose packets have no Ethernet header: give a pod a veth \
             pair; between nodes use routes, or a tunnel of Ethernet frames such as VXLAN (flannel.1, \
             vxlan.calico), which is an uplink like any other"
        )),
    }
}

/// What an interface is whose type (`linux/if_arp.h`) is not Ethernet.
fn layer_3_kind(number: u16) -> Option<String> {
    let name = match number {
        1 => return None,
        768 => "IP in IP",
        769 => "a tunnel in IPv6",
        772 => "the loopback",
        776 => "IPv6 in IPv4",
        778 | 823 => "GRE",
        65_534 => "tun, WireGuard or the like",
        _ => return Some(format!("type {number}")),
    };
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_ethernet_header_is_named_with_the_way_out() {
        assert_eq!(layer_3_kind(1), None);
        assert_eq!(layer_3_kind(768).as_deref(), Some("IP in IP"));
        assert_eq!(layer_3_kind(512).as_deref(), Some("type 512"));
        let refused = check_link_layer("lo").unwrap_err();
        assert!(refused.contains("the loopback") && refused.contains("VXLAN"), "{refused}");
        assert_eq!(check_link_layer("no-such-device"), Ok(()));
    }
}
