//! What as many ports as there may be take from the machine: packet memory, file descriptors and mappings.
//! Planned before anything is opened, and told when it will not do.

use dataplane::counters::PORTS_MAX;
use pinning::limits::{LimitError, Resource, ensure, read};

use super::{NodeError, Settings};
use crate::admin_server::CONNECTIONS_MAX;
use crate::ports::{index, receive_queues};

/// Fewest frames that are chosen without being told: half for two queues of 1,024 frames, half for
/// packets under way. Pods have their own.
const FRAMES_CHOSEN_MIN: u32 = 4096;
/// Most frames that are chosen without being told: 32 MB, and 2 MB of the kernel's for each queue of an
/// uplink.
const FRAMES_CHOSEN_MAX: u32 = 16_384;
/// Descriptors of everything that is no port: clients, and log, maps, netlink, HTTP.
const OTHER_DESCRIPTORS: u64 = CONNECTIONS_MAX as u64 + 256;

/// Frames of packet memory: as `asked`, or, for 0, twice what uplinks and the host port keep with
/// the kernel, so that packets under way have as much.
#[must_use]
pub fn packet_frames(asked: u32, kept: u32) -> u32 {
    match asked {
        0 => kept.saturating_mul(2).clamp(FRAMES_CHOSEN_MIN, FRAMES_CHOSEN_MAX),
        asked => asked,
    }
}

/// Why packet memory of `frames` is short when `kept` of them are with the kernel.
#[must_use]
pub fn shortage(frames: u32, kept: u32) -> Option<String> {
    (kept > frames - frames / 4).then(|| {
        format!(
            "uplinks and the host port keep {kept} of {frames} frames with the kernel, so that \
             little is left for packets under way: lower uplink_sockets.fill_frames, give the uplink fewer \
             queues (`ethtool -L`), or raise packet_memory.frames"
        )
    })
}

/// Chooses the size of packet memory, and says when it is short.
///
/// # Errors
/// [`NodeError::Port`] for an uplink whose queues cannot be counted.
pub(super) fn plan_packet_memory(settings: &mut Settings) -> Result<(), NodeError> {
    let mut queues = match settings.host_port {
        Some(_) => u32::try_from(settings.workers.cores.len()).unwrap_or(u32::MAX),
        None => 0,
    };
    for uplink in &settings.uplinks {
        let interface = &uplink.interface;
        let counted = match receive_queues(interface) {
            // Tunnel devices have one.
            Err(_) if uplink.optional && index(interface).is_none() => 1,
            counted => counted
                .map_err(|source| NodeError::Port { interface: interface.clone(), source })?,
        };
        queues = queues.saturating_add(counted);
    }
    let kept = queues.saturating_mul(settings.uplink_sockets.fill_frames);
    settings.umem.frames = packet_frames(settings.umem.frames, kept);
    let frames = settings.umem.frames;
    if let Some(why) = shortage(frames, kept) {
        tracing::warn!("{why}");
    }
    let kernel_bytes_per_socket = u64::from(frames) * 128;
    tracing::info!(frames, kept, kernel_bytes_per_socket, "packet memory");
    Ok(())
}

/// Descriptors of one port: a socket for each queue or, where there are more, each worker, and the
/// attached program. Pods' veths have one queue.
fn descriptors_per_port(workers: usize) -> u64 {
    workers.max(1) as u64 + 1
}

/// Ports that fit into `descriptors`.
fn ports_that_fit(descriptors: u64, workers: usize) -> u64 {
    descriptors.saturating_sub(OTHER_DESCRIPTORS) / descriptors_per_port(workers)
}

/// Raises the limit of open files so far that [`PORTS_MAX`] ports fit, or as far as it goes; then it
/// is told how many do.
pub(super) fn raise_open_files(workers: usize) {
    let needed = PORTS_MAX as u64 * descriptors_per_port(workers) + OTHER_DESCRIPTORS;
    let Err(error) = ensure(Resource::OpenFiles, needed) else { return };
    let allowed = match read(Resource::OpenFiles) {
        Ok(limit) => ensure(Resource::OpenFiles, limit.hard).map_or(limit.soft, |now| now.soft),
        Err(_) => 0,
    };
    tracing::warn!("{}", too_few_files(&error, allowed, workers));
}

fn too_few_files(error: &LimitError, allowed: u64, workers: usize) -> String {
    let fit = ports_that_fit(allowed, workers);
    format!("{error}; until then {fit} of {PORTS_MAX} ports fit, further pods will be refused")
}

/// Where the kernel tells how many mappings a process may have.
const MAPPINGS_ALLOWED: &str = "/proc/sys/vm/max_map_count";
/// Rings of a socket that receives, each mapped by itself; of one that only transmits it is one.
const RINGS: u64 = 4;
/// Mappings of everything that is no port: allocator, threads, packet memory, flow tables, libraries.
const OTHER_MAPPINGS: u64 = 4096;

/// What is wrong when so many mappings, as `vm.max_map_count` allows, do not do for [`PORTS_MAX`] ports
/// of one queue. The kernel's own 65,530 are too few from 57 workers on.
#[must_use]
pub fn too_few_mappings(allowed: u64, workers: usize) -> Option<String> {
    let per_port = RINGS + workers.saturating_sub(1) as u64;
    let needed = PORTS_MAX as u64 * per_port + OTHER_MAPPINGS;
    let fit = allowed.saturating_sub(OTHER_MAPPINGS) / per_port;
    (allowed < needed).then(|| {
        format!(
            "vm.max_map_count is {allowed}, and rings of {PORTS_MAX} ports for {workers} workers need \
             {needed}: raise it (`sysctl vm.max_map_count={needed}`); until then {fit} ports of one queue fit, \
             further pods will be refused"
        )
    })
}

/// How many mappings the kernel allows a process; `None` where it does not tell.
#[must_use]
pub fn mappings_allowed() -> Option<u64> {
    std::fs::read_to_string(MAPPINGS_ALLOWED).ok()?.trim().parse().ok()
}

/// Says when the machine allows too few mappings.
pub(super) fn check_mappings(workers: usize) {
    if let Some(why) = mappings_allowed().and_then(|allowed| too_few_mappings(allowed, workers)) {
        tracing::warn!("{why}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_memory_is_twice_what_the_kernel_keeps_unless_told_otherwise() {
        assert_eq!(packet_frames(0, 2 * 1024), 4096);
        assert_eq!(packet_frames(0, 4 * 1024), 8192);
        assert_eq!(packet_frames(0, 0), FRAMES_CHOSEN_MIN);
        assert_eq!(packet_frames(0, u32::MAX), FRAMES_CHOSEN_MAX);
        assert_eq!(packet_frames(1000, 4 * 1024), 1000);
    }

    #[test]
    fn memory_that_uplinks_nearly_fill_is_told_with_the_settings_that_help() {
        assert_eq!(shortage(4096, 2048), None);
        assert_eq!(shortage(16_384, 12_288), None);
        let told = shortage(16_384, 12_289).expect("short");
        for word in ["12289", "16384", "uplink_sockets.fill_frames", "packet_memory.frames"] {
            assert!(told.contains(word), "{told}");
        }
    }

    #[test]
    fn too_few_open_files_are_told_with_the_number_of_ports_that_fit() {
        let allowed = OTHER_DESCRIPTORS + 768;
        assert_eq!(ports_that_fit(allowed, 1), 384);
        assert_eq!(ports_that_fit(100, 1), 0);
        let error = LimitError::TooLow {
            resource: Resource::OpenFiles,
            needed: OTHER_DESCRIPTORS + 2048,
            hard: allowed,
            source: std::io::Error::from_raw_os_error(1),
        };
        let told = too_few_files(&error, allowed, 1);
        assert!(told.contains("LimitNOFILE") && told.contains("384 of 1024 ports"), "{told}");
    }

    #[test]
    fn too_few_mappings_are_told_with_how_many_ports_fit_and_the_way_out() {
        assert_eq!(too_few_mappings(65_530, 1), None);
        assert_eq!(too_few_mappings(65_530, 56), None);
        let told = too_few_mappings(65_530, 64).expect("too few");
        assert!(told.contains("916 ports of one queue"), "{told}");
        assert!(told.contains("sysctl vm.max_map_count=72704"), "{told}");
        assert!(too_few_mappings(100, 1).expect("too few").contains("0 ports"));
        assert!(mappings_allowed().is_some());
    }

    #[test]
    fn the_limit_of_open_files_is_raised_at_start() {
        raise_open_files(1);
        let now = read(Resource::OpenFiles).unwrap();
        let needed = PORTS_MAX as u64 * 2 + OTHER_DESCRIPTORS;
        assert!(now.soft >= needed.min(now.hard), "{now:?}");
    }
}
