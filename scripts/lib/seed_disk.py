"""Compares a seed disk with the disk itself, with nothing of Tidemark's in between.

    seed_disk.py SEED.IMG DISK.IMG RECORDS...

DISK.IMG is the disk at its newest state. RECORDS are pages of `tidemark --json journal inspect` of
all segments that are not in the seed: what their records touch may differ, all the rest has to be
equal. Prints how much was compared; exit status 1 and the first place when something differs.
"""

import json
import sys

STEP = 1 << 20


def touched(pages):
    ranges = []
    for page in pages:
        with open(page, encoding="utf-8") as file:
            answer = json.load(file)
        if answer["next_after"] is not None or answer["damage"] is not None:
            sys.exit(f"{page} is not the whole segment: {answer['damage']}")
        for record in answer["records"]:
            if record["len_bytes"] > 0:
                ranges.append((record["offset_bytes"], record["offset_bytes"] + record["len_bytes"]))
    return sorted(ranges)


def untouched(ranges, size):
    at = 0
    for start, end in ranges:
        if start > at:
            yield at, start
        at = max(at, end)
    if at < size:
        yield at, size


def main():
    seed_path, disk_path, *pages = sys.argv[1:]
    compared = 0
    with open(seed_path, "rb") as seed, open(disk_path, "rb") as disk:
        size = disk.seek(0, 2)
        if seed.seek(0, 2) != size:
            sys.exit(f"the seed has {seed.tell()} bytes, the disk {size}")
        for start, end in untouched(touched(pages), size):
            for at in range(start, end, STEP):
                length = min(STEP, end - at)
                seed.seek(at)
                disk.seek(at)
                ours, theirs = seed.read(length), disk.read(length)
                if ours != theirs:
                    first = next(i for i in range(length) if ours[i] != theirs[i])
                    sys.exit(f"seed.img differs from the disk at byte {at + first}")
                compared += length
    print(f"{compared} {size}")


main()
