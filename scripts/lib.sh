# shellcheck shell=bash
# Shared by the scripts beside it: messages, privileges, where things are. Sourced, not run.

ROOT_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
TOOLS_DIR="$ROOT_DIR/target/tools"

# rustup's directory is not in PATH before the next login, and sudo drops it.
if [[ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ]]; then
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
fi
export PATH="$PATH:/usr/sbin:/sbin:$TOOLS_DIR/usr/bin"

say() {
    printf '\n== %s\n' "$*"
}

die() {
    printf 'xskiff: %s\n' "$*" >&2
    exit 1
}

# Asks for the password now rather than in the middle of a build, and keeps the answer fresh until
# the calling script ends.
want_root() {
    [[ $EUID -eq 0 ]] && return
    command -v sudo >/dev/null ||
        die "$1 needs root and there is no sudo: run it as root"
    sudo -v -p "[sudo] password for %u, since $1 needs root: " || die "$1 needs root"
    local script=$$
    (while kill -0 "$script" 2>/dev/null; do
        sudo -n -v 2>/dev/null || exit 0
        sleep 50
    done) </dev/null >/dev/null 2>&1 &
}

# Says at the end of a script that failed how full the disk is: compilers and linkers that find no
# room end in many ways, few of which name it.
tell_disk_on_failure() {
    local code=$?
    ((code == 0)) || df -h "$ROOT_DIR" "${TMPDIR:-/tmp}" | sed 's/^/disk: /' >&2
    return "$code"
}

# Runs a command as root, with the variables that cargo and the tests set.
as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
        return
    fi
    local name
    local -a variables=("PATH=$PATH")
    while IFS= read -r name; do
        variables+=("$name=${!name}")
    done < <(compgen -e | grep -E '^(CARGO|RUST|XSKIFF|LOOM|PROPTEST|BOLERO|LD_LIBRARY_PATH)' || true)
    sudo env "${variables[@]}" "$@"
}
