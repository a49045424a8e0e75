//! Clusters of any size as the API server would list them: the same for the same size and seed.
//!
//! Node `n` has 10.(n/256).(n%256).0/24, so pods' addresses are unique below 65,536 nodes' worth
//! of 254 pods; services lie in [`SERVICES`], nodes in 192.168.0.0/16 and on. Pod `i` is of
//! namespace `i % namespaces` and of one of its applications; a service is one application of one
//! namespace, and its slices name the pods of it.

use std::net::{Ipv4Addr, Ipv6Addr};

use cluster::serve::Store;
use control::model::Kind;
use serde_json::{Value, json};

use crate::random::Random;

/// The range that services lie in.
pub const SERVICES: &str = "172.20.0.0/14";
/// Endpoints of a slice at most (Kubernetes, the controller's default).
const SLICE_ENDPOINTS: usize = 100;

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Nodes.
    pub nodes: usize,
    /// Namespaces.
    pub namespaces: usize,
    /// Pods; at most 254 a node.
    pub pods: usize,
    /// Services; slices follow from these and the pods.
    pub services: usize,
    /// NetworkPolicies.
    pub policies: usize,
}

impl Size {
    /// The largest that is asked for.
    pub const LARGE: Self =
        Self { nodes: 5000, namespaces: 500, pods: 150_000, services: 20_000, policies: 2000 };
    /// For tests of something else.
    pub const SMALL: Self = Self { nodes: 5, namespaces: 3, pods: 60, services: 12, policies: 6 };
}

/// How much of a pod is written out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Detail {
    /// What a node reads, and a little more: below 1 KiB.
    #[default]
    Lean,
    /// As a pod of a Deployment looks in a real cluster, managed fields included: 7 KiB.
    Real,
}

/// A cluster that is made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Synthetic {
    /// How much there is.
    pub size: Size,
    /// How much of a pod is written out.
    pub detail: Detail,
    /// Of what is left to chance.
    pub seed: u64,
}

fn octets(number: usize) -> [u8; 4] {
    u32::try_from(number).expect("fewer than four billion").to_be_bytes()
}

impl Synthetic {
    fn random(&self, of: &str, index: usize) -> Random {
        let salt = of.bytes().fold(self.seed, |salt, byte| salt.rotate_left(7) ^ u64::from(byte));
        Random::new(salt ^ ((index as u64) << 20))
    }

    fn uid(&self, of: &str, index: usize) -> String {
        let mut random = self.random(of, index);
        let (first, second) = (random.word(), random.word());
        format!(
            "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
            first >> 32,
            first >> 16 & 0xffff,
            first & 0xfff,
            second >> 52,
            second & 0xffff_ffff_ffff
        )
    }

    fn applications(&self) -> usize {
        self.size.services.div_ceil(self.size.namespaces.max(1)).max(1)
    }

    /// The name of namespace `index`. Some begin with all of another's, so that the order of names is not
    /// that of `namespace/name`, by which servers list.
    #[must_use]
    pub fn namespace_name(&self, index: usize) -> String {
        match index % self.size.namespaces.max(1) {
            number if number % 8 == 7 => format!("team-{}-eu", number - 1),
            number => format!("team-{number}"),
        }
    }

    /// The name of node `index`.
    #[must_use]
    pub fn node_name(&self, index: usize) -> String {
        format!("node-{index:05}")
    }

    /// Namespace and name of pod `index`.
    #[must_use]
    pub fn pod_name(&self, index: usize) -> (String, String) {
        let application = self.pod_application(index);
        let suffix = self.random("pod", index).word() & 0xff_ffff;
        (self.namespace_name(index), format!("app-{application}-{suffix:06x}-{index}"))
    }

    fn pod_application(&self, index: usize) -> usize {
        index / self.size.namespaces.max(1) % self.applications()
    }

    /// The node that pod `index` runs on.
    #[must_use]
    pub fn pod_node(&self, index: usize) -> usize {
        index % self.size.nodes.max(1)
    }

    /// The IPv4 address of pod `index`.
    #[must_use]
    pub fn pod_address(&self, index: usize) -> Ipv4Addr {
        let of_node = 2 + index / self.size.nodes.max(1) % 254;
        Ipv4Addr::from(octets((10 << 24) + self.pod_node(index) * 256 + of_node))
    }

    fn pod_address_v6(&self, index: usize) -> Ipv6Addr {
        let v4 = u128::from(u32::from(self.pod_address(index)));
        Ipv6Addr::from((0xfd00_0010_u128 << 96) + v4)
    }

    fn node_address(&self, index: usize) -> Ipv4Addr {
        Ipv4Addr::from(octets((192 << 24) + (168 << 16) + index))
    }

    /// Namespace `index`.
    #[must_use]
    pub fn namespace(&self, index: usize) -> Value {
        let name = self.namespace_name(index);
        json!({
            "kind": "Namespace", "apiVersion": "v1",
            "metadata": {
                "name": name, "uid": self.uid("namespace", index),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {
                    "kubernetes.io/metadata.name": name,
                    "tier": if index.is_multiple_of(2) { "front" } else { "back" },
                },
            },
            "spec": { "finalizers": ["kubernetes"] },
            "status": { "phase": "Active" },
        })
    }

    /// Node `index`.
    #[must_use]
    pub fn node(&self, index: usize) -> Value {
        let name = self.node_name(index);
        let range = Ipv4Addr::from(octets((10 << 24) + index * 256));
        let range_v6 = Ipv6Addr::from((0xfd00_0010_u128 << 96) + u128::from(u32::from(range)));
        json!({
            "kind": "Node", "apiVersion": "v1",
            "metadata": {
                "name": name, "uid": self.uid("node", index),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {
                    "kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
                    "topology.kubernetes.io/zone": format!("zone-{}", index % 3),
                },
            },
            "spec": {
                "podCIDR": format!("{range}/24"),
                "podCIDRs": [format!("{range}/24"), format!("{range_v6}/120")],
            },
            "status": {
                "addresses": [
                    { "type": "InternalIP", "address": self.node_address(index) },
                    { "type": "Hostname", "address": name },
                ],
                "capacity": { "cpu": "64", "memory": "263921916Ki", "pods": "250" },
                "nodeInfo": { "kubeletVersion": "v1.36.2", "operatingSystem": "linux" },
            },
        })
    }

    /// Pod `index`, as it runs.
    #[must_use]
    pub fn pod(&self, index: usize) -> Value {
        self.pod_at(index, 0)
    }

    /// Pod `index` after so many changes of its readiness: even ones are ready.
    #[must_use]
    pub fn pod_at(&self, index: usize, changes: usize) -> Value {
        let (namespace, name) = self.pod_name(index);
        let application = self.pod_application(index);
        let mut random = self.random("labels", index);
        let ready = if changes.is_multiple_of(2) { "True" } else { "False" };
        let addresses =
            [self.pod_address(index).to_string(), self.pod_address_v6(index).to_string()];
        let mut pod = json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {
                "name": name, "namespace": namespace, "uid": self.uid("pod", index),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {
                    "app": format!("app-{application}"),
                    "version": format!("v{}", random.below(3)),
                    "pod-template-hash": format!("{:x}", random.word() & 0xffff_ffff),
                },
            },
            "spec": {
                "nodeName": self.node_name(self.pod_node(index)),
                "containers": [{
                    "name": "main", "image": format!("registry.example/app-{application}:1.0"),
                    "ports": [
                        { "name": "http", "containerPort": 8080, "protocol": "TCP" },
                        { "name": "metrics", "containerPort": 9090, "protocol": "TCP" },
                    ],
                }],
            },
            "status": {
                "phase": "Running",
                "hostIP": self.node_address(self.pod_node(index)),
                "podIP": addresses[0],
                "podIPs": [{ "ip": addresses[0] }, { "ip": addresses[1] }],
                "conditions": [{
                    "type": "Ready", "status": ready, "lastProbeTime": null,
                    "lastTransitionTime": format!("2026-01-01T00:{:02}:00Z", changes % 60),
                }],
            },
        });
        if self.detail == Detail::Real {
            detail(&mut pod, &mut random);
        }
        pod
    }

    /// Service `index`.
    #[must_use]
    pub fn service(&self, index: usize) -> Value {
        let application = index / self.size.namespaces.max(1);
        let address = Ipv4Addr::from(octets((172 << 24) + (20 << 16) + 10 + index));
        json!({
            "kind": "Service", "apiVersion": "v1",
            "metadata": {
                "name": format!("app-{application}"), "namespace": self.namespace_name(index),
                "uid": self.uid("service", index), "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {
                "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
                "selector": { "app": format!("app-{application}") },
                "ports": [
                    { "name": "http", "port": 80, "targetPort": "http", "protocol": "TCP" },
                ],
            },
            "status": { "loadBalancer": {} },
        })
    }

    /// The slices of service `index`.
    #[must_use]
    pub fn slices(&self, index: usize) -> Vec<Value> {
        let namespaces = self.size.namespaces.max(1);
        let (namespace, application) = (index % namespaces, index / namespaces);
        // Every `applications`-th pod of the namespace, and every `namespaces`-th is of it.
        let first = namespace + application * namespaces;
        let step = namespaces * self.applications();
        let pods: Vec<usize> = (first..self.size.pods).step_by(step).collect();
        let service = format!("app-{application}");
        let slice = |(part, pods): (usize, &[usize])| {
            let endpoints: Vec<Value> = pods.iter().map(|pod| self.endpoint(*pod)).collect();
            json!({
                "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
                "metadata": {
                    "name": format!("{service}-{part}"),
                    "namespace": self.namespace_name(namespace),
                    "uid": self.uid("slice", index * 1000 + part),
                    "labels": {
                        "kubernetes.io/service-name": service,
                        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    },
                },
                "addressType": "IPv4",
                "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
                "endpoints": endpoints,
            })
        };
        pods.chunks(SLICE_ENDPOINTS).enumerate().map(slice).collect()
    }

    fn endpoint(&self, pod: usize) -> Value {
        let (namespace, name) = self.pod_name(pod);
        json!({
            "addresses": [self.pod_address(pod)],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": self.node_name(self.pod_node(pod)),
            "targetRef": {
                "kind": "Pod", "namespace": namespace, "name": name, "uid": self.uid("pod", pod),
            },
        })
    }

    /// NetworkPolicy `index`: who may come to one application of one namespace.
    #[must_use]
    pub fn policy(&self, index: usize) -> Value {
        let application = index / self.size.namespaces.max(1) % self.applications();
        let from = (application + 1) % self.applications();
        let mut random = self.random("policy", index);
        let mut peers = vec![
            json!({ "podSelector": { "matchLabels": { "app": format!("app-{from}") } } }),
            json!({ "namespaceSelector": { "matchLabels": { "tier": "front" } } }),
        ];
        if random.one_in(4) {
            let block = format!("198.51.{}.0/24", random.below(256));
            peers.push(json!({ "ipBlock": { "cidr": block } }));
        }
        json!({
            "kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1",
            "metadata": {
                "name": format!("allow-{index}"), "namespace": self.namespace_name(index),
                "uid": self.uid("policy", index),
            },
            "spec": {
                "podSelector": { "matchLabels": { "app": format!("app-{application}") } },
                "policyTypes": ["Ingress"],
                "ingress": [{ "from": peers, "ports": [{ "port": 8080, "protocol": "TCP" }] }],
            },
        })
    }

    /// Every object, kind by kind.
    pub fn objects(self) -> impl Iterator<Item = (Kind, Value)> {
        let size = self.size;
        let namespaces = (0..size.namespaces).map(move |i| (Kind::Namespace, self.namespace(i)));
        let nodes = (0..size.nodes).map(move |i| (Kind::Node, self.node(i)));
        let pods = (0..size.pods).map(move |i| (Kind::Pod, self.pod(i)));
        let services = (0..size.services).map(move |i| (Kind::Service, self.service(i)));
        let slices = (0..size.services)
            .flat_map(move |i| self.slices(i))
            .map(|slice| (Kind::EndpointSlice, slice));
        let policies = (0..size.policies).map(move |i| (Kind::NetworkPolicy, self.policy(i)));
        namespaces.chain(nodes).chain(pods).chain(services).chain(slices).chain(policies)
    }

    /// Puts every object into `store`.
    ///
    /// # Panics
    /// An object is none.
    pub fn fill(self, store: &Store) {
        for (kind, object) in self.objects() {
            store.set(kind, object).expect("an object with a name");
        }
    }
}

/// Writes out what nodes do not read.
fn detail(pod: &mut Value, random: &mut Random) {
    let owner = format!("app-{:x}", random.word() & 0xffff_ffff);
    let fields = |names: &[&str]| -> Value {
        let own = names.iter().map(|name| ((*name).to_owned(), json!({ ".": {} })));
        Value::Object(own.collect())
    };
    pod["metadata"]["generateName"] = json!(format!("{owner}-"));
    pod["metadata"]["annotations"] = json!({
        "prometheus.io/scrape": "true", "prometheus.io/port": "9090",
        "checksum/config": format!("{:064x}", random.word()),
    });
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "controller": true,
        "uid": format!("{:032x}", random.word()), "blockOwnerDeletion": true,
    }]);
    let of_spec: Vec<String> = [
        "affinity",
        "containers",
        "dnsPolicy",
        "enableServiceLinks",
        "restartPolicy",
        "schedulerName",
        "securityContext",
        "serviceAccount",
        "terminationGracePeriodSeconds",
        "tolerations",
        "topologySpreadConstraints",
        "volumes",
    ]
    .iter()
    .map(|name| format!("f:{name}"))
    .collect();
    let of_spec: Vec<&str> = of_spec.iter().map(String::as_str).collect();
    let of_status = [
        "f:conditions",
        "f:containerStatuses",
        "f:hostIP",
        "f:hostIPs",
        "f:phase",
        "f:podIP",
        "f:podIPs",
        "f:qosClass",
        "f:startTime",
    ];
    let managed = |manager: &str, part: &str, names: &[&str]| {
        json!({
            "manager": manager, "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
            "time": "2026-01-01T00:00:00Z", "fieldsV1": { part: fields(names) },
        })
    };
    pod["metadata"]["managedFields"] = json!([
        managed(
            "kube-controller-manager",
            "f:metadata",
            &["f:annotations", "f:generateName", "f:labels", "f:ownerReferences"]
        ),
        managed("kube-controller-manager", "f:spec", &of_spec),
        managed("kubelet", "f:status", &of_status),
    ]);
    let environment: Vec<Value> = (0..12)
        .map(|index| {
            json!({
                "name": format!("SETTING_NUMBER_{index}"),
                "value": format!("value-{:x}", random.word()),
            })
        })
        .collect();
    let probe = |path: &str| {
        json!({
            "httpGet": { "path": path, "port": "http", "scheme": "HTTP" }, "timeoutSeconds": 1,
            "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
        })
    };
    let container = &mut pod["spec"]["containers"][0];
    container["env"] = json!(environment);
    container["resources"] = json!({
        "limits": { "cpu": "2", "memory": "2Gi" }, "requests": { "cpu": "500m", "memory": "1Gi" },
    });
    container["livenessProbe"] = probe("/livez");
    container["readinessProbe"] = probe("/readyz");
    container["startupProbe"] = probe("/startupz");
    container["imagePullPolicy"] = json!("IfNotPresent");
    container["terminationMessagePath"] = json!("/dev/termination-log");
    container["securityContext"] = json!({
        "runAsNonRoot": true, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
    });
    container["volumeMounts"] = json!([
        { "name": "config", "mountPath": "/etc/app", "readOnly": true },
        { "name": "cache", "mountPath": "/var/cache/app" },
        { "name": "kube-api-access", "readOnly": true,
          "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount" },
    ]);
    let spec = &mut pod["spec"];
    spec["volumes"] = json!([
        { "name": "config", "configMap": { "name": "app-config", "defaultMode": 420 } },
        { "name": "cache", "emptyDir": { "sizeLimit": "1Gi" } },
        { "name": "kube-api-access", "projected": { "defaultMode": 420, "sources": [
            { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
            { "configMap": { "name": "kube-root-ca.crt",
              "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
            { "downwardAPI": { "items": [{ "path": "namespace",
              "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } }] } },
        ] } },
    ]);
    spec["tolerations"] = json!([
        { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
          "tolerationSeconds": 300 },
        { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
          "tolerationSeconds": 300 },
    ]);
    spec["topologySpreadConstraints"] = json!([{
        "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": { "matchLabels": { "app": owner } },
    }]);
    for (name, value) in [
        ("restartPolicy", "Always"),
        ("dnsPolicy", "ClusterFirst"),
        ("schedulerName", "default-scheduler"),
        ("serviceAccountName", "default"),
        ("serviceAccount", "default"),
        ("preemptionPolicy", "PreemptLowerPriority"),
    ] {
        spec[name] = json!(value);
    }
    let status = &mut pod["status"];
    let image = format!("registry.example/app@sha256:{:064x}", random.word());
    status["qosClass"] = json!("Burstable");
    status["startTime"] = json!("2026-01-01T00:00:00Z");
    status["containerStatuses"] = json!([{
        "name": "main", "ready": true, "started": true, "restartCount": 0, "image": image,
        "imageID": image, "containerID": format!("containerd://{:064x}", random.word()),
        "lastState": {}, "state": { "running": { "startedAt": "2026-01-01T00:00:03Z" } },
    }]);
    if let Some(conditions) = status["conditions"].as_array_mut() {
        for kind in ["PodReadyToStartContainers", "Initialized", "ContainersReady", "PodScheduled"]
        {
            conditions.push(json!({
                "type": kind, "status": "True", "lastProbeTime": null, "observedGeneration": 1,
                "lastTransitionTime": "2026-01-01T00:00:02Z",
            }));
        }
    }
}
