"""Files that may lie: plain ones only, read no further than their header and their size on the disk allow."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from dagscale import plain
from dagscale.errors import DagscaleError, DataError
from dagscale.shown import reason

EXPANSION, FREE = 50, 1 << 26
"""Packed data may unpack to so many times their size on the disk and 64 MiB; real images come nowhere near."""


def home_expanded(source: str | Path) -> Path:
    """The path that a user means, ``~`` their home.

    Raises:
        DataError: if it can be no path: there is no such user, it is too long, or holds a zero byte.
    """
    try:
        path = Path(source).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"no data at {str(source)!r}: {reason(error)}") from None
    return path


def open_plain(path: Path) -> BinaryIO:
    """`dagscale.plain.open_plain`, of data."""
    return plain.open_plain(path, DataError)


def read_all(path: Path, largest: int = plain.LARGEST) -> bytes:
    """`dagscale.plain.read_plain`, of data."""
    return plain.read_plain(path, DataError, largest)


def room(path: Path) -> int:
    """Bytes that the file may unpack to."""
    return FREE + EXPANSION * os.stat(path).st_size


def check_room(path: Path, claimed: int, allowed: int | None = None) -> None:
    """Refuse what claims to unpack to more than it may, before any memory is taken for it.

    Raises:
        DataError: if ``claimed`` bytes are more than ``allowed``, by default `room`.
    """
    allowed = room(path) if allowed is None else allowed
    if claimed > allowed:
        raise DataError(
            f"{path} says that it unpacks to {claimed:,} bytes, over {EXPANSION} times its size: it is damaged or made "
            "to fill the memory; if not, save it unpacked (np.savez)"
        )


@contextmanager
def parsing(what: str) -> Iterator[None]:
    """Within, whatever another library's reader raises on a damaged file becomes one line: their kinds are many.

    Raises:
        DataError: ``what`` and the first line of the error.
    """
    try:
        yield
    except DagscaleError:
        raise
    except MemoryError as error:
        raise DataError(f"{what}: it asks for more memory than there is") from error
    except Exception as error:
        raise DataError(f"{what}: {reason(error)}") from error


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes."""


class Bounded(io.RawIOBase):
    """A stream that ends in an error once more than ``allowed`` bytes were read from it.

    Args:
        stream: what to read from.
        allowed: bytes.
        path: for the message.
    """

    def __init__(self, stream: Readable, allowed: int, path: Path) -> None:
        self._stream, self._left, self._allowed, self._path = stream, allowed, allowed, path

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if size < 0 or size > self._left:
            size = self._left + 1
        found = self._stream.read(size)
        self._left -= len(found)
        if self._left < 0:
            check_room(self._path, self._allowed + 1, self._allowed)
        return found
