"""Adds a disk to the agent's configuration, or takes it out; all other lines stay as they are.

    agent_config.py add FILE NAME BACKING       prints the whole new text
    agent_config.py remove FILE NAME            prints the whole new text
    agent_config.py backing FILE NAME           prints what holds the disk's bytes

Exit status 1, with a message, when the name is there already, or is not.
"""

import re
import sys
import tomllib

TABLE = re.compile(r"^\s*\[")
VOLUME = re.compile(r"^\s*\[\[\s*volume\s*\]\]")


def volumes(text):
    return tomllib.loads(text).get("volume", [])


def tables(text):
    """Ranges of lines of the [[volume]] tables, in the order of the file."""
    lines = text.splitlines(keepends=True)
    heads = [at for at, line in enumerate(lines) if TABLE.match(line)]
    found = []
    for head, after in zip(heads, [*heads[1:], len(lines)]):
        if VOLUME.match(lines[head]):
            end = after
            # The comment right above the next table belongs to that one.
            while end < len(lines) and end > head + 1 and lines[end - 1].lstrip().startswith("#"):
                end -= 1
            found.append((head, end))
    return lines, found


def quoted(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def add(text, name, backing):
    if any(volume.get("name") == name for volume in volumes(text)):
        sys.exit(f"there is a volume {name} already")
    end = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{end}\n[[volume]]\nname = {quoted(name)}\nbacking = {quoted(backing)}\n"


def index_of(text, name):
    names = [volume.get("name") for volume in volumes(text)]
    if name not in names:
        sys.exit(f"there is no volume {name}; there are: {', '.join(names) or 'none'}")
    return names.index(name)


def remove(text, name):
    lines, found = tables(text)
    begin, end = found[index_of(text, name)]
    if begin > 0 and not lines[begin - 1].strip():
        begin -= 1
    return "".join(lines[:begin] + lines[end:])


def main():
    action, path, name, *rest = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if action == "add":
        sys.stdout.write(add(text, name, *rest))
    elif action == "remove":
        sys.stdout.write(remove(text, name))
    else:
        print(volumes(text)[index_of(text, name)]["backing"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
