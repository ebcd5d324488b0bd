"""Files that may lie: plain ones only are opened to read. Of a pipe, a device or one of the system's own, reading might
never end."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

from dagscale.errors import DagscaleError

AFFECTS_RESULTS = False

LARGEST = 1 << 28
"""Bytes of a file that is read as a whole, at most."""


def open_plain(path: Path, error: type[DagscaleError]) -> BinaryIO:
    """The file, opened to read.

    An empty one is taken at its word: the system's own, as ``/proc/kmsg``, say that they are, and may never end.

    Args:
        error: what to raise.

    Raises:
        DagscaleError: ``error``, if it is no plain file, or one of the system's own that does not tell its size.
        OSError: if it cannot be opened.
    """
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    found = os.fstat(file)
    if stat.S_ISREG(found.st_mode) and found.st_size > 0:
        return os.fdopen(file, "rb")
    system = hasattr(os, "fstatvfs") and os.fstatvfs(file).f_blocks == 0  # as /proc, which is on no disk
    os.close(file)
    if stat.S_ISREG(found.st_mode) and not system:
        return io.BytesIO()
    raise error(f"{path} is no plain file but a folder, a pipe, a device or one of the system's own: name another")


def read_plain(path: Path, error: type[DagscaleError], largest: int = LARGEST) -> bytes:
    """All bytes of a plain file.

    Raises:
        DagscaleError: ``error``, if it is no plain one, or larger than so many bytes.
        OSError: if it cannot be read.
    """
    with open_plain(path, error) as file:
        content = file.read(largest + 1) if os.stat(path).st_size <= largest else None
    if content is None or len(content) > largest:
        raise error(f"{path} is too large: over {largest:,} bytes")
    return content


def check_plain(path: Path, error: type[DagscaleError], largest: int = LARGEST) -> None:
    """See that a file, or each file of a folder, is a plain one of so many bytes at most, before another library reads
    it whole.

    Raises:
        DagscaleError: ``error``, if one is not.
        OSError: if one cannot be opened.
    """
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_dir():
            continue
        open_plain(file, error).close()
        if file.stat().st_size > largest:
            raise error(f"{file} is too large: over {largest:,} bytes")
