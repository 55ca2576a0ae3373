# shellcheck shell=bash
# What goes between agent and collector, counted by the kernel and not by our code: both run in a
# network namespace of their own and talk over TCP on its loopback interface, which nobody else
# uses. To be sourced behind sandbox.sh.
#
#   link_count                    before the first daemon starts
#   link_bytes                    all bytes that the interface has carried: both directions, with
#                                 the headers and acknowledgements of TCP and IP, so more than what
#                                 the agent put into its socket
#   steady_start VOLUME MIB_PER_SECOND [SEED]
#                                 a client that writes random bytes all over the disk until
#                                 steady_stop, across kills and restarts of the agent
#   steady_stop                   ends it; STEADY_BYTES and STEADY_WRITES, of all runs so far

LINK_NAMESPACE=
STEADY_BYTES=0
STEADY_WRITES=0

link_count() {
    require ip nsenter
    LINK_NAMESPACE=${SANDBOX##*/}
    ip netns add "$LINK_NAMESPACE" || { echo "skipped: no network namespaces here" >&2; exit 77; }
    later ip netns delete "$LINK_NAMESPACE"
    ip -n "$LINK_NAMESPACE" link set lo up
    # shellcheck disable=SC2034 # the sandbox reads it
    INGEST=tcp:127.0.0.1:7440
    # Not `ip netns exec`, which would hide the agent's FUSE mount in a mount namespace.
    DAEMON_WITHIN=(nsenter "--net=/run/netns/$LINK_NAMESPACE" --)
}

link_bytes() {
    "${DAEMON_WITHIN[@]}" awk '$1 == "lo:" { print $2 }' /proc/net/dev
}

steady_start() {
    daemon_start steady python3 "$REPO/scripts/lib/steady_writer.py" --socket "$NBD_SOCKET" \
        --export "$1" --mib-per-second "$2" --seed "${3:-1}" --figures "$SANDBOX/steady.json"
}

steady_stop() {
    daemon_alive steady || fail "the client that writes has ended by itself"
    daemon_stop steady
    STEADY_BYTES=$((STEADY_BYTES + $(jq .bytes "$SANDBOX/steady.json")))
    STEADY_WRITES=$((STEADY_WRITES + $(jq .writes "$SANDBOX/steady.json")))
}
