"""Helpers for image models that are specified by a depth, such as ``resnet:20`` and ``vit:6``."""

from __future__ import annotations

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
