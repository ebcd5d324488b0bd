"""A run as a value: all that its result depends on, and the key that follows from it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dagscale.errors import SweepError

NONFINITE = "$float"
"""JSON has no NaN and no infinity: they are written as ``{"$float": "nan"}``, ``"inf"`` or ``"-inf"``."""

AFFECTS_RESULTS = False
"""A module or package of dagscale that says this changes no result; `code_version` leaves it out."""


@cache
def code_version(*flags: str) -> str:
    """The package's version, a digest of the sources that results depend on, and torch's version.

    As ``0.1.0+3f2a9c01b7de.torch.2.13.0``. It is taken once per process, at the first call. A module says that it is
    left out by a line ``AFFECTS_RESULTS = False`` of its own, and a package by one in its ``__init__.py``.

    Args:
        flags: further names that leave a part out where they are set to False, as ``AFFECTS_TRAINING``.
    """
    import torch

    import dagscale

    root = Path(dagscale.__file__).parent
    left_out = re.compile(rf"^(?:{'|'.join(('AFFECTS_RESULTS', *flags))}) = False$", re.MULTILINE)
    sources = {file: file.read_bytes() for file in sorted(root.rglob("*.py"))}
    flagged = {file for file, source in sources.items() if left_out.search(source.decode())}
    without = {file.parent for file in flagged if file.name == "__init__.py"}
    digest = hashlib.sha256()
    for file, source in sources.items():
        if file not in flagged and not without & set(file.parents):
            part = file.relative_to(root).as_posix()
            digest.update(part.encode() + b"\0" + source + b"\0")
    return f"{dagscale.__version__}+{digest.hexdigest()[:12]}.torch.{str(torch.__version__).split('+')[0]}"


@dataclass(frozen=True)
class Run:
    """One training run. Two runs are the same if and only if all of this is.

    Args:
        architecture: a TARGET string, as ``mlp:2_02_002?width=128``.
        lr: learning rate, per optimiser step.
        init: name of an init.
        optimizer: name of an optimiser.
        data: where the examples come from.
        limit: use only so many of them.
        batch_size: examples a step.
        epochs, steps: length of the run.
        seed: seed of everything random in it.
        options: anything else that the result depends on, as plain data that JSON can hold (NaN and infinity too).
        version: the code that computes the result; see `code_version`.

    Raises:
        SweepError: if the rate is not finite, or something in it is no plain data.
    """

    architecture: str
    lr: float
    init: str = "in-degree"
    optimizer: str = "sgd"
    data: str = "digits"
    limit: int | None = None
    batch_size: int = 128
    epochs: int | None = 1
    steps: int | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    version: str = field(default_factory=code_version)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "lr", float(self.lr))
            object.__setattr__(self, "options", MappingProxyType(decode(encode(dict(self.options)))))
            self.json  # noqa: B018  computed here, so that it raises here
        except (TypeError, ValueError, RecursionError) as error:
            raise SweepError(f"a run must be plain data that JSON can hold: {error}") from None
        if not math.isfinite(self.lr):
            raise SweepError(f"the learning rate of a run must be finite, not {self.lr}")

    @cached_property
    def json(self) -> str:
        """The run as canonical JSON: sorted names, no spaces."""
        return encode(self.to_dict())

    @cached_property
    def key(self) -> str:
        """The sha256 of its canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**own, "options": dict(self.options)}

    @classmethod
    def from_json(cls, text: str) -> Run:
        """The run that `json` wrote."""
        return cls(**decode(text))

    def __hash__(self) -> int:
        return hash(self.key)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Run.from_json, (self.json,))


def encode(value: Any) -> str:
    """Plain data as canonical JSON; `decode` reads back an equal value (tuples as lists).

    Raises:
        TypeError, ValueError: for anything but None, bool, int, float, str, lists, tuples and mappings from names.
    """
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    text.encode()  # half a surrogate pair is no text, and no file would take it
    return text


def decode(text: str) -> Any:
    """The value that `encode` wrote."""
    return json.loads(text, object_hook=_floats)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {NONFINITE: repr(float(value))}
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str) or name == NONFINITE:
                raise TypeError(f"names must be strings other than {NONFINITE!r}, not {name!r}")
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    raise TypeError(f"{type(value).__name__} is no plain data: give numbers, strings, lists and mappings")


def _floats(mapping: dict[str, Any]) -> Any:
    return float(mapping[NONFINITE]) if NONFINITE in mapping else mapping
