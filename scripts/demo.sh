#!/usr/bin/env bash
# Builds the node and runs its demo as root. Arguments go to `xskiff demo`, such as `--keep`.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT_DIR"

trap tell_disk_on_failure EXIT
want_root "make demo"
scripts/install_packages.sh demo
scripts/check_rust.sh
cargo build --locked --release -p xskiff
as_root "$ROOT_DIR/target/release/xskiff" demo "$@"
