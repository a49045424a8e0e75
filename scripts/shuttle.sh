#!/usr/bin/env bash
# Runs the whole flow table under random schedules: flow-table's test `shuttle`, under `--cfg
# shuttle`. `shuttle.sh [SECONDS]` for each of its tests, 5 by default.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT_DIR"

export XSKIFF_SHUTTLE_SECONDS="${1:-5}"
[[ "$XSKIFF_SHUTTLE_SECONDS" =~ ^[1-9][0-9]*$ ]] || die "usage: shuttle.sh [SECONDS]"
# A directory of its own, and optimised, as in loom.sh.
export RUSTFLAGS="--cfg shuttle"
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
cargo test --locked --release -p flow-table --test shuttle --target-dir target/shuttle 2>&1 | tee "$log"
grep -Eq '^test result: ok\. [1-9]' "$log" || die "no test ran under random schedules in flow-table"
