//! `xskiff run`: the configuration file, the log, the runtime, and the node in it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use control::admin::cni::ChainStatus;
use control::config::{Config, ConfigError};
use control::text_file::{self, Stamp, TextFileError};
use pinning::plan::{PlanError, Request, Workers, plan};
use pinning::topology::{Topology, TopologyError, interface_node};
use tokio::sync::watch;

use super::caught::caught;
use super::cluster_source::{Overrides, SourceError, follow_cluster};
use super::configuration::InForce;
use super::detach::Detached;
use super::from_config::Machine;
use super::{
    ConfigUpdate, Node, NodeError, Predecessor, Preparing, Publisher, Settings, Sources,
    Termination,
};
use crate::cni::conflist::Entry;
use crate::cni::keeper::{Plan, keep};
use crate::privileges;
use crate::supervisor::Supervisor;
use crate::workers::capacity::FlowCapacities;

/// What is logged unless `RUST_LOG` says otherwise. Requests that fail are told with their kind and
/// server by who follows them; kube would tell each of them again.
const LOGGED: &str = "info,kube_client::client::builder=off";
/// How often the configuration file is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Largest configuration file, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// The node process could not be launched, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The configuration file cannot be read.
    #[error("configuration {0}")]
    Read(#[from] TextFileError),
    /// The configuration is refused.
    #[error("configuration {path}: {source}")]
    Config {
        /// The file.
        path: String,
        /// Every field that is wrong.
        source: ConfigError,
    },
    /// The cluster cannot be followed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The machine's CPUs cannot be read.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The workers have no place.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The kernel does not give what a start needs.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The node.
    #[error(transparent)]
    Node(#[from] NodeError),
}

impl LaunchError {
    /// What is wrong, one by one.
    #[must_use]
    pub fn each(&self) -> Vec<String> {
        match self {
            Self::Config { source, .. } => source.each(),
            other => vec![other.to_string()],
        }
    }
}

/// Reads the configuration at `path`.
///
/// # Errors
/// [`LaunchError::Read`] or [`LaunchError::Config`].
pub fn read_config(path: &Path) -> Result<Config, LaunchError> {
    let text = text_file::read_named(path, CONFIG_BYTES_MAX)?;
    Config::parse(&text)
        .map_err(|source| LaunchError::Config { path: path.display().to_string(), source })
}

/// Runs the node that the file at `path` describes until SIGTERM or SIGINT; `overrides` outrank the
/// file. With `take_over` it takes the place of the process that runs, if one does.
///
/// # Errors
/// [`LaunchError`], before anything is touched when the configuration is at fault.
pub fn run(path: &Path, overrides: Overrides, take_over: bool) -> Result<(), LaunchError> {
    start_log();
    // Before there is a second thread.
    privileges::reduce();
    let supervisor = Supervisor::from_environment();
    // Looked at first: a change while it is read is seen by the watch.
    let stamp = Stamp::of(path);
    let mut config = read_config(path)?;
    caution(&config);
    let in_force = InForce::new(&config, overrides.clone());
    overrides.apply(&mut config);
    config.check().map_err(|source| LaunchError::Config {
        path: format!("{} and the command line", path.display()),
        source,
    })?;
    let settings = settle(&config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Threads for what would hold up this one: none of them starts a node.
        .on_thread_start(privileges::settle)
        .build()
        .map_err(|source| LaunchError::System { action: "start the control runtime", source })?;
    runtime.block_on(async move {
        // From here on to the end: what comes while nobody waits for it is heard by the next who does.
        let mut termination = Termination::listen()?;
        let (cluster, mut cluster_updates) = cluster::feed::feed();
        // Followed until the node has ended.
        let followed = follow_cluster(&config, cluster).await?;
        if config.kubernetes.enabled {
            supervisor.status("waiting for the whole cluster to be known");
        }
        let preparing = Preparing::begin(settings)?;
        let mut publisher = Publisher::default();
        let take = |changes| publisher.take(changes, |_| {});
        let run_directory = preparing.settings().run_directory.clone();
        let find = || take_over.then(|| Predecessor::find(&run_directory)).transpose();
        // Where a process is that serves, it answers them until it has handed over.
        let is_served = find()?.flatten().is_some();
        let probes = config.http.listen.filter(|_| !is_served);
        if !followed.complete(probes, termination.told(), &mut cluster_updates, take).await? {
            supervisor.stopping();
            return Ok(());
        }
        let chain = keep_chained(&config);
        let update = ConfigUpdate { config: Some(Arc::new(config)), refused: None };
        let (config, config_updates) = watch::channel(update);
        tokio::spawn(watch_file(path.to_owned(), stamp, config));
        let sources = Sources {
            publisher,
            cluster: cluster_updates,
            config: config_updates,
            in_force: Some(in_force),
            chain,
        };
        let predecessor = find()?.flatten();
        let mut node = Node::start(preparing, sources, predecessor).await?;
        privileges::settle();
        node.supervise(supervisor).map_err(|source| LaunchError::System {
            action: "start the thread that feeds the service manager's watchdog",
            source,
        })?;
        tracing::info!("ready");
        let stop = async {
            termination.told().await;
            Ok(())
        };
        let ended = node.run(stop).await;
        drop(followed);
        Ok(ended?)
    })
}

/// Takes away what a node process with the configuration at `path` has left behind.
///
/// # Errors
/// [`LaunchError`]; that one runs is one.
pub fn detach(path: &Path) -> Result<Detached, LaunchError> {
    let settings = settle(&read_config(path)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| LaunchError::System { action: "start the control runtime", source })?;
    Ok(runtime.block_on(super::detach::detach(&settings))?)
}

/// Where workers run, and everything else the file says.
fn settle(config: &Config) -> Result<Settings, LaunchError> {
    let root = Path::new("/");
    let workers = if config.workers.cores.is_empty() {
        Workers::Count(config.workers.count)
    } else {
        let cores = config.workers.cores.iter().map(|core| pinning::CpuId(*core));
        Workers::Cores(cores.collect())
    };
    let nic = config.uplinks.first();
    let request = Request {
        workers,
        reserve_control: config.workers.idle != control::config::Idle::Adaptive,
        nic_node: nic.and_then(|uplink| interface_node(root, &uplink.interface)),
    };
    let plan = plan(&Topology::read()?, &request)?;
    for note in &plan.notes {
        if note.is_warning() {
            tracing::warn!("{note}");
        } else {
            tracing::info!("{note}");
        }
    }
    if let Err(error) = pinning::apply::restrict_current_thread(&plan.control) {
        tracing::warn!(%error, "control threads run where the system puts them");
    }
    let machine = Machine::read(&plan).map_err(|source| LaunchError::System {
        action: "read the host's name and memory",
        source,
    })?;
    let settings = Settings::from_config(config, &machine);
    say_capacities(&settings.workers.capacities);
    Ok(settings)
}

/// How far the flow tables may grow, and whether that was derived from the machine's memory.
fn say_capacities(capacities: &FlowCapacities) {
    let FlowCapacities { v4, v6, per_endpoint, memory_bytes, .. } = *capacities;
    for (table, family) in [("ipv4", v4), ("ipv6", v6)] {
        let (flows, max, derived) = (family.initial, family.max, family.is_derived);
        tracing::info!(table, flows, max, derived, memory_bytes, per_endpoint, "flow capacity");
    }
}

/// One line per event on standard error; `RUST_LOG` chooses what (tracing-subscriber's syntax).
pub fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(LOGGED));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first log.
    let _ = log.try_init();
}

/// Sends every good content of the file, and why a bad one is refused. A change is read once two
/// looks agree, so that a file that is being written is not read by halves.
async fn watch_file(
    path: PathBuf,
    mut in_force: Result<Stamp, TextFileError>,
    config: watch::Sender<ConfigUpdate>,
) {
    let mut last = in_force.clone();
    loop {
        tokio::time::sleep(LOOK).await;
        let look = Stamp::of(&path);
        let is_settled = look == last;
        last = look;
        if !is_settled || last == in_force {
            continue;
        }
        in_force = last.clone();
        let object = format!("configuration {}", path.display());
        let file = path.clone();
        let read = caught(move || read_config(&file).map_err(|error| error.to_string())).await;
        match read.unwrap_or_else(|panicked| Err(format!("cannot be read: {panicked}"))) {
            Ok(read) => {
                caution(&read);
                config.send_replace(ConfigUpdate { config: Some(Arc::new(read)), refused: None });
            }
            Err(error) => config.send_modify(|update| update.refused = Some((object, error))),
        }
    }
}

/// Looks after the CNI plugin's place in the runtime's configuration, if the configuration says so.
fn keep_chained(config: &Config) -> Option<watch::Receiver<ChainStatus>> {
    let cni = &config.cni;
    if !cni.keep_chained {
        return None;
    }
    let socket = config.run_directory.join("admin.sock").display().to_string();
    let plan = Plan {
        configurations: cni.conf_dir.clone(),
        plugins: cni.bin_dir.clone(),
        entry: Entry::new(&socket, cni.node_absent.label(), cni.wait_seconds),
    };
    let (sender, told) = watch::channel(ChainStatus::default());
    tokio::spawn(keep(plan, sender));
    Some(told)
}

/// Logs what is taken and should be thought over.
fn caution(config: &Config) {
    for caution in config.cautions() {
        tracing::warn!("configuration: {caution}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_is_absent_or_wrong_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("xskiff.yaml");
        let error = read_config(&path).unwrap_err().to_string();
        assert!(error.contains("xskiff.yaml"), "{error}");
        std::fs::write(&path, "workers: {cuont: 2}").unwrap();
        let error = read_config(&path).unwrap_err().to_string();
        assert!(error.contains("cuont"), "{error}");
        std::fs::write(&path, "workers: {count: 2}").unwrap();
        assert_eq!(read_config(&path).unwrap().workers.count, 2);
        std::fs::write(&path, b"workers: {count: 2}\n# \xe4\n").unwrap();
        let error = read_config(&path).unwrap_err().to_string();
        assert!(error.contains("xskiff.yaml is not UTF-8 from line 2 on"), "{error}");
        std::fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
        let error = read_config(&path).unwrap_err().to_string();
        assert!(error.contains("more than 1048576 bytes"), "{error}");
        let error = read_config(directory.path()).unwrap_err().to_string();
        assert!(error.contains("directory"), "{error}");
    }

    /// It went to who had waited for the cluster, and to nobody.
    #[tokio::test]
    async fn a_signal_that_comes_while_nobody_waits_for_it_is_heard_by_the_next_who_does() {
        let mut termination = Termination::listen().unwrap();
        let early = tokio::time::timeout(Duration::from_millis(10), termination.told()).await;
        assert!(early.is_err(), "nobody has told it");
        let own = std::process::id().to_string();
        let told = std::process::Command::new("kill").args(["-TERM", &own]).status().unwrap();
        assert!(told.success());
        tokio::time::sleep(Duration::from_millis(50)).await;
        tokio::time::timeout(Duration::from_secs(20), termination.told()).await.expect("heard");
    }

    #[test]
    fn a_configuration_may_come_through_a_pipe_of_the_shell() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let writer = path.clone();
        let writer = std::thread::spawn(move || std::fs::write(writer, "workers: {count: 3}"));
        assert_eq!(read_config(&path).unwrap().workers.count, 3);
        writer.join().unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_turns_bad_leaves_the_last_good_one_and_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("xskiff.yaml");
        std::fs::write(&path, "").unwrap();
        let good = ConfigUpdate { config: Some(Arc::default()), refused: None };
        let (sender, mut updates) = watch::channel(good);
        tokio::spawn(watch_file(path.clone(), Stamp::of(&path), sender));
        std::fs::write(&path, "timeouts: {udp_seconds: many}").unwrap();
        updates.changed().await.unwrap();
        let update = updates.borrow_and_update().clone();
        assert_eq!(update.config.as_deref(), Some(&Config::default()));
        assert!(update.refused.unwrap().1.contains("udp_seconds"));
        std::fs::write(&path, "timeouts: {udp_seconds: 77}").unwrap();
        updates.changed().await.unwrap();
        let update = updates.borrow_and_update().clone();
        assert_eq!(update.config.unwrap().timeouts.udp_seconds, 77);
        assert_eq!(update.refused, None);
    }

    /// As a kubelet updates a ConfigMap volume, and as an editor that removes before it writes.
    #[tokio::test(start_paused = true)]
    async fn a_file_whose_link_is_swapped_or_that_goes_and_comes_back_is_read() {
        use std::os::unix::fs::symlink;
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for (version, seconds) in [("..one", 61), ("..two", 62)] {
            std::fs::create_dir(at(version)).unwrap();
            let text = format!("timeouts: {{icmp_seconds: {seconds}}}");
            std::fs::write(at(version).join("xskiff.yaml"), text).unwrap();
        }
        symlink("..one", at("..data")).unwrap();
        symlink("..data/xskiff.yaml", at("xskiff.yaml")).unwrap();
        let path = at("xskiff.yaml");
        let (sender, mut updates) = watch::channel(ConfigUpdate::default());
        tokio::spawn(watch_file(path.clone(), Stamp::of(&path), sender));
        tokio::time::sleep(LOOK / 2).await;
        symlink("..two", at("..data_tmp")).unwrap();
        std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        updates.changed().await.unwrap();
        let update = updates.borrow_and_update().clone();
        assert_eq!(update.config.unwrap().timeouts.icmp_seconds, 62);
        std::fs::remove_file(&path).unwrap();
        updates.changed().await.unwrap();
        let update = updates.borrow_and_update().clone();
        assert_eq!(update.config.unwrap().timeouts.icmp_seconds, 62);
        assert!(update.refused.unwrap().1.contains("No such file"));
        std::fs::write(&path, "timeouts: {icmp_seconds: 63}").unwrap();
        updates.changed().await.unwrap();
        let update = updates.borrow_and_update().clone();
        assert_eq!((update.config.unwrap().timeouts.icmp_seconds, update.refused), (63, None));
    }
}
