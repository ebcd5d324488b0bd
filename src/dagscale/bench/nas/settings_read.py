"""Reading benchmarks with several settings an architecture: NAS-HPO-Bench-II and JAHS-Bench-201.

A user supplies the files. NAS-HPO-Bench-II's are Python pickles of plain dictionaries: they are read by an unpickler
that makes numbers, texts and containers, and refuses everything else, so that no code in them can run.
"""

from __future__ import annotations

import io
import math
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dagscale.bench.data.files import parsing, read_all
from dagscale.bench.nas.settings import Settings
from dagscale.bench.nas.tables import read_columns
from dagscale.errors import DataError
from dagscale.models.nb201 import Nb201
from dagscale.registry import Registry

AFFECTS_RESULTS = False

SETTINGS: Registry[Callable[[str, str | None], Settings]] = Registry("benchmark with settings")
"""``KIND:PATH`` and a column → a table. A benchmark with another layout is one entry here."""

LARGEST = 1 << 30
"""Bytes of a pickled file, at most."""


def read_settings(source: str, column: str | None = None) -> Settings | None:
    """A benchmark with several settings an architecture, written ``KIND:PATH``; None for a ``source`` of no such kind.

    Args:
        column: ``valid`` or ``test``; by default the test accuracy.

    Raises:
        DataError: in one line, if it cannot be read or is not what it should be.
    """
    kind, colon, path = source.partition(":")
    return SETTINGS[kind](path, column) if colon and kind in SETTINGS else None


# --- NAS-HPO-Bench-II ----------------------------------------------------------------------------------------------


@SETTINGS.add("nas-hpo-bench-2")
def nas_hpo_bench_2(path: str, column: str | None = None) -> Settings:
    """NAS-HPO-Bench-II [Hirose et al. 2021], 12 epochs: ``bench12.pkl``, or the folder that holds it.

    The layout is that of the benchmark's own interface: a dictionary of columns, ``valid_acc_11`` and ``test_acc_11``
    among them (epochs from 0), each a dictionary from (hash of the cell, learning rate, batch size, seed) to percent.
    """
    file = Path(path, "bench12.pkl") if os.path.isdir(path) else Path(path)
    if not os.path.isfile(file):
        raise DataError(f"{path}: no bench12.pkl there: give the folder of NAS-HPO-Bench-II's data")
    split = _split(str(file), column)
    found = _plain(file)
    if not isinstance(found, dict):
        raise DataError(f"{file} holds no dictionary of columns: it is not NAS-HPO-Bench-II's bench12.pkl")
    epochs = [
        int(tail) for name in found if (tail := str(name).removeprefix(f"{split}_acc_")).isdigit() and tail != str(name)
    ]
    if not epochs:
        raise DataError(f"{file} has no column {split}_acc_…: it is not NAS-HPO-Bench-II's bench12.pkl")
    last = f"{split}_acc_{max(epochs)}"
    rows = []
    with parsing(f"{file} is not as NAS-HPO-Bench-II writes it"):
        for (cell, lr, batch, seed), value in found[last].items():
            rows.append((str(cell), f"lr {float(lr):g}, batch {int(batch)}", str(seed), float(value)))
    return _settings(str(file), f"{split} accuracy after {max(epochs) + 1} epochs", rows)


class _Plain(pickle.Unpickler):
    """Numbers, texts and containers alone."""

    def find_class(self, module: str, name: str) -> Any:
        raise DataError(f"it holds {module}.{name}, and only plain dictionaries of numbers are loaded")


def _plain(file: Path) -> Any:
    with parsing(f"{file} is no pickle that can be read"):
        content = read_all(file, LARGEST)
        try:
            return _Plain(io.BytesIO(content)).load()
        except DataError as error:
            raise DataError(f"{file}: {error}") from None


# --- JAHS-Bench-201 ------------------------------------------------------------------------------------------------

OPS = (1, 0, 3, 2, 4)
"""JAHS's numbers of operations, identity, zero, 3×3, 1×1, pooling, as NAS-Bench-201's."""

EDGES = tuple(f"Op{k}" for k in range(1, 7))
"""The cell's edges 1→2, 1→3, 1→4, 2→3, 2→4, 3→4."""

SIZES = ("N", "W", "Resolution")
"""Of the network and its images: the largest of each in the table count, as the benchmark's full size."""

TRAINING = ("TrivialAugment", "Activation", "Optimizer")

OCTAVES = 2
"""Rates and decays are drawn at random there: those within so many octaves count as one setting."""


@SETTINGS.add("jahs-bench-201")
def jahs_bench_201(path: str, column: str | None = None) -> Settings:
    """JAHS-Bench-201 [Bansal et al. 2022]: its table of metrics as parquet or CSV, one row a run and epoch.

    Columns: ``Op1`` … ``Op6``, ``LearningRate``, ``WeightDecay``, ``epoch``, ``valid-acc``, ``test-acc``, and as far as
    there are any ``N``, ``W``, ``Resolution``, ``TrivialAugment``, ``Activation``, ``Optimizer``. Of each run the last
    epoch counts, and of ``SIZES`` the largest. Rates and decays are random there, so a setting is a class of both,
    ``OCTAVES`` wide; runs of one architecture in one class are taken for its seeds, as many as all classes have that
    have two or more.
    """
    split = _split(path, column)
    columns = read_columns(Path(path))
    name = f"{split}-acc"
    needed = (*EDGES, "LearningRate", "WeightDecay", "epoch", name)
    lacking = [one for one in needed if one not in columns]
    if lacking:
        raise DataError(f"{path} has no column {lacking[0]}: it is not JAHS-Bench-201's table; it has {_few(columns)}")
    last: dict[tuple[str, float, float, tuple[str, ...]], tuple[float, float]] = {}
    with parsing(f"{path} is not as JAHS-Bench-201 writes it"):
        sizes = {one: [float(value) for value in columns[one]] for one in SIZES if one in columns}
        largest = {one: max(values) for one, values in sizes.items() if values}
        words = [one for one in TRAINING if one in columns and len(set(map(str, columns[one]))) > 1]
        for row in range(len(columns[name])):
            if any(sizes[one][row] < most for one, most in largest.items()):
                continue
            a, b, c, d, e, f = (OPS[int(columns[edge][row])] for edge in EDGES)
            rest = tuple(f"{one} {columns[one][row]}" for one in words)
            pair = (float(columns["LearningRate"][row]), float(columns["WeightDecay"][row]))
            run = (Nb201((a, b, d, c, e, f)).code, *pair, rest)
            now = (float(columns["epoch"][row]), float(columns[name][row]))
            last[run] = max(last.get(run, (-math.inf, 0.0)), now)
    longest = max((epoch for epoch, _ in last.values()), default=0.0)
    rows, counts = [], dict[tuple[str, str], int]()
    for (arch, lr, decay, rest), (epoch, value) in sorted(last.items()):
        if epoch < longest:  # given up before
            continue
        setting = ", ".join([f"lr {_class(lr)}, decay {_class(decay)}", *rest])
        counts[arch, setting] = counts.get((arch, setting), 0) + 1
        rows.append((arch, setting, str(counts[arch, setting] - 1), value))
    seeds = [count for count in counts.values() if count > 1]
    kept = [row for row in rows if int(row[2]) < (min(seeds) if seeds else 1)]
    return _settings(path, f"{split} accuracy after {longest:g} epochs", kept)


def _class(value: float) -> str:
    """The class of a rate or decay, by its middle."""
    return f"{2.0 ** (OCTAVES * round(math.log2(value) / OCTAVES)):.2g}"


# --- both ----------------------------------------------------------------------------------------------------------


def _split(source: str, column: str | None) -> str:
    """Of which images the accuracies are."""
    split = "test" if column is None else column.removesuffix("_acc")
    if split not in ("test", "valid"):
        raise DataError(f"{source} has accuracies of test and valid, not of {column!r}")
    return split


def _settings(source: str, column: str, rows: Sequence[tuple[str, str, str, float]]) -> Settings:
    """A table from (architecture, setting, seed, percent)."""
    if not rows:
        raise DataError(f"{source} has no rows")
    archs, settings, seeds = (tuple(sorted({str(row[i]) for row in rows})) for i in range(3))
    places = [{name: i for i, name in enumerate(names)} for names in (archs, settings, seeds)]
    values = np.full((len(archs), len(settings), len(seeds)), np.nan)
    for arch, setting, seed, value in rows:
        if not 0 <= value <= 100:
            raise DataError(f"{source}: accuracy {value:g} of {arch}, {setting} is no percentage from 0 to 100")
        values[places[0][arch], places[1][setting], places[2][seed]] = value
    if 0 < np.nanmax(values) <= 1:
        raise DataError(f"{source}: the accuracies are at most {np.nanmax(values):g}, as fractions are: give percent")
    return Settings(source, column, archs, settings, values)


def _few(names: Mapping[str, Any]) -> str:
    return ", ".join(list(names)[:6]) + (", …" if len(names) > 6 else "")
