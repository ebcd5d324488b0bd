"""One training run: what it returns, when it stops, what it leaves behind."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dagscale.errors import ForwardError, RecipeError, UnknownNameError
from dagscale.training.engine import Run, train
from dagscale.training.optimizers import OPTIMIZERS
from dagscale.training.recipe import Recipe


def blobs(n: int = 96, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three well separated classes in 4 dimensions, sorted by class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) * 3 // n
    return torch.randn(n, 4, generator=generator) + 3 * torch.eye(3, 4)[y], y


def mlp(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 16), *extra, nn.ReLU(), nn.Linear(16, 3))


def fit(model: nn.Module, x: Tensor, y: Tensor, lr: float = 0.1, **options: Any) -> Run:
    """A run at one rate; of the options ``seed`` and ``evaluate`` are `train`'s, the others the recipe's."""
    own = {name: options.pop(name) for name in ("seed", "evaluate") if name in options}
    return train(model, Recipe((x, y), **options), [{"params": list(model.parameters()), "lr": lr}], **own)


@pytest.mark.parametrize(("name", "lr"), [("sgd", 0.1), ("momentum", 0.02), ("adam", 0.01), ("adamw", 0.01)])
def test_every_optimizer_learns(name: str, lr: float) -> None:
    run = fit(mlp(), *blobs(), lr, optimizer=name, epochs=10, batch_size=16)
    assert not run.diverged
    assert run.loss < 0.6 < run.losses[0]
    assert run.steps == len(run.losses) == 60


def test_names_of_the_optimizers() -> None:
    assert set(OPTIMIZERS) >= {"adam", "adamw", "lion", "momentum", "nesterov", "rmsprop", "sgd"}
    with pytest.raises(UnknownNameError, match="did you mean 'adamw'"):
        fit(mlp(), *blobs(), optimizer="adamw2")


def test_one_step_is_one_gradient_step_at_each_groups_rate() -> None:
    x, y = blobs(8)
    model, oracle = mlp(), mlp()
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].weight, "lr": 0.25}]
    run = train(model, Recipe((x, y), batch_size=100), groups)
    assert run.steps == 1, "an incomplete batch is used where it is the only one"
    assert set(groups[0]) == {"params", "lr"}, "the caller's groups are left as they were"
    loss = F.cross_entropy(oracle(x), y)
    loss.backward()
    assert run.losses[0] == pytest.approx(loss.item(), rel=1e-5)
    for (name, after), before, rate in zip(
        model.named_parameters(), oracle.parameters(), (0.5, 0.5, 0.25, 0.0), strict=True
    ):
        assert before.grad is not None
        torch.testing.assert_close(after, before - rate * before.grad, msg=name)
        assert after.grad is None


def test_batches_reshuffle_and_drop_the_last_incomplete_one() -> None:
    seen: list[list[float]] = []

    class Spy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                seen.append(x.flatten().tolist())
            return super().forward(x)

    x, y = torch.arange(10.0).view(10, 1) / 10, torch.zeros(10, dtype=torch.long)
    run = fit(Spy(1, 2), x, y, epochs=2, batch_size=4)
    assert run.steps == 4
    assert [len(batch) for batch in seen] == [4] * 4
    first, second = seen[0] + seen[1], seen[2] + seen[3]
    assert len(set(first)) == len(set(second)) == 8, "no example twice in an epoch"
    assert first != second
    seen.clear()
    assert fit(Spy(1, 2), x, y, steps=7, batch_size=4).steps == 7


def test_final_loss_is_the_mean_over_the_training_set() -> None:
    x, y = blobs(97)
    model = mlp()
    run = fit(model, x, y, batch_size=16)
    assert run.loss == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-4)
    part = fit(mlp(), x, y, lr=1e-9, evaluate=10), fit(mlp(), x, y, lr=1e-9, evaluate=10, seed=5)
    assert part[0].loss == pytest.approx(part[1].loss, rel=1e-5), "the examples do not depend on the seed"
    assert part[0].loss != pytest.approx(run.losses[0], rel=1e-4)


def test_evaluation_leaves_running_statistics_alone() -> None:
    x, y = blobs(33)
    model = mlp(nn.BatchNorm1d(16))
    run = fit(model, x, y, batch_size=16)
    assert model[1].num_batches_tracked.item() == run.steps == 2
    assert math.isfinite(run.loss)
    assert model.training


def test_runs_repeat_and_the_global_generator_is_not_moved() -> None:
    x, y = blobs()
    before = torch.get_rng_state()
    runs = [fit(mlp(nn.Dropout(0.5)), x, y, seed=seed) for seed in (0, 0, 1)]
    torch.manual_seed(1)
    mlp()
    torch.set_rng_state(before)
    model = mlp(nn.Dropout(0.5))
    state = torch.get_rng_state()
    assert fit(model, x, y) == runs[0] == runs[1]
    assert torch.equal(state, torch.get_rng_state())
    assert runs[2].loss != runs[0].loss


@pytest.mark.parametrize("lr", [1e4, 1e30])
def test_too_large_a_rate_diverges_and_stops(lr: float) -> None:
    x, y = blobs()
    model = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 64), nn.Linear(64, 3))
    run = fit(model, x, y, lr, loss=lambda out, y: out.square().mean(), steps=50, batch_size=16)
    assert run.diverged
    assert run.loss == math.inf
    assert run.steps < 10
    assert len(run.losses) <= run.steps + 1


def test_nan_in_one_parameter_counts_as_diverged() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.a + self.b.sqrt().clamp(max=0)  # the gradient at 0 is infinite, the value is 0

    run = fit(Odd(), *blobs())
    assert (run.diverged, run.steps, len(run.losses)) == (True, 1, 1)


def test_a_nan_loss_at_the_start_takes_no_step() -> None:
    run = fit(mlp(), *blobs(), loss=lambda out, y: out.mean() * math.nan)
    assert (run.diverged, run.steps) == (True, 0)


@pytest.mark.parametrize("wrap", [lambda z: z, lambda z: {"logits": z}, lambda z: type("Out", (), {"logits": z})()])
def test_outputs_with_logits(wrap: Any) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Any:
            return wrap(self.net(x))

    assert fit(Wrapped(), *blobs()).loss == pytest.approx(fit(mlp(), *blobs()).loss)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_inputs_follow_the_models_type(dtype: torch.dtype) -> None:
    assert fit(mlp().to(dtype), *blobs()).loss == pytest.approx(fit(mlp(), *blobs()).loss, rel=0.05)


def test_integer_tokens_stay_integers() -> None:
    model = nn.Sequential(nn.Embedding(5, 8), nn.Flatten(), nn.Linear(16, 3))
    assert not fit(model, torch.randint(5, (20, 2)), torch.arange(20) % 3).diverged


def test_a_custom_optimizer() -> None:
    run = fit(mlp(), *blobs(), optimizer=lambda groups: torch.optim.RMSprop(groups), lr=0.01)
    assert not run.diverged


def own_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


def test_the_built_in_step_written_out_is_the_same_run() -> None:
    options: dict[str, Any] = {"epochs": 3, "batch_size": 16, "optimizer": "momentum", "loss": F.cross_entropy}
    assert fit(mlp(), *blobs(), step=own_step, **options) == fit(mlp(), *blobs(), **options)


def test_the_final_loss_of_a_step_without_a_loss_is_that_of_its_last_tenth() -> None:
    run = fit(mlp(), *blobs(), step=own_step, steps=30, batch_size=16)
    assert run.loss == pytest.approx(sum(run.losses[-3:]) / 3)


def test_a_step_needs_no_target_where_batches_have_none() -> None:
    def own(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> torch.Tensor:
        return own_step(model, optimizer, x, blobs()[1][: len(x)])

    x = blobs()[0]
    model = mlp()
    recipe = Recipe([x[:16], x[16:32], x[32:48]], step=own, steps=4)
    assert math.isfinite(train(model, recipe, [{"params": list(model.parameters()), "lr": 0.1}]).loss)


def test_a_step_of_the_users_own_is_held_against_divergence() -> None:
    run = fit(mlp(), *blobs(), step=lambda *_: math.inf, batch_size=16)
    assert (run.diverged, run.steps, run.loss) == (True, 1, math.inf)


def test_a_schedule_sets_the_rate_of_every_step() -> None:
    """Halved after each step: rates 0.4, 0.2, 0.1 as three groups of one-step runs, in the user's step and the own."""
    from torch.optim.lr_scheduler import ExponentialLR

    asked: list[int] = []
    rates: list[float] = []

    def halving(optimizer: torch.optim.Optimizer, total: int) -> ExponentialLR:
        asked.append(total)
        return ExponentialLR(optimizer, 0.5)

    def spying(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
        rates.append(optimizer.param_groups[0]["lr"])
        return own_step(model, optimizer, x, y)

    given: dict[str, Any] = {"batch_size": 96, "loss": F.cross_entropy}
    scheduled = fit(mlp(), *blobs(), lr=0.4, steps=3, schedule=halving, step=spying, **given)
    assert (asked, rates) == ([3], [0.4, 0.2, 0.1])
    model = mlp()
    for rate in (0.4, 0.2, 0.1):
        last = fit(model, *blobs(), lr=rate, steps=1, batch_size=96)
    assert scheduled.loss == pytest.approx(last.loss, rel=1e-5)
    assert fit(mlp(), *blobs(), lr=0.4, steps=3, schedule=halving, **given).loss == scheduled.loss


def test_errors_are_one_line_and_name_the_fault() -> None:
    x, y = blobs()
    frozen = mlp().requires_grad_(False)
    wrong: list[tuple[type[Exception], str, Any]] = [
        (RecipeError, "one length", lambda: fit(mlp(), x, y[:5])),
        (RecipeError, "at least 2 examples", lambda: fit(mlp(), x[:1], y[:1])),
        (RecipeError, "torch.uint8", lambda: fit(mlp(), x.byte(), y)),
        (RecipeError, "make images floating", lambda: fit(mlp(), torch.ones(9, 1, 2, 2).long(), y[:9])),
        (RecipeError, "two tensors", lambda: fit(mlp(), x.numpy(), y)),  # type: ignore[arg-type]
        (RecipeError, "steps must be at least 1", lambda: fit(mlp(), x, y, steps=0)),
        (RecipeError, "epochs must be", lambda: fit(mlp(), x, y, epochs=0)),
        (RecipeError, "batch_size must be", lambda: fit(mlp(), x, y, batch_size=0)),
        (RecipeError, "evaluate must be", lambda: fit(mlp(), x, y, evaluate=0)),
        (RecipeError, "nothing to train", lambda: fit(frozen, x, y)),
        (RecipeError, "nothing to train", lambda: train(mlp(), Recipe((x, y)), [])),
        (RecipeError, "nothing to train", lambda: fit(mlp(), x, y, loss=lambda out, y: out.detach().mean())),
        (
            RecipeError,
            "training step raised TypeError: it must return .* not NoneType, at step 1 of 6, seed 0",
            lambda: fit(mlp(), x, y, batch_size=16, step=lambda *_: None),
        ),  # type: ignore[arg-type, return-value]
        (
            RecipeError,
            "has no room for the target that the batches have: write step",
            lambda: fit(mlp(), x, y, batch_size=16, step=lambda model, optimizer, inputs: 0.0),
        ),
        (RecipeError, "the schedule raised TypeError", lambda: fit(mlp(), x, y, schedule=lambda optimizer: None)),
        (
            RecipeError,
            r"the schedule's step\(\) raised TypeError: .*metrics",
            lambda: fit(mlp(), x, y, schedule=lambda o, n: torch.optim.lr_scheduler.ReduceLROnPlateau(o)),
        ),
        (RecipeError, "take its mean", lambda: fit(mlp(), x, y, loss=lambda out, y: out)),
        (RecipeError, "the loss raised IndexError", lambda: fit(mlp(), x, y + 1)),
        (ForwardError, r"raised RuntimeError: mat1.*on data of shape \(96, 3\)", lambda: fit(mlp(), x[:, :3], y)),
    ]
    for kind, words, call in wrong:
        with pytest.raises(kind, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
