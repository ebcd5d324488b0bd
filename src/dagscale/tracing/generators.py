"""Generators of random numbers: how their state is read, put back, and made anew from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

Ways = tuple[Callable[[Any], Any], Callable[[Any, Any], None], Callable[[Any, int], Any]]

GENERATORS: dict[type, Ways] = {
    torch.Generator: (lambda g: g.get_state(), lambda g, state: g.set_state(state), lambda g, n: g.manual_seed(n)),
    random.Random: (lambda r: r.getstate(), lambda r, state: r.setstate(state), lambda r, n: r.seed(n)),
    np.random.Generator: (
        lambda g: g.bit_generator.state,
        lambda g, state: setattr(g.bit_generator, "state", state),
        lambda g, n: setattr(g.bit_generator, "state", type(g.bit_generator)(n).state),
    ),
    np.random.RandomState: (lambda r: r.get_state(), lambda r, state: r.set_state(state), lambda r, n: r.seed(n)),
}
"""Type → how its state is read, put back, and seeded with 0 ≤ n < 2³²."""


def numbers(generator: Any) -> Any:
    """The state of a generator."""
    return _ways(generator)[0](generator)


def put_numbers(generator: Any, state: Any) -> None:
    """Put a generator back to a state."""
    _ways(generator)[1](generator, state)


def seed_numbers(generator: Any, seed: int) -> None:
    """Give a generator the state that a seed stands for."""
    _ways(generator)[2](generator, seed % 2**32)


def _ways(generator: Any) -> Ways:
    return next(ways for type_, ways in GENERATORS.items() if isinstance(generator, type_))


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global generators seeded inside, as they were outside.

    CUDA is not begun for it: its generators are looked at only where it has begun.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
