"""Ctrl-C, SIGTERM and exceptions inside trace, plan, search, check and Base.measure: what is then changed.

    python benchmarks/interrupts.py [--times 34] [--seed 0] [--out FILE.csv]    # at random moments
    python benchmarks/interrupts.py --every 20 [--out FILE.csv]                 # at every 20th instant, in turn

Each row is a process of its own (`tests/fixtures/moments.py`, and with ``--every`` `tests/fixtures/instants.py`, which
names the instants after which something was changed). The fingerprint holds the model's weights, buffers, gradients,
modes, hooks and attributes, PyTorch's switches, hooks and modes, the random states of Python, NumPy and torch,
warnings, signal handlers, dagscale's lock and the collector; and no fake tensor may be alive that was not before.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
CALLS = ("trace", "plan", "carry", "search", "check", "measure")
KINDS = {"interrupt": "SIGINT", "terminate": "SIGTERM", "raise": "exception in user code"}
FIELDS = ("call", "model", "stopped_by", "places", "stopped", "changed", "survivors")


def rows(calls: Sequence[str], times: int, seed: int, every: int | None) -> Iterator[dict[str, Any]]:
    """A row a process; what it says of changes goes to stderr."""
    for call in calls:
        for model in ("copied", "borrowed"):
            for kind, words in KINDS.items() if every is None else [("", "SIGINT, SIGTERM in turn")]:
                script, numbers = ("moments.py", [kind, times, seed]) if every is None else ("instants.py", [every])
                command = [sys.executable, "-W", "ignore", str(FIXTURES / script), call, model, *map(str, numbers)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                row = {"call": call, "model": model, "stopped_by": words}
                if done.returncode:
                    print(done.stderr[-2000:], file=sys.stderr)
                    yield {**row, "stopped": f"the process ended with {done.returncode}"}
                    continue
                found = json.loads(done.stdout)
                for line in (*found["changed"], *found.get("lost", ())):
                    print(call, model, line, file=sys.stderr)
                changed = len(found["changed"]) + len(found.get("lost", ()))
                known = {key: found[key] for key in FIELDS if key in found}
                yield {**known, **row, "changed": changed, "survivors": found.get("survivors", 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=34, help="calls that are stopped, a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", default=",".join(CALLS), help="some of them, with commas between")
    parser.add_argument("--every", type=int, help="stop at every so-many-th instant, one after the other")
    parser.add_argument("--out", type=Path, help="a CSV file for the rows")
    args = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}\n")
    print(f"| {' | '.join(FIELDS)} |\n|{'---|' * len(FIELDS)}")
    found = []
    for row in rows(args.calls.split(","), args.times, args.seed, args.every):
        found.append(row)
        print(f"| {' | '.join(str(row.get(key, '')) for key in FIELDS)} |", flush=True)
    if args.out is not None:
        with args.out.open("w", newline="") as file:
            table = csv.DictWriter(file, FIELDS, lineterminator="\n")
            table.writeheader()
            table.writerows(found)
    sys.exit(any(row.get("changed", 1) or row.get("survivors", 1) for row in found))


if __name__ == "__main__":
    main()
