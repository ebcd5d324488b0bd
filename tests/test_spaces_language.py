"""The spaces ``lm`` and ``mixer``: shapes, what a token may see, where they start, and what is refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

import dagscale
from dagscale.bench.data.text import CONTEXT, library_text, read_text
from dagscale.cli.data import load_data
from dagscale.errors import TargetError
from dagscale.graph.branches import find_branches
from dagscale.models import load
from dagscale.models.lm import Language
from dagscale.models.mixer import Mixer


def test_a_token_sees_itself_and_earlier_ones_alone() -> None:
    torch.manual_seed(0)
    model = Language(2, width=32, context=8).double()
    nn.init.normal_(model.token.weight)
    tokens = torch.randint(256, (1, 8))
    other = tokens.clone()
    other[0, 5] = (other[0, 5] + 1) % 256
    changed = (model(tokens) - model(other)).abs().amax(-1)[0] > 1e-9
    assert changed.tolist() == [False] * 5 + [True] * 3


def test_it_starts_as_gpt_2_does() -> None:
    """Standard deviations to four standard errors, 4/√(2n) of each of n weights."""
    torch.manual_seed(0)
    depth = 3
    model = Language(depth, width=64)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            ends = name.endswith(("o.weight", "down.weight"))
            wanted = 0.02 / ((2 * depth) ** 0.5 if ends else 1)
            assert abs(parameter.std().item() / wanted - 1) < 4 / (2 * parameter.numel()) ** 0.5, name


def test_ends_may_be_tied_and_norms_left_out() -> None:
    plain, tied = (load(f"lm:2?width=32{more}")[0] for more in ("", "&tied=1"))
    assert tied.head.weight is tied.token.weight
    assert sum(p.numel() for p in plain.parameters()) - sum(p.numel() for p in tied.parameters()) == 256 * 32
    bare, _ = load("lm:2?width=32&norm=none")
    kinds = {type(part) for part in bare.modules()}
    assert nn.LayerNorm not in kinds
    assert nn.LayerNorm in {type(part) for part in plain.modules()}
    ends = {name for part in find_branches(dagscale.trace(*load("lm:2?width=32"))).branches for name in part.ends}
    assert ends >= {"blocks.0.o.weight", "blocks.1.down.weight"}


def test_vocabulary_and_length_are_those_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the quick brown fox " * 40)
    data = read_text(tmp_path / "a.txt", context=12)
    model, inputs = load("lm:1?width=16", data=data)
    assert inputs.shape == (2, 12)
    assert model.place.weight.shape == (12, 16)
    assert data.loss(model(data.x), data.y).item() == pytest.approx(5.545, abs=0.05)  # ln 256 at this start
    model, inputs = load("lm:1?width=16&input=5&classes=7")
    assert model(inputs).shape == (2, 5, 7)


def test_heads_are_16_wide_unless_said() -> None:
    assert [Language(1, width=w).blocks[0].heads for w in (16, 48, 40)] == [1, 3, 1]
    assert load("lm:1?width=40&heads=5")[0].blocks[0].heads == 5


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("lm:0", "is no depth"),
        ("lm:2?width=10&heads=4", "heads=4 does not divide width=10"),
        ("lm:2?norm=batch", "unknown"),
        ("lm:2?input=3x8x8", "takes token ids, not inputs of shape 3x8x8"),
        ("mixer:2?patch=3", "write patch=2"),
        ("mixer:2?input=16", "takes images"),
    ],
)
def test_what_cannot_be_is_refused(target: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        load(target)


def test_a_mixer_mixes_tokens_and_takes_every_image() -> None:
    torch.manual_seed(0)
    model = Mixer(1, shape=(3, 8, 8), classes=5, width=16)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    model(x)[0, 2].backward()
    assert x.grad is not None
    assert model(x).shape == (2, 5)
    assert bool((x.grad[0] != 0).all())
    assert not bool(x.grad[1].any())
    mixed = {name for part in find_branches(dagscale.trace(*load("mixer:2?width=16"))).branches for name in part.ends}
    assert mixed >= {"blocks.0.mixed.weight", "blocks.1.down.weight"}


def test_the_librarys_text_is_held_out_by_whole_modules() -> None:
    train, held = library_text(64, limit=50), library_text(64, held=True, limit=50)
    assert train.x.shape == (50, 64)
    assert torch.equal(train.x[:, 1:], train.y[:, :-1])
    assert train.digest != held.digest
    assert train.digest == library_text(64, limit=50).digest
    whole = {tuple(row) for row in library_text(64).x.tolist()}
    assert sum(tuple(row) in whole for row in held.x.tolist()) <= 5  # a licence or a line of dashes may repeat


def test_the_command_line_takes_the_librarys_text() -> None:
    data = load_data("text", 10)
    assert data.x.shape == (10, CONTEXT)
    assert (data.classes, data.loss(torch.zeros(10, CONTEXT, 256), data.y).item()) == (
        256,
        pytest.approx(5.545, abs=1e-3),
    )
