#!/usr/bin/env bash
# Builds the benchmarks and runs them as root: `bench.sh [SUBCOMMAND [OPTION]...]`, without
# arguments the pipeline in memory, then its flow table beside others, then following a large cluster,
# then the comparison on veth, then many services there, then the node process's latency.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT_DIR"

want_root "make bench"
scripts/install_packages.sh bench
scripts/check_rust.sh
cargo build --locked --release -p xskiff-perf -p xskiff
perf="$ROOT_DIR/target/release/xskiff-perf"
if [[ $# -gt 0 ]]; then
    as_root "$perf" "$@"
else
    as_root "$perf" pipeline
    as_root "$perf" table
    as_root "$perf" cluster
    as_root "$perf" veth
    as_root "$perf" services
    as_root "$perf" latency
fi
