//! How long a call of the plugin takes by itself: runtimes start it anew for every verb of every pod,
//! and the kubelet waits.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use xskiff_tests::xskiff_binary::plugin;

const RUNS: usize = 20;
/// What the quickest of [`RUNS`] may take, of a development build and beside other tests: a start, with
/// all that the system does for it. The delivered plugin takes about 1 ms (ARCHITECTURE.md, Figures).
const QUICKEST_MAX: Duration = Duration::from_millis(20);

const CONFIGURATION: &str = r#"{"cniVersion":"1.1.0","name":"pods","type":"xskiff-cni",
    "socket":"/nonexistent/admin.sock","nodeAbsent":"wait","waitSeconds":120}"#;

fn call(verb: &str) -> (Duration, Output) {
    let began = Instant::now();
    let mut command = Command::new(plugin());
    command.env_clear().env("CNI_COMMAND", verb);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it runs");
    let mut input = child.stdin.take().expect("its standard input");
    input.write_all(CONFIGURATION.as_bytes()).expect("it reads");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    (began.elapsed(), output)
}

/// The quickest, since what others do on the machine only ever adds.
fn quickest(verb: &str, code: Option<i32>, word: &str) -> Duration {
    // Not to be measured: it may have to be built, and read from the disk.
    let _ = call(verb);
    let calls = (0..RUNS).map(|_| {
        let (took, output) = call(verb);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.code() == code && said.contains(word), "{verb}: {output:?}");
        took
    });
    calls.min().expect("some runs")
}

#[test]
fn a_call_takes_milliseconds_and_one_that_needs_no_node_waits_for_none() {
    for (verb, code, word) in
        [("VERSION", Some(0), "supportedVersions"), ("STATUS", Some(1), "no node process")]
    {
        let took = quickest(verb, code, word);
        println!("{verb}: {took:?}");
        assert!(took < QUICKEST_MAX, "{verb}: {took:?}");
    }
}
