"""The store of a sweep: one SQLite file that holds every run asked for, and what came of it."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote

from dagscale.bench.sweep.place import APPLICATION, SCHEMA, Place, resolve
from dagscale.bench.sweep.run import Run, decode
from dagscale.errors import SweepError
from dagscale.interrupts import uninterrupted
from dagscale.shown import line

RUNS = """CREATE TABLE runs (
    key TEXT NOT NULL UNIQUE,
    run TEXT NOT NULL,
    architecture TEXT NOT NULL,
    version TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'finished', 'failed')),
    result TEXT,
    error TEXT,
    seconds REAL,
    digest TEXT NOT NULL
)"""
"""``run``, ``result`` and ``error`` are JSON as `dagscale.bench.sweep.run.encode` writes it; ``key`` is the sha256 of
``run``, ``digest`` that of all the rest, see `digest`."""

INDEX = "CREATE INDEX runs_by_version ON runs (version, architecture, state)"

WITHOUT = RUNS.replace(",\n    digest TEXT NOT NULL", "")
"""The table of schema 1."""

COLUMNS = "key, run, architecture, version, state, result, error, seconds"
"""What `digest` is of."""

LONGEST = 1 << 28
"""Characters of a row at most: checking one takes several times its size."""

PAGE = 256
"""Runs read from the file at once."""


def digest(*values: str | float | None) -> str:
    """The sha256 of one row's columns, in the order of ``COLUMNS``: what a read row is held against."""
    return hashlib.sha256(repr(values).encode("utf-8", "surrogatepass")).hexdigest()


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
            (to write) another process has it, under whatever name. The file is not changed then.

    Attributes:
        path: without symbolic links.
        checked: every row has a checksum; False for a file of schema 1 that no sweep has written to since.
    """

    _db: sqlite3.Connection | None = None
    _place: Place | None = None
    _forsaken = False

    def __init__(self, path: str | Path, *, write: bool = False) -> None:
        self.path = resolve(path)
        try:
            with _plainly(self.path):
                self._db = uninterrupted(lambda waiting: self._opened(write))
                self._db.create_function("digest", -1, digest)
                if write:
                    _make_tables(self._db)
                self.checked = self._db.execute("PRAGMA user_version").fetchone()[0] != 1
                _check_pages(self._db, self.path, RUNS if self.checked else WITHOUT)
                if write:
                    self._db.execute("PRAGMA journal_mode = WAL")
                if write and not self.checked:
                    self._add_digests()
        except BaseException:
            self.close()
            raise

    def _opened(self, write: bool) -> sqlite3.Connection:
        self._place = Place(self.path, write=write)
        return _connect(self.path, write)

    def __del__(self) -> None:
        """An interrupt may come before anyone else has it; one that came in here would be dropped, so do little."""
        if self._place is not None:
            self._end()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.close()
        finally:  # where an interrupt came before signals were kept
            self._end()

    def close(self) -> None:
        """Close the file."""
        uninterrupted(lambda waiting: self._end())

    def _end(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error), _unfinished(self.path) if self._forsaken else nullcontext():
                self._db.close()
        self._db = None
        if self._place is not None:
            self._place.close()
        self._place = None

    def check_place(self, *, fully: bool = False) -> None:
        """See that the file is still the one at its path, so that what is written there is found again.

        Args:
            fully: read all of it back from the disk.

        Raises:
            SweepError: if it was removed, replaced or overwritten. All that was recorded is then in a new file, which
                the message names.
        """
        assert self._place is not None
        what = self._place.moved()
        if what is None and fully:
            try:
                with closing(_connect(self.path, False)) as fresh, _plainly(self.path):
                    _check_pages(fresh, self.path, RUNS)
            except (SweepError, sqlite3.Error):
                what = "was damaged by another program"
                self._forsaken = True
        if what is not None:
            raise SweepError(f"{self.path} {what} while it was in use: {self._rescue()}")

    def _rescue(self) -> str:
        """Write everything into a new file, beside this one or among the temporary files; where that is, in words."""
        for folder in (self.path.parent, Path(tempfile.gettempdir())):
            try:
                descriptor, name = tempfile.mkstemp(self.path.suffix, f"{self.path.stem[:100]}-kept-", folder)
            except OSError:
                continue
            os.close(descriptor)
            try:
                with self._open() as db:
                    db.execute("VACUUM INTO ?", (name,))
                with Store(name) as kept:
                    for _ in kept.rows():
                        pass
            except SweepError:
                os.unlink(name)
                return "some of its last results are lost; see that it is left alone, and call again"
            return f"all its results are in {name}; move that to a path of its own and call again with it"
        return "and there is no folder to keep its results in; make one and call again"

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
                if self._db is not None and db.in_transaction:  # closing, which an interrupt may bring, takes it back
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
                row = (run.key, run.json, run.architecture, run.version, "pending", None, None, None)
                db.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, digest(*row)))
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
        query = f"""SELECT place, {self._columns} FROM asked JOIN runs USING (key)
                    WHERE place > ? AND state IN {states} ORDER BY place LIMIT {PAGE}"""
        for _, *row in self._pages(query, 0):
            key, run, *_ = self._sound(row)
            yield key, run

    def record(self, outcomes: Iterable[Outcome]) -> None:
        """Write what came of runs, in one transaction.

        Raises:
            SweepError: if that fails, or the file is no longer the one at its path, see `check_place`.
        """
        with self._transaction() as db:
            db.executemany(
                """UPDATE runs SET state = ?1, result = ?2, error = ?3, seconds = ?4,
                   digest = digest(key, run, architecture, version, ?1, ?2, ?3, ?4) WHERE key = ?5""",
                ((done.state, done.result, done.error, float(done.seconds), done.key) for done in outcomes),
            )
        self.check_place()

    def results(self, runs: Iterable[Run]) -> Iterator[tuple[Run, Any]]:
        """Each of these runs with its result; None for one that is not finished.

        A run's code version is part of it, so results of another version never come up.
        """
        for run in runs:
            with self._open() as db:
                row = db.execute(f"SELECT {self._columns} FROM runs WHERE key = ?", (run.key,)).fetchone()
            result = None if row is None else self._sound(row)[5]
            yield run, None if result is None else decode(result)

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
        query = f"""SELECT {self._columns} FROM runs
                    WHERE key > ?1 AND state != 'pending' AND (?2 IS NULL OR version = ?2) ORDER BY key LIMIT {PAGE}"""
        for row in self._pages(query, "", version):
            key, run, _, _, state, result, error, seconds = self._sound(row)
            yield key, run, state, result, error, seconds

    def _pages(self, query: str, last: Any, *more: Any) -> Iterator[Sequence[Any]]:
        """The rows of a query for those whose first column comes after ``last``, read ``PAGE`` at once."""
        while True:
            with self._open() as db:
                page = db.execute(query, (last, *more)).fetchall()
            if not page:
                return
            last = page[-1][0]
            yield from page

    def status(self) -> Status:
        """Counts of everything in the store."""
        status = Status()
        with self._open() as db:
            rows = db.execute("SELECT version, architecture, state, count(*) FROM runs GROUP BY 1, 2, 3").fetchall()
            failed = db.execute(f"SELECT {self._columns} FROM runs WHERE state = 'failed'")
            status.errors = dict(Counter(error_line(self._sound(row)[6]) for row in failed).most_common())
        for version, architecture, state, count in rows:
            status.counts.add(state, count)
            status.by_version.setdefault(version, Counts()).add(state, count)
            status.by_architecture.setdefault(architecture, Counts()).add(state, count)
        status.by_architecture = dict(sorted(status.by_architecture.items()))
        return status

    @property
    def _columns(self) -> str:
        """What `_sound` takes."""
        return f"{COLUMNS}, digest" if self.checked else COLUMNS

    def _sound(self, row: Sequence[Any]) -> Sequence[Any]:
        """The columns of a row that is as it was written.

        Raises:
            SweepError: if it is not: a bit of it was lost, or another program changed it.
        """
        key, run, _, _, _, result, error, seconds, *kept = row
        texts = all(value is None or isinstance(value, str) for value in row[:7])
        sized = texts and sum(len(value or "") for value in row[:7]) <= LONGEST
        whole = sized and isinstance(run, str) and hashlib.sha256(run.encode()).hexdigest() == key
        if whole and (kept == [digest(*row[:8])] if self.checked else _legible(run, result, error, seconds)):
            return row[:8]
        raise SweepError(
            f"{self.path} is damaged (run {key} is not as it was written): restore a copy, or have it executed again: "
            f"sqlite3 {self.path} \"DELETE FROM runs WHERE key = '{key}'\""
        )

    def _add_digests(self) -> None:
        """Bring the tables of schema 1 up to this one; everything in them is looked at."""
        with self._transaction() as db:
            for row in db.execute(f"SELECT {COLUMNS} FROM runs"):
                self._sound(row)
            db.execute("DROP INDEX runs_by_version")
            db.execute("ALTER TABLE runs RENAME TO older")
            db.execute(RUNS)
            db.execute(f"INSERT INTO runs SELECT {COLUMNS}, digest({COLUMNS}) FROM older ORDER BY rowid")
            db.execute("DROP TABLE older")
            db.execute(INDEX)
            db.execute(f"PRAGMA user_version = {SCHEMA}")
        self.checked = True


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


def _legible(run: str, result: Any, error: Any, seconds: Any) -> bool:
    """Whether a row without a digest can be read."""
    try:
        Run.from_json(run)
        good = result is None or isinstance(decode(result), dict)
        if error is not None:
            error_line(error)
        return good and isinstance(seconds, float | None)
    except (SweepError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def _connect(path: Path, write: bool) -> sqlite3.Connection:
    """Open the file; its transactions are the caller's."""
    if write:
        db = sqlite3.connect(path, isolation_level=None, timeout=60)
        try:
            db.execute("PRAGMA synchronous = FULL")
        except BaseException:
            db.close()
            raise
        return db
    name = f"file:{quote(str(path.absolute()))}"
    db = sqlite3.connect(f"{name}?mode=rw", uri=True, isolation_level=None, timeout=60)
    try:
        db.execute("PRAGMA query_only = ON")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException as error:
        db.close()
        if not isinstance(error, sqlite3.OperationalError) or path.with_name(path.name + "-wal").exists():
            raise
        # A folder that cannot be written has no room for SQLite's shared memory; nobody can change the file either.
        db = sqlite3.connect(f"{name}?immutable=1", uri=True, isolation_level=None)
    return db


@contextmanager
def _unfinished(path: Path) -> Iterator[None]:
    """Within, closing a connection leaves the journal as it is: the last one would write it into the file, and it may
    be damaged. One that only reads does not, and is the last."""
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as reader:
        reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield


def _check_pages(db: sqlite3.Connection, path: Path, table: str) -> None:
    """See that the whole file is sound, and holds our tables and nothing else."""
    found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise SweepError(_damaged(path, str(found)))
    made = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
    if made != {table, INDEX}:
        raise SweepError(_damaged(path, "its tables are not a store's"))


def _make_tables(db: sqlite3.Connection) -> None:
    """Make the tables if this is a new file."""
    if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        db.execute("PRAGMA journal_mode = DELETE")
        db.executescript(
            f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {SCHEMA}; {RUNS}; {INDEX}; "
            "COMMIT;"
        )


@contextmanager
def _plainly(path: Path) -> Iterator[None]:
    """Say in one line what SQLite complains of, and what to do."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise SweepError(explain(path, error)) from error


def explain(path: Path, error: Exception) -> str:
    """One line that names the cause of an SQLite error and its mend."""
    text = line(str(error), 200)
    if "full" in text:
        return f"no space left for {path}: free some and call again; every result written so far is in it"
    if "readonly" in text or "read-only" in text:
        return f"{path} is read-only: make the file and its folder writable, or give another path"
    if "locked" in text:
        return f"{path} is in use by another program for over a minute ({text}): close that and call again"
    if "unable to open" in text:
        return f"{path} cannot be opened: see that its folder exists and that you may write there"
    if any(word in text for word in ("not a database", "malformed", "decode", "no such", "text encoding")):
        return _damaged(path, text)
    return f"{path} cannot be used ({text}): see that the disk is sound and has room, then call again"


def _damaged(path: Path, what: str) -> str:
    what = line(what.splitlines()[-1], 200)
    return (
        f"{path} is damaged ({what}): restore a copy, or save what is left with `sqlite3 {path} .recover | sqlite3 NEW`"
    )
