# shellcheck shell=bash
# Debian packages: installs what is missing, touches nothing that is there. To be sourced.

# as_root CMD...: runs it as root, or fails.
as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -n "$@"
    else
        return 1
    fi
}

# packages_missing PACKAGE...: prints those that are not installed.
packages_missing() {
    local package
    for package in "$@"; do
        [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            printf '%s\n' "$package"
    done
}

# packages_install PACKAGE...: installs the missing ones; says what it does; fails when it can't.
packages_install() {
    local missing
    command -v apt-get >/dev/null || {
        echo "This is not a Debian system: install by hand what is missing of: $*" >&2
        return 1
    }
    mapfile -t missing < <(packages_missing "$@")
    ((${#missing[@]} > 0)) || return 0
    echo "Installing from Debian: ${missing[*]}"
    local install=(env DEBIAN_FRONTEND=noninteractive
        apt-get install -qq -y --no-install-recommends "${missing[@]}")
    # Lists of packages that are missing or old make the first try fail.
    as_root "${install[@]}" >/dev/null 2>&1 && return 0
    as_root apt-get update -qq >/dev/null && as_root "${install[@]}" >/dev/null || {
        echo "Can't install ${missing[*]}: run this as root with a package source, or install them" >&2
        return 1
    }
}

# packages_unpack DIR PACKAGE...: their files below DIR/root, without installing anything; what was
# fetched is kept in DIR for the next time.
packages_unpack() {
    local dir=$1 package
    shift
    mkdir -p "$dir/root"
    for package in "$@"; do
        [[ ! -e $dir/$package.unpacked ]] || continue
        (cd "$dir" && apt-get download -qq "$package" >/dev/null 2>&1 && dpkg -x "$package"_*.deb root) || {
            echo "Can't fetch the package $package" >&2
            return 1
        }
        : >"$dir/$package.unpacked"
    done
}
