//! `metadata.uid` in few bytes: a large cluster has two hundred thousand, nearly all of one form.

use std::fmt;

/// Where the hyphens of a UUID's text are (RFC 9562, section 4).
const HYPHENS: [usize; 4] = [8, 13, 18, 23];
const TEXT_BYTES: usize = 36;

/// What tells an object from all others of its name, before and after it; empty in manifests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Uid {
    /// There is none.
    #[default]
    Absent,
    /// A UUID, as API servers give it: in lower case.
    Uuid([u8; 16]),
    /// Anything else, such as kubelets give pods of their own.
    Other(Box<str>),
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        match uuid(text.as_bytes()) {
            _ if text.is_empty() => Self::Absent,
            Some(octets) => Self::Uuid(octets),
            None => Self::Other(text.into()),
        }
    }
}

/// The octets of a UUID that is written as [`Uid`] writes it.
fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    if text.len() != TEXT_BYTES {
        return None;
    }
    let mut octets = [0; 16];
    let mut digits = 0;
    for (place, byte) in text.iter().enumerate() {
        if HYPHENS.contains(&place) {
            if *byte != b'-' {
                return None;
            }
            continue;
        }
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        let octet = octets.get_mut(digits / 2)?;
        *octet = *octet << 4 | digit;
        digits += 1;
    }
    Some(octets)
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => Ok(()),
            Self::Uuid(octets) => {
                for (place, octet) in octets.iter().enumerate() {
                    let hyphen = if matches!(place, 4 | 6 | 8 | 10) { "-" } else { "" };
                    write!(f, "{hyphen}{octet:02x}")?;
                }
                Ok(())
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_comes_back_and_two_are_equal_only_where_their_texts_are() {
        let uuid = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
        assert!(matches!(Uid::from(uuid), Uid::Uuid(_)));
        let others = [
            "u-1",
            "7C9E6679-7425-40de-944b-e07fc1f90ae7",
            "7c9e667907425-40de-944b-e07fc1f90ae7",
            "7c9e6679-7425-40de-944b-e07fc1f90ae",
            "7c9e6679-7425-40de-944b-e07fc1f90ae78",
            "4f6d0a8ce1c5d0d1a0f2f7b8c9d0e1f2",
        ];
        for text in others {
            assert!(matches!(Uid::from(text), Uid::Other(_)), "{text}");
            assert_ne!(Uid::from(text), Uid::from(uuid));
        }
        for text in others.into_iter().chain([uuid, ""]) {
            assert_eq!(Uid::from(text).to_string(), text);
        }
    }
}
