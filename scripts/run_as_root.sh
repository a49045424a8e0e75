#!/usr/bin/env bash
# Cargo's runner for test binaries: cargo builds as the user, tests with interfaces run as root.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case "$(basename "$1")" in
    # Reads the tree by cargo metadata; as root it would leave root's files in the user's cache.
    architecture-*) exec "$@" ;;
    *) as_root "$@" ;;
esac
