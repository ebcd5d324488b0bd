"""A network under consideration: a model, its graph, how it is drawn, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dagscale.errors import PlanError
from dagscale.frozen import FrozenMapping
from dagscale.graph import Graph
from dagscale.training.draws import Fill

if TYPE_CHECKING:
    from torch import nn

    from dagscale.training.copies import WorkingCopy
    from dagscale.training.groups import Relative
    from dagscale.training.probe import Cost, Probe
    from dagscale.training.recipe import Recipe

T = TypeVar("T")
Role = Literal["base", "target"]


@dataclass(frozen=True, eq=False, repr=False)
class Network:
    """One network, the base or the target, as laws and inits see it; compared by identity.

    It is made once, and what was measured on it is remembered: a base serves any number of targets.

    Attributes:
        graph: its traced graph.
        recipe: how it is trained; its data are None where nothing is measured.
        model, inputs: the module and its example inputs; the model is never modified. None for a network that was read
            from a file: what was measured before it was written is all that is known of it.
        seed: seed of everything random.
        init: the name of the init that ``fills`` are of; empty while it is open.
        fills: how the init draws each parameter; what it does not name keeps the model's values.
        relative: learning rate, eps and weight decay of each parameter relative to the network's, where not 1.
        role: whether rates are carried over from it or to it.
        by_layer: whether base and target are compared under rates that differ by layer.
        hint: a rate near which its best one is expected, for measurements to begin at; None where nothing is known.
        kept: names of the parameters that stay as they are, whatever the init says.
        own_rms: root mean square of each parameter as the model's author drew it, where it is a base that keeps them;
            so it is known of a base without a model too.
        memo: what was measured, by name.
        copies: the one copy that everything is measured on, once it is made; shared by all that this one becomes.
    """

    graph: Graph
    recipe: Recipe
    model: nn.Module | None = None
    inputs: Any = None
    seed: int = 0
    init: str = ""
    fills: Mapping[str, Fill] = field(default_factory=dict)
    relative: Mapping[str, Relative] = field(default_factory=dict)
    role: Role = "target"
    by_layer: bool = False
    hint: float | None = None
    kept: frozenset[str] = frozenset()
    own_rms: Mapping[str, float] = FrozenMapping({})
    memo: dict[str, Any] = field(default_factory=dict, repr=False)
    copies: list[WorkingCopy] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        what = "from a file" if self.model is None else type(self.model).__name__
        return f"Network({what}, {self.graph!r}, init={self.init!r}, {len(self.memo)} measured)"

    @property
    def ratios(self) -> dict[str, float]:
        """Each parameter's learning rate over the network's, where they differ."""
        return {name: own.lr for name, own in self.relative.items() if own.lr != 1}

    @property
    def copy(self) -> WorkingCopy:
        """The one copy that everything is measured on.

        Raises:
            PlanError: if there is no model, or it has no values.
        """
        from dagscale.training.batches import call, each, to_model
        from dagscale.training.copies import WorkingCopy

        if self.copies and not self.copies[0].spoilt:
            return self.copies[0]
        if self.model is None:
            raise PlanError(
                "this network was read from a file, without its model: measure it before it is written, "
                "base.measure('short-run'), or use a law that only reads the graph"
            )
        if any(p.is_meta for p in self.model.parameters()):
            raise PlanError(
                "the model is on meta and has no values to measure on: materialise it first "
                "(model.to_empty(device=...)), or use an init and a law that only read the graph"
            )

        def run(model: nn.Module) -> Any:  # on inputs of its own: some forwards write to theirs
            return call(model, to_model(model, each(lambda t: t.detach().clone(), self.inputs)))

        recipe = self.recipe
        self.copies[:] = [WorkingCopy(self.model, run, float32=True, beside=(recipe.loss, recipe.step))]
        return self.copies[0]

    def give_back(self) -> None:
        """Undo everything that measurements have changed in the model and its copies."""
        for copied in self.copies:
            copied.give_back()

    @contextmanager
    def probe(self, seed: int, cost: Cost | None = None) -> Iterator[Probe]:
        """The network drawn under a seed, with batches to measure it on; the user's model stays as it is.

        Raises:
            PlanError: if it cannot be measured.
        """
        from dagscale.training.probe import Cost, Probe

        if self.recipe.data is None and self.model is not None:
            raise PlanError(
                "this law is measured and needs data=(x, y) and loss=… (--data); without data use law 'covariance', "
                "'walk' or 'paths'"
            )
        copied = self.copy
        try:
            copied.reset(self.fills, seed)
            yield Probe(self, copied, seed, cost or Cost())
        finally:
            copied.give_back()


def remembered(measure: Callable[[Network], T]) -> Callable[[Network], T]:
    """Decorator: ``measure(network)`` is run once a network and init, and its value kept with the network."""
    name = f"{measure.__module__}.{measure.__qualname__}"

    @wraps(measure)
    def once(network: Network) -> T:
        key = f"{network.init}/{name}"
        if key not in network.memo:
            network.memo[key] = measure(network)
        value: T = network.memo[key]
        return value

    return once
