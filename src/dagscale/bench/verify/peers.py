"""Methods of others, each as its documentation says to use it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dagscale.bench.sweep import Run
from dagscale.bench.verify.methods import Method, narrow, plainly
from dagscale.bench.verify.runs import KINDS, built, dataset, decaying, recipe_of, trained
from dagscale.models import targets
from dagscale.registry import Registry
from dagscale.training.optimizers import Groups
from dagscale.training.recipe import default_loss

PEERS: Registry[Method] = Registry("method")

UNCHANGED = {"kind": "law", "law": "none"}
"""The base's rate as it is."""

PEERS.add("one-rate")(Method("one-rate", "keep", UNCHANGED))
"""The base's own rate for every architecture, under PyTorch's init."""


# --- mup ----------------------------------------------------------------------------------------------------


def in_mup(target: str, base: str) -> Mapping[str, Any]:
    """Training under mup; at the base's width it is PyTorch's own parametrisation, and the same run."""
    shapes = narrow(target, base)
    return plainly(target, base) if shapes == target else {"kind": "mup", "shapes": shapes}


@KINDS.add("mup")
def mup(run: Run) -> dict[str, Any]:
    """Train under maximal update parametrisation: MuReadout, MuSGD or MuAdam, base shapes from a narrower network."""
    import mup

    model = built(run)
    small, _ = targets.load(run.options["shapes"], data=dataset(run), seed=run.seed)
    names = [
        name
        for name, own in model.named_modules()
        if isinstance(own, nn.Linear)
        and isinstance(like := small.get_submodule(name), nn.Linear)
        and (own.out_features == like.out_features and own.in_features != like.in_features)
    ]
    for network in (small, model):
        for name in names:
            own = network.get_submodule(name)
            readout = mup.MuReadout(own.in_features, own.out_features, bias=own.bias is not None)
            readout.load_state_dict(own.state_dict())
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, readout)
    groups = decaying(run, model)
    mup.set_base_shapes(model, small)
    record = recipe_of(run).optimizer
    make = mup.MuSGD if record.step == "gradient" else {"adam": mup.MuAdam, "adamw": mup.MuAdamW}[record.name]
    settings = {**record.settings, "weight_decay": record.own_decay}
    return trained(run, model, groups, lambda listed: make(listed, lr=run.lr, **settings))


PEERS.add("mup")(Method("mup", "keep", UNCHANGED, in_mup, "mup", package=("mup", "mup")))


# --- torch-lr-finder ----------------------------------------------------------------------------------------

LOWEST = 1e-7
"""Rate that the range test starts from in the tool's README; its other settings are its defaults."""


@KINDS.add("lr-finder")
def lr_finder(run: Run) -> dict[str, Any]:
    """The learning-rate range test [Smith 2017] on the target, the rate of steepest descent [torch-lr-finder]."""
    from matplotlib.figure import Figure
    from torch_lr_finder import LRFinder

    data, model, recipe = dataset(run), built(run), recipe_of(run)
    optimizer = recipe.optimizer.make([{**group, "lr": LOWEST} for group in decaying(run, model)])
    order = torch.Generator().manual_seed(run.seed)
    size = min(run.batch_size, len(data))
    batches = DataLoader(TensorDataset(data.x, data.y), size, shuffle=True, drop_last=True, generator=order)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it talks
        finder = LRFinder(model, optimizer, recipe.loss or default_loss)
        finder.range_test(batches)
        _, lr = finder.plot(ax=Figure().add_subplot(), suggest_lr=True)
    return {"lr": float(lr), "steps": len(finder.history["lr"])}


PEERS.add("lr-finder")(
    Method("lr-finder", "keep", {"kind": "lr-finder"}, package=("torch-lr-finder", "torch_lr_finder"))
)


# --- Prodigy ------------------------------------------------------------------------------------------------


@KINDS.add("prodigy")
def prodigy(run: Run) -> dict[str, Any]:
    """Train with Prodigy [Mishchenko & Defazio 2024] at its own rate of 1, in place of the run's optimiser."""
    from prodigyopt import Prodigy

    model = built(run)

    def make(groups: Groups) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = Prodigy(groups, lr=1.0)
        return made

    return trained(run, model, decaying(run, model), make)


PEERS.add("prodigy")(
    Method("prodigy", "keep", {"kind": "prodigy"}, per_seed=True, package=("prodigyopt", "prodigyopt"))
)
