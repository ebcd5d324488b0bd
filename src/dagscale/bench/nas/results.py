"""What a retraining has come to so far: the value that is compared, and the one file that it grows in.

The file is lines of JSON: what is trained, the bases with their rates, and one line for each architecture that is done,
in the order of the list. It is a function of what was trained alone, so that a study that was killed and went on ends
with the same bytes. A file is enough to go on from, on another machine too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dagscale.bench.data.files import parsing, read_all
from dagscale.bench.nas.isomorphism import canonical
from dagscale.bench.nas.recipes import Preset, Recipe
from dagscale.bench.nas.tables import Floats
from dagscale.bench.sweep.run import decode, encode
from dagscale.errors import DagscaleError, DataError
from dagscale.models.nb201 import Nb201
from dagscale.replacing import make_folder, write
from dagscale.shown import counted, finite

AFFECTS_RESULTS = False
FORMAT = 1

FOLLOW = ("listed", "differences")
"""What follows from the rest."""

Row = Mapping[str, Any]
"""One architecture: ``code``, ``kind``, and either ``left_out``, why, or ``recipes``: name → ``lr``, ``weight_decay``,
``forwards`` of its law, and a list a seed of ``loss`` and ``test_acc``."""


@dataclass(frozen=True)
class Base:
    """The search of a base's rate.

    Attributes:
        target: the network.
        lr: the rate found, by the loss on held-out training images.
        weight_decay: the decay that it goes with, searched with it or the recipe's own.
        at_edge: the good rates, or the decay, reach an end of the grid; the true middle may be another.
        curve: (decay, rate, mean loss over the seeds); None where a run diverged.
    """

    target: str
    lr: float
    weight_decay: float
    at_edge: bool
    curve: tuple[tuple[float, float, float | None], ...]


@dataclass(frozen=True)
class LeftOut:
    """An architecture that was not trained, and why."""

    arch: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Retraining:
    """What was trained.

    Attributes:
        listed: architectures that were asked for.
        archs: those of them that are trained.
        accuracies: recipe → test accuracy in percent, (architectures, seeds); of diverged runs chance.
        losses: recipe → final training loss, likewise; infinite where the run diverged.
        rates: recipe → each architecture's learning rate.
        bases: recipe → the search of its base; recipes with a given rate have none.
        forwards: recipe → forward passes that its law took on an architecture that was measured, on average.
        measured: architectures that a law was measured on: one of each group that computes the same.
        recipes: name → the recipe as it was trained.
    """

    data: str
    preset: str
    size: Preset
    seeds: tuple[int, ...]
    listed: int
    archs: tuple[Nb201, ...]
    accuracies: Mapping[str, Floats]
    losses: Mapping[str, Floats]
    rates: Mapping[str, tuple[float, ...]]
    bases: Mapping[str, Base]
    forwards: Mapping[str, float]
    measured: int
    left_out: tuple[LeftOut, ...]
    differences: tuple[str, ...]
    train_images: int
    test_images: int
    recipes: Mapping[str, Recipe]

    @property
    def steps(self) -> int:
        """Of one training."""
        return self.size.epochs * max(1, self.train_images // self.size.batch_size)

    @property
    def header(self) -> str:
        """Preset, sizes and data in one line."""
        return (
            f"preset {self.preset}: {self.size.describe()}; data {self.data}, accuracy on {self.test_images:,} test "
            f"images; {counted(len(self.archs), 'architecture')} × {counted(len(self.accuracies), 'recipe')} × "
            f"{counted(len(self.seeds), 'seed')}"
        )

    @property
    def progress(self) -> str:
        """How far it is, in one line."""
        done = len(self.archs) + len(self.left_out)
        if not self.bases and any(recipe.base for recipe in self.recipes.values()):
            return f"the bases' rates are not all found yet, and no architecture of {self.listed:,} is trained"
        return f"{done:,} of {counted(self.listed, 'architecture')} {'is' if self.listed == 1 else 'are'} done"

    @property
    def diverged(self) -> dict[str, int]:
        """Recipe → runs that diverged."""
        return {recipe: int(np.isinf(losses).sum()) for recipe, losses in self.losses.items()}

    def to_dict(self) -> dict[str, Any]:
        """As plain data that ``json`` can write."""
        return {
            "data": self.data,
            "preset": {"name": self.preset, **asdict(self.size)},
            "seeds": list(self.seeds),
            "listed": self.listed,
            "train_images": self.train_images,
            "test_images": self.test_images,
            "differences": list(self.differences),
            "recipes": {name: asdict(recipe) for name, recipe in self.recipes.items()},
            "bases": {name: asdict(base) for name, base in self.bases.items()},
            "forwards": dict(self.forwards),
            "measured": self.measured,
            "left_out": [asdict(one) for one in self.left_out],
            "diverged": self.diverged,
            "architectures": [
                {
                    "code": arch.code,
                    "kind": arch.kind,
                    "recipes": {
                        name: {
                            "lr": self.rates[name][i],
                            "test_acc": accuracies[i].tolist(),
                            "loss": finite(self.losses[name][i].tolist()),
                        }
                        for name, accuracies in self.accuracies.items()
                    },
                }
                for i, arch in enumerate(self.archs)
            ],
        }


def digest(archs: Iterable[Nb201]) -> str:
    """What a list of architectures is known by: theirs and their order."""
    return "sha256:" + hashlib.sha256("\n".join(arch.code for arch in archs).encode()).hexdigest()[:32]


def gathered(what: Mapping[str, Any], bases: Mapping[str, Any], rows: Sequence[Row]) -> Retraining:
    """The value of what a file holds.

    Args:
        what: its first line, see `dagscale.bench.nas.retrain`.
        bases: recipe → fields of its `Base`.
        rows: of the architectures that are done.
    """
    trained = [row for row in rows if "recipes" in row]
    archs = tuple(Nb201.parse(row["code"]) for row in trained)
    recipes = {name: Recipe.of(fields) for name, fields in what["recipes"]}  # in the order that they were asked for
    names, seeds = tuple(recipes), len(what["seeds"])
    size = {**what["preset"], "rates": tuple(what["preset"]["rates"])}

    def column(name: str, field: str) -> Floats:
        return np.array([row["recipes"][name][field] for row in trained], dtype=float).reshape(len(trained), seeds)

    measured = [name for name in names if any(row["recipes"][name]["forwards"] for row in trained)]
    return Retraining(
        data=what["data"]["name"],
        preset=size.pop("name"),
        size=Preset(**size),
        seeds=tuple(what["seeds"]),
        listed=what["listed"],
        archs=archs,
        accuracies={name: column(name, "test_acc") for name in names},
        losses={name: column(name, "loss") for name in names},
        rates={name: tuple(row["recipes"][name]["lr"] for row in trained) for name in names},
        bases={
            name: Base(**{**base, "curve": tuple(tuple(point) for point in base["curve"])})
            for name in names
            if (base := bases.get(name))
        },
        forwards={name: float(np.mean([row["recipes"][name]["forwards"] for row in trained])) for name in measured},
        measured=len({canonical(arch) for arch in archs}) if measured else 0,
        left_out=tuple(LeftOut(row["code"], row["kind"], row["left_out"]) for row in rows if "left_out" in row),
        differences=tuple(what["differences"]),
        train_images=what["data"]["train_images"],
        test_images=what["data"]["test_images"],
        recipes=recipes,
    )


# --- the file -----------------------------------------------------------------------------------------------------


@dataclass
class Results:
    """The file of one study, and what it holds.

    Attributes:
        path: None to keep nothing.
        what: the study: list, code version, preset, data, recipes, seeds.
        archs: the list.
        bases: recipe → fields of its `Base`; empty until all are found.
        rows: code → row of the architectures that are done.
    """

    path: Path | None
    what: Mapping[str, Any]
    archs: Sequence[Nb201]
    bases: dict[str, Any]
    rows: dict[str, Row]

    @property
    def done(self) -> list[Row]:
        """The rows in the order of the list."""
        return [self.rows[arch.code] for arch in self.archs if arch.code in self.rows]

    def save(self) -> None:
        """Write it whole.

        Raises:
            DagscaleError: if it cannot be written; the old one is then as it was.
        """
        if self.path is None:
            return
        lines = [self.what, {"bases": self.bases}, *self.done]
        make_folder(self.path.parent)
        try:
            write(self.path, "".join(encode(line) + "\n" for line in lines).encode())
        except OSError as error:
            raise DagscaleError(f"{self.path} cannot be written ({error.strerror or error}): name another") from None

    def value(self) -> Retraining:
        """What it holds, in the order of the list."""
        return gathered(self.what, self.bases, self.done)


def open_results(path: Path | None, what: Mapping[str, Any], archs: Sequence[Nb201]) -> Results:
    """The file of the study of this list; empty where there is none.

    Raises:
        DataError: if the file is no file of results, or of another study: another list of architectures, code version,
            preset, data, recipes or seeds.
    """
    what = decode(encode({**what, "format": FORMAT, "list": digest(archs), "listed": len(archs)}))
    if path is None or not os.path.exists(path):
        return Results(path, what, archs, {}, {})
    _, known, bases, rows = _read(path)
    other = [name for name in {**what, **known} if known.get(name) != what.get(name) and name not in FOLLOW]
    if other:
        names = {"list": "list of architectures", "dagscale": "version of dagscale"}
        raise DataError(
            f"{path} holds results of another {' and '.join(names.get(name, name) for name in other[:3])}: give "
            "--results another path, so that nothing is mixed"
        )
    return Results(path, what, archs, bases, {row["code"]: row for row in rows})


def read_results(path: Path) -> Retraining:
    """What a file of results holds.

    Raises:
        DataError: if it is none.
    """
    if not os.path.isfile(path):
        raise DataError(f"no results at {path}: dagscale retrain --results makes them")
    return _read(path)[0]


def _read(path: Path) -> tuple[Retraining, dict[str, Any], dict[str, Any], list[Row]]:
    """The value of a file, and what that is gathered from."""
    with parsing(f"{path} is no file of a retraining's results"):
        lines = [decode(line) for line in read_all(path).decode("utf-8").splitlines()]
        if len(lines) < 2:
            raise DataError(
                f"{path} is no file of a retraining's results: it lacks the study and its bases, the first two lines; "
                "`dagscale retrain --results` writes such a file"
            )
        what, bases, *rows = lines
        if what["format"] != FORMAT:
            raise DataError(f"{path} has format {what['format']} of results, and this is for {FORMAT}")
        return gathered(what, bases["bases"], rows), what, bases["bases"], rows
