//! What the container runtime is told when something cannot be done: the specification's codes, and
//! three of our own.

use serde_json::json;

/// Longest text of a message or its details, in bytes: runtimes put them into logs and events.
const TEXT_BYTES_MAX: usize = 2000;

/// Why, as the CNI specification numbers it; its numbers from 100 on are the plugin's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// 1: the version is not spoken, or knows no such verb.
    IncompatibleVersion,
    /// 2: a key or value that is not supported, whose name and value are told.
    UnsupportedField,
    /// 4: the environment is not as it must be; the variable is named.
    InvalidEnvironment,
    /// 5: a file or the kernel.
    InputOutput,
    /// 6: not JSON.
    Undecodable,
    /// 7: a value in the configuration cannot be; its key is named.
    InvalidConfiguration,
    /// 11: nothing is wrong that time does not mend.
    TryAgainLater,
    /// 50, of STATUS: no pod can be added now.
    Unavailable,
    /// 51, of STATUS: and those that are there may be cut off.
    UnavailableAndLimited,
    /// 100: the node refused.
    Refused,
    /// 101: plugin and node do not understand each other.
    Misunderstood,
    /// 102: the pod's interface is none that the node can serve.
    UnservableInterface,
}

impl Code {
    /// The number.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::InvalidEnvironment => 4,
            Self::InputOutput => 5,
            Self::Undecodable => 6,
            Self::InvalidConfiguration => 7,
            Self::TryAgainLater => 11,
            Self::Unavailable => 50,
            Self::UnavailableAndLimited => 51,
            Self::Refused => 100,
            Self::Misunderstood => 101,
            Self::UnservableInterface => 102,
        }
    }
}

/// An error as the container runtime is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {details}")]
pub struct CniError {
    code: Code,
    message: String,
    details: String,
}

impl CniError {
    /// With what is wrong, and the way out.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, message: cut(message.into()), details: cut(details.into()) }
    }

    /// The specification's number.
    #[must_use]
    pub fn code(&self) -> u32 {
        self.code.number()
    }

    /// The JSON object that goes to standard output. `version` is the configuration's, or the newest
    /// when that could not be read.
    #[must_use]
    pub fn json(&self, version: &str) -> String {
        json!({
            "cniVersion": version,
            "code": self.code.number(),
            "msg": self.message,
            "details": self.details,
        })
        .to_string()
    }
}

/// The text within its bound.
fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_keys_of_the_specification_and_a_bound() {
        let error = CniError::new(Code::TryAgainLater, "no node", "\u{e9}".repeat(5000));
        let json: serde_json::Value = serde_json::from_str(&error.json("0.4.0")).unwrap();
        assert_eq!((&json["cniVersion"], &json["code"]), (&"0.4.0".into(), &11.into()));
        assert_eq!(json["msg"], "no node");
        assert!(json["details"].as_str().unwrap().len() < TEXT_BYTES_MAX + 10);
    }
}
