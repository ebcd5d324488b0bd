"""Python pickles: recognised and refused. Loading one runs whatever code it holds."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dagscale.bench.data.dataset import READERS, Source, Splits, head, in_folder
from dagscale.errors import DataError

CIFAR = frozenset({*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "train", "test"})
IMAGENET16 = frozenset({*(f"train_data_batch_{k}" for k in range(1, 11)), "val_data"})
PICKLED = CIFAR | IMAGENET16
"""File names of the official pickled versions of CIFAR-10, CIFAR-100 and ImageNet16."""

PROTOCOLS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
"""How a pickle begins, from protocol 2 on."""


@READERS.add("pickle (refused)")
def pickle(path: Path) -> Splits | None:
    """Splits that raise, where the path is a pickle or a folder of pickles under official names."""
    return in_folder(path, _folder) if path.is_dir() else _file(path)


def refusal(path: Path, name: str) -> str:
    """What to do about a pickled file of this name."""
    mend = (
        "convert it to .npz once, where you trust it: load it with pickle, then numpy.savez('train.npz', x=pixels, "
        "y=labels)"
    )
    if name in CIFAR:
        mend = "take the binary version, cifar-10-binary.tar.gz or cifar-100-binary.tar.gz"
    return f"{path}: {name} is a Python pickle, which can run any code and is never loaded here: {mend}"


def _file(path: Path) -> Splits | None:
    if not head(path, 2).startswith(PROTOCOLS) and path.suffix not in (".pkl", ".pickle"):
        return None
    refuse = partial(_refuse, path)
    return {"train": refuse, "test": refuse}


def _folder(folder: Path) -> Splits:
    files = (entry for entry in sorted(folder.iterdir()) if entry.name in PICKLED and entry.is_file())
    return next((splits for file in files if (splits := _file(file))), {})


def _refuse(path: Path) -> Source:
    raise DataError(refusal(path.parent, path.name))
