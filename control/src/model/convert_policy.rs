//! NetworkPolicies, from the Kubernetes API's types.
//!
//! What is not understood must never allow more than was written, so everything the API server
//! would refuse is refused here as well.

use std::ops::RangeInclusive;

use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector as ApiSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::convert::{
    Problem, l4_port, namespaced_name, prefix, problem, protocol, selector, title,
};
use super::read::{ReadError, named};
use super::{
    InvalidObject, L4Ports, LabelSelector, NetworkPolicy, Peer, PolicyMode, PolicyRule, PortMatch,
};
use crate::shown::shortened;

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

/// A NetworkPolicy of which not everything was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// What is left: it isolates at least whom the policy isolates, and allows at most what it
    /// allows.
    pub policy: NetworkPolicy,
    /// Fields that we do not know, by path.
    pub unknown: Vec<String>,
    /// Fields that nobody could read: `spec.ingress[0].ports[0].port: 70000 is out of range`.
    pub invalid: Vec<String>,
}

/// Reads a NetworkPolicy of which anything in the specification may be beyond us. A rule that is
/// not understood allows nothing. What else is not understood leaves a policy that allows nothing:
/// a subject of which not all is known is the whole namespace, and a field of the specification
/// that is not known may isolate in either direction.
///
/// # Errors
/// A name that cannot be read, without which nothing can be isolated.
pub fn network_policy_closed(document: &Value) -> Result<Closed, InvalidObject> {
    let given = document.get("metadata").cloned().unwrap_or_default();
    let text = |field: &str| given.get(field).and_then(Value::as_str).map(str::to_owned);
    // Whatever else is wrong with them: a policy that has a name isolates.
    let (name, namespace) = (text("name"), text("namespace"));
    let named = || ObjectMeta { name, namespace, ..ObjectMeta::default() };
    let metadata = serde_json::from_value(given.clone()).unwrap_or_else(|_| named());
    let name = namespaced_name(&metadata)
        .map_err(|problem| problem.of(title("NetworkPolicy", &metadata)))?;
    let mut reader = ClosedReader::default();
    let nothing = Value::Null;
    let spec = document.get("spec").unwrap_or(&nothing);
    let (subject, ingress, egress) = reader.spec(spec);
    let mode = PolicyMode::of(metadata.annotations.as_ref());
    let policy = NetworkPolicy { name, subject, ingress, egress, mode };
    Ok(Closed { policy, unknown: reader.unknown, invalid: reader.invalid })
}

/// The rules of a direction that is isolated.
type Isolated = Option<Vec<PolicyRule>>;

#[derive(Default)]
struct ClosedReader {
    unknown: Vec<String>,
    invalid: Vec<String>,
}

impl ClosedReader {
    fn spec(&mut self, spec: &Value) -> (LabelSelector, Isolated, Isolated) {
        let Some(fields) = spec.as_object() else {
            self.invalid.push("spec: is missing or no object".to_owned());
            return (LabelSelector::default(), Some(Vec::new()), Some(Vec::new()));
        };
        let known = ["podSelector", "policyTypes", "ingress", "egress"];
        let beyond = fields.keys().filter(|name| !known.contains(&name.as_str()));
        let unknown: Vec<String> = beyond.map(|name| format!("spec.{}", shortened(name))).collect();
        let is_known = unknown.is_empty();
        self.unknown.extend(unknown);

        let subject = self.part("spec.podSelector", spec.get("podSelector"), |path, given| {
            selector(path, Option::<ApiSelector>::unwrap_or_default(given))
        });
        let types = self.types(spec.get("policyTypes"));
        let ingress = self.rules("spec.ingress", spec.get("ingress"), |path, rule| {
            let rule: api::NetworkPolicyIngressRule = rule;
            read_rule(path, "from", rule.from, rule.ports)
        });
        let egress = self.rules("spec.egress", spec.get("egress"), |path, rule| {
            let rule: api::NetworkPolicyEgressRule = rule;
            read_rule(path, "to", rule.to, rule.ports)
        });
        let listed =
            |wanted: &str| types.as_ref().is_none_or(|own| own.iter().any(|t| t == wanted));
        let is_untyped = types.as_ref().is_some_and(Vec::is_empty);
        let isolates_ingress = !is_known || is_untyped || listed("Ingress");
        let isolates_egress = !is_known || listed("Egress") || (is_untyped && !egress.is_empty());
        let allows = is_known && subject.is_some() && types.is_some();
        let left = |isolates: bool, rules: Vec<PolicyRule>| {
            isolates.then_some(if allows { rules } else { Vec::new() })
        };
        let subject = subject.unwrap_or_default();
        (subject, left(isolates_ingress, ingress), left(isolates_egress, egress))
    }

    /// `None` when one is not understood.
    fn types(&mut self, value: Option<&Value>) -> Option<Vec<String>> {
        self.part("spec.policyTypes", value, |path, types: Option<Vec<String>>| {
            let types = types.unwrap_or_default();
            let strange = types.iter().find(|text| !matches!(text.as_str(), "Ingress" | "Egress"));
            match strange {
                Some(text) => Err(problem(path, format!("{:?} is not known", shortened(text)))),
                None => Ok(types),
            }
        })
    }

    /// Every rule in its place; one that is not understood allows nothing.
    fn rules<T: serde::de::DeserializeOwned>(
        &mut self,
        path: &str,
        value: Option<&Value>,
        read: impl Fn(&str, T) -> Result<PolicyRule, Problem>,
    ) -> Vec<PolicyRule> {
        match value {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(rules)) => rules
                .iter()
                .enumerate()
                .map(|(index, rule)| {
                    let path = format!("{path}[{index}]");
                    let read = self.part(&path, Some(rule), &read);
                    read.unwrap_or_else(PolicyRule::nothing)
                })
                .collect(),
            Some(_) => {
                self.invalid.push(format!("{path}: is no list"));
                vec![PolicyRule::nothing()]
            }
        }
    }

    /// A part of the specification, if all of it is understood.
    fn part<T: serde::de::DeserializeOwned, M>(
        &mut self,
        path: &str,
        value: Option<&Value>,
        read: impl Fn(&str, T) -> Result<M, Problem>,
    ) -> Option<M> {
        let (typed, unknown) = match named(value.unwrap_or(&Value::Null)) {
            Ok(typed) => typed,
            Err(ReadError::Type { field, message }) => {
                let field = if field == "." { String::new() } else { format!(".{field}") };
                self.invalid.push(format!("{path}{field}: {message}"));
                return None;
            }
            Err(error) => {
                self.invalid.push(format!("{path}: {error}"));
                return None;
            }
        };
        let is_known = unknown.is_empty();
        self.unknown.extend(unknown.iter().map(|field| format!("{path}.{field}")));
        match read(path, typed) {
            Ok(read) => is_known.then_some(read),
            // An empty peer is what is left of one that we do not know: said once is enough.
            Err(_) if !is_known => None,
            Err(Problem { field, problem }) => {
                self.invalid.push(format!("{field}: {problem}"));
                None
            }
        }
    }
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
