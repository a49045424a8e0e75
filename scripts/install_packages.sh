#!/usr/bin/env bash
# Installs the Debian packages that are missing: `install_packages.sh build|demo|test|bench`.
# Nothing already installed is removed or upgraded on purpose, and nothing is asked of the network
# when nothing is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

BUILD=(ca-certificates clang gcc libc6-dev linux-libc-dev llvm make)
DEMO=("${BUILD[@]}" curl ethtool iproute2 iputils-ping)
TEST=("${DEMO[@]}" bpftool containernetworking-plugins git iperf3 iptables nftables python3-scapy
    shellcheck systemd tcpdump)
# A peer that only benchmarks are compared with.
BENCH=("${TEST[@]}" libdpdk-dev pkg-config)

is_installed() {
    [[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]
}

apt_install() {
    # Recommended packages are left out: they bring services and hundreds of megabytes.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-remove \
        --no-install-recommends "$@"
}

install_missing() {
    local package
    local -a missing=()
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    want_root "installing ${missing[*]}"
    say "installing ${missing[*]}"
    if ! apt_install "${missing[@]}"; then
        say "the package lists may be old: apt-get update, then once more"
        as_root apt-get update
        apt_install "${missing[@]}"
    fi
}

# promtool comes in the package of the Prometheus server, whose installation enables and starts a
# service. It is unpacked below target/ instead of being installed.
unpack_promtool() {
    command -v promtool >/dev/null && return
    say "unpacking promtool from Debian's package prometheus"
    local download
    download="$(mktemp -d)"
    if ! (cd "$download" && apt-get download prometheus); then
        want_root "apt-get update"
        as_root apt-get update
        (cd "$download" && apt-get download prometheus)
    fi
    mkdir -p "$TOOLS_DIR"
    dpkg-deb -x "$download"/prometheus_*.deb "$TOOLS_DIR"
    rm -r "$download"
    promtool --version >/dev/null || die "promtool was unpacked to $TOOLS_DIR and does not run"
}

case "${1:-}" in
    build) packages=("${BUILD[@]}") ;;
    demo) packages=("${DEMO[@]}") ;;
    test) packages=("${TEST[@]}") ;;
    bench) packages=("${BENCH[@]}") ;;
    *) die "usage: install_packages.sh build|demo|test|bench" ;;
esac

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    die "this system has no apt: install the counterparts of ${packages[*]} (and promtool for" \
        "tests), then run cargo by hand as scripts/*.sh do"
fi
install_missing "${packages[@]}"
if [[ "$1" == test ]]; then
    unpack_promtool
fi
