"""The typer application and the options that commands share."""

from __future__ import annotations

import json as json_
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from dagscale.__about__ import __version__
from dagscale.errors import DagscaleError, TargetError
from dagscale.replacing import make_folder as make_folder
from dagscale.shown import load_rich
from dagscale.starting import came

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from dagscale.training.recipe import Recipe


TARGETS = {
    "file.py:callable": "what your function returns: a model, or (model, inputs)",
    "package.module:callable": "the same, in a package that can be imported",
    "timm:NAME": "a model of timm, as timm:resnet18",
    "hf:NAME": "of transformers, as hf:gpt2?layers=2&width=64&heads=4",
    "resnet:DEPTH": "a residual CNN for small images, as resnet:20",
    "vit:DEPTH": "a small vision transformer, as vit:4",
    "mixer:DEPTH": "a small MLP-Mixer, as mixer:4",
    "lm:DEPTH": "a small language model, as lm:4?width=64&norm=none&tied=1",
    "mlp:CODE": "fully connected layers in a graph, as mlp:2_21_011",
    "cnn:CODE": "convolutions in a graph, with the same codes",
    "nb201:CODE": "a network of NAS-Bench-201, as nb201:3_33_333",
    "nb101:CODE": "a network of NAS-Bench-101",
    "darts:CODE": "a network of DARTS, as darts:V2",
}
"""Every kind of TARGET, and what it is. A test holds the list against the registry, which the help must not import."""

DATA = {
    "digits": "1,797 images of 8x8 pixels, built in",
    "PATH": "images: CIFAR, MNIST's idx, parquet, .npz, a folder a class",
    "text:PATH": "text in a file or a folder, for language models; after ?:",
    "": "context=256, tokenizer=NAME_OR_PATH, files=*.txt",
    "file.py:name": "tensors, a Dataset or a DataLoader, or what returns them",
}
"""Every kind of data, and what it is."""


def _block(title: str, entries: dict[str, str]) -> str:
    """A list at the end of the help, line by line."""
    lines = [f"  {name:16} {text}" if len(name) <= 16 else f"  {name}\n{'':19}{text}" for name, text in entries.items()]
    return "\n".join([title, *lines])


STEPS = """First steps
  dagscale demo
  dagscale search mlp:2 --data digits --steps 100 --save base.json
  dagscale plan mlp:2_21_011 --data digits --steps 100 --base base.json"""

EPILOG = "\n\n".join(
    [
        _block("TARGET is one of, with options after ?, as mlp:2?width=64", TARGETS),
        _block("--data is one of", DATA),
        STEPS,
    ]
)

EVERYDAY, STUDIES = "For your own models", "Studies and benchmarks"

app = typer.Typer(
    name="dagscale",
    help="Architecture-aware initialisation and learning rates for any PyTorch model.",
    epilog=EPILOG,
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def version_only(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    """Architecture-aware initialisation and learning rates for any PyTorch model."""
    if version:
        print(f"dagscale {__version__}")
        raise typer.Exit


def option(text: str, panel: str | None = None, name: str | None = None, **bounds: float) -> Any:
    """An option of a command: its help, where it stands in there, and its name if Python's would be another."""
    return typer.Option(*([name] if name else []), help=text, rich_help_panel=panel, **bounds)  # type: ignore[arg-type]


def listed_in(panel: str) -> Callable[..., Any]:
    """`option` for those of one place in the help."""
    return partial(option, panel=panel)


data_option, output_option = listed_in("Data"), listed_in("Output")
Target = Annotated[
    str,
    typer.Argument(
        help="A model: file.py:callable, timm:NAME, hf:NAME, resnet:DEPTH, …; `dagscale --help` lists every kind.",
        metavar="TARGET",
    ),
]
Data = Annotated[
    str | None,
    data_option("digits, images at a path, text:PATH or file.py:name; see `dagscale --help`. Shapes the network too."),
]
Limit = Annotated[int | None, data_option("Use only so many examples, drawn from all.", min=1, max=10**9)]
InputShape = Annotated[str | None, data_option("Example input without batch, as 3x32x32.")]
Seed = Annotated[int, option("Seed of everything random.", min=0, max=2**32 - 1)]
Json = Annotated[bool, output_option("One JSON document on stdout.", name="--json")]
Jobs = Annotated[int, option("Processes; -1 for one a core.", min=-1)]
Scheduler = Annotated[str | None, option("Address of a Dask scheduler.")]
RetryFailed = Annotated[bool, option("Execute again what failed in an earlier call.", name="--retry-failed")]


def load_target(
    text: str, data: Any, input_shape: str | None, seed: int, recipe: Recipe | None = None
) -> tuple[nn.Module, Any]:
    """The module and its example inputs: where nothing else says them, those of the first batch of a user's data.

    Args:
        recipe: the one that the data are in, if there is one, so that its first batch is read once for all TARGETs.
    """
    from dagscale.models.options import read_shape
    from dagscale.models.targets import load
    from dagscale.training.recipe import Recipe as Own

    shape = None if input_shape is None else read_shape(input_shape)
    if input_shape is not None and shape is None:
        raise TargetError(f"--input-shape {input_shape!r} is no shape: write it as 3x32x32, without the batch")
    shaping = data if hasattr(data, "classes") and hasattr(data, "shape") else None
    first = None if data is None or shaping is not None else lambda: (recipe or Own(data)).example.inputs
    return load(text, data=shaping, input_shape=shape, seed=seed, example=first)


def screen() -> Console:
    """Where readable output goes: as wide as the terminal, or wide enough for tables in a file."""
    load_rich()
    from rich.console import Console

    stream = _answers()
    return Console(file=stream, width=None if stream.isatty() else 120)


def print_text(text: str) -> None:
    """Text on stdout as it is."""
    print(text, file=_answers())


def print_json(document: dict[str, Any] | list[Any]) -> None:
    """One JSON document on stdout."""
    print_text(json_.dumps(document, indent=2, allow_nan=False))


_own: ContextVar[TextIO | None] = ContextVar("own", default=None)


def _answers() -> TextIO:
    """The stream that a command's answer goes to, after all that was printed before it."""
    own = _own.get()
    if own is None:
        return sys.stdout
    with suppress(AttributeError, OSError, ValueError):  # a user's model may have put anything there, or closed it
        sys.stdout.flush()
    return own


def given(context: typer.Context, names: Iterable[str]) -> str:
    """The first of these that was said on the command line, as it is written there; empty if none was."""
    for name in names:
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE":
            return "SUITE" if name == "suite" else f"--{name.replace('_', '-')}"
    return ""


@contextmanager
def own_stdout(*, alone: bool) -> Iterator[None]:
    """Within, answers have a way to stdout of their own, whatever a user's model closes or puts in its place.

    Args:
        alone: nothing but the answer goes there: what is printed goes to stderr, as does what is written to file
            descriptor 1 past Python's ``sys.stdout``, by C code or ``os.write``.
    """
    sys.stdout.flush()
    try:
        aside = os.dup(1)
        if alone:
            os.dup2(2, 1)
    except OSError:  # one of them is closed
        aside = None
    encoding, errors = (None, None) if aside is None else (sys.stdout.encoding, "backslashreplace")
    stream = nullcontext(sys.stdout) if aside is None else os.fdopen(aside, "w", encoding=encoding, errors=errors)
    with stream as own, redirect_stdout(sys.stderr) if alone else nullcontext():
        token = _own.set(own)
        try:
            yield
        finally:
            _own.reset(token)
            own.flush()
            if aside is not None:
                os.dup2(aside, 1)


class Interrupted(Exception):
    """Ctrl-C in a command that can be taken up again; the text says how."""


@contextmanager
def resumable(store: Path) -> Iterator[None]:
    """Within, Ctrl-C is answered with how to go on: a sweep keeps what it has finished, once it has a store."""
    try:
        yield
    except (KeyboardInterrupt, DagscaleError) as error:
        if isinstance(error, DagscaleError) and not came:
            raise
        kept = f"what is finished is in {store}; the same command goes on from there"
        raise Interrupted(f"interrupted{f': {kept}' if store.exists() else ' before a run was finished'}") from None
