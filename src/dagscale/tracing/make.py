"""Tracing: an unmodified ``nn.Module`` and example inputs → a :class:`~dagscale.graph.model.Graph`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dagscale.arguments import checked
from dagscale.errors import DagscaleError, TraceError
from dagscale.graph import Graph, Parameter
from dagscale.tracing import ops as _families  # noqa: F401  fills the op registry before a user adds to it
from dagscale.tracing.meaning import Meaning, rule, spelling

if TYPE_CHECKING:
    from torch import nn

    from dagscale.tracing.forward import Read
    from dagscale.tracing.reading import Node

__all__ = ["Meaning", "rule", "spelling", "trace"]


@checked(TraceError)
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
    from dagscale.interrupts import uninterrupted
    from dagscale.tracing import forward

    choose = select if select is not None else _everything
    with forward.ONE_AT_A_TIME:
        return uninterrupted(lambda waiting: _read(model, example_inputs, choose, waiting))


def _everything(value: Any) -> Any:
    return value


TRIES = 4
"""Further forwards of a model that leaves parts out at random."""
AT_RANDOM = "the forward leaves parts out at random: read from the one of several that left out the fewest"


def _read(model: nn.Module, example_inputs: Any, select: Callable[[Any], Any], waiting: Sequence[int]) -> Graph:
    """The graph of one forward; of one that draws random numbers and leaves parameters out, that which others show.

    Layers that are dropped in training (stochastic depth that is written with ``if``) are there in evaluation mode.
    """
    from dagscale.tracing import forward
    from dagscale.tracing.generators import repeatable

    def read() -> tuple[Graph, bool]:
        return _once(model, example_inputs, select, waiting)

    def left_out(graph: Graph) -> int:
        return sum(p.trainable and not p.reached for p in graph.parameters)

    graph, drew = read()
    if not drew or not left_out(graph):
        return graph
    graphs = [graph]
    for seed in range(TRIES):
        with repeatable(seed):
            graphs.append(read()[0])
    if len({tuple(p.reached for p in g.parameters) for g in graphs}) == 1:
        return graph
    with forward.evaluating(model):
        graphs.append(read()[0])
    best = min(graphs, key=left_out)
    return replace(best, notes=(*best.notes, AT_RANDOM))


def _once(
    model: nn.Module, example_inputs: Any, select: Callable[[Any], Any], waiting: Sequence[int]
) -> tuple[Graph, bool]:
    """The graph of one forward, and whether that has drawn random numbers."""
    from torch import nn

    from dagscale.tracing import forward
    from dagscale.tracing.reduction import reduce

    if isinstance(model, nn.Module):
        model = forward.unwrapped(model)
    args, kwargs = forward.bind_inputs(model, example_inputs)
    forward.check_devices(model, (args, kwargs))
    try:
        model = forward.materialised(model, args, kwargs)
    except DagscaleError:
        raise
    except Exception as error:
        raise forward.forward_error(model, None, error, (args, kwargs)) from error
    names: dict[int, list[str]] = {}
    owned: dict[str, nn.Parameter] = {}  # tied parameters once, under their first name
    for name, parameter in forward.named_parameters(model, tied=True):
        name = forward.plain_name(name)
        if names.setdefault(id(parameter), []) == []:
            owned[name] = parameter
        names[id(parameter)].append(name)
    if not names:
        raise TraceError(f"{type(model).__name__} has no parameters: nothing to initialise or to train")
    notes: list[str] = []
    recorder, read = forward.recorded(model, owned, args, kwargs, select, waiting, notes)
    nodes = recorder.nodes
    outputs = [*read.outputs, *hidden_outputs(nodes, read)]
    if not any(nodes[n].signal for n in outputs):
        last = recorder.last_signal
        where = f"{last.op!r} in {last.module or 'the model'}" if last is not None else "none did"
        raise TraceError(
            "no path from input to output: no output depends on an input's values "
            f"(last operator that did: {where}); return what is computed from the input, or, if an architecture's code "
            "says what is computed, take one whose operations lead from input to output"
        )
    for op, module in recorder.unknown.items():
        notes.append(
            f"unknown operator {op} in {module or 'the model'}: taken as a plain dependency; "
            "tell its meaning with rule or spelling of dagscale.tracing"
        )
    if read.passed_over:
        notes.append(f"passed over among the outputs, no tensor was found in it: {listed(read.passed_over)}")
    parameters = [
        Parameter(name, tuple(p.shape), tuple(names[id(p)][1:]), True, p.requires_grad) for name, p in owned.items()
    ]
    graph = reduce(nodes, outputs, parameters, notes)
    return replace(graph, notes=(*graph.notes, *differences(graph, read, recorder.cut))), recorder.drew


def hidden_outputs(nodes: list[Node], read: Read) -> list[int]:
    """Of the tensors inside objects that were returned, those that no other output depends on.

    A cache of keys and values is on the way to the logits and no output; a distribution's mean is one.
    """
    seen = ancestors(nodes, read.outputs)
    return [n for n in dict.fromkeys(read.hidden) if n not in seen]


def ancestors(nodes: list[Node], of: Iterable[int]) -> set[int]:
    """The nodes that ``of`` are computed from, themselves among them."""
    seen = set(of)
    stack = list(seen)
    while stack:
        node = nodes[stack.pop()]
        for before in (*node.parents, *node.params):
            if before not in seen:
                seen.add(before)
                stack.append(before)
    return seen


def differences(graph: Graph, read: Read, cut: Mapping[str, bool]) -> list[str]:
    """What autograd says otherwise than the graph of which parameters are reached, in a line each.

    A gradient that is zero by construction (of a part that is sliced away, of a branch times 0) is none.
    """
    lines = []
    trainable = [p for p in graph.parameters if p.trainable]
    if without := [p.name for p in trainable if p.reached and p.name not in read.reached]:
        why = (
            "re-entrant checkpointing, whose inputs ask for none: give checkpoint(..., use_reentrant=False)"
            if any(cut.values())
            else "no_grad, detach, or a function without a gradient is on the way"
        )
        lines.append(f"the signal passes, but no gradient reaches {listed(without)}: {why}")
    if read.custom and (unseen := [p.name for p in trainable if not p.reached and p.name in read.reached]):
        lines.append(
            f"a gradient reaches {listed(unseen)}, but no path leads through: it is zero, or passes a custom function "
            "that computes outside of PyTorch's operators"
        )
    return lines


def listed(names: Sequence[str], most: int = 4) -> str:
    """``a, b, c, d and 3 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
