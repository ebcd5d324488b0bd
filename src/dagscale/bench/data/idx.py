"""MNIST's idx files: ``train-images-idx3-ubyte`` with ``train-labels-idx1-ubyte`` beside it, gzipped or not.

Format: bytes 0, 0, type (8: unsigned byte), number of dimensions; each dimension as a big-endian 32-bit
integer; the values. [LeCun, Cortes and Burges, The MNIST database]
"""

from __future__ import annotations

import gzip
import math
import re
import struct
from functools import partial
from pathlib import Path

import numpy as np

from dagscale.bench.data.dataset import READERS, Arrays, Bytes, Source, Splits, beside, head, in_folder
from dagscale.bench.data.files import check_room, open_plain, parsing
from dagscale.errors import DataError

GZIP = b"\x1f\x8b"
MAGIC = {1: b"\x00\x00\x08\x01", 3: b"\x00\x00\x08\x03"}
IMAGES = re.compile(r"(?:.*[-_.])?(?P<split>train|t10k|test)-images[-.]idx3-ubyte(?:\.gz)?")


@READERS.add("idx")
def idx(path: Path) -> Splits | None:
    """The splits of an idx images file, or of a folder that holds such files under MNIST's names."""
    if path.is_dir():
        return in_folder(path, _folder)
    magic = _magic(path)
    if magic == MAGIC[1]:
        raise DataError(f"{path} holds labels: name the images file beside it (…-images-idx3-ubyte)")
    if magic != MAGIC[3]:
        if "idx" in path.name and "ubyte" in path.name:
            raise DataError(f"{path} is not an idx images file: wrong magic {magic!r}, not {MAGIC[3]!r}")
        return None
    named = IMAGES.fullmatch(path.name)
    split = None if named is None else "train" if named["split"] == "train" else "test"
    return beside(split, partial(_open, path), partial(_folder, path.parent, path))


def _folder(folder: Path, near: Path | None = None) -> Splits:
    """The splits that lie in a folder; with ``near`` only those whose names share its prefix."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        named = IMAGES.fullmatch(file.name)
        if named and (near is None or _prefix(file) == _prefix(near)):
            found.setdefault("train" if named["split"] == "train" else "test", []).append(file)
    for split, files in found.items():
        if len({file.name.removesuffix(".gz") for file in files}) > 1:
            names = ", ".join(file.name for file in files)
            raise DataError(f"{folder} holds several {split} sets ({names}): name one file")
    return {split: partial(_open, files[0]) for split, files in found.items()}


def _prefix(file: Path) -> str:
    named = IMAGES.fullmatch(file.name)
    return file.name[: named.start("split")] if named else ""


def _open(path: Path) -> Source:
    """Read images and the labels beside them."""
    images = _read(path, dimensions=3)
    stem = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    beside = [path.parent / stem, path.parent / f"{stem}.gz"]
    labels_path = next((file for file in beside if file.is_file() and file != path), None)
    if labels_path is None:
        raise DataError(f"{path} has no labels: {stem} (or {stem}.gz) must lie beside it")
    labels = _read(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise DataError(f"{path} holds {len(images)} images but {labels_path.name} {len(labels)} labels")
    return Arrays(images[..., None], labels.astype(np.int64), classes=int(labels.max(initial=0)) + 1)


def _magic(path: Path) -> bytes:
    """The first four bytes of the file, of its content where it is gzipped."""
    first = head(path, 4)
    if not first.startswith(GZIP):
        return first
    with parsing(f"{path} is a broken gzip file"), open_plain(path) as raw, gzip.open(raw) as file:
        return file.read(4)


def _read(path: Path, dimensions: int) -> Bytes:
    """An idx file of unsigned bytes as an array with so many dimensions."""
    magic = _magic(path)
    if magic != MAGIC[dimensions]:
        raise DataError(f"{path} is not an idx{dimensions} file: wrong magic {magic!r}, not {MAGIC[dimensions]!r}")
    with parsing(f"{path} cannot be read to its end"), open_plain(path) as raw:
        with gzip.open(raw) if head(path, 2) == GZIP else raw as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions:
                raise DataError(f"{path} is truncated: it ends within its header")
            sides = struct.unpack(f">{dimensions}I", header[4:])
            wanted = math.prod(sides)
            check_room(path, wanted)
            values = file.read(wanted + 1)
    if len(values) < wanted:
        raise DataError(f"{path} is truncated: {len(values)} bytes where its header says {wanted}")
    if len(values) > wanted:
        raise DataError(f"{path} is too long: it goes on after the {wanted} bytes that its header says")
    return np.frombuffer(values, dtype=np.uint8).reshape(sides)
