//! `xskiff demo`: a node does its whole job on real traffic, and three outages, before your eyes.
//!
//! It makes a laboratory of namespaces ([`scene`]), runs this very binary as the node in it
//! ([`node`]), drives traffic through it ([`traffic`], [`steps`]), shows how fast a download is beside the
//! kernel's own forwarding ([`comparison`]), breaks it ([`outages`]), and
//! compares what it saw with what had to be seen ([`expectation`]). Meanwhile it draws a picture
//! of the node ([`picture`], [`screen`]) from what the node itself says over its admin socket.
//!
//! It ends by itself within [`TIME_MAX`] and leaves nothing behind, however it ends.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::cli::client::ClientError;
use crate::lab::{LabError, Laboratory, registry, remove_on_signal};

pub mod comparison;
pub mod expectation;
pub mod files;
pub mod node;
pub mod outages;
pub mod picture;
pub mod scene;
pub mod screen;
pub mod steps;
pub mod traffic;

use expectation::{Expectation, Outcome, Seen, Summary};
use files::Files;
use node::Node;
use picture::Painter;
use scene::Scene;
use screen::Screen;

/// The demo ends by itself within this time, if need be by giving up.
pub const TIME_MAX: Duration = Duration::from_secs(120);

/// Time kept for removing everything after giving up.
const REMOVAL_TIME: Duration = Duration::from_secs(5);

/// The laboratory's label, also of one that is kept.
const LABEL: &str = "demo";

/// Show a node at work in network namespaces of its own, then three outages.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Leave the node up to play with, and say how
    #[arg(long)]
    keep: bool,
    /// Remove what an earlier --keep left, and do nothing else
    #[arg(long, conflicts_with = "keep")]
    remove: bool,
    /// Size of each large upload, in MiB, and of downloads up to 128
    #[arg(long, default_value_t = 256, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=4096))]
    upload_mib: u64,
}

/// Why there is no demo, or not the one that was expected.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The laboratory.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The node's admin socket.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The node did not become ready.
    #[error("the node {state} ({within:?} after its start); the end of its log: {log}")]
    NotReady {
        /// What it did or said instead.
        state: String,
        /// How long it was awaited.
        within: Duration,
        /// The last lines of its log.
        log: String,
    },
    /// This program's own file cannot be found.
    #[error("cannot find the program that runs: {0}")]
    OwnProgram(std::io::Error),
    /// Something came out otherwise than expected.
    #[error("{differing} of {all} expectations came out otherwise")]
    Differs {
        /// How many.
        differing: usize,
        /// Out of how many.
        all: usize,
    },
    /// The result cannot be printed as JSON.
    #[error("the result cannot be encoded: {0}")]
    Json(#[from] serde_json::Error),
}

/// A screen that the steps, the painter and a signal write to.
pub type SharedScreen = Arc<Mutex<Screen>>;

/// What the steps have in common.
pub struct Stage {
    rows: Vec<Expectation>,
    screen: SharedScreen,
}

impl Stage {
    /// Does one step, says at once how it came out, and keeps it for the closing table.
    pub fn expect(
        &mut self,
        name: &str,
        expected: &str,
        work: impl FnOnce() -> Result<Seen, DemoError>,
    ) {
        let row = expectation::expect(name, expected, work);
        screen::lock(&self.screen).say_row(&row);
        self.rows.push(row);
    }

    /// Says what comes next.
    pub fn say(&self, text: &str) {
        screen::lock(&self.screen).say(text);
    }
}

/// Runs the demo; `json` prints the result as JSON and nothing else on standard output.
///
/// # Errors
/// [`DemoError::Differs`] after a whole demo with a difference, or why there was none.
pub fn run(arguments: &Arguments, json: bool) -> Result<(), DemoError> {
    let program = std::env::current_exe().map_err(DemoError::OwnProgram)?;
    if arguments.remove {
        return Ok(Laboratory::remove_kept(LABEL)?);
    }
    let begin = Instant::now();
    let screen = Arc::new(Mutex::new(Screen::new(json)));
    let on_signal = Arc::clone(&screen);
    remove_on_signal(move || screen::lock(&on_signal).end("interrupted: everything is removed"))?;
    give_up_in_time(&screen, json)?;
    let mut stage = Stage { rows: Vec::new(), screen };
    let kept = perform(arguments, &program, &mut stage)?;
    let summary = Summary::new(&stage.rows, begin.elapsed());
    let text = if json {
        serde_json::to_string_pretty(&summary)?
    } else {
        format!("\n{}", summary.table(screen::columns()))
    };
    // A reader that has gone needs no result; the exit code tells it all the same.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
    if let Some(how_to_play) = kept {
        screen::lock(&stage.screen).say(&how_to_play);
    }
    let all = summary.expectations.len();
    if summary.ok { Ok(()) } else { Err(DemoError::Differs { differing: summary.differing, all }) }
}

/// Everything between an empty machine and an empty machine; gives how to play with what is kept.
fn perform(
    arguments: &Arguments,
    program: &Path,
    stage: &mut Stage,
) -> Result<Option<String>, DemoError> {
    stage.say("building a node, an outside client and four pods in network namespaces");
    let laboratory = if arguments.keep {
        Laboratory::kept(LABEL, program)?
    } else {
        Laboratory::new(LABEL, program)?
    };
    let scene = Scene::build(laboratory)?;
    let files = Files::write(scene.laboratory.directory())?;
    stage.say("starting the node: xskiff run, two workers, then xskiff endpoint add for each pod");
    let node = Node::start(&scene, &files)?;
    let painter = Painter::start(&files.socket, &stage.screen)?;
    steps::run(&scene, &node, arguments.upload_mib, stage);
    let node = outages::run(&scene, &files, node, stage)?;
    drop(painter);
    if arguments.keep {
        let how_to_play = how_to_play(&scene, &files);
        node.keep();
        scene.keep()?;
        return Ok(Some(how_to_play));
    }
    steps::end(&scene, node, stage);
    Ok(None)
}

fn how_to_play(scene: &Scene, files: &Files) -> String {
    let inside =
        |namespace: &crate::lab::Namespace| format!("ip netns exec {}", namespace.system_name());
    let program = scene.laboratory.program().display();
    let admin = format!("{program} --socket {}", files.socket.display());
    let (balancer, cluster_ip) = (scene::BALANCER[0], scene::CLUSTER_IP[0]);
    let client = inside(&scene.client);
    let stranger = inside(scene.pod(scene::STRANGER));
    let manifests = files.manifests.display();
    format!(
        "The node is up. Play with it as root:\n\
         \x20 {client} curl http://{balancer}/\n\
         \x20 {stranger} curl --max-time 2 http://{cluster_ip}/      # forbidden\n\
         \x20 {admin} status\n\
         \x20 {admin} flows --follow\n\
         \x20 {admin} policy explain --from market/stranger --to shop/web-1 --port 8080\n\
         \x20 edit {manifests}/policy.yaml      # in force at once\n\
         Remove it:\n\
         \x20 {program} demo --remove"
    )
}

/// Ends the process, and what it made, when the demo takes too long.
fn give_up_in_time(screen: &SharedScreen, json: bool) -> Result<(), DemoError> {
    let screen = Arc::clone(screen);
    let wait = move || {
        std::thread::sleep(TIME_MAX - REMOVAL_TIME);
        screen::lock(&screen).end("the demo took too long: everything is removed");
        registry::remove_everything();
        if json {
            let text = r#"{"ok":false,"error":"the demo took too long"}"#;
            let _ = writeln!(std::io::stdout().lock(), "{text}");
        }
        std::process::exit(1);
    };
    let thread = std::thread::Builder::new().name("demo-time".into()).spawn(wait);
    thread.map(drop).map_err(|source| {
        LabError::Io { what: "start a thread for", object: "the time limit".into(), source }.into()
    })
}

/// This program's path as a word of a command line.
fn program_word(program: &Path) -> String {
    PathBuf::from(program).to_string_lossy().into_owned()
}
