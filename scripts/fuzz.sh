#!/usr/bin/env bash
# Fuzzes every parser, and the flow table, for a bounded time: `fuzz.sh [SECONDS]` for each target,
# 60 by default. The targets are the tests with `fuzz` in their path; bolero's engine for stable Rust
# drives them.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT_DIR"

seconds="${1:-60}"
[[ "$seconds" =~ ^[1-9][0-9]*$ ]] || die "usage: fuzz.sh [SECONDS]"
scripts/install_packages.sh build
scripts/check_rust.sh

# Time ends a run, not a number of inputs.
export BOLERO_RANDOM_TEST_TIME_MS="$((seconds * 1000))"
export BOLERO_RANDOM_ITERATIONS=1000000000
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
cargo test --locked --workspace fuzz -- --test-threads="$(nproc)" 2>&1 | tee "$log"
grep -Eq '^test result: ok\. [1-9]' "$log" || die "no test with fuzz in its path was found"
