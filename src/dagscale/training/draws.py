"""How a parameter is drawn: seeded, and depending on nothing but the seed and the parameter's name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Fill:
    """Draw a parameter from ``N(mean, std²)``; ``std`` 0 is a constant. A complex one has ``E|w - mean|² = std²``, half
    of it in either part."""

    mean: float
    std: float

    def times(self, factor: float, offset: float = 0.0) -> Fill:
        """What makes the parameter and its offset ``factor`` times as large: of a gain ``1 + w``, the whole gain."""
        return Fill(self.mean * factor + (factor - 1) * offset, self.std * factor)

    def draw(self, name: str, parameter: Tensor, seed: int) -> Tensor:
        """The values of a parameter, of its shape, on the CPU: complex64 if it is complex, else float32."""
        import torch

        if self.std == 0:
            return torch.full(tuple(parameter.shape), self.mean, dtype=_kind(parameter))
        return standard_normal(name, parameter, seed).mul_(self.std).add_(self.mean)


def standard_normal(name: str, parameter: Tensor, seed: int) -> Tensor:
    """``N(0, 1)`` for a parameter, as `Fill.draw` has it: the same numbers on every device, in any order."""
    import torch

    digest = hashlib.sha256(f"{seed}:{name}".encode(errors="surrogatepass")).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(tuple(parameter.shape), generator=generator, dtype=_kind(parameter))


def _kind(parameter: Tensor) -> torch.dtype:
    import torch

    return torch.complex64 if parameter.is_complex() else torch.float32  # whatever the default is
