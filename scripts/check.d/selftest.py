"""The checks checked: each one must find what it is for in a small tree made wrong on purpose."""

import subprocess
import sys
import tempfile
from pathlib import Path

import crates
import deny
import edges
import paths
import rust
import sizes

SOURCE = '''//! use crate::never;
use std::fmt;
use crate::{journal::{Reader, Writer as W}, seed};
use tidemark_block::ByteRange;
/* /* nested } */ fn no() { */
pub fn first<'a>(x: &'a str) -> [u8; 3] {
    let quote = '"'; let raw = r#"fn hidden() { "} "#; let brace = '{';
    super::view::open(x)
}
fn declared(x: u8);
#[cfg(test)]
mod tests {
    use crate::daemon;
    fn in_test() {}
}
'''

# A workspace in which every rule is broken at least once.
TREE = {
    "Cargo.toml": '[workspace]\nmembers = ["low", "high"]\n[workspace.dependencies]\nnobody = "1"\n',
    "low/Cargo.toml": '[dependencies]\ntidemark-high = "1"\nunknown = "1"\nelsewhere = "1"\n'
                      '[dev-dependencies]\nidle = "1"\n',
    "low/src/lib.rs": "pub mod a;\npub mod b;\npub mod stray;\npub use b::Thing;\n",
    "low/src/a.rs": "use crate::{b::Thing as T,\n    error::E};\nuse tidemark_high as h;\n"
                    "use unknown::x;\nuse elsewhere::y;\n",
    "low/src/b.rs": "fn long() {\n" + "\n" * 70 + "}\n" + "\n" * 600,
    "low/src/error.rs": "pub struct E;\n#[cfg(test)]\nmod tests {\n" + "\n" * 300
                        + "use crate::a;\n}\n",
    "low/src/stray.rs": "use super::a::x;\n",
    "high/Cargo.toml": '[dependencies]\ntidemark-low = "1"\n',
    "high/src/main.rs": "use tidemark_low::Thing;\n",
    "high/src/one.rs": "fn f() { tidemark_low::Thing::new(); tidemark_low::error::E; }\n",
    "high/src/two.rs": "use super::one::f;\n",
    "scripts/check.d/edges.toml":
        '[crates]\nlow = []\nhigh = ["low"]\n[low]\nshared = ["error"]\na = []\nb = []\n'
        'error = []\n[high]\none = ["low/error"]\ntwo = ["one"]\n',
    "scripts/check.d/crates.toml":
        'elsewhere = { in = ["high"], why = "x" }\nidle = { in = [], why = "" }\n'
        'gone = { in = [], why = "x" }\n',
    "notes": "see @/x and https:" "//mirror.example/index\n",
}
FOUND = {
    edges: ["low/Cargo.toml:2: low may not use high", "low/src/a.rs:1: low::a uses low::b",
            "low/src/a.rs:3: low::a uses high",
            "low/src/stray.rs:1: module low::stray isn't in",
            "high/src/one.rs:1: high::one uses low::b"],
    crates: ["low/Cargo.toml:6: no source file of low uses idle",
             "low/Cargo.toml:3: crate unknown isn't in",
             "low/Cargo.toml:4: scripts/check.d/crates.toml gives elsewhere to high",
             "Cargo.toml:4: no member uses nobody",
             "scripts/check.d/crates.toml:2: the row of idle gives no reason",
             "scripts/check.d/crates.toml:3: nobody uses gone"],
    sizes: ["low/src/b.rs:601: the file has 672 lines", "low/src/b.rs:1: fn long has 72 lines",
            "low/src/error.rs:2: mod tests has 304 lines"],
    paths: ["notes:1: names a directory of this machine", "notes:1: names a package registry"],
}
LICENCES = {"MIT OR GPL-3.0": True, "MIT AND GPL-3.0": False, "(A OR MIT) AND MIT": True,
            "MIT/Apache-2.0": True, "GPL-3.0": False, "Apache-2.0 WITH LLVM-exception": False}


def reading_complaints():
    """What rust.py reads wrongly out of SOURCE."""
    code = rust.blank(SOURCE)
    wanted = [
        ("lines", code.count("\n"), SOURCE.count("\n")),
        ("functions", [(f.name, f.first_line, f.last_line) for f in rust.functions(code)],
         [("first", 6, 9), ("in_test", 14, 14)]),
        ("tests", [(m.name, m.span is not None) for m in rust.test_modules(code)],
         [("tests", True)]),
        ("paths", [path for _, path in rust.used_paths(rust.without_tests(code))],
         [["crate", "journal", "Reader"], ["crate", "journal", "Writer"], ["crate", "seed"],
          ["tidemark_block", "ByteRange"], ["super", "view", "open"]]),
    ]
    for what, found, right in wanted:
        if found != right:
            yield f"scripts/check.d/rust.py:1: {what}: read {found}, not {right}"


def complaints_of(check, top):
    """All findings of one check on a tree."""
    if check is sizes:
        return [line for path in rust.source_files(top) for line in sizes.complaints(top, path)]
    if check is paths:
        directories = paths.machine_directories(top)
        return [line for name in TREE for line in paths.complaints(top, name, directories)]
    return list(check.complaints(top))


def tree_complaints():
    """Where a check finds other things in TREE than FOUND."""
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory).resolve()
        for name, text in TREE.items():
            path = top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("@", str(top)), encoding="utf-8")
        subprocess.run(["git", "init", "--quiet"], cwd=top, check=True)
        for check, wanted in FOUND.items():
            found = complaints_of(check, top)
            place = f"scripts/check.d/{check.__name__}.py:1"
            for start in wanted:
                if not any(line.startswith(start) for line in found):
                    yield f"{place}: does not find '{start}'"
            for line in found:
                if not line.startswith(tuple(wanted)):
                    yield f"{place}: finds '{line}', which is all right"


def main():
    found = [*reading_complaints(), *tree_complaints()]
    for expression, right in LICENCES.items():
        if deny.satisfies(expression, {"MIT", "Apache-2.0"}) != right:
            found.append(f"scripts/check.d/deny.py:1: takes '{expression}' for {not right}")
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
