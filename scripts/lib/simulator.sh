# shellcheck shell=bash
# Builds the simulator. To be sourced by a script that has `set -euo pipefail`.
#
#   simulator_build plain|planted     sets SIMULATOR to the program; the planted one can make
#                                     mistakes on purpose, and is kept beside the other
#
# TIDEMARK_PROFILE chooses the build: release (default) or dev.

SIMULATOR_REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
SIMULATOR=

simulator_build() {
    local kind=$1 profile=${TIDEMARK_PROFILE:-release} target what=(--workspace --bins)
    case $profile in release | dev) ;; *) echo "TIDEMARK_PROFILE is '$profile'" >&2; return 2 ;; esac
    target=${CARGO_TARGET_DIR:-$SIMULATOR_REPO/target}
    # The plain one is among what every acceptance script has built already. Of the planted kind
    # nothing but the simulator may be built: the daemons are where the shipped ones are.
    [[ $kind != planted ]] || what=(--package tidemark-sim --features planted-bugs)
    cargo build --quiet --locked --profile "$profile" "${what[@]}" \
        --manifest-path "$SIMULATOR_REPO/Cargo.toml"
    # Each kind has a program of its own: the next build replaces what cargo leaves.
    SIMULATOR=$target/${profile/#dev/debug}/simulate-$kind
    cp -f "$target/${profile/#dev/debug}/simulate" "$SIMULATOR"
}
