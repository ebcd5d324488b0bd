"""A retraining killed at random moments and called again: its file of results must be the undisturbed one's.

    python benchmarks/nas_kills.py [--kills N] [--seed N]

The command ``dagscale retrain`` on the digits is killed (SIGKILL) ``--kills`` times at random moments, then left to
finish. The moments are such that each call gets on by about its part of the work. Its file of results is compared byte
for byte.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ASKED = (
    "--data", "digits", "--preset", "tiny-1", "--limit", "100", "--jobs", "1", "--recipes", "one-rate,released",
    "--architectures", "0_00_300,1_11_111,3_00_300,2_02_022,0_30_003,3_03_101", "--budget", "1h",
)  # fmt: skip


def start(folder: Path) -> subprocess.Popen[bytes]:
    paths = ("--store", str(folder / "runs.sqlite"), "--results", str(folder / "results.jsonl"))
    return subprocess.Popen(
        [sys.executable, "-m", "dagscale", "retrain", *ASKED, *paths],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def lines(folder: Path) -> int:
    file = folder / "results.jsonl"
    return len(file.read_bytes().splitlines()) if file.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as home:
        whole, killed = Path(home) / "whole", Path(home) / "killed"
        begun = time.monotonic()
        if start(whole).wait():
            sys.exit("the undisturbed study failed")
        took = time.monotonic() - begun
        begun = time.monotonic()
        start(whole).wait()  # there is nothing left to do: what it takes to start
        before = time.monotonic() - begun
        print(f"undisturbed: {took:.1f} s, {before:.1f} s of them to start, {lines(whole)} lines", flush=True)
        for k in range(options.kills):
            process = start(killed)
            time.sleep(chance.uniform(0.6 * before, before + 2 * max(0.0, took - before) / options.kills))
            process.kill()
            print(
                f"kill {k + 1}: {'had ended' if process.wait() == 0 else 'killed'}, {lines(killed)} lines", flush=True
            )
        if start(killed).wait():
            sys.exit("the study that was killed does not go on")
        ours, theirs = ((folder / "results.jsonl").read_bytes().splitlines() for folder in (whole, killed))
    other = [k for k in range(max(len(ours), len(theirs))) if ours[k : k + 1] != theirs[k : k + 1]]
    print(f"ANOTHER file of results: lines {other}" if other else "the same file of results")
    sys.exit(bool(other))


if __name__ == "__main__":
    main()
