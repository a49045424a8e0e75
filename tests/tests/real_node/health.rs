//! What a running node says and costs: its own `/metrics` before Prometheus' own judge, and the
//! processor time of the whole process while nothing happens.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use xskiff::node::usage::ROWS;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::world::{Shape, World};

/// Where the demo's node serves its metrics.
const METRICS: &str = "http://127.0.0.1:9964/metrics";
/// Ticks of `/proc/PID/stat` per second (USER_HZ, 100 on every Linux).
const TICKS_PER_SECOND: f64 = 100.0;

/// What promtool has to say; nothing when all is well.
fn promtool(text: &str) -> String {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of Debian's package `prometheus`, is needed");
    promtool.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
    let output = promtool.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert_eq!(output.status.success(), said.is_empty(), "{said}");
    said
}

#[test]
fn the_metrics_of_a_real_node_have_every_table_and_nothing_that_promtool_minds() {
    if !root_or_skip("a real node's metrics") {
        return;
    }
    let world = World::start(Shape { label: "metrics", mtu: 1500, xdp_mode: "native" });
    let text = world.scene.node.run("curl", &["-sS", "--fail", METRICS]).expect("metrics");
    assert_eq!(promtool(&text), "");
    for row in ROWS {
        for figure in ["used", "capacity", "high_water"] {
            let sample = format!("\nxskiff_table_{figure}_entries{{table=\"{row}\"}} ");
            assert!(text.contains(&sample), "{sample} is missing in\n{text}");
        }
    }
    for family in
        ["xskiff_worker_received_packets_total", "xskiff_port_up", "xskiff_xdp_packets_total"]
    {
        assert!(text.contains(&format!("\n{family}{{")), "{family} is missing in\n{text}");
    }
}

/// Processor time of all threads of a process, in seconds (proc(5), `/proc/PID/stat`).
fn processor_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, behind_name) = stat.rsplit_once(')').expect("a name in brackets");
    let fields: Vec<&str> = behind_name.split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<f64>().expect("a number");
    // utime and stime, fields 14 and 15, the third being the first behind the name.
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

#[test]
fn an_idle_node_uses_next_to_no_processor() {
    const SHARE_MAX: f64 = 0.02;
    const LOOK: Duration = Duration::from_secs(5);
    if !root_or_skip("an idle node's processor time") {
        return;
    }
    let world = World::start(Shape { label: "idle", mtu: 1500, xdp_mode: "native" });
    let pid = world.status().pid;
    // What the start left to do is done.
    std::thread::sleep(Duration::from_secs(2));
    let (before, started) = (processor_seconds(pid), Instant::now());
    std::thread::sleep(LOOK);
    let share = (processor_seconds(pid) - before) / started.elapsed().as_secs_f64();
    assert!(share < SHARE_MAX, "{:.2} % of a core, all threads", share * 100.0);
}
