//! What is measured, and what it is called.

use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result, bail};

use super::flow::{V4, V4_ENTRY, V6, V6_ENTRY};
use crate::spread::Spread;

/// Whose addresses, and how many keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// As `--kinds` takes it.
    pub name: &'static str,
    /// Ending of the names of cases.
    suffix: &'static str,
    /// Whether flows are found under both directions' tuples.
    pub two_keys: bool,
    /// IPv6.
    pub is_v6: bool,
}

/// All kinds.
pub const KINDS: [Kind; 3] = [
    Kind { name: "v4", suffix: "v4", two_keys: false, is_v6: false },
    Kind { name: "v6", suffix: "v6", two_keys: false, is_v6: true },
    Kind { name: "two-keys", suffix: "v4/two-keys", two_keys: true, is_v6: false },
];

impl Kind {
    /// Words of a key and of an entry.
    fn words(self) -> (usize, usize) {
        if self.is_v6 { (V6, V6_ENTRY) } else { (V4, V4_ENTRY) }
    }
}

/// One table's worth of flows, and how much is done with them in a round.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Flows in every table.
    pub flows: usize,
    /// What flows they are.
    pub kind: Kind,
    /// Lookups of a sample.
    pub lookups: usize,
    /// Flows that go and come in a round.
    pub moves: usize,
}

/// What is done in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Looking up flows that are there, and updating them.
    LookUpdate(Spread),
    /// Looking up flows that are not there.
    Miss,
    /// Deleting flows, then inserting as many new ones.
    Move,
    /// Reading every entry.
    Sweep,
}

impl Setting {
    /// The name of an operation's case.
    pub fn case(&self, operation: Operation) -> String {
        match operation {
            Operation::LookUpdate(spread) => self.name("lookup-update", spread),
            Operation::Miss => self.case_of("miss"),
            Operation::Move => self.case_of("delete and insert"),
            Operation::Sweep => self.case_of("sweep"),
        }
    }

    /// The name of a case of flows that are all alike.
    pub fn case_of(&self, what: &str) -> String {
        self.name(what, Spread::Uniform)
    }

    fn name(&self, what: &str, spread: Spread) -> String {
        format!("{what}/{}/{}/{}", short(self.flows), spread.name(), self.kind.suffix)
    }

    /// The name of what IPv6 flows take to what IPv4 flows take.
    pub fn case_of_families(&self, what: &str, spread: Spread) -> String {
        format!("{what}/{}/{}/v6-to-v4", short(self.flows), spread.name())
    }

    /// Memory that so many subjects will want at most, in bytes: twice the entry and a slot for each
    /// key, as a map has that has just doubled; and what the runs themselves want.
    pub fn memory_bytes(&self, subjects: usize) -> usize {
        let (key, entry) = self.kind.words();
        let table =
            if self.kind.two_keys { 2 * 2 * 2 * (key + 1) + entry } else { 2 * (entry + 1) };
        self.flows * (subjects * table * size_of::<u64>() + 32) + (1 << 29)
    }
}

/// `10M` for ten million.
pub fn short(count: usize) -> String {
    let mut name = String::new();
    let (value, unit) = match count {
        1_000_000.. if count.is_multiple_of(1_000_000) => (count / 1_000_000, "M"),
        1000.. if count.is_multiple_of(1000) => (count / 1000, "k"),
        _ => (count, ""),
    };
    // Writing to a string cannot fail.
    let _ = write!(name, "{value}{unit}");
    name
}

/// How many flows: `--flows`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flows {
    /// So many.
    Count(usize),
    /// As many millions as memory allows.
    Most,
}

/// Fewer make no bursts; more have no handles.
const FLOWS: std::ops::RangeInclusive<usize> = 1000..=200_000_000;

impl Flows {
    /// Reads `250k`, `10M` or `max`.
    ///
    /// # Errors
    /// It is none of these, or out of range.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Most);
        }
        let (digits, unit) = match text.as_bytes().last() {
            Some(b'k') => (&text[..text.len() - 1], 1000),
            Some(b'M') => (&text[..text.len() - 1], 1_000_000),
            _ => (text, 1),
        };
        let count = digits.parse::<usize>().ok().and_then(|count| count.checked_mul(unit));
        match count.filter(|count| FLOWS.contains(count)) {
            Some(count) => Ok(Self::Count(count)),
            None => Err("give flows such as 250k or 10M, from 1k to 200M, or max".into()),
        }
    }

    /// The number, given what of the machine's memory is there for `subjects` subjects.
    ///
    /// # Errors
    /// There is not enough.
    pub fn count(self, kind: Kind, subjects: usize) -> Result<usize> {
        if let Self::Count(count) = self {
            return Ok(count);
        }
        let for_million = Setting { flows: 1_000_000, kind, lookups: 0, moves: 0 };
        let millions = available_bytes()? / for_million.memory_bytes(subjects);
        let flows = millions * 1_000_000;
        if !FLOWS.contains(&flows) {
            bail!("there is no memory for a million flows of {subjects} subjects");
        }
        Ok(flows)
    }
}

/// Memory that can be had without swapping, in bytes (`MemAvailable`, proc_meminfo(5)).
///
/// # Errors
/// The kernel does not say.
pub fn available_bytes() -> Result<usize> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    kibibytes(&text, "MemAvailable:").context("/proc/meminfo has no MemAvailable")
}

/// The bytes that a line `name   number kB` tells.
pub fn kibibytes(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::{Flows, KINDS, Operation, Setting, kibibytes, short};
    use crate::spread::Spread;

    #[test]
    fn cases_have_the_agreed_names() {
        let [v4, v6, two_keys] =
            KINDS.map(|kind| Setting { flows: 10_000_000, kind, lookups: 1, moves: 1 });
        let uniform = Operation::LookUpdate(Spread::Uniform);
        assert_eq!(v4.case(uniform), "lookup-update/10M/uniform/v4");
        assert_eq!(v6.case(Operation::LookUpdate(Spread::Zipf)), "lookup-update/10M/zipf/v6");
        assert_eq!(two_keys.case(Operation::Miss), "miss/10M/uniform/v4/two-keys");
        assert_eq!(v4.case_of("insert"), "insert/10M/uniform/v4");
    }

    #[test]
    fn flows_are_read_and_written_in_short() {
        for (text, count) in [("250k", 250_000), ("10M", 10_000_000), ("1234", 1234)] {
            assert_eq!(Flows::parse(text), Ok(Flows::Count(count)));
            assert_eq!(short(count), text);
        }
        assert_eq!(Flows::parse("max"), Ok(Flows::Most));
        for text in ["", "M", "-1M", "999", "201M", "99999999999999999999M", "10G", "1µ"] {
            assert!(Flows::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lines_of_kibibytes_are_read() {
        let text = "MemTotal:       16 kB\nMemAvailable:    3 kB\n";
        assert_eq!(kibibytes(text, "MemAvailable:"), Some(3072));
        assert_eq!(kibibytes(text, "MemFree:"), None);
    }
}
