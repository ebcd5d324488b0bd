"""What ``--data`` names: images by path, text, or whatever a user's file holds; and ``--limit``."""

from __future__ import annotations

import os.path
from typing import Any

from dagscale.errors import DataError

LIBRARY, TEXT = "text", "text:"
"""Sources of Python's standard library, and what stands before a path."""


def load_data(source: str | None, limit: int | None = None) -> Any:
    """A data set, or what a user's file holds under the name or its function returns.

    Raises:
        DataError, TargetError: if there is none.
    """
    if source is None:
        return None
    if source == LIBRARY:
        from dagscale.bench.data.text import CONTEXT, library_text

        return library_text(CONTEXT, limit=limit)
    if source.startswith(TEXT):
        from dagscale.bench.data.text import named_text

        return named_text(source.removeprefix(TEXT), limit)
    if ":" in source and not os.path.exists(source):
        from dagscale.models.own_code import find

        found = find(source, "data", call=True)
        return found if limit is None else limited(found, limit)
    from dagscale.bench.data import load

    return load(source, limit=limit)


def limited(data: Any, limit: int) -> Any:
    """A fair draw of so many examples, always the same ones, in their own order.

    Raises:
        DataError: if the data cannot be drawn from by number.
    """
    from torch import Generator, Tensor, randperm
    from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Subset

    def rows(count: int) -> Any:
        return randperm(count, generator=Generator().manual_seed(0))[:limit].sort().values

    if (
        isinstance(data, (tuple, list))
        and len(data) == 2
        and all(isinstance(part, Tensor) and part.ndim for part in data)
    ):
        drawn = rows(len(data[0]))
        return tuple(part[drawn] for part in data)
    if hasattr(data, "subset"):  # this package's own
        return data.subset(min(limit, len(data)))
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return Subset(data, rows(len(data)).tolist())  # type: ignore[arg-type]
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset) and data.batch_size is not None:
        return DataLoader(
            limited(data.dataset, limit), batch_size=data.batch_size, shuffle=isinstance(data.sampler, RandomSampler),
            collate_fn=data.collate_fn, num_workers=data.num_workers,
            drop_last=data.drop_last and limit >= data.batch_size,
        )  # fmt: skip
    raise DataError(
        f"--limit cannot draw from {type(data).__name__}: leave it out and give --steps, or return tensors or a Dataset"
    )
