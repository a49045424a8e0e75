//! Versions of the CNI specification that are spoken here.

use super::error::{CniError, Code};

/// A version that is spoken; later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.0
    V0_3_0,
    /// 0.3.1
    V0_3_1,
    /// 0.4.0, with CHECK.
    V0_4_0,
    /// 1.0.0
    V1_0_0,
    /// 1.1.0, with GC and STATUS.
    V1_1_0,
}

impl Version {
    /// All of them, the oldest first.
    pub const ALL: [Self; 5] =
        [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest.
    pub const NEWEST: Self = Self::V1_1_0;

    /// As it is written.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// Code 1 for any that is not spoken.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let known = Self::ALL.into_iter().find(|version| version.text() == text);
        known.ok_or_else(|| {
            let spoken = Self::ALL.map(Self::text).join(", ");
            CniError::new(
                Code::IncompatibleVersion,
                format!("cniVersion {text:?} is not spoken"),
                format!("spoken are {spoken}"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn versions_are_in_order_and_read_as_they_are_written() {
        for pair in Version::ALL.windows(2) {
            assert!(pair[0] < pair[1]);
        }
        for version in Version::ALL {
            assert_eq!(Version::parse(version.text()).unwrap(), version);
        }
        for unknown in ["", "0.1.0", "0.2.0", "0.3", "1.1.1", "2.0.0", " 1.0.0"] {
            assert_eq!(Version::parse(unknown).unwrap_err().code(), 1, "{unknown:?}");
        }
    }
}
