"""What deny.toml asks of licences, bans and sources, for a machine without cargo-deny.

Reads deny.toml and the resolved dependencies as cargo tells them. Duplicate versions and
advisories are left to cargo-deny itself.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path


def packages(top, target):
    """Every package that a build for the target takes in, as cargo describes it."""
    told = subprocess.run(
        ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target],
        cwd=top, check=True, capture_output=True, text=True,
    ).stdout
    return json.loads(told)["packages"]


def satisfies(expression, allowed):
    """Whether an SPDX expression can be met by the allowed licences alone."""
    expression = expression.replace("/", " OR ").replace(" WITH ", "+with+")
    tokens = re.findall(r"[()]|[^\s()]+", expression)

    def either():
        value = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            value = both() or value
        return value

    def both():
        value = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            value = one() and value
        return value

    def one():
        token = tokens.pop(0)
        if token == "(":
            value = either()
            tokens.pop(0)
            return value
        return token.replace("+with+", " WITH ") in allowed

    return either()


def complaints(top):
    """One line for each package that deny.toml refuses."""
    rules = tomllib.loads((top / "deny.toml").read_text(encoding="utf-8"))
    allowed = set(rules["licenses"]["allow"])
    registries = {f"registry+{url}" for url in rules["sources"]["allow-registry"]}
    found = packages(top, rules["graph"]["targets"][0])
    users = {}
    for package in found:
        for dependency in package["dependencies"]:
            users.setdefault(dependency["name"], set()).add(package["name"])
    banned = {row["crate"]: row for row in rules["bans"]["deny"]}
    for package in found:
        name = f"{package['name']} {package['version']}"
        if not satisfies(package.get("license") or "none", allowed):
            yield f"deny.toml:1: {name} is under {package.get('license')}, which isn't allowed; " \
                  "do without the crate, or allow the licence with care"
        if package["source"] and package["source"] not in registries:
            yield f"Cargo.lock:1: {name} comes from {package['source']}; take it from crates.io"
        row = banned.get(package["name"])
        if row and not users.get(package["name"], set()) & set(row.get("wrappers", [])):
            yield f"Cargo.lock:1: {name} is banned: {row['reason']}"


def main():
    found = list(complaints(Path(sys.argv[1])))
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
