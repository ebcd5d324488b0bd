"""Ctrl-C and exceptions at random moments inside trace, plan, search, check and Base.measure: what is then changed.

    python benchmarks/interrupts.py [--times 50] [--seed 0]   # the table of docs/robustness.md

Each row is a process of its own (`tests/fixtures/moments.py`). The fingerprint holds the model's weights, buffers,
gradients, modes, hooks and attributes, PyTorch's switches, hooks and modes, the random states of Python, NumPy and
torch, warnings, signal handlers and the collector; and no fake tensor may be alive that was not before.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "tests" / "fixtures" / "moments.py"
WORDS = {"interrupt": "SIGINT", "raise": "exception in user code"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="calls that are stopped, a row")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}\n")
    print("| call | model | stopped by | stopped | changed | survivors |")
    print("|---|---|---|---|---|---|")
    bad = 0
    for call in ("trace", "plan", "search", "check", "measure"):
        for model in ("copied", "borrowed"):
            for kind, words in WORDS.items():
                command = [
                    sys.executable,
                    "-W",
                    "ignore",
                    str(SCRIPT),
                    call,
                    model,
                    kind,
                    str(args.times),
                    str(args.seed),
                ]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    bad += 1
                    print(f"| {call} | {model} | {words} | the process ended with {done.returncode} | | |", flush=True)
                    print(done.stderr[-2000:], file=sys.stderr)
                    continue
                row = json.loads(done.stdout)
                bad += bool(row["changed"] or row["survivors"])
                note = " (refused, in one line)" if row["refused"] else ""
                print(
                    f"| {call} | {model}{note} | {words} | {row['stopped']} of {row['tried']} | {len(row['changed'])} "
                    f"| {row['survivors']} |",
                    flush=True,
                )
                for change in row["changed"]:
                    print(change, file=sys.stderr)
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
