//! What was expected, what was seen, and whether they are the same.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::DemoError;
use crate::cli::table::Table;

/// Narrowest and widest closing table, in characters.
const COLUMNS_MIN: usize = 80;
const COLUMNS_MAX: usize = 160;

/// How an expectation came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As expected.
    Ok,
    /// Otherwise than expected.
    Differs,
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Differs => "DIFFERS",
        }
    }
}

/// What a step saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// How it came out.
    pub outcome: Outcome,
    /// In a few words.
    pub text: String,
}

impl Seen {
    /// As expected if `ok`.
    pub fn when(ok: bool, text: impl Into<String>) -> Self {
        let outcome = if ok { Outcome::Ok } else { Outcome::Differs };
        Self { outcome, text: text.into() }
    }
}

/// One row of the closing table.
#[derive(Debug, Clone, Serialize)]
pub struct Expectation {
    /// What was tried.
    pub name: String,
    /// What had to be seen.
    pub expected: String,
    /// What was seen.
    pub seen: String,
    /// Whether they are the same.
    pub outcome: Outcome,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

impl Expectation {
    /// One line for people who watch.
    #[must_use]
    pub fn line(&self) -> String {
        let (label, took) = (self.outcome.label(), seconds(self.took_ms));
        format!("{label:<7}  {}: {} ({took})", self.name, self.seen)
    }
}

/// Does `work` and writes down what came of it; an error is seen like anything else.
pub fn expect(
    name: &str,
    expected: &str,
    work: impl FnOnce() -> Result<Seen, DemoError>,
) -> Expectation {
    let begin = Instant::now();
    let seen = work().unwrap_or_else(|error| Seen::when(false, error.to_string()));
    Expectation {
        name: name.to_owned(),
        expected: expected.to_owned(),
        seen: seen.text,
        outcome: seen.outcome,
        took_ms: milliseconds(begin.elapsed()),
    }
}

/// The result of a whole demo, as `--json` prints it.
#[derive(Debug, Serialize)]
pub struct Summary<'a> {
    /// Whether nothing differs.
    pub ok: bool,
    /// Expectations that came out as expected.
    pub met: usize,
    /// Expectations that came out otherwise.
    pub differing: usize,
    /// The whole demo, in milliseconds.
    pub took_ms: u64,
    /// All of them, in order.
    pub expectations: &'a [Expectation],
}

impl<'a> Summary<'a> {
    /// Counts `expectations`.
    #[must_use]
    pub fn new(expectations: &'a [Expectation], took: Duration) -> Self {
        let count = |outcome| expectations.iter().filter(|row| row.outcome == outcome).count();
        let differing = count(Outcome::Differs);
        Self {
            ok: differing == 0 && !expectations.is_empty(),
            met: count(Outcome::Ok),
            differing,
            took_ms: milliseconds(took),
            expectations,
        }
    }

    /// The closing table, at most `columns` characters wide where words allow it.
    #[must_use]
    pub fn table(&self, columns: usize) -> String {
        // What is left beside the outcome, the time and four gaps.
        let left = columns.clamp(COLUMNS_MIN, COLUMNS_MAX) - 7 - 8 - 4 * 2;
        let (what, expected) = (left * 3 / 10, left * 3 / 10);
        let mut table = Table::new(&["", "WHAT", "EXPECTED", "SEEN", ">TOOK"]);
        for row in self.expectations {
            let cells = [
                vec![row.outcome.label().to_owned()],
                wrap(&row.name, what),
                wrap(&row.expected, expected),
                wrap(&row.seen, left - what - expected),
                vec![seconds(row.took_ms)],
            ];
            let height = cells.iter().map(Vec::len).max().unwrap_or(0);
            for line in 0..height {
                table.row(cells.iter().map(|cell| cell.get(line).cloned().unwrap_or_default()));
            }
        }
        format!(
            "{table}\n{} as expected, {} different; {} in all\n",
            self.met,
            self.differing,
            seconds(self.took_ms),
        )
    }
}

/// `text` in lines of at most `width` characters, broken between words.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let length = lines.last().map_or(0, |line| line.chars().count());
        if length > 0 && length + 1 + word.chars().count() > width {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// Milliseconds as people read them.
#[must_use]
pub fn seconds(milliseconds: u64) -> String {
    format!("{}.{:02} s", milliseconds / 1000, milliseconds % 1000 / 10)
}

/// Whole milliseconds of a duration.
#[must_use]
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::lab::LabError;

    use super::{DemoError, Outcome, Seen, Summary, expect, seconds, wrap};

    #[test]
    fn an_error_in_a_step_is_a_difference_that_names_it() {
        let row = expect("ping", "3 of 3", || Err(DemoError::Lab(LabError::NotRoot)));
        assert_eq!(row.outcome, Outcome::Differs);
        assert!(row.seen.contains("root"), "{}", row.seen);
    }

    #[test]
    fn one_difference_is_a_failure_and_is_shown_as_such() {
        let of = |ok: bool| expect("a", "x", || Ok(Seen::when(ok, if ok { "x" } else { "y" })));
        assert!(Summary::new(&[of(true)], Duration::from_millis(1234)).ok);
        let rows = [of(true), of(false)];
        let summary = Summary::new(&rows, Duration::ZERO);
        assert!(!summary.ok && summary.table(80).contains("DIFFERS"), "{summary:?}");
    }

    #[test]
    fn a_demo_that_expected_nothing_has_shown_nothing() {
        assert!(!Summary::new(&[], Duration::ZERO).ok);
    }

    #[test]
    fn long_cells_are_wrapped_between_words() {
        assert_eq!(wrap("a bc def", 4), ["a bc", "def"]);
        assert_eq!(wrap("abcdef g", 3), ["abcdef", "g"]);
        let seen = "word ".repeat(60);
        let rows = [expect(&seen, &seen, || Ok(Seen::when(true, seen.clone())))];
        let table = Summary::new(&rows, Duration::ZERO).table(100);
        assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
    }

    #[test]
    fn times_are_read_in_seconds() {
        assert_eq!(seconds(1234), "1.23 s");
        assert_eq!(seconds(50), "0.05 s");
    }
}
