//! Attaching, binding, and what is said when they fail.

use std::time::Duration;

use dataplane::port::{PortId, PortKind};
use xdp_redirect::loader::{Mode, RunningMode};
use xdp_redirect::rules::{OnStall, OurPrefix};
use xdp_redirect::socket::SocketConfig;
use xdp_redirect::umem::{CopyMode, UmemConfig};
use xdp_redirect::{Error, Redirect, Socket, Umem, leftover};

use crate::world::{Plan, eventually, rule, world};

fn small_umem() -> Umem {
    Umem::new(UmemConfig { frames: 2048, ..UmemConfig::default() }).expect("packet memory")
}

/// Soon: a program that another test is just starting has our descriptors until it runs.
fn is_detached(interface: &str) -> bool {
    eventually(|| leftover::find(interface).expect("ask").is_none())
}

#[test]
fn asked_modes_are_got_and_reported_and_detached_on_drop() {
    let Some(_world) = world(Plan::default()) else { return };
    for (mode, got) in [
        (Mode::Native, RunningMode::Native),
        (Mode::Generic, RunningMode::Generic),
        (Mode::Auto, RunningMode::Native),
    ] {
        for multi_buffer in [false, true] {
            let mut redirect = Redirect::load(multi_buffer).expect("load");
            let attached = redirect.attach("left", &rule(0, PortKind::Pod), mode).expect("attach");
            assert_eq!(attached.mode, got);
            assert_eq!(attached.multi_buffer, redirect.multi_buffer());
            let found = leftover::find("left").expect("ask").expect("it is ours");
            assert!(found.program.starts_with("xskiff"), "{found:?}");
            drop(redirect);
            assert!(is_detached("left"), "{mode:?} left a program");
        }
    }
}

#[test]
fn detaching_one_interface_leaves_the_others() {
    let Some(_world) = world(Plan::default()) else { return };
    let mut redirect = Redirect::load(false).expect("load");
    let left = redirect.attach("left", &rule(0, PortKind::Pod), Mode::Native).expect("attach");
    redirect.attach("right", &rule(1, PortKind::Pod), Mode::Native).expect("attach");
    redirect.detach(left.ifindex).expect("detach");
    redirect.detach(left.ifindex).expect("detaching twice is no error");
    assert!(is_detached("left"));
    assert!(leftover::find("right").expect("ask").is_some());
    assert_eq!(redirect.attachments().count(), 1);
}

#[test]
fn second_attachment_is_refused_and_says_who_may_hold_it() {
    let Some(_world) = world(Plan::default()) else { return };
    let mut first = Redirect::load(false).expect("load");
    first.attach("left", &rule(0, PortKind::Pod), Mode::Native).expect("attach");
    let mut second = Redirect::load(false).expect("load");
    let error = second.attach("left", &rule(0, PortKind::Pod), Mode::Auto).expect_err("held");
    assert_eq!(error.errno(), Some(libc::EBUSY));
    let text = error.to_string();
    assert!(text.contains("left") && text.contains("second node process"), "{text}");
}

#[test]
fn absent_interface_is_named() {
    let Some(_world) = world(Plan::default()) else { return };
    let mut redirect = Redirect::load(false).expect("load");
    let error = redirect.attach("eth77", &rule(0, PortKind::Pod), Mode::Auto).expect_err("absent");
    assert!(matches!(error, Error::NoInterface { .. }), "{error:?}");
    assert!(error.to_string().contains("eth77"));
    let error = Socket::bind(&small_umem(), "eth77", 0, &SocketConfig::small());
    assert!(matches!(error.err(), Some(Error::NoInterface { .. })));
}

#[test]
fn large_mtu_without_multi_buffer_is_refused_with_the_way_out() {
    let Some(_world) = world(Plan { mtu: 9000, ..Plan::default() }) else { return };
    let mut redirect = Redirect::load(false).expect("load");
    let error = redirect.attach("left", &rule(0, PortKind::Pod), Mode::Native).expect_err("MTU");
    assert_eq!(error.errno(), Some(libc::ERANGE), "{error}");
    assert!(error.to_string().contains("3506"), "{error}");
}

#[test]
fn queue_that_is_absent_or_busy_is_named() {
    let Some(_world) = world(Plan::default()) else { return };
    let umem = small_umem();
    let error = Socket::bind(&umem, "left", 5, &SocketConfig::small()).err().expect("no queue 5");
    assert_eq!(error.errno(), Some(libc::EINVAL));
    assert!(error.to_string().contains("queue 5"), "{error}");
    let held = Socket::bind(&umem, "left", 0, &SocketConfig::small()).expect("bind");
    let other = small_umem();
    let error = Socket::bind(&other, "left", 0, &SocketConfig::small()).err().expect("busy");
    assert_eq!(error.errno(), Some(libc::EBUSY));
    assert!(error.to_string().contains("another AF_XDP socket"), "{error}");
    drop(held);
    Socket::bind(&other, "left", 0, &SocketConfig::small()).expect("the queue was let go");
}

/// A thread for which the kernel knows no AF_XDP, as one without CONFIG_XDP_SOCKETS: a filter
/// answers `socket(AF_XDP, ...)` by EAFNOSUPPORT.
fn without_af_xdp<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    // Offsets in `struct seccomp_data` (linux/seccomp.h): the number of the call, and the low half
    // of its first argument.
    let statement = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: u16::try_from(code).expect("a code has 16 bits"),
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let jump = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let give = libc::BPF_RET | libc::BPF_K;
    let number = |value: i64| u32::try_from(value).expect("small");
    let errno = libc::SECCOMP_RET_ERRNO | number(libc::EAFNOSUPPORT.into());
    let mut filter = [
        statement(load, 0, 0, 0),
        statement(jump, number(libc::SYS_socket), 0, 3),
        statement(load, 16, 0, 0),
        statement(jump, number(libc::AF_XDP.into()), 0, 1),
        statement(give, errno, 0, 0),
        statement(give, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let program = libc::sock_fprog { len: 6, filter: filter.as_mut_ptr() };
            // SAFETY: takes numbers only; binds this thread and what it starts.
            let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            // SAFETY: the program and its six statements live through the call, which copies them;
            // the filter is this thread's alone and ends with it.
            let result = unsafe {
                libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
            };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn a_kernel_without_af_xdp_is_named_as_such() {
    let Some(_world) = world(Plan::default()) else { return };
    let error = without_af_xdp(|| {
        Umem::new(UmemConfig { frames: 2048, ..UmemConfig::default() }).map(drop).expect_err("none")
    });
    assert_eq!(error.errno(), Some(libc::EAFNOSUPPORT), "{error}");
    assert!(error.to_string().contains("CONFIG_XDP_SOCKETS"), "{error}");
}

#[test]
fn zero_copy_is_refused_by_veth_and_auto_takes_copy() {
    let Some(_world) = world(Plan::default()) else { return };
    let config = UmemConfig { frames: 1024, ..UmemConfig::default() };
    let strict = Umem::new(UmemConfig { copy_mode: CopyMode::ZeroCopy, ..config }).expect("umem");
    let error = Socket::bind(&strict, "left", 0, &SocketConfig::small()).err().expect("veth");
    assert_eq!(error.errno(), Some(libc::EOPNOTSUPP), "{error}");
    let lenient = Umem::new(config).expect("umem");
    let socket = Socket::bind(&lenient, "left", 0, &SocketConfig::small()).expect("bind");
    assert!(!socket.is_zero_copy());
}

#[test]
fn sockets_join_after_the_first_ones_interface_is_gone() {
    let Some(_world) = world(Plan::default()) else { return };
    let umem = small_umem();
    let first = Socket::bind(&umem, "left", 0, &SocketConfig::small()).expect("bind");
    crate::world::ip(&["link", "del", "left"]);
    Socket::bind(&umem, "right", 0, &SocketConfig::small()).expect("bind to another interface");
    drop(first);
    assert!(eventually(|| umem.census().free == umem.census().total), "{:?}", umem.census());
}

#[test]
fn passing_on_stall_is_refused_for_translated_prefixes() {
    let Some(_world) = world(Plan::default()) else { return };
    let mut redirect = Redirect::load(false).expect("load");
    let prefix = dataplane::lpm::Prefix::host("10.96.0.1".parse().expect("address"));
    let translated = OurPrefix { prefix, translated: true, on_stall: OnStall::Pass };
    let error = redirect.change_prefixes(&[translated], &[]).expect_err("refused");
    assert!(matches!(error, Error::PassRefused { .. }), "{error}");
    assert!(error.to_string().contains("10.96.0.1/32"), "{error}");
}

#[test]
fn numbers_beyond_the_tables_are_refused() {
    let Some(_world) = world(Plan::default()) else { return };
    let mut redirect = Redirect::load(false).expect("load");
    let umem = small_umem();
    let socket = Socket::bind(&umem, "left", 0, &SocketConfig::small()).expect("bind");
    assert!(redirect.set_socket(PortId(2048), 0, 0, socket.fd()).is_err());
    assert!(redirect.set_socket(PortId(0), 64, 0, socket.fd()).is_err());
    assert!(redirect.set_socket(PortId(0), 0, 64, socket.fd()).is_err());
    assert!(redirect.heartbeat(64).is_err());
    assert!(redirect.attach("left", &rule(2048, PortKind::Pod), Mode::Auto).is_err());
    redirect.set_stall_after(Duration::from_secs(1)).expect("any limit is possible");
    redirect.remove_socket(PortId(7), 3).expect("removing what is not there is no error");
    for wrong in [
        UmemConfig { chunk_bytes: 1024, ..UmemConfig::default() },
        UmemConfig { frames: 10, ..UmemConfig::default() },
        UmemConfig { fill_ring: 1000, ..UmemConfig::default() },
    ] {
        assert!(matches!(Umem::new(wrong), Err(Error::Setting { .. })), "{wrong:?}");
    }
    let large = SocketConfig { transmit_ring: 4096, ..SocketConfig::default() };
    assert!(matches!(Socket::bind(&umem, "right", 0, &large).err(), Some(Error::Setting { .. })));
}
