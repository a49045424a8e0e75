//! Runs the system's own tools to their end.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::LabError;

/// Most bytes of a failed command's output that an error repeats.
const OUTPUT_BYTES_MAX: usize = 600;

/// The Debian package of each tool the laboratory runs.
fn package_of(program: &str) -> &'static str {
    match program {
        "ip" => "iproute2",
        "ethtool" => "ethtool",
        "ping" => "iputils-ping",
        _ => "coreutils",
    }
}

/// Prepares `program` so that a Ctrl-C at the terminal does not reach it: the laboratory decides
/// when its children end, else its clean-up would lose the tools it cleans up with.
pub(super) fn prepare(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).process_group(0).stdin(Stdio::null());
    command
}

/// Runs `program` and gives back what it wrote to its standard output.
///
/// # Errors
/// It is missing, or its exit status is not 0; the error repeats the end of its output.
pub(super) fn run(program: &str, arguments: &[&str]) -> Result<String, LabError> {
    let output = prepare(program, arguments).output().map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            LabError::NotInstalled { program: program.into(), package: package_of(program) }
        } else {
            LabError::io("run", program)(error)
        }
    })?;
    let standard = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(standard);
    }
    let both = format!("{standard}{}", String::from_utf8_lossy(&output.stderr));
    Err(LabError::CommandFailed {
        command: format!("{program} {}", arguments.join(" ")),
        status: output.status.to_string(),
        output: tail(both.trim(), OUTPUT_BYTES_MAX).to_owned(),
    })
}

/// The last `bytes_max` bytes of `text`, cut at a character.
pub(super) fn tail(text: &str, bytes_max: usize) -> &str {
    let mut start = text.len().saturating_sub(bytes_max);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::{run, tail};
    use crate::lab::LabError;

    #[test]
    fn tail_cuts_at_a_character() {
        assert_eq!(tail("aéz", 2), "z");
        assert_eq!(tail("abc", 9), "abc");
    }

    #[test]
    fn a_failed_command_repeats_what_it_wrote() {
        let error = run("sh", &["-c", "echo out; echo err >&2; exit 3"]).unwrap_err();
        assert!(matches!(&error, LabError::CommandFailed { output, .. } if output == "out\nerr"));
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = run("xskiff-no-such-program", &[]).unwrap_err();
        assert!(matches!(error, LabError::NotInstalled { .. }), "{error}");
    }
}
