//! Seccomp profiles in the format of container runtimes (runtime-spec, `linux.seccomp`, as Docker,
//! containerd and CRI-O read it), made a filter of the kernel's.

use anyhow::{Context, bail, ensure};
use seccompiler::{BpfMap, BpfProgram};
use serde::Deserialize;
use serde_json::json;

/// As much of the format as the profile uses; anything else is refused.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    /// What becomes of a call that is not named.
    pub default_action: String,
    /// The error it then gets.
    pub default_errno_ret: u32,
    /// Which machines it is for.
    pub architectures: Vec<String>,
    /// What is allowed.
    pub syscalls: Vec<Group>,
}

/// Some calls, and why they are made.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Group {
    /// Their names.
    pub names: Vec<String>,
    /// What becomes of them.
    pub action: String,
    /// Who makes them.
    pub comment: String,
}

impl Profile {
    /// Reads it.
    ///
    /// # Errors
    /// It is not of the format, or does not refuse by default and allow by name.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let profile: Self = serde_json::from_str(text)?;
        ensure!(profile.default_action == "SCMP_ACT_ERRNO", "it must refuse what it does not name");
        for group in &profile.syscalls {
            ensure!(group.action == "SCMP_ACT_ALLOW", "{:?} must be allowed", group.names);
            ensure!(!group.comment.is_empty() && !group.names.is_empty(), "{group:?}");
        }
        Ok(profile)
    }

    /// Every allowed call.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.syscalls.iter().flat_map(|group| &group.names).map(String::as_str)
    }

    /// The filter for this machine, which ends the process on a call that is not allowed.
    ///
    /// # Errors
    /// The profile is not for this machine, or names a call that no machine has.
    pub fn deadly_filter(&self) -> anyhow::Result<BpfProgram> {
        let (arch, own) = match std::env::consts::ARCH {
            arch @ "x86_64" => (arch, "SCMP_ARCH_X86_64"),
            arch @ "aarch64" => (arch, "SCMP_ARCH_AARCH64"),
            other => bail!("no profile is made for {other}"),
        };
        ensure!(self.architectures.iter().any(|known| known == own), "it is not for {own}");
        let rules: Vec<_> = self
            .names()
            .filter(|name| arch == "x86_64" || !ONLY_X86_64.contains(name))
            .map(|name| json!({"syscall": name}))
            .collect();
        let filter = json!({"own": {
            "mismatch_action": "kill_process", "match_action": "allow", "filter": rules,
        }});
        let target = arch.try_into().context("the machine")?;
        let filters: BpfMap =
            seccompiler::compile_from_json(filter.to_string().as_bytes(), target)?;
        filters.into_values().next().context("one filter")
    }
}

/// Calls that came before arm64 did, and have successors there.
const ONLY_X86_64: &[&str] = &[
    "access",
    "alarm",
    "arch_prctl",
    "dup2",
    "epoll_create",
    "epoll_wait",
    "eventfd",
    "getdents",
    "inotify_init",
    "link",
    "lstat",
    "mkdir",
    "open",
    "pause",
    "pipe",
    "poll",
    "readlink",
    "rename",
    "rmdir",
    "select",
    "stat",
    "symlink",
    "unlink",
];
