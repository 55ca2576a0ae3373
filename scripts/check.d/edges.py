"""Edges between crates and modules against the table in edges.toml."""

import re
import sys
import tomllib
from pathlib import Path

import rust

TABLE = Path("scripts/check.d/edges.toml")
# Roots put modules together; what they use is the crate's own composition.
ROOTS = {"lib", "main"}
_REEXPORT = re.compile(r"\bpub\s+use\s+([^;]+);")


class Crate:
    """One member: its short name, directory, top-level modules and re-exports of its root."""

    def __init__(self, top, member):
        self.top = top
        self.name = Path(member).name
        self.source = Path(member) / "src"
        self.modules = {path.stem for path in (top / self.source).glob("*.rs")} - ROOTS
        self.modules |= {path.name for path in (top / self.source).iterdir() if path.is_dir()}
        self.reexports = {}
        root = top / self.source / "lib.rs"
        if root.is_file():
            text = rust.blank(root.read_text(encoding="utf-8"))
            for use in _REEXPORT.finditer(text):
                for path in rust.expand(use.group(1)):
                    path = path[1:] if path[0] in ("crate", "self") else path
                    if len(path) > 1 and path[0] in self.modules:
                        self.reexports[path[-1]] = path[0]

    def module_of(self, name):
        """The top-level module behind a name in the crate's root, or None."""
        return name if name in self.modules else self.reexports.get(name)


def module_path(crate, path):
    """Where a file's module stands in its crate: ["journal", "index"] for journal/index.rs."""
    parts = list(path.relative_to(crate.source).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "mod" else parts


def target_of(crates, crate, here, path):
    """(crate name, module or None) that a used path leads to, or None when it stays at home."""
    if path[0].startswith("tidemark_"):
        other = crates.get(path[0].removeprefix("tidemark_"))
        if other is None or other is crate:
            return None
        return other.name, other.module_of(path[1]) if len(path) > 1 else None
    if path[0] == "super":
        ups = next((n for n, name in enumerate(path) if name != "super"), len(path))
        base = here[:-ups]
        if base or ups > len(here) or len(path) == ups:
            return None
        path = ["crate", *path[ups:]]
    if path[0] != "crate" or len(path) < 2:
        return None
    module = crate.module_of(path[1])
    return (crate.name, module) if module and module != here[0] else None


def is_allowed(target, crate, allowed):
    """Whether a row's entries cover a target."""
    name, module = target
    if name == crate.name:
        return module in allowed or "*" in allowed
    return name in allowed or "*" in allowed or (module and f"{name}/{module}" in allowed)


def file_complaints(crates, crate, table, path):
    """One line for each edge in a file that the table doesn't have."""
    here = module_path(crate, path)
    if here[0] in ROOTS or here[0] == "bin":
        return
    rows = table.get(crate.name)
    row = None if rows is None else rows.get(here[0], rows.get("*"))
    if rows is not None and row is None:
        yield f"{path}:1: module {crate.name}::{here[0]} isn't in {TABLE}; add a row that says " \
              "what it may use"
        return
    text = rust.without_tests(rust.blank((crate.top / path).read_text(encoding="utf-8")))
    seen = set()
    for at, used in rust.used_paths(text):
        target = target_of(crates, crate, here, used)
        if target is None or (target[0] == crate.name and (rows is None or "*" in rows)):
            continue
        allowed = (row or table["crates"][crate.name]) + (rows or {}).get("shared", [])
        line = rust.line_of(text, at)
        if not is_allowed(target, crate, allowed) and (line, target) not in seen:
            seen.add((line, target))
            name = "::".join(part for part in target if part)
            yield f"{path}:{line}: {crate.name}::{here[0]} uses {name}, which {TABLE} does not " \
                  "allow; turn the dependency round, or extend the table and say why"


def manifest_complaints(top, crate, table):
    """One line for each crate of ours in a manifest that the table doesn't have."""
    shown = crate.source.parent / "Cargo.toml"
    text = (top / shown).read_text(encoding="utf-8")
    allowed = table["crates"].get(crate.name)
    if allowed is None:
        yield f"{shown}:1: crate {crate.name} isn't in {TABLE}; add it under [crates]"
        return
    for dependency in tomllib.loads(text).get("dependencies", {}):
        other = dependency.removeprefix("tidemark-")
        if other != dependency and other not in allowed:
            line = next(n for n, found in enumerate(text.split("\n"), 1) if dependency in found)
            yield f"{shown}:{line}: {crate.name} may not use {other}; {TABLE} allows " \
                  f"{', '.join(allowed) or 'nothing of ours'}"


def is_source_of(crate, path):
    """Whether the file is code (not tests) of the crate's library or binary."""
    return path.is_relative_to(crate.source) and not rust.is_test_file(path)


def complaints(top):
    """One line for each edge, module or crate that the table doesn't have."""
    table = tomllib.loads((top / TABLE).read_text(encoding="utf-8"))
    members = tomllib.loads((top / "Cargo.toml").read_text(encoding="utf-8"))["workspace"]["members"]
    crates = {Path(member).name: Crate(top, member) for member in members}
    files = rust.source_files(top)
    for crate in crates.values():
        yield from manifest_complaints(top, crate, table)
        for path in files:
            if is_source_of(crate, path):
                yield from file_complaints(crates, crate, table, path)


def main():
    found = list(complaints(Path(sys.argv[1])))
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
