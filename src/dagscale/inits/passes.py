"""One forward pass of the user's model, as inits run it to see what becomes of a draw."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from dagscale.errors import DagscaleError
from dagscale.tracing import forward
from dagscale.training.seeds import seeded


def outputs_of(model: nn.Module, inputs: Any, seed: int, mode: AbstractContextManager[Any] | None = None) -> Any:
    """What a model puts out under a seed, and under a mode that watches. The random state that it changes is not that
    of the user.

    Raises:
        ForwardError: if the forward raises.
    """
    args, kwargs = forward.bind_inputs(model, inputs)

    def run() -> Any:
        with seeded(seed), mode or nullcontext():
            return model(*args, **kwargs)

    try:
        with forward.plain_eager():
            return forward.without_record(run)
    except DagscaleError:
        raise
    except Exception as error:  # the forward is the user's
        raise forward.forward_error(model, None, error, inputs) from error
