//! The terminal: steps as they come, and below them a picture that is drawn again and again.
//!
//! On a terminal the picture stays at the bottom and the steps scroll above it; elsewhere one
//! plain line tells its essence now and then. With `--json` everything goes to standard error.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossterm::cursor::{Hide, MoveToColumn, MoveUp, Show};
use crossterm::style::Stylize;
use crossterm::terminal::{Clear, ClearType};
use crossterm::{Command, terminal};

use super::expectation::{Expectation, Outcome};

/// How often a plain line is written where nothing can be drawn again.
const PLAIN_PERIOD: Duration = Duration::from_secs(5);

/// Where the demo writes.
#[derive(Debug)]
pub struct Screen {
    live: bool,
    to_error: bool,
    picture: Vec<String>,
    drawn: u16,
    plain_at: Option<Instant>,
    ended: bool,
}

/// The screen, also after a panic elsewhere.
pub fn lock(screen: &Mutex<Screen>) -> MutexGuard<'_, Screen> {
    screen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How wide the terminal is; 120 where there is none.
#[must_use]
pub fn columns() -> usize {
    let size = std::io::stdout().is_terminal().then(terminal::size);
    size.and_then(Result::ok).map_or(120, |(columns, _)| usize::from(columns))
}

impl Screen {
    /// A screen on standard output, or, with `json`, on standard error.
    #[must_use]
    pub fn new(json: bool) -> Self {
        let live = !json && std::io::stdout().is_terminal();
        Self { live, to_error: json, picture: Vec::new(), drawn: 0, plain_at: None, ended: false }
    }

    /// Writes a line that stays.
    pub fn say(&mut self, text: &str) {
        self.write(Some(text));
    }

    /// Writes a step that has been done.
    pub fn say_row(&mut self, row: &Expectation) {
        let line = row.line();
        let coloured = match (self.live, row.outcome) {
            (false, _) => line,
            (true, Outcome::Ok) => line.green().to_string(),
            (true, Outcome::Differs) => line.red().to_string(),
        };
        self.write(Some(&coloured));
    }

    /// Draws the picture, or now and then writes `plain`.
    pub fn show(&mut self, picture: Vec<String>, plain: &str) {
        if self.live {
            self.picture = picture;
            self.write(None);
        } else if self.plain_at.is_none_or(|at| at.elapsed() >= PLAIN_PERIOD) {
            self.plain_at = Some(Instant::now());
            self.write(Some(plain));
        }
    }

    /// Takes the picture away.
    pub fn clear(&mut self) {
        self.picture.clear();
        self.write(None);
    }

    /// Takes the picture away, writes a last line, and writes nothing more.
    pub fn end(&mut self, text: &str) {
        self.picture.clear();
        self.write(Some(text));
        self.ended = true;
    }

    /// Erases what is drawn, writes a line, draws again: in one write, so that nothing flickers.
    fn write(&mut self, line: Option<&str>) {
        if self.ended {
            return;
        }
        let mut text = String::new();
        if self.drawn > 0 {
            ansi(&mut text, MoveUp(self.drawn));
            ansi(&mut text, MoveToColumn(0));
            ansi(&mut text, Clear(ClearType::FromCursorDown));
            self.drawn = 0;
        }
        if let Some(line) = line {
            text.push_str(line);
            text.push('\n');
        }
        if !self.picture.is_empty() {
            let (columns, rows) = terminal::size().unwrap_or((80, 24));
            // A line that wraps, or a picture taller than the screen, could not be erased.
            let visible = self.picture.iter().take(usize::from(rows.saturating_sub(2)));
            ansi(&mut text, Hide);
            for line in visible {
                text.extend(line.chars().take(usize::from(columns.saturating_sub(1))));
                text.push('\n');
                self.drawn += 1;
            }
            ansi(&mut text, Show);
        }
        // A terminal that is gone must not end the demo before it has cleaned up.
        let _ = if self.to_error {
            std::io::stderr().lock().write_all(text.as_bytes())
        } else {
            let mut output = std::io::stdout().lock();
            output.write_all(text.as_bytes()).and_then(|()| output.flush())
        };
    }
}

fn ansi(text: &mut String, command: impl Command) {
    // Writing to a String cannot fail.
    let _ = command.write_ansi(text);
}
