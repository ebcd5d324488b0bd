"""Records what an eager forward does: one node an operator, linked by the storages that signals live in."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dagscale.interrupts import Interrupted
from dagscale.tracing._torch import (
    DEVICE_OF,
    TorchDispatchMode,
    apply_code,
    constant_of,
    device_of,
    gradient_taken,
    is_fake,
)
from dagscale.tracing.meaning import OPS, Meaning, Spelling
from dagscale.tracing.memory import Memory, Region, part_of, region_of
from dagscale.tracing.reading import (
    Known,
    Node,
    Reading,
    Value,
    floating,
    no_gradient_passes,
    read_call,
    read_everything,
)

__all__ = ["Node", "Operator", "Recorder", "describe", "tensors_in"]


@dataclass(slots=True)
class Operator:
    """What the schema of one operator overload says, looked up once."""

    name: str
    arguments: tuple[str, ...]
    written: tuple[str, ...]
    view: bool
    meaning: Any


def describe(func: Any) -> Operator:
    """Read an overload's schema: argument names, which are written to, whether it is a pure view."""
    schema = func._schema
    written = tuple(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    returns_alias = bool(schema.returns) and all(
        r.alias_info is not None and not r.alias_info.is_write for r in schema.returns
    )
    name = schema.name.replace("::", ".")
    return Operator(
        name=name,
        arguments=tuple(a.name for a in schema.arguments),
        written=written,
        view=(returns_alias and not written) or name in _VIEWS,
        meaning=OPS.get(name),
    )


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of one argument or result: a tensor, or (nested) lists and tuples of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


UNKNOWN = Meaning("unknown")
_VIEWS = frozenset(
    f"aten.{name}"
    for name in ("_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "as_strided_", "t_",
                 "transpose_", "squeeze_", "unsqueeze_", "swapaxes_", "swapdims_", "detach_")
)  # fmt: skip
"""Operators whose results share their argument's storage though the schema says otherwise, or calls it writing."""
_IGNORED = frozenset({"prim.device", "prim.layout", "aten.sym_size", "aten.sym_stride", "aten.record_stream"})


@dataclass
class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that records every operator whose result depends on an input or a parameter.

    Values are told apart by where they live (:class:`~dagscale.tracing.memory.Memory`), so that a write through
    a view is seen by all.

    Attributes:
        nodes: the record, in execution order, which is topological.
        unknown: operators that stand in no registry → the modules that ran them.
        path: qualified names of the modules that are running, the innermost last.
        on_write: called with a tensor before an operator writes to it.
        last_signal: the last node whose value depended on an input.
        failed: the last operator that raised, and the module that ran it.
        finished: whether the forward returned.
        waiting: signals that ask to stop; the next operator does.
        made: gets a reference to each result, if it is a list.
        elsewhere: modules that ran in another thread, unseen.
        drew: whether the forward has drawn random numbers.
        numbers: ``id`` of a tensor that stands for a buffer of one entry → that tensor, and what the buffer holds.
        looked: whether the forward has asked for the value of a floating number that depends on the signal.
        cut: modules that computed without gradients → whether re-entrant checkpointing was why.
    """

    nodes: list[Node] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    path: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory = Memory(self._join)
        self._operators: dict[Any, Operator] = {}
        self.on_write: Any = None
        self.last_signal: Node | None = None
        self.failed: tuple[str, str] | None = None
        self.finished = False
        self.waiting: Sequence[int] = ()
        self.made: list[weakref.ref[Tensor]] | None = None
        self.cut: dict[str, bool] = {}
        self.elsewhere: list[str] = []
        self.drew = False
        self.numbers: dict[int, tuple[Tensor, float]] = {}
        self.looked = False
        self._gradients: dict[int, Node | None] = {}

    # -- sources ------------------------------------------------------------------------------------------

    def add_input(self, tensor: Tensor, name: str) -> None:
        """Mark ``tensor`` as a model input: the start of paths."""
        discrete = not (tensor.is_floating_point() or tensor.is_complex())
        node = self._new("source", "input", signal=tensor.dtype is not torch.bool, discrete=discrete, name=name)
        node.shape, node.numel = tuple(tensor.shape), tensor.numel()
        self.memory.write(tensor, node.id)

    def add_parameter(self, name: str, *versions: Tensor) -> None:
        """Mark ``versions`` (the real tensor, and its fake one) as the parameter ``name``.

        Parameters may be views of one storage: then each owns its part of it.
        """
        node = self._new("source", "parameter", name=name)
        for tensor in versions:
            node.shape, node.numel = tuple(tensor.shape), tensor.numel()
            self.memory.write(tensor, node.id)

    def _new(self, kind: Any, op: str, **attributes: Any) -> Node:
        node = Node(len(self.nodes), kind, op, **attributes)
        self.nodes.append(node)
        return node

    def _join(self, nodes: tuple[int, ...], tensor: Tensor) -> int:
        """A node for what several nodes wrote side by side."""
        signals = tuple(n for n in nodes if self.nodes[n].signal)
        others = tuple(n for n in nodes if not self.nodes[n].signal)
        return self._new(
            "concat",
            "join",
            module=self._module,
            parents=signals,
            whole=(False,) * len(signals),
            params=others,
            places=("",) * len(others),
            signal=bool(signals),
            discrete=bool(signals) and all(self.nodes[n].discrete for n in signals),
            shape=tuple(tensor.shape),
            numel=tensor.numel(),
        ).id

    @property
    def _module(self) -> str:
        return self.path[-1] if self.path else ""

    # -- the record ---------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE_OF and is_fake(args[0]):  # the commonest call by far
            return device_of(args[0])
        kwargs = kwargs or {}
        operator = self._operators.get(func)
        if operator is None:
            operator = self._operators[func] = describe(func)
        if operator.name in _IGNORED:
            return func(*args, **kwargs)
        if self.waiting:
            raise Interrupted
        if operator.view:
            out = func(*args, **kwargs)
            self._alias(args, out)
            self._keep_track(args, out)
            return out
        named = dict(zip(operator.arguments, args, strict=False)) | kwargs
        gradient = gradient_taken()
        if gradient is not None:
            out = func(*args, **kwargs)
            self._differentiate(gradient, [*tensors_in(out), *_written(operator, named)])
            self._keep_track(args, out)
            return out
        known = self._known(named)
        meaning = operator.meaning if operator.meaning is not None else UNKNOWN
        if known and not isinstance(meaning, (Meaning, Spelling)):
            meaning = meaning(named)
        if known and isinstance(meaning, Spelling):
            with self:
                out = meaning.function(*args, **kwargs)
                return named[operator.written[0]].copy_(out) if operator.written else out
        if operator.written and self.on_write is not None:
            for argument in operator.written:
                for tensor in tensors_in(named.get(argument)):
                    self.on_write(tensor)
        try:
            out = func(*args, **kwargs)
        except Exception:
            self.failed = (operator.name, self._module)
            raise
        self._record(operator, meaning, named, known, out)
        self._keep_track(args, out)
        self._follow(operator, named, known, out)
        return out

    def _follow(
        self, operator: Operator, named: dict[str, Any], known: dict[str, list[tuple[int, Tensor]]], out: Any
    ) -> None:
        """Keep up what is known of numbers: a cast has the same one, what is written to has another."""
        if operator.name == "aten._local_scalar_dense":
            self.looked = self.looked or (bool(known) and isinstance(out, float))
        if not self.numbers:
            return
        for tensor in _written(operator, named):
            self.numbers.pop(id(tensor), None)
        if operator.name == "aten._to_copy" and isinstance(out, Tensor):
            held = self.numbers.get(id(named.get("self")))
            if held is not None:
                self.numbers[id(out)] = (out, held[1])

    def _keep_track(self, args: Any, out: Any) -> None:
        """Of what is new among the results: in-place operators give back what they were given."""
        if self.made is not None:
            given = set(map(id, tensors_in(args)))
            self.made += [weakref.ref(tensor) for tensor in tensors_in(out) if id(tensor) not in given]

    def _differentiate(self, gradient: int, results: Sequence[Tensor]) -> None:
        """What autograd works out for a forward that asks for a gradient is made of the signal that it is taken of, the
        last one before it begins. That weights are used on the way back too says nothing of where they stand."""
        if gradient not in self._gradients:
            of = self.last_signal
            self._gradients[gradient] = of and self._new(
                "pass", "gradient", module=self._module, parents=(of.id,), whole=(True,), signal=True
            )
        node = self._gradients[gradient]
        for tensor in results:
            if node is not None and (tensor.is_floating_point() or tensor.is_complex()):
                node.shape, node.numel = tuple(tensor.shape), tensor.numel()
                self.memory.write(tensor, node.id)
                self.last_signal = node

    def _alias(self, args: Any, out: Any) -> None:
        """A view: its storage is known, unless the view was made from a stand-in for the real tensor."""
        base = next(tensors_in(args), None)
        if base is None or base not in self.memory:
            return
        for tensor in tensors_in(out):
            if tensor not in self.memory:
                self.memory.write(tensor, self.memory.read(base))

    def _known(self, named: dict[str, Any]) -> dict[str, list[tuple[int, Tensor]]]:
        """Argument → (node, tensor) for each of its tensors that depends on an input or a parameter."""
        known: dict[str, list[tuple[int, Tensor]]] = {}
        for argument, value in named.items():
            for tensor in tensors_in(value):
                source = self.memory.read(tensor)
                if source is not None:
                    known.setdefault(argument, []).append((source, tensor))
        return known

    def _record(
        self,
        operator: Operator,
        meaning: Any,
        named: dict[str, Any],
        known: dict[str, list[tuple[int, Tensor]]],
        out: Any,
    ) -> None:
        results = list(tensors_in(out))
        written = _written(operator, named)
        node = self._interpret(operator, meaning, known, results) if known else None
        carried = False
        if known and not torch.is_grad_enabled():
            self._note_cut(known)
            if node is None:
                node = self._carried_on(operator, meaning, known, results)
                carried = node is not None
        if node is None:
            if not known or meaning.kind in ("constant", "flat"):
                for tensor in written:  # a constant overwrites what was there
                    self.memory.write(tensor, None)
            return
        if not node.signal and operator.name == "aten.add":
            node.added = _number(named)
        if node.signal and operator.name in FACTORS and len(node.parents) == 1 and not node.params:
            node.factor = self._factor(operator, named)
        parts: list[tuple[Region, int | None]] = []
        if meaning.kind == "concat" and meaning.dims:
            parts = self._lay_out(node, named[meaning.data[0]], results[0], meaning.dims[0])
        elif meaning.kind == "pool" and meaning.dims:
            pooled = named[meaning.data[0]]
            node.axes = tuple((pooled.stride(d), pooled.shape[d]) for d in meaning.dims if pooled.dim())
        if meaning.kind == "norm":
            written = []  # running statistics carry no signal on
        for tensor in (*results, *(t for t in written if all(t is not r for r in results))):
            if carried or tensor.is_floating_point() or tensor.is_complex() or node.discrete or not node.signal:
                self.memory.write(tensor, node.id, parts)

    def _lay_out(self, node: Node, tensors: list[Tensor], out: Tensor, dim: int) -> list[tuple[Region, int | None]]:
        """Where the parts of a concatenation lie in its result."""
        stacked = out.dim() > tensors[0].dim()
        tensors = [t for t in tensors if stacked or t.dim() == out.dim()]  # cat leaves out legacy empty ones
        lengths = [1 if stacked else t.shape[dim] for t in tensors]
        if len(set(lengths)) == 1:
            node.axes = ((out.stride(dim) * lengths[0], len(tensors)),)
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        return [
            (region_of(out, dim, start, length), self.memory.read(t))
            for t, start, length in zip(tensors, starts, lengths, strict=True)
        ]

    def _interpret(
        self,
        operator: Operator,
        meaning: Meaning,
        known: dict[str, list[tuple[int, Tensor]]],
        results: list[Tensor],
    ) -> Node | None:
        """Make the node for one call, or None if its result is a constant."""
        if meaning.kind in ("constant", "flat"):
            return None
        reading = read_call(meaning, self._values(known))
        if reading.is_constant or no_gradient_passes(reading, results, meaning.code):
            return None
        if reading.kind == "unknown" and reading.signals:
            self.unknown.setdefault(operator.name, self._module)
        if reading.layer is not None and len(reading.signals) > 1:
            reading = replace(reading, signals=(self._multiplied(operator, reading.signals),))
        node = self._node(operator, reading, results, meaning.elementwise)
        node = self._plus(node, reading.added) if reading.added else node
        if node.signal:
            self.last_signal = node
        return node

    def _values(self, known: dict[str, list[tuple[int, Tensor]]]) -> Known:
        return {argument: [(self.nodes[n], t) for n, t in values] for argument, values in known.items()}

    def _node(self, operator: Operator, reading: Reading, results: list[Tensor], elementwise: bool) -> Node:
        result = floating(results)
        head = result if result is not None else next(iter(results), None)
        return self._new(
            reading.kind,
            operator.name.partition(".")[2].rstrip("_"),
            module=self._module,
            parents=tuple(node.id for node, _ in reading.signals),
            whole=tuple(t.numel() >= node.numel for node, t in reading.signals),
            parts=tuple(None if t.numel() >= node.numel else part_of(t) for node, t in reading.signals),
            params=tuple(node.id for node, _ in reading.roles),
            places=tuple(place for _, place in reading.roles),
            layer=reading.layer,
            elementwise=elementwise,
            signal=bool(reading.signals),
            discrete=bool(reading.signals) and result is None and all(node.discrete for node, _ in reading.signals),
            shape=tuple(head.shape) if head is not None else (),
            numel=head.numel() if head is not None else 0,
        )

    def _multiplied(self, operator: Operator, signals: tuple[Value, ...]) -> Value:
        """The products of several signals' entries, which a layer reads."""
        node = self._new(
            "product",
            operator.name.partition(".")[2],
            module=self._module,
            parents=tuple(node.id for node, _ in signals),
            whole=tuple(t.numel() >= node.numel for node, t in signals),
            signal=True,
            shape=tuple(signals[0][1].shape),
            numel=signals[0][1].numel(),
        )
        return node, signals[0][1]

    def _plus(self, inner: Node, added: tuple[Value, ...]) -> Node:
        """The sum of a contraction and the signals that it adds."""
        terms = [(inner.id, True)] if inner.signal else []
        terms += [(node.id, t.numel() >= node.numel) for node, t in added]
        return self._new(
            "sum",
            inner.op,
            module=self._module,
            parents=tuple(n for n, _ in terms),
            whole=tuple(whole for _, whole in terms),
            params=() if inner.signal else (inner.id,),
            places=() if inner.signal else ("",),
            elementwise=True,
            signal=True,
            shape=inner.shape,
            numel=inner.numel,
        )

    def _factor(self, operator: Operator, named: dict[str, Any]) -> float:
        """The number that a product of one signal multiplies it by; 0 where nobody knows it."""
        one, other = named.get("self"), named.get("other")
        if isinstance(other, Tensor) and self.memory.read(other) is not None:
            if "div" in operator.name:
                return 0.0  # a number over the signal
            one, other = other, one
        if self.looked:  # a number of Python's may be one of the signal's own
            return 0.0
        number: float | None
        if isinstance(other, (int, float)):
            number = float(other)
        elif id(other) in self.numbers:
            number = self.numbers[id(other)][1]
        else:
            number = None if self.drew else constant_of(other)
        if number is None or not 0 < abs(number) < math.inf:
            return 0.0
        return 1 / number if "div" in operator.name else number

    # -- where dispatch and autograd part -------------------------------------------------------------------

    def _carried_on(
        self, operator: Operator, meaning: Meaning, known: dict[str, list[tuple[int, Tensor]]], results: list[Tensor]
    ) -> Node | None:
        """The node for a call whose result is a constant to dispatch, inside a custom function with signal or weights.

        A custom ``autograd.Function`` is written to give a gradient to what has none: a sign, a threshold, a
        rounding. What it computes from its arguments is carried on, values of any type.
        """
        if meaning.kind == "constant" or not results or not _in_custom_function():
            return None
        reading = read_everything(meaning, self._values(known))
        if reading.is_constant:
            return None
        node = self._node(operator, reading, results, elementwise=True)
        if node.signal:
            self.last_signal = node
        return node

    def _note_cut(self, known: dict[str, list[tuple[int, Tensor]]]) -> None:
        """Remember, once a module, what runs without gradients here: re-entrant checkpointing or plain ``no_grad``."""
        if self._module not in self.cut and known:
            self.cut[self._module] = _in_checkpoint()

    def forget(self) -> None:
        """Let go of every tensor; the nodes stay."""
        self.memory = Memory(self._join)
        self.numbers = {}
        self.on_write = None


def _written(operator: Operator, named: dict[str, Any]) -> list[Tensor]:
    """The tensors that a call writes to."""
    return [t for argument in operator.written for t in tensors_in(named.get(argument))]


FACTORS = frozenset({"aten.mul", "aten.mul_", "aten.div", "aten.div_"})
"""Operators that may multiply a signal by a number."""


def _number(named: dict[str, Any]) -> float:
    """The number that an addition adds to a tensor; 0 where it adds another tensor."""
    other = named.get("other")
    plain = isinstance(other, (int, float)) and named.get("alpha", 1) == 1
    return float(other) if plain else 0.0  # type: ignore[arg-type]


def _applied() -> Iterator[type]:
    """The custom functions whose forward runs now, the innermost first."""
    frame = sys._getframe(1)
    code = apply_code()
    while frame is not None:
        if frame.f_code is code:
            yield frame.f_locals["cls"]
        frame = frame.f_back  # type: ignore[assignment]


def _in_custom_function() -> bool:
    """Whether a custom function of someone else than PyTorch runs."""
    innermost = next(_applied(), None)
    return innermost is not None and not innermost.__module__.startswith("torch.")


def _in_checkpoint() -> bool:
    return any(function.__name__ == "CheckpointFunction" for function in _applied())
