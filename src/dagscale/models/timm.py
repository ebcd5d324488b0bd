"""The space ``timm:NAME``: any model of timm with random weights; its own image size and head if none are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dagscale.errors import TargetError
from dagscale.models.options import CLASSES, INPUT, Option
from dagscale.models.targets import EXAMPLES, SPACES, Setting, Space
from dagscale.registry import did_you_mean

_declared: list[torch.library.Library] = []


def declare_torchvision_ops() -> None:
    """Let a torchvision that was built for another torch be imported: declare the operators it cannot load.

    Its Python layers work without them; only calling one of them (``nms``) fails. Does nothing where
    torchvision is missing or whole.
    """
    if _declared:
        return
    try:
        import torchvision  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        return
    except RuntimeError:  # operator torchvision::nms does not exist
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore
        _declared.append(library)


def _timm() -> Any:
    declare_torchvision_ops()
    try:
        import timm
    except ImportError as error:
        raise TargetError(f"timm cannot be imported ({error}); install it: pip install timm") from None
    return timm


def _read(name: str, options: Mapping[str, Any], setting: Setting) -> Callable[[], tuple[nn.Module, Any]]:
    timm = _timm()
    if not timm.is_model(name):
        raise TargetError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}")

    def make() -> tuple[nn.Module, Any]:
        given: dict[str, Any] = dict(options)
        if "classes" in setting.given:
            given["num_classes"] = setting.classes
        if "shape" in setting.given:
            given["in_chans"] = setting.shape[0]
        model = timm.create_model(name, pretrained=False, **given)
        return model, example(model, setting.shape if "shape" in setting.given else None)

    return make


def example(model: nn.Module, shape: tuple[int, ...] | None = None, device: str = "cpu") -> Tensor:
    """A batch of the size that a timm model is made for, or of ``shape``."""
    size = shape or tuple(model.pretrained_cfg["input_size"])  # type: ignore[index]
    return torch.randn(EXAMPLES, *size, device=device)


OPTIONS = (INPUT, CLASSES, Option("drop_rate", "float", "dropout", low=0, high=1))
SPACES.add("timm")(Space(read=_read, options=OPTIONS, parameters=1 << 33))
