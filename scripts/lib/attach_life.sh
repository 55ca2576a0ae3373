# shellcheck shell=bash
# What a file system goes through on an attached device, inside a guest: for the acceptance scripts
# of the ways to attach. To be sourced after lib/sandbox.sh; the volume is named data.
#
#   make_file_system TYPE DEVICE  ext4, xfs or btrfs
#   check_file_system TYPE DEVICE fails when it is damaged
#   load FILE MIB                 random writes by fio, read back and compared
#   load_over FILE MIB CMD...     the same on $DEVICE, and CMD in the middle of it: the load must
#                                 neither fail nor have ended before
#   refuses_detach POINT          while the file system is mounted there
#   restored_equals FILE          the newest state, restored, against the backing store

# Longest that a load may take.
LOAD_SECONDS_MAX=${LOAD_SECONDS_MAX:-300}
# So much is written when a load is in the middle.
LOAD_BEGUN_SECTORS=4096

make_file_system() {
    case $1 in
        ext4) mkfs.ext4 -q -F "$2" ;;
        xfs) mkfs.xfs -q -f "$2" ;;
        btrfs) mkfs.btrfs -q -f "$2" ;;
    esac >"$SANDBOX/mkfs" 2>&1 || {
        cat "$SANDBOX/mkfs" >&2
        fail "$1 can't be made on $2"
    }
}

check_file_system() {
    case $1 in
        ext4) e2fsck -f -n "$2" ;;
        xfs) xfs_repair -n "$2" ;;
        btrfs) btrfs check --readonly "$2" ;;
    esac >"$SANDBOX/fsck" 2>&1 || {
        cat "$SANDBOX/fsck" >&2
        fail "$1 is damaged"
    }
}

load() {
    timeout "$LOAD_SECONDS_MAX" fio --eta=never --name=load --filename="$1" --size="$2M" --rw=randwrite \
        --bs=4k --iodepth=16 --ioengine=libaio --direct=1 --end_fsync=1 --verify=crc32c \
        --do_verify=1 --verify_fatal=1 --verify_state_save=0 --output="$SANDBOX/fio"
}

# sectors_written DEVICE: since it was made.
sectors_written() {
    local -a figures
    read -ra figures <"/sys/block/${1#/dev/}/stat"
    printf '%s' "${figures[6]}"
}

wrote_since() { (($(sectors_written "$DEVICE") > $1 + LOAD_BEGUN_SECTORS)); }

load_over() {
    local file=$1 mib=$2 pid status=0 before
    shift 2
    before=$(sectors_written "$DEVICE")
    load "$file" "$mib" &
    pid=$!
    wait_until 60 "the load has begun" wrote_since "$before"
    kill -0 "$pid" 2>/dev/null || fail "the load ended before '$*'"
    "$@"
    wait "$pid" || status=$?
    ((status == 0)) || fail "the load failed with status $status after '$*'"
}

refuses_detach() {
    local said
    if said=$(tidemark-agent detach data 2>&1); then fail "a mounted device was detached"; fi
    [[ $said == *"$1"* ]] || fail "detach does not name the mount point: $said"
}

restored_equals() {
    local disk restored
    step "The newest state, restored, against the disk"
    wait_protected data 120
    # A clean stop waits until the collector has everything.
    agent_stop
    tidemark restore data --at latest --to "$SANDBOX/restored.img" >"$SANDBOX/restore.log" 2>&1 ||
        fail "the newest state can't be restored"
    disk=$(dd if="$1" bs=1M iflag=direct status=none | sha256sum)
    restored=$(sha256sum <"$SANDBOX/restored.img")
    [[ $disk == "$restored" ]] || fail "the restored state differs from the disk"
    say "  sha256 ${disk%% *}"
}
