//! Everything that can go wrong while setting up, each naming the thing and the way out.

use std::io;

/// A failed set-up step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The interface does not exist in this network namespace.
    #[error("interface {interface} does not exist in this network namespace: see `ip link`")]
    NoInterface {
        /// Kernel name of the interface.
        interface: Box<str>,
    },
    /// The XDP program could not be loaded.
    #[error("cannot load the XDP program: {reason}{}", load_advice(*errno))]
    Load {
        /// What the loader said.
        reason: String,
        /// The kernel's errno, 0 when it was not the kernel that refused.
        errno: i32,
    },
    /// The XDP program could not be attached.
    #[error(
        "cannot attach the XDP program to {interface} in {mode} mode: {source}{}",
        attach_advice(source)
    )]
    Attach {
        /// Kernel name of the interface.
        interface: Box<str>,
        /// The mode that was tried last.
        mode: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// An attachment cannot be made to outlive the process, or what one before left cannot be used.
    #[error(
        "BPF filesystem, {path}: {source}; is it mounted (`mount -t bpf bpf \
         /sys/fs/bpf`)?"
    )]
    Pins {
        /// The folder or pin.
        path: Box<str>,
        /// What the kernel said.
        source: io::Error,
    },
    /// A map of the XDP program could not be changed.
    #[error("cannot change map {map} of the XDP program: {source}{}", map_advice(source))]
    Map {
        /// The map.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Passing to the kernel on stall was asked for where it would break translated connections.
    #[error("on_stall: pass is refused for {subject}: {reason}; use on_stall: drop")]
    PassRefused {
        /// The prefix.
        subject: String,
        /// Why.
        reason: &'static str,
    },
    /// A number is beyond what the program's tables hold.
    #[error("{what} {value} is out of range: at most {max}")]
    OutOfRange {
        /// What the number is.
        what: &'static str,
        /// The number.
        value: u64,
        /// The largest that is possible.
        max: u64,
    },
    /// Packet memory could not be set up.
    #[error("cannot set up packet memory of {bytes} bytes: {source}{}", memory_advice(source))]
    Memory {
        /// Its size.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// No packet socket for whole segments.
    #[error(
        "cannot open a packet socket for whole TCP segments: {source}{}",
        packet_socket_advice(source)
    )]
    PacketSocket {
        /// What the kernel said.
        source: io::Error,
    },
    /// No region of pods has room for another port.
    #[error(
        "packet memory of pods is used up: {used} of {capacity} frames are promised to pods' queues, \
         {frames} more are needed; raise packet_memory.pod_frames, or remove a pod"
    )]
    PodMemory {
        /// Frames the port needs.
        frames: u32,
        /// Frames promised.
        used: u32,
        /// Frames that can be.
        capacity: u32,
    },
    /// A setting cannot work.
    #[error("{setting} = {value} cannot work: {reason}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: u64,
        /// Why, and what can.
        reason: &'static str,
    },
    /// A socket could not be made or bound.
    #[error(
        "cannot bind an AF_XDP socket to {interface} queue {queue}: {source}{}",
        bind_advice(source)
    )]
    Bind {
        /// Kernel name of the interface.
        interface: Box<str>,
        /// Its receive queue.
        queue: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A socket option was refused.
    #[error("cannot set {option} on the AF_XDP socket of {interface} queue {queue}: {source}")]
    SocketOption {
        /// Kernel name of the interface.
        interface: Box<str>,
        /// Its receive queue.
        queue: u32,
        /// The option.
        option: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A question to the kernel failed.
    #[error("cannot {action}: {source}")]
    Kernel {
        /// What was asked.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A worker does not take commands, or has no room.
    #[error("the worker's command queue is full ({capacity} commands wait): it does not tick")]
    WorkerBusy {
        /// Commands the queue holds.
        capacity: usize,
    },
}

impl Error {
    /// The kernel's error number, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Attach { source, .. }
            | Self::Map { source, .. }
            | Self::Memory { source, .. }
            | Self::Bind { source, .. }
            | Self::SocketOption { source, .. }
            | Self::Pins { source, .. }
            | Self::PacketSocket { source }
            | Self::Kernel { source, .. } => source.raw_os_error(),
            Self::Load { errno, .. } => Some(*errno).filter(|errno| *errno != 0),
            _ => None,
        }
    }
}

/// Digs the kernel's error out of a chain of library errors.
pub(crate) fn io_error(error: &(dyn std::error::Error + 'static)) -> io::Error {
    let mut cause = Some(error);
    while let Some(current) = cause {
        if let Some(found) = current.downcast_ref::<io::Error>()
            && let Some(errno) = found.raw_os_error()
        {
            return io::Error::from_raw_os_error(errno);
        }
        cause = current.source();
    }
    io::Error::other(error.to_string())
}

const PRIVILEGE: &str =
    "; run as root, or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_NET_RAW";

fn load_advice(errno: i32) -> &'static str {
    match errno {
        libc::EPERM | libc::EACCES => PRIVILEGE,
        libc::ENOSYS => "; this kernel is built without BPF",
        libc::EINVAL => "; a kernel of 6.1 or newer is needed",
        _ => "",
    }
}

fn attach_advice(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EBUSY) => {
            "; another XDP program holds it, perhaps of a second node process: \
             find it with `ip -details link` and `bpftool link`, and stop it first"
        }
        Some(libc::EEXIST) => {
            "; a device on top of it (VXLAN, VLAN) has an XDP program, or it has one in another \
             mode: stop whoever attached that first"
        }
        Some(libc::ERANGE) => {
            "; the MTU of the interface or of its veth peer is too large for frames of one buffer: \
             lower it to 3506 or less, or use a kernel of 6.6 or newer with multi-buffer frames"
        }
        Some(libc::ENOSPC) => {
            "; the veth peer has more transmit queues than this end has receive queues: \
             create the pair with equal `numrxqueues` and `numtxqueues`, or use generic mode"
        }
        Some(libc::EPERM | libc::EACCES) => PRIVILEGE,
        Some(libc::EOPNOTSUPP) => "; its driver has no native XDP: use generic mode",
        Some(libc::EINVAL) => {
            "; its driver refuses XDP as it is set up now (large receive offload, ring or queue \
             settings): see the kernel log, or use generic mode"
        }
        Some(libc::ENODEV) => "; the interface went away",
        _ => "",
    }
}

fn bind_advice(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EBUSY) => {
            "; another AF_XDP socket holds this queue, perhaps of a second node process: \
             stop it first"
        }
        Some(libc::EINVAL) => {
            "; the interface has no such queue (see `ethtool -l`), \
             or its MTU does not fit the packet memory's chunks"
        }
        Some(libc::EOPNOTSUPP) => "; its driver has no zero-copy: use copy mode",
        Some(libc::EPERM | libc::EACCES) => PRIVILEGE,
        Some(libc::EAFNOSUPPORT) => "; this kernel is built without CONFIG_XDP_SOCKETS",
        Some(libc::ENOBUFS | libc::ENOMEM) => {
            "; raise the memory lock limit (`ulimit -l unlimited`) or take smaller rings"
        }
        Some(libc::ENODEV) => "; the interface does not exist",
        _ => "",
    }
}

fn packet_socket_advice(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; it takes CAP_NET_RAW",
        Some(libc::EAFNOSUPPORT) => "; this kernel is built without CONFIG_PACKET",
        _ => "",
    }
}

fn memory_advice(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => PRIVILEGE,
        Some(libc::ENOBUFS | libc::ENOMEM) => {
            "; take fewer frames, or raise the memory lock limit (`ulimit -l unlimited`)"
        }
        Some(libc::EAFNOSUPPORT) => "; this kernel is built without CONFIG_XDP_SOCKETS",
        Some(libc::ENOENT | libc::ENXIO) => {
            "; packet memory of copy mode is held by a tap device: provide /dev/net/tun"
        }
        _ => "",
    }
}

fn map_advice(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => "; the table is full",
        Some(libc::EPERM | libc::EACCES) => PRIVILEGE,
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said when the kernel refuses a step with `errno`.
    fn said(make: fn(io::Error) -> Error, errno: i32) -> String {
        make(io::Error::from_raw_os_error(errno)).to_string()
    }

    fn load(source: io::Error) -> Error {
        let errno = source.raw_os_error().unwrap_or(0);
        Error::Load { reason: source.to_string(), errno }
    }

    fn attach(source: io::Error) -> Error {
        Error::Attach { interface: "eth7".into(), mode: "native", source }
    }

    fn bind(source: io::Error) -> Error {
        Error::Bind { interface: "eth7".into(), queue: 3, source }
    }

    fn memory(source: io::Error) -> Error {
        Error::Memory { bytes: 4096, source }
    }

    fn map(source: io::Error) -> Error {
        Error::Map { map: "prefixes4", source }
    }

    /// Most of these kernels and drivers cannot be had in a test: what they answer can.
    #[test]
    fn every_refusal_of_the_kernel_names_the_way_out() {
        type Case = (fn(io::Error) -> Error, i32, &'static str);
        let cases: [Case; 21] = [
            (load, libc::EPERM, "CAP_BPF"),
            (load, libc::ENOSYS, "without BPF"),
            (load, libc::EINVAL, "6.1 or newer"),
            (attach, libc::EBUSY, "bpftool link"),
            (attach, libc::ERANGE, "3506 or less"),
            (attach, libc::ENOSPC, "numtxqueues"),
            (attach, libc::EACCES, "CAP_NET_ADMIN"),
            (attach, libc::EOPNOTSUPP, "generic mode"),
            (attach, libc::EINVAL, "generic mode"),
            (attach, libc::ENODEV, "went away"),
            (bind, libc::EBUSY, "stop it first"),
            (bind, libc::EINVAL, "ethtool -l"),
            (bind, libc::EOPNOTSUPP, "copy mode"),
            (bind, libc::EPERM, "CAP_NET_RAW"),
            (bind, libc::EAFNOSUPPORT, "CONFIG_XDP_SOCKETS"),
            (bind, libc::ENOBUFS, "ulimit -l"),
            (memory, libc::EAFNOSUPPORT, "CONFIG_XDP_SOCKETS"),
            (memory, libc::ENOBUFS, "fewer frames"),
            (memory, libc::ENOENT, "/dev/net/tun"),
            (map, libc::E2BIG, "table is full"),
            (map, libc::EPERM, "CAP_BPF"),
        ];
        for (make, errno, way_out) in cases {
            let text = said(make, errno);
            assert!(text.contains(way_out), "{errno}: {text}");
            assert_eq!(make(io::Error::from_raw_os_error(errno)).errno(), Some(errno));
        }
        for (make, thing) in [(attach as fn(io::Error) -> Error, "eth7"), (bind, "eth7 queue 3")] {
            assert!(said(make, libc::EIO).contains(thing));
        }
        assert!(said(map, libc::EIO).contains("prefixes4"));
    }

    /// aya wraps what the kernel said, more than once.
    #[test]
    fn the_kernels_word_is_found_in_a_chain_of_errors() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] io::Error);
        let chain = Outer(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        assert_eq!(io_error(&chain).raw_os_error(), Some(libc::EAFNOSUPPORT));
    }
}
