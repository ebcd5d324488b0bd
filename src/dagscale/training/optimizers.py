"""Optimisers: one record each, with all that the rest of dagscale needs to know of it.

Give an optimiser by its name here, as a ``torch.optim`` class (or a class that is registered) with its settings, or as
a function of parameter groups. Of a function, or of a class that nobody registered, nothing is known: it can be trained
with and searched for, and what needs a trait refuses it in one line.

Adding one is one decorated class or function, here or in a file of your own::

    @optimizer("lion", step="sign", grid=(-17, -5), decay="decoupled")
    def lion(groups, **settings): ...
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from dagscale.arguments import plain_number
from dagscale.errors import OptimizerError
from dagscale.registry import Registry, did_you_mean
from dagscale.shown import one_line

Groups = list[dict[str, Any]]
"""Parameter groups as ``torch.optim`` takes them, each with its own ``lr``."""

Build = Callable[..., torch.optim.Optimizer]
Step = Literal["gradient", "sign", "spectral", "relative"]
Decay = Literal["coupled", "decoupled", "normalised"]
Settings = Mapping[str, Any]
B = TypeVar("B", bound=Build)

GRID = (-16.0, 1.0)
"""Exponents of 2 between which rates are tried for an optimiser of which nothing is known."""


def _nothing(settings: Settings) -> dict[str, Any]:
    """The traits that differ with the settings of an optimiser of which none does."""
    return {}


@dataclass(frozen=True)
class Optimizer:
    """What is known of an optimiser. A trait that is None is unknown.

    Attributes:
        name: as it stands in the registry, or the class's or function's own name; with its module before it where
            another optimiser is registered by that name, which a plan's file would be read to mean.
        build: ``build(groups, **settings)`` makes it; a class, or a function.
        settings: keyword arguments for ``build``, such as ``betas``.
        step: what a step is like: ``gradient``, proportional to the gradient (SGD and momentum); ``sign``, of a size
            that does not depend on the gradient's, entry by entry (Adam, Lion); ``spectral``, likewise for a whole
            matrix (Muon); ``relative``, proportional to the parameter's own norm (LAMB, Adafactor).
        grid: exponents of 2 between which rates are tried, half an octave apart.
        decay: how weight decay enters: ``coupled``, added to the gradient; ``decoupled``, off the weights; or
            ``normalised``, added to a step that the gradient's size has left and that then takes the weight's (LAMB).
        weight_decay: what ``build`` takes where the groups and the settings say nothing.
        stable: largest stable learning rate times curvature on a quadratic: 2 for gradient descent.
        scaling: (state of a parameter, its group) → what the next step multiplies its gradient by at rate 1, a number
            or a tensor of the parameter's shape; raises KeyError while there is no state.
        eps: whether its groups have an ``eps`` that counts in units of the gradient.
        depends: (settings) → traits that differ with them, by name.
    """

    name: str
    build: Build
    settings: Settings = field(default_factory=dict)
    step: Step | None = None
    grid: tuple[float, float] = GRID
    decay: Decay | None = None
    weight_decay: float = 0.0
    stable: float | None = None
    scaling: Callable[[Mapping[str, Any], Mapping[str, Any]], Tensor | float] | None = None
    eps: bool = False
    depends: Callable[[Settings], dict[str, Any]] = _nothing

    def __post_init__(self) -> None:
        registered = OPTIMIZERS.get(self.name)
        if registered is not None and registered.build is not self.build:
            of = self.build.func if isinstance(self.build, partial) else self.build
            object.__setattr__(self, "name", f"{getattr(of, '__module__', 'of your own')}.{self.name}")

    @property
    def summary(self) -> str:
        """One line for people: what is known of it."""
        kinds: dict[Step | None, str] = {
            None: "an unknown step", "relative": "a step in proportion to the weights",
            "gradient": "steps like the gradient", "sign": "steps like the gradient's sign",
            "spectral": "steps like an orthogonal matrix",
        }  # fmt: skip
        decay = "" if self.decay is None else f"; {self.decay} weight decay"
        return f"{kinds[self.step]}{decay}; searched from 2^{self.grid[0]:g} to 2^{self.grid[1]:g}"

    def configured(self, settings: Settings) -> Optimizer:
        """The record with these settings added to or replacing its own, and the traits that follow from them."""
        settings = {name: plain_number(value) for name, value in settings.items()}
        merged = {**self.settings, **settings}
        _check_settings(self, settings)
        if merged.get("maximize"):
            raise OptimizerError(
                "maximize=True makes the loss grow, and a run is judged by how low it is: leave it out, and give the "
                "loss with the other sign"
            )
        try:
            traits = self.depends(merged)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise OptimizerError(f"the settings of the optimizer {self.name} do not hold together ({error})") from None
        return replace(self, settings=merged, **traits)

    def make(self, groups: Groups, lr: float | None = None, weight_decay: float | None = None) -> torch.optim.Optimizer:
        """The optimiser of these parameter groups.

        Args:
            groups: each with its own ``lr``.
            lr: the network's rate, to which the groups' are ratios. It is the optimiser's default, from which some
                schedules take the share that they end at, and which a group gets that is added later without a rate.
            weight_decay: likewise the network's weight decay, if it has one.

        Raises:
            OptimizerError: if it cannot be made of them.
        """
        try:
            made = self.build(groups, **self.settings)
        except OptimizerError:
            raise
        except Exception as error:
            raise OptimizerError(
                f"the optimizer {self.name} cannot be made ({one_line(error)}): check its settings, "
                "and that it takes several parameter groups"
            ) from error
        if not (callable(getattr(made, "step", None)) and hasattr(made, "param_groups")):
            raise OptimizerError(
                f"the optimizer {self.name} gave a {type(made).__name__}, which has no step() and param_groups: give "
                "a name, a torch.optim class or a function of parameter groups that returns an optimizer"
            )
        if _parameters(groups) and not _parameters(groups) & _parameters(made.param_groups):
            raise OptimizerError(
                f"the optimizer {self.name} holds none of the parameters in the groups that it is given, and would "
                "train another model: make it of its argument, as in lambda groups: torch.optim.AdamW(groups)"
            )
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if value is not None and name in getattr(made, "defaults", {}):
                made.defaults[name] = value
        in_mode(made, "train")
        return made

    def known(self, trait: str, what: str) -> Any:
        """The value of a trait that ``what`` needs.

        Raises:
            OptimizerError: if it is unknown.
        """
        value = getattr(self, trait)
        if value is None:
            raise OptimizerError(
                f"{what} needs to know the {_TRAITS[trait]} of the optimizer {self.name}, which is unknown: register "
                "it with dagscale.optimizer, or use what only trains (law 'short-run', dagscale.search)"
            )
        return value

    @property
    def own_decay(self) -> float:
        """The weight decay where no group says one: that of the settings, or what ``build`` takes by itself."""
        return float(self.settings.get("weight_decay", self.weight_decay))

    def setting(self, name: str) -> Any:
        """A setting, or what ``build`` takes by itself; None where it has none that is known."""
        if name in self.settings:
            return self.settings[name]
        parameter = inspect.signature(self.build).parameters.get(name)
        return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default

    def describe(self) -> dict[str, Any]:
        """Name and settings as plain data for JSON; what JSON cannot hold as text, and ``not_held`` names it."""
        settings = {name: _plain(value) for name, value in sorted(self.settings.items())}
        left = [name for name, value in self.settings.items() if not _is_plain(value)]
        return {"name": self.name, "settings": settings, **({"not_held": sorted(left)} if left else {})}


_TRAITS = {
    "step": "kind of step",
    "decay": "kind of weight decay",
    "stable": "largest stable rate",
    "scaling": "scaling of each gradient",
}

OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")
"""Name → what is known of it."""


def optimizer(name: str, **traits: Any) -> Callable[[B], B]:
    """Decorator: register a class, or a function ``(groups, **settings)`` → optimiser, with its traits.

    Args:
        name: what it is called.
        traits: attributes of `Optimizer`.
    """

    def put(build: B) -> B:
        OPTIMIZERS.add(name)(Optimizer(name, build, **traits).configured({}))
        return build

    return put


def resolve(given: Any, settings: Settings | None = None) -> Optimizer:
    """The record of an optimiser, however it is given.

    Args:
        given: a name, a class, a function of parameter groups, or a record.
        settings: keyword arguments for it.

    Raises:
        UnknownNameError: for a name that is not registered.
        OptimizerError: if it is none of these, such as an optimiser that is made already.
    """
    settings = dict(settings or {})
    if isinstance(given, Optimizer):
        return given.configured(settings)
    if isinstance(given, partial) and not given.args:  # its rate is a default that no group falls back on
        own = {name: value for name, value in given.keywords.items() if name != "lr"}
        return resolve(given.func, {**own, **settings})
    if isinstance(given, str):
        return OPTIMIZERS[given].configured(settings)
    if isinstance(given, torch.optim.Optimizer):
        raise OptimizerError(
            f"optimizer={type(given).__name__}(...) is made already, for one model: give the class and its settings, "
            f"optimizer=torch.optim.{type(given).__name__}, or a function of parameter groups"
        )
    if not callable(given):
        raise OptimizerError(
            f"optimizer must be a name ({', '.join(OPTIMIZERS)}), a torch.optim class or a function of parameter "
            f"groups, not {type(given).__name__}"
        )
    if given is getattr(torch.optim, "Muon", None):
        return OPTIMIZERS["muon"].configured(settings)  # of which torch's takes hidden matrices alone
    alike = [entry for name in OPTIMIZERS if (entry := OPTIMIZERS[name]).build is given]
    if not alike:
        return Optimizer(getattr(given, "__name__", type(given).__name__), given).configured(settings)
    named = next((entry for entry in alike if entry.settings == settings), None)
    return named or next((entry for entry in alike if not entry.settings), alike[0]).configured(settings)


def in_mode(optimizer: torch.optim.Optimizer, mode: str) -> None:
    """Tell an optimiser that averages the weights, such as a schedule-free one, what follows: ``train`` or ``eval``."""
    switch = getattr(optimizer, mode, None)
    if callable(switch):
        switch()


def _parameters(groups: Groups) -> set[int]:
    """Which parameters stand in these groups."""
    held = [group["params"] for group in groups]
    return {id(p) for own in held for p in ([own] if isinstance(own, Tensor) else own)}


def _check_settings(record: Optimizer, settings: Settings) -> None:
    """Raise OptimizerError for a setting that the optimiser does not take, or for a value that cannot be meant."""
    try:
        takes = inspect.signature(record.build).parameters
    except (TypeError, ValueError):
        return
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values()):
        return
    names = [name for name, p in takes.items() if p.kind is not inspect.Parameter.POSITIONAL_ONLY and name != "lr"]
    for name, value in settings.items():
        if name == "lr":
            raise OptimizerError("lr is what is searched and planned: leave it out; a rate that is known is base_lr=")
        if name not in names:
            hint = did_you_mean(name, [*names, *_SAID])
            raise OptimizerError(f"{name!r} is no setting of the optimizer {record.name}, nor of a recipe{hint}")
        usual = takes[name].default
        text = isinstance(value, str) and isinstance(usual, (bool, int, float))
        numbers = [n for n in (value if isinstance(value, (tuple, list)) else (value,)) if isinstance(n, float)]
        if text or any(not math.isfinite(n) and n != usual for n in numbers):
            what = "True or False" if isinstance(usual, bool) else "a finite number"
            raise OptimizerError(f"{name} of the optimizer {record.name} cannot be {value!r}: give {what}")


_SAID = ("data", "loss", "optimizer", "batch_size", "steps", "epochs", "schedule", "step", "clip", "accumulate",
         "autocast", "weight_decay", "no_decay", "unpack")  # fmt: skip
"""What a recipe says itself."""


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if _is_plain(value):
        return value
    return str(value) if isinstance(value, torch.dtype) else getattr(value, "__qualname__", type(value).__qualname__)


# --- gradient-like --------------------------------------------------------------------------------------------


def _with_momentum(settings: Settings) -> dict[str, Any]:
    """Stable up to 2 (1 + β) on a quadratic with heavy-ball momentum β [Polyak 1964]; a step adds up to 1/(1 - β) of
    plain ones, which is where its grid lies. Nesterov's bound is 2 (1 + β) / (1 + 2 β)."""
    beta = float(settings.get("momentum", 0.0))
    if not beta:
        return {"stable": 2.0, "grid": (-10.0, 1.0)}
    bound = 2 * (1 + beta) / (1 + 2 * beta) if settings.get("nesterov") else 2 * (1 + beta)
    return {"stable": bound, "grid": (-13.0, -1.0)}


def _unscaled(state: Mapping[str, Any], group: Mapping[str, Any]) -> float:
    """The factor on each gradient, 1: a step of plain gradient descent goes along the gradient itself."""
    return 1.0


_GRADIENT: dict[str, Any] = {
    "step": "gradient", "decay": "coupled", "scaling": _unscaled, "depends": _with_momentum,
}  # fmt: skip
optimizer("sgd", **_GRADIENT)(torch.optim.SGD)
for _name, _settings in (("momentum", {"momentum": 0.9}), ("nesterov", {"momentum": 0.9, "nesterov": True})):
    optimizer(_name, settings=_settings, **_GRADIENT)(torch.optim.SGD)


# --- sign-like ------------------------------------------------------------------------------------------------


def _adam(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """``1/(√v̂ + ε)`` [Kingma and Ba 2015, Algorithm 1]."""
    mean = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
    scale: Tensor = 1 / (mean.sqrt() + group["eps"])
    return scale


def _rmsprop(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """``1/(√v + ε)``, of the variance where it is centred [Tieleman and Hinton 2012; Graves 2013]."""
    mean = state["square_avg"]
    if group.get("centered"):
        mean = (mean - state["grad_avg"] ** 2).clamp(min=0)
    scale: Tensor = 1 / (mean.sqrt() + group["eps"])
    return scale


def _adagrad(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """``1/(√(Σ g²) + ε)`` [Duchi et al. 2011]."""
    scale: Tensor = 1 / (state["sum"].sqrt() + group["eps"])
    return scale


def _decoupled(settings: Settings) -> dict[str, Any]:
    """The kind of weight decay, for optimisers with a flag that chooses it."""
    return {"decay": "decoupled" if settings.get("decoupled_weight_decay") else "coupled"}


_ADAM: dict[str, Any] = {"step": "sign", "grid": (-16.0, -4.0), "scaling": _adam, "eps": True}
optimizer("adam", depends=_decoupled, **_ADAM)(torch.optim.Adam)
optimizer("adamw", decay="decoupled", weight_decay=0.01, **_ADAM)(torch.optim.AdamW)
optimizer("nadam", depends=_decoupled, **_ADAM)(torch.optim.NAdam)
optimizer("rmsprop", step="sign", grid=(-16.0, -4.0), decay="coupled", scaling=_rmsprop, eps=True)(torch.optim.RMSprop)
optimizer("adagrad", step="sign", grid=(-13.0, -1.0), decay="coupled", scaling=_adagrad, eps=True)(torch.optim.Adagrad)


@optimizer("lion", step="sign", grid=(-19.0, -7.0), decay="decoupled")
def lion(groups: Groups, **settings: Any) -> torch.optim.Optimizer:
    """Lion [Chen et al. 2023], of the package ``lion-pytorch``."""
    made: torch.optim.Optimizer = _packaged("lion_pytorch", "Lion", "lion-pytorch")(groups, **settings)
    return made


@optimizer("schedule-free", decay="decoupled", **_ADAM)
def schedule_free(groups: Groups, **settings: Any) -> torch.optim.Optimizer:
    """Schedule-free AdamW [Defazio et al. 2024], of the package ``schedulefree``."""
    made: torch.optim.Optimizer = _packaged("schedulefree", "AdamWScheduleFree", "schedulefree")(groups, **settings)
    return made


# --- relative and spectral ------------------------------------------------------------------------------------

if hasattr(torch.optim, "Adafactor"):  # torch 2.5
    optimizer("adafactor", step="relative", grid=(-12.0, 1.0), decay="decoupled")(torch.optim.Adafactor)


@optimizer("muon", step="spectral", grid=(-16.0, -4.0), decay="decoupled", weight_decay=0.1, eps=True)
def muon(groups: Groups, **settings: Any) -> torch.optim.Optimizer:
    """Muon [Jordan et al. 2024] for the groups that say ``"matrix": True``, AdamW for the rest, as one optimiser."""
    from dagscale.training.muon import MuonWithAdamW

    return MuonWithAdamW(groups, **settings)


def _packaged(module: str, name: str, package: str) -> Any:
    """The optimiser class of another package.

    Raises:
        OptimizerError: if it is not installed.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise OptimizerError(f"this optimizer is of another package: pip install {package}") from None
