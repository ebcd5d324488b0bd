"""A folder of images a class: ``train/CLASS/*.png`` with ``test/`` or ``val/`` beside it, or ``CLASS/*.png`` alone.

Classes are numbered by name, as torchvision's ``ImageFolder`` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dagscale.bench.data.dataset import READERS, SPLIT_NAMES, Bytes, Ints, Source, Splits, beside, in_folder
from dagscale.bench.data.decode import need_pillow, stack
from dagscale.bench.data.files import read_all
from dagscale.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
ALL_NAMES = [name for names in SPLIT_NAMES.values() for name in names]


@READERS.add("images")
def images(path: Path) -> Splits | None:
    """The splits of a folder of class folders; two classes at least make one."""
    if not path.is_dir():
        return None
    split = next((split for split, names in SPLIT_NAMES.items() if path.resolve().name in names), None)
    if split is not None and _is_split(path):
        return beside(split, partial(_open, path, path), partial(_folder, path.resolve().parent))
    return in_folder(path, _folder)


def _folder(folder: Path) -> Splits:
    """The splits whose folders lie in a folder, or else the folder itself as the train split."""
    found: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        inside = next((folder / name for name in names if _is_split(folder / name)), None)
        if inside is not None:
            found[split] = inside
    if found:
        train = next(iter(found.values()))
        return {split: partial(_open, inside, train) for split, inside in found.items()}
    if not _is_split(folder):
        return {}
    flat = [name for name in ALL_NAMES if _holds_images(folder / name)]
    if flat:
        raise DataError(f"{folder / flat[0]} holds images without a class: put them in one folder a class")
    return {"train": partial(_open, folder, folder)}


def _is_split(folder: Path) -> bool:
    """Whether at least two folders in it hold images."""
    return folder.is_dir() and sum(map(_holds_images, _classes(folder))) >= 2


def _holds_images(folder: Path) -> bool:
    return folder.is_dir() and any(map(_is_image, folder.iterdir()))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def _classes(folder: Path) -> list[Path]:
    """The class folders, by name."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _open(folder: Path, train: Path) -> Source:
    """List the images of a split; its labels are the places of its classes among those of the train split."""
    need_pillow()
    number = {entry.name: k for k, entry in enumerate(_classes(train))}
    files: list[Path] = []
    labels: list[int] = []
    for entry in _classes(folder):
        if entry.name not in number:
            raise DataError(f"{entry} is none of the {len(number)} classes in {train}: both splits need the same ones")
        own = sorted(file for file in entry.iterdir() if not file.name.startswith("."))
        if not own:
            raise DataError(f"{entry} holds no images: remove the folder or fill it")
        other = next((file for file in own if not _is_image(file)), None)
        if other is not None:
            raise DataError(f"{other} is no image ({', '.join(SUFFIXES)}): class folders must hold nothing else")
        files += own
        labels += [number[entry.name]] * len(own)
    return _Files(tuple(files), np.array(labels, dtype=np.int64), len(number))


@dataclass(frozen=True)
class _Files:
    """A split of one file an image."""

    files: Sequence[Path]
    labels: Ints
    classes: int

    def pixels(self, rows: Ints) -> Bytes:
        """See `Source.pixels`."""
        return stack(len(rows), self._encoded(rows))

    def _encoded(self, rows: Ints) -> Iterator[tuple[int, str, bytes]]:
        for place, row in enumerate(rows):
            yield place, str(self.files[row]), read_all(self.files[row])
