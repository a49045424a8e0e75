//! Commands to requests, and answers to the terminal.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use clap::CommandFactory;
use control::admin::{
    Bandwidth, CaptureDirection, CaptureRequest, EndpointAdd, FlowFilter, Reply, Request,
    StreamItem, TopBy,
};
use control::config::Config;
use control::text_file::{self, TextFileError};

use serde::Serialize;

use crate::node::cluster_source::Overrides;
use crate::node::launch::{self, LaunchError};

use super::capture::{CaptureError, CaptureWriter};
use super::client::{Client, ClientError};
use super::{
    CaptureArgs, Cli, Command, ConfigCommand, CtCommand, DirectionArg, EndpointCommand, FlowsArgs,
    RunArgs, TopByArg, VerdictArg, show,
};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The command makes no sense as it stands.
    #[error("{0}")]
    Usage(String),
    /// The node did not answer, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A capture could not be written.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// A file cannot be read.
    #[error(transparent)]
    Text(#[from] TextFileError),
    /// A file cannot be written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Standard output cannot be written.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
    /// The answer cannot be printed as JSON.
    #[error("the answer cannot be encoded: {0}")]
    Json(#[from] serde_json::Error),
    /// The configuration is refused, or the node process could not start or ended badly.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The relay does not run.
    #[error(transparent)]
    Relay(#[from] crate::relay::RelayProcessError),
    /// The CNI plugin's place cannot be changed.
    #[error(transparent)]
    Cni(#[from] super::cni::CniCommandError),
    /// There is no demo, or something in it came out otherwise than expected.
    #[error(transparent)]
    Demo(#[from] crate::demo::DemoError),
    /// A check before the start failed.
    #[error(transparent)]
    Preflight(#[from] crate::preflight::PreflightError),
    /// kube-proxy was found, or cannot be cleaned up after.
    #[error(transparent)]
    KubeProxy(#[from] crate::kube_proxy::command::KubeProxyError),
    /// The audit found something.
    #[error("{0} differences; the node has made its tables anew: ask again, and report what stays")]
    Differences(u64),
    /// A traffic agent cannot work.
    #[error("{0:#}")]
    Agent(anyhow::Error),
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> ExecuteError + '_ {
    move |source| ExecuteError::File { path: path.display().to_string(), source }
}

/// Does what the command line says.
///
/// # Errors
/// [`ExecuteError`], whose text is for people.
pub fn execute(cli: Cli) -> Result<(), ExecuteError> {
    match cli.command {
        Command::Run(RunArgs { config, take_over, manifests, api_servers, kubeconfig }) => {
            let overrides = Overrides { manifests, api_servers, kubeconfig };
            Ok(launch::run(&config, overrides, take_over)?)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "xskiff", &mut io::stdout());
            Ok(())
        }
        Command::Man { directory } => man(directory.as_deref()),
        Command::Detach(args) => detach(&args.config, cli.json),
        Command::Cni(command) => Ok(super::cni::execute(&command, &cli.socket, cli.json)?),
        Command::Relay(arguments) => Ok(crate::relay::run(arguments)?),
        Command::Demo(arguments) => Ok(crate::demo::run(&arguments, cli.json)?),
        Command::LabAgent(arguments) => {
            crate::lab::agent::run(arguments).map_err(ExecuteError::Agent)
        }
        Command::Preflight(arguments) => Ok(crate::preflight::run(&arguments, cli.json)?),
        Command::KubeProxy(command) => Ok(crate::kube_proxy::command::run(command, cli.json)?),
        Command::Config(ConfigCommand::Check { file }) => check(&file, cli.json),
        Command::Flows(args) => flows(&cli.socket, cli.json, args),
        Command::Ct(CtCommand::Watch { filter }) => {
            follow(&cli.socket, cli.json, Request::CtWatch { filter: filter.into() })
        }
        Command::Capture(args) => capture(&cli.socket, cli.json, args),
        command => {
            // First, so that what makes no sense is wrong usage without a node, too.
            let request = request(command)?;
            let reply = Client::connect(&cli.socket)?.ask(request)?;
            print(&reply, cli.json)?;
            match reply {
                Reply::Audit(report) if report.found > 0 => {
                    Err(ExecuteError::Differences(report.found))
                }
                _ => Ok(()),
            }
        }
    }
}

/// The request a command makes, for commands with one answer.
fn request(command: Command) -> Result<Request, ExecuteError> {
    Ok(match command {
        Command::Status => Request::Status,
        Command::Endpoint(command) => endpoint_request(command),
        Command::Service(command) => command.into(),
        Command::Ct(command) => ct_request(command)?,
        Command::Identity(command) => command.into(),
        Command::Policy(command) => command.into(),
        Command::Audit => Request::Audit,
        Command::Debug(command) => command.into(),
        Command::Drops => Request::Drops,
        Command::Trace(args) => {
            let frame = if args.frame == "-" { standard_input()? } else { args.frame };
            Request::Trace { frame, port: args.port }
        }
        Command::Config(ConfigCommand::Print) => Request::ConfigShow,
        Command::Config(ConfigCommand::Diff { file }) => {
            let candidate = text_file::read_named(&file, launch::CONFIG_BYTES_MAX)?;
            Request::ConfigDiff { candidate }
        }
        Command::Run(_)
        | Command::Detach(_)
        | Command::Flows(_)
        | Command::Capture(_)
        | Command::Config(ConfigCommand::Check { .. })
        | Command::Completions { .. }
        | Command::KubeProxy(_)
        | Command::Preflight(_)
        | Command::Cni(_)
        | Command::Relay(_)
        | Command::Demo(_)
        | Command::LabAgent(_)
        | Command::Man { .. } => {
            return Err(ExecuteError::Usage("this command asks the node nothing".into()));
        }
    })
}

fn endpoint_request(command: EndpointCommand) -> Request {
    match command {
        EndpointCommand::Add {
            name,
            interface,
            addresses,
            mac,
            netns,
            ingress_bandwidth,
            egress_bandwidth,
        } => {
            let limits = Bandwidth {
                ingress_rate: ingress_bandwidth.unwrap_or(0),
                egress_rate: egress_bandwidth.unwrap_or(0),
                ..Bandwidth::default()
            };
            Request::EndpointAdd(EndpointAdd {
                name,
                interface,
                netns,
                addresses,
                mac,
                attachment: None,
                pod_uid: None,
                bandwidth: Some(limits).filter(Bandwidth::is_limit),
            })
        }
        EndpointCommand::Remove { name } => Request::EndpointRemove { name },
        EndpointCommand::List => Request::EndpointList,
    }
}

fn ct_request(command: CtCommand) -> Result<Request, ExecuteError> {
    Ok(match command {
        CtCommand::List { filter, limit } => Request::CtList { filter: filter.into(), limit },
        CtCommand::Count { filter } => Request::CtCount { filter: filter.into() },
        CtCommand::Top { by } => {
            let by = match by {
                TopByArg::Pod => TopBy::Pod,
                TopByArg::Service => TopBy::Service,
            };
            Request::CtTop { by }
        }
        CtCommand::Watch { .. } => {
            return Err(ExecuteError::Usage("a watch has no single answer".into()));
        }
        CtCommand::Delete { filter } => {
            let filter = FlowFilter::from(filter);
            if filter == FlowFilter::default() {
                let text = "say which connections to end; `xskiff ct flush --all` ends every one";
                return Err(ExecuteError::Usage(text.into()));
            }
            Request::CtFlush { filter }
        }
        CtCommand::Flush { filter, all } => {
            let filter = FlowFilter::from(filter);
            if all == (filter != FlowFilter::default()) {
                let text = "say which connections to end, or --all, and not both";
                return Err(ExecuteError::Usage(text.into()));
            }
            Request::CtFlush { filter }
        }
        CtCommand::Resize { v4, v6 } => Request::CtResize { v4, v6 },
    })
}

fn standard_input() -> Result<String, ExecuteError> {
    let mut text = String::new();
    let bound = control::admin::REQUEST_BYTES_MAX as u64;
    io::stdin().take(bound).read_to_string(&mut text)?;
    Ok(text)
}

fn print(reply: &Reply, json: bool) -> Result<(), ExecuteError> {
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&inner(reply)?)?)?;
    } else {
        out.write_all(show::reply(reply).as_bytes())?;
    }
    Ok(())
}

/// The answer without the word that says which answer it is.
fn inner(reply: &Reply) -> Result<serde_json::Value, ExecuteError> {
    Ok(match serde_json::to_value(reply)? {
        serde_json::Value::Object(object) if object.len() == 1 => {
            object.into_iter().next().map_or(serde_json::Value::Null, |(_, value)| value)
        }
        other => other,
    })
}

fn flows(socket: &Path, json: bool, args: FlowsArgs) -> Result<(), ExecuteError> {
    let mut filter = FlowFilter::from(args.filter);
    filter.reason = args.reason;
    filter.verdict = args.verdict.map(|verdict| {
        match verdict {
            VerdictArg::Opened => "opened",
            VerdictArg::Audited => "audited",
            VerdictArg::Closed => "closed",
            VerdictArg::Dropped => "dropped",
        }
        .to_owned()
    });
    follow(socket, json, Request::Flows { filter, follow: args.follow })
}

/// Prints what comes until it ends.
fn follow(socket: &Path, json: bool, request: Request) -> Result<(), ExecuteError> {
    let lost = Client::connect(socket)?.stream(request, |item| {
        if let StreamItem::Lost(lost) = item {
            report_lost(lost, "decisions")?;
        } else if let StreamItem::Flow(record) = item {
            let mut out = io::stdout().lock();
            let line = if json {
                format!("{}\n", serde_json::to_string(&record)?)
            } else {
                show::flow(&record)
            };
            out.write_all(line.as_bytes())?;
            out.flush()?;
        }
        Ok::<bool, ExecuteError>(true)
    })?;
    report_lost(lost, "decisions")
}

fn capture(socket: &Path, json: bool, args: CaptureArgs) -> Result<(), ExecuteError> {
    let request = Request::Capture(CaptureRequest {
        endpoint: args.endpoint,
        direction: args.direction.map(|direction| match direction {
            DirectionArg::Received => CaptureDirection::Received,
            DirectionArg::Transmitted => CaptureDirection::Transmitted,
        }),
        reason: args.reason,
        packets_max: args.packets_max,
        bytes_max: args.bytes_max,
    });
    // The node is asked first, so that a refusal leaves an older file as it is.
    let mut client = Client::connect(socket)?;
    let to_standard_output = args.write == Path::new("-");
    let out: Box<dyn Write> = if to_standard_output {
        Box::new(io::stdout())
    } else {
        Box::new(File::create(&args.write).map_err(file_error(&args.write))?)
    };
    let mut writer = CaptureWriter::new(BufWriter::new(out))?;
    let mut packets = 0u64;
    let lost = client.stream(request, |item| {
        if let StreamItem::Packet(record) = item {
            writer.write(&record)?;
            writer.flush()?;
            packets += 1;
        }
        Ok::<bool, ExecuteError>(true)
    })?;
    writer.into_inner().flush()?;
    if json {
        let file = args.write.display().to_string();
        let summary = serde_json::to_string(&CaptureSummary { file, packets, lost })?;
        // Standard output may be the capture itself.
        if to_standard_output {
            eprintln!("{summary}");
        } else {
            writeln!(io::stdout(), "{summary}")?;
        }
        return Ok(());
    }
    eprintln!("{packets} packets captured");
    report_lost(lost, "packets")
}

/// What `capture --json` prints when it ends.
#[derive(Serialize)]
struct CaptureSummary {
    /// Where the packets are, as given.
    file: String,
    /// Packets written.
    packets: u64,
    /// Packets that matched and were lost: the node had more to say than could be taken.
    lost: u64,
}

fn report_lost(lost: u64, what: &str) -> Result<(), ExecuteError> {
    if lost > 0 {
        eprintln!("{lost} {what} were lost: the node had more to say than could be taken");
    }
    Ok(())
}

/// What `config check --json` prints.
#[derive(Serialize)]
struct Checked {
    /// Whether a node would take the file.
    ok: bool,
    /// What it would take and warn of.
    cautions: Vec<String>,
    /// What is wrong, one by one.
    errors: Vec<String>,
}

fn check(file: &Path, json: bool) -> Result<(), ExecuteError> {
    let read = launch::read_config(file);
    if json {
        let cautions = read.iter().flat_map(Config::cautions).map(|c| c.to_string()).collect();
        let errors = read.as_ref().err().map_or_else(Vec::new, LaunchError::each);
        let checked = Checked { ok: read.is_ok(), cautions, errors };
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&checked)?)?;
        // A refusal is said on standard error as well, and in the exit code.
        read?;
        return Ok(());
    }
    for caution in read?.cautions() {
        eprintln!("caution: {caution}");
    }
    println!("{}: good", file.display());
    Ok(())
}

fn detach(config: &Path, json: bool) -> Result<(), ExecuteError> {
    launch::start_log();
    let detached = launch::detach(config)?;
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&detached)?)?;
    } else {
        println!(
            "XDP program taken off {} interfaces, settings given back to {} pods' interfaces, host \
             port removed",
            detached.interfaces, detached.endpoints
        );
    }
    Ok(())
}

fn man(directory: Option<&Path>) -> Result<(), ExecuteError> {
    let command = Cli::command();
    match directory {
        Some(directory) => {
            std::fs::create_dir_all(directory).map_err(file_error(directory))?;
            clap_mangen::generate_to(command, directory).map_err(file_error(directory))
        }
        None => Ok(clap_mangen::Man::new(command).render(&mut io::stdout())?),
    }
}
