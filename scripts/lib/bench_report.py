"""Medians and ratios of a bench run, as a table or as JSON.

Comes in: lines "round target workload value note". Goes out on standard output: for each workload
and target the median, its spread, and the ratio of the protected disk to that target.
"""

import json
import statistics
import sys

PROTECTED = "tidemark"
TITLES = {
    "write-4k-32": "4 KiB random write, depth 32 (IOPS)",
    "write-4k-1": "4 KiB random write, depth 1 (IOPS)",
    "read-4k-32": "4 KiB random read, depth 32 (IOPS)",
    "read-4k-1": "4 KiB random read, depth 1 (IOPS)",
    "write-128k-16": "128 KiB sequential write, depth 16 (MiB/s)",
}


def read_results(path):
    """{workload: {target: [values]}} and the number of unprotected rounds of each workload."""
    values, unprotected = {}, {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            _, target, workload, value, note = line.split()
            values.setdefault(workload, {}).setdefault(target, []).append(float(value))
            unprotected[workload] = unprotected.get(workload, 0) + (note == "unprotected")
    return values, unprotected


def summary(values, unprotected):
    """One entry for each workload, ready for JSON."""
    out = []
    for workload, targets in values.items():
        ours = statistics.median(targets[PROTECTED])
        rows = []
        for target, found in targets.items():
            median = statistics.median(found)
            rows.append({"target": target, "median": round(median, 1), "lowest": round(min(found), 1),
                         "highest": round(max(found), 1),
                         "protected_to_this": round(ours / median, 3) if median else None})
        out.append({"workload": workload, "title": TITLES.get(workload, workload),
                    "rounds": len(targets[PROTECTED]), "rounds_unprotected": unprotected[workload],
                    "targets": rows})
    return out


def print_table(entries):
    for entry in entries:
        print(f"\n{entry['title']}, median of {entry['rounds']}")
        print(f"  {'':18}{'median':>12}{'lowest':>12}{'highest':>12}  protected : this")
        for row in entry["targets"]:
            ratio = row["protected_to_this"]
            print(f"  {row['target']:18}{row['median']:12,.0f}{row['lowest']:12,.0f}"
                  f"{row['highest']:12,.0f}  {'' if ratio is None else format(ratio, '.2f'):>16}")
        if entry["rounds_unprotected"]:
            print(f"  in {entry['rounds_unprotected']} rounds the disk fell out of protection: "
                  "the change ring was full")


def main():
    arguments = sys.argv[1:]
    as_json = "--json" in arguments
    path = next(argument for argument in arguments if argument != "--json")
    entries = summary(*read_results(path))
    if as_json:
        json.dump(entries, sys.stdout, indent=2)
        print()
    else:
        print_table(entries)


if __name__ == "__main__":
    main()
