"""Where a forward applies weights to signals: told before and after each such operator runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from dagscale.graph import Layer
from dagscale.tracing import forward
from dagscale.tracing._torch import TorchDispatchMode, gradient_taken, storage_key
from dagscale.tracing.meaning import Meaning


@dataclass(frozen=True)
class Use:
    """One application of a weight to a signal.

    Attributes:
        func, meaning, arguments: the operator, what it means, and what it is called with, by argument name.
        place: the argument that the weight is.
        names: the parameters that the weight is computed from.
        own: whether the weight is (a view of) a parameter itself.
    """

    func: Any
    meaning: Meaning
    arguments: Mapping[str, Any]
    place: str
    names: frozenset[str]
    own: bool

    @property
    def weight(self) -> Tensor:
        found: Tensor = self.arguments[self.place]
        return found

    @property
    def signals(self) -> dict[str, Tensor]:
        """The tensors that the weight is applied to, by argument."""
        places = dict.fromkeys((self.meaning.weight, *self.meaning.data))
        return {a: v for a in places if a != self.place and isinstance(v := self.arguments.get(a), Tensor)}

    @property
    def layer(self) -> Layer | None:
        """Its fan and kernel."""
        return self.meaning.layer if self.place == self.meaning.weight else self.meaning.swapped

    def kept(self, rows: int | None = None, *, bias: bool = True) -> Callable[[Tensor], Tensor]:
        """The layer as a function of its weight, on what enters it now, to be run again when that is long gone.

        Args:
            rows: only so many of what enters; None for all of it, which then need not have rows.
            bias: with the bias, as it will be then.
        """
        from dagscale.tracing.recorder import tensors_in

        entering = {a: v.detach() for a, v in self.signals.items()}
        fixed = dict(self.arguments) | {a: (v if rows is None else v[:rows]).clone() for a, v in entering.items()}
        added = fixed.get(self.meaning.bias)
        if not bias and isinstance(added, Tensor):
            fixed[self.meaning.bias] = torch.zeros_like(added).detach()

        def run(weight: Tensor) -> Tensor:
            with torch.no_grad():
                return next(tensors_in(self.func(**{**fixed, self.place: weight})))

        return run

    def moment(self) -> float:
        """Mean of ``|z|²`` over what the layer gives without its bias.

        Of ``E |z|²`` for independent entries of mean 0 and variance 1, if the weight is a parameter. The entries of a
        computed weight need not be independent (standardised rows cancel the input's mean): there, ``z`` as it is.
        """
        places = (self.meaning.weight, *self.meaning.data)
        probe = dict(self.arguments)
        for argument, value in self.arguments.items():
            if not isinstance(value, Tensor):
                continue
            if argument == self.meaning.bias:
                probe[argument] = torch.zeros_like(value)
            elif argument == self.place and self.own:
                probe[argument] = torch.ones_like(value)
            elif argument in places and (value.is_floating_point() or value.is_complex()) and self.own:
                probe[argument] = value.abs().square().to(value.dtype)
        out = self.func(**probe)
        z = out[0] if isinstance(out, (tuple, list)) else out
        z = z.to(torch.complex128 if z.is_complex() else torch.float64)
        return float((z.real if self.own else z.abs().square()).mean())


@dataclass(frozen=True, eq=False)
class Held:
    """What a model's state leads to, which forwards take for constants.

    Attributes:
        made_of: storage → the parameter that lies there; none for buffers and other tensors.
        tensors: all of them, so that no signal of a later forward gets the storage of one that is gone.
    """

    made_of: Mapping[int, frozenset[str]]
    tensors: tuple[Tensor, ...]


def held_by(model: nn.Module) -> Held:
    """Walk through the model's state."""
    tensors = tuple(forward.held_tensors(model))
    made_of: dict[int, frozenset[str]] = {storage_key(t): frozenset() for t in tensors}
    for name, parameter in forward.plain_parameters(model).items():
        made_of[storage_key(parameter)] = frozenset({name})
    made_of.pop(0, None)
    return Held(made_of, tensors)


class LayerCalls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells of every operator that applies a weight of ``model`` to a signal, in the order of the forward.

    What is computed from parameters, buffers and constants alone (``weight_norm``, weight standardisation, adapters,
    casts, encoded positions) is followed by its storage and kept for as long as the mode is.

    Args:
        model: whose forward runs under the mode.
        after: called with the use and with what the operator returned.
        held: what the model holds, where it is followed through many forwards, and the walk through its state costs.
        inputs: what the forward is given, which is no constant though the model holds it too, as Lightning's
            ``example_input_array``.
    """

    def __init__(
        self,
        model: nn.Module,
        after: Callable[[Use, Any], None] | None = None,
        held: Held | None = None,
        inputs: Any = (),
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from dagscale.tracing.recorder import Operator, describe

        self._after = after
        self._held = held_by(model) if held is None else held
        self._made_of = dict(self._held.made_of)
        self._own = {key for key, names in self._made_of.items() if names}
        for tensor in tree_leaves(inputs):
            if isinstance(tensor, Tensor) and storage_key(tensor) not in self._own:
                self._made_of.pop(storage_key(tensor), None)
        self._kept: list[Tensor] = []
        self._makers: dict[int, tuple[Any, Any, Any, int]] = {}
        self._describe = describe
        self._operators: dict[Any, Operator] = {}

    tables: frozenset[str] = frozenset()
    """Parameters whose rows count as constants though a signal chooses among them."""

    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Compiled parts of a model stay compiled under this mode: under any other, PyTorch gives up on them for good
        (from torch 2.5 on)."""
        return True

    def on_use(self, use: Use) -> None:
        """Called before the operator runs; a subclass may change the weight in place here. (A bound method given as a
        callback would be a cycle, in which the model lives on until the garbage collector comes.)"""

    def on_sum(self, parts: list[tuple[Tensor, frozenset[str] | None]]) -> None:
        """Called before signals and constants are added up, with what each is made of; None for a signal."""

    def now(self, weight: Tensor) -> Tensor:
        """A weight that the forward used, computed again from what the parameters hold now."""
        from dagscale.tracing.recorder import tensors_in

        made = self._makers.get(id(weight))
        if made is None:
            return weight
        func, args, kwargs, place = made
        args, kwargs = tree_map(lambda v: self.now(v) if isinstance(v, Tensor) else v, (args, kwargs))
        return list(tensors_in(func(*args, **kwargs)))[place]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from dagscale.tracing.recorder import tensors_in

        kwargs = kwargs or {}
        if not hasattr(func, "_schema") or gradient_taken() is not None:  # control flow, which is given functions
            return func(*args, **kwargs)
        operator = self._operators.get(func) or self._operators.setdefault(func, self._describe(func))
        named = dict(zip(operator.arguments, args, strict=False)) | kwargs
        made_of = {a: [self._made_of.get(storage_key(t)) for t in tensors_in(v)] for a, v in named.items()}
        sources = [names for found in made_of.values() for names in found]
        constant = None not in sources
        meaning = operator.meaning
        use = None
        if not constant and any(sources) and (callable(meaning) or getattr(meaning, "kind", "") == "weight"):
            meaning = meaning(named) if callable(meaning) else meaning
            if meaning.kind == "weight":
                places = {a: made_of[a][0] for a in (meaning.weight, *meaning.data) if made_of.get(a)}
                held = [(a, names) for a, names in places.items() if names]
                if len(held) == 1:
                    place, names = held[0]
                    use = Use(func, meaning, named, place, names, storage_key(named[place]) in self._own)
        table = use is not None and use.names <= self.tables
        if use is not None and not table:
            self.on_use(use)
        elif not constant and any(sources) and getattr(meaning, "kind", "") == "sum":
            given = (t for value in named.values() for t in tensors_in(value))
            self.on_sum(list(zip(given, sources, strict=True)))
        out = func(*args, **kwargs)
        if use is not None and self._after is not None:
            self._after(use, out)
        if use is not None and table:
            for tensor in tensors_in(out):
                self._made_of[storage_key(tensor)] = use.names
                self._kept.append(tensor)
        if constant:
            names = frozenset().union(*(found for found in sources if found))
            for place, tensor in enumerate(tensors_in(out) if names and not operator.written else ()):
                self._makers[id(tensor)] = (func, args, kwargs, place)
                self._kept.append(tensor)
            for tensor in tensors_in(out):
                if storage_key(tensor) and storage_key(tensor) not in self._made_of:
                    self._made_of[storage_key(tensor)] = names
                    self._kept.append(tensor)
        else:
            for argument in operator.written:  # a signal has been written there
                for tensor in tensors_in(named.get(argument)):
                    if storage_key(tensor) not in self._own:
                        self._made_of.pop(storage_key(tensor), None)
        return out
