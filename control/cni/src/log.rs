//! What is said beside the answer: on standard error, which runtimes put into their log when a call
//! fails, and in a file, if one is configured. A log that cannot be written fails no pod.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A log file this large, in bytes, is begun anew; the one before stays beside it as `NAME.old`.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Where a call is noted.
#[derive(Debug, Default)]
pub struct Log {
    file: Option<PathBuf>,
    /// Verb and attachment.
    about: String,
}

impl Log {
    /// Of one call, in that file if any.
    #[must_use]
    pub fn new(file: Option<PathBuf>, about: String) -> Self {
        Self { file, about }
    }

    /// Says something on standard error and in the file.
    pub fn warn(&self, text: &str) {
        eprintln!("xskiff-cni: {}: {text}", self.about);
        self.note(text);
    }

    /// Says something in the file alone.
    pub fn note(&self, text: &str) {
        if let Some(file) = &self.file
            && let Err(error) = append(file, &self.about, text)
        {
            eprintln!("xskiff-cni: {}: {error}", file.display());
        }
    }
}

fn append(file: &Path, about: &str, text: &str) -> std::io::Result<()> {
    if fs::metadata(file).is_ok_and(|found| found.len() > FILE_BYTES_MAX) {
        let mut old = file.as_os_str().to_owned();
        old.push(".old");
        // Of several that do this at once one wins, and all are right.
        let _ = fs::rename(file, old);
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // A line is a line, whatever a pod is called.
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line = format!("{}.{:03} {about}: {text}\n", since.as_secs(), since.subsec_millis());
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600).open(file)?.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_a_line_and_a_large_file_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cni.log");
        let log = Log::new(Some(file.clone()), "ADD a eth0".into());
        log.note("one\ntwo");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.ends_with("ADD a eth0: one two\n"), "{text}");
        fs::write(&file, vec![b'x'; 5 << 20]).unwrap();
        log.note("three");
        assert!(fs::metadata(&file).unwrap().len() < 100);
        assert!(directory.path().join("cni.log.old").exists());
        // And one that cannot be written is no matter.
        Log::new(Some("/nonexistent/x".into()), String::new()).note("four");
    }
}
