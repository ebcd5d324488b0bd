"""The typer application and the options that commands share."""

from __future__ import annotations

import json as json_
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from dagscale.errors import TargetError
from dagscale.replacing import make_folder as make_folder
from dagscale.shown import load_rich

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn


app = typer.Typer(
    name="dagscale",
    help="Architecture-aware initialisation and learning rates for any PyTorch model.",
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def version_only(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    """Architecture-aware initialisation and learning rates for any PyTorch model."""
    if version:
        from importlib.metadata import version as of

        print(f"dagscale {of('dagscale')}")
        raise typer.Exit


TARGET_HELP = (
    "A model: file.py:callable, package.module:callable, timm:NAME, hf:NAME, resnet:DEPTH, vit:DEPTH, mlp:CODE, "
    "cnn:CODE, nb201:CODE, nb101:CODE, darts:CODE; options after ?"
)
Target = Annotated[str, typer.Argument(help=TARGET_HELP, metavar="TARGET")]
Data = Annotated[
    str | None,
    typer.Option(help="'digits', a path to images, or file.py:function that returns data; shapes the network too."),
]
Limit = Annotated[int | None, typer.Option(help="Use only so many examples.")]
InputShape = Annotated[str | None, typer.Option(help="Example input without batch, as 3x32x32.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def load_data(source: str | None, limit: int | None = None) -> Any:
    """What ``--data`` names: a data set, or whatever a function of the user's returns.

    Raises:
        DataError, TargetError: if there is none.
    """
    from dagscale.bench.data import load

    if source is None:
        return None
    if ":" in source and not Path(source).exists():
        from dagscale.models.targets import called, find

        found = find(source, "data")
        found = called(found, source) if callable(found) else found
        return found if limit is None else _limited(found, limit)
    return load(source, limit=limit)


def _limited(data: Any, limit: int) -> Any:
    """The first examples of tensors or of a Dataset; a loader is limited by the steps that are asked for."""
    from torch import Tensor
    from torch.utils.data import Dataset, IterableDataset, Subset

    if isinstance(data, tuple) and all(isinstance(part, Tensor) for part in data):
        return tuple(part[:limit] for part in data)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return Subset(data, range(min(limit, len(data))))  # type: ignore[arg-type]
    raise TargetError(f"--limit cannot cut {type(data).__name__}: give --steps, or return a Dataset")


def load_target(text: str, data: Any, input_shape: str | None, seed: int) -> tuple[nn.Module, Any]:
    """The module and its example inputs."""
    from dagscale.models.targets import load, read_shape

    shape = None if input_shape is None else read_shape(input_shape)
    if input_shape is not None and shape is None:
        raise TargetError(f"--input-shape {input_shape!r} is no shape: write it as 3x32x32, without the batch")
    shaping = data if hasattr(data, "classes") and hasattr(data, "shape") else None
    return load(text, data=shaping, input_shape=shape, seed=seed)


def screen() -> Console:
    """Where readable output goes: as wide as the terminal, or wide enough for tables in a file."""
    load_rich()
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def print_json(document: dict[str, Any] | list[Any]) -> None:
    """One JSON document on stdout."""
    print(json_.dumps(document, indent=2, allow_nan=False), file=_document.get() or sys.stdout)


_document: ContextVar[TextIO | None] = ContextVar("document", default=None)


@contextmanager
def json_alone() -> Iterator[None]:
    """What is printed inside, by a user's own model too, goes to stderr: all but the document of `print_json`.

    So does what is written to file descriptor 1 past Python's ``sys.stdout``, by C code or ``os.write``.
    """
    sys.stdout.flush()
    try:
        aside = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed
        aside = None
    with os.fdopen(aside, "w", encoding="utf-8") if aside is not None else nullcontext(sys.stdout) as document:
        token = _document.set(document)
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            _document.reset(token)
            document.flush()
            if aside is not None:
                os.dup2(aside, 1)


class Interrupted(Exception):
    """Ctrl-C in a command that can be taken up again; the text says how."""


@contextmanager
def resumable(store: Path) -> Iterator[None]:
    """Within, Ctrl-C is answered with how to go on: a sweep keeps what it has finished."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: what is finished is in {store}; the same command goes on from there") from None
