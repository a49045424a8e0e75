//! The objects of a cell, as a cluster would have them.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::model::{Condition, End, Kind, Policies, Protocol, Scenario, address, target_port};

/// Where a kind listens.
pub struct Frontend(&'static str);

impl Frontend {
    pub fn of(kind: Kind, ipv4: bool) -> Self {
        Self(match (kind, ipv4) {
            (Kind::ClusterIp, true) => "10.96.0.1:80",
            (Kind::ClusterIp, false) => "[fd96::1]:80",
            (Kind::ExternalIp, true) => "198.51.100.7:80",
            (Kind::ExternalIp, false) => "[2001:db8:51::7]:80",
            (Kind::LoadBalancer, true) => "203.0.113.80:80",
            (Kind::LoadBalancer, false) => "[2001:db8:113::80]:80",
            (Kind::ProxiedLoadBalancer, true) => "203.0.113.81:80",
            (Kind::ProxiedLoadBalancer, false) => "[2001:db8:113::81]:80",
            (Kind::NodePort, true) => "10.0.0.1:30080",
            (Kind::NodePort, false) => "[fd00::1]:30080",
            (Kind::HostPort, true) => "10.0.0.1:9080",
            (Kind::HostPort, false) => "[fd00::1]:9080",
            (Kind::Headless | Kind::ExternalName, _) => panic!("{kind:?} listens nowhere"),
        })
    }

    pub fn at(&self) -> SocketAddr {
        self.0.parse().expect("address and port")
    }
}

/// One dual-stack service with every kind of frontend, its slices, and beside it what has none.
pub fn objects(policies: Policies, scenario: Scenario) -> String {
    let word = |local: bool| if local { "Local" } else { "Cluster" };
    let (internal, external) = (word(policies.internal_local), word(policies.external_local));
    let ports: String = Protocol::ALL
        .map(|protocol| {
            let name = protocol.name();
            let lower = name.to_lowercase();
            format!(
                "  - {{name: {lower}, port: 80, protocol: {name}, nodePort: 30080, \
                 targetPort: {lower}}}\n"
            )
        })
        .concat();
    let mut text = format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: one, \
         labels: {{topology.kubernetes.io/zone: a}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop}}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.1, 'fd96::1']
  externalIPs: [198.51.100.7, '2001:db8:51::7']
  internalTrafficPolicy: {internal}
  externalTrafficPolicy: {external}
  #RANGES#
  ports:
{ports}status:
  loadBalancer:
    ingress: [{{ip: 203.0.113.80}}, {{ip: '2001:db8:113::80', ipMode: VIP}},
              {{ip: 203.0.113.81, ipMode: Proxy}}, {{ip: '2001:db8:113::81', ipMode: Proxy}}]
---
{{apiVersion: v1, kind: Service, metadata: {{name: headless, namespace: shop}},
 spec: {{clusterIP: None, ports: [{{port: 80}}]}}}}
---
{{apiVersion: v1, kind: Service, metadata: {{name: elsewhere, namespace: shop}},
 spec: {{type: ExternalName, externalName: example.com}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: web-2, namespace: shop}}, spec: {{nodeName: one,
 containers: [{{name: c, ports: [{{containerPort: 9000, hostPort: 9080}},
  {{containerPort: 9000, hostPort: 9080, protocol: UDP}},
  {{containerPort: 9000, hostPort: 9080, protocol: SCTP}}]}}]}},
 status: {{podIPs: [{{ip: 10.1.0.2}}, {{ip: 'fd01::2'}}]}}}}
"
    );
    let ends = scenario.ends();
    for ipv4 in [true, false] {
        // Two slices, as a rollout leaves them.
        let (some, others) = ends.split_at(ends.len() / 2);
        for (half, ends) in [("a", some), ("b", others)] {
            text += &slice(half, ends, ipv4);
        }
    }
    text
}

fn slice(half: &str, ends: &[End], ipv4: bool) -> String {
    let (family, number) = if ipv4 { ("IPv4", 4) } else { ("IPv6", 6) };
    let mut text = format!(
        "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-{number}{half}, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}
addressType: {family}
ports:
"
    );
    for protocol in Protocol::ALL {
        let name = protocol.name();
        let (lower, port) = (name.to_lowercase(), target_port(protocol));
        let _ = writeln!(text, "- {{name: {lower}, protocol: {name}, port: {port}}}");
    }
    text += if ends.is_empty() { "endpoints: []\n" } else { "endpoints:\n" };
    for end in ends {
        let node = if end.number < 10 { "one" } else { "two" };
        let conditions = match end.condition {
            Condition::Ready => "ready: true, serving: true, terminating: false",
            Condition::Silent => "",
            Condition::Unready => "ready: false, serving: false, terminating: false",
            Condition::Ending => "ready: false, serving: true, terminating: true",
            Condition::EndingSilent => "ready: false, terminating: true",
            Condition::EndingDeaf => "ready: false, serving: false, terminating: true",
        };
        let hint = |field: &str, name: Option<&str>| {
            name.map_or_else(String::new, |name| format!("{field}: [{{name: {name}}}], "))
        };
        let hints = hint("forNodes", end.for_node) + &hint("forZones", end.for_zone);
        let _ = writeln!(
            text,
            "- {{addresses: ['{}'], nodeName: {node}, conditions: {{{conditions}}}, \
             hints: {{{}}}}}",
            address(end.number, ipv4),
            hints.trim_end_matches(", "),
        );
    }
    text
}
