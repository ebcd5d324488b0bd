"""The plan: how to initialise each parameter, and at which rate to train it, as plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dagscale.draws import Fill
from dagscale.errors import DagscaleError, PlanError
from dagscale.graph import Graph
from dagscale.inits import INITS, Init, padding_rows
from dagscale.laws import LAWS
from dagscale.laws.base import SGD
from dagscale.preflight import check_data, check_kin, in_float32, rehearse
from dagscale.subject import Subject
from dagscale.trace import forward, trace
from dagscale.train import OPTIMIZERS
from dagscale.width import WidthScaling, width_scaling

if TYPE_CHECKING:
    from rich.console import Group
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ParameterPlan:
    """What to do with one parameter.

    Attributes:
        shape: its shape.
        init_mean, init_std: draw from ``N(mean, std²)``; both None: leave it as it is.
        lr: its learning rate.
        weight_decay: factor on the user's weight decay; 1 unless rates differ by layer.
    """

    shape: tuple[int, ...]
    init_mean: float | None
    init_std: float | None
    lr: float
    weight_decay: float = 1.0


@dataclass(frozen=True)
class Plan:
    """An immutable plan, keyed by qualified parameter name; tied parameters stand under their first name.

    Attributes:
        lr: the target's learning rate.
        base_lr: the base's, from which it is carried over; without a base, the target's own as measured.
        law, init, optimizer, seed: what made it.
        factors: the law's factors by name; ``lr = base_lr · Π factors``.
        parameters: name → :class:`ParameterPlan`.
        notes: what a reader should know.
    """

    lr: float
    base_lr: float
    law: str
    init: str
    optimizer: str
    seed: int
    factors: Mapping[str, float]
    parameters: Mapping[str, ParameterPlan]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", MappingProxyType(dict(self.factors)))
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    def init_(self, model: nn.Module, *, seed: int | None = None) -> nn.Module:
        """Initialise ``model`` in place and return it.

        Each parameter is drawn on the CPU in float32 from a generator seeded by ``seed`` and its name, so the
        numbers depend on neither device, order, dtype (but for rounding) nor sharding (FSDP2). Frozen
        parameters, and those the plan leaves alone, are not touched; an embedding's padding row is 0. Nothing is
        changed unless the whole plan fits.

        Args:
            seed: another seed than the plan's.

        Raises:
            PlanError: if names or shapes differ from the plan's, or parameters are on ``meta``.
        """
        import torch

        from dagscale.trace.forward import placed_like

        found, padding = self._match(model), padding_rows(model)
        for name, parameter in found.items():
            if parameter.is_meta:
                raise PlanError(
                    f"parameter {name!r} is on meta and has no storage: materialise the model first "
                    "(model.to_empty(device=...)), then call init_ again"
                )
        with torch.no_grad():
            for name, parameter in found.items():
                own = self.parameters[name]
                if own.init_std is None or own.init_mean is None or not parameter.requires_grad:
                    continue
                fill = Fill(own.init_mean, own.init_std)
                drawn = fill.draw(name, own.shape, self.seed if seed is None else seed)
                if id(parameter) in padding:
                    drawn[padding[id(parameter)]] = 0
                parameter.copy_(placed_like(drawn, parameter))
        return model

    def param_groups(
        self, model: nn.Module, *, lr: float | None = None, weight_decay: float | None = None
    ) -> list[dict[str, Any]]:
        """Parameter groups for any ``torch.optim`` optimiser, one for each distinct learning rate.

        Args:
            lr: another rate than the plan's; all parameters' rates keep their ratios to it.
            weight_decay: the base's weight decay; each group gets it times its parameters' factor.

        Returns:
            A list of ``{"params": [...], "lr": float}``, with ``"weight_decay"`` if given; frozen parameters are
            left out.

        Raises:
            PlanError: if names or shapes differ from the plan's.
        """
        scale = 1.0 if lr is None else lr / self.lr
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self._match(model).items():
            if parameter.requires_grad:
                own = self.parameters[name]
                decay = own.weight_decay if weight_decay is not None else 1.0
                groups.setdefault((own.lr * scale, decay), []).append(parameter)
        decayed = [{} if weight_decay is None else {"weight_decay": weight_decay * d} for _, d in groups]
        return [
            {"params": parameters, "lr": rate, **more}
            for ((rate, _), parameters), more in zip(groups.items(), decayed, strict=True)
        ]

    def _match(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The model's parameters under the plan's names, wrappers' prefixes looked through."""
        from dagscale.trace.forward import plain_name

        found: dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            plain = name
            if plain not in self.parameters:
                plain = plain_name(plain)
                while plain not in self.parameters and plain.startswith("module."):  # data parallel
                    plain = plain.removeprefix("module.")
            found[plain] = parameter
        missing = [n for n in self.parameters if n not in found]
        extra = [n for n in found if n not in self.parameters]
        if missing or extra:
            what = f"lacks {missing[0]!r}" if missing else f"has {extra[0]!r}, which the plan does not know"
            raise PlanError(
                f"the plan is for another model: this one {what} "
                f"({len(missing)} missing, {len(extra)} unknown); make a plan for this model"
            )
        for name, parameter in found.items():
            if tuple(parameter.shape) != self.parameters[name].shape:
                raise PlanError(
                    f"the plan is for another model: {name!r} has shape {tuple(parameter.shape)} here and "
                    f"{self.parameters[name].shape} in the plan; make a plan for this model"
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        """As plain data that ``json`` can write."""
        return {
            "lr": self.lr,
            "base_lr": self.base_lr,
            "law": self.law,
            "init": self.init,
            "optimizer": self.optimizer,
            "seed": self.seed,
            "factors": dict(self.factors),
            "parameters": {name: {**asdict(p), "shape": list(p.shape)} for name, p in self.parameters.items()},
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """One JSON document; :meth:`from_json` reads it back to an equal plan."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that :meth:`to_json` wrote.

        Raises:
            PlanError: if the text is no such document.
        """
        try:
            raw = json.loads(text)
            raw["parameters"] = {
                name: ParameterPlan(**{**p, "shape": tuple(p["shape"])}) for name, p in raw["parameters"].items()
            }
            raw["notes"] = tuple(raw["notes"])
            return cls(**raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PlanError(f"this is no plan ({error}); write one with `dagscale plan TARGET --json`") from None

    def table(self) -> Group:
        """To print with rich: a row a parameter, then how the rate came about, factor by factor, then the notes."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        product = " × ".join([f"{self.base_lr:.4g}", *(f"{v:.4g} ({k})" for k, v in self.factors.items())])
        table = Table(
            title=f"law {self.law} · init {self.init} · {self.optimizer} · seed {self.seed}", title_justify="left"
        )
        table.add_column("parameter", overflow="fold")
        table.add_column("shape")
        table.add_column("init")
        table.add_column("lr", justify="right")
        for name, p in self.parameters.items():
            table.add_row(name, "×".join(map(str, p.shape)) or "scalar", _init_text(p), f"{p.lr:.4g}")
        lines = [f"learning rate {self.lr:.4g} = base {product}", *(f"note: {note}" for note in self.notes)]
        return Group(table, *map(Text, lines))

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get().rstrip()


def _init_text(p: ParameterPlan) -> str:
    if p.init_std is None or p.init_mean is None:
        return "as it is"
    if p.init_std == 0:
        return f"{p.init_mean:g}"
    return f"N({p.init_mean:g}, {p.init_std:.4g}²)"


def plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    base: tuple[nn.Module, Any] | None = None,
    base_lr: float | None = None,
    law: str | None = None,
    init: str | None = None,
    optimizer: str = "sgd",
    seed: int = 0,
    data: tuple[Tensor, Tensor] | None = None,
    loss: Callable[..., Tensor] | None = None,
    batch_size: int = 128,
    width: str = "none",
) -> Plan:
    """Plan the initialisation and the learning rate of ``model``. The model is not changed.

    Args:
        model, example_inputs: the target, as for :func:`dagscale.trace`.
        base: a small network of the same kind with its inputs, whose best rate is known.
        base_lr: that rate, per optimiser step; :func:`dagscale.search` finds it. With neither base nor rate, but data
            and loss, law ``short-run`` measures the target's rate on the spot, to about an octave.
        law: the name of a law, see ``dagscale.laws.LAWS``; by default what predicts training best
            (:func:`default_law`).
        init: the name of an init, see ``dagscale.inits.INITS``; by default ``moments`` with data, else
            ``in-degree``.
        optimizer: ``sgd``, ``momentum``, ``adam`` or ``adamw``.
        seed: seed of the initialisation.
        data: examples ``(x, y)``, for measured laws and inits; some hundreds are enough.
        loss: ``loss(output, y)`` → scalar, likewise.
        batch_size: examples in a training step, for laws that take a few.
        width: ``none``: one rate for all parameters, the paper's way; ``mup``: each parameter's init and rate
            also scaled by how its dimensions grow from base to target (:func:`dagscale.width.width_scaling`).

    Raises:
        UnknownNameError: for an unknown law, init or optimiser.
        PlanError: if the base is missing or shares no layer with the target, a rate is no positive number, the law
            does not cover the optimiser, or data or loss cannot be measured on.
        TraceError: if a network cannot be traced; ForwardError if its forward raises, on the data too.
        GraphError: if the law has no answer for a network.
    """
    has_data, has_base = data is not None and loss is not None, base is not None or base_lr is not None
    law = default_law(optimizer, has_data) if law is None else law
    init = ("moments" if data is not None else "in-degree") if init is None else init
    rule, fill, _ = LAWS[law], INITS[init], OPTIMIZERS[optimizer]
    absolute = None if has_base else rule.absolute
    if absolute is None and (base_lr is None or not (math.isfinite(base_lr) and base_lr > 0)):
        raise PlanError(
            f"base_lr must be a positive number, not {base_lr}: find the base's rate with dagscale.search, or give "
            "data and loss and neither base nor base_lr"
        )
    if rule.optimizers and optimizer not in rule.optimizers:
        raise PlanError(
            f"law {law!r} is derived for {', '.join(sorted(rule.optimizers))}, not {optimizer!r}: "
            "choose one of these, or law 'none'"
        )
    if rule.needs_base and base is None and absolute is None:
        raise PlanError(f"law {law!r} carries a rate over from a base: give base=(model, inputs), or law 'none'")
    if base is not None and not (isinstance(base, (tuple, list)) and len(base) == 2):
        raise PlanError(f"base must be two things, base=(model, inputs), got {type(base).__name__}")
    check_data(data, batch_size)
    given = Subject(Graph((), ()), data=data, loss=loss, optimizer=optimizer, seed=seed, batch_size=batch_size)
    measured = rule.cost is not None
    target = _traced("target", model, example_inputs, given, measured or init == "moments")
    origin = target if base is None else _traced("base", *base, given, measured or init == "moments")
    check_kin(origin.graph, target.graph)
    scaling = _width_scaling(origin, target, width, fill.width, base is not None)
    for name, subject in {"target": target, "base": origin}.items() if measured else ():
        with _about(name):
            rehearse(subject)
    target = _filled("target", target, fill)
    origin = target if base is None else _filled("base", origin, fill)
    target = replace(
        target,
        fills={
            n: Fill(f.mean * _scale(scaling, n).init, f.std * _scale(scaling, n).init) for n, f in target.fills.items()
        },
        multipliers={name: s.lr for name, s in scaling.items()},
    )
    factors = {} if absolute else rule.factors(origin, target)
    start = absolute(target) if absolute else base_lr
    assert start is not None
    lr = start * math.prod(factors.values())
    if not (math.isfinite(lr) and lr > 0):
        raise PlanError(f"law {law!r} gives no usable rate here ({lr}): its factors are {factors}; try another law")
    fills, graph = target.fills, target.graph
    parameters = {
        p.name: ParameterPlan(
            p.shape,
            fills[p.name].mean if p.name in fills and p.trainable else None,
            fills[p.name].std if p.name in fills and p.trainable else None,
            lr * _scale(scaling, p.name).lr,
            _scale(scaling, p.name).weight_decay,
        )
        for p in graph.parameters
    }
    free = ("no base: the rate was measured on the network itself, good to about an octave",) if absolute else ()
    notes = (*free, *_notes(graph, parameters, init), *dict.fromkeys(s.note for s in scaling.values() if s.note))
    return Plan(lr, start, law, init, optimizer, seed, factors, parameters, notes)


def default_law(optimizer: str, has_data: bool) -> str:
    """The law that the evidence is for: ``docs/results.md``.

    With data to measure on: ``short-run``. Without: ``covariance`` for SGD, ``none`` for adaptive optimisers.
    """
    if has_data:
        return "short-run"
    return "covariance" if optimizer in SGD else "none"


def _width_scaling(base: Subject, target: Subject, width: str, rule: str, has_base: bool) -> dict[str, WidthScaling]:
    """μP factors of each parameter, or none."""
    if width == "none":
        return {}
    if width != "mup":
        raise PlanError(f"unknown width mode {width!r}: give 'none' (one rate for all) or 'mup'")
    if not has_base:
        raise PlanError("width='mup' scales from a base's shapes: give base=(model, inputs)")
    scaling = width_scaling(base.graph, target.graph, target.optimizer, mean_field=rule == "mean-field")
    return {n: replace(s, init=1.0) for n, s in scaling.items()} if rule == "own" else scaling


def _scale(scaling: Mapping[str, WidthScaling], name: str) -> WidthScaling:
    return scaling.get(name) or WidthScaling("vector", 1.0, 1.0, 1.0, 1.0)


@contextmanager
def _about(network: str) -> Iterator[None]:
    """Errors say which network is meant."""
    try:
        yield
    except DagscaleError as error:
        error.args = (f"{network}: {error}",)
        raise


def _traced(network: str, model: nn.Module, inputs: Any, given: Subject, measured: bool) -> Subject:
    """One network, traced; measurements see half precision as float32."""
    with _about(network):
        graph = trace(model, inputs)
    seen, inputs = in_float32(model, inputs) if measured else (model, inputs)
    return replace(given, graph=graph, model=seen, inputs=inputs)


def _filled(network: str, subject: Subject, init: Init) -> Subject:
    """With its initialisation worked out."""
    with _about(network):
        try:
            return replace(subject, fills=init(subject))
        except DagscaleError:
            raise
        except Exception as error:  # the forward is the user's
            assert subject.model is not None
            shown = subject.inputs if subject.data is None else subject.data[0]
            raise forward.forward_error(subject.model, None, error, shown) from error


def _notes(graph: Graph, parameters: Mapping[str, ParameterPlan], init: str) -> tuple[str, ...]:
    notes = list(graph.notes)
    unreached = [p.name for p in graph.parameters if not p.reached]
    if unreached:
        notes.append(f"not on any input→output path, left as they are: {', '.join(unreached)}")
    frozen = [p.name for p in graph.parameters if not p.trainable]
    if frozen:
        notes.append(f"frozen, left as they are and out of the parameter groups: {', '.join(frozen)}")
    kept = [
        p.name
        for p in graph.parameters
        if p.reached and p.trainable and parameters[p.name].init_std is None and init != "keep"
    ]
    if kept:
        notes.append(f"init {init!r} does not cover, left as they are: {', '.join(kept)}")
    return tuple(notes)


__all__ = ["ParameterPlan", "Plan", "plan"]
