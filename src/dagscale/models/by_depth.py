"""What spaces of image networks share, those of a depth above all, such as ``resnet:20`` and ``vit:6``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import gcd
from typing import Any

from torch import nn

from dagscale.errors import TargetError
from dagscale.models.targets import MOST_STACKED, Setting


def read_depth(code: str, example: str) -> int:
    """The depth that a code spells.

    Args:
        example: a TARGET of the space, for the message.

    Raises:
        TargetError: if it is no integer from 1 on.
    """
    if not (code.isascii() and code.isdigit() and len(code) < 10 and 0 < int(code) <= MOST_STACKED):
        raise TargetError(
            f"{code[:40]!r} is no depth; write a number of layers or blocks up to {MOST_STACKED:,}, as {example}"
        )
    return int(code)


def image_shape(setting: Setting, what: str) -> tuple[int, int, int]:
    """(C, H, W) of one example.

    Raises:
        TargetError: if examples are no images.
    """
    if len(setting.shape) != 3:
        shape = "x".join(map(str, setting.shape))
        raise TargetError(f"{what} takes images, not inputs of shape {shape}; write ?input=CxHxW, as 3x32x32")
    channels, high, wide = setting.shape
    return channels, high, wide


def image_model(
    make: Callable[..., nn.Module], example: str, what: str
) -> Callable[[str, Mapping[str, Any], Setting], Callable[[], nn.Module]]:
    """How a space reads its codes, ``make(depth, shape=(C, H, W), classes=…, **options)`` being the network.

    Args:
        example: a TARGET of the space, for messages.
        what: what such a network is called, for messages.
    """

    def read(code: str, options: Mapping[str, Any], setting: Setting) -> Callable[[], nn.Module]:
        depth = read_depth(code, example)
        return partial(make, depth, shape=image_shape(setting, what), classes=setting.classes, **options)

    return read


def patches(high: int, wide: int, side: int | None) -> tuple[int, int]:
    """The side of square patches of an image, and how many of them there are.

    Args:
        side: as it is given; None for `default_patch`.

    Raises:
        TargetError: if they do not divide the image.
    """
    fits = default_patch(high, wide)
    side = fits if side is None else side
    if high % side or wide % side:
        raise TargetError(f"patch={side} does not divide images of {high}×{wide}; write patch={fits}")
    return side, (high // side) * (wide // side)


def default_patch(high: int, wide: int) -> int:
    """The largest side that divides both and is at most a quarter of either, at least 1."""
    return max((p for p in range(1, min(high, wide) // 4 + 1) if gcd(high, wide) % p == 0), default=1)
