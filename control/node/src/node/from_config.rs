//! The configuration file's words as what the node process is told.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use control::config::{
    self, Bind, Config, ForwardingMode, Idle, NatMapping, OnStall, Segments, Snat, Sockets,
    TcpWindows, XdpMode,
};
use dataplane::direct::Dispatch;
use dataplane::lpm::Prefix;
use dataplane::nat::Mapping;
use dataplane::nat::rules::SnatRule;
use dataplane::tables;
use ipnet::IpNet;
use pinning::CpuId;
use pinning::machine_memory::MachineMemory;
use pinning::plan::Plan;
use xdp_redirect::loader::Mode;
use xdp_redirect::regions::PodMemory;
use xdp_redirect::rules;
use xdp_redirect::socket::{BusyPoll, SocketConfig};
use xdp_redirect::umem::{CopyMode, HugePages, UmemConfig};

use super::settings::{HostPortSettings, Settings, SnatSettings, Uplink};
use crate::workers;
use crate::workers::capacity::FlowCapacities;

/// Frames that each queue of a pod has with the kernel at least. A burst that comes while its worker
/// sleeps is at most so long before something is lost; more come with the first packets.
const POD_IDLE_FRAMES: u32 = 32;
/// The same where whole segments come, of 37 frames each, and under load.
const WHOLE_IDLE_FRAMES: u32 = 128;
const WHOLE_FRAMES: u32 = 1024;

/// What the machine adds to the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The host's name.
    pub host_name: String,
    /// Where workers run.
    pub cores: Vec<CpuId>,
    /// Memory that the process may use: the machine's, or its cgroup's.
    pub memory_bytes: u64,
    /// Random for every start.
    pub hash_key: [u64; 2],
}

impl Machine {
    /// This host, with workers where `plan` puts them.
    ///
    /// # Errors
    /// What the kernel says about its name, its memory or its random numbers.
    pub fn read(plan: &Plan) -> std::io::Result<Self> {
        let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
        let mut random = [[0u8; 8]; 2];
        let mut source = std::fs::File::open("/dev/urandom")?;
        for word in &mut random {
            source.read_exact(word)?;
        }
        Ok(Self {
            host_name: host_name.trim().to_owned(),
            cores: plan.workers.iter().map(|placement| placement.cpu).collect(),
            memory_bytes: MachineMemory::read(Path::new("/"))?.total_bytes,
            hash_key: random.map(u64::from_ne_bytes),
        })
    }
}

fn prefix(net: &IpNet) -> Option<Prefix> {
    Prefix::new(net.addr(), net.prefix_len())
}

fn rule(rule: &Snat) -> SnatRule {
    let ranges = |nets: &[IpNet]| nets.iter().filter_map(prefix).collect();
    SnatRule {
        sources: ranges(&rule.sources),
        destinations: ranges(&rule.destinations),
        to: rule.to.iter().copied().collect(),
    }
}

fn mode(mode: XdpMode) -> Mode {
    match mode {
        XdpMode::Auto => Mode::Auto,
        XdpMode::Native => Mode::Native,
        XdpMode::Generic => Mode::Generic,
    }
}

fn sockets(config: &Config, sockets: &Sockets, idle_frames: u32) -> SocketConfig {
    let busy_poll =
        BusyPoll { micros: config.workers.busy_poll_us, budget: config.workers.busy_poll_packets };
    SocketConfig {
        receive_ring: sockets.receive_ring,
        transmit_ring: sockets.transmit_ring,
        fill_frames: sockets.fill_frames,
        idle_frames,
        busy_poll: (config.workers.idle == Idle::BusyPoll).then_some(busy_poll),
        ..SocketConfig::default()
    }
}

/// Pods' sockets have room for some whole segments, which take 37 frames each.
fn pod_sockets(config: &Config) -> SocketConfig {
    let own = sockets(config, &config.pods, POD_IDLE_FRAMES);
    match config.segments {
        Segments::Cut => own,
        Segments::Whole => SocketConfig {
            receive_ring: own.receive_ring.max(WHOLE_FRAMES),
            fill_frames: own.fill_frames.max(WHOLE_FRAMES),
            idle_frames: WHOLE_IDLE_FRAMES,
            ..own
        },
    }
}

fn packet_memory(config: &Config) -> UmemConfig {
    let memory = &config.packet_memory;
    let sockets = &config.uplink_sockets;
    UmemConfig {
        frames: memory.frames,
        chunk_bytes: memory.frame_bytes,
        fill_ring: sockets.fill_frames.next_power_of_two(),
        completion_ring: sockets.transmit_ring,
        copy_mode: match memory.bind {
            Bind::Auto => CopyMode::Auto,
            Bind::Copy => CopyMode::Copy,
            Bind::ZeroCopy => CopyMode::ZeroCopy,
        },
        multi_buffer: memory.jumbo,
        huge_pages: if memory.huge_pages { HugePages::WhenAvailable } else { HugePages::Never },
    }
}

fn pod_memory(config: &Config) -> PodMemory {
    PodMemory {
        frames_max: config.packet_memory.pod_frames,
        fill_ring: pod_sockets(config).fill_frames.next_power_of_two(),
        completion_ring: config.pods.transmit_ring,
    }
}

impl Settings {
    /// What `config` says on `machine`.
    #[must_use]
    pub fn from_config(config: &Config, machine: &Machine) -> Self {
        let mut settings = Self {
            node_name: if config.node_name.is_empty() {
                machine.host_name.clone()
            } else {
                config.node_name.clone()
            },
            run_directory: config.run_directory.clone(),
            bpf_filesystem: config.bpf_filesystem.clone(),
            uplinks: config
                .uplinks
                .iter()
                .map(|uplink| Uplink {
                    interface: uplink.interface.clone(),
                    mode: mode(uplink.xdp_mode),
                    everything: uplink.everything,
                    optional: uplink.optional,
                })
                .collect(),
            pod_mode: match config.segments {
                Segments::Cut => mode(config.pods.xdp_mode),
                Segments::Whole => Mode::Generic,
            },
            on_stall: rules::OnStall::Drop,
            on_exit: config.stall.on_exit,
            stall_after: Duration::ZERO,
            restart_after: None,
            faults: false,
            workers: workers::Settings {
                cores: machine.cores.clone(),
                whole_segments: config.segments == Segments::Whole,
                idle: match config.workers.idle {
                    Idle::Spin => workers::Idle::Spin,
                    Idle::Adaptive => workers::Idle::Adaptive(Duration::from_micros(
                        config.workers.spin_us.into(),
                    )),
                    Idle::BusyPoll => workers::Idle::BusyPoll,
                },
                capacities: FlowCapacities::new(
                    &config.flow_table,
                    config.conntrack.details,
                    machine.memory_bytes,
                    machine.cores.len(),
                ),
                flow_directory: config
                    .flow_table
                    .directory
                    .clone()
                    .unwrap_or_else(|| config.run_directory.clone()),
                hash_key: machine.hash_key,
            },
            umem: packet_memory(config),
            pod_memory: pod_memory(config),
            uplink_sockets: sockets(
                config,
                &config.uplink_sockets,
                config.uplink_sockets.fill_frames,
            ),
            pod_sockets: pod_sockets(config),
            transmit: config.transmit,
            segments: config.segments,
            host_port: config.host_port.enabled.then_some(HostPortSettings {
                routing_table: config.host_port.routing_table,
                rule_priority: config.host_port.rule_priority,
            }),
            snat: SnatSettings {
                v4: config.nat.ipv4_source,
                v6: config.nat.ipv6_source,
                l4_ports: config.nat.l4_ports(),
                mapping: Mapping::default(),
                rules: Vec::new(),
                cluster: Vec::new(),
                non_masquerade: Vec::new(),
            },
            service_ranges: Vec::new(),
            node_port_addresses: Vec::new(),
            node_port_range: config.node_ports.range(),
            returns_directly: false,
            dispatch: Dispatch::default(),
            timeouts: config.timeouts.for_tables(),
            tcp_windows: tables::TcpWindows::Off,
            lost_replies: Duration::ZERO,
            unknown_pods: config.policy.unknown_pods,
            adopt_running_pods: false,
            http: config.http.listen,
            proxy_http: None,
        };
        settings.apply_live(config);
        settings
    }

    /// Takes over what may change in a running node (`xskiff config diff` calls it live).
    pub fn apply_live(&mut self, config: &Config) {
        let ranges = config.nat.non_masquerade_cidrs.iter();
        let cluster = config.cluster.pod_cidrs.iter().chain(&config.cluster.service_cidrs);
        self.snat.cluster = cluster.clone().filter_map(prefix).collect();
        self.snat.non_masquerade = ranges.chain(cluster).filter_map(prefix).collect();
        self.snat.rules = config.nat.snat.iter().map(rule).collect();
        self.snat.mapping = match config.nat.mapping {
            NatMapping::EndpointDependent => Mapping::EndpointDependent,
            NatMapping::EndpointIndependent => Mapping::EndpointIndependent,
        };
        self.service_ranges = config.cluster.service_cidrs.iter().filter_map(prefix).collect();
        self.node_port_addresses =
            config.node_ports.address_cidrs.iter().filter_map(prefix).collect();
        self.node_port_range = config.node_ports.range();
        self.returns_directly = config.load_balancing.mode == ForwardingMode::Dsr;
        self.dispatch = match config.load_balancing.dispatch {
            config::Dispatch::Option => Dispatch::Option,
            config::Dispatch::Ipip => Dispatch::Ipip,
            config::Dispatch::Geneve => Dispatch::Geneve,
        };
        let capacities = &mut self.workers.capacities;
        let (memory_bytes, workers) = (capacities.memory_bytes, self.workers.cores.len());
        let details = capacities.details;
        *capacities = FlowCapacities::new(&config.flow_table, details, memory_bytes, workers);
        self.pod_memory.frames_max = config.packet_memory.pod_frames;
        self.timeouts = config.timeouts.for_tables();
        self.transmit = config.transmit;
        self.tcp_windows = match config.conntrack.tcp_windows {
            TcpWindows::Off => tables::TcpWindows::Off,
            TcpWindows::Relaxed => tables::TcpWindows::Relaxed,
            TcpWindows::Strict => tables::TcpWindows::Strict,
        };
        self.lost_replies = Duration::from_secs(config.policy.lost_replies_seconds.into());
        self.unknown_pods = config.policy.unknown_pods;
        self.adopt_running_pods = config.cni.adopt_running_pods;
        self.stall_after = Duration::from_millis(config.stall.after_ms.into());
        self.on_stall = match config.stall.on_stall {
            OnStall::Drop => rules::OnStall::Drop,
            OnStall::Pass => rules::OnStall::Pass,
        };
        self.on_exit = config.stall.on_exit;
        let restart_after = Duration::from_millis(config.stall.restart_after_ms.into());
        self.restart_after = (!restart_after.is_zero()).then_some(restart_after);
        self.faults = config.debug.faults;
        self.proxy_http = config.http.proxy_listen;
    }
}

#[cfg(test)]
mod tests {
    use control::config::effects::{Effect, effect};

    use super::*;

    fn machine() -> Machine {
        Machine {
            host_name: "host-a".into(),
            cores: vec![CpuId(1)],
            memory_bytes: 1 << 34,
            hash_key: [1, 2],
        }
    }

    #[test]
    fn the_hosts_name_stands_in_for_a_node_name_that_is_not_given() {
        let named = Config { node_name: "node-b".into(), ..Config::default() };
        assert_eq!(Settings::from_config(&Config::default(), &machine()).node_name, "host-a");
        assert_eq!(Settings::from_config(&named, &machine()).node_name, "node-b");
    }

    #[test]
    fn packet_memory_has_rings_for_its_largest_sockets() {
        let settings = Settings::from_config(&Config::default(), &machine());
        assert!(settings.umem.fill_ring >= settings.uplink_sockets.fill_frames);
        assert!(settings.umem.completion_ring >= settings.uplink_sockets.transmit_ring);
        let (memory, pods) = (&settings.pod_memory, &settings.pod_sockets);
        assert!(memory.fill_ring >= pods.fill_frames && pods.fill_frames > pods.idle_frames);
        assert!(memory.completion_ring >= pods.transmit_ring);
    }

    #[test]
    fn what_is_called_live_is_applied_live() {
        let text = "timeouts: {udp_seconds: 31}\n\
                    flow_table: {ipv4_flows: 70000, ipv4_flows_max: 80000, ipv6_flows: 64, \
                    ipv6_flows_max: 128, flows_per_endpoint_max: 9}\n\
                    nat: {mapping: endpoint-independent, \
                    snat: [{sources: [10.1.3.0/24], to: [192.0.2.9]}], \
                    non_masquerade_cidrs: [198.18.0.0/15]}\n\
                    cluster: {pod_cidrs: [10.1.0.0/16], service_cidrs: [10.2.0.0/16]}\n\
                    node_ports: {first: 30100, last: 30200, address_cidrs: [192.0.2.0/24]}\n\
                    load_balancing: {mode: dsr, dispatch: geneve}\n\
                    policy: {lost_replies_seconds: 7, unknown_pods: deny}\n\
                    conntrack: {details: true, tcp_windows: relaxed}\n\
                    stall: {after_ms: 700, restart_after_ms: 0, on_stall: pass, on_exit: drop}\n\
                    packet_memory: {pod_frames: 4096}\n\
                    cni: {adopt_running_pods: false}\n\
                    debug: {faults: true}\n\
                    http: {proxy_listen: \"127.0.0.1:10257\"}\n";
        let changed = Config::parse(text).unwrap();
        let before = Config::parse("conntrack: {details: true}").unwrap();
        for change in before.diff(&changed) {
            assert_eq!(effect(&change.field), Effect::Live, "{}", change.field);
        }
        let mut settings = Settings::from_config(&before, &machine());
        settings.apply_live(&changed);
        let fresh = Settings::from_config(&changed, &machine());
        assert_eq!(settings.timeouts, fresh.timeouts);
        assert_eq!((settings.pod_memory, settings.pod_memory.frames_max), (fresh.pod_memory, 4096));
        assert_eq!(settings.tcp_windows, tables::TcpWindows::Relaxed);
        assert!(fresh.workers.capacities.details);
        assert_eq!(settings.workers.capacities, fresh.workers.capacities);
        assert_eq!(settings.snat, fresh.snat);
        assert_eq!(settings.lost_replies, Duration::from_secs(7));
        assert_eq!(settings.unknown_pods, control::config::UnknownPods::Deny);
        assert!(!settings.adopt_running_pods);
        assert_eq!(
            (&settings.service_ranges, settings.service_ranges.len()),
            (&fresh.service_ranges, 1)
        );
        assert_eq!(settings.node_port_addresses, fresh.node_port_addresses);
        assert_eq!(settings.node_port_range, fresh.node_port_range);
        assert_eq!((settings.returns_directly, settings.dispatch), (true, Dispatch::Geneve));
        assert_eq!((settings.stall_after, settings.on_stall), (fresh.stall_after, fresh.on_stall));
        assert_eq!(settings.on_exit, control::config::OnExit::Drop);
        assert_eq!((settings.restart_after, settings.faults), (None, true));
        assert_eq!(settings.proxy_http, fresh.proxy_http);
    }
}
