"""The loops that people copy, as the examples have them."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parent.parent / "examples" / "tiny_gpt.py"


@pytest.mark.slow
def test_the_gpt_loop_trains_with_the_plans_rates() -> None:
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()) as out:
        made = runpy.run_path(str(EXAMPLE))
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", out.getvalue())]
    assert losses[-1] < 0.6 * losses[0]
    plan, model = made["plan"], made["model"]
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: g["initial_lr"] for g in made["optimizer"].param_groups for p in g["params"]}
    assert rates == {name: own.lr for name, own in plan.parameters.items()}
    assert rates["h.0.up.weight"] < rates["wte.weight"], "hidden weights of the wider model learn more slowly"
