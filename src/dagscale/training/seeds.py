"""Random numbers that leave those of the user alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dagscale.tracing.generators import numbers, put_numbers, seed_numbers


class seeded:
    """Python's, NumPy's and torch's global generators seeded inside ``with``, as they were outside.

    Entered again, it goes on where it was left: the same object around every read of a loader gives the loader one
    stream of random numbers, whatever is drawn between the reads.

    Args:
        own: further generators that are treated alike, such as those of a loader's sampler.
    """

    def __init__(self, seed: int, own: Sequence[Any] = ()) -> None:
        self.seed, self.own = seed, own
        self._inside: Any = None
        self._outside: list[Any] = []

    def __enter__(self) -> seeded:
        self._outside.append(self._states())
        try:
            if self._inside is None:
                torch.manual_seed(self.seed)
                random.seed(self.seed)
                np.random.seed(self.seed % 2**32)
                for place, generator in enumerate(self.own):
                    seed_numbers(generator, self.seed + place)
            else:
                self._restore(self._inside)
        except BaseException:  # Ctrl-C, before there is anything to leave
            self._restore(self._outside.pop())
            raise
        return self

    def __exit__(self, *exception: Any) -> None:
        self._inside = self._states()
        self._restore(self._outside.pop())

    def _states(self) -> Any:
        return _states(), [numbers(generator) for generator in self.own]

    def _restore(self, states: Any) -> None:
        common, own = states
        _restore(common)
        for generator, state in zip(self.own, own, strict=True):
            put_numbers(generator, state)


def _states() -> Any:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), devices, random.getstate(), np.random.get_state()


def _restore(states: Any) -> None:
    cpu, devices, python, numpy = states
    torch.set_rng_state(cpu)
    if devices:
        torch.cuda.set_rng_state_all(devices)
    random.setstate(python)
    np.random.set_state(numpy)
