//! The node process of the demo: started, registered with, asked, and ended like any other.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use control::admin::status::Level;
use control::admin::{FlowFilter, FlowRecord, Reply, Request, Status, StreamItem};
use nix::sys::signal::Signal;

use super::files::Files;
use super::scene::{PODS, PodPlan, Scene};
use super::{DemoError, program_word};
use crate::cli::client::{Client, ClientError};
use crate::lab::{LabError, Process, wait_until};

/// How long the node may take from its start until its verdict is `ok`.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it may take to end after SIGTERM.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// A running `xskiff run`.
#[derive(Debug)]
pub struct Node {
    process: Process,
    socket: PathBuf,
}

impl Node {
    /// Starts it in the node's namespace with the folder of manifests, registers the pods, and waits
    /// until it says that all is well.
    ///
    /// # Errors
    /// It ends, refuses a pod, or is not ready in time; the error has its log's end.
    pub fn start(scene: &Scene, files: &Files) -> Result<Self, DemoError> {
        let until = Instant::now() + READY_TIMEOUT;
        let manifests = files.manifests.to_string_lossy();
        let node = Self::start_with(scene, files, &["--manifests", &*manifests], until)?;
        node.wait_well(until)?;
        Ok(node)
    }

    /// Starts it with words that name another source of the cluster's state, and registers the pods
    /// once it answers.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_with(
        scene: &Scene,
        files: &Files,
        source: &[&str],
        until: Instant,
    ) -> Result<Self, DemoError> {
        Self::start_behind(scene, files, &[], source, until)
    }

    /// As [`Node::start_with`], behind `before`, words of another command line that ends by executing
    /// what follows it.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_behind(
        scene: &Scene,
        files: &Files,
        before: &[&str],
        source: &[&str],
        until: Instant,
    ) -> Result<Self, DemoError> {
        let program = program_word(scene.laboratory.program());
        let configuration = files.configuration.to_string_lossy();
        let run = [&*program, "run", "--config", &*configuration];
        let words = [before, &run, source].concat();
        let process = scene.node.spawn("xskiff", words[0], &words[1..])?;
        let node = Self { process, socket: files.socket.clone() };
        node.wait(until, |node| node.status().map(|_| None))?;
        for plan in PODS {
            register(scene, &program, &node.socket.to_string_lossy(), &plan)?;
        }
        Ok(node)
    }

    /// Waits until it says that all is well.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn wait_well(&self, until: Instant) -> Result<(), DemoError> {
        self.wait(until, |node| {
            let verdict = node.status()?.verdict;
            let word = format!("{:?}: {} {}", verdict.level, verdict.summary, verdict.next_step);
            Ok((verdict.level != Level::Ok).then_some(word))
        })
    }

    /// Asks until `unready` gives nothing any more.
    fn wait(
        &self,
        until: Instant,
        unready: impl Fn(&Self) -> Result<Option<String>, ClientError>,
    ) -> Result<(), DemoError> {
        let (mut state, begin) = (None, Instant::now());
        wait_until(until.saturating_duration_since(begin), || {
            state = match (self.process.ended(), unready(self)) {
                (Some(status), _) => Some(format!("ended with {status}")),
                (None, Ok(state)) => state,
                (None, Err(error)) => Some(error.to_string()),
            };
            state.is_none() || self.process.ended().is_some()
        });
        match state {
            None => Ok(()),
            Some(state) => {
                let (within, log) = (begin.elapsed(), self.process.log_tail());
                Err(DemoError::NotReady { state, within, log })
            }
        }
    }

    /// What it says about itself.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&self) -> Result<Status, ClientError> {
        match Client::connect(&self.socket)?.ask(Request::Status)? {
            Reply::Status(status) => Ok(*status),
            _ => Err(ClientError::Silent),
        }
    }

    /// Recent decisions that match.
    ///
    /// # Errors
    /// It does not answer.
    pub fn flows(&self, filter: FlowFilter) -> Result<Vec<FlowRecord>, ClientError> {
        let mut records = Vec::new();
        let request = Request::Flows { filter, follow: false };
        Client::connect(&self.socket)?.stream(request, |item| {
            if let StreamItem::Flow(record) = item {
                records.push(*record);
            }
            Ok::<_, ClientError>(true)
        })?;
        Ok(records)
    }

    /// Any other question.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub fn ask(&self, request: Request) -> Result<Reply, ClientError> {
        Client::connect(&self.socket)?.ask(request)
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        self.process.signal(signal)
    }

    /// Ends it by SIGTERM; gives its exit code.
    ///
    /// # Errors
    /// It still runs after 5 s.
    pub fn end(self) -> Result<Option<i32>, LabError> {
        self.process.signal(Signal::SIGTERM)?;
        Ok(self.process.wait(END_TIMEOUT)?.code())
    }

    /// Ends it by SIGKILL, with no time to clean up.
    pub fn kill(self) {
        drop(self.process);
    }

    /// Lets it live on.
    pub fn keep(mut self) {
        self.process.keep();
    }
}

/// What a CNI plugin will do for every pod; here the command does it.
fn register(scene: &Scene, program: &str, socket: &str, plan: &PodPlan) -> Result<(), DemoError> {
    let name = format!("{}/{}", plan.kubernetes_namespace, plan.name);
    let netns = format!("/run/netns/{}", scene.pod(*plan).system_name());
    let [v4, v6] = plan.addresses;
    let words = ["--socket", socket, "endpoint", "add", &name, "--interface", plan.name];
    let more = ["--address", v4, "--address", v6, "--netns", &netns];
    scene.node.run(program, &[&words[..], &more[..]].concat())?;
    Ok(())
}
