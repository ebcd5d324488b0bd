"""What watching a training costs: time with a watch over time without one, in one run.

    python benchmarks/watch.py [--width 128] [--depth 4] [--steps 200] [--every 50] [--rounds 3]

A pre-norm transformer on random tokens under AdamW with clipping. Trainings with and without a watch take turns; the
ratio of processor time is that of each pair, and the median and range over pairs are printed. The first steps, of which
a watch looks at those with the numbers 1, 2, 4, 8, …, count too. Then the time of one observed step over that of a
plain one.
"""

from __future__ import annotations

import argparse
import platform
import time
from contextlib import nullcontext
from statistics import median

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.models.lm import CONTEXT, VOCABULARY, Language

BATCH = 16


def timed(model: nn.Module, plan: dagscale.Plan, steps: int, every: int | None) -> float:
    """Processor seconds of a training from the plan's init: other programs on the machine do not count."""
    optimizer = plan.optimizer(plan.init_(model))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (steps, BATCH, CONTEXT + 1), generator=generator)
    with nullcontext() if every is None else dagscale.watch(model, plan, optimizer, every=every):
        begin = time.process_time()
        for batch in tokens:
            optimizer.zero_grad()
            loss = cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("width", 128), ("depth", 4), ("steps", 200), ("every", 50), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    torch.manual_seed(0)
    model, small = (Language(given.depth, width=w, heads=4) for w in (given.width, given.width // 2))
    x = torch.randint(VOCABULARY, (2, CONTEXT))
    plan = dagscale.plan(
        model, x, base=(small, x), base_lr=1e-3, optimizer="adamw", weight_decay=0.1, width="mup", law="none",
        init="in-degree",
    )  # fmt: skip
    timed(model, plan, 10, 5)
    for label, every, steps in (
        (f"every={given.every}, {given.steps} steps", given.every, given.steps), ("one observed step", 1, 20),
    ):  # fmt: skip
        ratios = [timed(model, plan, steps, every) / timed(model, plan, steps, None) for _ in range(given.rounds)]
        print(f"{label}: {median(ratios):.3f} × as long ({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} pairs)")


if __name__ == "__main__":
    main()
