//! The cluster's API servers, and how they are followed.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Config;
use super::validate::Findings;
use crate::shown::shortened;

/// Servers of either list, at most.
const SERVERS_MAX: usize = 64;

/// The cluster's API servers, and how they are followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kubernetes {
    /// Whether they are followed; in place of a folder of manifests.
    pub enabled: bool,
    /// `https://ADDRESS:PORT` of each, the preferred one first; never a Service's address.
    pub api_servers: Vec<String>,
    /// `https://ADDRESS:PORT` of relays (`xskiff relay`), asked before API servers.
    pub relays: Vec<String>,
    /// A kubeconfig file, whose current context says who we are, and, without `api_servers`, which
    /// server there is; absent: `service_account`.
    pub kubeconfig: Option<PathBuf>,
    /// Directory with a ServiceAccount's `token` and `ca.crt`, which are read again as they rotate.
    pub service_account: PathBuf,
    /// PEM file of whom servers' certificates must come from; absent: what the credentials say.
    pub ca_file: Option<PathBuf>,
    /// Seconds that a connection may take to be made; one is given up when nobody is there for four
    /// times that.
    pub connect_timeout_seconds: u32,
    /// Seconds that an answer may take to begin, and a list to go on.
    pub request_timeout_seconds: u32,
    /// Seconds without a byte after which a watch's connection is given up.
    pub silence_seconds: u32,
    /// Watches are asked for anew after at least so many seconds.
    pub watch_seconds_min: u32,
    /// Watches are asked for anew after at most so many seconds.
    pub watch_seconds_max: u32,
    /// A list that has lost more than this part of the pods or endpoints, in percent, is believed
    /// once a second one agrees.
    pub hold_percent: u32,
    /// Seconds until that second list is asked for.
    pub hold_seconds: u32,
    /// Root's own directory for what was last in force, which a start without API servers serves.
    pub state_directory: PathBuf,
    /// Seconds from a change until it is written there, at most one writing in so long.
    pub snapshot_seconds: u32,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            enabled: false,
            api_servers: Vec::new(),
            relays: Vec::new(),
            kubeconfig: None,
            service_account: PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount"),
            ca_file: None,
            connect_timeout_seconds: 5,
            request_timeout_seconds: 30,
            silence_seconds: 120,
            watch_seconds_min: 240,
            watch_seconds_max: 360,
            hold_percent: 30,
            hold_seconds: 5,
            state_directory: PathBuf::from("/var/lib/xskiff"),
            snapshot_seconds: 30,
        }
    }
}

/// Everything that is wrong with the section.
pub(super) fn check(config: &Config, findings: &mut Findings) {
    let kubernetes = &config.kubernetes;
    if let Some(folder) = config.manifests.as_ref().filter(|_| kubernetes.enabled) {
        findings.check(
            false,
            "kubernetes.enabled",
            true,
            &format!(
                "manifests names the folder {} as well: take either away, since one cluster state \
                 has one source",
                folder.display()
            ),
        );
    }
    for (field, list) in [
        ("kubernetes.api_servers", &kubernetes.api_servers),
        ("kubernetes.relays", &kubernetes.relays),
    ] {
        let most = format!("at most {SERVERS_MAX} servers");
        findings.check(
            list.len() <= SERVERS_MAX,
            field,
            format!("a list of {}", list.len()),
            &most,
        );
        for (index, server) in list.iter().enumerate().take(SERVERS_MAX) {
            let field = format!("{field}[{index}]");
            if let Err(wanted) = check_server(server) {
                findings.check(false, &field, format!("{:?}", shortened(server)), wanted);
            }
            let again = list[..index].contains(server);
            findings.check(!again, field, shortened(server), "it is listed twice: keep one");
        }
    }
    let paths = [
        ("kubernetes.kubeconfig", kubernetes.kubeconfig.as_ref()),
        ("kubernetes.ca_file", kubernetes.ca_file.as_ref()),
        ("kubernetes.service_account", Some(&kubernetes.service_account)),
        ("kubernetes.state_directory", Some(&kubernetes.state_directory)),
    ];
    for (field, path) in paths {
        let Some(path) = path else { continue };
        findings.check(path.is_absolute(), field, path.display(), "an absolute path");
    }
    times(kubernetes, findings);
}

fn times(kubernetes: &Kubernetes, findings: &mut Findings) {
    for (field, seconds, least, most) in [
        ("connect_timeout_seconds", kubernetes.connect_timeout_seconds, 1, 60),
        ("request_timeout_seconds", kubernetes.request_timeout_seconds, 1, 600),
        ("silence_seconds", kubernetes.silence_seconds, 1, 3600),
        ("watch_seconds_min", kubernetes.watch_seconds_min, 1, 3600),
        ("watch_seconds_max", kubernetes.watch_seconds_max, 1, 3600),
        ("hold_seconds", kubernetes.hold_seconds, 1, 3600),
        ("snapshot_seconds", kubernetes.snapshot_seconds, 1, 86_400),
    ] {
        findings.check(
            (least..=most).contains(&seconds),
            format!("kubernetes.{field}"),
            seconds,
            &format!("{least} to {most} seconds"),
        );
    }
    findings.check(
        kubernetes.watch_seconds_min <= kubernetes.watch_seconds_max,
        "kubernetes.watch_seconds_min",
        kubernetes.watch_seconds_min,
        &format!("at most kubernetes.watch_seconds_max, which is {}", kubernetes.watch_seconds_max),
    );
    findings.check(
        (1..=100).contains(&kubernetes.hold_percent),
        "kubernetes.hold_percent",
        kubernetes.hold_percent,
        "1 to 100 percent",
    );
}

/// What a server's address must be.
pub fn check_server(server: &str) -> Result<(), &'static str> {
    const WANTED: &str = "https://ADDRESS:PORT, such as https://10.0.0.1:6443";
    let (scheme, rest) = server.split_once("://").ok_or(WANTED)?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:[]".contains(&byte);
    if authority.is_empty() || authority.len() > 300 || !authority.bytes().all(legal) {
        return Err(WANTED);
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => {
            let (host, port) = v6.split_once(']').ok_or(WANTED)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| WANTED)?;
            (host, port.strip_prefix(':').or(if port.is_empty() { Some("") } else { None }))
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, Some("")),
        },
    };
    let port = port.ok_or(WANTED)?;
    if host.is_empty() || !(port.is_empty() || port.parse::<u16>().is_ok_and(|port| port != 0)) {
        return Err(WANTED);
    }
    let is_own = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|own| own.is_loopback());
    match scheme {
        "https" => Ok(()),
        "http" if is_own => Ok(()),
        "http" => Err("https://: without TLS anybody on the way could say what policy is in force"),
        _ => Err(WANTED),
    }
}
