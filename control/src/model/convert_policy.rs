//! NetworkPolicies, from the Kubernetes API's types.
//!
//! What is not understood must never allow more than was written, so everything the API server
//! would refuse is refused here as well.

use std::ops::RangeInclusive;

use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::convert::{
    Problem, l4_port, namespaced_name, prefix, problem, protocol, selector, title,
};
use super::{InvalidObject, L4Ports, NetworkPolicy, Peer, PolicyMode, PolicyRule, PortMatch};

/// Longest name of a port (Kubernetes API, IANA service name).
const PORT_NAME_BYTES_MAX: usize = 15;

/// Reads a NetworkPolicy.
///
/// # Errors
/// A peer that is empty or mixes `ipBlock` with selectors, an `except` outside its `cidr`, a port
/// out of range, an `endPort` without or below its port, an unknown operator, protocol or type.
pub fn network_policy(object: api::NetworkPolicy) -> Result<NetworkPolicy, InvalidObject> {
    let title = title("NetworkPolicy", &object.metadata);
    read_policy(object).map_err(|problem| problem.of(title))
}

fn read_policy(object: api::NetworkPolicy) -> Result<NetworkPolicy, Problem> {
    let name = namespaced_name(&object.metadata)?;
    let mode = PolicyMode::of(object.metadata.annotations.as_ref());
    let spec = object.spec.ok_or_else(|| problem("spec", "is missing"))?;
    let subject = selector("spec.podSelector", spec.pod_selector.unwrap_or_default())?;

    let ingress_rules = spec.ingress.unwrap_or_default();
    let egress_rules = spec.egress.unwrap_or_default();
    let types = spec.policy_types.unwrap_or_default();
    for (index, text) in types.iter().enumerate() {
        if !matches!(text.as_str(), "Ingress" | "Egress") {
            let text = format!("{text:?} is no type of policy; use Ingress or Egress");
            return Err(problem(format!("spec.policyTypes[{index}]"), text));
        }
    }
    let listed = |wanted: &str| types.iter().any(|text| text == wanted);
    // Without policyTypes: ingress always, egress when there is an egress rule.
    let isolates_ingress = types.is_empty() || listed("Ingress");
    let isolates_egress = listed("Egress") || (types.is_empty() && !egress_rules.is_empty());

    // Rules of a direction that is not isolated have no effect, but a mistake in them is one.
    let mut ingress = Vec::with_capacity(ingress_rules.len());
    for (index, rule) in ingress_rules.into_iter().enumerate() {
        let path = format!("spec.ingress[{index}]");
        ingress.push(read_rule(&path, "from", rule.from, rule.ports)?);
    }
    let mut egress = Vec::with_capacity(egress_rules.len());
    for (index, rule) in egress_rules.into_iter().enumerate() {
        let path = format!("spec.egress[{index}]");
        egress.push(read_rule(&path, "to", rule.to, rule.ports)?);
    }
    Ok(NetworkPolicy {
        name,
        subject,
        ingress: isolates_ingress.then_some(ingress),
        egress: isolates_egress.then_some(egress),
        mode,
    })
}

fn read_rule(
    path: &str,
    peers_field: &str,
    peers: Option<Vec<api::NetworkPolicyPeer>>,
    ports: Option<Vec<api::NetworkPolicyPort>>,
) -> Result<PolicyRule, Problem> {
    let mut rule = PolicyRule { peers: Vec::new(), ports: Vec::new() };
    for (index, peer) in peers.unwrap_or_default().into_iter().enumerate() {
        rule.peers.push(read_peer(&format!("{path}.{peers_field}[{index}]"), peer)?);
    }
    for (index, port) in ports.unwrap_or_default().into_iter().enumerate() {
        rule.ports.push(read_port(&format!("{path}.ports[{index}]"), port)?);
    }
    Ok(rule)
}

fn read_peer(path: &str, peer: api::NetworkPolicyPeer) -> Result<Peer, Problem> {
    match (peer.ip_block, peer.namespace_selector, peer.pod_selector) {
        (Some(block), None, None) => read_block(&format!("{path}.ipBlock"), block),
        (Some(_), _, _) => {
            Err(problem(path, "ipBlock excludes podSelector and namespaceSelector; split the peer"))
        }
        (None, None, None) => Err(problem(
            path,
            "an empty peer; give podSelector, namespaceSelector or ipBlock \
             ({} as selector means all)",
        )),
        (None, namespaces, pods) => Ok(Peer::Pods {
            namespaces: namespaces
                .map(|namespaces| selector(&format!("{path}.namespaceSelector"), namespaces))
                .transpose()?,
            pods: selector(&format!("{path}.podSelector"), pods.unwrap_or_default())?,
        }),
    }
}

fn read_block(path: &str, block: api::IPBlock) -> Result<Peer, Problem> {
    let cidr = prefix(&format!("{path}.cidr"), &block.cidr)?;
    let mut except = Vec::new();
    for (index, text) in block.except.unwrap_or_default().iter().enumerate() {
        let field = format!("{path}.except[{index}]");
        let range = prefix(&field, text)?;
        if range.length() <= cidr.length() || !cidr.contains(range.address()) {
            return Err(problem(field, format!("{range} must lie strictly within {cidr}")));
        }
        except.push(range);
    }
    except.sort_unstable();
    except.dedup();
    Ok(Peer::Block { cidr, except })
}

fn read_port(path: &str, port: api::NetworkPolicyPort) -> Result<PortMatch, Problem> {
    let protocol = protocol(&format!("{path}.protocol"), port.protocol.as_deref())?;
    let l4_ports = match (port.port, port.end_port) {
        (None, None) => L4Ports::All,
        (None, Some(_)) => {
            return Err(problem(format!("{path}.endPort"), "needs a port where the range begins"));
        }
        (Some(IntOrString::Int(first)), last) => L4Ports::Range(range(path, first, last)?),
        (Some(IntOrString::String(_)), Some(_)) => {
            return Err(problem(format!("{path}.endPort"), "a named port begins no range"));
        }
        (Some(IntOrString::String(name)), None) => {
            if name.is_empty() || name.len() > PORT_NAME_BYTES_MAX {
                let text = format!("{name:?} is no port name; use 1 to 15 characters, or a number");
                return Err(problem(format!("{path}.port"), text));
            }
            L4Ports::Named(name)
        }
    };
    Ok(PortMatch { protocol, l4_ports })
}

fn range(path: &str, first: i32, last: Option<i32>) -> Result<RangeInclusive<u16>, Problem> {
    let first = l4_port(&format!("{path}.port"), first)?;
    let Some(last) = last else { return Ok(first..=first) };
    let field = format!("{path}.endPort");
    let last = l4_port(&field, last)?;
    if last < first {
        return Err(problem(field, format!("{last} is below the port, {first}")));
    }
    Ok(first..=last)
}
