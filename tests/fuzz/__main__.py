"""Fuzz the readers: `python -m tests.fuzz SUITE... [--seed N] [--share X]` prints a report as a line of JSON each.

`--share 0.1` runs a tenth of the cases, `--share tests` as many as the normal tests do. A defect means exit code 1.
"""

import argparse
import json
import sys
from pathlib import Path

from tests.fuzz.harness import run_suite

SUITES = sorted(
    file.stem
    for file in Path(__file__).parent.glob("*.py")
    if file.stem not in ("__init__", "__main__", "harness", "bytes", "kills", "serving", "http_requests")
)


def main(words):
    parser = argparse.ArgumentParser(prog="./dev fuzz", description="Give readers damaged and hostile input.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"{', '.join(SUITES)} (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=lambda word: None if word == "tests" else float(word), default=1.0)
    arguments = parser.parse_args(words)
    # `./dev fuzz flips 7`: a number is the seed
    seeds = [int(word) for word in arguments.suites if word.isdigit()]
    names = [word for word in arguments.suites if not word.isdigit()] or SUITES
    if unknown := set(names) - set(SUITES):
        parser.error(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")
    num_defects = 0
    for name in names:
        report = run_suite(name, arguments.share, seeds[0] if seeds else arguments.seed)
        num_defects += len(report["defects"])
        print(json.dumps(report), flush=True)
    return min(num_defects, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
