//! The plugin's place in the container runtime's configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Config;
use super::validate::Findings;

/// What a pod does that is added while no node process is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeAbsent {
    /// It waits, within a bound.
    #[default]
    Wait,
    /// It is tried again by the runtime.
    Fail,
    /// It runs without policy until the node adopts it.
    Admit,
}

impl NodeAbsent {
    /// As the plugin's configuration writes it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Fail => "fail",
            Self::Admit => "admit",
        }
    }
}

/// The plugin's place in the container runtime's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cni {
    /// Whether the node puts the plugin into the chain and keeps it there.
    pub keep_chained: bool,
    /// The runtime's directory of configurations, whose first file it uses.
    pub conf_dir: PathBuf,
    /// The runtime's directory of plugins, where `xskiff-cni` must be.
    pub bin_dir: PathBuf,
    /// Whether pods that ran before the plugin was in the chain are adopted.
    pub adopt_running_pods: bool,
    /// The plugin's `nodeAbsent`.
    pub node_absent: NodeAbsent,
    /// The plugin's `waitSeconds`.
    pub wait_seconds: u32,
}

impl Default for Cni {
    fn default() -> Self {
        Self {
            keep_chained: false,
            conf_dir: PathBuf::from("/etc/cni/net.d"),
            bin_dir: PathBuf::from("/opt/cni/bin"),
            adopt_running_pods: true,
            node_absent: NodeAbsent::Wait,
            wait_seconds: 10,
        }
    }
}

/// Everything that is wrong with the section.
pub(super) fn check(config: &Config, findings: &mut Findings) {
    let cni = &config.cni;
    for (field, path) in [("cni.conf_dir", &cni.conf_dir), ("cni.bin_dir", &cni.bin_dir)] {
        findings.check(path.is_absolute(), field, path.display(), "an absolute path");
    }
    findings.check(
        (1..=120).contains(&cni.wait_seconds),
        "cni.wait_seconds",
        cni.wait_seconds,
        "1 to 120 seconds: kubelets give a pod's network four minutes",
    );
}
