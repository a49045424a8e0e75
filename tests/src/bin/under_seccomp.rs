//! `under_seccomp PROFILE PROGRAM [ARGUMENT]...`: executes a program under a seccomp profile in the
//! format of container runtimes, as these do, but for one thing: what the profile does not allow ends
//! the process (SIGSYS), where the profile itself has the call refused. So nothing that is missing can
//! be passed over.
#![forbid(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, bail};
use xskiff_tests::seccomp_profile::Profile;

fn main() -> anyhow::Result<()> {
    let mut words = std::env::args_os().skip(1);
    let (Some(profile), Some(program)) = (words.next(), words.next()) else {
        bail!("usage: under_seccomp PROFILE PROGRAM [ARGUMENT]...");
    };
    let text = std::fs::read_to_string(&profile).context("the profile")?;
    let filter = Profile::parse(&text)?.deadly_filter()?;
    seccompiler::apply_filter(&filter).context("the filter is not taken")?;
    Err(Command::new(program).args(words).exec().into())
}
