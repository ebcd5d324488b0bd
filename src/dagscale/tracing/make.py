"""Tracing: an unmodified ``nn.Module`` and example inputs → a :class:`~dagscale.graph.model.Graph`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dagscale.errors import DagscaleError, TraceError
from dagscale.graph import Graph, Parameter
from dagscale.tracing import ops as _families  # noqa: F401  fills the op registry before a user adds to it
from dagscale.tracing.meaning import Meaning, rule, spelling

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Meaning", "rule", "spelling", "trace"]


def trace(model: nn.Module, example_inputs: Any, *, select: Callable[[Any], Any] | None = None) -> Graph:
    """Read the computational graph of ``model`` from one eager forward.

    The forward runs on fake tensors (no arithmetic, no memory). Where the model looks at values, it runs for
    real instead, and a note in ``graph.notes`` says that only the branch taken was seen. Either way the model
    comes back as it was: parameters, buffers, hooks, attributes, training flags, random state.

    A branch multiplied by the number 0, or one that no output depends on, is not part of the graph: neither
    a value nor a gradient passes it. Its parameters stand in ``graph.parameters`` as not reached.

    Args:
        model: any module, on any device, ``meta`` included, in the mode it is to be trained in.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments; on the
            model's device, with a batch dimension if the model wants one. Values do not matter unless the
            model looks at them.
        select: which part of the forward's return value counts as output; all tensors in it by default.

    Returns:
        The graph. Vertices are where signals enter, meet, part and leave; edges carry the ops in between.

    Raises:
        TraceError: if inputs and forward do not fit, lie on different devices, there are no parameters, or no
            output depends on an input.
        ForwardError: if the forward itself raises; the user's exception is its ``__cause__``.
    """
    from torch import nn

    from dagscale.tracing import forward
    from dagscale.tracing.recorder import Recorder
    from dagscale.tracing.reduction import reduce

    if isinstance(model, nn.Module):
        model = forward.unwrapped(model)
    args, kwargs = forward.bind_inputs(model, example_inputs)
    forward.check_devices(model, (args, kwargs))
    try:
        model = forward.materialised(model, args, kwargs)
    except Exception as error:
        raise forward.forward_error(model, None, error, (args, kwargs)) from error
    names: dict[int, list[str]] = {}
    owned: dict[str, nn.Parameter] = {}  # tied parameters once, under their first name
    for name, parameter in model.named_parameters(remove_duplicate=False):
        name = forward.plain_name(name)
        if names.setdefault(id(parameter), []) == []:
            owned[name] = parameter
        names[id(parameter)].append(name)
    if not names:
        raise TraceError(f"{type(model).__name__} has no parameters: nothing to initialise or to train")
    choose = select if select is not None else lambda value: value
    notes: list[str] = []
    recorder = Recorder()
    try:
        outputs = forward.run_fake(recorder, model, owned, args, kwargs, choose)
    except DagscaleError:
        raise
    except Exception as fake_error:
        if any(p.is_meta or forward.is_sharded(p) for p in owned.values()):
            raise forward.forward_error(model, recorder, fake_error, (args, kwargs)) from fake_error
        recorder = Recorder()
        try:
            outputs = forward.run_real(recorder, model, owned, args, kwargs, choose)
        except DagscaleError:
            raise
        except Exception as error:
            raise forward.forward_error(model, recorder, error, (args, kwargs)) from error
        notes.append(forward.looks_at_values(fake_error))
    if not any(recorder.nodes[n].signal for n in outputs):
        last = recorder.last_signal
        where = f"{last.op!r} in {last.module or 'the model'}" if last is not None else "none did"
        raise TraceError(
            "no path from input to output: no output depends on an input's values "
            f"(last operator that did: {where}); return what is computed from the input"
        )
    for op, module in recorder.unknown.items():
        notes.append(
            f"unknown operator {op} in {module or 'the model'}: taken as a plain dependency; "
            "tell its meaning with rule or spelling of dagscale.tracing"
        )
    parameters = [
        Parameter(name, tuple(p.shape), tuple(names[id(p)][1:]), True, p.requires_grad) for name, p in owned.items()
    ]
    return reduce(recorder.nodes, outputs, parameters, notes)
