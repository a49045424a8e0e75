//! What was chosen, and the order it is run in.

use anyhow::{Context, Result};
use pinning::CpuId;
use pinning::apply::current_affinity;

use super::flow::{V4, V4_ENTRY, V6, V6_ENTRY};
use super::growth;
use super::lineup::{Boxed, Make, NAMES, SHARDED, XSKIFF};
use super::measure::Round;
use super::memory;
use super::rte_hash;
use super::samples::Samples;
use super::setting::{Flows, KINDS, Kind, Operation, Setting, available_bytes, short};
use super::share::{self, Sharded};
use super::syn_flood;
use super::take_over;
use super::xskiff::Room;
use super::{BENCH, Options};
use crate::choice::chosen;
use crate::figure::Figure;
use crate::pipeline::pin;
use crate::report::Report;
use crate::spread::Spread;

/// Lookups of a sample.
const LOOKUPS: usize = 1 << 19;
const QUICK_LOOKUPS: usize = 1 << 12;
const QUICK_FLOWS: usize = 20_000;
/// SYNs of a flood.
const SYNS: usize = 2_000_000;
const QUICK_SYNS: usize = 4_096;
/// One of so many flows goes in a round.
const MOVED_PART: usize = 16;
/// A growth takes seconds for every subject, and its maximum counts.
const GROWTHS_MAX: u32 = 3;
const SPREADS: [Spread; 2] = [Spread::Uniform, Spread::Zipf];
/// Cases, as `--cases` takes them.
const CASES: [&str; 11] = [
    "lookup-update",
    "miss",
    "delete",
    "insert",
    "sweep",
    "memory",
    "growth-burst",
    "share",
    TAKE_OVERS[0],
    TAKE_OVERS[1],
    SYN_FLOOD,
];
const TAKE_OVERS: [&str; 2] = ["take-over-clean", "take-over-rebuild"];
const SYN_FLOOD: &str = "syn-flood";

/// What was chosen.
#[derive(Debug)]
pub struct Plan {
    flows: Vec<Flows>,
    kinds: Vec<Kind>,
    cases: Vec<&'static str>,
    subjects: Vec<&'static str>,
    runs: u32,
    lookups: usize,
    syns: usize,
    core: CpuId,
    /// Where the second thread runs; `None` if there is one CPU only.
    other_core: Option<CpuId>,
}

impl Plan {
    /// Reads the options, says what cannot be run, and takes its CPU.
    ///
    /// # Errors
    /// There is no such case, kind, subject or CPU.
    pub fn of(options: &Options) -> Result<Self> {
        let kinds = chosen(&options.kinds, &KINDS, |kind| kind.name)?;
        let kinds = kinds.into_iter().copied().collect();
        let mut cases = names(&options.cases, &CASES)?;
        let mut subjects = names(&options.subjects, &NAMES)?;
        if let Some(reason) = rte_hash::missing().filter(|_| subjects.contains(&rte_hash::NAME)) {
            eprintln!("# {} is left out: {reason}", rte_hash::NAME);
            subjects.retain(|name| *name != rte_hash::NAME);
        }
        let allowed = current_affinity().context("ask for this process's CPUs")?;
        let core = pin(options.core)?;
        let other_core = allowed.iter().find(|other| *other != core);
        if other_core.is_none() && cases.contains(&"share") {
            eprintln!("# share is left out: this process may run on one CPU only");
            cases.retain(|case| *case != "share");
        }
        Ok(Self {
            flows: if options.quick {
                vec![Flows::Count(QUICK_FLOWS)]
            } else {
                options.flows.clone()
            },
            kinds,
            cases,
            subjects,
            runs: if options.quick { options.runs.min(2) } else { options.runs },
            lookups: if options.quick { QUICK_LOOKUPS } else { LOOKUPS },
            syns: if options.quick { QUICK_SYNS } else { SYNS },
            core,
            other_core,
        })
    }

    /// What the report's header says.
    pub fn notes(&self) -> Vec<String> {
        vec![
            format!(
                "mode     in memory, on CPU {}, bursts of 32, median of {}",
                self.core, self.runs
            ),
            "pages    transparent huge pages for all, as the kernel has them".into(),
            "work     64 bytes an IPv4 flow, 128 an IPv6 flow; every answer is checked; times are"
                .into(),
            "         the thread's own, in share from the first start to the last end".into(),
        ]
    }

    /// Runs all; what the tables compare to.
    ///
    /// # Errors
    /// A wrong answer, or too little memory.
    pub fn run(&self, report: &mut Report) -> Result<Vec<String>> {
        let mut ratios = Vec::new();
        for flows in &self.flows {
            let mut families = Families::default();
            for &kind in &self.kinds {
                let flows = flows.count(kind, self.subjects.len())?;
                let moves = flows / MOVED_PART;
                let setting = Setting { flows, kind, lookups: self.lookups, moves };
                let wanted = setting.memory_bytes(self.subjects.len());
                let available = available_bytes()?;
                if wanted > available {
                    let flows = short(flows);
                    eprintln!(
                        "# {flows} flows of {} are left out: {} MiB of memory may be needed and {} \
                         are there; choose --subjects",
                        kind.name,
                        wanted >> 20,
                        available >> 20
                    );
                    continue;
                }
                let samples = if kind.is_v6 {
                    self.measure::<V6, V6_ENTRY, { V6_ENTRY - V6 }>(&setting, report)?
                } else {
                    self.measure::<V4, V4_ENTRY, { V4_ENTRY - V4 }>(&setting, report)?
                };
                families.note(&setting, &samples);
                samples.report(BENCH, &NAMES, report, &mut ratios)?;
            }
            families.report(report)?;
        }
        Ok(ratios)
    }

    fn measure<const K: usize, const W: usize, const R: usize>(
        &self,
        setting: &Setting,
        report: &Report,
    ) -> Result<Samples> {
        let Setting { flows, kind, .. } = *setting;
        let mut samples = Samples::default();
        let progress = |what: &str| {
            report.progress(&format!("{what}: {} flows, {}", short(flows), kind.name));
        };
        if self.has("memory") {
            progress("memory");
            for name in self.subjects.iter().filter(|name| **name != SHARDED) {
                memory::measure(name, (kind, flows), &mut samples)?;
            }
        }
        if self.has("growth-burst") && kind == KINDS[0] {
            progress("growth");
            self.grow::<K, W, R>(flows, &mut samples)?;
        }
        if kind == KINDS[0] && self.subjects.contains(&XSKIFF) {
            self.alone(flows, &progress, &mut samples)?;
        }
        let operations = self.operations();
        let shares = self.has("share") && kind == KINDS[0];
        if !operations.is_empty() || shares {
            progress("rounds");
            self.rounds::<K, W, R>(setting, (&operations, shares), &mut samples)?;
        }
        samples.keep(|case| self.cases.iter().any(|chosen| case.split('/').next() == Some(chosen)));
        Ok(samples)
    }

    /// What others have nothing to compare with.
    fn alone(&self, flows: usize, progress: &impl Fn(&str), samples: &mut Samples) -> Result<()> {
        if TAKE_OVERS.iter().any(|case| self.has(case)) {
            progress("take-over");
            take_over::measure(flows, self.runs, samples)?;
        }
        if self.has(SYN_FLOOD) {
            progress("SYN flood");
            syn_flood::measure(flows, self.syns, self.runs, samples)?;
        }
        Ok(())
    }

    fn has(&self, case: &str) -> bool {
        self.cases.contains(&case)
    }

    /// What is done in every round.
    fn operations(&self) -> Vec<Operation> {
        let all: [(&[&str], Operation); 5] = [
            (&["lookup-update"], Operation::LookUpdate(SPREADS[0])),
            (&["lookup-update"], Operation::LookUpdate(SPREADS[1])),
            (&["miss"], Operation::Miss),
            (&["delete", "insert"], Operation::Move),
            (&["sweep"], Operation::Sweep),
        ];
        let chosen = all.iter().filter(|(cases, _)| cases.iter().any(|case| self.has(case)));
        chosen.map(|(_, operation)| *operation).collect()
    }

    fn make(&self, room: Room, two_keys: bool) -> Make {
        let other = self.other_core.unwrap_or(self.core);
        Make { room, two_keys, details: false, cores: [self.core, other] }
    }

    /// rte_hash has no part in it: its size is fixed.
    fn grow<const K: usize, const W: usize, const R: usize>(
        &self,
        flows: usize,
        samples: &mut Samples,
    ) -> Result<()> {
        let room = Room { flows: flows / growth::TIMES, flows_max: flows };
        for _ in 0..self.runs.min(GROWTHS_MAX) {
            for name in
                self.subjects.iter().filter(|name| ![SHARDED, rte_hash::NAME].contains(*name))
            {
                growth::measure::<K, W, R>(name, &self.make(room, false), samples)?;
            }
        }
        Ok(())
    }

    fn rounds<const K: usize, const W: usize, const R: usize>(
        &self,
        setting: &Setting,
        (operations, shares): (&[Operation], bool),
        samples: &mut Samples,
    ) -> Result<()> {
        let two_keys = setting.kind.two_keys;
        let make = self.make(Room::fixed(setting.flows), two_keys);
        let names = self.subjects.iter().filter(|name| **name != SHARDED);
        let subjects: Vec<Boxed<K>> =
            names.map(|name| make.subject::<K, W, R>(name)).collect::<Result<_>>()?;
        let mut round = Round::filled(setting, subjects)?;
        round.audit()?;
        for _ in 0..self.runs {
            round.run(operations, samples)?;
        }
        round.audit()?;
        let (mut subjects, mut population) = round.into_parts();
        let (true, Some(other)) = (shares, self.other_core) else { return Ok(()) };
        let sharded = (self.subjects.contains(&SHARDED) && self.subjects.contains(&XSKIFF))
            .then(|| Sharded::<K, W>::filled(&population, two_keys))
            .transpose()?;
        let tables = (&mut subjects[..], sharded.as_ref());
        share::measure(setting, tables, &mut population, ([self.core, other], self.runs), samples)
    }
}

/// Medians of looking up and updating as many flows of IPv4 and of IPv6, by subject.
#[derive(Debug, Default)]
struct Families(Vec<(String, [Option<f64>; 2], &'static str)>);

impl Families {
    fn note(&mut self, setting: &Setting, samples: &Samples) {
        if setting.kind.two_keys {
            return;
        }
        for (spread, name) in
            SPREADS.into_iter().flat_map(|spread| NAMES.map(|name| (spread, name)))
        {
            let case = setting.case(Operation::LookUpdate(spread));
            let median = samples.median_of(&case, name);
            let ratio = setting.case_of_families("lookup-update", spread);
            let known =
                self.0.iter_mut().find(|(case, _, subject)| *case == ratio && *subject == name);
            let family = usize::from(setting.kind.is_v6);
            match known {
                Some((_, medians, _)) => medians[family] = median,
                None => {
                    let mut medians = [None; 2];
                    medians[family] = median;
                    self.0.push((ratio, medians, name));
                }
            }
        }
    }

    fn report(self, report: &mut Report) -> Result<()> {
        for (case, medians, name) in self.0 {
            let [Some(v4), Some(v6)] = medians else { continue };
            report.add(Figure::of(BENCH, &case, name, "ratio", &[v6 / v4]))?;
        }
        Ok(())
    }
}

fn names(wanted: &[String], known: &'static [&'static str]) -> Result<Vec<&'static str>> {
    Ok(chosen(wanted, known, |name| name)?.into_iter().copied().collect())
}
