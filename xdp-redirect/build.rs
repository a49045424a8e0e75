//! Compiles the XDP programs with clang.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::{env, io};

#[allow(dead_code)]
#[path = "src/limits.rs"]
mod limits;

macro_rules! defines {
    ($($name:ident)+) => { [$(format!(concat!("-D", stringify!($name), "={}"), limits::$name)),+] };
}

fn main() -> ExitCode {
    for watched in ["src/limits.rs", "src/program.bpf.h", "build.rs"] {
        println!("cargo::rerun-if-changed={watched}");
    }
    println!("cargo::rerun-if-env-changed=BPF_CLANG");
    let clang = env::var("BPF_CLANG").unwrap_or_else(|_| "clang".into());
    for name in ["redirect", "live_frames", "live_transmit"] {
        println!("cargo::rerun-if-changed=src/{name}.bpf.c");
        if let Err(reason) = compile(&clang, name) {
            println!("cargo::error=cannot compile src/{name}.bpf.c: {reason}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn compile(clang: &str, name: &str) -> Result<(), String> {
    let missing = |name: &str| format!("cargo did not set {name}");
    let here = env::var("CARGO_MANIFEST_DIR").map_err(|_| missing("CARGO_MANIFEST_DIR"))?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| missing("OUT_DIR"))?);
    let output = Command::new(clang)
        .args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror", "-fno-ident"])
        // BTF holds paths: without this the object would differ from directory to directory.
        .arg(format!("-ffile-prefix-map={here}=."))
        .args(defines!(
            PORTS_MAX QUEUES_MAX WORKERS_MAX PREFIXES_MAX NODE_ADDRESSES_MAX POD_ADDRESSES_MAX
            INTERFACES_MAX LIVE_BATCH LIVE_PACKET_BYTES HEARTBEAT_STRIDE L4_PORT_WORDS KIND_POD KIND_UPLINK KIND_HOST PORT_EVERYTHING
            PREFIX_TRANSLATED PREFIX_PASS_ON_STALL BITMAP_TCP BITMAP_UDP BITMAP_ICMP BITMAP_SCTP
            BITMAP_PROTOCOL BITMAPS COUNTER_REDIRECTED COUNTER_PASSED COUNTER_NO_SOCKET
            COUNTER_STALLED COUNTER_NOT_IP COUNTER_MALFORMED
            COUNTER_UNKNOWN_INTERFACE COUNTER_PASSED_ON_STALL COUNTER_TAGGED COUNTER_LATE COUNTERS
        ))
        .arg("-c")
        .arg(format!("src/{name}.bpf.c"))
        .arg("-o")
        .arg(out.join(format!("{name}.bpf.o")))
        .current_dir(&here)
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!(
                "`{clang}` is not installed; run `apt-get install clang llvm`, \
                 or name another compiler in BPF_CLANG"
            ),
            _ => format!("`{clang}` does not start: {error}"),
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim_end().replace('\n', "\\n"))
}
