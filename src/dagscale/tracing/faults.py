"""A forward that raised, told in one line: the operator, the module and the user's line it came from, and the mend."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dagscale.errors import ForwardError
from dagscale.shown import first_line, one_line, said
from dagscale.tracing._torch import UnsupportedOperator, needs_values, tree_leaves
from dagscale.tracing.recorder import Recorder


def forward_error(model: nn.Module, recorder: Recorder | None, error: Exception, inputs: Any) -> ForwardError:
    """The user's own exception, told in one line with the operator, the module and the line it came from."""
    place = _place(recorder, error)
    name = type(model).__name__
    if needs_values(error) and any(p.is_meta for p in model.parameters()):
        return ForwardError(
            f"the forward of {name} looks at values, which a model on meta does not have{place}: give it storage "
            "with model.to_empty(device='cpu') and initialise it, then trace"
        )
    text = first_line(error)
    integer = any(
        isinstance(leaf, Tensor) and not leaf.is_floating_point() and not leaf.is_complex()
        for leaf in tree_leaves(inputs)
    )
    if any(p.is_meta for p in model.parameters()) and isinstance(error, (NotImplementedError, UnsupportedOperator)):
        return ForwardError(
            f"the forward of {name} cannot run on meta: {text}{place}; give the operator a fake implementation "
            "(torch.library.register_fake), or the model storage: model.to_empty(device='cpu')"
        )
    hint = (
        "; the inputs hold integers: give floating-point values (x.float()) unless they feed an embedding"
        if integer and "type" in text
        else next((f"; {mend}" for told, mend in MENDS.items() if told in said(error)), "")
    )
    return ForwardError(f"the forward of {name} raised {type(error).__name__}: {text}{place}{hint}")


MENDS = {
    "more than 1 value per channel": "batch statistics need more: give 2 examples or more, and a batch size of 2 or "
    "more; if the last batch of a DataLoader is one example, give it drop_last=True",
    "Creating a new Tensor subclass": "while its operators are watched, PyTorch makes no tensor class by a call: write "
    "x.as_subclass(Mine) in place of Mine(x)",
}
"""Part of what PyTorch says → what to do about it."""


def looks_at_values(error: Exception) -> str:
    """The note on a forward that could not be run on fake tensors."""
    if needs_values(error):
        return (
            f"the forward looks at values, as an if, .item() or x[mask] do ({first_line(error)}): it was run for real, "
            "and only the branch taken was seen"
        )
    return f"the forward does not run on fake tensors ({one_line(error)}): run for real, only the branch taken was seen"


def _place(recorder: Recorder | None, error: Exception) -> str:
    """`` (operator in 'module', file:line)`` of the user's line that the exception came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if _is_the_users(Path(f.filename))]
    parts = []
    if recorder is not None and recorder.failed is not None and not recorder.finished:
        operator, module = recorder.failed
        parts.append(f"{operator} in {module!r}" if module else operator)
    if own:
        parts.append(f"{own[-1].filename}:{own[-1].lineno}")
    return f" ({', '.join(parts)})" if parts else ""


def _is_the_users(file: Path) -> bool:
    """Whether code of this file is the user's: neither torch's, nor Python's own contexts, nor this package's.

    The models that dagscale builds from a TARGET count as the user's.
    """
    package = Path(__file__).parent.parent
    own = package in file.parents and package / "models" not in file.parents
    return not own and file.name != "contextlib.py" and Path(torch.__file__).parent not in file.parents
