# shellcheck shell=bash
# What the scripts that stop and start the collector look at afterwards. To be sourced behind
# sandbox.sh.
#
#   journal_chain                 the files of the journals themselves, without a daemon: none is
#                                 damaged, each goes on where the one before ended
#   restore_state VOLUME AT FILE
#   equals_source VOLUME [FILE]   the newest state on the collector equals the backing file, with
#                                 the agent stopped

journal_chain() {
    local volume segment report first last before previous count=0
    for volume in "$SANDBOX"/collector/volumes/*; do
        # What went into the seed disk comes before the first segment.
        previous=
        for segment in "$volume"/journal/*; do
            report=$(tidemark-collector inspect "$segment") || fail "${segment##*/} is damaged: $report"
            before=$(sed -n 's/^records .* the one before is //p' <<<"$report")
            first=$(awk '$1 == "first" { print $2 }' <<<"$report")
            last=$(awk '$1 == "last" { print $2 }' <<<"$report")
            [[ -n $first ]] || continue
            ((before == ${previous:-$before} && first > before && last >= first)) ||
                fail "${segment##*/} has records from $first behind $before; the segment before ends at $previous"
            previous=$last
            count=$((count + 1))
        done
    done
    ((count > 0)) || fail "no segments"
    say "$count segments: none damaged, each goes on where the one before ended, the last at $previous"
}

restore_state() {
    rm -f "$3"
    tidemark restore "$1" --at "$2" --to "$3" >"$SANDBOX/restore.txt" 2>&1 ||
        fail "no restore of $1 at $2: $(cat "$SANDBOX/restore.txt")"
}

equals_source() {
    restore_state "$1" latest "$SANDBOX/newest.img"
    foreground cmp "${2:-$SANDBOX/source/$1.img}" "$SANDBOX/newest.img" ||
        fail "the newest state of $1 is not equal to its backing file"
    rm "$SANDBOX/newest.img"
    say "the newest state of $1 equals its backing file"
}
