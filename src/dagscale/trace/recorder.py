"""Records what an eager forward does: one node an operator, linked by the storages that signals live in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from dagscale.errors import TraceError
from dagscale.graph import Layer
from dagscale.trace import ops as _families  # noqa: F401  fills OPS
from dagscale.trace.meaning import OPS, Kind, Meaning


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
    dim: int | None = None
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
        view=returns_alias and not written,
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
_IGNORED = frozenset({"prim.device", "prim.layout", "aten.sym_size", "aten.sym_stride", "aten.record_stream"})


@dataclass
class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that records every operator whose result depends on an input or a parameter.

    Values are told apart by the storage they live in: a view shares its base's storage, so a write through
    any view is seen by all. Weak references keep a storage's address from being reused.

    Attributes:
        nodes: the record, in execution order, which is topological.
        unknown: operators that stand in no registry → the modules that ran them.
        path: qualified names of the modules that are running, the innermost last.
        on_write: called with a tensor before an operator writes to it.
        last_signal: the last node whose value depended on an input.
    """

    nodes: list[Node] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    path: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._writer: dict[int, int] = {}
        self._alive: dict[int, StorageWeakRef] = {}
        self._operators: dict[Any, Operator] = {}
        self._spans: dict[int, list[tuple[int, int, int]]] = {}
        self.on_write: Any = None
        self.last_signal: Node | None = None

    # -- sources ------------------------------------------------------------------------------------------

    def add_input(self, tensor: Tensor, name: str) -> None:
        """Mark ``tensor`` as a model input: the start of paths."""
        discrete = not (tensor.is_floating_point() or tensor.is_complex())
        node = self._new("source", "input", signal=tensor.dtype is not torch.bool, discrete=discrete, name=name)
        node.shape, node.numel = tuple(tensor.shape), tensor.numel()
        self._set(tensor, node.id)

    def add_parameter(self, name: str, *versions: Tensor) -> None:
        """Mark ``versions`` (the real tensor, and its fake one) as the parameter ``name``.

        Parameters may be views of one storage: then each owns its span of it.
        """
        node = self._new("source", "parameter", name=name)
        for tensor in versions:
            node.shape, node.numel = tuple(tensor.shape), tensor.numel()
            start = int(tensor.storage_offset())
            self._spans.setdefault(self._key(tensor), []).append((start, start + tensor.numel(), node.id))
            self._set(tensor, node.id)

    def _new(self, kind: Any, op: str, **attributes: Any) -> Node:
        node = Node(len(self.nodes), kind, op, **attributes)
        self.nodes.append(node)
        return node

    # -- storages -----------------------------------------------------------------------------------------

    def _key(self, tensor: Tensor) -> int:
        try:
            return int(tensor.untyped_storage()._cdata)
        except (NotImplementedError, RuntimeError):  # sparse and other storage-less tensors
            return id(tensor)

    def _set(self, tensor: Tensor, node: int) -> None:
        try:
            storage = tensor.untyped_storage()
            key = int(storage._cdata)
            if key not in self._alive:
                self._alive[key] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        except (NotImplementedError, RuntimeError):
            key = id(tensor)
            self._alive[key] = tensor  # type: ignore[assignment]
        self._writer[key] = node

    def lookup(self, tensor: Tensor) -> int | None:
        """The node that last wrote ``tensor``'s storage, or None for constants."""
        key = self._key(tensor)
        node = self._writer.get(key)
        if node is not None and self.nodes[node].op == "parameter" and len(spans := self._spans.get(key, ())) > 1:
            offset = tensor.storage_offset()
            for start, stop, owner in spans:
                if start <= offset < stop:
                    return owner
        return node

    # -- the record ---------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operator = self._operators.get(func)
        if operator is None:
            operator = self._operators[func] = describe(func)
        if operator.name in _IGNORED:
            return func(*args, **kwargs)
        if operator.written and self.on_write is not None:
            named = dict(zip(operator.arguments, args, strict=False)) | kwargs
            for argument in operator.written:
                for tensor in tensors_in(named.get(argument)):
                    self.on_write(tensor)
        out = func(*args, **kwargs)
        if operator.view:
            self._alias(args, out)
        else:
            self._record(operator, dict(zip(operator.arguments, args, strict=False)) | kwargs, out)
        return out

    def _alias(self, args: Any, out: Any) -> None:
        """A view: its storage is known, unless the view was made from a stand-in for the real tensor."""
        base = next(tensors_in(args), None)
        if base is None:
            return
        node = self.lookup(base)
        if node is None:
            return
        for tensor in tensors_in(out):
            if self._key(tensor) not in self._writer:
                self._set(tensor, node)

    def _record(self, operator: Operator, named: dict[str, Any], out: Any) -> None:
        known: dict[str, list[tuple[int, Tensor]]] = {}
        for argument, value in named.items():
            for tensor in tensors_in(value):
                source = self.lookup(tensor)
                if source is not None:
                    known.setdefault(argument, []).append((source, tensor))
        results = list(tensors_in(out))
        if not known:
            for tensor in results:  # a constant may overwrite a storage that held a signal
                key = self._key(tensor)
                if key in self._writer and operator.written:
                    del self._writer[key]
            return
        meaning = operator.meaning
        if meaning is None:
            meaning = UNKNOWN
        elif not isinstance(meaning, Meaning):
            meaning = meaning(named)
        node = self._interpret(operator, meaning, known, results)
        targets = results + [t for a in operator.written for t in tensors_in(named.get(a))]
        if node is None:
            if meaning.kind == "constant" and operator.written:
                for tensor in targets:
                    self._writer.pop(self._key(tensor), None)
            return
        if meaning.kind == "norm":
            targets = results  # running statistics carry no signal on
        for tensor in targets:
            if tensor.is_floating_point() or tensor.is_complex() or node.discrete or not node.signal:
                self._set(tensor, node.id)

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
        if meaning.bias:
            for n, t in known.get(meaning.bias, ()):
                if nodes[n].signal:  # baddbmm adds a signal: a sum of it and the contraction
                    signals.append((n, t))
                else:
                    roles.append((n, "bias"))
        named = {n for n, _ in roles}
        for values in known.values():
            for n, _ in values:
                if not nodes[n].signal and n not in named:
                    roles.append((n, ""))
                    named.add(n)
        if not signals and not roles:
            return None
        result = next((t for t in results if t.is_floating_point() or t.is_complex()), None)
        discrete = bool(signals) and result is None and all(nodes[n].discrete for n, _ in signals)
        if signals and result is None and not discrete:
            return None  # comparisons and indices derived from a signal: no gradient passes
        if discrete and results and results[0].dtype is torch.bool:
            return None
        if kind == "unknown" and signals:
            self.unknown.setdefault(operator.name, self.path[-1] if self.path else "")
        head = result if result is not None else (results[0] if results else None)
        node = self._new(
            kind,
            operator.name.partition(".")[2].rstrip("_"),
            module=self.path[-1] if self.path else "",
            parents=tuple(n for n, _ in signals),
            whole=tuple(t.numel() >= nodes[n].numel for n, t in signals),
            params=tuple(n for n, _ in roles),
            places=tuple(r for _, r in roles),
            layer=layer if kind == "weight" else None,
            dim=meaning.dim,
            elementwise=meaning.elementwise,
            signal=bool(signals),
            discrete=discrete,
            shape=tuple(head.shape) if head is not None else (),
            numel=head.numel() if head is not None else 0,
        )
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
