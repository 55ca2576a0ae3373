"""Misspells every key of a TOML file, one at a time.

    misspell.py FILE DIRECTORY [--few]

Writes one file for each misspelling (one letter dropped, one doubled, at every place; with --few at
one place of each key) below DIRECTORY, and prints a line for each: its path, the line of the key,
the key as it should be. Tables count as keys.
"""

import re
import sys
from pathlib import Path

KEY = re.compile(r"^(\[*)([a-z_]+)(\]*\s*(?:=.*)?)$")


def misspellings(key, few):
    places = [len(key) // 2] if few else range(len(key))
    found = {key[:at] + key[at + 1:] for at in places} | {key[:at] + key[at] + key[at:] for at in places}
    return sorted(found - {key, ""})


def main():
    source, directory, few = Path(sys.argv[1]), Path(sys.argv[2]), "--few" in sys.argv[3:]
    lines = source.read_text(encoding="utf-8").splitlines()
    count = 0
    for number, line in enumerate(lines):
        match = KEY.match(line)
        if not match:
            continue
        for wrong in misspellings(match[2], few):
            count += 1
            path = directory / f"{count}.toml"
            changed = [*lines[:number], match[1] + wrong + match[3], *lines[number + 1:]]
            path.write_text("\n".join(changed) + "\n", encoding="utf-8")
            print(path, number + 1, match[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
