# shellcheck shell=bash
# Memory control groups, of version 1 or 2, whichever this machine gives its memory controller to.
# To be sourced after sandbox.sh.
#
#   memory_groups_usable          false, with a word why, where no group can be made
#   memory_group_make NAME MIB    a group with that limit, below this process's own; it is removed
#                                 at exit: MEMORY_GROUP is its directory, MEMORY_GROUP_WITHIN a
#                                 prefix for the command that is to run in it
#   memory_group_peak_mib DIR     the most that was charged to it

# memory_group_home: the directory of this process's own group.
memory_group_home() {
    local path
    if [[ -d /sys/fs/cgroup/memory ]]; then
        path=$(awk -F: '$2 == "memory" { print $3 }' /proc/self/cgroup)
        printf '/sys/fs/cgroup/memory%s' "${path%/}"
    else
        path=$(awk -F: '$1 == 0 { print $3 }' /proc/self/cgroup)
        printf '/sys/fs/cgroup%s' "${path%/}"
    fi
}

memory_group_limit_file() {
    if [[ -d /sys/fs/cgroup/memory ]]; then echo memory.limit_in_bytes; else echo memory.max; fi
}

memory_groups_usable() {
    local home
    home=$(memory_group_home)
    [[ -w $home ]] || { echo "no memory control group can be made below $home" >&2; return 1; }
    [[ -d /sys/fs/cgroup/memory ]] || grep -qw memory "$home/cgroup.subtree_control" || {
        # A group with processes in it hands no controller on; that of a service or a login does.
        echo "+memory" 2>/dev/null >"$home/cgroup.subtree_control" || {
            echo "the memory controller can't be handed on below $home" >&2
            return 1
        }
    }
}

memory_group_make() {
    MEMORY_GROUP=$(memory_group_home)/tidemark-$1.$$
    mkdir "$MEMORY_GROUP"
    later memory_group_remove "$MEMORY_GROUP"
    echo $(($2 << 20)) >"$MEMORY_GROUP/$(memory_group_limit_file)"
    # shellcheck disable=SC2016,SC2034  # expanded by the inner shell; used by who sources this
    MEMORY_GROUP_WITHIN=(bash -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$MEMORY_GROUP")
}

# The last process may still be on its way out.
memory_group_remove() {
    local deadline=$((SECONDS + 10))
    until rmdir "$1" 2>/dev/null; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

memory_group_peak_mib() {
    local file
    for file in "$1"/memory.{max_usage_in_bytes,peak}; do
        [[ ! -r $file ]] || { echo $(($(<"$file") >> 20)); return; }
    done
    echo "?"
}
