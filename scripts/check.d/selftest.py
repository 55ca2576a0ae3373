"""The checks checked: what rust.py reads out of small sources, so that none passes by blindness."""

import sys

import rust

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


def main():
    code = rust.blank(SOURCE)
    wrong = []

    def expect(what, found, wanted):
        if found != wanted:
            wrong.append(f"scripts/check.d/rust.py:1: {what}: read {found}, not {wanted}")

    expect("lines", code.count("\n"), SOURCE.count("\n"))
    expect("functions", [(f.name, f.first_line, f.last_line) for f in rust.functions(code)],
           [("first", 6, 9), ("in_test", 14, 14)])
    expect("tests", [(m.name, m.span is not None) for m in rust.test_modules(code)],
           [("tests", True)])
    expect("paths", [path for _, path in rust.used_paths(rust.without_tests(code))],
           [["crate", "journal", "Reader"], ["crate", "journal", "Writer"], ["crate", "seed"],
            ["tidemark_block", "ByteRange"], ["super", "view", "open"]])
    print("\n".join(wrong), end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
