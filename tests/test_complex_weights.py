"""Complex weights: nothing that looks at them throws an imaginary part away, which torch would warn of."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale

X, Y = torch.randn(64, 3, 32, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4
TRAINING = {"data": (X, Y), "loss": cross_entropy, "optimizer": "adam", "batch_size": 32, "steps": 4}

pytestmark = pytest.mark.filterwarnings("error:Casting complex values")


class Fourier(nn.Module):
    """Two complex layers on Fourier coefficients, and a complex bias between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Parameter(0.1 * torch.randn(3, width, 8, dtype=torch.complex64))
        self.second = nn.Parameter(0.1 * torch.randn(width, width, 8, dtype=torch.complex64))
        self.bias = nn.Parameter(torch.randn(width, 8, dtype=torch.complex64))
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.einsum("bim,iom->bom", torch.fft.rfft(x)[..., :8], self.first) + self.bias
        z = torch.einsum("bim,iom->bom", z, self.second)
        out: torch.Tensor = self.head(torch.fft.irfft(z, n=16).relu().mean(-1))
        return out


@pytest.mark.parametrize("law", ["none", "short-run", "function-change", "curvature"])
def test_every_law_plans_them(law: str) -> None:
    plan = dagscale.plan(Fourier(16), base=Fourier(8), base_lr=0.1, law=law, init="moments", **TRAINING)
    assert 0.01 < plan.lr < 1


def test_search_and_its_plan() -> None:
    found = dagscale.search(Fourier(8), dagscale.Recipe(**TRAINING), seeds=1)
    assert dagscale.plan(Fourier(16), base=found, law="none").lr == found.lr


def test_a_check_sees_the_moments_that_the_init_has_set() -> None:
    report = dagscale.check(
        [Fourier(8), Fourier(16), Fourier(32)], base_lr=0.01, law="none", init="moments", seeds=2, **TRAINING
    )
    (hidden,) = [fit for fit in report.fits if (fit.quantity, fit.name) == ("moment", "hidden")]
    assert hidden.values == pytest.approx((1, 1, 1), rel=0.3)


def test_a_watch_finds_the_weights_of_the_size_that_the_plan_draws() -> None:
    model = Fourier(16)
    plan = dagscale.plan(model, base_lr=0.01, law="none", init="moments", **TRAINING)
    optimizer = plan.optimizer(plan.init_(model))
    with dagscale.watch(model, plan, optimizer, every=1) as watching:
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(model(X), Y).backward()
            optimizer.step()
    assert watching.report().ok
