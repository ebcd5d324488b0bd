"""SIGKILL at random moments: nothing finished is lost or runs twice, the table is the undisturbed one's."""

import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dagscale.bench.sweep import Store, export, sweep
from dagscale.errors import SweepError

Start = Callable[..., Callable[[], int]]
"""Starts a driver; what it returns kills it."""

DRIVER = """
import os
import sys
import time
from dagscale.bench.sweep import Run, sweep

def runs(log, count, nap):
    return [Run("mlp:2", 2.0**-(k % 9), seed=k, options={"log": log, "nap": nap}, version="v") for k in range(count)]

def execute(run):
    import torch

    line = f"{run.key} {os.getpid()}\\n".encode()
    descriptor = os.open(run.options["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line)
    os.close(descriptor)
    time.sleep(run.options["nap"])
    return {"drawn": torch.rand(3).tolist(), "seed": run.seed}

def drive(store, log, count, nap, jobs):
    sweep(runs(log, count, nap), execute, store, jobs=jobs)

if __name__ == "__main__":
    drive(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the runs, importable by every process started from here."""
    (tmp_path / "sweep_driver.py").write_text(DRIVER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    import sweep_driver  # type: ignore[import-not-found]

    yield sweep_driver
    del sys.modules["sweep_driver"]


def executions(log: Path) -> list[tuple[str, int]]:
    text = log.read_text() if log.exists() else ""
    whole = text[: text.rfind("\n") + 1]  # of a line that is being written a part may be seen
    return [(key, int(pid)) for key, pid in map(str.split, whole.splitlines())]


def finished(store: Path) -> set[str]:
    if not store.exists() or store.stat().st_size == 0:
        return set()
    with Store(store) as book:
        return {row[0] for row in book.rows()}


def table(store: Path) -> bytes:
    export(store, store.with_suffix(".parquet"))
    return store.with_suffix(".parquet").read_bytes()


def forked(module: Any, *arguments: Any) -> Callable[[], int]:
    """Start a driver as a fork of a process that has imported everything: there in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dagscale.bench.sweep", "dagscale.bench.sweep.engine", "torch"])
    process = context.Process(target=module.drive, args=arguments)
    process.start()
    assert process.pid is not None
    pid = process.pid

    def kill() -> int:
        os.kill(pid, signal.SIGKILL)
        process.join()
        return pid

    return kill


def spawned(module: Any, *arguments: Any) -> Callable[[], int]:
    """Start a driver as a program of its own."""
    process = subprocess.Popen([sys.executable, module.__file__, *map(str, arguments)])

    def kill() -> int:
        process.kill()
        process.wait()
        return process.pid

    return kill


def disturb(start: Start, module: Any, tmp_path: Path, *, kills: int, count: int, nap: float, jobs: int) -> None:
    """Kill drivers at random moments, let one finish, compare with an undisturbed one."""
    log, store = tmp_path / "log", tmp_path / "killed.db"
    chance = random.Random(kills)
    arguments = (str(store), str(log), count, nap, jobs)
    while_killed: Counter[str] = Counter()
    for k in range(kills):
        before, begun = finished(store), len(executions(log))
        goal = begun + chance.randrange(max(1, (count - len(before)) // (kills - k)))
        kill = start(module, *arguments)
        deadline = time.monotonic() + 60
        while len(executions(log)) < goal and time.monotonic() < deadline:
            time.sleep(nap / 5)
        time.sleep(chance.random() * nap * 2)
        kill()
        time.sleep(0.5 if jobs > 1 else 0)  # the watch of orphaned workers
        after = finished(store)
        assert before <= after, "something finished was lost"
        repeated = before & {key for key, _ in executions(log)[begun:]}
        assert not repeated, "something finished ran again"
        while_killed.update({key for key, _ in executions(log)} - after)
    module.drive(*arguments)
    total = Counter(key for key, _ in executions(log))
    assert len(total) == count
    # Each kill may cost what was under way: a run for every worker, or one whose outcome was on its way back.
    assert sum(total.values()) <= count + kills * (2 * jobs if jobs > 1 else 1)
    assert all(total[key] == 1 or key in while_killed for key in total)
    whole = tmp_path / "whole.db"
    sweep(module.runs(str(log), count, nap), module.execute, whole, jobs=1)
    assert table(store) == table(whole)


def test_five_kills_of_the_driver(module: Any, tmp_path: Path) -> None:
    disturb(forked, module, tmp_path, kills=5, count=60, nap=0.01, jobs=1)


@pytest.mark.slow
def test_twenty_kills_of_the_driver(module: Any, tmp_path: Path) -> None:
    disturb(forked, module, tmp_path, kills=20, count=200, nap=0.01, jobs=1)


@pytest.mark.slow
def test_kills_of_a_driver_with_two_processes(module: Any, tmp_path: Path) -> None:
    disturb(spawned, module, tmp_path, kills=4, count=40, nap=0.1, jobs=2)


@pytest.mark.slow
def test_a_killed_process_costs_nothing(module: Any, tmp_path: Path) -> None:
    log, store, whole = tmp_path / "log", tmp_path / "killed.db", tmp_path / "whole.db"
    driver = subprocess.Popen([sys.executable, module.__file__, str(store), str(log), "20", "0.2", "2"])
    kill_executing(log, 5)
    assert driver.wait(timeout=120) == 0
    sweep(module.runs(str(log), 20, 0.2), module.execute, whole, jobs=1)
    assert table(store) == table(whole)


def kill_executing(log: Path, after: int) -> None:
    """Wait for so many executions to begin, then kill the process of the last."""
    deadline = time.monotonic() + 120
    while len(executions(log)) < after and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(executions(log)[-1][1], signal.SIGKILL)


@pytest.fixture
def scheduler(module: Any, tmp_path: Path) -> Iterator[str]:
    """A Dask scheduler with two workers on loopback, started as a user would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    dask = [sys.executable, "-m", "dask"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    started = [
        subprocess.Popen([*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"], **quiet),
        *(subprocess.Popen([*dask, "worker", address, "--nthreads", "1", "--no-dashboard"], **quiet) for _ in "12"),
    ]
    try:
        yield address
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=60)


@pytest.mark.slow
def test_dask_workers_killed_while_they_run(module: Any, tmp_path: Path, scheduler: str) -> None:
    log, store, whole = tmp_path / "log", tmp_path / "dask.db", tmp_path / "whole.db"
    runs = module.runs(str(log), 50, 0.2)
    killers = [threading.Thread(target=kill_executing, args=(log, after)) for after in (3, 12, 21, 30, 39)]
    for killer in killers:
        killer.start()
    done = sweep(runs, module.execute, store, scheduler=scheduler)
    for killer in killers:
        killer.join()
    assert done.ok
    assert len(executions(log)) > 50, "the workers died between runs"
    sweep(runs, module.execute, whole, jobs=1)
    assert table(store) == table(whole)


@pytest.mark.slow
def test_a_scheduler_that_goes_away(module: Any, tmp_path: Path, scheduler: str) -> None:
    from distributed import Client

    log, store = tmp_path / "log", tmp_path / "dask.db"

    def shut(limit: int) -> None:
        while len(executions(log)) < limit:
            time.sleep(0.01)
        with Client(scheduler, set_as_default=False) as client:
            client.shutdown()

    closer = threading.Thread(target=shut, args=(6,))
    closer.start()
    with pytest.raises(SweepError, match="has gone"):
        sweep(module.runs(str(log), 50, 0.2), module.execute, store, scheduler=scheduler)
    closer.join()
    kept = finished(store)
    assert kept
    assert sweep(module.runs(str(log), 50, 0.2), module.execute, store, jobs=1).executed == 50 - len(kept)
