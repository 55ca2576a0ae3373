"""Sizes that STYLE sets: lines of a file, of a function, of tests inside a file."""

import sys
from pathlib import Path

import rust

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
INLINE_TEST_LINES_MAX = 300


def complaints(top, path):
    """One line for each thing in the file that is too large."""
    text = (top / path).read_text(encoding="utf-8")
    lines = text.count("\n")
    if lines > FILE_LINES_MAX:
        yield f"{path}:{FILE_LINES_MAX + 1}: the file has {lines} lines, {FILE_LINES_MAX} are " \
              "allowed; split it by what its parts do"
    code = rust.blank(text)
    for function in rust.functions(code):
        length = function.last_line - function.first_line + 1
        if length > FUNCTION_LINES_MAX:
            yield f"{path}:{function.first_line}: fn {function.name} has {length} lines, " \
                  f"{FUNCTION_LINES_MAX} are allowed; give its steps names of their own"
    for module in rust.test_modules(code):
        if module.span:
            length = code.count("\n", *module.span) + 1
            if length > INLINE_TEST_LINES_MAX:
                yield f"{path}:{rust.line_of(code, module.start)}: mod {module.name} has {length} " \
                      f"lines of tests, {INLINE_TEST_LINES_MAX} are allowed inside a file; move " \
                      "them to a file of their own"


def main():
    top = Path(sys.argv[1])
    found = [line for path in rust.source_files(top) for line in complaints(top, path)]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
