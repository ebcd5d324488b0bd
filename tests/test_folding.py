"""A folded multiplier is the same training run as one in the model's code, loss for loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tests.fixtures.optimizers import LAMB, LARS, LION, SGDW
from tests.fixtures.residual import NETWORKS, example, losses, redraw
from torch import Tensor, nn

import dagscale
from dagscale.errors import OptimizerError
from dagscale.graph import Graph
from dagscale.graph.branches import find_branches
from dagscale.graph.roles import roles
from dagscale.scaling.folding import Factors, fold
from dagscale.training.clipping import clip_grad_norm_
from dagscale.training.optimizers import Optimizer, resolve

C = 0.3
SAME, SEEN = 1e-9, 1e-6
"""Losses that agree to rounding over 30 steps in float64, and what a column left out changes at least."""
COLUMNS = ["init", "lr", "eps", "weight_decay"]


RECORDS: dict[str, tuple[Optimizer, float]] = {
    "adamw": (resolve("adamw", {"eps": 1e-2}), 3e-3),
    "adam": (resolve("adam", {"eps": 1e-2}), 3e-3),
    "nadam": (resolve("nadam", {"eps": 1e-2}), 3e-3),
    "rmsprop": (resolve("rmsprop", {"eps": 1e-2}), 1e-3),
    "adagrad": (resolve("adagrad", {"eps": 1e-2}), 1e-2),
    "sgd": (resolve("sgd"), 0.05),
    "momentum": (resolve("momentum"), 0.02),
    "nesterov": (resolve("nesterov"), 0.02),
    "lion": (LION, 1e-3),
    "lars": (LARS, 1e-2),
    "lamb": (LAMB, 1e-2),
    "sgdw": (SGDW, 0.05),
}
if "adafactor" in dagscale.OPTIMIZERS:  # from torch 2.5 on
    RECORDS["adafactor"] = resolve("adafactor", {"eps": (None, 1e-12)}), 1e-2
DECAY = 0.3


@cache
def traced(network: str) -> Graph:
    model = NETWORKS[network](1.0)
    return dagscale.trace(model, example(model)[0])


def factors(network: str, record: Optimizer, c: float) -> dict[str, Factors]:
    """What the branches' ends take for a multiplier c."""
    found: dict[str, Factors] = {}
    for branch in find_branches(traced(network)).branches:
        assert not branch.note
        found.update({name: fold(record, c) for name in branch.ends})
        found.update({name: fold(record, 1 / c) for name in branch.undone})
    return found


def groups(
    model: nn.Module, own: dict[str, Factors], lr: float, eps: float | None, matrices: Iterable[str] = ()
) -> Any:
    made = []
    for name, p in model.named_parameters():
        f = own.get(name, Factors())
        group = {"params": [p], "lr": lr * f.lr, "weight_decay": DECAY * f.weight_decay, "matrix": name in matrices}
        made.append(group if eps is None else {**group, "eps": eps * f.eps})
    return made


def run(network: str, record: Optimizer, lr: float, c: float, own: dict[str, Factors], **options: Any) -> Tensor:
    model = NETWORKS[network](c).double()
    redraw(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.mul_(own.get(name, Factors()).init)
    found = roles(traced(network))
    matrices = [n for n, p in model.named_parameters() if found[n] == "hidden" and p.dim() > 1]
    eps = record.settings.get("eps") if record.eps else None
    optimizer = record.make(groups(model, own, lr, eps, matrices if record.name == "muon" else ()))
    clip = options.get("clip")
    return losses(model, optimizer, clip=clip and (lambda: clip(model)))


def difference(network: str, optimizer: str, **without: float) -> float:
    record, lr = RECORDS[optimizer]
    own = {name: replace(f, **without) for name, f in factors(network, record, C).items()}
    edited = run(network, record, lr, C, {})
    assert edited.isfinite().all()
    assert float((edited[0] - edited[-1]).abs()) > 1e-3  # it has learned something
    return float((run(network, record, lr, 1.0, own) - edited).abs().max())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_folded_is_edited_for_every_kind_of_block(network: str, optimizer: str) -> None:
    assert difference(network, optimizer) < SAME


@pytest.mark.parametrize("network", ["pre", "resnet"])
@pytest.mark.parametrize("optimizer", [name for name in RECORDS if name not in ("adamw", "momentum")])
def test_folded_is_edited_for_every_optimizer(network: str, optimizer: str) -> None:
    assert difference(network, optimizer) < SAME


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("optimizer", RECORDS)
def test_no_column_can_be_left_out(optimizer: str, column: str) -> None:
    factor = getattr(fold(RECORDS[optimizer][0], C), column)
    if factor == 1:
        pytest.skip("no factor in this column")
    assert difference("pre", optimizer, **{column: 1.0}) > SEEN


def test_what_undoes_a_multiplier_is_needed() -> None:
    """Behind a gate that reads the branch's end, the gate's first layer takes the factor back."""
    record, lr = RECORDS["adamw"]
    own = factors("squeeze and excite", record, C)
    ends = {name: f for name, f in own.items() if f.init < 1}
    assert len(ends) < len(own)
    edited = run("squeeze and excite", record, lr, C, {})
    assert (run("squeeze and excite", record, lr, 1.0, ends) - edited).abs().max() > SEEN


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("network", ["pre", "resnet", "vit"])
def test_muon_folds_as_far_as_its_bfloat16_goes(network: str) -> None:
    """Newton–Schulz runs in bfloat16, where only powers of two scale exactly; its relative error is 2^-8."""
    record = resolve("muon", {"eps": 1e-2})
    edited = run(network, record, 1e-2, 0.25, {})
    own = factors(network, record, 0.25)
    assert (run(network, record, 1e-2, 1.0, own) - edited).abs().max() < SAME
    for column in COLUMNS:
        without = {name: replace(f, **{column: 1.0}) for name, f in own.items()}
        assert (run(network, record, 1e-2, 1.0, without) - edited).abs().max() > SEEN, column
    edited = run(network, record, 1e-2, C, {})
    assert (run(network, record, 1e-2, 1.0, factors(network, record, C)) - edited).abs().max() < 0.05


def test_clipping_sees_the_edited_gradients() -> None:
    record, lr = RECORDS["momentum"]
    own = factors("pre", record, C)

    def weighed(model: nn.Module) -> None:
        clip_grad_norm_([(p, own.get(name, Factors()).init) for name, p in model.named_parameters()], 0.2)

    def plain(model: nn.Module) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.2)

    edited = run("pre", record, lr, C, {}, clip=plain)
    assert (run("pre", record, lr, 1.0, own, clip=weighed) - edited).abs().max() < SAME
    assert (run("pre", record, lr, 1.0, own, clip=plain) - edited).abs().max() > SEEN
    assert (run("pre", record, lr, C, {}) - edited).abs().max() > SEEN


@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
def test_clipping_weighs_every_norm(norm_type: float) -> None:
    weights = [nn.Parameter(torch.randn(3, 2)) for _ in range(2)]
    for w, c in zip(weights, (1.0, 4.0), strict=True):
        w.grad = torch.randn(3, 2) / c
    edited = torch.cat([w.grad.flatten() * c for w, c in zip(weights, (1.0, 4.0), strict=True) if w.grad is not None])
    total = clip_grad_norm_([(weights[0], 1.0), (weights[1], 4.0)], 0.1, norm_type)
    torch.testing.assert_close(total, torch.linalg.vector_norm(edited, norm_type))
    left = clip_grad_norm_([(weights[0], 1.0), (weights[1], 4.0)], 1.0, norm_type)
    torch.testing.assert_close(left, torch.tensor(0.1))


@pytest.mark.parametrize(("norm", "kind"), [(-1.0, 2.0), (math.nan, 2.0), ("a", 2.0), (1.0, 0.0), (1.0, math.nan)])
def test_clipping_to_no_norm_is_refused(norm: Any, kind: float) -> None:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    with pytest.raises(OptimizerError, match="must be"):
        dagscale.clip_grad_norm_([(parameter, 1.0)], norm, kind)
    assert torch.equal(parameter.grad, torch.ones(3))
    assert dagscale.clip_grad_norm_([(parameter, 1.0)], math.inf) == pytest.approx(3**0.5)


def test_clipping_without_factors_is_torchs() -> None:
    weights = [nn.Parameter(torch.randn(3, 2)) for _ in range(3)]
    weights[0].grad, weights[1].grad = torch.randn(3, 2), torch.randn(3, 2)
    before = [w.grad.clone() for w in weights[:2] if w.grad is not None]
    ours = clip_grad_norm_([(w, 1.0) for w in weights], 0.5)
    clipped = [w.grad.clone() for w in weights[:2] if w.grad is not None]
    for w, g in zip(weights, before, strict=False):
        w.grad = g
    torch.testing.assert_close(ours, nn.utils.clip_grad_norm_(weights, 0.5))
    assert all(torch.allclose(w.grad, g) for w, g in zip(weights, clipped, strict=False) if w.grad is not None)
    assert clip_grad_norm_([(weights[2], 1.0)], 0.5) == 0


def test_factors_multiply() -> None:
    product = Factors(2, 3, 5, 7) * Factors(0.5, 1, 2, 1)
    assert product == Factors(1, 3, 10, 7)


def test_what_is_unknown_is_refused_in_one_line() -> None:
    nothing = resolve(lambda groups: torch.optim.SGD(groups))
    spectral = Optimizer("other", torch.optim.SGD, step="spectral", decay="coupled")
    cases = (
        (nothing, "kind of step"),
        (Optimizer("mine", torch.optim.SGD, step="sign"), "kind of weight decay"),
        (spectral, "no folding rule"),
    )
    for record, text in cases:
        with pytest.raises(OptimizerError, match=text) as caught:
            fold(record, C)
        assert "\n" not in str(caught.value)
