#!/usr/bin/env bash
# Everything that must hold before a change goes in; `make test` and .ci/run are this. Every step
# runs, none is left out, and the first that fails ends it.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
scripts="$ROOT_DIR/scripts"
cd "$ROOT_DIR"

# Tests that are left out would be printed and passed over; here none may be.
unset XSKIFF_SKIP_ROOT_TESTS

step() {
    say "[${SECONDS} s] $1"
}

# Random cases are new with every commit, and the same each time that one commit is tried: what
# fails is a finding that can be looked at again.
if [[ -z "${PROPTEST_RNG_SEED:-}" ]] && commit="$(git rev-parse --verify --quiet HEAD)"; then
    export PROPTEST_RNG_SEED="$((16#${commit:0:15}))"
fi

trap tell_disk_on_failure EXIT
want_root "make test"
step "packages and Rust"
"$scripts/install_packages.sh" test
"$scripts/check_rust.sh" lints

step "scripts"
shellcheck -x "$scripts"/*.sh .ci/run

step "formatting"
cargo fmt --all --check

step "lints"
cargo clippy --locked --workspace --all-targets -- -D warnings

step "tests: units, properties, golden packets, simulation, namespaces, architecture, licences"
if [[ $EUID -ne 0 ]]; then
    triple="$(rustc -vV | sed -n 's/^host: //p')"
    runner="CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$triple")_RUNNER"
    export "$runner=$scripts/run_as_root.sh"
fi
cargo test --locked --workspace

step "interleavings of the lock-free code"
"$scripts/loom.sh"

step "the flow table under random schedules"
"$scripts/shuttle.sh"

step "every xskiff-perf subcommand on a tiny load"
"$scripts/perf_smoke.sh"

step "all passed"
