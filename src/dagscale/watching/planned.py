"""What a plan says of each parameter of a model, and how large one step is to be by it."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from torch import Tensor, nn

from dagscale.graph.roles import ParameterRole
from dagscale.planning.plans import Plan
from dagscale.training.draws import Fill


@dataclass(frozen=True, eq=False)
class Planned:
    """One trainable parameter and what the plan says of it.

    Attributes:
        name: its qualified name, as the plan has it.
        role: what it is in the graph.
        kind: its role in words, branch ends of a depth rule told apart from other hidden weights.
        lr: its learning rate, per optimiser step, before any schedule.
        weight_decay, eps: its own, where the plan's groups say them.
        fill: how it is drawn; None if it stays as it is.
        matrix: whether a spectral optimiser is to step it as a matrix.
    """

    name: str
    parameter: nn.Parameter
    role: ParameterRole
    kind: str
    lr: float
    weight_decay: float | None
    eps: float | None
    fill: Fill | None
    matrix: bool

    @property
    def layer(self) -> str:
        """The name of its layer: its own without a trailing ``.weight``."""
        return self.name.removesuffix(".weight")


def planned_parameters(model: nn.Module, plan: Plan) -> dict[str, Planned]:
    """What the plan says of every parameter of ``model`` that is trained, by name.

    Raises:
        PlanError: if names or shapes differ from the plan's.
    """
    found = {}
    for group in plan.param_groups(model):
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            own = plan.parameters[name]
            end = plan.depth != "none" and own.fold != 1 and own.role == "hidden"
            found[name] = Planned(
                name, parameter, own.role, "branch end" if end else str(own.role), group["lr"],
                group.get("weight_decay"), group.get("eps"), own.fill, bool(group.get("matrix")),
            )  # fmt: skip
    return {name: found[name] for name in plan.parameters if name in found}


def rms_of_spectral(matrix: Tensor, norm: float) -> float:
    """The root mean square of the entries of a matrix whose singular values all are ``norm``."""
    return norm / sqrt(max(matrix.shape))
