"""The plan: how to initialise each parameter, and at which rate to train it, as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dagscale.errors import PlanError
from dagscale.inits import padding_rows
from dagscale.shown import cell
from dagscale.training.draws import Fill

if TYPE_CHECKING:
    from rich.console import Group
    from torch import nn


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
        base_lr: the base's, from which it is carried over, of several bases the geometric mean; without a base, the
            target's own as measured.
        law, init, optimizer, seed: what made it.
        factors: the law's factors by name; ``lr = base_lr · Π factors``.
        parameters: name → :class:`ParameterPlan`.
        notes: what a reader should know.
        lr_interval: for measured laws, the 95 % interval of ``lr`` by chance over the measurement's seeds. It holds
            neither the uncertainty of ``base_lr`` nor what the law itself gets wrong.
        forwards: what the measurement took on base and target, in forward passes; a backward counts as two.
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
    lr_interval: tuple[float, float] | None = None
    forwards: float = 0.0

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

        from dagscale.tracing.forward import placed_like

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
        from dagscale.tracing.forward import plain_name

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
            "lr_interval": None if self.lr_interval is None else list(self.lr_interval),
            "base_lr": self.base_lr,
            "law": self.law,
            "init": self.init,
            "optimizer": self.optimizer,
            "seed": self.seed,
            "factors": dict(self.factors),
            "parameters": {name: {**asdict(p), "shape": list(p.shape)} for name, p in self.parameters.items()},
            "notes": list(self.notes),
            "forwards": self.forwards,
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
            if raw.get("lr_interval") is not None:
                raw["lr_interval"] = tuple(raw["lr_interval"])
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
            table.add_row(cell(name), "×".join(map(str, p.shape)) or "scalar", _init_text(p), f"{p.lr:.4g}")
        lines = [f"learning rate {self.lr:.4g} = base {product}", *self._measurement()]
        lines += [f"note: {note}" for note in self.notes]
        return Group(table, *map(Text, lines))

    def _measurement(self) -> list[str]:
        if self.lr_interval is None:
            return []
        low, high = self.lr_interval
        return [f"measured in {self.forwards:,.0f} forward passes; 95 % by chance over seeds: {low:.4g} … {high:.4g}"]

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


__all__ = ["ParameterPlan", "Plan"]
