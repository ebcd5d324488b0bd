"""Parquet files in the Hugging Face image layout: a struct column with ``bytes``, an integer label column."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dagscale.bench.data.dataset import READERS, SPLIT_NAMES, Bytes, Ints, Source, Splits, beside, head, in_folder
from dagscale.bench.data.decode import need_pillow, stack
from dagscale.bench.data.files import check_room, open_plain, parsing
from dagscale.errors import DataError

MAGIC = b"PAR1"
IMAGE_NAMES = ("img", "image", "images")
LABEL_NAMES = ("label", "labels", "fine_label", "fine_labels", "class", "target")


@READERS.add("parquet")
def parquet(path: Path) -> Splits | None:
    """The splits of a parquet file, or of a folder: ``train.parquet`` or ``train-00000-of-00001.parquet``."""
    if path.is_dir():
        return in_folder(path, _folder)
    if head(path, 4) != MAGIC:
        if path.suffix == ".parquet":
            raise DataError(f"{path} is not a parquet file: it begins with {head(path, 4)!r}, not {MAGIC!r}")
        return None
    split = next((split for split in SPLIT_NAMES if _split_pattern(split).fullmatch(path.name)), None)
    return beside(split, partial(_open, [path]), partial(_folder, path.parent))


def _split_pattern(split: str) -> re.Pattern[str]:
    return re.compile(rf"(?P<name>{'|'.join(SPLIT_NAMES[split])})(-\d+-of-(?P<shards>\d+))?\.parquet")


def _folder(folder: Path) -> Splits:
    """The splits that lie in a folder, by the names of its files."""
    splits = {}
    for split, names in SPLIT_NAMES.items():
        pattern = _split_pattern(split)
        matches = [m for m in map(pattern.fullmatch, sorted(file.name for file in folder.iterdir())) if m]
        for name in names:
            files = [folder / match.string for match in matches if match["name"] == name]
            if files:
                splits[split] = partial(_open, files, _shards(matches, name))
                break
    return splits


def _shards(matches: Sequence[re.Match[str]], name: str) -> int | None:
    """How many files a split must have, if its file names say so."""
    counts = {match["shards"] for match in matches if match["name"] == name}
    only = next(iter(counts)) if len(counts) == 1 else None
    return int(only) if only else None


def _open(files: Sequence[Path], shards: int | None = None) -> Source:
    """Read the labels of all files and find out where the images are."""
    if shards is not None and shards != len(files):
        raise DataError(f"{files[0].parent} holds {len(files)} of {shards} shards of {files[0].name}")
    need_pillow()
    labels, classes, columns = [], 0, []
    for file in files:
        with opened_parquet(file) as opened:
            image, label = _columns(opened.schema_arrow, file)
            column = opened.read(columns=[label]).column(label)
            if column.null_count:
                raise DataError(f"{file}: {column.null_count} rows have no {label}")
            values = column.to_numpy().astype(np.int64)
            classes = max(classes, int(values.max(initial=-1)) + 1, _class_names(opened.schema_arrow, label))
        labels.append(values)
        columns.append(image)
    return _Parquet(tuple(files), tuple(columns), np.concatenate(labels), classes)


def _arrow() -> ModuleType:
    """Pyarrow. Raises: DataError, naming the extra to install, if it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("reading parquet needs pyarrow: pip install dagscale[images]") from error
    module: ModuleType = pyarrow
    return module


@contextmanager
def opened_parquet(file: Path) -> Iterator[Any]:
    """A parquet file, opened to read.

    Raises:
        DataError: if it is broken, or what its metadata say does not fit its size on the disk.
    """
    arrow = _arrow()
    with parsing(f"{file} is a broken parquet file"), open_plain(file) as raw:
        opened = arrow.parquet.ParquetFile(raw)
        groups = [opened.metadata.row_group(k) for k in range(opened.num_row_groups)]
        check_room(file, sum(max(0, group.total_byte_size) for group in groups))
        check_room(file, 8 * max(0, opened.metadata.num_rows, sum(group.num_rows for group in groups)))
        yield opened


def _columns(schema: Any, file: Path) -> tuple[str, str]:
    """Names of the image column and the label column of an Arrow schema."""
    types = _arrow().types
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view)
    structs = [f for f in schema if types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    images = [f.name for f in structs if any(test(f.type.field("bytes").type) for test in binary)]
    integers = [f.name for f in schema if types.is_integer(f.type)]
    image = next((name for name in IMAGE_NAMES if name in images), images[0] if len(images) == 1 else None)
    label = next((name for name in LABEL_NAMES if name in integers), integers[0] if len(integers) == 1 else None)
    if image is None or label is None:
        found = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise DataError(
            f"{file} is no image set: it needs a struct column with 'bytes' and an integer label column, "
            f"and has {found}"
        )
    return image, label


def _class_names(schema: Any, label: str) -> int:
    """How many class names the Hugging Face metadata list for the label column; 0 where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return len(features[label]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return 0


@dataclass(frozen=True)
class _Parquet:
    """A split in one or several files; `columns` names the image column of each."""

    files: tuple[Path, ...]
    columns: tuple[str, ...]
    labels: Ints
    classes: int

    def pixels(self, rows: Ints) -> Bytes:
        """See `Source.pixels`."""
        place = {int(row): position for position, row in enumerate(rows)}
        return stack(len(rows), ((place[row], where, encoded) for row, where, encoded in self._encoded(place)))

    def _encoded(self, wanted: dict[int, int]) -> Iterator[tuple[int, str, bytes | None]]:
        """Each wanted row: number, name for messages, encoded image. One row group is in memory at a time."""
        start = 0
        for file, column in zip(self.files, self.columns, strict=True):
            with opened_parquet(file) as opened:
                first = start
                for group in range(opened.num_row_groups):
                    count = opened.metadata.row_group(group).num_rows
                    inside = [row for row in range(start, start + count) if row in wanted]
                    if inside:
                        table = opened.read_row_group(group, columns=[f"{column}.bytes"])
                        encoded = table.column(column).combine_chunks().flatten()[0]
                        for row in inside:
                            yield row, f"{file} row {row - first}", encoded[row - start].as_py()
                    start += count
