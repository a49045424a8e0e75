//! `xskiff kube-proxy status` and `clean`: looks with the tools that own the rules, and removes by them.
//! Nothing is removed without `--yes`, and nothing while a kube-proxy runs, which would put it back.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::{Command, Stdio};

use clap::Subcommand;
use serde::Serialize;

use super::names::NFTABLES_TABLE;
use super::saved::{self, TablePlan};
use super::{IPVS_INTERFACE, Kind, Trace, look, nftables};

/// Of `kube-proxy`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum KubeProxyCommand {
    /// Say what runs or is left of kube-proxy; exits with 1 when something is.
    Status,
    /// Print what would be removed, or with --yes remove it.
    Clean {
        /// Remove it.
        #[arg(long)]
        yes: bool,
    },
}

/// kube-proxy could not be looked for or cleaned up after.
#[derive(Debug, thiserror::Error)]
pub enum KubeProxyError {
    /// nftables cannot be listed.
    #[error("cannot list nftables: {0}; run as root, in the node's network namespace")]
    Nftables(io::Error),
    /// A tool failed.
    #[error("{tool}: {said}")]
    Tool {
        /// The program.
        tool: String,
        /// What it said.
        said: String,
    },
    /// It runs.
    #[error(
        "kube-proxy runs and would put back what is removed: end it first \
         (`kubectl -n kube-system delete daemonset kube-proxy`, where a DaemonSet runs it)"
    )]
    Runs,
    /// `status` found something.
    #[error("{0} traces of kube-proxy; `xskiff kube-proxy clean` prints what it would remove")]
    Found(usize),
    /// Standard output.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

/// The interfaces of iptables, whose rules do not show in each other's.
const TOOLS: [&str; 4] = ["iptables-legacy", "ip6tables-legacy", "iptables-nft", "ip6tables-nft"];

/// What a tool is to remove.
#[derive(Debug, Serialize)]
struct Removal {
    /// The command.
    command: Vec<String>,
    /// What it reads.
    input: String,
}

/// All that was found.
#[derive(Debug, Serialize)]
struct Found {
    /// Each trace, in words.
    traces: Vec<String>,
    /// What removes it.
    removals: Vec<Removal>,
    /// What is left to the operator.
    by_hand: Vec<String>,
    /// Tools that are not installed, so that nobody looked there.
    missing_tools: Vec<String>,
    #[serde(skip)]
    runs: bool,
}

/// Does it.
///
/// # Errors
/// [`KubeProxyError`].
pub fn run(command: KubeProxyCommand, json: bool) -> Result<(), KubeProxyError> {
    let found = find()?;
    let yes = matches!(command, KubeProxyCommand::Clean { yes: true });
    if yes && found.runs {
        return Err(KubeProxyError::Runs);
    }
    let text = if json {
        let text = serde_json::to_string_pretty(&found).map_err(io::Error::other)?;
        format!("{text}\n")
    } else {
        describe(&found, command)
    };
    io::stdout().write_all(text.as_bytes())?;
    match command {
        KubeProxyCommand::Status if !found.traces.is_empty() => {
            Err(KubeProxyError::Found(found.traces.len()))
        }
        KubeProxyCommand::Clean { yes: true } => found.removals.iter().try_for_each(remove),
        _ => Ok(()),
    }
}

fn find() -> Result<Found, KubeProxyError> {
    let by_kernel = look().map_err(KubeProxyError::Nftables)?.traces;
    // The tools tell more of iptables.
    let mut traces: Vec<Trace> = by_kernel
        .into_iter()
        .filter(|trace| trace.kind != Kind::Iptables && trace.kind.is_certain())
        .collect();
    let (mut removals, mut missing_tools) = (Vec::new(), Vec::new());
    for tool in TOOLS {
        let Some(saved) = output(&format!("{tool}-save"))? else {
            missing_tools.push(format!("{tool}-save"));
            continue;
        };
        let plans = saved::plan(&saved);
        traces.extend(plans.iter().map(|plan| trace_of(tool, plan)));
        if !plans.is_empty() {
            let command = vec![format!("{tool}-restore"), "--noflush".to_owned()];
            removals.push(Removal { command, input: saved::removal(&plans) });
        }
    }
    let mut families: Vec<&str> = nftables::chains()
        .map_err(KubeProxyError::Nftables)?
        .into_iter()
        .filter(|chain| chain.table == NFTABLES_TABLE)
        .map(|chain| chain.family)
        .collect();
    families.dedup();
    for family in families {
        let words = ["nft", "delete", "table", family, NFTABLES_TABLE];
        let command = words.map(str::to_owned).to_vec();
        removals.push(Removal { command, input: String::new() });
    }
    let of = |kind| traces.iter().any(|trace| trace.kind == kind);
    let by_hand = if of(Kind::Ipvs) {
        let words = "services of IPVS that nothing else needs";
        vec![format!("ip link del {IPVS_INTERFACE}"), format!("ipvsadm --clear   # {words}")]
    } else {
        Vec::new()
    };
    let runs = of(Kind::Process);
    let traces = traces.iter().map(ToString::to_string).collect();
    Ok(Found { traces, removals, by_hand, missing_tools, runs })
}

fn trace_of(tool: &str, plan: &TablePlan) -> Trace {
    let (chains, jumps) = (plan.chains.len(), plan.jumps.len());
    let what =
        format!("{tool}, table {}: {chains} chains, {jumps} rules that lead there", plan.table);
    Trace { kind: Kind::Iptables, what }
}

fn describe(found: &Found, command: KubeProxyCommand) -> String {
    let mut text = String::new();
    if found.traces.is_empty() {
        text.push_str("nothing of kube-proxy was found\n");
    }
    for trace in &found.traces {
        let _ = writeln!(text, "found: {trace}");
    }
    for tool in &found.missing_tools {
        let _ = writeln!(text, "not looked at: {tool} is not installed");
    }
    let verb = match command {
        KubeProxyCommand::Status => return text,
        KubeProxyCommand::Clean { yes: false } => "would run",
        KubeProxyCommand::Clean { yes: true } => "runs",
    };
    for removal in &found.removals {
        let _ = writeln!(text, "{verb}: {}", removal.command.join(" "));
        for line in removal.input.lines() {
            let _ = writeln!(text, "    {line}");
        }
    }
    for line in &found.by_hand {
        let _ = writeln!(text, "to be done by hand: {line}");
    }
    if !found.removals.is_empty() && verb == "would run" {
        text.push_str("nothing was changed; `xskiff kube-proxy clean --yes` does it\n");
    }
    text
}

/// What a tool writes; `None` when there is none.
pub(crate) fn output(tool: &str) -> Result<Option<String>, KubeProxyError> {
    let failed = |said: String| KubeProxyError::Tool { tool: tool.to_owned(), said };
    match Command::new(tool).stdin(Stdio::null()).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error.to_string())),
        Ok(output) if output.status.success() => {
            Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
        }
        // A kernel without the older interface has nothing in it.
        Ok(output) if tool.contains("-legacy") && lacks_legacy(&output.stderr) => {
            Ok(Some(String::new()))
        }
        Ok(output) => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

fn lacks_legacy(said: &[u8]) -> bool {
    let said = String::from_utf8_lossy(said);
    said.contains("Table does not exist") || said.contains("can't initialize")
}

fn remove(removal: &Removal) -> Result<(), KubeProxyError> {
    let Some((tool, words)) = removal.command.split_first() else { return Ok(()) };
    let failed = |said: String| KubeProxyError::Tool { tool: tool.clone(), said };
    let mut child = Command::new(tool)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut input) = child.stdin.take() {
        // A tool that has ended says why below.
        let _ = input.write_all(removal.input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
