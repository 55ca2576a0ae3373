# shellcheck shell=bash
# A private place to run both daemons in, for the demo, the bench and the acceptance scripts. To be
# sourced by a script that has `set -euo pipefail`.
#
#   sandbox_begin NAME            a new directory $SANDBOX; from here on everything that is started,
#                                 mounted or attached through this file is undone at exit, also
#                                 after SIGINT and SIGTERM, and nothing else is touched
#   build_binaries                cargo build; sets TIDEMARK_BIN to where the programs lie
#   collector_start               collector on $SANDBOX/collector; waits until it answers
#   volume_add NAME MIB [FILE]    a volume of the agent's coming configuration, with a new sparse
#                                 backing file, or FILE; RING_MIB and COPY_MIB_PER_SECOND count
#   agent_start                   agent with those volumes; waits until it serves them
#   wait_protected VOLUME [S]     until the collector says so, at most S seconds (default 120)
#   loop_attach FILE              a loop device over FILE: LOOP
#   agent_attach VOLUME           a loop device over what the agent serves: LOOP
#   mount_at DEVICE DIR [OPTION...]
#
# TIDEMARK_PROFILE chooses the build: release (default) or dev. With KEEP_SANDBOX=1 the directory
# stays after a failure; its path is printed.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
SANDBOX=
declare -a UNDO=()
declare -A DAEMON_PIDS=()
# What the daemons are started by, such as a command that puts them into a namespace.
declare -a DAEMON_WITHIN=()
FOREGROUND_PID=

say() { printf '%s\n' "$*"; }

# fail MESSAGE: ends the script with status 1; the trap cleans up.
fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}

# require TOOL...: a missing tool means "skipped" (status 77), never "passed".
require() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null || {
            echo "skipped: '$tool' is not installed (scripts/test installs what is missing)" >&2
            exit 77
        }
    done
}

require_root() { ((EUID == 0)) || { echo "skipped: needs root" >&2; exit 77; }; }

# later CMD...: to be run at exit, the last one first. Its failure is shown and does not stop the
# others.
later() { UNDO+=("$(printf '%q ' "$@")"); }

# foreground CMD...: runs a long command, in a session of its own, so that a signal to this script
# ends it and all its children at once.
foreground() {
    local status=0
    setsid "$@" &
    FOREGROUND_PID=$!
    wait "$FOREGROUND_PID" || status=$?
    FOREGROUND_PID=
    return "$status"
}

# wait_until SECONDS WHAT CMD...: polls until CMD succeeds; fails with WHAT when it does not.
wait_until() {
    local seconds=$1 what=$2 deadline
    shift 2
    deadline=$((SECONDS + seconds))
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || fail "$what: not within $seconds s"
        sleep 0.05
    done
}

sandbox_begin() {
    local name=$1
    SANDBOX=$(mktemp -d "${TMPDIR:-/tmp}/tidemark-$name.XXXXXX")
    RING_DIR=$(mktemp -d "/dev/shm/tidemark-$name.XXXXXX")
    CONTROL_SOCKET=$SANDBOX/control.sock
    AGENT_SOCKET=$SANDBOX/agent.sock
    NBD_SOCKET=$SANDBOX/nbd.sock
    INGEST=unix:$SANDBOX/ingest.sock
    FUSE_DIR=$SANDBOX/fuse
    mkdir "$SANDBOX/collector" "$SANDBOX/agent" "$SANDBOX/source" "$FUSE_DIR"
    export TIDEMARK_SOCKET=$CONTROL_SOCKET TIDEMARK_AGENT_SOCKET=$AGENT_SOCKET
    : >"$SANDBOX/volumes.toml"
    trap sandbox_end EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

# sandbox_end [STATUS]: the one way out. Runs with further signals ignored, so that nothing is left
# half undone.
sandbox_end() {
    local status=${1:-$?} index log
    trap '' INT TERM HUP PIPE
    trap - EXIT
    set +e
    [[ -z $FOREGROUND_PID ]] || stop_session "$FOREGROUND_PID" "the running step" 10
    for ((index = ${#UNDO[@]} - 1; index >= 0; index--)); do
        eval "${UNDO[index]}" || echo "clean-up failed: ${UNDO[index]}" >&2
    done
    if ((status != 0 && status != 77 && status < 128)); then
        for log in "$SANDBOX"/*.log; do
            [[ -s $log ]] || continue
            echo "--- last lines of ${log##*/}" >&2
            tail -n 15 "$log" >&2
        done
    fi
    remove_directories "$status"
    exit "$status"
}

remove_directories() {
    if grep -qF " $SANDBOX/" /proc/self/mounts; then
        echo "clean-up failed: something is still mounted below $SANDBOX; it stays" >&2
    elif (($1 != 0 && $1 != 77)) && [[ ${KEEP_SANDBOX:-} == 1 ]]; then
        echo "kept: $SANDBOX $RING_DIR" >&2
    else
        rm -rf --one-file-system -- "$SANDBOX" "$RING_DIR"
    fi
}

build_binaries() {
    local profile=${TIDEMARK_PROFILE:-release}
    [[ $profile == release || $profile == dev ]] ||
        fail "TIDEMARK_PROFILE is '$profile'; it may be release or dev"
    command -v cargo >/dev/null || fail "cargo is not installed; see https://rustup.rs"
    foreground cargo build --quiet --locked --profile "$profile" --manifest-path "$REPO/Cargo.toml" \
        --workspace --bins || fail "the build failed"
    TIDEMARK_BIN=${CARGO_TARGET_DIR:-$REPO/target}/${profile/#dev/debug}
    PATH=$TIDEMARK_BIN:$PATH
}

# stop_session PID WHAT SECONDS: SIGTERM to a process started with setsid and to its children, a
# bounded wait, then SIGKILL and status 1. It polls, here and below: in a trap that interrupted a
# `wait`, bash 5.2 may take an ended child for a running one, and a second `wait` then never ends.
stop_session() {
    kill -TERM -- "-$1" 2>/dev/null || true
    gone_within "$3" "-$1" || {
        echo "$2 (process $1) did not end within $3 s of SIGTERM; killed" >&2
        kill -KILL -- "-$1" 2>/dev/null || true
        gone_within 5 "-$1" || true
        return 1
    }
}

# gone_within SECONDS PID: false when the process, or the group -PID, is still there after that.
gone_within() {
    local deadline=$((SECONDS + $1))
    while kill -0 -- "$2" 2>/dev/null; do
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}

# daemon_start NAME CMD...: in a session of its own, so that a terminal's Ctrl-C does not reach it
# before the script undoes things in order. Its log is $SANDBOX/NAME.log.
daemon_start() {
    local name=$1
    shift
    [[ -z ${DAEMON_PIDS[$name]:-} ]] || fail "$name runs already"
    setsid "${DAEMON_WITHIN[@]}" "$@" >>"$SANDBOX/$name.log" 2>&1 </dev/null &
    DAEMON_PIDS[$name]=$!
    later daemon_stop "$name"
}

# daemon_stop NAME: cleanly; nothing when it does not run.
daemon_stop() {
    local pid=${DAEMON_PIDS[$1]:-}
    [[ -n $pid ]] || return 0
    DAEMON_PIDS[$1]=
    stop_session "$pid" "$1" 30
}

# daemon_kill NAME: SIGKILL, as a crash.
daemon_kill() {
    local pid=${DAEMON_PIDS[$1]:-}
    [[ -n $pid ]] || fail "$1 does not run"
    DAEMON_PIDS[$1]=
    kill -KILL "$pid"
    gone_within 10 "$pid" || fail "$1 (process $pid) is still there 10 s after SIGKILL"
}

daemon_alive() { kill -0 "${DAEMON_PIDS[$1]:-0}" 2>/dev/null; }

# daemon_ready NAME CMD...: waits until CMD succeeds; fails at once when the daemon ends.
daemon_ready() {
    local name=$1 deadline=$((SECONDS + 30))
    shift
    until "$@" >/dev/null 2>&1; do
        daemon_alive "$name" || fail "$name ended at its start"
        ((SECONDS < deadline)) || fail "$name is not ready within 30 s"
        sleep 0.05
    done
}

collector_start() {
    cat >"$SANDBOX/collector.toml" <<TOML
data_dir = "$SANDBOX/collector"
listen = ["$INGEST"]
control_socket = "$CONTROL_SOCKET"
TOML
    daemon_start collector "$TIDEMARK_BIN/tidemark-collector" --config "$SANDBOX/collector.toml"
    daemon_ready collector "$TIDEMARK_BIN/tidemark" status
}

collector_stop() { daemon_stop collector; }
collector_kill() { daemon_kill collector; }

volume_add() {
    local name=$1 mib=$2 backing=${3:-$SANDBOX/source/$1.img}
    [[ -e $backing ]] || truncate -s "${mib}M" "$backing"
    cat >>"$SANDBOX/volumes.toml" <<TOML

[[volume]]
name = "$name"
backing = "$backing"
ring_mib = ${RING_MIB:-256}
copy_mib_per_second = ${COPY_MIB_PER_SECOND:-0}
TOML
    VOLUMES+=("$name")
}
declare -a VOLUMES=()

agent_config() {
    cat <<TOML
state_dir = "$SANDBOX/agent"
ring_dir = "$RING_DIR"
collector = "$INGEST"
control_socket = "$AGENT_SOCKET"

[nbd]
listen = ["unix:$NBD_SOCKET"]

[fuse]
mount = "$FUSE_DIR"
TOML
    cat "$SANDBOX/volumes.toml"
}

agent_start() {
    agent_config >"$SANDBOX/agent.toml"
    # A killed agent leaves its FUSE mount behind; this runs after the agent has been stopped.
    [[ " ${UNDO[*]:-} " == *" fuse_left_behind "* ]] || later fuse_left_behind
    daemon_start agent "$TIDEMARK_BIN/tidemark-agent" --config "$SANDBOX/agent.toml"
    daemon_ready agent agent_serves
}

agent_serves() {
    local name
    [[ -S $NBD_SOCKET ]] && mountpoint -q "$FUSE_DIR" || return 1
    for name in "${VOLUMES[@]}"; do [[ -f $FUSE_DIR/$name ]] || return 1; done
}

agent_stop() { daemon_stop agent; }
agent_kill() { daemon_kill agent; }

fuse_left_behind() {
    ! grep -qF " $FUSE_DIR fuse" /proc/self/mounts || umount "$FUSE_DIR" || umount -l "$FUSE_DIR"
}

# nbd_uri VOLUME: where the agent serves it.
nbd_uri() { printf 'nbd+unix:///%s?socket=%s' "$1" "$NBD_SOCKET"; }

# volume_field VOLUME FIELD: one value of the collector's answer about a volume.
volume_field() { tidemark --json volume show "$1" | jq -r ".$2"; }

is_protected() { [[ $(volume_field "$1" state) == protected ]]; }
wait_protected() { wait_until "${2:-120}" "volume $1 is protected" is_protected "$1"; }

loop_attach() {
    LOOP=$(losetup --direct-io=on --find --show "$1")
    later loop_detach "$LOOP" "$1"
}

# loop_detach DEVICE FILE: only if it is still ours.
loop_detach() {
    [[ $(losetup --noheadings --output BACK-FILE "$1" 2>/dev/null) == "$2" ]] || return 0
    losetup --detach "$1"
}

agent_attach() {
    LOOP=$(tidemark-agent attach "$1" --via loop) && [[ -b $LOOP ]] || fail "no loop device for volume $1"
    later agent_detach "$1" "$LOOP"
}

# agent_detach VOLUME DEVICE: without the agent, which may be gone, when it does not do it.
agent_detach() {
    tidemark-agent detach "$1" >/dev/null 2>"$SANDBOX/detach.txt" || loop_detach "$2" "$FUSE_DIR/$1" || {
        cat "$SANDBOX/detach.txt" >&2
        return 1
    }
}

mount_at() {
    local device=$1 directory=$2
    shift 2
    mkdir -p "$directory"
    mount "$@" "$device" "$directory"
    later unmount "$directory"
}

# unmount DIR: nothing when it is not mounted.
unmount() {
    mountpoint -q "$1" || return 0
    umount "$1" 2>/dev/null || { sleep 0.5; umount "$1"; } || umount -l "$1"
}
