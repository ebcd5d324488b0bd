"""Where runs are executed: in this process, in processes of this machine, or on a Dask cluster."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from dagscale.bench.sweep.run import Run, code_version, encode
from dagscale.bench.sweep.store import Outcome
from dagscale.errors import DataError, SweepError
from dagscale.shown import line

Execute = Callable[[Run], Mapping[str, Any]]
"""What a sweep does with a run: a function of a module's top level, its result plain data."""

LOOK = 5.0
"""Seconds between looks at the workers, while no outcome comes."""

CONNECT = 10.0
"""Seconds to reach a scheduler, and to see a worker there."""

DESERTED = 300.0
"""Seconds that a sweep waits for a cluster whose last worker has gone."""

GIVE_UP = 12
"""Pools lost one after the other, with no outcome between, that end a sweep."""

FRAMES = 5
"""Innermost frames kept of a traceback."""

_alone = threading.Lock()


def attempt(execute: Execute, key: str, run: str, code: str) -> Outcome:
    """Execute one run, in a worker. An error in it is an outcome too.

    It runs alone in its process, with one torch thread and all global random states seeded by its key, so that its
    result depends on neither the machine's cores nor what ran there before.

    Raises:
        SweepError: if the worker has other code than the driver, ``code``; or if the run raises it, or `DataError`:
            what it then lacks, the others lack too, and it is no outcome.
    """
    if code_version() != code:
        raise SweepError(
            f"a worker runs dagscale {code_version()}, this process {code}: give both the same code (restart the "
            "workers after a change), then call again; what is finished is kept"
        )
    with _alone, _reproducible(int(key[:8], 16)):
        start = time.perf_counter()
        try:
            result = execute(Run.from_json(run))
            if not isinstance(result, Mapping):
                raise TypeError(f"execute must return a mapping, not {type(result).__name__}")
            text = encode(result)
        except (DataError, SweepError) as error:
            raise SweepError(
                f"{line(str(error))} (found in a run of {line(_named(run), 100)}; every run would meet it, so none is "
                "recorded for it: mend it and call again, what is finished is kept)"
            ) from None
        except (Exception, SystemExit) as error:
            return Outcome(key, "failed", None, _error(error), time.perf_counter() - start)
        return Outcome(key, "finished", text, None, time.perf_counter() - start)


def attempts(pool: Pool, runs: Iterator[tuple[str, str]], execute: Execute) -> Generator[list[Outcome], None, None]:
    """The outcomes of runs, given by key and JSON, in the order they come; together those that came together.

    A run whose worker dies is executed again elsewhere. Where a dead worker takes others' runs with it, each of these
    is then executed with no other beside it, so that one which kills its worker is found; it fails after
    ``pool.patience`` such deaths.

    Raises:
        SweepError: if the workers cannot be used.
    """
    code = code_version()
    flying: dict[Future[Outcome], tuple[str, str]] = {}
    again: deque[tuple[str, str]] = deque()
    deaths: Counter[str] = Counter()
    barren = 0
    while True:
        suspects = again or any(deaths[key] for key, _ in flying.values())
        width = 1 if pool.shared and suspects else pool.width()
        while len(flying) < width and (item := again.popleft() if again else next(runs, None)):
            try:
                flying[pool.submit(attempt, execute, *item, code)] = item
            except pool.lost:  # the pool fell since; those that fly will tell
                again.appendleft(item)
                break
        if not (flying or again):
            return
        done = wait(flying, timeout=LOOK, return_when=FIRST_COMPLETED).done
        pool.check()
        fell = pool.shared and (not flying or any(_failure(future, pool.lost) for future in done))
        if fell:
            done = wait(flying, timeout=CONNECT).done  # all fall with it, but for those that had just finished
        outcomes, trouble = [], None
        for future in done:
            item = flying.pop(future)
            error = _failure(future, (BaseException,))
            if error is None:
                outcomes.append(future.result())
                barren = 0
            elif not isinstance(error, pool.lost):
                trouble = error if isinstance(error, SweepError) else SweepError(_unusable(error))
            elif deaths[item[0]] + 1 < pool.patience:
                deaths[item[0]] += 1
                again.append(item)
            else:
                outcomes.append(_lost(item[0]))
        if outcomes:
            yield outcomes
        if trouble:
            raise trouble
        if fell:
            barren += 1
            if barren >= GIVE_UP:
                raise SweepError(
                    "workers die as soon as they start: see that there is memory enough, or try jobs=1; "
                    "what is finished is kept"
                )
            pool.renew()


def _named(run: str) -> str:
    return Run.from_json(run).architecture


def _failure(future: Future[Outcome], kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """The error of a future that is done, if it is of these kinds."""
    error = CancelledError() if future.cancelled() else future.exception()
    return error if isinstance(error, kinds) else None


class Pool(Protocol):
    """Workers.

    Attributes:
        lost: errors of a run whose worker died.
        shared: one worker's death takes the runs of all others with it.
        patience: deaths of its worker that a run may see before it fails.
    """

    lost: tuple[type[BaseException], ...]
    shared: bool
    patience: int

    def width(self) -> int:
        """How many runs to have under way: what keeps all workers busy."""

    def submit(self, function: Callable[..., Outcome], *arguments: Any) -> Future[Outcome]:
        """Have a worker call ``function(*arguments)``."""

    def check(self) -> None:
        """See that there is still someone at work.

        Raises:
            SweepError: if not.
        """

    def renew(self) -> None:
        """Start afresh after a worker died."""

    def close(self) -> None:
        """Let all workers go, at once."""


class Here:
    """This process itself."""

    lost: tuple[type[BaseException], ...] = ()
    shared = False
    patience = 1

    def width(self) -> int:
        """One run at a time."""
        return 1

    def submit(self, function: Callable[..., Outcome], *arguments: Any) -> Future[Outcome]:
        """Call it now."""
        future: Future[Outcome] = Future()
        future.set_result(function(*arguments))
        return future

    def check(self) -> None:
        """Always well."""

    def renew(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class Processes:
    """Processes of this machine, by joblib's loky.

    Args:
        jobs: how many.
    """

    shared = True
    patience = 3

    def __init__(self, jobs: int) -> None:
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        self.lost: tuple[type[BaseException], ...] = (TerminatedWorkerError,)
        self._jobs = jobs
        self._pool = self._start()

    def _start(self) -> Any:
        from joblib.externals.loky import ProcessPoolExecutor

        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        return ProcessPoolExecutor(self._jobs, initializer=_begin, initargs=(os.getpid(),), env=threads)

    def width(self) -> int:
        """Each worker's run, and one more that waits for it."""
        return 2 * self._jobs

    def submit(self, function: Callable[..., Outcome], *arguments: Any) -> Future[Outcome]:
        """Queue it."""
        with _deaf():  # it starts processes
            future: Future[Outcome] = self._pool.submit(function, *arguments)
        return future

    def check(self) -> None:
        """A dead process shows in its runs."""

    def renew(self) -> None:
        """New processes."""
        self.close()
        self._pool = self._start()

    def close(self) -> None:
        """Kill the processes."""
        self._pool.shutdown(wait=True, kill_workers=True)


class Cluster:
    """The workers of a Dask scheduler.

    Neither joblib's backend for Dask nor Dask's own executor is used: both never return once a run has killed its
    workers, or its result was lost with one. Each worker has one run at a time, so that a death is put down to it.

    Args:
        address: the scheduler's, as ``tcp://host:8786``.

    Raises:
        SweepError: if it cannot be reached, has no workers, or Dask is not installed.
    """

    shared = False
    patience = 2  # Dask itself has tried four workers before it says that one was lost

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client, KilledWorker
        except ImportError as error:
            raise SweepError("a scheduler needs Dask: pip install dagscale[dist]") from error
        self.lost: tuple[type[BaseException], ...] = (KilledWorker,)
        self._address = address
        try:
            self._client = Client(address, timeout=CONNECT, set_as_default=False)
        except Exception as error:  # a wrong address raises whatever its parser does
            raise SweepError(
                f"no Dask scheduler at {address} ({_line(error)}): start one with `dask scheduler`, and give the "
                "address it prints, as tcp://host:8786"
            ) from None
        self._under_way: dict[Future[Outcome], Any] = {}
        try:
            self._client.wait_for_workers(1, timeout=CONNECT)
        except Exception:
            self.close()
            raise SweepError(
                f"the scheduler at {address} has no workers: start some with `dask worker {address} --nthreads 1`"
            ) from None
        self._seen = self._looked = time.monotonic()
        self._width = self._count()

    def _count(self) -> int:
        """Number of workers."""
        try:
            return len(self._client.nthreads())
        except Exception as error:
            raise SweepError(self._gone()) from error

    def _gone(self) -> str:
        return f"the Dask scheduler at {self._address} has gone: start it and call again; what is finished is kept"

    def width(self) -> int:
        """The number of workers, as of the last few seconds."""
        return max(1, self._width)

    def submit(self, function: Callable[..., Outcome], *arguments: Any) -> Future[Outcome]:
        """Send it to the scheduler."""
        if self._client.status != "running":
            raise SweepError(self._gone())
        ours: Future[Outcome] = Future()

        def deliver(theirs: Any) -> None:
            try:
                ours.set_result(theirs.result())
            except BaseException as error:
                ours.set_exception(error)
            self._under_way.pop(ours, None)

        self._under_way[ours] = self._client.submit(function, *arguments, pure=False)
        self._under_way[ours].add_done_callback(deliver)
        return ours

    def check(self) -> None:
        """Count the workers now and then."""
        if self._client.status != "running":
            raise SweepError(self._gone())
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked, self._width = now, self._count()
        if self._width:
            self._seen = now
        elif now - self._seen > DESERTED:
            raise SweepError(
                f"the scheduler at {self._address} has had no workers for {DESERTED:.0f} seconds: start some with "
                f"`dask worker {self._address} --nthreads 1` and call again; what is finished is kept"
            )

    def renew(self) -> None:
        """Dask does so itself."""

    def close(self) -> None:
        """Withdraw what is under way and leave the cluster as it was."""
        with suppress(Exception):
            if self._client.status == "running":
                self._client.cancel(list(self._under_way.values()))
        with suppress(Exception):
            self._client.close(timeout=CONNECT)


def open_pool(jobs: int, scheduler: str | None) -> Pool:
    """Workers for a sweep; see `dagscale.bench.sweep.sweep`.

    Raises:
        SweepError: if there can be none.
    """
    if scheduler is not None:
        return Cluster(scheduler)
    if jobs == 0:
        raise SweepError("jobs must not be 0: give a number of processes, or -1 for one a core")
    if jobs < 0:
        from joblib import cpu_count

        jobs = max(1, cpu_count() + 1 + jobs)
    return Here() if jobs == 1 else Processes(jobs)


@contextmanager
def _deaf() -> Iterator[None]:
    """Within, Ctrl-C waits, and processes that are started never hear of it: it is the driver's, and one that still
    imports would show a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(driver: int) -> None:
    """Set up a worker process: it leaves interrupts to the driver, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(0.2)
        os._exit(1)

    if sys.platform != "win32":  # where a process keeps its parent's number after the parent's end
        threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """One torch thread and seeded global random states within; as they were after."""
    import numpy
    import torch

    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    threads, states = torch.get_num_threads(), (random.getstate(), numpy.random.get_state())
    with torch.random.fork_rng(devices=devices):
        torch.set_num_threads(1)
        random.seed(seed)
        numpy.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            random.setstate(states[0])
            numpy.random.set_state(states[1])


def _error(error: BaseException) -> str:
    """An error as JSON: type, message, and the innermost frames."""
    name = type(error).__qualname__
    frames = traceback.format_list(traceback.extract_tb(error.__traceback__)[-FRAMES:])
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be had)"
    parts = {"type": name, "message": message[:1000], "traceback": "".join(frames)[-4000:]}
    return encode({part: text.encode("utf-8", "replace").decode() for part, text in parts.items()})


def _lost(key: str) -> Outcome:
    message = "every worker that tried it died: it may need too much memory, or crash the interpreter"
    return Outcome(key, "failed", None, encode({"type": "WorkerLost", "message": message, "traceback": ""}), 0.0)


def _unusable(error: BaseException) -> str:
    return (
        f"a run could not be sent to a worker ({type(error).__name__}: {_line(error)}): execute must be a function of "
        "a module that the workers can import too"
    )


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


__all__ = ["Cluster", "Execute", "Here", "Outcome", "Pool", "Processes", "attempt", "attempts", "open_pool"]
