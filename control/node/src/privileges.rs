//! What the kernel must allow a node process, for how long, and how the rest is given up.
//!
//! [`NEEDED`] is the whole list; deployments are held to it by tests. [`reduce`] is the first thing
//! that a process does, so that every thread begins with no more than the list; [`settle`] gives up
//! what only a start needs. Workers and every other thread that needs nothing call [`drop_all`].
//! Capabilities belong to threads (capabilities(7)): what one gives up, those that it starts later do
//! not have, and those that run already keep.
//!
//! The process stays root without them: its files are root's, and a uid of 0 opens them as any owner
//! does. What it may not do any more is to pass over the modes of others' files.

use caps::{CapSet, Capability, CapsHashSet};

/// How long a capability is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// While the process lives: pods come and go.
    Always,
    /// Until the node serves.
    UntilReady,
    /// While the process lives, and in effect only in a thread that is about to use it.
    OnUse,
}

/// A capability that a node process uses.
#[derive(Debug, Clone, Copy)]
pub struct Needed {
    /// Which.
    pub capability: Capability,
    /// For what.
    pub why: &'static str,
    /// How long.
    pub held: Held,
    /// What is lost without it; `None` when nothing works.
    pub without: Option<&'static str>,
    /// Another one that includes it.
    included_in: Option<Capability>,
}

impl Needed {
    const fn new(capability: Capability, held: Held, why: &'static str) -> Self {
        Self { capability, why, held, without: None, included_in: None }
    }
}

/// All that a node process uses. `tests/tests/real_node/privileges.rs` runs a node with these alone,
/// and without each of them.
pub const NEEDED: [Needed; 6] = [
    Needed::new(
        Capability::CAP_NET_ADMIN,
        Held::Always,
        "links, routes, rules, neighbours, attaching XDP programs, settings below /proc/sys/net",
    ),
    Needed::new(Capability::CAP_NET_RAW, Held::Always, "opening AF_XDP sockets"),
    Needed {
        included_in: Some(Capability::CAP_SYS_ADMIN),
        ..Needed::new(Capability::CAP_BPF, Held::UntilReady, "loading the XDP program and its maps")
    },
    Needed {
        included_in: Some(Capability::CAP_SYS_ADMIN),
        ..Needed::new(
            Capability::CAP_PERFMON,
            Held::UntilReady,
            "offsets into packets that only the packet tells (the header length of IPv4, extension \
             headers of IPv6), which the kernel's verifier allows nobody else",
        )
    },
    Needed {
        without: Some(
            "packet memory must fit RLIMIT_MEMLOCK (LimitMEMLOCK= of a systemd unit; containers \
             have 8 MB or less), where each pod's counts by itself",
        ),
        ..Needed::new(
            Capability::CAP_IPC_LOCK,
            Held::OnUse,
            "packet memory, which the kernel counts as locked memory",
        )
    },
    Needed {
        without: Some(
            "offloads of pods stay as they are: checksums are finished here, at a cost per packet, \
             and programs that netlink has left attached are not found",
        ),
        ..Needed::new(
            Capability::CAP_SYS_ADMIN,
            Held::OnUse,
            "entering pods' network namespaces, to turn off offloads that leave packets unfinished",
        )
    },
];

/// The first capability that nothing works without and this thread lacks.
///
/// # Errors
/// The kernel does not tell.
pub fn missing() -> Result<Option<&'static Needed>, caps::errors::CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    Ok(missing_of(&permitted))
}

fn missing_of(permitted: &CapsHashSet) -> Option<&'static Needed> {
    NEEDED.iter().find(|needed| needed.without.is_none() && !has(permitted, needed))
}

/// Whether `permitted` has it, or one that includes it.
fn has(permitted: &CapsHashSet, needed: &Needed) -> bool {
    let all = [Some(needed.capability), needed.included_in];
    all.into_iter().flatten().any(|capability| permitted.contains(&capability))
}

/// Gives up everything but [`NEEDED`], and the ability to win anything by executing a file
/// (`PR_SET_NO_NEW_PRIVS`). To be called before the process has a second thread.
pub fn reduce() {
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        tracing::warn!(%error, "privileges could be won again by executing a file");
    }
    let kept: CapsHashSet = NEEDED.iter().map(|needed| needed.capability).collect();
    // Only CAP_SETPCAP may, and nothing is executed that could profit.
    for capability in caps::all().difference(&kept) {
        let _ = caps::drop(None, CapSet::Bounding, *capability);
    }
    report(keep(&kept));
}

/// Gives up what only a start needs, in this thread.
pub fn settle() {
    let kept = |needed: &&Needed| needed.held != Held::UntilReady;
    report(keep(&NEEDED.iter().filter(kept).map(|needed| needed.capability).collect()));
}

/// Gives up everything, in this thread: it has its sockets, files and memory, and needs no more.
pub fn drop_all() {
    report(keep(&CapsHashSet::new()));
}

/// Keeps those of `kept` that this thread has. What is held for use alone is permitted and not in
/// effect.
fn keep(kept: &CapsHashSet) -> Result<(), caps::errors::CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let permitted: CapsHashSet = permitted.intersection(kept).copied().collect();
    let on_use = |capability: &Capability| {
        let of = |needed: &&Needed| needed.capability == *capability;
        NEEDED.iter().find(of).is_some_and(|needed| needed.held == Held::OnUse)
    };
    // In effect is only what is permitted, so that goes first; ambient follows both by itself.
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    let effective = permitted.iter().filter(|own| !on_use(own)).copied().collect();
    caps::set(None, CapSet::Effective, &effective)?;
    caps::set(None, CapSet::Permitted, &permitted)
}

fn report(result: Result<(), caps::errors::CapsError>) {
    if let Err(error) = result {
        tracing::warn!(%error, "privileges that are not needed could not be given up");
    }
}

/// Puts `capability`, one held [`Held::OnUse`], in effect in this thread. Nothing is said when it is
/// not permitted: what it was for then fails with the kernel's own words.
pub fn raise(capability: Capability) {
    let _ = caps::raise(None, CapSet::Effective, capability);
}

/// Runs `act` with `capability` in effect.
pub fn with<T>(capability: Capability, act: impl FnOnce() -> T) -> T {
    let had = caps::has_cap(None, CapSet::Effective, capability).unwrap_or(true);
    let _lowered = (!had).then(|| Lowered(capability));
    raise(capability);
    act()
}

/// Takes a capability out of effect, also when a panic ends what it was for.
struct Lowered(Capability);

impl Drop for Lowered {
    fn drop(&mut self) {
        let _ = caps::drop(None, CapSet::Effective, self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_and_what_includes_it_will_do() {
        let without = |gone: &[Capability]| {
            let left: CapsHashSet =
                caps::all().into_iter().filter(|own| !gone.contains(own)).collect();
            missing_of(&left).map(|needed| needed.capability)
        };
        let (admin, raw) = (Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW);
        assert_eq!(without(&[]), None);
        assert_eq!(without(&[admin]), Some(admin));
        assert_eq!(without(&[raw]), Some(raw));
        let (bpf, system) = (Capability::CAP_BPF, Capability::CAP_SYS_ADMIN);
        assert_eq!(without(&[bpf]), None, "CAP_SYS_ADMIN includes it");
        assert_eq!(without(&[bpf, system]), Some(bpf));
        assert_eq!(without(&[Capability::CAP_PERFMON, system]), Some(Capability::CAP_PERFMON));
        assert_eq!(without(&[Capability::CAP_IPC_LOCK, system]), None, "a limit does as well");
    }

    /// Sets of this thread, as (permitted, effective).
    fn held() -> (CapsHashSet, CapsHashSet) {
        let read = |set| caps::read(None, set).unwrap();
        (read(CapSet::Permitted), read(CapSet::Effective))
    }

    /// In a thread of its own, since others of this process need theirs.
    #[test]
    fn a_thread_keeps_the_list_then_less_then_nothing() {
        std::thread::spawn(|| {
            let before = held().0;
            let of = |kept: &dyn Fn(&Needed) -> bool| -> CapsHashSet {
                let kept = NEEDED.iter().filter(|needed| kept(needed));
                kept.map(|needed| needed.capability).filter(|own| before.contains(own)).collect()
            };
            keep(&NEEDED.iter().map(|needed| needed.capability).collect()).unwrap();
            let in_effect = |needed: &Needed| needed.held != Held::OnUse;
            assert_eq!(held(), (of(&|_| true), of(&in_effect)));
            for raised in [Capability::CAP_SYS_ADMIN, Capability::CAP_IPC_LOCK] {
                let both = |needed: &Needed| in_effect(needed) || needed.capability == raised;
                with(raised, || assert_eq!(held().1, of(&both)));
            }
            assert_eq!(held().1, of(&in_effect), "in effect no longer than it is used");
            settle();
            let lasting = |needed: &Needed| needed.held != Held::UntilReady;
            assert_eq!(held(), (of(&lasting), of(&|own| own.held == Held::Always)));
            drop_all();
            assert_eq!(held(), (CapsHashSet::new(), CapsHashSet::new()));
            with(Capability::CAP_SYS_ADMIN, || assert_eq!(held().1, CapsHashSet::new()));
        })
        .join()
        .unwrap();
    }
}
