//! What a configuration's values must be to each other and to the world.

use std::fmt;

use dataplane::handoff::WORKERS_MAX;

use super::{
    Config, OnStall, Segments, Sockets, TcpWindows, Uplink, XdpMode, cni, kubernetes, ranges, snat,
};
use crate::admin::is_interface_name;
use crate::shown::shortened;

/// Most flows of one family: the flow table's handles have 28 bits.
const FLOWS_MAX: u32 = (1 << 28) - 1;
/// Most frames of packet memory.
const FRAMES_MAX: u32 = 1 << 22;
/// Most frames kept with the kernel for one queue: as many as packet memory has when its size is
/// left to the node.
const FILL_FRAMES_MAX: u32 = 16_384;
/// Fewest L4 ports to translate to: each worker needs its own.
const NAT_PORTS_MIN: u16 = 64;

/// A value that cannot work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path of the field.
    pub field: String,
    /// Its value.
    pub value: String,
    /// What it must be.
    pub wanted: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} cannot be used: {}", self.field, self.value, self.wanted)
    }
}

#[derive(Default)]
pub(super) struct Findings(Vec<Problem>);

impl Findings {
    pub(super) fn check(
        &mut self,
        ok: bool,
        field: impl Into<String>,
        value: impl fmt::Display,
        wanted: &str,
    ) {
        if !ok {
            self.0.push(Problem {
                field: field.into(),
                value: value.to_string(),
                wanted: wanted.to_owned(),
            });
        }
    }
}

/// Everything that is wrong with `config`; empty when nothing is.
pub(super) fn problems(config: &Config) -> Vec<Problem> {
    let mut findings = Findings::default();
    uplinks(&config.uplinks, &mut findings);
    everything(config, &mut findings);
    workers(config, &mut findings);
    memory(config, &mut findings);
    sockets("pods", &config.pods, config, &mut findings);
    sockets("uplink_sockets", &config.uplink_sockets, config, &mut findings);
    segments(config, &mut findings);
    ports(config, &mut findings);
    ranges::check(config, &mut findings);
    snat::check(config, &mut findings);
    cni::check(config, &mut findings);
    kubernetes::check(config, &mut findings);
    names(config, &mut findings);
    rest(config, &mut findings);
    findings.0
}

fn uplinks(uplinks: &[Uplink], findings: &mut Findings) {
    for (index, uplink) in uplinks.iter().enumerate() {
        let name = &uplink.interface;
        findings.check(
            is_interface_name(name),
            format!("uplinks[{index}].interface"),
            format!("{name:?}"),
            "name an interface (`ip link` lists them), 1 to 15 letters",
        );
        let again = uplinks[..index].iter().any(|other| other.interface == *name);
        findings.check(
            !again,
            format!("uplinks[{index}].interface"),
            name,
            "it is listed twice: keep one",
        );
    }
}

/// What an uplink takes in whole goes on to the host by the host port or nowhere.
fn everything(config: &Config, findings: &mut Findings) {
    let Some(index) = config.uplinks.iter().position(|uplink| uplink.everything) else { return };
    let field = format!("uplinks[{index}].everything");
    findings.check(
        config.host_port.enabled,
        &field,
        true,
        "it needs host_port.enabled: what is the node's own has no other way to it",
    );
    findings.check(
        config.stall.on_stall == OnStall::Drop,
        field,
        true,
        "not together with stall.on_stall: pass: the kernel must see nothing of such an uplink that \
         was not judged",
    );
}

fn workers(config: &Config, findings: &mut Findings) {
    let workers = &config.workers;
    findings.check(
        (1..=WORKERS_MAX).contains(&usize::from(workers.count)),
        "workers.count",
        workers.count,
        &format!("1 to {WORKERS_MAX}"),
    );
    findings.check(
        workers.cores.len() <= WORKERS_MAX,
        "workers.cores",
        format!("a list of {}", workers.cores.len()),
        &format!("at most {WORKERS_MAX} CPUs, one worker each"),
    );
    for (index, core) in workers.cores.iter().enumerate() {
        findings.check(
            !workers.cores[..index].contains(core),
            format!("workers.cores[{index}]"),
            core,
            "it is listed twice: one worker per CPU",
        );
    }
    findings.check(
        (1..=1_000_000).contains(&workers.spin_us),
        "workers.spin_us",
        workers.spin_us,
        "1 to 1000000 microseconds",
    );
    findings.check(
        (1..=10_000).contains(&workers.busy_poll_us),
        "workers.busy_poll_us",
        workers.busy_poll_us,
        "1 to 10000 microseconds",
    );
    findings.check(
        (1..=1024).contains(&workers.busy_poll_packets),
        "workers.busy_poll_packets",
        workers.busy_poll_packets,
        "1 to 1024 packets",
    );
}

fn memory(config: &Config, findings: &mut Findings) {
    let memory = &config.packet_memory;
    findings.check(
        memory.frames == 0 || (256..=FRAMES_MAX).contains(&memory.frames),
        "packet_memory.frames",
        memory.frames,
        "256 to 4194304 frames, or 0 for as many as the queues need",
    );
    findings.check(
        (1024..=FRAMES_MAX).contains(&memory.pod_frames),
        "packet_memory.pod_frames",
        memory.pod_frames,
        "1024 to 4194304 frames",
    );
    findings.check(
        matches!(memory.frame_bytes, 2048 | 4096),
        "packet_memory.frame_bytes",
        memory.frame_bytes,
        "2048 or 4096 bytes",
    );
    let table = &config.flow_table;
    flows("ipv4_flows", (table.ipv4_flows, table.ipv4_flows_max), findings);
    flows("ipv6_flows", (table.ipv6_flows, table.ipv6_flows_max), findings);
}

/// What one family's table begins with, and may grow to.
fn flows(name: &str, (first, most): (Option<u32>, Option<u32>), findings: &mut Findings) {
    for (field, flows) in [(name.to_owned(), first), (format!("{name}_max"), most)] {
        let is_possible = flows.is_none_or(|flows| (64..=FLOWS_MAX).contains(&flows));
        let value = flows.unwrap_or_default();
        findings.check(
            is_possible,
            format!("flow_table.{field}"),
            value,
            "64 to 268435455 flows; leave the setting out for what the machine's memory gives",
        );
    }
    let (first, most) = (first.unwrap_or(0), most.unwrap_or(u32::MAX));
    findings.check(
        first <= most,
        format!("flow_table.{name}"),
        first,
        &format!("at most flow_table.{name}_max, which is {most}"),
    );
}

fn sockets(name: &str, sockets: &Sockets, config: &Config, findings: &mut Findings) {
    for (field, ring) in
        [("receive_ring", sockets.receive_ring), ("transmit_ring", sockets.transmit_ring)]
    {
        findings.check(
            ring.is_power_of_two() && (64..=32_768).contains(&ring),
            format!("{name}.{field}"),
            ring,
            "a power of two from 64 to 32768",
        );
    }
    let frames_max = match config.packet_memory.frames {
        0 => FILL_FRAMES_MAX,
        frames => frames.min(FILL_FRAMES_MAX),
    };
    findings.check(
        (32..=frames_max).contains(&sockets.fill_frames),
        format!("{name}.fill_frames"),
        sockets.fill_frames,
        "32 to packet_memory.frames, at most 16384",
    );
}

/// Whole segments come in several buffers, by programs in generic mode.
fn segments(config: &Config, findings: &mut Findings) {
    let whole = config.segments == Segments::Whole;
    findings.check(
        !whole || config.packet_memory.jumbo,
        "segments",
        "whole",
        "packet_memory.jumbo must be true: a segment is longer than a buffer (kernel 6.6 or newer)",
    );
    findings.check(
        !whole || config.pods.xdp_mode != XdpMode::Native,
        "segments",
        "whole",
        "pods.xdp_mode must be auto or generic: a program in native mode turns segmentation offload off",
    );
}

fn ports(config: &Config, findings: &mut Findings) {
    let nat = &config.nat;
    let enough = nat.l4_port_first >= 1024
        && nat
            .l4_port_last
            .checked_sub(nat.l4_port_first)
            .is_some_and(|span| span >= NAT_PORTS_MIN);
    let range = format!("{}-{}", nat.l4_port_first, nat.l4_port_last);
    findings.check(
        enough,
        "nat.l4_port_first",
        &range,
        "at least 64 L4 ports above 1023, the first before the last",
    );
    let node_ports = &config.node_ports;
    findings.check(
        node_ports.first > 0 && node_ports.first <= node_ports.last,
        "node_ports.first",
        format!("{}-{}", node_ports.first, node_ports.last),
        "1 to 65535, the first not after the last",
    );
    let overlap = nat.l4_port_first <= node_ports.last && node_ports.first <= nat.l4_port_last;
    findings.check(
        !overlap,
        "nat.l4_port_first",
        &range,
        "it overlaps node_ports: a reply could not be told from a new connection",
    );
    let addresses =
        [("http.listen", config.http.listen), ("http.proxy_listen", config.http.proxy_listen)];
    for (field, listen) in addresses {
        let Some(listen) = listen else { continue };
        findings.check(
            listen.port() != 0 && !nat.l4_ports().contains(&listen.port()),
            field,
            listen,
            "a port outside the range that sources are translated to",
        );
    }
    if let (Some(listen), Some(proxy)) = (config.http.listen, config.http.proxy_listen) {
        let wanted = "another port than http.listen has";
        findings.check(listen.port() != proxy.port(), "http.proxy_listen", proxy, wanted);
    }
}

fn names(config: &Config, findings: &mut Findings) {
    let name = &config.node_name;
    let legal =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    findings.check(
        name.len() <= 253 && name.bytes().all(legal),
        "node_name",
        format!("{:?}", shortened(name)),
        "at most 253 lower-case letters, digits, '-' and '.', as `kubectl get nodes` shows it",
    );
    if let Some(folder) = &config.manifests {
        findings.check(
            folder.is_absolute(),
            "manifests",
            format!("{:?}", folder.display().to_string()),
            "an absolute path; leave the setting out for none",
        );
    }
}

fn rest(config: &Config, findings: &mut Findings) {
    if let Some(directory) = &config.flow_table.directory {
        findings.check(
            directory.is_absolute(),
            "flow_table.directory",
            directory.display(),
            "an absolute path; leave the setting out for run_directory",
        );
    }
    for (field, path) in
        [("run_directory", &config.run_directory), ("bpf_filesystem", &config.bpf_filesystem)]
    {
        findings.check(path.is_absolute(), field, path.display(), "an absolute path");
    }
    findings.check(
        (20..=60_000).contains(&config.stall.after_ms),
        "stall.after_ms",
        config.stall.after_ms,
        "20 to 60000 milliseconds: the kernel's clock ticks every 4",
    );
    let stall = &config.stall;
    let least = stall.after_ms.saturating_mul(2).max(2_000);
    findings.check(
        stall.restart_after_ms == 0 || (least..=3_600_000).contains(&stall.restart_after_ms),
        "stall.restart_after_ms",
        stall.restart_after_ms,
        "2000 to 3600000 milliseconds, at least twice stall.after_ms, or 0 for never",
    );
    findings.check(
        config.policy.lost_replies_seconds <= 86_400,
        "policy.lost_replies_seconds",
        config.policy.lost_replies_seconds,
        "at most a day (86400): whoever knows of it may send without SYN for so long",
    );
    let windows = config.conntrack.tcp_windows;
    findings.check(
        windows == TcpWindows::Off || config.conntrack.details,
        "conntrack.tcp_windows",
        if windows == TcpWindows::Strict { "strict" } else { "relaxed" },
        "it needs conntrack.details: true, which holds the windows",
    );
    let table = config.host_port.routing_table;
    findings.check(
        (1..253).contains(&table) || (256..u32::MAX - 1).contains(&table),
        "host_port.routing_table",
        table,
        "a table other than default (253), main (254) and local (255)",
    );
    let priority = config.host_port.rule_priority;
    findings.check(
        (2..32_766).contains(&priority),
        "host_port.rule_priority",
        priority,
        "2 to 32765: before the main table's rule, after the local one's",
    );
    for (field, seconds) in config.timeouts.by_name() {
        findings.check(
            (1..=31_536_000).contains(&seconds),
            format!("timeouts.{field}"),
            seconds,
            "1 second to a year",
        );
    }
}
