"""The place of a store on the disk: one file, one name, one writer, however its path is spelled."""

from __future__ import annotations

import os
import sqlite3
import stat
import struct
import sys
from pathlib import Path

from dagscale.errors import SweepError

AFFECTS_RESULTS = False

APPLICATION = 0x64616773
"""SQLite's application id of a store: ``dags``."""

SCHEMA = 2
"""Version of the store's tables, in SQLite's user version. It changes whenever they do."""

READABLE = (1, SCHEMA)
"""Schemas that are read: 1 has no checksums, and gets them when it is next written to."""

BESIDE = ("-wal", "-shm", "-journal", ".lock", ".lock-journal")
"""What the names of files that SQLite opens beside a store end in."""

HEADER = 100
"""Bytes of SQLite's header."""

_held: dict[tuple[int, int], list[int]] = {}
"""Files that this process writes to → descriptors of them to close afterwards. Closing any descriptor of a file lifts
the locks that SQLite has on it, and another process would then take itself for the last and remove its journal."""


def resolve(path: str | Path) -> Path:
    """The path without symbolic links: SQLite names its journal, and we our lock, after it.

    Raises:
        SweepError: if it has none.
    """
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise SweepError(f"{path} is no place for a store ({error}): give another path") from None


class Place:
    """A file held open, and locked if it is to be written.

    Args:
        path: the file, resolved; made empty if it is to be written and does not exist.
        write: hold it for this process alone.

    Raises:
        SweepError: if it is no store, cannot be opened, or (to write) another process has it, under whatever name.
    """

    _lock: sqlite3.Connection | None = None
    _file = -1

    def __init__(self, path: Path, *, write: bool) -> None:
        self.path = path
        _check_beside(path)
        self._file = _open(path, write)
        self._id = _id(self._file)
        self._writes = False
        self._journal: os.stat_result | None = None
        try:
            self.schema = _check_header(self._file, path, write)
            if write:
                _check_names(self._file, path)
                _hold(self._file, path)
                self._lock = _lock(path)
                self._writes = True
                _held[self._id] = []
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        """An interrupt may come before anyone else has it; one that came in here would be dropped, so do little."""
        if self._file >= 0:
            self.close()

    def moved(self) -> str | None:
        """What has become of the file, where it is no longer the one that was opened."""
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            return "was removed"
        except OSError as error:
            return f"cannot be reached any more ({error.strerror})"
        if (now.st_dev, now.st_ino) != self._id:
            return "was replaced by another file"
        if not self._journal_kept():
            return "lost its journal"
        if not _header(self._file).startswith(b"SQLite format 3\0"):
            return "was overwritten by another program"
        return None

    def _journal_kept(self) -> bool:
        """Whether SQLite's write-ahead journal is the one that it was; it never shrinks while it is in use."""
        try:
            now = os.stat(f"{self.path}-wal")
        except OSError:
            return self._journal is None
        then, self._journal = self._journal, now
        return then is None or (now.st_ino == then.st_ino and now.st_size >= then.st_size)

    def close(self) -> None:
        """Let go of it, after all connections to it are closed."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._file < 0:
            return
        if self._writes:
            for file in _held.pop(self._id, ()):
                os.close(file)
        if self._id in _held:
            _held[self._id].append(self._file)
        else:
            os.close(self._file)
        self._file = -1


def _check_beside(path: Path) -> None:
    """Refuse a store beside which links, pipes or devices have the names of SQLite's own files, which it would open."""
    for suffix in BESIDE:
        beside = Path(f"{path}{suffix}")
        try:
            plain = stat.S_ISREG(beside.lstat().st_mode)
        except (OSError, ValueError):
            continue  # none is there; or the store's own path is no better, which is said when it is opened
        if not plain:
            raise SweepError(f"{beside} is no plain file, and SQLite would open it: remove it, or give another path")


def _open(path: Path, write: bool) -> int:
    """The file, which is a plain one: looking at anything else could block, or never end."""
    flags = (os.O_RDWR | os.O_CREAT if write else os.O_RDONLY) | getattr(os, "O_NONBLOCK", 0)
    try:
        if path.exists() and not path.is_file():
            raise SweepError(f"{path} is no file: name one for the store")
        file = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o644)
    except FileNotFoundError:
        if write:
            raise SweepError(f"{path} cannot be opened: see that its folder exists") from None
        raise SweepError(f"there is no store at {path}: `dagscale sweep` reads a file that a sweep has made") from None
    except OSError as error:
        raise SweepError(
            f"{path} cannot be {'written' if write else 'read'} ({error.strerror or error}): make the file and its "
            "folder so, or give another path"
        ) from None
    except ValueError as error:
        raise SweepError(f"{path} is no path ({error}): give another") from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise SweepError(f"{path} is no file: name one for the store")
    return file


def _id(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_dev, found.st_ino


def _header(file: int) -> bytes:
    os.lseek(file, 0, os.SEEK_SET)
    return os.read(file, HEADER)


def _check_header(file: int, path: Path, write: bool) -> int | None:
    """The schema that the first bytes of the file name, before SQLite does anything to it; None if it is empty.

    They are set when a store is made and never again, so they can be trusted even while another process writes.
    """
    try:
        header = _header(file)
    except OSError as error:
        raise SweepError(f"{path} cannot be read ({error.strerror or error}): name another file") from None
    if not header and write:
        return None  # new, or of a sweep that was killed while it made the file
    if len(header) < HEADER or not header.startswith(b"SQLite format 3\0"):
        raise SweepError(f"{path} is no store of a sweep (it is no SQLite file): give another path")
    schema, application = struct.unpack(">i4xi", header[60:72])
    if application != APPLICATION:
        raise SweepError(f"{path} is an SQLite file of another program, no store of a sweep: give another path")
    if schema not in READABLE:
        raise SweepError(
            f"{path} is a store of schema {schema}, and this dagscale reads schema {SCHEMA}: "
            f"use the {'newer' if schema > SCHEMA else 'older'} dagscale that wrote it, or give a new path"
        )
    return int(schema)


def _check_names(file: int, path: Path) -> None:
    """Refuse a file of several names (hard links): SQLite keeps what a killed sweep wrote last under one of them, and
    would lose it, or damage the file with it, when called by the other."""
    names = os.fstat(file).st_nlink
    if names > 1:
        raise SweepError(
            f"{path} has {names} names (hard links), and its journal only one: remove the others, or sweep into a copy"
        )


def _hold(file: int, path: Path) -> None:
    """Lock the file itself, where such locks and SQLite's own do not meet: on Linux."""
    if sys.platform != "linux":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SweepError(_taken(path)) from None
    except OSError:
        return  # a file system without such locks; the lock beside the file remains


def _lock(path: Path) -> sqlite3.Connection:
    """Hold the store by a lock on an empty file beside it, on every system; the system lifts it if we die."""
    lock = sqlite3.connect(f"{path}.lock", isolation_level=None, timeout=0)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except BaseException as error:
        lock.close()
        if isinstance(error, sqlite3.Error) and "locked" in str(error):
            raise SweepError(_taken(path)) from None
        raise
    return lock


def _taken(path: Path) -> str:
    return f"another process is sweeping into {path}: wait until it ends, or give this sweep a file of its own"
