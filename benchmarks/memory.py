"""Peak memory of a training step, a plan with data and a search, for three kinds of networks: docs/how/robustness.md.

    python benchmarks/memory.py [--csv docs/evidence/tables/memory.csv]

Each figure is of a process of its own (`tests/fixtures/memory.py`), in copies of the model's weights beside the user's.
A plan and a search should take what a training step takes, and one copy.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "tests" / "fixtures" / "memory.py"
KINDS = {"mlp": 1500, "cnn": 400, "transformer": 480}
"""Kind → width: some 36 MB of weights, and 23 and 33."""
CALLS = ("step", "plan", "search")
FIELDS = ("network", "optimizer", *CALLS)


def peak(call: str, optimizer: str, kind: str) -> float:
    command = [sys.executable, "-W", "ignore", str(SCRIPT), call, optimizer, str(KINDS[kind]), kind]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    rows = []
    for kind in KINDS:
        for optimizer in ("sgd", "adamw"):
            rows.append([kind, optimizer, *(f"{peak(call, optimizer, kind):.2f}" for call in CALLS)])
            print(*rows[-1], sep="\t", flush=True)
    if args.csv is not None:
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([FIELDS, *rows])
    sys.exit(any(float(cell) > float(row[2]) + 1.25 for row in rows for cell in row[3:]))


if __name__ == "__main__":
    main()
