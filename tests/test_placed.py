"""The init ``placed``: positions as large as what they are added to."""

import pytest
import torch
from torch import nn
from torch.nn.functional import softmax

import dagscale
from dagscale.inits.placed import tables


class Encoder(nn.Module):
    """Tokens and positions, attention with a learned bias on its scores, a readout."""

    def __init__(self, way: str, width: int = 32) -> None:
        super().__init__()
        self.way = way
        self.token, self.place = nn.Embedding(11, width), nn.Embedding(8, width)
        nn.init.normal_(self.place.weight, 0.0, 0.02)
        self.near = nn.Parameter(0.02 * torch.randn(8, 8))
        self.qkv, self.head = nn.Linear(width, 3 * width), nn.Linear(width, 11)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        place = self.place(torch.arange(ids.shape[1])) if self.way == "lookup" else self.place.weight
        q, k, v = self.qkv(self.token(ids) + place).chunk(3, -1)
        mixed = softmax(q @ k.transpose(1, 2) / 6 + self.near, -1) @ v
        out: torch.Tensor = self.head(mixed)
        return out


IDS = torch.randint(11, (64, 8), generator=torch.Generator().manual_seed(0))


def stds(model: nn.Module, init: str) -> dict[str, float | None]:
    plan = dagscale.plan(model, IDS, base_lr=1.0, law="none", init=init, optimizer="adam")
    return {name: p.init_std for name, p in plan.parameters.items()}


@pytest.mark.parametrize("way", ["lookup", "weight"])
def test_positions_are_drawn_as_embeddings_are_however_they_are_added(way: str) -> None:
    torch.manual_seed(0)
    model = Encoder(way)
    found, plain = stds(model, "placed"), stds(model, "moments")
    assert plain["place.weight"] is None
    assert found["place.weight"] == 1.0
    assert found["token.weight"] == pytest.approx(1.0, rel=0.05)
    assert found["near"] is None  # a bias of attention's scores is no summand of a signal


def test_what_reads_the_sum_is_set_for_it() -> None:
    """The sum's second moment is 2 in place of 1, so the next layer's weights are smaller by √2."""
    torch.manual_seed(0)
    model = Encoder("weight")
    found, plain = stds(model, "placed"), stds(model, "moments")
    a, b = found["qkv.weight"], plain["qkv.weight"]
    assert a
    assert b
    assert a / b == pytest.approx(2**-0.5, rel=0.06)


def test_a_plan_that_leaves_them_says_so() -> None:
    said = {
        init: [
            note
            for note in dagscale.plan(Encoder("lookup"), IDS, base_lr=1.0, law="none", init=init).notes
            if "'placed' draws them" in note
        ]
        for init in ("moments", "placed", "keep")
    }
    (note,) = said["moments"]
    assert "place.weight" in note
    assert "near" not in note
    assert not said["placed"]
    assert not said["keep"]


def test_biases_and_shared_tables_are_none() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    assert tables(dagscale.trace(model, torch.randn(4, 6))) == set()
