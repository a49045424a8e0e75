#!/usr/bin/env bash
# Runs the loom models: every test with `loom` in its path, under `--cfg loom`.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT_DIR"

# A directory of its own, since other flags would rebuild everything else twice; optimised, since
# models run millions of interleavings. Preemptions are bounded as loom's book advises.
export RUSTFLAGS="--cfg loom"
export LOOM_MAX_PREEMPTIONS="${LOOM_MAX_PREEMPTIONS:-3}"
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
cargo test --locked --release -p flow-table --target-dir target/loom loom 2>&1 | tee "$log"
grep -Eq '^test result: ok\. [1-9]' "$log" || die "no loom model ran in flow-table"
