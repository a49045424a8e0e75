//! The admin protocol: what a client asks the node process over its Unix socket, and the answers.
//!
//! One JSON object per line each way. A line from the client is a [`RequestLine`]; the node
//! answers with one [`Reply`], or with a stream of [`Reply::Item`]s ended by [`Reply::End`].
//! Types only: the socket, its bounds and its permissions are the node process's matter.
//!
//! Reading order: this file (requests, framing), [`endpoint`] (pods' interfaces), [`other_version`] (what
//! others wrote down of these), [`cni`] (how those of a runtime fare), [`fault`] (failures by order), [`reply`] (answers),
//! [`policy`] (of identities and
//! policies, both), [`status`] (the node's state in full, from which `xskiff status` and `/metrics`
//! are both made).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::shown::cut;

pub mod arrivals;
pub mod cni;
pub mod endpoint;
pub mod fault;
pub mod kubernetes;
pub mod other_version;
pub mod policy;
pub mod reply;
pub mod service;
pub mod status;

pub use endpoint::{Admitted, Attachment, Bandwidth, EndpointAdd, Retained};
pub use fault::{AddStep, Fault};
pub use policy::{ExaminedRule, ExplainedStep, PolicyExplanation, PolicyQuestion};
pub use reply::{
    CaptureRecord, ConfigDiff, CtEntry, DropCount, EndpointInfo, FlowRecord, ManifestsStatus,
    Reply, ServiceInfo, StreamItem, TraceReport,
};
pub use status::Status;

/// Version of the protocol that this code speaks. A node refuses any other with
/// [`AdminError::Version`].
pub const PROTOCOL_VERSION: u32 = 1;
/// Longest request line, in bytes, newline excluded.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Longest frame that may be traced, in bytes: a jumbo frame.
pub const TRACE_BYTES_MAX: usize = 9216;
/// Flow entries in one answer, at most.
pub const CT_LIST_MAX: u32 = 65_536;
/// Longest interface name the kernel takes (IFNAMSIZ without the terminator).
pub const INTERFACE_NAME_BYTES_MAX: usize = 15;

/// Longest path the kernel takes (PATH_MAX without the terminator).
pub const PATH_BYTES_MAX: usize = 4095;
/// Longest detail of a refusal, in bytes: it goes into the log and must not bury it.
const DETAIL_BYTES_MAX: usize = 1000;

/// What every line from a client says, of whatever version.
#[derive(Deserialize)]
struct AnyVersion {
    version: u32,
}

/// One line from a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestLine {
    /// [`PROTOCOL_VERSION`].
    pub version: u32,
    /// What is asked.
    pub request: Request,
}

/// What may be asked of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// The node's state in full.
    Status,
    /// Makes an interface a pod port. Repeating it with the same content succeeds.
    EndpointAdd(EndpointAdd),
    /// Removes a pod port. Removing one that is not there succeeds.
    EndpointRemove {
        /// `namespace/pod`.
        name: String,
    },
    /// Removes the pod port of that attachment, and no newer one of the same pod. Removing one that
    /// is not there succeeds.
    EndpointDetach(Attachment),
    /// Whether the pod port is there as it was added.
    EndpointCheck(EndpointAdd),
    /// Removes the pod ports whose attachment to the network is not among those that are to stay.
    EndpointRetain(Retained),
    /// Local endpoints.
    EndpointList,
    /// Services in force.
    ServiceList,
    /// A service with all that is behind it.
    ServiceShow {
        /// `namespace/name`.
        name: String,
    },
    /// Which backend a packet would get.
    ServiceTrace(service::ServiceTraceQuestion),
    /// Flow entries.
    CtList {
        /// Which flows.
        #[serde(default)]
        filter: FlowFilter,
        /// Entries in the answer, at most [`CT_LIST_MAX`].
        limit: u32,
    },
    /// Who has how many flows.
    CtTop {
        /// By what they are told apart.
        by: TopBy,
    },
    /// Flows as they begin, change their state and end, until the client hangs up.
    CtWatch {
        /// Which flows.
        #[serde(default)]
        filter: FlowFilter,
    },
    /// How many flows match; with an empty filter, how both tables stand as well.
    CtCount {
        /// Which flows.
        #[serde(default)]
        filter: FlowFilter,
    },
    /// Ends flows. An empty filter ends all of them; one by verdict or reason means none.
    CtFlush {
        /// Which flows.
        #[serde(default)]
        filter: FlowFilter,
    },
    /// Makes flow tables larger or smaller while they are in use, and answers when that is in force.
    CtResize {
        /// IPv4 flows; absent: as it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        v4: Option<u32>,
        /// IPv6 flows; absent: as it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        v6: Option<u32>,
    },
    /// Compares everything in force with what objects say, and answers when it is over.
    Audit,
    /// Identities in force, by number.
    IdentityList(policy::IdentityPage),
    /// An identity by its number, or those of an address or a pod.
    IdentityGet(policy::IdentityQuestion),
    /// NetworkPolicies, by name.
    PolicyList(policy::PolicyPage),
    /// How policy stands, or one policy in detail.
    PolicyStatus(policy::PolicyStatusQuestion),
    /// Which rule decides.
    PolicyExplain(PolicyQuestion),
    /// Dropped packets by reason.
    Drops,
    /// Recent decisions; with `follow`, new ones as they come, until the client hangs up.
    Flows {
        /// Which decisions.
        #[serde(default)]
        filter: FlowFilter,
        /// Whether to go on.
        #[serde(default)]
        follow: bool,
    },
    /// Packets, streamed, until a bound is reached or the client hangs up.
    Capture(CaptureRequest),
    /// One frame through the pipeline, stage by stage, without sending anything.
    Trace {
        /// The frame in hexadecimal, from the Ethernet header on.
        frame: String,
        /// The interface it pretends to enter by.
        port: String,
    },
    /// The configuration in force: what the process was started with, and what changed live since.
    ConfigShow,
    /// What would change in it if the candidate were the configuration file.
    ConfigDiff {
        /// The candidate's text, YAML.
        candidate: String,
    },
    /// What was read from the manifests folder, and what was refused.
    ManifestsStatus,
    /// Ends the process for the one that asks, which takes over everything: what is attached stays.
    HandOver,
    /// Makes a part of the node fail. Refused unless its configuration allows it (`debug.faults`).
    Inject(Fault),
}

/// Which flows, decisions or drops are meant. Every given field must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowFilter {
    /// Either end, before or after translation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Either end's L4 port, before or after translation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l4_port: Option<u16>,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `sctp` or a protocol number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// `namespace/pod` of a local endpoint at either end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// `namespace/name` of the service that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// `opened`, `audited`, `closed` or `dropped`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// A drop reason's label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What flows are told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TopBy {
    /// The local pod that a flow is charged to (`flow_table.flows_per_endpoint_max`).
    Pod,
    /// The service that it was opened through.
    Service,
}

/// Which packets to capture. Every given field must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureRequest {
    /// `namespace/pod` or an interface name; all ports when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// As seen from the node: `received` or `transmitted`; both when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<CaptureDirection>,
    /// Only packets dropped for this reason, by label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Ends the capture after so many packets; 0: no bound.
    pub packets_max: u64,
    /// Ends the capture after so many captured bytes; 0: no bound.
    pub bytes_max: u64,
}

/// A captured packet's way, as seen from the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureDirection {
    /// It came in by the port.
    Received,
    /// It left by the port.
    Transmitted,
}

/// Why a request was not obeyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum AdminError {
    /// The line is not a request.
    #[error("not a request: {detail}")]
    Malformed {
        /// What the parser said.
        detail: String,
    },
    /// The line is longer than [`REQUEST_BYTES_MAX`].
    #[error("request of {bytes} bytes or more: at most {REQUEST_BYTES_MAX} are taken")]
    TooLong {
        /// Bytes read before giving up.
        bytes: u64,
    },
    /// Client and node speak different versions.
    #[error(
        "protocol version {got} is not spoken here, {PROTOCOL_VERSION} is: use the xskiff binary \
         of the running node"
    )]
    Version {
        /// What the client sent.
        got: u32,
    },
    /// A field's value cannot be.
    #[error("{field}: {detail}")]
    Invalid {
        /// The field.
        field: String,
        /// What is wrong, and what would be right.
        detail: String,
    },
    /// The named object does not exist here.
    #[error("no {what} named {name:?}: `{list_command}` lists what there is")]
    NotFound {
        /// Kind of object.
        what: String,
        /// The name asked for.
        name: String,
        /// Where to look.
        list_command: String,
    },
    /// It clashes with what is there.
    #[error("{detail}")]
    Conflict {
        /// With what, and the way out.
        detail: String,
    },
    /// As many as the bound allows are being served.
    #[error("{what}: as many as allowed ({limit}) are in use; try again later")]
    Busy {
        /// What is used up.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// The node tried and failed.
    #[error("{detail}")]
    Failed {
        /// What failed, naming the object and the way out.
        detail: String,
    },
}

impl AdminError {
    /// A value of `field` that cannot be.
    #[must_use]
    pub fn invalid(field: &str, detail: impl Into<String>) -> Self {
        Self::Invalid { field: field.to_owned(), detail: cut(&detail.into(), DETAIL_BYTES_MAX) }
    }

    /// A line that is no request, as the parser says.
    fn malformed(error: &serde_json::Error) -> Self {
        Self::Malformed { detail: cut(&error.to_string(), DETAIL_BYTES_MAX) }
    }
}

/// Reads one request line (without its newline) and checks every bound that needs no state.
///
/// # Errors
/// [`AdminError::TooLong`], [`AdminError::Malformed`], [`AdminError::Version`] or
/// [`AdminError::Invalid`]; never panics, whatever the bytes.
pub fn decode_request(line: &[u8]) -> Result<Request, AdminError> {
    if line.len() > REQUEST_BYTES_MAX {
        return Err(AdminError::TooLong { bytes: line.len() as u64 });
    }
    let read = serde_json::from_slice::<RequestLine>(line);
    // First: a request of another version may be none that is known here.
    let version = match &read {
        Ok(line) => Some(line.version),
        Err(_) => serde_json::from_slice(line).ok().map(|AnyVersion { version }| version),
    };
    if let Some(got) = version.filter(|version| *version != PROTOCOL_VERSION) {
        return Err(AdminError::Version { got });
    }
    let line = read.map_err(|error| AdminError::malformed(&error))?;
    validate(&line.request)?;
    Ok(line.request)
}

/// The line for `request`, with its newline.
///
/// # Errors
/// [`AdminError::TooLong`] when the node would refuse it for its length.
pub fn encode_request(request: Request) -> Result<Vec<u8>, AdminError> {
    let line = RequestLine { version: PROTOCOL_VERSION, request };
    let mut bytes = serde_json::to_vec(&line).map_err(|error| AdminError::malformed(&error))?;
    if bytes.len() > REQUEST_BYTES_MAX {
        return Err(AdminError::TooLong { bytes: bytes.len() as u64 });
    }
    bytes.push(b'\n');
    Ok(bytes)
}

fn validate(request: &Request) -> Result<(), AdminError> {
    match request {
        Request::EndpointAdd(endpoint) | Request::EndpointCheck(endpoint) => endpoint.validate(),
        Request::EndpointRemove { name } => endpoint::validate_pod_name(name),
        Request::EndpointDetach(attachment) => attachment.validate(),
        Request::EndpointRetain(retained) => retained.validate(),
        Request::CtList { filter, limit } => {
            if *limit == 0 || *limit > CT_LIST_MAX {
                return Err(AdminError::invalid("limit", format!("choose 1 to {CT_LIST_MAX}")));
            }
            validate_filter(filter)
        }
        Request::CtCount { filter }
        | Request::CtFlush { filter }
        | Request::CtWatch { filter }
        | Request::Flows { filter, .. } => validate_filter(filter),
        Request::CtResize { v4: None, v6: None } => {
            Err(AdminError::invalid("v4", "say how many flows, of one family or of both"))
        }
        Request::CtResize { .. } | Request::CtTop { .. } => Ok(()),
        Request::IdentityList(page) => policy::validate_limit(page.limit),
        Request::IdentityGet(question) => policy::validate_limit(question.limit),
        Request::PolicyList(page) => policy::validate_limit(page.limit),
        Request::PolicyStatus(question) => policy::validate_limit(question.limit),
        Request::PolicyExplain(question) => parse_protocol(&question.protocol).map(drop),
        Request::ServiceTrace(question) => parse_protocol(&question.protocol).map(drop),
        Request::Inject(fault) => fault.validate(),
        Request::Capture(capture) => {
            capture.reason.as_deref().map_or(Ok(()), |label| parse_reason(label).map(drop))
        }
        Request::Trace { frame, port } => {
            validate_interface("port", port)?;
            decode_frame(frame).map(drop)
        }
        Request::Status
        | Request::HandOver
        | Request::Audit
        | Request::EndpointList
        | Request::ServiceList
        | Request::ServiceShow { .. }
        | Request::Drops
        | Request::ConfigShow
        | Request::ConfigDiff { .. }
        | Request::ManifestsStatus => Ok(()),
    }
}

/// Whether the kernel takes `name` for an interface (its `dev_valid_name()`).
pub(crate) fn is_interface_name(name: &str) -> bool {
    (1..=INTERFACE_NAME_BYTES_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.bytes().any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace() || b == 0)
}

fn validate_interface(field: &str, name: &str) -> Result<(), AdminError> {
    if is_interface_name(name) {
        Ok(())
    } else {
        let detail = format!(
            "{name:?} cannot be an interface: 1 to {INTERFACE_NAME_BYTES_MAX} characters, no \
             space, `/` or `:`"
        );
        Err(AdminError::invalid(field, detail))
    }
}

fn validate_filter(filter: &FlowFilter) -> Result<(), AdminError> {
    if let Some(protocol) = &filter.protocol {
        parse_protocol(protocol)?;
    }
    if let Some(reason) = &filter.reason {
        parse_reason(reason)?;
    }
    match filter.verdict.as_deref() {
        None | Some("opened" | "audited" | "closed" | "dropped") => Ok(()),
        Some(other) => {
            let detail = format!("{other:?}: write opened, audited, closed or dropped");
            Err(AdminError::invalid("verdict", detail))
        }
    }
}

/// A protocol by name or number.
///
/// # Errors
/// [`AdminError::Invalid`] for anything else.
pub fn parse_protocol(text: &str) -> Result<dataplane::address::Protocol, AdminError> {
    use dataplane::address::Protocol;
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::TCP),
        "udp" => Ok(Protocol::UDP),
        "icmp" => Ok(Protocol::ICMP),
        "icmpv6" => Ok(Protocol::ICMPV6),
        "sctp" => Ok(Protocol::SCTP),
        number => number.parse().map(Protocol).map_err(|_| {
            let detail = format!("{text:?}: write tcp, udp, icmp, icmpv6, sctp or a number");
            AdminError::invalid("protocol", detail)
        }),
    }
}

/// A drop reason by label.
///
/// # Errors
/// [`AdminError::Invalid`], listing the labels.
pub fn parse_reason(label: &str) -> Result<dataplane::DropReason, AdminError> {
    let known = dataplane::DropReason::ALL;
    known.iter().copied().find(|reason| reason.label() == label).ok_or_else(|| {
        let labels: Vec<&str> = known.iter().map(|reason| reason.label()).collect();
        AdminError::invalid("reason", format!("{label:?}: one of {}", labels.join(", ")))
    })
}

/// A link address.
///
/// # Errors
/// [`AdminError::Invalid`] when it is none, or a group address.
pub fn parse_mac(text: &str) -> Result<dataplane::address::MacAddr, AdminError> {
    let mac: dataplane::address::MacAddr =
        text.parse().map_err(|error| AdminError::invalid("mac", format!("{text:?}: {error}")))?;
    if mac.is_group() {
        return Err(AdminError::invalid("mac", format!("{mac} is a group address")));
    }
    Ok(mac)
}

/// A frame in hexadecimal; blanks and colons between octets are ignored.
///
/// # Errors
/// [`AdminError::Invalid`] when it is not hexadecimal or longer than [`TRACE_BYTES_MAX`].
pub fn decode_frame(text: &str) -> Result<Vec<u8>, AdminError> {
    let mut digits = Vec::with_capacity(text.len().min(2 * TRACE_BYTES_MAX));
    for character in text.chars().filter(|c| !c.is_ascii_whitespace() && *c != ':') {
        let digit = character.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        digits.push(digit.ok_or_else(|| {
            AdminError::invalid("frame", format!("{character:?} is not a hexadecimal digit"))
        })?);
        if digits.len() > 2 * TRACE_BYTES_MAX {
            let detail = format!("longer than {TRACE_BYTES_MAX} bytes");
            return Err(AdminError::invalid("frame", detail));
        }
    }
    let (octets, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() || octets.is_empty() {
        return Err(AdminError::invalid("frame", "write two hexadecimal digits per byte"));
    }
    Ok(octets.iter().map(|[high, low]| high << 4 | low).collect())
}

/// `bytes` in hexadecimal, two digits each.
#[must_use]
pub fn encode_frame(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 0xf)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

#[cfg(test)]
mod tests;
