//! Measures the pipeline in memory, AF_XDP on veth, and the peers beside it.
//!
//! Reading order: [`workload`], [`packet`] and [`spread`] (what is sent), [`pipeline`] (in memory), [`table`]
//! (its flow table beside others), [`cluster`] (following a large cluster), [`ports`] (hundreds of sockets), [`transmit`] (ways out of a port), [`veth`] (beside the kernel), [`services`] (many of them),
//! [`latency`] and [`tcp`] (the whole [`node_process`], beside the kernel), then [`choice`] (what is run), [`figure`] and [`report`] (what comes out).
#![forbid(unsafe_code)]

mod choice;
mod cluster;
mod figure;
mod flow_memory;
mod interrupt;
mod latency;
mod machine;
mod netns;
mod node_process;
mod packet;
mod pipeline;
mod ports;
mod report;
mod services;
mod spread;
mod table;
mod tcp;
mod transmit;
mod usage;
mod veth;
mod workload;

use anyhow::Result;
use clap::{Parser, Subcommand};

use report::Report;

/// The product's own: where tables lie in memory is part of what a look into them takes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the pipeline in memory, AF_XDP on veth, and the peers beside it.
#[derive(Debug, Parser)]
#[command(name = "xskiff-perf", version)]
struct Cli {
    /// One JSON object per line for every figure, instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Nanoseconds per packet in memory, in all and by stage.
    Pipeline(pipeline::Options),
    /// The flow table beside others: DPDK's rte_hash, hashbrown, papaya, dashmap, scc.
    Table(table::Options),
    /// What following a cluster of 150,000 pods takes: compiling, events, lookups, memory.
    Cluster(cluster::Options),
    /// What hundreds of pod ports cost: adding, idling, fanning out, memory.
    Ports(ports::Options),
    /// Packets per second on veth, beside bare AF_XDP and the kernel's nftables.
    Veth(veth::Options),
    /// What many services cost, beside the kernel's iptables and nftables as kube-proxy lays them out.
    Services(services::Options),
    /// Packets per second out of ports by each way, by how many leave at once and by how many ports.
    Transmit(transmit::Options),
    /// Microseconds of a round trip through the node process, and what it takes while idle.
    Latency(latency::Options),
    /// TCP through the node process between pods, the host and the outside, beside the kernel.
    Tcp(tcp::Options),
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut report = Report::new(cli.json);
    match &cli.command {
        Command::Pipeline(options) => pipeline::run(options, &mut report),
        Command::Table(options) => table::run(options, &mut report),
        Command::Cluster(options) => cluster::run(options, &mut report),
        Command::Ports(options) => ports::run(options, &mut report),
        Command::Veth(options) => veth::run(options, &mut report),
        Command::Services(options) => services::run(options, &mut report),
        Command::Transmit(options) => transmit::run(options, &mut report),
        Command::Latency(options) => latency::run(options, &mut report),
        Command::Tcp(options) => tcp::run(options, &mut report),
    }
}
