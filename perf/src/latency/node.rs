//! The node process of a subject, and its cluster.

use std::path::Path;

use anyhow::Result;
use pinning::CpuId;

use super::network::{
    BALANCER, NODE_ADDRESS, POD, POD_ADDRESS, POD_NETWORK, POD_PORT, Place, SERVICE_PORT, UPLINK,
};
use crate::node_process::{Directory, NAME, Node, Plan, Pod};

/// Starts `program` in `place` with one worker on `core` that idles as `idle` says.
///
/// # Errors
/// As [`Node::start`].
pub fn start(
    program: &Path,
    place: &Place,
    directory: &Directory,
    idle: &str,
    core: CpuId,
) -> Result<Node> {
    let (namespace, addresses) = (&*place.pod, &[POD_ADDRESS][..]);
    let pod = Pod { name: "pod", interface: POD, addresses, namespace };
    Node::start(
        program,
        directory,
        &Plan {
            label: idle,
            namespace: &place.node,
            configuration: &configured(idle, core),
            cluster: &cluster(),
            pods: &[pod],
        },
    )
}

/// All that is not here has its default.
fn configured(idle: &str, core: CpuId) -> String {
    format!(
        "node_name: {NAME}\n\
         uplinks: [{{interface: {UPLINK}}}]\n\
         workers: {{cores: [{core}], idle: {idle}}}\n\
         nat: {{ipv4_source: {NODE_ADDRESS}}}\n\
         cluster: {{pod_cidrs: [{POD_NETWORK}], service_cidrs: [10.96.0.0/16]}}\n"
    )
}

/// The node, the pod, and a service that it alone backs. The service keeps clients' addresses, as
/// the kernel's DNAT does.
fn cluster() -> String {
    format!(
        "\
apiVersion: v1
kind: Node
metadata: {{name: {NAME}}}
spec: {{podCIDR: {POD_NETWORK}, podCIDRs: [{POD_NETWORK}]}}
status:
  addresses:
    - {{type: InternalIP, address: {NODE_ADDRESS}}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: {NAME}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: pod, namespace: {NAME}, labels: {{app: echo}}}}
spec:
  nodeName: {NAME}
  containers:
    - name: main
      image: echo
      ports: [{{name: echo, containerPort: {POD_PORT}, protocol: UDP}}]
status: {{phase: Running, podIP: {POD_ADDRESS}, podIPs: [{{ip: {POD_ADDRESS}}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: echo, namespace: {NAME}}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  clusterIP: 10.96.0.53
  clusterIPs: [10.96.0.53]
  selector: {{app: echo}}
  ports:
    - {{name: echo, protocol: UDP, port: {SERVICE_PORT}, targetPort: echo, nodePort: 30053}}
status: {{loadBalancer: {{ingress: [{{ip: {BALANCER}}}]}}}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: echo-ipv4
  namespace: {NAME}
  labels: {{kubernetes.io/service-name: echo}}
addressType: IPv4
ports: [{{name: echo, port: {POD_PORT}, protocol: UDP}}]
endpoints:
  - addresses: [{POD_ADDRESS}]
    nodeName: {NAME}
    conditions: {{ready: true, serving: true, terminating: false}}
    targetRef: {{kind: Pod, namespace: {NAME}, name: pod}}
"
    )
}
