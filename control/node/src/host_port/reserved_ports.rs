//! Keeps the kernel's hands off the L4 ports we translate to
//! (`net.ipv4.ip_local_reserved_ports`), and gives them back.
//!
//! What we added is recorded in a file, so that the next process can give back what a killed one
//! could not, and never takes away what an administrator had reserved.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::HostPortError;
use super::sysctl;

const SYSCTL: &str = "net/ipv4/ip_local_reserved_ports";

/// A set of L4 ports, written as the kernel writes it: `1024,3000-3010`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortSet(BTreeSet<u16>);

impl PortSet {
    /// The ports of a range.
    #[must_use]
    pub fn range(range: RangeInclusive<u16>) -> Self {
        Self(range.collect())
    }

    /// Reads the kernel's notation. `None` when it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut ports = BTreeSet::new();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: u16 = first.trim().parse().ok()?;
            let last: u16 = last.trim().parse().ok()?;
            ports.extend(first..=last);
        }
        Some(Self(ports))
    }

    /// Those of `self` that `other` has not.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }

    /// Those of either.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self(self.0.union(&other.0).copied().collect())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Display for PortSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut ports = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = ports.next() {
            let mut last = first;
            while let Some(next) = ports.next_if(|next| last.checked_add(1) == Some(*next)) {
                last = next;
            }
            match first == last {
                true => write!(f, "{separator}{first}")?,
                false => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

/// Our reservation.
#[derive(Debug)]
pub struct ReservedPorts {
    record: PathBuf,
}

impl ReservedPorts {
    /// Reserves `range`, and records in `directory` what was not reserved before.
    ///
    /// # Errors
    /// [`HostPortError::Sysctl`] or [`HostPortError::Record`].
    pub fn reserve(directory: &Path, range: RangeInclusive<u16>) -> Result<Self, HostPortError> {
        let record = directory.join("reserved-ports");
        let own = Self { record };
        own.release()?;
        let before = current()?;
        let added = PortSet::range(range).without(&before);
        // The record comes first: a kill between the two gives back what was never taken, which
        // changes nothing.
        own.write_record(&added)?;
        sysctl::write(SYSCTL, &before.with(&added).to_string())?;
        Ok(own)
    }

    /// Gives back what the record says was added, by us or by a process before us.
    ///
    /// # Errors
    /// [`HostPortError::Sysctl`] or [`HostPortError::Record`].
    pub fn release(&self) -> Result<(), HostPortError> {
        let text = match std::fs::read_to_string(&self.record) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(self.failed(source)),
        };
        // A record that a power loss cut short says nothing reliable: nothing is given back.
        let added = PortSet::parse(&text).unwrap_or_default();
        if !added.is_empty() {
            // An empty line clears the list; an empty write would be ignored.
            sysctl::write(SYSCTL, &format!("{}\n", current()?.without(&added)))?;
        }
        std::fs::remove_file(&self.record).map_err(|source| self.failed(source))
    }

    fn write_record(&self, added: &PortSet) -> Result<(), HostPortError> {
        std::fs::write(&self.record, added.to_string()).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: std::io::Error) -> HostPortError {
        HostPortError::Record { path: self.record.display().to_string(), source }
    }
}

fn current() -> Result<PortSet, HostPortError> {
    let text = sysctl::read(SYSCTL)?;
    PortSet::parse(&text).ok_or_else(|| HostPortError::Sysctl {
        name: SYSCTL.replace('/', "."),
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, format!("holds {text:?}")),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_kernels_notation_is_read_and_written() {
        let set = PortSet::parse("8080,61000-61003,1\n").unwrap();
        assert_eq!(set.to_string(), "1,8080,61000-61003");
        assert_eq!(PortSet::parse("\n").unwrap().to_string(), "");
        assert_eq!(PortSet::parse("1-x"), None);
        assert_eq!(PortSet::range(65_534..=65_535).to_string(), "65534-65535");
    }

    #[test]
    fn what_an_administrator_had_reserved_is_not_ours_to_give_back() {
        let before = PortSet::parse("61500-61600").unwrap();
        let added = PortSet::range(61_000..=62_000).without(&before);
        let during = before.with(&added);
        assert_eq!(during.to_string(), "61000-62000");
        assert_eq!(during.without(&added), before);
    }

    proptest! {
        #[test]
        fn every_set_survives_its_notation(ports in proptest::collection::btree_set(any::<u16>(), 0..300)) {
            let set = PortSet(ports);
            prop_assert_eq!(PortSet::parse(&set.to_string()), Some(set));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "[0-9,\\- ]{0,40}") {
            let _ = PortSet::parse(&text);
        }
    }
}
