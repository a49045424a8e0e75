//! What the program's maps hold, read back from the kernel: whoever else may write them, by
//! `bpftool` for one, is found out by that.

use std::net::IpAddr;

use aya::maps::MapError;
use dataplane::lpm::Prefix;
use dataplane::port::PortId;

use super::{L4Bitmap, OnStall, OurPrefix, Rules, map_error};
use crate::cast::index;
use crate::error::Error;
use crate::limits;

/// The rules that say what is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeldRules {
    /// Destinations.
    pub prefixes: Vec<OurPrefix>,
    /// The node's addresses.
    pub node_addresses: Vec<IpAddr>,
    /// What each pod may claim on its link.
    pub pod_addresses: Vec<(PortId, IpAddr)>,
    /// L4 ports of the node's addresses.
    pub l4_ports: Vec<(L4Bitmap, u16)>,
}

/// Every entry of a map, or why it cannot be read.
fn all<T>(
    map: &'static str,
    entries: impl Iterator<Item = Result<T, MapError>>,
) -> Result<Vec<T>, Error> {
    entries.collect::<Result<_, _>>().map_err(|error| map_error(map, &error))
}

impl Rules {
    /// Reads the maps. What the kernel holds of L4 ports counts from here on as told.
    pub(crate) fn held(&mut self) -> Result<HeldRules, Error> {
        Ok(HeldRules {
            prefixes: self.held_prefixes()?,
            node_addresses: self.held_node_addresses()?,
            pod_addresses: self.held_pod_addresses()?,
            l4_ports: self.held_l4_ports()?,
        })
    }

    fn held_prefixes(&self) -> Result<Vec<OurPrefix>, Error> {
        let v4 = all("prefixes4", self.prefixes4.iter())?.into_iter();
        let v6 = all("prefixes6", self.prefixes6.iter())?.into_iter();
        let v4 = v4.map(|(key, flags)| (key.prefix_len(), IpAddr::from(key.data()), flags));
        let v6 = v6.map(|(key, flags)| (key.prefix_len(), IpAddr::from(key.data()), flags));
        let rule = |(length, address, flags): (u32, IpAddr, u32)| {
            let pass = flags & limits::PREFIX_PASS_ON_STALL != 0;
            Some(OurPrefix {
                prefix: Prefix::new(address, u8::try_from(length).ok()?)?,
                translated: flags & limits::PREFIX_TRANSLATED != 0,
                on_stall: if pass { OnStall::Pass } else { OnStall::Drop },
            })
        };
        Ok(v4.chain(v6).filter_map(rule).collect())
    }

    fn held_node_addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let v4 = all("node_addresses4", self.node_addresses4.keys())?;
        let v6 = all("node_addresses6", self.node_addresses6.keys())?;
        Ok(v4.into_iter().map(IpAddr::from).chain(v6.into_iter().map(IpAddr::from)).collect())
    }

    fn held_pod_addresses(&self) -> Result<Vec<(PortId, IpAddr)>, Error> {
        let v4 = all("pod_addresses4", self.pod_addresses4.keys())?;
        let v6 = all("pod_addresses6", self.pod_addresses6.keys())?;
        let v4 = v4.into_iter().map(|claim| (claim.port, IpAddr::from(claim.address)));
        let v6 = v6.into_iter().map(|claim| (claim.port, IpAddr::from(claim.address)));
        let claim = |(port, address)| Some((PortId(u16::try_from(port).ok()?), address));
        Ok(v4.chain(v6).filter_map(claim).collect())
    }

    fn held_l4_ports(&mut self) -> Result<Vec<(L4Bitmap, u16)>, Error> {
        let mut held = Vec::new();
        for (bitmap, number) in [
            (L4Bitmap::Tcp, limits::BITMAP_TCP),
            (L4Bitmap::Udp, limits::BITMAP_UDP),
            (L4Bitmap::Icmp, limits::BITMAP_ICMP),
            (L4Bitmap::Sctp, limits::BITMAP_SCTP),
            (L4Bitmap::Protocol, limits::BITMAP_PROTOCOL),
        ] {
            for word in 0..limits::L4_PORT_WORDS {
                let at = number * limits::L4_PORT_WORDS + word;
                let bits =
                    self.l4_ports.get(&at, 0).map_err(|error| map_error("l4_ports", &error))?;
                self.l4_words[index(at)] = bits;
                let set = (0..64).filter(|bit| bits >> bit & 1 == 1);
                let port = |bit: u32| u16::try_from(word * 64 + bit).ok();
                held.extend(set.filter_map(port).map(|l4_port| (bitmap, l4_port)));
            }
        }
        Ok(held)
    }
}
