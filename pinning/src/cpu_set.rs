//! Sets of CPUs, read and written as the kernel's lists (`0-3,8,10-11`).
//!
//! The format is that of `Documentation/admin-guide/cputopology.rst` in the kernel's sources. The
//! strided form (`0-31:2/4`) is accepted by the kernel but never printed by it, and is refused here.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// CPUs a Linux kernel can number: `NR_CPUS` of x86-64 is at most 8192.
pub const CPUS_MAX: u16 = 8192;

/// The kernel's number of a CPU (one hardware thread), below [`CPUS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(pub u16);

impl fmt::Display for CpuId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

/// A CPU list that does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{list}` is not a CPU list such as `0-3,8`: {why}")]
pub struct CpuListError {
    /// The text as it was given.
    pub list: String,
    /// What is wrong with it.
    pub why: String,
}

/// A set of CPUs, in ascending order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuSet(BTreeSet<CpuId>);

impl CpuSet {
    /// Whether `cpu` is in the set.
    #[must_use]
    pub fn contains(&self, cpu: CpuId) -> bool {
        self.0.contains(&cpu)
    }

    /// How many CPUs are in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the set holds no CPU.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The CPUs, lowest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = CpuId> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<CpuId> for CpuSet {
    fn from_iter<I: IntoIterator<Item = CpuId>>(cpus: I) -> Self {
        Self(cpus.into_iter().collect())
    }
}

impl FromStr for CpuSet {
    type Err = CpuListError;

    /// Parses a list; white space around it is ignored, and an empty list is an empty set.
    fn from_str(list: &str) -> Result<Self, CpuListError> {
        let wrong = |why: String| CpuListError { list: list.trim().to_owned(), why };
        let mut cpus = BTreeSet::new();
        for part in list.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first = parse_cpu(first).map_err(wrong)?;
            let last = parse_cpu(last).map_err(wrong)?;
            if first > last {
                return Err(wrong(format!("{first}-{last} runs backward")));
            }
            cpus.extend((first..=last).map(CpuId));
        }
        Ok(Self(cpus))
    }
}

fn parse_cpu(text: &str) -> Result<u16, String> {
    let number: u16 = text.trim().parse().map_err(|_| format!("`{text}` is not a number"))?;
    if number >= CPUS_MAX {
        return Err(format!("{number} is beyond the largest CPU number, {}", CPUS_MAX - 1));
    }
    Ok(number)
}

impl fmt::Display for CpuSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.0.iter().map(|cpu| cpu.0).peekable();
        let mut separator = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if(|next| *next == last + 1) {
                last = next;
            }
            if first == last {
                write!(formatter, "{separator}{first}")?;
            } else {
                write!(formatter, "{separator}{first}-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{CpuId, CpuSet};

    #[test]
    fn kernel_list_survives_parsing_and_printing() {
        for list in ["", "0", "0-3", "0-3,8,10-11", "8191"] {
            let set: CpuSet = list.parse().expect(list);
            assert_eq!(set.to_string(), list);
        }
    }

    #[test]
    fn newline_and_unordered_parts_are_accepted() {
        let set: CpuSet = "5,0-1\n".parse().expect("a list");
        assert_eq!(set.to_string(), "0-1,5");
        assert!(set.contains(CpuId(5)) && !set.contains(CpuId(2)));
    }

    #[test]
    fn wrong_lists_are_refused_with_the_part_that_is_wrong() {
        for (list, word) in
            [("3-1", "backward"), ("a", "`a`"), ("0-", "``"), ("9000", "beyond"), ("0-3:1/2", ":")]
        {
            let error = list.parse::<CpuSet>().expect_err(list).to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
