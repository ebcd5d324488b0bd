"""What the paper's released code does on NAS-Bench-201, for comparison.

Init and law under the name ``released-nb201``. They are others than ``released``, its rules for MLPs and CNNs
[repository VITA-Group/principled_scaling_lr_init: ``main.py``, ``dag_utils.py``, ``models/utils.py``, ``cells.py``,
``cell_operations.py``, ``tiny_network.py``].
"""

from __future__ import annotations

from math import sqrt

from torch import nn

from dagscale.errors import PlanError
from dagscale.inits.base import init
from dagscale.laws.base import GRADIENT, inverse_root, law
from dagscale.laws.estimate import Estimate
from dagscale.models.cells import CELL_OPS, cell_moments
from dagscale.models.nb201 import NB201, Nb201
from dagscale.network import Network
from dagscale.training.draws import Fill

NAME = "released-nb201"
LAYERS = {op: len(CELL_OPS[op].kernels) for op in CELL_OPS}


def depth_sum(arch: Nb201) -> int:
    """``Σ_p (1 + W_p)³`` over the paths of one cell, ``W_p`` the number of convolutions on path ``p``."""
    m = cell_moments(arch.graph, LAYERS)
    return m.m0 + 3 * m.m1 + 3 * m.m2 + m.m3


@law(NAME, steps=GRADIENT, own_init=NAME)
def released_nb201(network: Network) -> dict[str, Estimate]:
    """``sqrt(Σ_base / Σ_target)`` of :func:`depth_sum`: stem, stacking, reductions, readout and kernels count nothing.

    The released base is the cell of skip connections only, ``1_01_001``, whose sum is 1.
    """
    return {"depth": inverse_root(depth_sum(_model(network).arch), "Σ_p (1 + W_p)³")}


@init(NAME, width="own")
def fills(network: Network) -> dict[str, Fill]:
    """Weights ``N(0, 2/(d n))``, ``n`` the fan-in, ``d`` the in-degree of the vertex that the edge *leaves*.

    Operations that read a dead vertex count in ``d`` too; it is 1 outside the cells, but 2 for a reduction's first
    convolution and its shortcut. The readout's standard deviation is ``2/n``; biases are 0, norms the identity.
    """
    model = _model(network)
    entering = [1, *(sum(v == w for _, w, _ in model.arch.graph.edges) for v in (1, 2, 3))]
    found: dict[str, Fill] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            std = sqrt(2 / (_degree(name.split("."), entering) * module.weight[0].numel()))
            found[f"{name}.weight"] = Fill(0.0, std**2 if isinstance(module, nn.Linear) else std)
        elif isinstance(module, nn.BatchNorm2d):
            found[f"{name}.weight"] = Fill(1.0, 0.0)
        if getattr(module, "bias", None) is not None:
            found[f"{name}.bias"] = Fill(0.0, 0.0)
    return found


def _degree(parts: list[str], entering: list[int]) -> int:
    """What the released code divides a layer's variance by."""
    if "edges" in parts:  # stages.STAGE.CELL.edges.FROM_TO.conv
        return max(1, entering[int(parts[parts.index("edges") + 1].split("_")[0])])
    return 2 if parts[0] == "reductions" and "second" not in parts else 1


def _model(network: Network) -> NB201:
    if not isinstance(network.model, NB201):
        raise PlanError(f"{NAME!r} is a rule for NAS-Bench-201 alone: give nb201:CODE")
    return network.model
