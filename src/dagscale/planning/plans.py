"""The plan: how to initialise each parameter and what to train it with, as plain data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import nn

from dagscale.arguments import checked, positive_number, whole_number
from dagscale.errors import PlanError
from dagscale.frozen import FrozenMapping
from dagscale.graph.repeats import fold_rows
from dagscale.graph.roles import ParameterRole
from dagscale.planning.files import Saved, check_training, is_number, read_document, told
from dagscale.planning.naming import named
from dagscale.shown import Tabled, cell, line, load_rich
from dagscale.tracing.wrappers import known_names
from dagscale.training.draws import Fill
from dagscale.training.groups import NoDecay, as_rule, name_added, parameter_groups
from dagscale.training.optimizers import OPTIMIZERS, Optimizer, resolve
from dagscale.training.recipe import Recipe, Scheduler
from dagscale.training.schedules import Schedule, constant
from dagscale.typed import MODEL, OPTIMIZER, PLAN, must_be

if TYPE_CHECKING:
    from rich.console import Group

FORMAT = 1
"""Of the JSON document; a document of a later format is refused."""

FARTHEST = 10.0
"""Standard deviations that no draw goes beyond: torch's normal numbers end below 9."""


@dataclass(frozen=True, slots=True)
class ParameterPlan:
    """How one parameter is initialised, and with which settings it is trained.

    Attributes:
        shape: its shape.
        init_mean, init_std: draw from ``N(mean, std²)``; both None: leave it as it is.
        lr: its learning rate, per optimiser step.
        weight_decay: factor on the weight decay; 1 unless rates differ by layer.
        eps: factor on Adam's ε and its like; 1 unless scales differ by layer.
        role: what it is in the graph, such as ``norm`` or ``bias``.
        fold: the multiplier that is folded into it by width or depth rules (`dagscale.scaling.folding`).
        split, stacked: where it is several matrices in one (`dagscale.graph.matrices`): parts of equally many rows, and
            whether its first dimension counts matrices. Muon takes each by itself.
        transposed: whether it is written ``in × out``; its parts then have equally many columns.

    Raises:
        PlanError: if a value is of the wrong type or range.
    """

    shape: tuple[int, ...]
    init_mean: float | None
    init_std: float | None
    lr: float
    weight_decay: float = 1.0
    eps: float = 1.0
    role: ParameterRole = "vector"
    fold: float = 1.0
    split: int = 1
    stacked: bool = False
    transposed: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.shape, tuple) and all(type(n) is int and n >= 0 for n in self.shape)):
            raise PlanError(f"shape must be whole numbers, not {self.shape!r}")
        if (self.init_mean is None) != (self.init_std is None):
            raise PlanError("init_mean and init_std are both numbers, or both null")
        if self.init_mean is not None:
            _number("init_mean", self.init_mean)
            _number("init_std", self.init_std, least=0.0)
        for name in ("lr", "weight_decay", "eps"):
            _number(name, getattr(self, name), least=0.0)
        _number("fold", self.fold, above=0.0)
        for name in ("stacked", "transposed"):
            if type(getattr(self, name)) is not bool:
                raise PlanError(f"{name} must be true or false, not {getattr(self, name)!r}")
        rows = self.shape[-1 if self.transposed else 0] if self.shape else 0
        if type(self.split) is not int or self.split < 1 or rows % self.split:
            raise PlanError(f"split must be a whole number that divides the rows, not {self.split!r}")
        if self.role not in get_args(ParameterRole):
            raise PlanError(f"unknown role {self.role!r}")

    @property
    def fill(self) -> Fill | None:
        """The distribution that the parameter is drawn from; None if it stays as it is."""
        return None if self.init_mean is None or self.init_std is None else Fill(self.init_mean, self.init_std)


@checked(PlanError)
@dataclass(frozen=True, eq=True, repr=False)
class Plan(Saved, Tabled):
    """An immutable plan, keyed by qualified parameter name; tied parameters stand under their first name.

    It is plain data: it can be compared, hashed, pickled, copied, and written to a file and read back.

    Attributes:
        lr: the target's learning rate.
        base_lr: the base's, from which it is carried over, of several bases the geometric mean; without a base, the
            target's own as measured.
        law, init, width, depth, batch, horizon, seed: the rules, by name, and the seed that made the plan.
        recipe: how the network is to be trained at this rate, as plain data (`dagscale.Recipe.describe`).
        factors: the law's factors by name; ``lr = base_lr · Π factors``.
        parameters: name → :class:`ParameterPlan`.
        notes: what a reader should know.
        lr_interval: the interval that holds the best rate, as a search on the target would find it, in 95 % of networks
            of families that the law was not made on; None where nothing is known of the law on such networks.
        lr_errors: what the interval is made of: standard deviation in octaves by source. ``law``: what the law gets
            wrong, as recorded families show (`dagscale.laws.accuracy`); ``base``: its own rate; ``seeds``: chance over
            the seeds of a measurement. What a rule for batch size or horizon gets wrong is not among them.
        forwards: cost of the measurement on base and target, in forward passes; a backward pass counts as two.

    Raises:
        PlanError: if a value is of the wrong type or range.
    """

    lr: float
    base_lr: float
    law: str
    init: str
    seed: int
    recipe: Mapping[str, Any]
    factors: Mapping[str, float]
    parameters: Mapping[str, ParameterPlan]
    notes: tuple[str, ...] = ()
    lr_interval: tuple[float, float] | None = None
    forwards: float = 0.0
    width: str = "none"
    depth: str = "none"
    batch: str = "none"
    horizon: str = "none"
    lr_errors: Mapping[str, float] = field(default_factory=dict)
    live: Recipe | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("recipe", "factors", "parameters", "lr_errors"):
            if not isinstance(getattr(self, name), Mapping):
                raise PlanError(f"{name} must be a mapping, not {type(getattr(self, name)).__name__}")
            object.__setattr__(self, name, FrozenMapping(getattr(self, name)))
        for name in ("lr", "base_lr"):
            _number(name, getattr(self, name), above=0.0)
        _number("forwards", self.forwards, least=0.0)
        for name, factor in self.factors.items():
            _number(f"factor {name}", factor, above=0.0)
        for name, error in self.lr_errors.items():
            _number(f"lr_errors {name}", error, least=0.0)
        for name in ("law", "init", "width", "depth", "batch", "horizon"):
            if not isinstance(getattr(self, name), str):
                raise PlanError(f"{name} must be a name, not {getattr(self, name)!r}")
        if type(self.seed) is not int or self.seed < 0:
            raise PlanError(f"seed must be a whole number from 0, not {self.seed!r}")
        if not (isinstance(self.notes, tuple) and all(isinstance(note, str) for note in self.notes)):
            raise PlanError("notes must be texts")
        if self.lr_interval is not None:
            if not (isinstance(self.lr_interval, tuple) and len(self.lr_interval) == 2):
                raise PlanError("lr_interval must be two numbers")
            for end in self.lr_interval:
                _number("lr_interval", end, least=0.0)
        if not all(isinstance(own, ParameterPlan) for own in self.parameters.values()):
            raise PlanError("parameters must map names to parameter plans")

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self  # nothing of it can change, and a copy would lose the functions of its recipe

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "live"} | {"live": None}

    def __repr__(self) -> str:
        return (
            f"Plan(lr={self.lr:.4g}, law={self.law!r}, init={self.init!r}, optimizer={self.optimizer_name!r}, "
            f"{len(self.parameters)} parameters)"
        )

    @property
    def optimizer_name(self) -> str:
        """The name of the optimiser that the plan is for."""
        return str(self.recipe.get("optimizer", {}).get("name", ""))

    @property
    def folded(self) -> bool:
        """Whether multipliers are folded into it, so that gradients are clipped by `dagscale.clip_grad_norm_`."""
        return any(own.fold != 1 for own in self.parameters.values())

    # --- what it does to a model -------------------------------------------------------------------------------

    def init_(self, model: nn.Module, *, seed: int | None = None) -> nn.Module:
        """Initialise ``model`` in place and return it.

        Each parameter is drawn on the CPU in float32 from a generator seeded by ``seed`` and its name, so the
        numbers depend on neither device, order, dtype (but for rounding) nor sharding (FSDP2). Frozen
        parameters, and those the plan leaves alone, are not touched; an embedding's padding row is 0. Nothing is
        changed unless the whole plan fits, and signals such as Ctrl-C wait while it is written.

        Args:
            seed: another seed than the plan's.

        Raises:
            PlanError: if names or shapes differ from the plan's, or a parameter cannot be written to.
        """
        from dagscale.interrupts import uninterrupted
        from dagscale.tracing.forward import placed_like
        from dagscale.training.copies import padding_rows

        seed = self.seed if seed is None else whole_number("seed", seed, PlanError, 0)
        found, padding = self._match(model), padding_rows(model)
        drawn = {n: p for n, p in found.items() if self.parameters[n].fill is not None and p.requires_grad}
        for name, parameter in found.items():
            if parameter.is_meta:
                raise PlanError(
                    f"parameter {name!r} is on meta and has no storage: materialise the model first "
                    "(model.to_empty(device=...)), then call init_ again"
                )
            if _flattened(parameter):
                raise PlanError(
                    f"parameter {name!r} is a stretch of FSDP's flat parameter: call init_ before FSDP wraps the model"
                )
        for name, parameter in drawn.items():
            strides = () if hasattr(parameter, "full_tensor") else parameter.stride()
            if any(step == 0 and size > 1 for step, size in zip(strides, parameter.shape, strict=False)):
                raise PlanError(
                    f"parameter {name!r} is expanded, several of its entries are one number: make it a tensor of its "
                    "own, nn.Parameter(p.detach().clone())"
                )
        values = {}
        for name, parameter in drawn.items():
            fill, kind = self.parameters[name].fill, parameter.dtype
            assert fill is not None
            largest = min(torch.finfo(t).max for t in (kind, torch.float32) if t.is_floating_point)
            if abs(fill.mean) + FARTHEST * fill.std > largest:
                raise PlanError(
                    f"parameter {name!r} cannot be drawn from {_init_text(self.parameters[name])}: numbers "
                    f"of {kind} do not reach so far; make another plan"
                )
            own = fill.draw(name, parameter, seed)
            if id(parameter) in padding:
                own[padding[id(parameter)]] = 0
            values[name] = placed_like(own, parameter)
        uninterrupted(lambda waiting: _write(drawn, values))
        return model

    def param_groups(
        self,
        model: nn.Module,
        *,
        lr: float | None = None,
        weight_decay: float | None = None,
        no_decay: NoDecay | None = None,
        only: str | Iterable[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Parameter groups for any ``torch.optim`` optimiser, one for each distinct setting.

        Args:
            lr: another rate than the plan's; all parameters' rates keep their ratios to it.
            weight_decay: the base's weight decay, by default the recipe's; each group gets it times its factor.
            no_decay: what gets none, as `dagscale.Recipe` takes it: roles, names and patterns, or a function;
                by default what the recipe says, biases and norms if that says nothing. ``()`` lets all decay.
            only: names, modules or patterns (``head``, ``blocks.*.mlp.*``): the groups hold these parameters alone.

        Returns:
            A list of ``{"params": [...], "lr": float, "param_names": [...]}``, with ``"weight_decay"`` and ``"eps"``
            where they are not the optimiser's own; frozen parameters are left out.

        Raises:
            PlanError: if names or shapes differ from the plan's, a rate or decay is negative or no number, or ``only``
                names nothing.
            RecipeError: if ``no_decay`` names nothing.
        """
        rule = self._no_decay() if no_decay is None else as_rule(no_decay)
        rate, decay = self._trained_with(lr, weight_decay)
        found = self._match(model)
        known = known_names(found, model)
        if only is not None:
            chosen = named(known, only, "only")
            found = {name: parameter for name, parameter in found.items() if name in chosen}
        return parameter_groups(
            found, self.parameters, self._record(optional=True), lr=rate / self.lr,
            weight_decay=decay, no_decay=rule, known=known,
        )  # fmt: skip

    def optimizer(
        self, model: nn.Module, *, lr: float | None = None, recipe: Recipe | None = None, **groups: Any
    ) -> Any:
        """The recipe's optimiser over :meth:`param_groups` of ``model``.

        A group that is added to it later, as for parameters that are unfrozen, needs no names, and without a rate or a
        decay of its own it gets the network's. ``param_groups(model, only=...)`` makes groups with the plan's. Its rate
        is that without the schedule, which multiplies it from then on.

        Args:
            lr: another rate than the plan's.
            recipe: with the optimiser to make, where the plan was read from a file and its optimiser is the user's own.
            groups: further arguments of :meth:`param_groups`.

        Returns:
            A ``torch.optim.Optimizer``.

        Raises:
            PlanError: if the optimiser is not known here or another than the plan's, the plan does not fit the model,
                or all of its parameters are frozen.
        """
        record = recipe.optimizer if recipe is not None else self._record()
        assert record is not None
        if {record.name, self.optimizer_name} <= {*OPTIMIZERS} and record.name != self.optimizer_name:
            raise PlanError(
                f"recipe= trains with {record.name}, and the plan is for {self.optimizer_name}: plan with this recipe"
            )
        found = self.param_groups(model, lr=lr, **groups)
        if not found:
            raise PlanError(
                "nothing to train: every parameter that the optimiser would get is frozen, or none is named"
            )
        made = record.make(found, *self._trained_with(lr, groups.get("weight_decay")))
        name_added(made, {id(parameter): name for name, parameter in self._match(model).items()})
        return made

    def schedule(self, optimizer: torch.optim.Optimizer, total_steps: int | None = None) -> Scheduler:
        """The recipe's schedule for ``optimizer``; one that leaves the rates as they are if it has none.

        Args:
            total_steps: length of the run, in optimiser steps; by default the recipe's.

        Raises:
            PlanError: if the length or the schedule is not known here, or the schedule raises or is none.
        """
        must_be(optimizer, torch.optim.Optimizer, OPTIMIZER, PlanError)
        said = self.recipe.get("schedule")
        if self.live is None and said is not None and not isinstance(said, Mapping):
            raise PlanError(f"the plan's schedule {said!r} is a function that its file does not hold: make it yourself")
        if total_steps is None:
            held = self.live if self.live is not None and self.live.data is not None else None
            total_steps = self.recipe.get("steps") or (None if held is None else held.total_steps)
        if total_steps is None:
            epochs = self.recipe.get("epochs")
            said = f"{epochs} epochs of data that it does not hold" if epochs else "no length"
            raise PlanError(f"the plan's recipe says {said}: give the number of optimiser steps, total_steps=")
        total_steps = whole_number("total_steps", total_steps, PlanError)
        made = None if self.live is None else self.live.scheduler(optimizer, total_steps)
        if made is not None:
            return made
        return (Schedule(**said) if isinstance(said, Mapping) else constant())(optimizer, total_steps)

    def _trained_with(self, lr: float | None, weight_decay: float | None) -> tuple[float, float | None]:
        """The network's rate and decay: those given, else the plan's and its recipe's.

        Raises:
            PlanError: if one is negative or no number.
        """
        decay = self.recipe.get("weight_decay")
        return (
            self.lr if lr is None else positive_number("lr", lr, PlanError, zero=True),
            decay if weight_decay is None else positive_number("weight_decay", weight_decay, PlanError, zero=True),
        )

    def _record(self, optional: bool = False) -> Optimizer | None:
        """The record of the plan's optimiser, from the recipe or from the registry."""
        if self.live is not None:
            return self.live.optimizer
        said = self.recipe.get("optimizer", {})
        name = said.get("name")
        left = said.get("not_held") or ()
        if name in OPTIMIZERS and (optional or not left):
            return resolve(name, {k: v for k, v in (said.get("settings") or {}).items() if k not in left})
        if optional:
            return None
        if name in OPTIMIZERS:
            raise PlanError(
                f"the plan's file does not hold {', '.join(left)} of its optimizer {name!r}: give recipe= with it"
            )
        raise PlanError(
            f"the plan's optimizer {name!r} is not registered here: give recipe= with it, or register it with "
            "dagscale.optimizer"
        )

    def _no_decay(self) -> Any:
        if self.live is not None:
            return self.live.no_decay
        said = self.recipe.get("no_decay") or ()
        if isinstance(said, str):
            raise PlanError(f"the plan's no_decay {said!r} is a function that its file does not hold: give no_decay=")
        return as_rule(said)

    def _match(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The model's parameters under the plan's names, wrappers' prefixes looked through."""
        from dagscale.tracing._torch import is_lazy
        from dagscale.tracing.forward import named_parameters, plain_name

        must_be(model, torch.nn.Module, MODEL, PlanError)
        found: dict[str, nn.Parameter] = {}
        for name, parameter in named_parameters(model):
            plain = name
            if plain not in self.parameters:
                plain = plain_name(plain)
                while plain not in self.parameters and plain.startswith("module."):  # data parallel
                    plain = plain.removeprefix("module.")
            if is_lazy(parameter):
                raise PlanError(
                    f"parameter {name!r} has no shape yet: run the model's forward once on example inputs, then use "
                    "the plan"
                )
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
            if tuple(parameter.shape) != self.parameters[name].shape and not _flattened(parameter):
                raise PlanError(
                    f"the plan is for another model: {name!r} has shape {tuple(parameter.shape)} here and "
                    f"{self.parameters[name].shape} in the plan; make a plan for this model"
                )
        return found

    # --- as plain data -----------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """As plain data that ``json`` can write."""
        return {
            "format": FORMAT,
            "lr": self.lr,
            "lr_interval": None if self.lr_interval is None else list(self.lr_interval),
            "lr_errors": dict(self.lr_errors),
            "base_lr": self.base_lr,
            "law": self.law,
            "init": self.init,
            "width": self.width,
            "depth": self.depth,
            "batch": self.batch,
            "horizon": self.horizon,
            "optimizer": self.optimizer_name,
            "seed": self.seed,
            "factors": dict(self.factors),
            "parameters": {name: {**asdict(p), "shape": list(p.shape)} for name, p in self.parameters.items()},
            "notes": list(self.notes),
            "forwards": self.forwards,
            "recipe": dict(self.recipe),
        }

    def to_json(self) -> str:
        """One JSON document; :meth:`from_json` reads it back to an equal plan."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that :meth:`to_json` wrote.

        Raises:
            PlanError: if the text is no such document, a value is of the wrong type or range, or a later version of
                dagscale wrote it.
        """
        mend = "write one with Plan.save or `dagscale plan TARGET --json`"
        raw = read_document(text, "plan", FORMAT, mend)
        raw.pop("optimizer", None)
        where = ""
        try:
            parameters = {}
            for name, own in raw["parameters"].items():
                where = f"parameter {name!r}: "
                parameters[name] = ParameterPlan(**{**own, "shape": tuple(own["shape"])})
            where = ""
            check_training(raw["recipe"])
            interval = raw.get("lr_interval")
            given = {**raw, "parameters": parameters, "notes": tuple(raw["notes"])}
            given["lr_interval"] = tuple(interval) if isinstance(interval, list) else interval
            return cls(**given)
        except PlanError as error:
            raise PlanError(f"this is no plan ({where}{error})") from None
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise PlanError(f"this is no plan ({where}{told(error)}); {mend}") from None

    def diff(self, other: Plan) -> str:
        """What differs from another plan, a line each; empty if nothing does."""
        must_be(other, Plan, PLAN, PlanError)
        lines = []
        for name in ("lr", "base_lr", "law", "init", "width", "depth", "batch", "horizon", "seed"):
            lines += _line(name, getattr(self, name), getattr(other, name))
        lines += [line for k in sorted({*self.recipe, *other.recipe}) for line in _line(
            f"recipe {k}", self.recipe.get(k), other.recipe.get(k))]  # fmt: skip
        for name in dict.fromkeys((*self.parameters, *other.parameters)):
            own, theirs = self.parameters.get(name), other.parameters.get(name)
            if own is None or theirs is None:
                lines.append(f"{name}: only in the {'second' if own is None else 'first'}")
                continue
            for f in fields(ParameterPlan):
                lines += _line(f"{name} {f.name}", getattr(own, f.name), getattr(theirs, f.name))
        return "\n".join(lines)

    # --- to look at --------------------------------------------------------------------------------------------

    def table(self) -> Group:
        """To print with rich: a row a parameter, repeats of a block in one, then how the rate came about, and notes."""
        load_rich()
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        product = " × ".join([f"{self.base_lr:.4g}", *(f"{v:.4g} ({k})" for k, v in self.factors.items())])
        table = Table()
        table.add_column("parameter", overflow="fold")
        table.add_column("shape")
        table.add_column("init")
        table.add_column("lr", justify="right")
        more = [
            name for name in ("weight_decay", "eps") if any(getattr(p, name) != 1 for p in self.parameters.values())
        ]
        for name in more:
            table.add_column(f"{name.replace('_', ' ')} ×", justify="right")
        cells = [
            (
                "×".join(map(str, p.shape)) or "scalar",
                _init_text(p),
                f"{p.lr:.4g}",
                *(f"{getattr(p, k):.4g}" for k in more),
            )
            for p in self.parameters.values()
        ]
        for row in fold_rows([*self.parameters], cells):
            table.add_row(cell(row.name), *cells[row.index])
        title = f"law {self.law} · init {self.init} · {self.optimizer_name} · seed {self.seed}"
        lines = [f"learning rate {self.lr:.4g} = base {product}", *self._certainty()]
        lines += [f"note: {note}" for note in self.notes]
        return Group(Text(title, style="italic"), table, *map(Text, lines))

    def _certainty(self) -> list[str]:
        lines = []
        if self.lr_interval is not None:
            made = ", ".join(f"{source} {error:.2g}" for source, error in self.lr_errors.items())
            low, high = self.lr_interval
            lines.append(f"95 %: {low:.4g} … {high:.4g} (standard errors in octaves: {made})")
        if self.forwards:
            lines.append(f"measured in {self.forwards:,.0f} forward passes")
        return lines


def _write(parameters: Mapping[str, nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    """Copy values into parameters: into all, or, where that raises, into none.

    ``values`` holds what stood in the parameters before, as far as it came.

    Raises:
        PlanError: if a parameter cannot be written to.
    """
    import torch

    begun: list[str] = []
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                value, values[name] = values[name], parameter.detach().clone()
                begun.append(name)
                parameter.copy_(value)
    except BaseException as error:
        with torch.inference_mode():  # what was made in it cannot be written to outside, and was changed all the same
            for name in begun:
                with suppress(RuntimeError):
                    parameters[name].copy_(values[name])
        if isinstance(error, RuntimeError):
            raise PlanError(
                f"parameter {begun[-1]!r} cannot be written to ({line(str(error), 200)}): make it a tensor of its own, "
                "nn.Parameter(p.detach().clone())"
            ) from None
        raise


def _flattened(parameter: nn.Parameter) -> bool:
    """Whether it is a stretch of the flat parameter of FSDP with ``use_orig_params``, whose shape says nothing."""
    return bool(getattr(parameter, "_fsdp_flattened", False))


def _number(name: str, value: Any, *, least: float | None = None, above: float | None = None) -> None:
    good = is_number(value)
    if not good or (least is not None and value < least) or (above is not None and value <= above):
        bound = f", {least:g} or more" if least is not None else f", above {above:g}" if above is not None else ""
        raise PlanError(f"{name} must be a finite number{bound}, not {value!r}")


def _line(name: str, own: Any, other: Any) -> list[str]:
    return [] if own == other else [f"{name}: {own!r} → {other!r}"]


def _init_text(p: ParameterPlan) -> str:
    if p.init_std is None or p.init_mean is None:
        return "as it is"
    if p.init_std == 0:
        return f"{p.init_mean:g}"
    return f"N({p.init_mean:g}, {p.init_std:.4g}²)"


# A checkpoint that holds a plan, as Lightning's hyperparameters may, loads with torch.load's default.
torch.serialization.add_safe_globals([Plan, ParameterPlan, FrozenMapping])
