"""Crates in the manifests against the table in crates.toml.

A crate that isn't in the table, or is used in a member that the table doesn't name for it, is
refused; so is one that a manifest names and no source file uses.
"""

import re
import sys
import tomllib
from pathlib import Path

TABLE = Path("scripts/check.d/crates.toml")
SECTIONS = ("dependencies", "dev-dependencies", "build-dependencies")


def line_in(manifest_text, crate):
    """The line of a manifest that names the crate first as a key."""
    key = re.compile(rf'^\s*"?{re.escape(crate)}"?\s*[.=]')
    for number, line in enumerate(manifest_text.split("\n"), 1):
        if key.match(line):
            return number
    return 1


def dependencies(manifest):
    """Yields (section, crate) for every dependency, those of targets too."""
    for tables in [manifest, *manifest.get("target", {}).values()]:
        for section in SECTIONS:
            for crate in tables.get(section, {}):
                yield section, crate


def is_used(directory, crate):
    """Whether any source file below the member's directory names the crate."""
    name = re.compile(rf"\b{re.escape(crate.replace('-', '_'))}\b")
    return any(name.search(path.read_text(encoding="utf-8")) for path in directory.rglob("*.rs"))


def member_complaints(top, member, rows):
    """One line for each dependency of a member that doesn't fit the table."""
    path = top / member / "Cargo.toml"
    text = path.read_text(encoding="utf-8")
    shown = path.relative_to(top)
    for section, crate in dependencies(tomllib.loads(text)):
        place = f"{shown}:{line_in(text, crate)}"
        if not crate.startswith("tidemark-"):
            row = rows.get(crate)
            if row is None:
                yield f"{place}: crate {crate} isn't in {TABLE}; add it with its reason and place, " \
                      "or do without it"
            elif section == "dependencies" and member not in row["in"]:
                yield f"{place}: {TABLE} gives {crate} to {', '.join(row['in']) or 'tests only'}, " \
                      f"not to {member}; use it there, or extend its row with the reason"
        if not is_used(top / member, crate):
            yield f"{place}: no source file of {member} uses {crate}; take it out"


def complaints(top):
    """One line for each thing wrong with the manifests or the table."""
    rows = tomllib.loads((top / TABLE).read_text(encoding="utf-8"))
    workspace_text = (top / "Cargo.toml").read_text(encoding="utf-8")
    workspace = tomllib.loads(workspace_text)["workspace"]
    used = set()
    for member in workspace["members"]:
        yield from member_complaints(top, member, rows)
        manifest = tomllib.loads((top / member / "Cargo.toml").read_text(encoding="utf-8"))
        used.update(crate for _, crate in dependencies(manifest))
    for crate in workspace.get("dependencies", {}):
        if crate not in used:
            yield f"Cargo.toml:{line_in(workspace_text, crate)}: no member uses {crate}; take it out"
    table_text = (top / TABLE).read_text(encoding="utf-8")
    for crate, row in rows.items():
        place = f"{TABLE}:{line_in(table_text, crate)}"
        if not row.get("why"):
            yield f"{place}: the row of {crate} gives no reason; say in `why` what it is for"
        if crate not in used:
            yield f"{place}: nobody uses {crate}; take the row out"


def main():
    found = list(complaints(Path(sys.argv[1])))
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
