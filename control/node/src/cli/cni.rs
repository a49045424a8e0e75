//! `xskiff cni`: the plugin's place in the container runtime's configuration. Files only: no node
//! process need run, and none is asked.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::DEFAULT_SOCKET;
use crate::cni::PLUGIN;
use crate::cni::conflist::Entry;
use crate::cni::files::{self, CniFileError, Look};

/// Of `cni`.
#[derive(Debug, Subcommand)]
pub enum CniCommand {
    /// Copy the plugin into the runtime's directory and put it into the configuration in force.
    /// Repeating it is harmless.
    #[command(
        after_help = "The configuration in force is the first file by name, as runtimes take \
        it. What others wrote in it stays as it is. `cni.keep_chained` of the node's configuration \
        does the same for as long as the node runs."
    )]
    Install(InstallArgs),
    /// Take the plugin out of every configuration. What was there before is there again.
    #[command(
        after_help = "The plugin's file stays, unless --remove-plugin is said: runtimes call \
        it once more for each pod that was added with it, and cannot remove such pods without it."
    )]
    Uninstall(UninstallArgs),
    /// Say which configuration is in force and whether the plugin is in it.
    Status(Directories),
}

/// Where the runtime keeps its files.
#[derive(Debug, Args)]
pub struct Directories {
    /// The runtime's directory of configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// The runtime's directory of plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
}

/// Of `cni install`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Where the runtime keeps its files.
    #[command(flatten)]
    pub directories: Directories,
    /// The plugin's file; beside this program when absent.
    #[arg(long, value_name = "FILE")]
    pub plugin: Option<PathBuf>,
    /// Copy the plugin and leave configurations as they are: a node with `cni.keep_chained` puts it
    /// into the one in force.
    #[arg(long, conflicts_with_all = ["conf_dir", "node_absent", "wait_seconds", "log_file",
        "bandwidth_limits"])]
    pub plugin_only: bool,
    /// What a new pod does while no node process is there.
    #[arg(long, value_enum, default_value_t = NodeAbsentArg::Wait)]
    node_absent: NodeAbsentArg,
    /// How long it waits for one, in seconds.
    #[arg(long, default_value_t = 10, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(1..=120))]
    wait_seconds: u32,
    /// A file in which every call of the plugin is noted.
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// What is done about a pod whose limits stand in a bandwidth plugin's own configuration, where
    /// nobody tells the node of them.
    #[arg(long, value_enum, default_value_t = BandwidthLimitsArg::Refuse)]
    bandwidth_limits: BandwidthLimitsArg,
}

/// Of `cni uninstall`.
#[derive(Debug, Args)]
pub struct UninstallArgs {
    #[command(flatten)]
    directories: Directories,
    /// Remove the plugin's file as well, which pods that were added with it still need.
    #[arg(long)]
    remove_plugin: bool,
}

/// What a new pod does while no node process is there.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum NodeAbsentArg {
    /// Wait for one, then have the runtime try again.
    Wait,
    /// Have the runtime try again.
    Fail,
    /// Run without policy until one adopts it.
    Admit,
}

/// What is done about a pod whose limits nobody tells the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BandwidthLimitsArg {
    /// It is refused.
    Refuse,
    /// It runs without, and the plugin's log says so.
    Warn,
}

/// The plugin's place cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum CniCommandError {
    /// A file.
    #[error(transparent)]
    File(#[from] CniFileError),
    /// The plugin is not where it is looked for.
    #[error("{}: {source}; name the plugin's file by --plugin", path.display())]
    Plugin {
        /// Where it was looked for.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A path that the plugin would not take.
    #[error("--log-file {}: give an absolute path", .0.display())]
    Relative(PathBuf),
    /// Standard output cannot be written.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
    /// The answer cannot be printed as JSON.
    #[error("the answer cannot be encoded: {0}")]
    Json(#[from] serde_json::Error),
}

/// What `cni install` did.
#[derive(Debug, Serialize)]
struct Installed {
    /// `None` when it was not asked for.
    file: Option<PathBuf>,
    file_changed: bool,
    plugin: PathBuf,
    plugin_changed: bool,
    cautions: Vec<String>,
}

/// What `cni uninstall` did.
#[derive(Debug, Serialize)]
struct Uninstalled {
    files_changed: Vec<PathBuf>,
    plugin_removed: bool,
}

/// What `cni status` found.
#[derive(Debug, Serialize)]
struct Found {
    #[serde(flatten)]
    look: Look,
    plugin: PathBuf,
    plugin_is_there: bool,
}

/// Does what the command says.
///
/// # Errors
/// [`CniCommandError`].
pub fn execute(command: &CniCommand, socket: &Path, json: bool) -> Result<(), CniCommandError> {
    match command {
        CniCommand::Install(arguments) => install(arguments, socket, json),
        CniCommand::Uninstall(arguments) => uninstall(arguments, json),
        CniCommand::Status(directories) => status(directories, json),
    }
}

fn print<T: Serialize>(found: &T, json: bool, lines: &[String]) -> Result<(), CniCommandError> {
    let text = if json { serde_json::to_string_pretty(found)? } else { lines.join("\n") };
    Ok(writeln!(io::stdout(), "{text}")?)
}

fn install(arguments: &InstallArgs, socket: &Path, json: bool) -> Result<(), CniCommandError> {
    let entry = entry(arguments, socket)?;
    let beside = || std::env::current_exe().map(|own| own.with_file_name(PLUGIN));
    let plugin = match &arguments.plugin {
        Some(plugin) => plugin.clone(),
        None => beside().unwrap_or_else(|_| PathBuf::from(PLUGIN)),
    };
    if let Err(source) = std::fs::metadata(&plugin) {
        return Err(CniCommandError::Plugin { path: plugin, source });
    }
    // First: a chain with a plugin that is not there would let no pod be added.
    let Directories { conf_dir, bin_dir } = &arguments.directories;
    let plugin_changed = files::install_plugin(&plugin, bin_dir)?;
    let chained = (!arguments.plugin_only).then(|| files::chain(conf_dir, &entry)).transpose()?;
    let (file, file_changed, cautions) = chained.map_or_else(Default::default, |chained| {
        (Some(chained.file), chained.written, chained.cautions)
    });
    let plugin = bin_dir.join(PLUGIN);
    let installed = Installed { file, file_changed, plugin, plugin_changed, cautions };
    let said = |path: &Path, changed: bool, did: &str| {
        format!("{}: {}", path.display(), if changed { did } else { "nothing to do" })
    };
    let mut lines = vec![said(&installed.plugin, plugin_changed, "copied")];
    lines.extend(installed.file.iter().map(|file| said(file, file_changed, "chained")));
    lines.extend(installed.cautions.iter().map(|caution| format!("caution: {caution}")));
    print(&installed, json, &lines)
}

fn entry(arguments: &InstallArgs, socket: &Path) -> Result<Entry, CniCommandError> {
    let node_absent = match arguments.node_absent {
        NodeAbsentArg::Wait => "wait",
        NodeAbsentArg::Fail => "fail",
        NodeAbsentArg::Admit => "admit",
    };
    let socket = socket.to_str().unwrap_or(DEFAULT_SOCKET);
    let mut entry = Entry::new(socket, node_absent, arguments.wait_seconds);
    if let Some(file) = &arguments.log_file {
        let path = file.to_str().filter(|path| path.starts_with('/'));
        let path = path.ok_or_else(|| CniCommandError::Relative(file.clone()))?;
        entry.options.push(("logFile", path.into()));
    }
    if arguments.bandwidth_limits == BandwidthLimitsArg::Warn {
        entry.options.push(("bandwidthLimits", "warn".into()));
    }
    Ok(entry)
}

fn uninstall(arguments: &UninstallArgs, json: bool) -> Result<(), CniCommandError> {
    let Directories { conf_dir, bin_dir } = &arguments.directories;
    let files_changed = files::unchain(conf_dir)?;
    let plugin_removed = arguments.remove_plugin && files::remove_plugin(bin_dir)?;
    let mut lines: Vec<String> =
        files_changed.iter().map(|file| format!("{}: unchained", file.display())).collect();
    if plugin_removed {
        lines.push(format!("{}: removed", bin_dir.join(PLUGIN).display()));
    }
    if lines.is_empty() {
        lines.push(format!("{}: nothing to do", conf_dir.display()));
    }
    print(&Uninstalled { files_changed, plugin_removed }, json, &lines)
}

fn status(directories: &Directories, json: bool) -> Result<(), CniCommandError> {
    let plugin = directories.bin_dir.join(PLUGIN);
    let plugin_is_there = plugin.exists();
    let look = files::look(&directories.conf_dir);
    let mut lines = match (&look.file, &look.error) {
        (_, Some(error)) => vec![error.clone()],
        (None, None) => vec![format!("{}: no configuration", directories.conf_dir.display())],
        (Some(file), None) => {
            let chained = if look.chained { "chained" } else { "not chained" };
            vec![format!("{}: {chained} ({})", file.display(), look.plugins.join(", "))]
        }
    };
    let there = if plugin_is_there { "there" } else { "not there" };
    lines.push(format!("{}: {there}", plugin.display()));
    lines.extend(look.cautions.iter().map(|caution| format!("caution: {caution}")));
    print(&Found { look, plugin, plugin_is_there }, json, &lines)
}
