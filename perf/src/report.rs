//! The output: a header and a table for people, or JSON lines.

use std::io::{self, Write};

use crate::figure::Figure;
use crate::machine;

/// Where figures go.
#[derive(Debug)]
pub struct Report {
    json: bool,
    figures: Vec<Figure>,
}

impl Report {
    /// JSON lines, or a table at the end.
    pub fn new(json: bool) -> Self {
        Self { json, figures: Vec::new() }
    }

    /// Says what the figures below were measured on; `notes` are the subcommand's own. JSON has no
    /// header.
    ///
    /// # Errors
    /// The output is closed.
    pub fn header(&self, notes: &[String]) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        for line in machine::describe().iter().chain(notes) {
            writeln!(out, "{line}")?;
        }
        writeln!(out)
    }

    /// Adds a figure, if there is one; JSON goes out at once.
    ///
    /// # Errors
    /// The output is closed.
    pub fn add(&mut self, figure: Option<Figure>) -> io::Result<()> {
        let Some(figure) = figure else { return Ok(()) };
        if self.json {
            let line = serde_json::to_string(&figure)?;
            writeln!(io::stdout().lock(), "{line}")?;
        }
        self.figures.push(figure);
        Ok(())
    }

    /// Tells people on the way what is going on.
    pub fn progress(&self, text: &str) {
        if !self.json {
            eprintln!("# {text}");
        }
    }

    /// The table, with `ratios` below it.
    ///
    /// # Errors
    /// The output is closed.
    pub fn table(&self, ratios: &[String]) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        let width = self.figures.iter().map(|figure| figure.case.len()).max().unwrap_or(0).max(18);
        writeln!(
            out,
            "{:<width$} {:<22} {:>12} {:>12} {:>12} {:>4}  unit",
            "case", "subject", "median", "min", "max", "n"
        )?;
        let mut last = "";
        for figure in &self.figures {
            if !last.is_empty() && last != figure.case {
                writeln!(out)?;
            }
            last = &figure.case;
            writeln!(
                out,
                "{:<width$} {:<22} {:>12.1} {:>12.1} {:>12.1} {:>4}  {}",
                figure.case,
                figure.subject,
                figure.median,
                figure.min,
                figure.max,
                figure.n,
                figure.unit
            )?;
        }
        if !ratios.is_empty() {
            writeln!(out)?;
        }
        ratios.iter().try_for_each(|line| writeln!(out, "{line}"))
    }
}
