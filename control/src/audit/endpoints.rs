//! Local endpoints: who may speak through their ports, and the ways to them.

use std::net::IpAddr;

use dataplane::port::{PortId, PortKind};
use dataplane::tables::Tables;

/// Whether the pod behind `port` may speak from its `addresses` and no other, and each leads there.
///
/// # Errors
/// What is wrong.
pub fn check_endpoint(tables: &Tables, port: PortId, addresses: &[IpAddr]) -> Result<(), String> {
    let held = tables.port(port).ok_or("its port is in no table")?;
    if held.kind != PortKind::Pod {
        return Err(format!("{} is a port of kind {:?}", held.name, held.kind));
    }
    if *held.addresses != *addresses {
        return Err(format!(
            "{} should let speak {addresses:?}; it lets {:?}",
            held.name, held.addresses
        ));
    }
    for address in addresses {
        let way = tables.forwarding.endpoints.get(address);
        let hop = way.and_then(|id| tables.forwarding.next_hop(*id));
        if hop.is_none_or(|hop| hop.port != port) {
            return Err(format!("{address} does not lead to {}", held.name));
        }
    }
    Ok(())
}
