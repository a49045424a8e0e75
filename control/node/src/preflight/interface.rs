//! One interface: is it there, is it Ethernet, do its packets fit, who holds it, which ways out it has; and,
//! where that is asked for, what its driver can.

use std::io;

use dataplane::port::{PortId, PortKind};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::tc::TcAttribute;
use xdp_redirect::ethtool::{Offload, offload};
use xdp_redirect::leftover;
use xdp_redirect::limits::QUEUES_MAX;
use xdp_redirect::loader::{Mode, RunningMode};
use xdp_redirect::rules::PortRule;
use xdp_redirect::socket::{SocketConfig, TRANSMIT_CHUNKS_MAX};
use xdp_redirect::umem::{CopyMode, UmemConfig};
use xdp_redirect::{Redirect, Socket, Umem};

use super::finding::Finding;
use super::interface_ways;
use crate::netlink::view::Link;
use crate::netlink::{decode, queueing};
use crate::node::packet_bytes_max;
use crate::ports::receive_queues;

/// Largest packet of a veth whose program takes frames of one buffer only.
const SINGLE_BUFFER_MTU: u32 = 3506;

/// What was seen of one interface.
pub struct Seen {
    /// Its checks.
    pub findings: Vec<Finding>,
    /// Its receive queues.
    pub queues: u32,
}

/// Checks it; with `attach` by attaching to it.
#[must_use]
pub fn check(name: &str, attach: bool) -> Seen {
    let (link, qdiscs) = match ask(name) {
        Ok(Some(known)) => known,
        Ok(None) => {
            let remedy = "`ip link` lists what there is";
            return seen(vec![Finding::fail(&of("interface", name), "there is none", remedy)], 1);
        }
        Err(error) => {
            let said = format!("the kernel does not tell: {error}");
            return seen(vec![Finding::fail(&of("interface", name), said, "")], 1);
        }
    };
    if link.mac.is_none() {
        let remedy = "layer-3 devices (tun, WireGuard, IPIP, lo) cannot be uplinks";
        let found = "it carries no Ethernet frames";
        return seen(vec![Finding::fail(&of("interface", name), found, remedy)], 1);
    }
    let queues = receive_queues(name).unwrap_or(link.receive_queues);
    let mut findings = vec![
        presence(name, &link),
        mtu(name, link.mtu),
        queue_count(name, queues),
        holder(name),
        offloads(name),
        shaping(name, &qdiscs),
    ];
    findings.extend(interface_ways::check(name, &link, queues, attach));
    findings.extend(driver(name, queues, attach));
    seen(findings, queues)
}

fn seen(findings: Vec<Finding>, queues: u32) -> Seen {
    Seen { findings, queues }
}

fn of(check: &str, interface: &str) -> String {
    format!("{check} {interface}")
}

/// The link, and the kinds of its queueing disciplines.
fn ask(name: &str) -> io::Result<Option<(Link, Vec<String>)>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let driver = tokio::spawn(connection);
        let mut links = std::pin::pin!(handle.link().get().execute());
        let mut found = None;
        while let Some(message) = links.try_next().await.map_err(io::Error::other)? {
            found = found.or(decode::decode_link(&message).filter(|(_, link)| link.name == name));
        }
        let Some((index, link)) = found else { return Ok(None) };
        let mut answers = std::pin::pin!(handle.qdisc().get().execute());
        let mut kinds = Vec::new();
        while let Some(message) = answers.try_next().await.map_err(io::Error::other)? {
            if u32::try_from(message.header.index).is_ok_and(|own| own == index) {
                kinds.extend(message.attributes.into_iter().filter_map(|one| match one {
                    TcAttribute::Kind(kind) => Some(kind),
                    _ => None,
                }));
            }
        }
        driver.abort();
        Ok(Some((link, kinds)))
    })
}

fn presence(name: &str, link: &Link) -> Finding {
    let kind = link.virtual_kind.as_deref().unwrap_or("a device");
    let check = of("interface", name);
    if link.up {
        return Finding::pass(&check, format!("up, {kind}"));
    }
    let remedy = format!("`ip link set {name} up`, or its cable");
    Finding::warn(&check, format!("{kind} without a carrier"), remedy)
}

fn mtu(name: &str, mtu: u32) -> Finding {
    let (check, chunk) = (of("mtu", name), UmemConfig::default().chunk_bytes);
    let most = packet_bytes_max(chunk) * u32::from(TRANSMIT_CHUNKS_MAX);
    if mtu > most {
        let remedy = format!("lower it to {most} or less, or raise packet_memory.frame_bytes");
        return Finding::fail(
            &check,
            format!("{mtu} does not fit {TRANSMIT_CHUNKS_MAX} buffers of {chunk} bytes"),
            remedy,
        );
    }
    if mtu > SINGLE_BUFFER_MTU
        && xdp_redirect::loader::kernel_release() < xdp_redirect::loader::FRAGS_SINCE
    {
        let remedy =
            format!("lower it to {SINGLE_BUFFER_MTU} or less, or use a kernel of 6.6 or newer");
        return Finding::fail(
            &check,
            format!("{mtu}, and this kernel takes one buffer a frame"),
            remedy,
        );
    }
    let buffers = mtu.div_ceil(packet_bytes_max(chunk)).max(1);
    Finding::pass(&check, format!("{mtu}: {buffers} buffers of {chunk} bytes a packet at most"))
}

fn queue_count(name: &str, queues: u32) -> Finding {
    let check = of("queues", name);
    if queues > QUEUES_MAX {
        let remedy = format!("`ethtool -L {name} combined {QUEUES_MAX}`");
        return Finding::fail(
            &check,
            format!("{queues} receive queues, {QUEUES_MAX} at most"),
            remedy,
        );
    }
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get());
    if (queues as usize) < cpus {
        let remedy = format!(
            "one worker receives a queue: for {cpus} workers, `ethtool -L {name} combined {cpus}` \
             where the device has as many; others share by hand-off"
        );
        return Finding::warn(&check, format!("{queues} receive queues, {cpus} CPUs"), remedy);
    }
    Finding::pass(&check, format!("{queues} receive queues, a socket each"))
}

fn holder(name: &str) -> Finding {
    let check = of("xdp-program", name);
    match leftover::attached(name) {
        Ok(None) => Finding::pass(&check, "nothing is attached"),
        Ok(Some(found)) => {
            let program = found.name.as_deref().unwrap_or("(its name is not told)");
            let what = format!("program {program}, number {}, {:?}", found.program_id, found.mode);
            if found.is_ours() {
                let remedy =
                    "a node runs here, or one was killed whose program the next takes over";
                return Finding::warn(&check, format!("{what}: of xskiff"), remedy);
            }
            let remedy =
                "stop whoever attached it (`bpftool link`), or `ip link set dev NAME xdp off`";
            Finding::fail(&check, what, remedy.replace("NAME", name))
        }
        Err(error) => Finding::warn(&check, error.to_string(), ""),
    }
}

/// Of a physical uplink they matter only for what the node itself sends; of a veth, frames come
/// unfinished from its other end.
fn offloads(name: &str) -> Finding {
    let check = of("offloads", name);
    let all = [Offload::TransmitChecksum, Offload::TcpSegmentation];
    let on: Result<Vec<&str>, _> = all
        .into_iter()
        .filter_map(|one| match offload(name, one) {
            Ok(true) => Some(Ok(one.label())),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        })
        .collect();
    match on {
        Ok(on) if on.is_empty() => Finding::pass(&check, "none is on"),
        Ok(on) => Finding::pass(
            &check,
            format!("{} on; checksums that are left unfinished are finished here", on.join(", ")),
        ),
        Err(error) => Finding::warn(&check, error.to_string(), ""),
    }
}

/// What AF_XDP sends does not pass the interface's discipline; what it receives, no filter of an
/// ingress one.
fn shaping(name: &str, kinds: &[String]) -> Finding {
    let check = of("qdisc", name);
    let limits: Vec<&str> =
        kinds.iter().map(String::as_str).filter(|kind| queueing::limits(kind)).collect();
    if limits.is_empty() {
        return Finding::pass(&check, "none that limits or filters");
    }
    let remedy =
        "packets of pods and services pass them by: take the limits elsewhere, or do without";
    Finding::warn(&check, format!("{}: bypassed", limits.join(", ")), remedy)
}

fn driver(name: &str, queues: u32, attach: bool) -> Vec<Finding> {
    if !attach {
        let why = "not tried on the interface itself";
        let remedy = "--attach tries it; some drivers reset the link then";
        return vec![Finding::skipped(&of("driver", name), why, remedy)];
    }
    let mut findings = vec![attachment(name, queues)];
    for (mode, word) in [(CopyMode::ZeroCopy, "zero-copy"), (CopyMode::Copy, "copy")] {
        let check = of(&format!("bind-{word}"), name);
        findings.push(match (bind_all(name, queues, mode), mode) {
            (Ok(1), _) => Finding::pass(&check, "a socket binds to its queue"),
            (Ok(bound), _) => Finding::pass(&check, format!("a socket binds to each of {bound} queues")),
            (Err((queue, error)), CopyMode::ZeroCopy) => {
                let said = format!("queue {queue} of {queues}: {error}");
                Finding::warn(&check, said, "packets are copied; all works")
            }
            (Err((queue, error)), _) => {
                let said = format!("queue {queue} of {queues}: {error}");
                let remedy = "what comes by a queue without a socket is lost: give the interface fewer \
                              (`ethtool -L`)";
                Finding::fail(&check, said, remedy)
            }
        });
    }
    findings
}

/// Binds a socket to each queue, as a node does, all at once: a driver may have memory or hardware for some
/// alone. Says how many, or which one could not be bound.
fn bind_all(name: &str, queues: u32, mode: CopyMode) -> Result<usize, (u32, xdp_redirect::Error)> {
    let config = UmemConfig { frames: 4096, copy_mode: mode, ..UmemConfig::default() };
    let umem = Umem::new(config).map_err(|error| (0, error))?;
    let bind = |queue| Socket::bind(&umem, name, queue, &SocketConfig::small());
    let bound: Result<Vec<Socket>, _> =
        (0..queues).map(|queue| bind(queue).map_err(|error| (queue, error))).collect();
    bound.map(|sockets| sockets.len())
}

/// With no rule that anything is ours, so that everything passes.
fn attachment(name: &str, queues: u32) -> Finding {
    let check = of("attach", name);
    let rule = PortRule { port: PortId(0), kind: PortKind::Uplink, queues, everything: false };
    let attached =
        Redirect::load(true).and_then(|mut redirect| redirect.attach(name, &rule, Mode::Auto));
    match attached {
        Ok(attachment) if attachment.mode == RunningMode::Generic => {
            let errno = attachment.native_refused.map(io::Error::from_raw_os_error);
            let why = errno.map_or_else(String::new, |error| format!(": {error}"));
            let remedy = "generic mode works and is slower; a veth needs as many receive queues as its \
                          peer has transmit queues";
            Finding::warn(&check, format!("in generic mode, native is refused{why}"), remedy)
        }
        Ok(attachment) => {
            Finding::pass(&check, format!("in {:?} mode", attachment.mode).to_lowercase())
        }
        Err(error) => Finding::fail(&check, error.to_string(), ""),
    }
}
