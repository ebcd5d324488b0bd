"""CIFAR-10 and CIFAR-100 in their binary version: the unpacked folder, one of its files, or the ``.tar.gz`` itself.

Format: records of one label byte (CIFAR-100: the coarse label, then the fine one) and 3,072 pixel bytes, the red,
green and blue 32×32 planes. CIFAR-100 is read with its fine labels. [Krizhevsky 2009, cs.toronto.edu/~kriz/cifar.html]
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from dagscale.bench.data.dataset import READERS, Arrays, Source, Splits, beside, head, in_folder
from dagscale.bench.data.files import Bounded, open_plain, parsing, read_all, room
from dagscale.bench.data.pickles import PICKLED, refusal
from dagscale.errors import DagscaleError, DataError
from dagscale.shown import reason

SIDE, CHANNELS = 32, 3
GZIP = b"\x1f\x8b"
LARGEST = 1 << 28
"""Bytes of an archive's member at most; CIFAR-100's train.bin has 154 million."""


@dataclass(frozen=True)
class _Version:
    """The files of each split, and how many values each label byte has; the last one is the label."""

    name: str
    files: Mapping[str, Sequence[str]]
    labels: Sequence[int]


VERSIONS = (
    _Version(
        "CIFAR-10", {"train": [f"data_batch_{k}.bin" for k in range(1, 6)], "test": ["test_batch.bin"]}, labels=[10]
    ),
    _Version("CIFAR-100", {"train": ["train.bin"], "test": ["test.bin"]}, labels=[20, 100]),
)
VERSION_OF = {file: version for version in VERSIONS for files in version.files.values() for file in files}


@READERS.add("cifar")
def cifar(path: Path) -> Splits | None:
    """The splits of a folder, a ``.bin`` file under its official name, or the archive that holds them."""
    if path.is_dir():
        return in_folder(path, _folder)
    if head(path, 2) == GZIP:
        return _archive(path)
    version = VERSION_OF.get(path.name)
    if version is None:
        return None
    split = "test" if path.name in version.files["test"] else "train"
    return beside(split, partial(_open, path.parent, version, [path.name]), partial(_folder, path.parent, [version]))


def _folder(folder: Path, versions: Sequence[_Version] = VERSIONS) -> Splits:
    """The splits that lie in a folder."""
    names = {entry.name for entry in folder.iterdir()} & VERSION_OF.keys()
    found = [version for version in versions if any(VERSION_OF[name] is version for name in names)]
    if len(found) > 1:
        raise DataError(f"{folder} holds CIFAR-10 and CIFAR-100: move them into folders of their own")
    return {
        split: partial(_open, folder, version, files)
        for version in found
        for split, files in version.files.items()
        if names.intersection(files)
    }


def _archive(path: Path) -> Splits | None:
    """The splits of a tar file, by the first name in it that is known; None if there is none."""
    try:
        for member in _members(path):
            if version := VERSION_OF.get(member):
                return {split: partial(_open, path, version, files) for split, files in version.files.items()}
            if member in PICKLED:
                raise DataError(refusal(path, member))
    except tarfile.TarError:
        pass  # gzipped, but no tar file, or one that ends before any known name
    return None


def _members(path: Path, contents: dict[str, bytes] | None = None) -> Iterator[str]:
    """Last names of the plain files in a gzipped tar file; nothing is written to disk, whatever the names say.

    Args:
        contents: takes up the bytes of each member whose name is one of its keys.
    """
    try:
        with open_plain(path) as raw, gzip.open(raw) as unpacked, _tar(unpacked, path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if not member.isfile():
                    continue
                if contents is not None and name in contents:
                    if member.size > LARGEST:
                        raise DataError(f"{path}: {member.name} is too large for CIFAR: {member.size} bytes")
                    file = archive.extractfile(member)
                    contents[name] = file.read() if file else b""
                yield name
    except (DagscaleError, tarfile.TarError):
        raise
    except Exception as error:  # damaged headers raise a dozen kinds
        raise tarfile.ReadError(reason(error)) from error


def _tar(unpacked: gzip.GzipFile, path: Path) -> tarfile.TarFile:
    """The archive, read in one go and no further than its size on the disk allows."""
    return tarfile.open(fileobj=Bounded(unpacked, room(path), path), mode="r|")


def _open(place: Path, version: _Version, files: Sequence[str]) -> Source:
    """Read a split from a folder or an archive."""
    contents = dict.fromkeys(files, b"")
    if place.is_dir():
        contents = {file: read_all(place / file, LARGEST) for file in files if (place / file).is_file()}
    else:
        with parsing(f"{place} cannot be read to its end"):
            seen = list(_members(place, contents))
        contents = {file: contents[file] for file in files if file in seen}
    if missing := [file for file in files if file not in contents]:
        raise DataError(f"{place} lacks {', '.join(missing)} of {version.name}: unpack or download it again")
    width = len(version.labels) + CHANNELS * SIDE * SIDE
    for file, content in contents.items():
        if not content or len(content) % width:
            raise DataError(
                f"{place}: {file} is truncated, or no {version.name} binary file: {len(content)} bytes are no "
                f"multiple of {width}"
            )
    records = np.concatenate([np.frombuffer(content, np.uint8).reshape(-1, width) for content in contents.values()])
    labels, pixels = np.split(records, [len(version.labels)], axis=1)
    for column, classes in enumerate(version.labels):
        wrong = np.flatnonzero(labels[:, column] >= classes)
        if len(wrong):
            raise DataError(
                f"{place}: record {wrong[0]} of {', '.join(files)} has the label {labels[wrong[0], column]}, outside "
                f"0 to {classes - 1}: not {version.name}'s binary version, or damaged"
            )
    images = pixels.reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1)
    return Arrays(images, labels[:, -1].astype(np.int64), classes=version.labels[-1])
