"""NumPy's ``.npz`` with two arrays: ``x``, 8-bit pixels, and ``y``, integer labels."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from dagscale.bench.data.dataset import READERS, SPLIT_NAMES, Arrays, Bytes, Source, Splits, first_line, head, in_folder
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
    this = partial(_open, path)
    split = next((split for split, names in SPLIT_NAMES.items() if path.stem in names), None)
    if split == "train":
        return {**_folder(path.parent), "train": this}
    return {"train": this, "test": this} if split == "test" else {"train": this}


def _folder(folder: Path) -> Splits:
    """The splits that lie in a folder, by the names of its files."""
    found: dict[str, Callable[[], Source]] = {}
    for split, names in SPLIT_NAMES.items():
        file = next((file for name in names if (file := folder / f"{name}.npz").is_file()), None)
        if file is not None:
            found[split] = partial(_open, file)
    return found


def _open(path: Path) -> Source:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if not {"x", "y"} <= set(file.files):
                raise DataError(f"{path} needs the arrays x (pixels) and y (labels), and has {', '.join(file.files)}")
            x, y = file["x"], file["y"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is a broken npz file, or holds Python objects: {first_line(error)}") from error
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise DataError(f"{path}: y must be (n,) integers, got {y.shape} {y.dtype}")
    if x.dtype != np.uint8:
        raise DataError(f"{path}: x must be 8-bit pixels, got {x.dtype}: scale it to 0 … 255 and x.astype('uint8')")
    images = _channels_last(x, path)
    if len(images) != len(y):
        raise DataError(f"{path}: {len(images)} images but {len(y)} labels")
    return Arrays(images, y.astype(np.int64), classes=int(y.max(initial=-1)) + 1)


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
