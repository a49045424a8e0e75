//! `xskiff-perf table`: this project's flow table beside others, on the same keys in one run.
//!
//! All subjects hold the same flows at once and are asked in turn, so that a slow moment of the
//! machine hits all of them. Each is used by bursts of 32 and as well as its safe interface allows;
//! each holds the same entry, a line of 64 bytes for IPv4 and two for IPv6, and changes the same
//! words of it at a lookup. Every answer is checked: what is found adds up to what was inserted, what
//! was deleted is gone, and in the end every packet was counted. Times are the thread's own, but in
//! `share`.
//!
//! | case | what a sample is |
//! |---|---|
//! | `lookup-update` | a packet of a flow that is there: deadline, packets, bytes |
//! | `miss` | a packet of none |
//! | `delete`, `insert` | of a sixteenth of the flows at random; of as many new ones |
//! | `sweep` | reading deadline and state of every entry |
//! | `memory` | the growth of a process of its own |
//! | `growth-burst` | the worst burst of inserts while a table grows tenfold |
//! | `share` | two threads that look up and update at once |
//! | `take-over-clean`, `-rebuild` | going on with the table of a process that ended, or was killed |
//! | `syn-flood` | a SYN at a table full of established connections |
//!
//! The last two are this project's alone. Beside figures of IPv4 and IPv6 stands their ratio.
//!
//! Reading order: [`flow`] (keys and entries), [`population`] (which ones), [`subject`] (what is
//! asked), [`xskiff`], [`maps`], [`rte_hash`] (who is asked), [`lineup`], [`setting`] and
//! [`plan`], then [`measure`], [`share`], [`growth`], [`memory`], [`take_over`], [`syn_flood`].

mod flow;
mod growth;
mod lineup;
mod maps;
mod measure;
mod memory;
mod plan;
mod population;
mod rte_hash;
mod samples;
mod setting;
mod share;
mod subject;
mod supply;
mod syn_flood;
mod take_over;
mod xskiff;

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use pinning::CpuId;

use crate::choice::one_of;
use crate::interrupt;
use crate::report::Report;
use flow::{V4, V4_ENTRY, V6, V6_ENTRY};
use lineup::{Make, NAMES};
use plan::Plan;
use setting::{Flows, KINDS};
use subject::WORKERS;
use xskiff::Room;

const BENCH: &str = "table";
/// Has glibc's allocator ask for huge pages, as our table's memory and rte_hash's do.
const TUNABLES: &str = "GLIBC_TUNABLES";
const HUGE_PAGES: &str = "glibc.malloc.hugetlb=1";

/// Options of `table`.
#[derive(Debug, Args)]
pub struct Options {
    /// Flows in a table, such as 250k or 10M; max: as many millions as memory allows.
    #[arg(long, value_delimiter = ',', default_value = "1M,10M", value_parser = Flows::parse)]
    flows: Vec<Flows>,
    /// Flows of which kind: v4, v6, two-keys (IPv4 with NAT); all when not given.
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<String>,
    /// Cases to run, such as lookup-update,insert; all when not given.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Tables to ask, such as xskiff,rte_hash; all when not given.
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// Times every case is measured; the median counts.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// CPU to run on; the last one when not given. `share` takes another one too.
    #[arg(long)]
    core: Option<u16>,
    /// A few thousand flows: to see that it works, not to measure.
    #[arg(long)]
    quick: bool,
    /// Fills one table in this process and prints the bytes it took.
    #[arg(long, hide = true)]
    memory_of: Option<memory::Filled>,
    /// Fills or takes over one table in a file, and prints how long that took.
    #[arg(long, hide = true)]
    take_over_of: Option<take_over::Restart>,
}

/// Runs the cases and reports.
///
/// # Errors
/// No such case, kind, subject or CPU, too little memory, or a wrong answer.
pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    ask_for_huge_pages()?;
    if let Some(table) = &options.memory_of {
        return fill_for_memory(table);
    }
    if let Some(restart) = &options.take_over_of {
        println!("{}", take_over::of::<V4, V4_ENTRY>(restart)?);
        return Ok(());
    }
    interrupt::watch()?;
    let plan = Plan::of(options)?;
    report.header(&plan.notes())?;
    let ratios = plan.run(report)?;
    report.table(&ratios)?;
    Ok(())
}

/// Starts this program anew with the allocator told so, unless it was: there is no other way to tell
/// it.
fn ask_for_huge_pages() -> Result<()> {
    let set = env::var_os(TUNABLES).unwrap_or_default();
    if set.to_string_lossy().contains(HUGE_PAGES) {
        return Ok(());
    }
    let mut wanted = OsString::from(HUGE_PAGES);
    if !set.is_empty() {
        wanted.push(":");
        wanted.push(set);
    }
    let program = env::current_exe().context("this program's path")?;
    let arguments = env::args_os().skip(1);
    let refused = Command::new(program).args(arguments).env(TUNABLES, wanted).exec();
    Err(refused).context("start this program anew")
}

/// In a process that [`memory::measure`] has started.
fn fill_for_memory(table: &memory::Filled) -> Result<()> {
    let name = one_of(&table.subject, &NAMES, |name| name)?;
    let kind = *one_of(&table.kind, &KINDS, |kind| kind.name)?;
    let make = Make {
        room: Room::fixed(table.flows),
        two_keys: kind.two_keys,
        details: table.details,
        cores: [CpuId(0); WORKERS],
    };
    let bytes = if kind.is_v6 {
        memory::of::<V6, V6_ENTRY, { V6_ENTRY - V6 }>(name, &make)?
    } else {
        memory::of::<V4, V4_ENTRY, { V4_ENTRY - V4 }>(name, &make)?
    };
    println!("{bytes}");
    Ok(())
}
