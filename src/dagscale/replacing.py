"""Files written whole: beside the old one first, under a name that nobody could have prepared."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dagscale.errors import DagscaleError

AFFECTS_RESULTS = False


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether both paths lead to one file, which is there."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file in the folder of ``path`` to write to, which takes its place when all went well.

    It is made exclusively, under a random name, so that no link that lies there is ever followed.

    Raises:
        OSError: if it cannot be made, written or moved, or would take the place of a device or a pipe; no part of it is
            left then.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "a pipe or a device has that name", str(path))
    partial = path.with_name(f".{secrets.token_hex(8)}.part")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(partial, flags, 0o666), "w+b") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write(path: Path, content: bytes) -> None:
    """Write a file whole, or leave the old one as it is. Raises: OSError, as `replacing`."""
    with replacing(path) as file:
        file.write(content)


def make_folder(path: Path) -> None:
    """The folder, and those above it, if they do not exist.

    Raises:
        DagscaleError: if it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DagscaleError(f"cannot make the folder {path} ({error.strerror or error}): name another") from None
