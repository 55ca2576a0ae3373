"""Nothing of the machine it was written on: no path of the work tree or of a person's home, no
package registry but crates.io, no merge marker and nothing left over for later."""

import os
import re
import subprocess
import sys
from pathlib import Path

# Directories that any machine has; a work tree right below one of them gives no pattern.
EVERYWHERE = {"/", "/tmp", "/home", "/root", "/usr", "/usr/local", "/usr/src", "/opt", "/srv",
              "/var", "/var/tmp", "/mnt", "/media"}
REGISTRY = re.compile(r"\b(?:sparse\+|registry\+)?https?://[\w.-]*(?:crates|index|registry|mirror"
                      r"|artifactory|nexus|proxy)[\w.-]*[:/\w.-]*")
REGISTRIES_KNOWN = ("registry+https://github.com/rust-lang/crates.io-index",
                    "https://github.com/rust-lang/crates.io-index",
                    "https://index.crates.io", "https://crates.io")
HOME = re.compile(r"(?<![\w.])/(?:home|Users)/[a-z][\w.-]*/")
CONFLICT = re.compile(r"^(?:<{7}|>{7}) ")
LEFT_OVER = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b")


def machine_directories(top):
    """Directories whose names would give away this machine, longest first."""
    common = subprocess.run(["git", "rev-parse", "--path-format=absolute", "--git-common-dir"],
                            cwd=top, check=True, capture_output=True, text=True).stdout.strip()
    tree = Path(common).parent
    candidates = {str(top), str(top.parent), str(tree), str(tree.parent)}
    candidates.add(os.environ.get("CARGO_HOME", ""))
    return sorted((path for path in candidates if path.startswith("/") and path not in EVERYWHERE),
                  key=len, reverse=True)


def complaints(top, name, directories):
    """One line for each place in the file that names this machine."""
    try:
        text = (top / name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    for number, line in enumerate(text.split("\n"), 1):
        for directory in directories:
            if re.search(rf"(?<![\w.-]){re.escape(directory)}/", line):
                yield f"{name}:{number}: names a directory of this machine ({directory}); " \
                      "use a path relative to the repository, or an argument"
                break
        if HOME.search(line):
            yield f"{name}:{number}: names somebody's home directory; use $HOME or an argument"
        for url in REGISTRY.findall(line):
            if not url.startswith(REGISTRIES_KNOWN):
                yield f"{name}:{number}: names a package registry ({url}); only crates.io may be " \
                      "named, mirrors belong in the machine's own cargo configuration"
        if CONFLICT.match(line):
            yield f"{name}:{number}: a merge conflict's marker; resolve it"
        if LEFT_OVER.search(line) and Path(name).name != "STYLE.md":
            yield f"{name}:{number}: something left for later; do it, or file an issue and take it out"


def main():
    top = Path(sys.argv[1])
    listing = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                             cwd=top, check=True, capture_output=True, text=True).stdout
    directories = machine_directories(top)
    found = [line for name in listing.split("\0") if name and (top / name).is_file()
             for line in complaints(top, name, directories)]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
