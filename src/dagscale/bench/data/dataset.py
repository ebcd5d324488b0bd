"""The value that training runs on, and ``load``, which makes it from a name or a path."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dagscale.bench.data.files import home_expanded, open_plain
from dagscale.errors import DataError
from dagscale.registry import Registry
from dagscale.shown import reason

MOST_CLASSES = 100_000
"""A readout over more would be most of any network here."""

DIGESTED = 1 << 28
"""Bytes of images that a digest is of, at most."""

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images.

    Args:
        name: what messages and tables call it.
        x: images, (n, channels, height, width), float32, finite.
        y: labels, (n,), int64, each in ``0 … classes - 1``.
        classes: number of classes; some may have no example here.

    Raises: DataError if shapes, types or values are not these.
    """

    name: str
    x: Tensor
    y: Tensor
    classes: int

    def __post_init__(self) -> None:
        x, y = self.x, self.y
        if x.ndim != 4 or x.dtype != torch.float32:
            raise DataError(
                f"{self.name}: x must be (n, channels, height, width) float32, got {tuple(x.shape)} {x.dtype}"
            )
        if y.ndim != 1 or y.dtype != torch.int64:
            raise DataError(f"{self.name}: y must be (n,) int64, got {tuple(y.shape)} {y.dtype}")
        if len(x) != len(y):
            raise DataError(f"{self.name}: {len(x)} images but {len(y)} labels")
        if x.numel() == 0:
            raise DataError(f"{self.name}: no pixels in x of shape {tuple(x.shape)}")
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= self.classes:
            raise DataError(f"{self.name}: labels run from {low} to {high}, outside 0 to {self.classes - 1}")
        if not bool(x.isfinite().all()):
            raise DataError(f"{self.name}: x holds NaN or infinite values")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, channels, height, width = self.x.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def digest(self) -> str:
        """The sha256 of what the examples are, in short, wherever they lie and whatever they are called.

        Of more than ``DIGESTED`` bytes of images, it is of as many whole ones, drawn with a fixed seed, and of all
        labels. As loaded images are normalised by the mean and variance of all, a change elsewhere shows there too.
        """
        rows = max(1, DIGESTED // (4 * self.x[0].numel()))
        x = self.x if rows >= len(self) else self.x[torch.from_numpy(shuffled(len(self))[:rows])]
        return digested((tuple(self.x.shape), self.classes), self.y, x)

    def rows(self, part: slice | Tensor) -> Dataset:
        """Some of the examples."""
        return Dataset(self.name, self.x[part], self.y[part], self.classes)

    def subset(self, n: int, seed: int = 0) -> Dataset:
        """``n`` examples drawn without replacement, in the order and with the labels they have here.

        Raises: DataError if ``n`` is not in ``1 … len(self)``.
        """
        if not 1 <= n <= len(self):
            raise DataError(f"{self.name}: a subset of {n} examples out of {len(self)} does not exist")
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(self), generator=generator)[:n].sort().values
        return self.rows(rows)


class Source(Protocol):
    """One split of a data set, opened but with no image decoded yet."""

    @property
    def labels(self) -> Ints:
        """(n,), all labels of the split."""

    @property
    def classes(self) -> int:
        """Number of classes, as far as this split knows."""

    def pixels(self, rows: Ints) -> Bytes:
        """The images of these rows, (len(rows), height, width, channels); only they are decoded.

        Raises: DataError if one cannot be read, or they differ in size.
        """


@dataclass(frozen=True)
class Arrays:
    """A `Source` whose images are in memory already, (n, height, width, channels)."""

    images: Bytes
    labels: Ints
    classes: int

    def pixels(self, rows: Ints) -> Bytes:
        """See `Source.pixels`."""
        return self.images[rows]


Splits = Mapping[str, Callable[[], Source]]
"""Split name (``"train"``, ``"test"``) → opens it."""

NAMED: Registry[Callable[[], Splits]] = Registry("data set")
"""Data sets that need no path."""

READERS: Registry[Callable[[Path], Splits | None]] = Registry("data format")
"""Formats of files and folders. A reader returns ``None`` for a path that is not its own, judged by the
content of a file or the names in a folder, and raises `DataError` for one that is its own but broken."""

SPLIT_NAMES = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
"""Split → what files and folders call it; of several in one place the first counts."""

SPLITS = tuple(SPLIT_NAMES)


def load(source: str | Path, *, split: str = "train", limit: int | None = None) -> Dataset:
    """Read images and labels.

    The examples come in a fixed shuffled order, so that any first n are a fair draw of the classes. Each
    channel is shifted and scaled to mean 0 and variance 1 by the statistics of the loaded *train* images:
    those returned for ``split="train"``; for ``split="test"`` those of the train split under the same
    ``limit``, where there is one, otherwise its own. A constant channel is shifted only.

    Args:
        source: ``"digits"`` (scikit-learn's handwritten digits, 1×8×8), or a path in one of the layouts that
            ``docs/guide/data.md`` describes: CIFAR's binary files, MNIST's idx files, Hugging Face image parquet, a
            folder of images a class, NumPy's ``.npz``. A path named ``train…`` finds its test split beside
            it; any other one is itself the ``"train"`` split.
        split: ``"train"`` or ``"test"``.
        limit: at most so many examples; only they are decoded.

    Raises: DataError, with one line, if the data are missing, broken or of an unknown format.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r} (known: {', '.join(SPLITS)})")
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}")
    try:
        name, splits = _find(source)
        if split not in splits:
            raise DataError(f"{source} has no {split} split (it has: {', '.join(splits)})")
        opened = splits[split]()
        pixels, labels = _take(name, opened, limit)
        reference, classes = pixels, opened.classes
        if split != "train" and "train" in splits:
            train = splits["train"]()
            reference, _ = _take(name, train, limit)
            classes = max(classes, train.classes)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {reason(error)}") from error
    except MemoryError as error:
        raise DataError(f"{source} does not fit in memory: use less of it, with limit") from error
    if reference.shape[1:] != pixels.shape[1:]:
        raise DataError(
            f"{source}: train images are {_size(reference)} (height×width×channels), {split} images {_size(pixels)}"
        )
    return Dataset(name, _normalise(pixels, reference), torch.from_numpy(labels), classes)


def digested(what: tuple[Any, ...], *values: Tensor) -> str:
    """The sha256 of all bytes of some tensors, and of what else tells them apart, in short."""
    found = hashlib.sha256(repr(what).encode())
    for value in values:
        found.update(value.contiguous().numpy().data.cast("B"))
    return f"sha256:{found.hexdigest()[:32]}"


def shuffled(n: int) -> Ints:
    """The fixed order in which n examples are read (NumPy's legacy stream: frozen for ever)."""
    return np.random.RandomState(0).permutation(n).astype(np.int64)


def _find(source: str | Path) -> tuple[str, Splits]:
    """The data set's name and its splits."""
    if isinstance(source, str) and source in NAMED:
        return source, NAMED[source]()
    path = home_expanded(source)
    if not path.exists():
        raise DataError(f"no data at {str(source)!r}: neither a path nor a named data set ({', '.join(NAMED)})")
    found = {name: splits for name in READERS if (splits := READERS[name](path))}
    if len(found) > 1:
        raise DataError(f"{path} holds several data sets ({', '.join(found)}): name one of its files or folders")
    for splits in found.values():
        return path.resolve().name, splits
    formats = ", ".join(READERS)
    if path.is_dir():
        raise DataError(
            f"{path}: no data set in this folder (formats read: {formats}); images must lie in one folder a class"
        )
    raise DataError(
        f"{path}: not a data format read here ({formats}); it begins with {head(path, 8)!r}; for a table, or other "
        "data of yours, name a function that returns (x, y): --data file.py:function"
    )


def head(path: Path, count: int) -> bytes:
    """The first ``count`` bytes of a file."""
    with open_plain(path) as file:
        return file.read(count)


def in_folder(path: Path, look: Callable[[Path], Splits]) -> Splits:
    """What ``look`` finds in a folder or, if nothing, in its one sub-folder (``data/``, ``raw/``, …) with any.

    Raises: DataError if several sub-folders hold something.
    """
    if here := look(path):
        return here
    below = {entry.name: look(entry) for entry in sorted(path.iterdir()) if entry.is_dir()}
    found = [name for name, splits in below.items() if splits]
    if len(found) > 1:
        raise DataError(f"{path} holds several data sets ({', '.join(found)}): name one of its folders")
    return below[found[0]] if found else {}


def beside(split: str | None, this: Callable[[], Source], look: Callable[[], Splits]) -> Splits:
    """The splits of a path that is itself named: a train split has others beside it, a test split stands for both, and
    any other path is a train split.

    Args:
        split: what the path's name says it is.
        look: finds the splits in its folder.
    """
    if split == "train":
        return {**look(), "train": this}
    return {"train": this, "test": this} if split == "test" else {"train": this}


def _take(name: str, source: Source, limit: int | None) -> tuple[Bytes, Ints]:
    """The first ``limit`` examples in the fixed order."""
    if len(source.labels) == 0:
        raise DataError(f"{name} holds no examples")
    highest = max(source.classes - 1, int(source.labels.max()))
    if highest >= MOST_CLASSES:
        raise DataError(
            f"{name} has the label {highest}, and {MOST_CLASSES:,} classes are the most: number them from 0"
        )
    rows = shuffled(len(source.labels))[:limit]
    labels = source.labels[rows]
    if source.labels.min() < 0:
        raise DataError(f"{name} has the label {source.labels.min()}, labels must be 0 or more: is it unlabelled?")
    return source.pixels(rows), labels


def _normalise(pixels: Bytes, reference: Bytes) -> Tensor:
    """(n, height, width, channels) bytes → (n, channels, height, width) float32, by the reference moments."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    levels = torch.arange(256, dtype=torch.float64)
    for channel in range(pixels.shape[3]):
        counts = torch.bincount(torch.from_numpy(reference[..., channel]).flatten(), minlength=256)
        weights = counts / counts.sum(dtype=torch.float64)
        mean = float((weights * levels).sum())
        std = float((weights * (levels - mean) ** 2).sum()) ** 0.5
        x[:, channel].sub_(mean).div_(std if std > 0 else 1.0)
    return x


def _size(images: npt.NDArray[Any]) -> str:
    return "×".join(str(side) for side in images.shape[1:])
