#!/usr/bin/env bash
# Stops with the one line to type when Rust is missing or too old for this workspace.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Read from the manifest by hand: an old cargo cannot parse it.
needed="$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$ROOT_DIR/Cargo.toml")"
[[ -n "$needed" ]] || die "Cargo.toml names no rust-version"

if command -v rustup >/dev/null; then
    line="rustup toolchain install stable --component clippy,rustfmt && rustup default stable"
else
    line="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --default-toolchain stable"
fi

if ! command -v cargo >/dev/null; then
    if [[ $EUID -eq 0 && -n "${SUDO_USER:-}" ]]; then
        die "root has no cargo: run make as $SUDO_USER without sudo, it asks for root when needed"
    fi
    die "Rust $needed or newer is needed and there is no cargo. Type:
  $line"
fi

found="$(cargo --version | sed -n 's/^cargo \([0-9.]*\).*$/\1/p')"
oldest="$(printf '%s\n%s\n' "$needed" "${found:-0}" | sort -V | head -n 1)"
if [[ "$oldest" != "$needed" ]]; then
    die "Rust $needed or newer is needed, $(command -v cargo) is ${found:-of unknown version}. Type:
  $line"
fi

if [[ "${1:-}" == lints ]]; then
    for component in clippy fmt; do
        cargo "$component" --version >/dev/null 2>&1 || die "cargo $component is missing. Type:
  rustup component add clippy rustfmt"
    done
fi
