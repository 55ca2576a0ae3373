"""What the checks need to know about a Rust source file, without a compiler.

Comes in: the text of a file. Goes out: the same text with comments and literals blanked (every
line and column stays where it was), the spans of test code and of functions, and the paths it
uses. The reading is lexical: macros that build items are not seen.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

_TOKEN = re.compile(
    r"""//[^\n]*                                  # a line comment
      | /\*                                       # a block comment; nests, ended by hand
      | \bb?c?r(?P<hashes>\#*)"                   # a raw string; ended by hand
      | [bc]?"(?:\\.|[^"\\])*"                    # a string
      | b?'(?:\\(?:x[0-9a-fA-F]{2}|u\{[^}]*\}|.)|[^'\\\n])'   # a character, not a lifetime
    """,
    re.VERBOSE | re.DOTALL,
)
_BLOCK_COMMENT_EDGE = re.compile(r"/\*|\*/")
_FN = re.compile(r"\bfn\s+([A-Za-z_]\w*)")
_TEST_ATTRIBUTE = re.compile(r"#\[cfg\((?:test\)|all\([^\]]*\btest\b)[^\]]*\]?")
_MOD = re.compile(r"(?:\s|#\[[^\]]*\])*(?:pub(?:\([^)]*\))?\s+)?mod\s+([A-Za-z_]\w*)\s*([{;])")


def source_files(top):
    """Every .rs file that git knows or would take in, as paths relative to `top`."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.rs"],
        cwd=top, check=True, capture_output=True, text=True,
    ).stdout
    return sorted(Path(name) for name in listing.split("\0") if name and (top / name).is_file())


def blank(text):
    """`text` with comments and literals turned into spaces; line breaks stay."""
    out, at = [], 0
    while token := _TOKEN.search(text, at):
        out.append(text[at:token.start()])
        end = token.end()
        if token.group() == "/*":
            end = _block_comment_end(text, end)
        elif token.group("hashes") is not None:
            closing = text.find('"' + token.group("hashes"), end)
            end = len(text) if closing < 0 else closing + 1 + len(token.group("hashes"))
        out.append(re.sub(r"[^\n]", " ", text[token.start():end]))
        at = end
    out.append(text[at:])
    return "".join(out)


def _block_comment_end(text, at):
    depth = 1
    while depth and (edge := _BLOCK_COMMENT_EDGE.search(text, at)):
        depth += 1 if edge.group() == "/*" else -1
        at = edge.end()
    return at if depth == 0 else len(text)


def line_of(text, at):
    """The line number, from 1, of the character at index `at`."""
    return text.count("\n", 0, at) + 1


def closing_brace(text, opening):
    """Index of the brace that closes the one at `opening`, in blanked text."""
    depth = 0
    for brace in re.finditer(r"[{}]", text[opening:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return opening + brace.start()
    return len(text) - 1


@dataclass
class Function:
    """One function with a body: its name and its first and last line."""
    name: str
    first_line: int
    last_line: int


def functions(text):
    """The functions with bodies in blanked text, nested ones too."""
    for head in _FN.finditer(text):
        opening = _body_start(text, head.end())
        if opening is not None:
            closing = closing_brace(text, opening)
            yield Function(head.group(1), line_of(text, head.start()), line_of(text, closing))


def _body_start(text, at):
    depth = 0
    for sign in re.finditer(r"[()\[\]{};]", text[at:]):
        if sign.group() in "([":
            depth += 1
        elif sign.group() in ")]":
            depth -= 1
        elif depth == 0:
            return at + sign.start() if sign.group() == "{" else None
    return None


@dataclass
class TestModule:
    """A module under `cfg(test)`: inline with its span, or a file of its own (`span` None)."""
    name: str
    start: int
    span: tuple | None


def test_modules(text):
    """The modules under `cfg(test)` in blanked text."""
    for attribute in _TEST_ATTRIBUTE.finditer(text):
        if module := _MOD.match(text, attribute.end()):
            span = None
            if module.group(2) == "{":
                span = (attribute.start(), closing_brace(text, module.end() - 1) + 1)
            yield TestModule(module.group(1), attribute.start(), span)


def without_tests(text):
    """Blanked text with the inline test modules blanked as well."""
    for module in test_modules(text):
        if module.span:
            start, end = module.span
            text = text[:start] + re.sub(r"[^\n]", " ", text[start:end]) + text[end:]
    return text


def is_test_file(path):
    """Whether the file holds nothing but tests, going by its name."""
    return "tests" in path.parts or "benches" in path.parts or path.stem == "tests" \
        or path.stem.endswith(("_tests", "_test"))


_USE = re.compile(r"\buse\s+([^;]+);")
_PATH = re.compile(r"(?<![\w:$])(?:::)?((?:crate|super|self|tidemark_\w+)(?:\s*::\s*[A-Za-z_]\w*)+)")


def used_paths(text):
    """Yields (index, path as a list of names) for each path into our own crates."""
    for use in _USE.finditer(text):
        for path in expand(use.group(1)):
            if path and (path[0] in ("crate", "super", "self") or path[0].startswith("tidemark_")):
                yield use.start(), path
    outside_use = _USE.sub(lambda use: re.sub(r"[^\n]", " ", use.group()), text)
    for path in _PATH.finditer(outside_use):
        yield path.start(), re.split(r"\s*::\s*", path.group(1))


def expand(tree):
    """`a::{b, c::{d, e as f}}` as a list of paths."""
    tree = tree.strip().removeprefix("::")
    opening = tree.find("{")
    if opening < 0:
        return [re.split(r"\s*::\s*", re.sub(r"\s+as\s+\w+$", "", tree).strip())]
    head = [name for name in re.split(r"\s*::\s*", tree[:opening].strip()) if name]
    paths = []
    for branch in _split_branches(tree[opening + 1:tree.rfind("}")]):
        paths.extend(head + tail for tail in expand(branch))
    return paths


def _split_branches(inner):
    depth, start = 0, 0
    for sign in re.finditer(r"[{},]", inner):
        if sign.group() == "{":
            depth += 1
        elif sign.group() == "}":
            depth -= 1
        elif depth == 0:
            yield inner[start:sign.start()]
            start = sign.end()
    if inner[start:].strip():
        yield inner[start:]
