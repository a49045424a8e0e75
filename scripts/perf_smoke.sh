#!/usr/bin/env bash
# Runs every subcommand of xskiff-perf once on a tiny load, so that it stays alive. The figures
# mean nothing here; `make bench` measures.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT_DIR"

# One line a run: the subcommand first, then its smallest load.
RUNS=(
    "pipeline --quick --runs 2"
    "pipeline --quick --runs 2 --cases established-1k,limited-1k"
    "table --quick"
    "cluster --quick --runs 2"
    "ports --quick"
    "transmit --quick"
    "veth --quick"
    "services --quick"
    "latency --quick"
    "tcp --quick"
)

# `latency` and `tcp` start the xskiff beside it.
cargo build --locked -p xskiff-perf -p xskiff
perf="$ROOT_DIR/target/debug/xskiff-perf"

# The list above must follow the program: a subcommand without a run fails here.
commands="$("$perf" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z][a-z-]*\).*/\1/p')"
for command in $commands; do
    [[ "$command" != help ]] || continue
    printf '%s\n' "${RUNS[@]}" | grep -Eq "^$command( |$)" ||
        die "xskiff-perf $command has no run in scripts/perf_smoke.sh"
done

want_root "xskiff-perf"
for run in "${RUNS[@]}"; do
    say "xskiff-perf $run"
    read -ra arguments <<<"$run"
    as_root timeout 120 "$perf" "${arguments[@]}"
done
