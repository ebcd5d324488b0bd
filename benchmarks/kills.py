"""SIGKILL at random moments to all that takes part in a sweep: counts for docs/how/robustness.md.

    python benchmarks/kills.py driver --count 25 --jobs 2
    python benchmarks/kills.py verify --count 25 --jobs 1
    python benchmarks/kills.py workers --count 25
    python benchmarks/kills.py dask --count 25
    python benchmarks/kills.py aliases

``driver`` and ``verify`` kill the process that writes the store, of a sweep of its own runs and of ``dagscale verify``;
``workers`` and ``dask`` the processes that execute. In each, what was finished must stay and run no second time, and
the tables must be those of an undisturbed sweep, to the byte.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dagscale.bench.sweep import Store, export

DRIVER = """
import os, sys, time
from dagscale.bench.sweep import Run, sweep

def runs(log, count, nap):
    return [Run("mlp:2", 2.0**-(k % 9), seed=k, options={"log": log, "nap": nap}, version="v") for k in range(count)]

def execute(run):
    import torch

    descriptor = os.open(run.options["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{run.key} {os.getpid()}\\n".encode())
    os.close(descriptor)
    time.sleep(run.options["nap"])
    return {"drawn": torch.rand(3).tolist(), "seed": run.seed}

if __name__ == "__main__":
    store, log, count, nap, where = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
    more = {"scheduler": where} if ":" in where else {"jobs": int(where)}
    try:
        sweep(runs(log, count, nap), execute, store, **more)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""
VERIFY = ["-m", "dagscale", "verify", "mlp-depth", "--quick", "--method", "paths/in-degree", "--json"]


class Sweep:
    """A sweep in a folder of its own, to be started again and again."""

    def __init__(self, home: Path, count: int, nap: float) -> None:
        (home / "driver.py").write_text(DRIVER)
        self.home, self.log, self.store, self.count, self.nap = home, home / "log", home / "s.db", count, nap
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(home), *sys.path])}

    def start(self, where: str, store: str = "s.db") -> subprocess.Popen[str]:
        arguments = ["driver.py", store, str(self.log), str(self.count), str(self.nap), where]
        return self.python(arguments)

    def verify(self, jobs: int, store: str = "s.db") -> subprocess.Popen[str]:
        return self.python([*VERIFY, "--jobs", str(jobs), "--store", store])

    def python(self, arguments: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=self.home, env=self.environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def executions(self) -> list[tuple[str, int]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(key, int(pid)) for key, pid in map(str.split, lines)]

    def finished(self) -> set[str]:
        if not self.store.exists() or self.store.stat().st_size == 0:
            return set()
        with Store(self.store) as book:
            return {line[0] for line in book.rows()}

    def tables(self, store: str) -> list[bytes]:
        found = []
        for suffix in (".csv", ".parquet"):
            out = (self.home / store).with_suffix(suffix)
            export(self.home / store, out, version="all")  # of `verify`, runs and measurements have each their own
            found.append(out.read_bytes())
        return found


def row(what: str, tried: int, result: str) -> None:
    print(f"| {what} | {tried:,} | {result} |", flush=True)


def same(sweep: Sweep) -> str:
    return "the same to the byte" if sweep.tables("s.db") == sweep.tables("whole.db") else "DIFFERENT"


def driver(count: int, seed: int, jobs: int) -> None:
    """A sweep's driver, killed while it runs."""
    chance = random.Random(seed)
    lost = repeated = 0
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(Path(folder), 15 * count, 0.05)
        for _ in range(count):
            before, begun = sweep.finished(), len(sweep.executions())
            process = sweep.start(str(jobs))
            goal, deadline = begun + chance.randrange(1, 12), time.monotonic() + 120
            while len(sweep.executions()) < goal and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(chance.random() * 2 * sweep.nap)
            process.kill()
            process.wait()
            time.sleep(0.5 if jobs > 1 else 0)  # until orphaned workers see that they are
            lost += len(before - sweep.finished())
            repeated += len(before & {key for key, _ in sweep.executions()[begun:]})
        assert sweep.start(str(jobs)).wait() == 0
        extra = len(sweep.executions()) - sweep.count
        assert sweep.start("1", "whole.db").wait() == 0
        result = f"{lost} lost, {repeated} finished runs executed again, {extra} unfinished ones; tables {same(sweep)}"
    row(f"SIGKILL of a driver, jobs={jobs}", count, result)


def verify(count: int, seed: int, jobs: int) -> None:
    """``dagscale verify``, killed while it runs."""
    chance = random.Random(seed)
    lost = hit = 0
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(Path(folder), 0, 0)
        whole = sweep.verify(1, "whole.db").communicate()[0]
        with Store(sweep.home / "whole.db") as book:
            total = book.status().counts.total
        for k in range(count):
            before = sweep.finished()
            process = sweep.verify(jobs)
            goal = len(before) + chance.randrange(0, max(1, 2 * (total - len(before)) // (count - k)))
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                if (sweep.home / "s.db-wal").exists() and len(sweep.finished()) >= goal:
                    break
                time.sleep(0.01)
            time.sleep(chance.random() * 0.1)
            hit += process.poll() is None
            process.kill()
            process.communicate()
            time.sleep(0.5 if jobs > 1 else 0)
            lost += len(before - sweep.finished())
        again = sweep.verify(jobs).communicate()[0]
        answer = "the same" if again == whole else "DIFFERENT"
        result = f"{hit} while it ran; {lost} lost; --json {answer}, tables {same(sweep)}"
    row(f"SIGKILL of `dagscale verify`, jobs={jobs}", count, result)


def workers(count: int, seed: int, jobs: int) -> None:
    """Processes of joblib's loky."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(Path(folder), 4 * count, 0.2)
        row("SIGKILL of loky workers, jobs=2", count, hunt(sweep, "2", count, seed))


def dask(count: int, seed: int, jobs: int) -> None:
    """Workers of a Dask scheduler."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(Path(folder), 4 * count, 0.2)
        with cluster(sweep) as address:
            row("SIGKILL of Dask workers, two of them", count, hunt(sweep, address, count, seed))


def hunt(sweep: Sweep, where: str, count: int, seed: int) -> str:
    """Kill processes while they execute, so many times, each run once at most: a run that every worker dies of is
    recorded as failed, and nobody can tell that from one that is hit again and again."""
    chance = random.Random(seed)
    process = sweep.start(where)
    hit: set[str] = set()
    while len(hit) < count and process.poll() is None:
        time.sleep(0.05 + chance.random() * 0.5)
        for key, pid in sweep.executions()[-1:]:
            if key not in hit:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    hit.add(key)
    status = process.wait()
    assert sweep.start("1", "whole.db").wait() == 0
    extra = len(sweep.executions()) - 2 * sweep.count
    with Store(sweep.store) as book:
        counts = book.status().counts
    what = f"exit status {status}; " if status else ""
    return (
        f"{what}{len(hit)} killed; {counts.finished} of {sweep.count} finished, {counts.failed} failed, {extra} "
        f"executed again; tables {same(sweep)}"
    )


@contextmanager
def cluster(sweep: Sweep) -> Iterator[str]:
    """A scheduler and two workers on loopback, as a user starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    begin = ["-m", "dask"]
    started = [sweep.python([*begin, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"])]
    started += [sweep.python([*begin, "worker", address, "--nthreads", "1", "--no-dashboard"]) for _ in "12"]
    time.sleep(15)
    try:
        yield address
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.communicate(timeout=60)


def aliases(count: int, seed: int, jobs: int) -> None:
    """Two drivers at one store, the second by another name of it; then drivers by one name after the other, each killed
    while a second one stands before the door."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "deep").mkdir()
        (home / "link.db").symlink_to("s.db")
        (home / "deep" / "folder").symlink_to(home)
        names = ("link.db", "deep/folder/s.db", "./deep/../s.db", str(home / "s.db"))
        sweep = Sweep(home, 80, 0.25)
        first = sweep.start("1")
        while not sweep.finished():
            time.sleep(0.05)
        os.link(home / "s.db", home / "hard.db")
        refused = sum(sweep.start("1", name).wait() == 1 for name in (*names, "hard.db"))
        (home / "hard.db").unlink()
        status = first.wait()
        once = len({key for key, _ in sweep.executions()}) == len(sweep.executions()) == 80
        row(
            "a second driver by symlink, folder's symlink, relative path, same path, hard link", len(names) + 1,
            f"{refused} refused; the first ended with {status}, {'each' if once else 'NOT EACH'} run executed once",
        )  # fmt: skip
        for file in home.glob("s.*"):
            file.unlink()
        sweep = Sweep(home, 15 * count, 0.05)
        sweep.log = home / "second-log"
        refused = lost = repeated = 0
        for k in range(count):
            before, begun = sweep.finished(), len(sweep.executions())
            first = sweep.start("1", names[k % len(names)])
            goal, deadline = begun + chance.randrange(1, 8), time.monotonic() + 120
            while len(sweep.executions()) < goal and first.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            first.send_signal(signal.SIGSTOP)  # so that it is there for as long as the second one takes to start
            refused += sweep.start("1", names[(k + 1) % len(names)]).wait() == 1
            first.send_signal(signal.SIGCONT)
            time.sleep(chance.random() * 2 * sweep.nap)
            first.kill()
            first.wait()
            os.link(home / "s.db", home / "hard.db")
            refused += sweep.start("1", "hard.db").wait() == 1
            (home / "hard.db").unlink()
            lost += len(before - sweep.finished())
            repeated += len(before & {key for key, _ in sweep.executions()[begun:]})
        assert sweep.start("1").wait() == 0
        assert sweep.start("1", "whole.db").wait() == 0
        row(
            "SIGKILL of a driver, by four names of the store in turn", count,
            f"{refused} of {2 * count} others refused; {lost} lost, {repeated} finished runs executed again; tables "
            f"{same(sweep)}",
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"driver": driver, "verify": verify, "workers": workers, "dask": dask, "aliases": aliases}
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    kinds[asked.kind](asked.count, asked.seed, asked.jobs)


if __name__ == "__main__":
    main()
