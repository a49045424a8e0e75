//! The node process of a subject, and its cluster: two pods, a service, and a policy that lets all ask the
//! server on its port and nothing else.

use std::path::Path;

use anyhow::Result;
use pinning::CpuId;

use super::network::{
    BALANCER, CLIENT, CLIENT_POD, CLUSTER_IP, NODE, PODS, Place, SERVER, SERVER_POD, SERVER_PORT,
    SERVICE_PORT, SERVICES, UPLINK,
};
use crate::node_process::{Directory, NAME, Node, Plan, Pod};

/// Starts `program` in `place` with one worker on `core`, which takes segments longer than the MTU as
/// `segments` says.
///
/// # Errors
/// As [`Node::start`].
pub fn start(
    program: &Path,
    place: &Place,
    directory: &Directory,
    (label, segments): (&str, &str),
    core: CpuId,
) -> Result<Node> {
    let pod = |interface: &'static str, addresses: &'static [&'static str], namespace| Pod {
        name: interface,
        interface,
        addresses,
        namespace,
    };
    Node::start(
        program,
        directory,
        &Plan {
            label,
            namespace: &place.node,
            configuration: &configured(segments, core),
            cluster: &cluster(),
            pods: &[
                pod(CLIENT, &CLIENT_POD, &place.client),
                pod(SERVER, &SERVER_POD, &place.server),
            ],
        },
    )
}

/// All that is not here has its default.
fn configured(segments: &str, core: CpuId) -> String {
    let [node4, node6] = NODE;
    let [pods4, pods6] = PODS;
    let [services4, services6] = SERVICES;
    format!(
        "node_name: {NAME}\n\
         uplinks: [{{interface: {UPLINK}}}]\n\
         workers: {{cores: [{core}]}}\n\
         segments: {segments}\n\
         packet_memory: {{frame_bytes: 4096}}\n\
         nat: {{ipv4_source: {node4}, ipv6_source: '{node6}'}}\n\
         cluster: {{pod_cidrs: [{pods4}, '{pods6}'], service_cidrs: [{services4}, '{services6}']}}\n"
    )
}

fn cluster() -> String {
    let [node4, node6] = NODE;
    let [pods4, pods6] = PODS;
    let [cluster4, cluster6] = CLUSTER_IP;
    let [balancer4, balancer6] = BALANCER;
    let mut text = format!(
        "\
apiVersion: v1
kind: Node
metadata: {{name: {NAME}}}
spec: {{podCIDR: {pods4}, podCIDRs: [{pods4}, '{pods6}']}}
status:
  addresses:
    - {{type: InternalIP, address: {node4}}}
    - {{type: InternalIP, address: '{node6}'}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: {NAME}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: {NAME}}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  ipFamilyPolicy: PreferDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIP: {cluster4}
  clusterIPs: [{cluster4}, '{cluster6}']
  selector: {{app: {SERVER}}}
  ports:
    - {{name: web, protocol: TCP, port: {SERVICE_PORT}, targetPort: {SERVER_PORT}, nodePort: 30080}}
status: {{loadBalancer: {{ingress: [{{ip: {balancer4}}}, {{ip: '{balancer6}'}}]}}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: server, namespace: {NAME}}}
spec:
  podSelector: {{matchLabels: {{app: {SERVER}}}}}
  policyTypes: [Ingress]
  ingress:
    - ports: [{{protocol: TCP, port: {SERVER_PORT}}}]
"
    );
    for (name, addresses) in [(CLIENT, CLIENT_POD), (SERVER, SERVER_POD)] {
        let [v4, v6] = addresses;
        text += &format!(
            "\
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {NAME}, labels: {{app: {name}}}}}
spec:
  nodeName: {NAME}
  containers: [{{name: main, image: {name}}}]
status: {{phase: Running, podIP: {v4}, podIPs: [{{ip: {v4}}}, {{ip: '{v6}'}}]}}
"
        );
    }
    for (family, address) in ["IPv4", "IPv6"].iter().zip(SERVER_POD) {
        text += &format!(
            "\
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-{}
  namespace: {NAME}
  labels: {{kubernetes.io/service-name: web}}
addressType: {family}
ports: [{{name: web, port: {SERVER_PORT}, protocol: TCP}}]
endpoints:
  - addresses: ['{address}']
    nodeName: {NAME}
    conditions: {{ready: true, serving: true, terminating: false}}
    targetRef: {{kind: Pod, namespace: {NAME}, name: {SERVER}}}
",
            family.to_lowercase()
        );
    }
    text
}
