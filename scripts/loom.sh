#!/usr/bin/env bash
# Checks the models of the lock-free code: flow-table's test `loom`, under `--cfg loom`.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT_DIR"

# A directory of its own, since other flags would rebuild everything else twice; optimised, since
# models run millions of interleavings.
export RUSTFLAGS="--cfg loom"
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
cargo test --locked --release -p flow-table --test loom --target-dir target/loom 2>&1 | tee "$log"
grep -Eq '^test result: ok\. [1-9]' "$log" || die "no loom model ran in flow-table"
