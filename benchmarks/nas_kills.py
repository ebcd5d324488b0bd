"""A retraining killed at random moments and called again: its file of results must be the undisturbed one's.

    python benchmarks/nas_kills.py [--kills N] [--seed N]

The command ``dagscale retrain`` on the digits is killed (SIGKILL) at a random moment and called again, ``--kills``
times anew. The moments are drawn over the whole of an undisturbed run, from the start of Python on. Time is processor
time, so that they fall where they are meant to on a busy machine too (Linux). Each file of results is compared byte
for byte.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dagscale.bench.sweep import Store

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


def whole_run(folder: Path) -> float:
    """Seconds of processor time that a call takes which nothing disturbs."""
    process = start(folder)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit("a study that was left alone failed")
    return usage.ru_utime + usage.ru_stime


def taken(process: subprocess.Popen[bytes]) -> float:
    """Seconds of processor time so far [proc(5), fields 14 and 15]."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def told(folder: Path) -> str:
    """How far a study is."""
    file = folder / "results.jsonl"
    done = max(0, len(file.read_bytes().splitlines()) - 2) if file.exists() else 0
    if not (folder / "runs.sqlite").exists():
        return "nothing is done"
    with Store(folder / "runs.sqlite") as book:
        return f"{book.status().counts.finished} runs and {done} architectures are done"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    other = 0
    with tempfile.TemporaryDirectory() as home:
        whole = Path(home) / "whole"
        took = whole_run(whole)
        print(f"undisturbed: {took:.1f} s of processor time; {told(whole)}", flush=True)
        for moment in sorted(chance.uniform(0, took) for _ in range(options.kills)):
            killed = Path(tempfile.mkdtemp(dir=home))
            process = start(killed)
            while process.poll() is None and taken(process) < moment:
                time.sleep(0.005)
            process.kill()
            ended, then = process.wait() == 0, told(killed)
            whole_run(killed)
            one, two = ((folder / "results.jsonl").read_bytes() for folder in (whole, killed))
            other += one != two
            state = "had ended" if ended else "killed"
            print(f"{state} after {moment / took:.0%}, when {then}; {'the same' if one == two else 'ANOTHER'} file")
    sys.exit(bool(other))


if __name__ == "__main__":
    main()
