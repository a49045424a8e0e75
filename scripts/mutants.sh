#!/usr/bin/env bash
# Makes the policy compiler wrong in one way after the other, in a copy of the last commit, and sees
# that a naive reading of the same objects notices each: `make mutants`. A mutant that lives is a gap
# in the clusters and packets that it is asked about.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT_DIR"

# File below control/src/compile, what is written there once, what is written instead.
MUTANTS=(
    "selectors.rs|pods.matches(labels) && of_namespace.fulfil(namespaces)|pods.matches(labels)"
    "selectors.rs|!is_excepted(blocks[**index].2, &cut)|true \|\| !is_excepted(blocks[**index].2, \&cut)"
    "selectors.rs|range.length() <= other.length()|range.length() < other.length()"
    "selectors.rs|None => Scope::Named(Arc::clone(namespace)),|None => Scope::Labelled(LabelSelector::default()),"
    "selectors.rs|pods: policy.subject.clone(),|pods: LabelSelector::default(),"
    "claims.rs|if held < claim {|if held > claim {"
    "policies.rs|Direction::Ingress => policy.ingress.as_deref(),|Direction::Ingress => policy.egress.as_deref(),"
    "policies.rs|if layer == Layer::Enforced && numbered.is_audited {|if false {"
    "verdicts.rs|if isolating.is_empty() {|if rules.iter().all(\|own\| own.is_empty()) {"
    "verdicts.rs|push(&mut any_peer, everything(numbered.id));|"
    "verdicts.rs|if !numbered.peers.is_empty() {|if false {"
    "verdicts.rs|if rule.ports.is_empty() {|if true {"
    "verdicts.rs|let protocol = Some(port.protocol);|let protocol = None;"
    "verdicts.rs|(L4Ports::All, _) => Means::Ports(0..=u16::MAX),|(L4Ports::All, _) => Means::Ports(0..=3),"
    "verdicts.rs|Means::Ports(range.clone())|Means::Ports(*range.start()..=*range.start())"
    "verdicts.rs|(L4Ports::Named(_), Direction::Egress) => Means::EachPeers,|(L4Ports::Named(_), Direction::Egress) => Means::Nothing,"
    "verdicts.rs|numbered_by(subject, port).map_or(Means::Nothing, Means::Ports)|Means::EachPeers"
)

copy="$ROOT_DIR/target/mutants"
export CARGO_TARGET_DIR="$copy-build"
git worktree remove --force "$copy" 2>/dev/null || true
git worktree add --quiet --force --detach "$copy" HEAD
trap 'git worktree remove --force "$copy"' EXIT
cd "$copy"

oracle() {
    cargo test --locked --quiet -p control --test policy_oracle \
        tables_decide_every_packet_as_the_objects_do >"$copy-build/log" 2>&1
}

mkdir -p "$CARGO_TARGET_DIR"
say "the compiler as it is"
oracle || die "the tests fail without any mutant: see $copy-build/log"

lived=0
for mutant in "${MUTANTS[@]}"; do
    # A bar within a field is written with a backslash.
    IFS=$'\x1f' read -r name from to <<<"$(sed 's/\\|/\x1e/g; s/|/\x1f/g; s/\x1e/|/g' <<<"$mutant")"
    file="control/src/compile/$name"
    text="$(<"$file")"
    rest="${text#*"$from"}"
    [[ "$rest" != "$text" && "$rest" != *"$from"* ]] ||
        die "$name says not once: $from"
    printf '%s\n' "${text%%"$from"*}$to$rest" >"$file"
    # A mutant that is no Rust would seem to be noticed.
    cargo check --locked --quiet -p control 2>"$copy-build/log" ||
        die "no mutant, since it does not compile: $name: $to (see $copy-build/log)"
    if oracle; then
        printf 'LIVES    %s: %s -> %s\n' "$name" "$from" "$to"
        lived=$((lived + 1))
    else
        printf 'noticed  %s: %s -> %s\n' "$name" "$from" "$to"
    fi
    git checkout --quiet -- "$file"
done
((lived == 0)) || die "$lived of ${#MUTANTS[@]} mutants were not noticed"
say "all ${#MUTANTS[@]} mutants were noticed"
