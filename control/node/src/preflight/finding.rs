//! What a check says: how it came out, what was found, and what to do.

use std::fmt::Write;

use serde::Serialize;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// A node works, and something costs or is lost.
    Warn,
    /// A node does not work.
    Fail,
    /// Not tried.
    Skipped,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked; an interface's name stands behind it.
    pub check: String,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; empty when nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Finding {
    /// As it should be.
    #[must_use]
    pub fn pass(check: &str, found: impl Into<String>) -> Self {
        Self::new(check, Verdict::Pass, found, "")
    }

    /// It costs, or something is lost.
    #[must_use]
    pub fn warn(check: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Verdict::Warn, found, remedy)
    }

    /// It does not work.
    #[must_use]
    pub fn fail(check: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Verdict::Fail, found, remedy)
    }

    /// Not tried, and why.
    #[must_use]
    pub fn skipped(check: &str, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Verdict::Skipped, why, remedy)
    }

    fn new(
        check: &str,
        verdict: Verdict,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { check: check.to_owned(), verdict, found: found.into(), remedy: remedy.into() }
    }
}

/// For people: a line a check, and what to do under it.
#[must_use]
pub fn table(checks: &[Finding]) -> String {
    let mut text = String::new();
    let width = checks.iter().map(|check| check.check.len()).max().unwrap_or(0);
    for Finding { check, verdict, found, remedy } in checks {
        let word = match verdict {
            Verdict::Pass => "pass",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
            Verdict::Skipped => "skip",
        };
        let _ = writeln!(text, "{word}  {check:width$}  {found}");
        if !remedy.is_empty() {
            let _ = writeln!(text, "      {:width$}  -> {remedy}", "");
        }
    }
    let of = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let (failed, warned) = (of(Verdict::Fail), of(Verdict::Warn));
    let _ = match (failed, warned) {
        (0, 0) => writeln!(text, "\ngood: a node works here"),
        (0, _) => writeln!(text, "\ngood, with {warned} remarks: a node works here"),
        _ => writeln!(text, "\nnot good: {failed} checks failed"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_check_with_what_to_do_and_a_verdict_at_the_end() {
        let checks = [
            Finding::pass("kernel", "6.18"),
            Finding::warn("mtu eth0", "9000", "raise it"),
            Finding::fail("load", "refused", "be root"),
        ];
        assert_eq!(
            table(&checks),
            "pass  kernel    6.18\nWARN  mtu eth0  9000\n                -> raise it\n\
             FAIL  load      refused\n                -> be root\n\nnot good: 1 checks failed\n"
        );
        assert!(table(&checks[..1]).ends_with("good: a node works here\n"));
    }
}
