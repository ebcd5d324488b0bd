"""How a parameter is drawn: seeded, and depending on nothing but the seed and the parameter's name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

    def draw(self, name: str, shape: tuple[int, ...], seed: int, *, is_complex: bool = False) -> Tensor:
        """The values of parameter ``name`` on the CPU: float32, or complex64, as the parameter is."""
        import torch

        if self.std == 0:
            return torch.full(shape, self.mean, dtype=torch.complex64 if is_complex else torch.float32)
        return standard_normal(name, shape, seed, is_complex=is_complex).mul_(self.std).add_(self.mean)


def standard_normal(name: str, shape: tuple[int, ...], seed: int, *, is_complex: bool = False) -> Tensor:
    """``N(0, 1)`` of ``shape`` on the CPU, float32 or complex64: the same numbers on every device, in any order."""
    import torch

    digest = hashlib.sha256(f"{seed}:{name}".encode(errors="surrogatepass")).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    kind = torch.complex64 if is_complex else torch.float32  # whatever the default is
    return torch.randn(shape, generator=generator, dtype=kind)
