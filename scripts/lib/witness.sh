# shellcheck shell=bash
# What the scripts that use the witness's client share. To be sourced behind sandbox.sh.
#
#   witness_disk NAME MIB         a volume of the agent's coming configuration whose disk begins
#                                 with holes, zeroes and data: WITNESS_BASE; the log: WITNESS
#   journal_records NAME DIR      the whole journal of a volume as JSON, one file for each segment

witness_disk() {
    # shellcheck disable=SC2034  # for the script that sources this
    WITNESS=$SANDBOX/witness.txt
    WITNESS_BASE=$SANDBOX/source/$1.img
    tidemark-load witness base --file "$WITNESS_BASE" --size-mib "$2"
    volume_add "$1" "$2" "$WITNESS_BASE"
}

journal_records() {
    local segment
    mkdir "$2"
    tidemark --json journal inspect "$1" | jq -r '.[].name' >"$SANDBOX/segments"
    while read -r segment; do
        tidemark --json journal inspect "$1" "$segment" --limit 1000000 >"$2/$segment"
    done <"$SANDBOX/segments"
}
