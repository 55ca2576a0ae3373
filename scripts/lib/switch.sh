# shellcheck shell=bash
# A mounted file system goes from one block device to another one with the same bytes: what
# scripts/protect and scripts/unprotect share. To be sourced by a script that has
# `set -euo pipefail`, sets WHO, NAME, CONFIG, and has functions plan_STEP, do_STEP and undo_STEP.
#
#   mount_facts DEVICE            MOUNT, FSTYPE, OPTIONS of the one place where it is mounted
#   quiet_down, fstab, resume     steps that both have: read-only, so that nothing changes any more,
#                                 and a list of all files; /etc/fstab; writable again
#   unmount_from / mount_from DEVICE    read-only
#   same_files                    the list holds at MOUNT
#   config_change ACTION ARG...   of lib/agent_config.py: checked, put in place, reloaded
#   run_steps STEP...             the plan; with DRY_RUN=1 no more; else each step, and when one
#                                 fails, or at SIGINT and SIGTERM, the undoing of those that were
#                                 begun, the last one first
#   fstab_plan SPEC               what /etc/fstab has to say, with SPEC for MOUNT; with an empty one,
#                                 what it said before. Edited with EDIT_FSTAB=1
#
# A step that fails says why on standard error and returns 1. Its undoing has to bear that the step
# was done half or not at all.

LIB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
FSTAB=${LIBMOUNT_FSTAB:-/etc/fstab}
# So much of the files' contents is compared; of all files, names, sizes and times.
CONTENTS_BYTES_MAX=268435456
declare -a BEGUN=()
DRY_RUN=
EDIT_FSTAB=
WORK=

stop() {
    printf '%s: %s\n' "$WHO" "$*" >&2
    exit 1
}

complain() { printf '%s: %s\n' "$WHO" "$*" >&2; }

# The number of a block device, as the kernel's mount table has it.
device_number() {
    local major minor
    read -r major minor < <(stat -L -c '%t %T' "$1")
    printf '%d:%d' "0x$major" "0x$minor"
}

mount_facts() {
    local number all
    number=$(device_number "$1")
    mapfile -t all < <(awk -v number="$number" '$3 == number { print $5 }' /proc/self/mountinfo)
    ((${#all[@]} > 0)) || stop "$1 is not mounted; nothing to keep mounted, so add it to $CONFIG by hand"
    ((${#all[@]} == 1)) || stop "$1 is mounted ${#all[@]} times (${all[*]}); leave one of them"
    MOUNT=$(printf '%b' "${all[0]}")
    read -r FSTYPE OPTIONS < <(findmnt --noheadings --first-only --output FSTYPE,OPTIONS --mountpoint "$MOUNT")
    mapfile -t all < <(awk -v at="${all[0]}/" 'index($5, at) == 1 { print $5 }' /proc/self/mountinfo)
    ((${#all[@]} == 0)) || stop "${all[*]} is mounted below $MOUNT; unmount it first, and mount it again afterwards"
}

# mounted_from DEVICE: that, and nothing else, is what one sees at MOUNT.
mounted_from() {
    [[ $(findmnt --noheadings --first-only --output MAJ:MIN --mountpoint "$MOUNT" | tr -d ' ') == "$(device_number "$1")" ]]
}

# users_of_mount: who has something open there, one process a line.
users_of_mount() {
    local process
    for process in /proc/[0-9]*; do
        find "$process/cwd" "$process/root" "$process/exe" "$process/fd" -maxdepth 1 \
            \( -lname "$MOUNT" -o -lname "$MOUNT/*" \) 2>/dev/null | grep -q . || continue
        printf '  process %s: %s\n' "${process##*/}" "$(tr '\0' ' ' <"$process/cmdline" 2>/dev/null | head -c 80)"
    done
}

in_use() {
    complain "$MOUNT is in use; end these first, this script ends nothing:"
    users_of_mount >&2
}

# files_list FILE: a line for each file: its kind, size, time and name, and of some their contents.
files_list() {
    (cd "$MOUNT" && find . -xdev -printf '%y %s %T@ %m %U:%G %p %l\0' | LC_ALL=C sort -z | tr '\0\n' '\n\1') >"$1" || return 1
    (cd "$MOUNT" && find . -xdev -type f -size +0 -printf '%s %p\0' | LC_ALL=C sort -z |
        awk -v RS='\0' -v ORS='\0' -v most="$CONTENTS_BYTES_MAX" '
            total + $1 <= most { total += $1; sub(/^[0-9]+ /, ""); print }' |
        xargs -0 -r sha256sum -z -- | tr '\0\n' '\n\1') >>"$1"
}

plan_quiet_down() {
    echo "mount -o remount,ro $MOUNT        # nothing changes from here on; refused while a file is written to"
    echo "(list all files, with checksums of up to $((CONTENTS_BYTES_MAX >> 20)) MiB of them)"
}
do_quiet_down() {
    sync -f "$MOUNT"
    mount -o remount,ro "$MOUNT" 2>/dev/null || { in_use; return 1; }
    files_list "$WORK/files" || { complain "can't read all files of $MOUNT"; return 1; }
}
undo_quiet_down() { do_resume; }

unmount_from() {
    umount "$MOUNT" 2>"$WORK/umount.txt" || { in_use; return 1; }
}

# Read-only: what is written from the first moment on would be compared with what was before.
mount_from() {
    mounted_from "$1" 2>/dev/null && return 0
    until_within 10 nobody_holds "$1" || { complain "$1 is still held by a program"; return 1; }
    mount -t "$FSTYPE" -o "$(read_only)" "$1" "$MOUNT" || { complain "can't mount $1 at $MOUNT"; return 1; }
    # A file system that several devices show may be mounted from the other one.
    mounted_from "$1" || { umount "$MOUNT"; complain "the kernel did not take $1 for $MOUNT"; return 1; }
}
read_only() { sed 's/^rw\b/ro/' <<<"$OPTIONS"; }

# Opened for itself alone, as a mount does.
nobody_holds() { python3 -c 'import os, sys; os.open(sys.argv[1], os.O_RDONLY | os.O_EXCL)' "$1"; }

plan_resume() { if is_writable; then echo "mount -o remount,rw $MOUNT"; else echo "($MOUNT was read-only and stays so)"; fi; }
do_resume() { ! is_writable || mount -o remount,rw "$MOUNT" || { complain "$MOUNT can't be written to"; return 1; }; }
undo_resume() { ! is_writable || mount -o remount,ro "$MOUNT"; }
is_writable() { [[ ,$OPTIONS, == *,rw,* ]]; }

same_files() {
    files_list "$WORK/files-now" || { complain "can't read all files of $MOUNT"; return 1; }
    diff "$WORK/files" "$WORK/files-now" >"$WORK/differing" && return 0
    complain "files differ: $(head -n 5 "$WORK/differing")"
    return 1
}

# config_change ACTION ARG...
config_change() {
    local answer
    cp -p "$CONFIG" "$CONFIG.new" || return 1
    python3 "$LIB/agent_config.py" "$1" "$CONFIG" "${@:2}" >"$CONFIG.new" || return 1
    answer=$(tidemark-agent check --config "$CONFIG.new" 2>&1) || { complain "$answer"; return 1; }
    [[ -e $WORK/config ]] || cp -p "$CONFIG" "$WORK/config"
    mv "$CONFIG.new" "$CONFIG"
    reload
}

config_back() {
    rm -f "$CONFIG.new"
    [[ -e $WORK/config ]] || return 0
    cp -p "$WORK/config" "$CONFIG.new" && mv "$CONFIG.new" "$CONFIG" && reload
}

reload() { tidemark-agent reload >"$WORK/reload.txt" 2>&1 || { complain "$(cat "$WORK/reload.txt")"; return 1; }; }

# volume_fact FIELD: of the running agent's volume NAME; fails when it has none of that name.
volume_fact() {
    tidemark-agent list --json | jq -er --arg name "$NAME" \
        '.[] | select(.name == $name) | '"$1"' // empty'
}

# until_within SECONDS CMD...
until_within() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# fstab_plan OLD-DEVICE NEW-SPEC: FSTAB_NEW is what the file should be; empty when it says nothing
# about MOUNT.
fstab_plan() {
    FSTAB_NEW=
    [[ -r $FSTAB ]] || return 0
    awk -v at="$MOUNT" '$1 !~ /^#/ && $2 == at { found = 1 } END { exit !found }' "$FSTAB" || return 0
    FSTAB_NEW=$(awk -v at="$MOUNT" -v name="$NAME" -v spec="$1" '
        $0 ~ "^# tidemark " name ": " { kept = substr($0, length("# tidemark " name ": ") + 1); next }
        $1 !~ /^#/ && $2 == at && spec == "" { if (kept != "") print kept; else print; next }
        $1 !~ /^#/ && $2 == at {
            print "# tidemark " name ": " $0
            $1 = spec
            # The check at boot is for disks that are there before the agent runs.
            $4 = $4 ",x-systemd.requires=tidemark-disk@" name ".service"
            $5 = 0; $6 = 0
        }
        { print }' "$FSTAB")
}

plan_fstab() {
    if [[ -z $FSTAB_NEW ]]; then
        echo "($FSTAB has no line for $MOUNT)"
        return
    fi
    if [[ -n $EDIT_FSTAB ]]; then echo "$FSTAB changed so:"; else echo "(to be done by you, or with --fstab: $FSTAB changed so)"; fi
    diff "$FSTAB" <(printf '%s\n' "$FSTAB_NEW") | grep '^[<>]' || true
}
do_fstab() {
    [[ -n $EDIT_FSTAB && -n $FSTAB_NEW ]] || return 0
    cp -p "$FSTAB" "$WORK/fstab"
    cp -p "$FSTAB" "$FSTAB.new" && printf '%s\n' "$FSTAB_NEW" >"$FSTAB.new" && sync "$FSTAB.new" && mv "$FSTAB.new" "$FSTAB"
}
undo_fstab() {
    rm -f "$FSTAB.new"
    [[ ! -e $WORK/fstab ]] || cp -p "$WORK/fstab" "$FSTAB"
}

roll_back() {
    local status=$? index bad=
    trap '' INT TERM HUP
    trap - EXIT
    set +e
    if ((${#BEGUN[@]} > 0)); then
        complain "taking back what was done"
        for ((index = ${#BEGUN[@]} - 1; index >= 0; index--)); do
            "undo_${BEGUN[index]}" || { complain "could not take back: $(plan_"${BEGUN[index]}" | head -n 1)"; bad=1; }
        done
        if [[ -z $bad ]]; then complain "all is as it was before"; else complain "see above for what is left to be done by hand"; fi
    fi
    rm -rf -- "$WORK"
    exit "$status"
}

run_steps() {
    local step number=0
    for step in "$@"; do
        number=$((number + 1))
        "plan_$step" | sed "1s/^/$number. /; 2,\$s/^/   /"
    done
    [[ -z $DRY_RUN ]] || { echo "(dry run: nothing was done)"; exit 0; }
    WORK=$(mktemp -d)
    trap roll_back EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    number=0
    for step in "$@"; do
        number=$((number + 1))
        BEGUN+=("$step")
        "do_$step" || { complain "step $number failed"; exit 1; }
    done
    BEGUN=()
}
