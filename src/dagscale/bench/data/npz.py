"""NumPy's ``.npz`` with two arrays: ``x``, 8-bit pixels, and ``y``, integer labels."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dagscale.bench.data.dataset import (
    MOST_CLASSES,
    READERS,
    SPLIT_NAMES,
    Arrays,
    Bytes,
    Source,
    Splits,
    beside,
    head,
    in_folder,
)
from dagscale.bench.data.files import check_room, open_plain, parsing, room
from dagscale.errors import DataError

MAGIC = b"PK"
CHANNELS = (1, 3)


@READERS.add("npz")
def npz(path: Path) -> Splits | None:
    """The splits of a file, or of a folder with ``train.npz`` and perhaps ``test.npz``."""
    if path.is_dir():
        return in_folder(path, _folder)
    if path.suffix != ".npz":
        return None
    if head(path, 2) != MAGIC:
        raise DataError(f"{path} is not an npz file: it begins with {head(path, 2)!r}, not {MAGIC!r}")
    split = next((split for split, names in SPLIT_NAMES.items() if path.stem in names), None)
    return beside(split, partial(_open, path), partial(_folder, path.parent))


def _folder(folder: Path) -> Splits:
    """The splits that lie in a folder, by the names of its files."""
    found: dict[str, Callable[[], Source]] = {}
    for split, names in SPLIT_NAMES.items():
        file = next((file for name in names if (file := folder / f"{name}.npz").is_file()), None)
        if file is not None:
            found[split] = partial(_open, file)
    return found


def _open(path: Path) -> Source:
    with parsing(f"{path} is a broken npz file, or holds Python objects"):
        with open_plain(path) as raw, zipfile.ZipFile(raw) as members:
            names = {name.removesuffix(".npy"): name for name in members.namelist()}
            if not {"x", "y"} <= names.keys():
                raise DataError(f"{path} needs the arrays x (pixels) and y (labels), and has {', '.join(names)}")
            if len(names) < len(members.namelist()):
                raise DataError(f"{path} holds two arrays of one name: save it anew with np.savez")
            x, y = (_array(members, names[name], path) for name in ("x", "y"))
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise DataError(f"{path}: y must be (n,) integers, got {y.shape} {y.dtype}")
    if x.dtype != np.uint8:
        raise DataError(f"{path}: x must be 8-bit pixels, got {x.dtype}: scale it to 0 … 255 and x.astype('uint8')")
    images = _channels_last(x, path)
    if len(images) != len(y):
        raise DataError(f"{path}: {len(images)} images but {len(y)} labels")
    if len(y) and int(y.max()) >= MOST_CLASSES:
        raise DataError(
            f"{path} has the label {y.max()}, and {MOST_CLASSES:,} classes are the most: number them from 0"
        )
    return Arrays(images, y.astype(np.int64), classes=int(y.max()) + 1 if len(y) else 0)


def _array(members: zipfile.ZipFile, name: str, path: Path) -> npt.NDArray[Any]:
    """One member, if its header, the zip file's own and the size on the disk agree."""
    listed = members.getinfo(name)
    if listed.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or listed.flag_bits & 1:
        raise DataError(
            f"{path}: {name} is encrypted or packed in a way that NumPy does not write: save it with np.savez"
        )
    check_room(path, listed.file_size, room(path))
    with members.open(listed) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, kind = read(file)
    if kind.hasobject:
        raise DataError(f"{path}: {name} holds Python objects, which could run any code: save plain numbers")
    check_room(path, math.prod(shape) * kind.itemsize, listed.file_size)
    with members.open(listed) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _channels_last(x: Bytes, path: Path) -> Bytes:
    """(n, height, width, channels) of images that are grey, or have their channels first or last."""
    if x.ndim == 3:
        return x[..., None]
    first, last = (x.ndim == 4 and x.shape[axis] in CHANNELS for axis in (1, 3))
    if first == last:
        raise DataError(
            f"{path}: x must be (n, height, width), (n, height, width, 1 or 3) or (n, 1 or 3, height, width), got "
            f"{x.shape}"
        )
    return x.transpose(0, 2, 3, 1) if first else x
