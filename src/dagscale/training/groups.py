"""Parameter groups: what each parameter is trained with, as ``torch.optim`` takes it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from dagscale.errors import RecipeError
from dagscale.graph.roles import ParameterRole
from dagscale.shown import one_line
from dagscale.tracing.wrappers import meant, named_parameters, plain_name, unwrapped
from dagscale.training.optimizers import Groups, Optimizer

if TYPE_CHECKING:
    from torch import nn

ROLES: tuple[str, ...] = get_args(ParameterRole)

NoDecay = str | Iterable[str] | Callable[..., bool]
"""What gets no weight decay: roles, names of parameters or modules, and patterns; or a function of name and parameter.
"""


@dataclass(frozen=True, slots=True)
class Relative:
    """A parameter's settings relative to the network's.

    Attributes:
        lr, eps, weight_decay: factors on the learning rate, on Adam's ε and its like, and on the weight decay.
        role: what the parameter is in the graph.
        fold: the multiplier that is folded into it: its gradient is 1/fold of the unfolded model's.
        split, stacked: parts of equally many rows, and whether the first dimension counts matrices, where a weight is
            several matrices in one.
        transposed: whether it is written ``in × out``; its parts are then ones of columns.
    """

    lr: float = 1.0
    eps: float = 1.0
    weight_decay: float = 1.0
    role: ParameterRole = "vector"
    fold: float = 1.0
    split: int = 1
    stacked: bool = False
    transposed: bool = False


def parameter_groups(
    parameters: Mapping[str, nn.Parameter],
    relative: Mapping[str, Any],
    optimizer: Optimizer | None,
    *,
    lr: float,
    weight_decay: float | None = None,
    no_decay: tuple[str, ...] | Callable[[str, nn.Parameter], bool] = (),
    known: Mapping[str, str] | None = None,
    apart: bool = False,
) -> Groups:
    """One group for each distinct setting, in the order of the parameters; frozen parameters are left out.

    Args:
        parameters: qualified name → parameter.
        relative: qualified name → its factors, a `Relative` or what has all of its attributes, as a plan's parameters
            have; those not named have factors of 1.
        optimizer: whose defaults the factors on ε and decay start from.
        lr: the network's learning rate.
        weight_decay: the network's; None for the optimiser's own, which is scaled where a factor is not 1.
        no_decay: what gets none if ``weight_decay`` is given, see `as_rule`.
        known: what else the parameters are called, for ``no_decay``, see `dagscale.tracing.wrappers.known_names`.
        apart: one group for each parameter.

    Returns:
        ``{"params": [...], "lr": …, "param_names": [...]}``, with ``"weight_decay"`` and ``"eps"`` where they are not
        the optimiser's own, and ``"fold"`` where a multiplier is folded in. For spectral optimisers also whether it is
        a hidden ``"matrix"``, how a weight that is several matrices is ``"split"`` or ``"stacked"``, and whether it is
        ``"transposed"``, written ``in × out``.
    """
    found: dict[Any, dict[str, Any]] = {}
    eps = optimizer.setting("eps") if optimizer is not None and optimizer.eps else None
    own_decay = 0.0 if optimizer is None else optimizer.own_decay
    decay = own_decay if weight_decay is None else weight_decay
    without = as_names(no_decay, known or {name: name for name in parameters})
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        own = relative.get(name, Relative())
        settings: dict[str, Any] = {"lr": lr * own.lr}
        if weight_decay is not None or (own.weight_decay != 1 and decay):
            settings["weight_decay"] = decay * own.weight_decay
            if weight_decay is not None and _without_decay(without, name, parameter, own.role):
                settings["weight_decay"] = 0.0
        if own.eps != 1 and eps is not None:
            settings["eps"] = eps * own.eps
        if own.fold != 1:
            settings["fold"] = own.fold
        if optimizer is not None and optimizer.step == "spectral":
            settings["matrix"] = own.role == "hidden" and parameter.ndim > 1
            if settings["matrix"] and own.stacked:
                settings["stacked"] = True
            if settings["matrix"] and own.transposed:
                settings["transposed"] = True
            if settings["matrix"] and own.split > 1:
                rows = parameter.shape[-1 if own.transposed else -2 if own.stacked else 0]
                settings["split"] = (rows // own.split,) * own.split
        key = name if apart else tuple(settings.items())
        group = found.setdefault(key, {"params": [], **settings, "param_names": []})
        group["params"].append(parameter)
        group["param_names"].append(name)
    return list(found.values())


def name_added(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> None:
    """Let groups be added to an optimiser later: without names, which torch refuses beside groups that have some, and
    under a schedule that has moved the others' rates.

    Trainers add groups when they unfreeze parameters. The rate of one is that without the schedule, as the others' were
    when they were made; it gets the part of it that they have now. A copy of the optimiser, and one from a file, is as
    torch makes it.

    Args:
        names: ``id`` of a parameter → its name; a parameter that is not among them is called ``added``.
    """
    kind, held = type(optimizer), weakref.ref(optimizer)
    if getattr(kind, "__getstate__", None) is not torch.optim.Optimizer.__getstate__:
        return  # a copy of it would add groups to this one

    def add_param_group(group: dict[str, Any]) -> None:
        own = held()
        assert own is not None
        first: dict[str, Any] = own.param_groups[0] if own.param_groups else {}
        if isinstance(group, dict) and "params" in group and "param_names" not in group and "param_names" in first:
            given = group["params"]
            group["params"] = given if isinstance(given, (Tensor, set)) else list(given)
            each = [given] if isinstance(given, Tensor) else group["params"]
            if all(isinstance(parameter, Tensor) for parameter in each):
                group["param_names"] = [names.get(id(parameter), "added") for parameter in each]
        kind.add_param_group(own, group)
        if first.get("initial_lr") and "initial_lr" not in group:
            group["initial_lr"] = group["lr"]
            group["lr"] = group["lr"] * float(first["lr"] / first["initial_lr"])

    optimizer.add_param_group = add_param_group  # type: ignore


def as_rule(no_decay: Any) -> tuple[str, ...] | Callable[[str, nn.Parameter], bool]:
    """What a `NoDecay` says, entry by entry, or its function.

    Raises:
        RecipeError: if it is none of these.
    """
    if callable(no_decay):
        return no_decay  # type: ignore[no-any-return]
    entries = (no_decay,) if isinstance(no_decay, str) else tuple(no_decay)
    if wrong := [entry for entry in entries if not isinstance(entry, str)]:
        raise RecipeError(f"no_decay= holds {wrong[0]!r}: give roles, names or patterns, or one function")
    return entries


def as_names(rule: tuple[str, ...] | Callable[..., bool], known: Mapping[str, str]) -> Any:
    """The roles and the names of parameters that a rule means; a function as it is.

    Raises:
        RecipeError: if an entry is no role, and no name or pattern of any parameter.
    """
    if callable(rule):
        return rule
    found: set[str] = set()
    for entry in rule:
        own = {entry} if entry in ROLES else meant(known, entry)
        if not own:
            some = ", ".join([*known][:3])
            raise RecipeError(
                f"no_decay={entry!r} is no role ({', '.join(ROLES)}) and names no parameter of the model, which has "
                f"{some}, …: a pattern stands for whole names, as in '*{entry.strip('*')}*'"
            )
        found |= own
    return found


def marked_undecayed(model: nn.Module | None, known: Mapping[str, str]) -> set[str]:
    """The parameters that the model's author has marked to get no weight decay, as Mamba's code does."""
    every = [] if model is None else named_parameters(unwrapped(model))
    return {known[plain_name(name)] for name, p in every if getattr(p, "_no_weight_decay", False)}


def _without_decay(rule: Any, name: str, parameter: nn.Parameter, role: ParameterRole) -> bool:
    """Raises: RecipeError, whatever a rule of the user's raises."""
    if not callable(rule):
        return role in rule or name in rule
    try:
        return bool(rule(name, parameter))
    except Exception as error:
        raise RecipeError(f"the function no_decay raised {one_line(error)}") from error
