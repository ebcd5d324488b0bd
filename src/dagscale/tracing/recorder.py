"""Records what an eager forward does: one node an operator, linked by the storages that signals live in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from dagscale.errors import TraceError
from dagscale.graph import Layer
from dagscale.tracing.meaning import OPS, Kind, Meaning, Spelling
from dagscale.tracing.memory import Memory, Region, region_of

Place = Literal["weight", "bias", ""]


@dataclass(slots=True)
class Node:
    """One recorded value.

    Attributes:
        kind: its operator's meaning, or ``source`` for model inputs and parameters.
        parents: the nodes whose values carry signal into it, in argument order, repeats kept.
        whole: for each parent, whether all of its elements were read.
        params: node ids of parameter-derived values it uses; first the one in the weight's place.
        places: for each of ``params``, the argument's role: ``weight``, ``bias`` or ``""``.
        signal: whether it depends on a model input's values.
        discrete: an integer signal: token ids.
        axes: of a concat, the (stride, number) of its parts if they are equally long; of a pool, the
            (stride, size) of each dimension it adds up over.
        via: for each parent, the nodes passed on the way from it, where reduction has melted them in.
        name: the parameter's name for parameter sources.
    """

    id: int
    kind: Kind | str
    op: str
    module: str = ""
    parents: tuple[int, ...] = ()
    whole: tuple[bool, ...] = ()
    params: tuple[int, ...] = ()
    places: tuple[Place, ...] = ()
    layer: Layer | None = None
    axes: tuple[tuple[int, int], ...] = ()
    via: tuple[tuple[int, ...], ...] = ()
    elementwise: bool = False
    signal: bool = False
    discrete: bool = False
    name: str = ""
    shape: tuple[int, ...] = ()
    numel: int = 0


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
_DEVICE = torch.ops.prim.device.default
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
        if func is _DEVICE and isinstance(args[0], FakeTensor):  # the commonest call by far
            return args[0].fake_device
        kwargs = kwargs or {}
        operator = self._operators.get(func)
        if operator is None:
            operator = self._operators[func] = describe(func)
        if operator.name in _IGNORED:
            return func(*args, **kwargs)
        if operator.view:
            out = func(*args, **kwargs)
            self._alias(args, out)
            return out
        named = dict(zip(operator.arguments, args, strict=False)) | kwargs
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
        return out

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
        written = [t for a in operator.written for t in tensors_in(named.get(a))]
        node = self._interpret(operator, meaning, known, results) if known else None
        if node is None:
            if not known or meaning.kind == "constant":
                for tensor in written:  # a constant overwrites what was there
                    self.memory.write(tensor, None)
            return
        parts: list[tuple[Region, int | None]] = []
        if meaning.kind == "concat" and meaning.dims:
            parts = self._lay_out(node, named[meaning.data[0]], results[0], meaning.dims[0])
        elif meaning.kind == "pool" and meaning.dims:
            pooled = named[meaning.data[0]]
            node.axes = tuple((pooled.stride(d), pooled.shape[d]) for d in meaning.dims if pooled.dim())
        if meaning.kind == "norm":
            written = []  # running statistics carry no signal on
        for tensor in (*results, *(t for t in written if all(t is not r for r in results))):
            if tensor.is_floating_point() or tensor.is_complex() or node.discrete or not node.signal:
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
        if meaning.kind == "constant":
            return None
        nodes = self.nodes
        data_names: Iterable[str] = meaning.data or known
        data = [(n, t) for a in data_names for n, t in known.get(a, ())]
        signals = [(n, t) for n, t in data if nodes[n].signal]
        roles: list[tuple[int, Place]] = []
        kind: Kind = meaning.kind
        layer = meaning.layer
        if kind == "weight":
            weights = [(n, t) for n, t in known.get(meaning.weight, ())]
            moving = [(n, t) for n, t in weights if nodes[n].signal]
            if moving and signals:
                kind, layer, signals = "product", None, signals + moving
            elif moving:
                roles += [(n, "weight") for n, _ in data]
                signals, layer = moving, meaning.swapped
                if not data:
                    kind, layer = "pass", None
            else:
                roles += [(n, "weight") for n, _ in weights]
                if not weights:
                    kind, layer = "pass", None  # a fixed linear map
                elif meaning.data != ("indices",):
                    self._check_dtypes(signals, weights)
        elif meaning.weight:
            roles += [(n, "weight") for n, _ in known.get(meaning.weight, ())]
        added: list[tuple[int, Tensor]] = []
        if meaning.bias:
            for n, t in known.get(meaning.bias, ()):
                if nodes[n].signal:  # addmm and baddbmm add a signal to the contraction
                    added.append((n, t))
                else:
                    roles.append((n, "bias"))
        named = {n for n, _ in roles}
        for values in known.values():
            for n, _ in values:
                if not nodes[n].signal and n not in named:
                    roles.append((n, ""))
                    named.add(n)
        if not signals and not roles and not added:
            return None
        result = next((t for t in results if t.is_floating_point() or t.is_complex()), None)
        discrete = bool(signals) and result is None and all(nodes[n].discrete for n, _ in signals)
        if signals and result is None and not discrete:
            return None  # comparisons and indices derived from a signal: no gradient passes
        if discrete and results and results[0].dtype is torch.bool:
            return None
        if kind == "unknown" and signals:
            self.unknown.setdefault(operator.name, self._module)
        head = result if result is not None else (results[0] if results else None)
        name = operator.name.partition(".")[2].rstrip("_")
        node = self._new(
            kind,
            name,
            module=self._module,
            parents=tuple(n for n, _ in signals),
            whole=tuple(t.numel() >= nodes[n].numel for n, t in signals),
            params=tuple(n for n, _ in roles),
            places=tuple(r for _, r in roles),
            layer=layer if kind == "weight" else None,
            elementwise=meaning.elementwise,
            signal=bool(signals),
            discrete=discrete,
            shape=tuple(head.shape) if head is not None else (),
            numel=head.numel() if head is not None else 0,
        )
        if added:
            inner = node
            terms = [(inner.id, True)] if inner.signal else []
            terms += [(n, t.numel() >= nodes[n].numel) for n, t in added]
            node = self._new(
                "sum",
                name,
                module=self._module,
                parents=tuple(n for n, _ in terms),
                whole=tuple(whole for _, whole in terms),
                elementwise=True,
                signal=True,
                shape=inner.shape,
                numel=inner.numel,
            )
            if not inner.signal:
                node.params, node.places = (inner.id,), ("",)
        if node.signal:
            self.last_signal = node
        return node

    def _check_dtypes(self, signals: list[tuple[int, Tensor]], weights: list[tuple[int, Tensor]]) -> None:
        """Fake tensors multiply any two types; the real forward would raise."""
        for _, x in signals:
            for n, weight in weights:
                if x.dtype != weight.dtype and x.dtype in _CHECKED:
                    name = self.nodes[n].name or self.path[-1]
                    mend = (
                        "give floating-point values (x.float()); integer token ids belong to an embedding"
                        if not x.is_floating_point()
                        else f"cast the input (x.to({weight.dtype})) or the model"
                    )
                    raise TraceError(f"{name!r} is {weight.dtype} and meets a {x.dtype} signal: {mend}")


_CHECKED = frozenset({torch.int64, torch.int32, torch.int16, torch.uint8, torch.float32, torch.float64,
                      torch.float16, torch.bfloat16})  # fmt: skip


def module_names(model: nn.Module) -> dict[int, str]:
    """``id(module)`` → its first qualified name."""
    return {id(module): name for name, module in reversed(list(model.named_modules()))}
