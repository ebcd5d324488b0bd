"""Seeded draws that depend on nothing but the seed and the parameter's name."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def standard_normal(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """``N(0, 1)`` of ``shape``, float32 on the CPU: the same numbers on every device, in any order."""
    import torch

    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(shape, generator=generator)
