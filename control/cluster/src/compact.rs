//! Objects as few bytes: what the follower keeps of each to see whether it changed, and what a
//! snapshot on disk is made of. Equal objects have equal bytes.
//!
//! Lengths and counts are LEB128, addresses as they are on the wire, everything else in the order
//! of its fields. There are no tags: whoever changes the model's fields changes the snapshot's
//! version with them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use control::model::{
    AnnotatedRate, Endpoint, EndpointSlice, ForwardingMode, Hints, HostPort, Kind, L4Ports,
    LabelSelector, Labels, NamedPort, Namespace, NetworkPolicy, Node, Object, ObjectName, Operator,
    Peer, Pod, PodBandwidth, PodPhase, PolicyMode, PolicyRule, PortMatch, Requirement, Service,
    ServicePort, SlicePort, Uid,
};
use dataplane::address::Protocol;
use dataplane::lb::{Choice, TrafficPolicy};
use dataplane::lpm::Prefix;
use hashbrown::HashSet;

/// The bytes are no object of their kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes of an object are damaged")]
pub struct Damaged;

/// The object's bytes.
#[must_use]
pub fn encode(object: &Object) -> Box<[u8]> {
    let mut out = Vec::with_capacity(256);
    match object {
        Object::Namespace(object) => object.put(&mut out),
        Object::Node(object) => object.put(&mut out),
        Object::Pod(object) => object.put(&mut out),
        Object::Service(object) => object.put(&mut out),
        Object::EndpointSlice(object) => object.put(&mut out),
        Object::NetworkPolicy(object) => object.put(&mut out),
    }
    out.into_boxed_slice()
}

/// The object whose bytes these are, all of them.
///
/// # Errors
/// [`Damaged`].
pub fn decode(kind: Kind, bytes: &[u8]) -> Result<Object, Damaged> {
    decode_from(kind, Reader::of(bytes))
}

/// Names that many objects have, each in memory once: of namespaces and nodes.
#[derive(Debug, Default)]
pub struct SharedNames(HashSet<Arc<str>>);

impl SharedNames {
    /// As [`decode`], where many objects are read one after the other.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn decode(&mut self, kind: Kind, bytes: &[u8]) -> Result<Object, Damaged> {
        decode_from(kind, Reader { rest: bytes, names: Some(self) })
    }

    fn get(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name.into();
        self.0.insert(Arc::clone(&name));
        name
    }
}

fn decode_from(kind: Kind, mut from: Reader<'_>) -> Result<Object, Damaged> {
    let from = &mut from;
    let object = match kind {
        Kind::Namespace => Object::Namespace(Compact::take(from)?),
        Kind::Node => Object::Node(Compact::take(from)?),
        Kind::Pod => Object::Pod(Box::new(Compact::take(from)?)),
        Kind::Service => Object::Service(Box::new(Compact::take(from)?)),
        Kind::EndpointSlice => Object::EndpointSlice(Compact::take(from)?),
        Kind::NetworkPolicy => Object::NetworkPolicy(Box::new(Compact::take(from)?)),
    };
    if from.rest.is_empty() { Ok(object) } else { Err(Damaged) }
}

/// Namespace and name of the object whose bytes these are; kinds of the cluster have none of the first.
///
/// # Errors
/// [`Damaged`].
pub(crate) fn name(kind: Kind, bytes: &[u8]) -> Result<(&str, &str), Damaged> {
    let mut from = Reader::of(bytes);
    let first = take_text(&mut from)?;
    match kind {
        Kind::Namespace | Kind::Node => Ok(("", first)),
        _ => Ok((first, take_text(&mut from)?)),
    }
}

/// Bytes that are still to be read.
pub(crate) struct Reader<'a> {
    pub(crate) rest: &'a [u8],
    names: Option<&'a mut SharedNames>,
}

impl<'a> Reader<'a> {
    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, names: None }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Damaged> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Damaged)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn count(&mut self) -> Result<usize, Damaged> {
        let mut value: u32 = 0;
        for shift in [0, 7, 14, 21, 28] {
            let byte = u8::take(self)?;
            let bits = u32::from(byte & 0x7f);
            value |=
                bits.checked_shl(shift).filter(|moved| moved >> shift == bits).ok_or(Damaged)?;
            if byte < 0x80 {
                return usize::try_from(value).map_err(|_| Damaged);
            }
        }
        Err(Damaged)
    }
}

pub(crate) fn put_count(count: usize, out: &mut Vec<u8>) {
    // No object is that long: the API server's bound is 1.5 MiB.
    let mut rest = u32::try_from(count).unwrap_or(u32::MAX);
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

trait Compact: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged>;
}

/// Every field in its order; one that is forgotten does not compile.
macro_rules! fields {
    ($type:ident: $($field:ident),+) => {
        impl Compact for $type {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)+
            }
            fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
                Ok(Self { $($field: Compact::take(from)?),+ })
            }
        }
    };
}

fields!(Namespace: name, labels, mode);
fields!(Node: name, addresses, pod_cidrs, zone, is_leaving, mode);
fields!(NamedPort: name, protocol, l4_port);
fields!(HostPort: address, protocol, l4_port, container_port);
fields!(Pod: name, uid, labels, addresses, node, named_ports, host_ports, host_network, phase,
    terminating, bandwidth, weight);
fields!(PodBandwidth: ingress, egress);
fields!(ServicePort: name, protocol, l4_port, node_port);
fields!(SlicePort: name, protocol, l4_port);
fields!(Hints: nodes, zones);
fields!(Endpoint: address, ready, serving, terminating, node, hints, target);
fields!(EndpointSlice: name, service, ports, endpoints, left_out);
fields!(PortMatch: protocol, l4_ports);
fields!(PolicyRule: peers, ports);
fields!(NetworkPolicy: name, subject, ingress, egress, mode);
fields!(Requirement: key, operator);
fields!(Service: name, cluster_ips, headless, external_ips, load_balancer_ips, ports,
    internal_policy, external_policy, source_ranges, health_check_node_port, affinity_seconds,
    choice, forwarding, stateless);

impl Compact for ForwardingMode {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(match self {
            Self::AsConfigured => 0,
            Self::Snat => 1,
            Self::Dsr => 2,
            Self::Unreadable => 3,
        });
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        match u8::take(from)? {
            0 => Ok(Self::AsConfigured),
            1 => Ok(Self::Snat),
            2 => Ok(Self::Dsr),
            3 => Ok(Self::Unreadable),
            _ => Err(Damaged),
        }
    }
}

impl Compact for u8 {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self);
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        from.bytes(1)?.first().copied().ok_or(Damaged)
    }
}

impl Compact for u16 {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.to_le_bytes());
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        from.bytes(2)?.try_into().map(Self::from_le_bytes).map_err(|_| Damaged)
    }
}

impl Compact for u32 {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.to_le_bytes());
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        from.bytes(4)?.try_into().map(Self::from_le_bytes).map_err(|_| Damaged)
    }
}

impl Compact for Choice {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(match self {
            Self::Maglev => 0,
            Self::Random => 1,
            Self::LeastConnections => 2,
        });
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        match u8::take(from)? {
            0 => Ok(Self::Maglev),
            1 => Ok(Self::Random),
            2 => Ok(Self::LeastConnections),
            _ => Err(Damaged),
        }
    }
}

impl Compact for u64 {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.to_le_bytes());
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        from.bytes(8)?.try_into().map(Self::from_le_bytes).map_err(|_| Damaged)
    }
}

impl Compact for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        match u8::take(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Damaged),
        }
    }
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    put_count(text.len(), out);
    out.extend(text.as_bytes());
}

fn take_text<'a>(from: &mut Reader<'a>) -> Result<&'a str, Damaged> {
    let length = from.count()?;
    std::str::from_utf8(from.bytes(length)?).map_err(|_| Damaged)
}

impl Compact for String {
    fn put(&self, out: &mut Vec<u8>) {
        put_text(self, out);
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        take_text(from).map(str::to_owned)
    }
}

/// A name that others have too.
impl Compact for Arc<str> {
    fn put(&self, out: &mut Vec<u8>) {
        put_text(self, out);
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        let name = take_text(from)?;
        Ok(from.names.as_deref_mut().map_or_else(|| name.into(), |names| names.get(name)))
    }
}

impl Compact for ObjectName {
    fn put(&self, out: &mut Vec<u8>) {
        self.namespace.put(out);
        self.name.put(out);
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        let namespace = Compact::take(from)?;
        // Nobody else has it.
        Ok(Self { namespace, name: take_text(from)?.into() })
    }
}

impl Compact for Uid {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Absent => out.push(0),
            Self::Uuid(octets) => {
                out.push(1);
                out.extend(octets);
            }
            Self::Other(text) => {
                out.push(2);
                put_text(text, out);
            }
        }
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(match u8::take(from)? {
            0 => Self::Absent,
            1 => Self::Uuid(from.bytes(16)?.try_into().map_err(|_| Damaged)?),
            2 => Self::Other(take_text(from)?.into()),
            _ => return Err(Damaged),
        })
    }
}

impl<T: Compact> Compact for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        bool::take(from)?.then(|| T::take(from)).transpose()
    }
}

impl<T: Compact> Compact for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_count(self.len(), out);
        self.iter().for_each(|value| value.put(out));
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        let count = from.count()?;
        // Every element has a byte at least: damaged counts reserve no memory.
        let mut list = Self::with_capacity(count.min(from.rest.len()));
        for _ in 0..count {
            list.push(T::take(from)?);
        }
        Ok(list)
    }
}

impl<T: Compact> Compact for Box<[T]> {
    fn put(&self, out: &mut Vec<u8>) {
        put_count(self.len(), out);
        self.iter().for_each(|value| value.put(out));
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Vec::take(from).map(Vec::into_boxed_slice)
    }
}

impl<T: Compact> Compact for Box<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (**self).put(out);
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        T::take(from).map(Self::new)
    }
}

impl Compact for AnnotatedRate {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Bits(bits) => {
                out.push(0);
                bits.put(out);
            }
            Self::Unreadable(text) => {
                out.push(1);
                put_text(text, out);
            }
        }
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(match u8::take(from)? {
            0 => Self::Bits(u64::take(from)?),
            1 => Self::Unreadable(take_text(from)?.into()),
            _ => return Err(Damaged),
        })
    }
}

impl Compact for Labels {
    fn put(&self, out: &mut Vec<u8>) {
        put_text(self.packed(), out);
    }
    /// Equal labels have equal bytes: their order is part of that.
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Self::from_packed(take_text(from)?).ok_or(Damaged)
    }
}

impl Compact for IpAddr {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::V4(address) => {
                out.push(4);
                out.extend(address.octets());
            }
            Self::V6(address) => {
                out.push(6);
                out.extend(address.octets());
            }
        }
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        match u8::take(from)? {
            4 => <[u8; 4]>::try_from(from.bytes(4)?).map(|bytes| Ipv4Addr::from(bytes).into()),
            6 => <[u8; 16]>::try_from(from.bytes(16)?).map(|bytes| Ipv6Addr::from(bytes).into()),
            _ => return Err(Damaged),
        }
        .map_err(|_| Damaged)
    }
}

impl Compact for Prefix {
    fn put(&self, out: &mut Vec<u8>) {
        self.address().put(out);
        self.length().put(out);
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        let address = IpAddr::take(from)?;
        Self::new(address, u8::take(from)?).ok_or(Damaged)
    }
}

impl Compact for Protocol {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        u8::take(from).map(Self)
    }
}

impl Compact for TrafficPolicy {
    fn put(&self, out: &mut Vec<u8>) {
        (*self == Self::Local).put(out);
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(if bool::take(from)? { Self::Local } else { Self::Cluster })
    }
}

impl Compact for PolicyMode {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Enforce => out.push(0),
            Self::Audit => out.push(1),
            Self::Unreadable(text) => {
                out.push(2);
                text.as_ref().to_owned().put(out);
            }
        }
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(match u8::take(from)? {
            0 => Self::Enforce,
            1 => Self::Audit,
            2 => Self::Unreadable(String::take(from)?.into()),
            _ => return Err(Damaged),
        })
    }
}

impl Compact for PodPhase {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(match self {
            Self::Pending => 0,
            Self::Running => 1,
            Self::Succeeded => 2,
            Self::Failed => 3,
            Self::Unknown => 4,
        });
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(match u8::take(from)? {
            0 => Self::Pending,
            1 => Self::Running,
            2 => Self::Succeeded,
            3 => Self::Failed,
            4 => Self::Unknown,
            _ => return Err(Damaged),
        })
    }
}

impl Compact for L4Ports {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::All => out.push(0),
            Self::Range(ports) => {
                out.push(1);
                ports.start().put(out);
                ports.end().put(out);
            }
            Self::Named(name) => {
                out.push(2);
                name.put(out);
            }
        }
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(match u8::take(from)? {
            0 => Self::All,
            1 => Self::Range(u16::take(from)?..=u16::take(from)?),
            2 => Self::Named(String::take(from)?),
            _ => return Err(Damaged),
        })
    }
}

impl Compact for Peer {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Pods { namespaces, pods } => {
                out.push(0);
                namespaces.put(out);
                pods.put(out);
            }
            Self::Block { cidr, except } => {
                out.push(1);
                cidr.put(out);
                except.put(out);
            }
        }
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(match u8::take(from)? {
            0 => Self::Pods { namespaces: Compact::take(from)?, pods: Compact::take(from)? },
            1 => Self::Block { cidr: Compact::take(from)?, except: Compact::take(from)? },
            _ => return Err(Damaged),
        })
    }
}

impl Compact for Operator {
    fn put(&self, out: &mut Vec<u8>) {
        let (tag, values) = match self {
            Self::In(values) => (0, Some(values)),
            Self::NotIn(values) => (1, Some(values)),
            Self::Exists => (2, None),
            Self::DoesNotExist => (3, None),
        };
        out.push(tag);
        if let Some(values) = values {
            put_count(values.len(), out);
            values.iter().for_each(|value| value.put(out));
        }
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(match u8::take(from)? {
            0 => Self::In(Vec::take(from)?.into_iter().collect()),
            1 => Self::NotIn(Vec::take(from)?.into_iter().collect()),
            2 => Self::Exists,
            3 => Self::DoesNotExist,
            _ => return Err(Damaged),
        })
    }
}

impl Compact for LabelSelector {
    fn put(&self, out: &mut Vec<u8>) {
        let requirements = self.requirements();
        put_count(requirements.len(), out);
        requirements.for_each(|requirement| requirement.put(out));
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(Vec::<Requirement>::take(from)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests;
