"""The store of a sweep: one SQLite file that holds every run asked for, and what came of it."""

from __future__ import annotations

import sqlite3
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote

from dagscale.bench.sweep.run import Run, decode
from dagscale.errors import SweepError

APPLICATION = 0x64616773
"""SQLite's application id of a store: ``dags``."""

SCHEMA = 1
"""Version of the tables below, in SQLite's user version. It changes whenever they do."""

TABLES = """
CREATE TABLE runs (
    key TEXT NOT NULL UNIQUE,
    run TEXT NOT NULL,
    architecture TEXT NOT NULL,
    version TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'finished', 'failed')),
    result TEXT,
    error TEXT,
    seconds REAL
);
CREATE INDEX runs_by_version ON runs (version, architecture, state);
"""
"""``run``, ``result`` and ``error`` are JSON as `dagscale.bench.sweep.run.encode` writes it."""

PAGE = 256
"""Runs read from the file at once."""


class Outcome(NamedTuple):
    """What came of one run.

    Args:
        key: of the run.
        state: ``finished`` or ``failed``.
        result: JSON of the result, of a finished run.
        error: JSON of ``type``, ``message`` and ``traceback``, of a failed run.
        seconds: that it took.
    """

    key: str
    state: str
    result: str | None
    error: str | None
    seconds: float


@dataclass
class Counts:
    """How many runs there are, and what came of them."""

    total: int = 0
    finished: int = 0
    failed: int = 0

    @property
    def pending(self) -> int:
        """Runs asked for without a result."""
        return self.total - self.finished - self.failed

    def add(self, state: str, count: int) -> None:
        """Count runs of one state."""
        self.total += count
        self.finished += count if state == "finished" else 0
        self.failed += count if state == "failed" else 0

    def to_dict(self) -> dict[str, int]:
        """As plain data."""
        return {"total": self.total, "finished": self.finished, "failed": self.failed, "pending": self.pending}


@dataclass
class Status:
    """What a store holds: in all, by code version and by architecture; and how often runs failed of what."""

    counts: Counts = field(default_factory=Counts)
    by_version: dict[str, Counts] = field(default_factory=dict)
    by_architecture: dict[str, Counts] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            **self.counts.to_dict(),
            "by_version": {name: counts.to_dict() for name, counts in self.by_version.items()},
            "by_architecture": {name: counts.to_dict() for name, counts in self.by_architecture.items()},
            "errors": self.errors,
        }


class Store:
    """An open store. Use it in a ``with`` statement.

    A store opened to write belongs to one process at a time; any number may read it meanwhile. What `record` has
    returned from survives the death of the process and of the machine.

    Args:
        path: the file; made if it does not exist and the store is opened to write.
        write: open it to write.

    Raises:
        SweepError: if the file is no store, is damaged, comes from another version of the store, cannot be opened, or
            (to write) another process has it. The file is not changed then.
    """

    def __init__(self, path: str | Path, *, write: bool = False) -> None:
        self.path = Path(path)
        self._lock: sqlite3.Connection | None = None
        self._db: sqlite3.Connection | None = None
        _check_header(self.path, write)
        try:
            with _plainly(self.path):
                if write:
                    self._lock = _lock(self.path)
                self._db = _connect(self.path, write)
                if write:
                    _check_pages(self._db, self.path)
                    _make_tables(self._db)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        for connection in (self._db, self._lock):
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()
        self._db = self._lock = None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        if self._db is None:
            raise SweepError(f"{self.path} is closed: open the store again")
        with _plainly(self.path):
            yield self._db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def ask(self, runs: Iterable[Run]) -> int:
        """Note these runs as asked for, both for good and as this call's own; all of them or, on an error, none.

        Returns:
            How many there were, duplicates included.
        """
        given = 0
        with self._transaction() as db:
            db.execute("CREATE TEMP TABLE IF NOT EXISTS asked (place INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE)")
            for run in runs:
                if not isinstance(run, Run):
                    raise SweepError(f"a sweep is over values of Run, not {type(run).__name__}")
                db.execute(
                    "INSERT OR IGNORE INTO runs (key, run, architecture, version) VALUES (?, ?, ?, ?)",
                    (run.key, run.json, run.architecture, run.version),
                )
                db.execute("INSERT OR IGNORE INTO asked (key) VALUES (?)", (run.key,))
                given += 1
        return given

    def asked(self) -> Counts:
        """This call's own runs by state."""
        with self._open() as db:
            return _count(db.execute("SELECT state, count(*) FROM asked JOIN runs USING (key) GROUP BY state"))

    def waiting(self, *, failed: bool = False) -> Iterator[tuple[str, str]]:
        """Key and JSON of this call's own runs that have no result, in the order they were given.

        Args:
            failed: those that failed before this call of `waiting` too.
        """
        states = "('pending', 'failed')" if failed else "('pending')"
        query = f"""SELECT place, key, run FROM asked JOIN runs USING (key)
                    WHERE place > ? AND state IN {states} ORDER BY place LIMIT {PAGE}"""
        last = 0
        while True:
            with self._open() as db:
                page = db.execute(query, (last,)).fetchall()
            if not page:
                return
            last = page[-1][0]
            for _, key, run in page:
                yield key, run

    def record(self, outcomes: Iterable[Outcome]) -> None:
        """Write what came of runs, in one transaction."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE runs SET state = ?, result = ?, error = ?, seconds = ? WHERE key = ?",
                ((done.state, done.result, done.error, done.seconds, done.key) for done in outcomes),
            )

    def results(self, runs: Iterable[Run]) -> Iterator[tuple[Run, Any]]:
        """Each of these runs with its result; None for one that is not finished.

        A run's code version is part of it, so results of another version never come up.
        """
        for run in runs:
            with self._open() as db:
                row = db.execute("SELECT result FROM runs WHERE key = ?", (run.key,)).fetchone()
            yield run, None if row is None or row[0] is None else decode(row[0])

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Within, everything read is of one moment, whatever another process writes meanwhile."""
        with self._open() as db:
            db.execute("BEGIN")
        try:
            yield
        finally:
            with self._open() as db:
                db.execute("COMMIT")

    def rows(self, version: str | None = None) -> Iterator[tuple[str, str, str, str | None, str | None, float]]:
        """Key, run, state, result, error and seconds of all finished and failed runs, sorted by key."""
        query = f"""SELECT key, run, state, result, error, seconds FROM runs
                    WHERE key > ?1 AND state != 'pending' AND (?2 IS NULL OR version = ?2) ORDER BY key LIMIT {PAGE}"""
        last = ""
        while True:
            with self._open() as db:
                page = db.execute(query, (last, version)).fetchall()
            if not page:
                return
            last = page[-1][0]
            yield from page

    def status(self) -> Status:
        """Counts of everything in the store."""
        status = Status()
        with self._open() as db:
            rows = db.execute("SELECT version, architecture, state, count(*) FROM runs GROUP BY 1, 2, 3").fetchall()
            failed = db.execute("SELECT error FROM runs WHERE state = 'failed'")
            status.errors = dict(Counter(error_line(error) for (error,) in failed).most_common())
        for version, architecture, state, count in rows:
            status.counts.add(state, count)
            status.by_version.setdefault(version, Counts()).add(state, count)
            status.by_architecture.setdefault(architecture, Counts()).add(state, count)
        status.by_architecture = dict(sorted(status.by_architecture.items()))
        return status


def error_line(error: str | None) -> str:
    """``Type: message`` of a recorded error, on one line."""
    if error is None:
        return ""
    parts = decode(error)
    return " ".join(f"{parts['type']}: {parts['message']}".split())


def _count(rows: Iterable[tuple[str, int]]) -> Counts:
    counts = Counts()
    for state, count in rows:
        counts.add(state, count)
    return counts


def _check_header(path: Path, write: bool) -> None:
    """Look at the first bytes of the file, before SQLite does anything to it.

    They are set when a store is made and never again, so they can be trusted even while another process writes.
    """
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        if write:
            return
        raise SweepError(f"there is no store at {path}: `dagscale sweep` reads a file that a sweep has made") from None
    except OSError as error:
        raise SweepError(f"{path} cannot be read: {error.strerror or error}") from None
    if not header and write:
        return  # a sweep that was killed while it made the file
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise SweepError(f"{path} is no store of a sweep (it is no SQLite file): give another path")
    schema, application = struct.unpack(">i4xi", header[60:72])
    if application != APPLICATION:
        raise SweepError(f"{path} is an SQLite file of another program, no store of a sweep: give another path")
    if schema != SCHEMA:
        raise SweepError(
            f"{path} is a store of schema {schema}, and this dagscale reads schema {SCHEMA}: "
            f"use the {'newer' if schema > SCHEMA else 'older'} dagscale that wrote it, or give a new path"
        )


def _lock(path: Path) -> sqlite3.Connection:
    """Hold the store for this process, by a lock on an empty file beside it; the system lifts it if we die."""
    lock = sqlite3.connect(f"{path}.lock", isolation_level=None, timeout=0)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        lock.close()
        if "locked" in str(error):
            raise SweepError(
                f"another process is sweeping into {path}: wait until it ends, or give this sweep a file of its own"
            ) from None
        raise
    return lock


def _connect(path: Path, write: bool) -> sqlite3.Connection:
    """Open the file; its transactions are the caller's."""
    if write:
        db = sqlite3.connect(path, isolation_level=None, timeout=60)
        db.execute("PRAGMA synchronous = FULL")
        return db
    name = f"file:{quote(str(path.absolute()))}"
    db = sqlite3.connect(f"{name}?mode=rw", uri=True, isolation_level=None, timeout=60)
    try:
        db.execute("PRAGMA query_only = ON")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        db.close()
        if path.with_name(path.name + "-wal").exists():
            raise
        # A folder that cannot be written has no room for SQLite's shared memory; nobody can change the file either.
        db = sqlite3.connect(f"{name}?immutable=1", uri=True, isolation_level=None)
    return db


def _check_pages(db: sqlite3.Connection, path: Path) -> None:
    """See that the whole file is sound, before anything is added to it."""
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise SweepError(_damaged(path, found))


def _make_tables(db: sqlite3.Connection) -> None:
    """Make the tables if this is a new file."""
    if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        db.execute("PRAGMA journal_mode = DELETE")
        db.executescript(
            f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {SCHEMA}; {TABLES} COMMIT;"
        )
    db.execute("PRAGMA journal_mode = WAL")


@contextmanager
def _plainly(path: Path) -> Iterator[None]:
    """Say in one line what SQLite complains of, and what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise SweepError(explain(path, error)) from error


def explain(path: Path, error: sqlite3.Error) -> str:
    """One line that names the cause of an SQLite error and its mend."""
    text = str(error)
    if "full" in text:
        return f"no space left for {path}: free some and call again; every result written so far is in it"
    if "readonly" in text or "read-only" in text:
        return f"{path} is read-only: make the file and its folder writable, or give another path"
    if "locked" in text:
        return f"{path} is in use by another program for over a minute ({text}): close that and call again"
    if "unable to open" in text:
        return f"{path} cannot be opened: see that its folder exists and that you may write there"
    if "not a database" in text or "malformed" in text:
        return _damaged(path, text)
    return f"{path} cannot be used ({text}): see that the disk is sound and has room, then call again"


def _damaged(path: Path, what: str) -> str:
    return (
        f"{path} is damaged ({what.splitlines()[-1]}): restore a copy, or save what is left with "
        f"`sqlite3 {path} .recover | sqlite3 NEW`"
    )


__all__ = ["Counts", "Outcome", "Status", "Store", "error_line", "explain"]
