"""Residual branches, read from graphs: against hand counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.fixtures.residual import NETWORKS, ResNet, Transformer, Vit, example
from torch import Tensor, nn
from torch.nn import functional as F

import dagscale
from dagscale.graph import Graph
from dagscale.graph.attention import find_attention
from dagscale.graph.branches import Branch, Residuals, find_branches
from dagscale.graph.roles import roles
from dagscale.models import load
from dagscale.models.timm import declare_torchvision_ops


def graph(model: nn.Module, x: Any = None) -> Graph:
    return dagscale.trace(model, example(model)[0] if x is None else x)


def found(model: nn.Module, x: Any = None) -> Residuals:
    return find_branches(graph(model, x))


def layer(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{part}" for name in names for part in ("weight", "bias"))


class Written(nn.Module):
    """Linear layers a to e of 8 channels and a norm n; a forward given as a function of them and x."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        for name in "abcde":
            setattr(self, name, nn.Linear(8, 8))
        self.n, self.gain = nn.LayerNorm(8), nn.Parameter(torch.ones(8))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.e(self.function(self, self.a(x)))
        return out


def written(function: Callable[[Any, Tensor], Tensor]) -> Residuals:
    return found(Written(function), torch.randn(2, 8))


ENDS = {
    "pre": (layer("o"), layer("down")),
    "post": (layer("o"), layer("down")),
    "sandwich": (layer("p1"), layer("p2")),
    "parallel": (layer("o", "down"),),
    "layer scale": (("ls1",), ("ls2",)),
    "re-zero": (("alpha",), ("alpha",)),
    "gated": (layer("o"), layer("down")),
    "relu end": (layer("o"),),
}


@pytest.mark.parametrize("kind", ENDS)
def test_transformer_blocks(kind: str) -> None:
    residuals = found(Transformer(kind, depth=3))
    expected = [tuple(f"blocks.{i}.{n}" for n in ends) for i in range(3) for ends in ENDS[kind]]
    assert [branch.ends for branch in residuals.branches] == expected
    assert residuals.additions == (len(expected),)
    assert not residuals.unclear
    assert not any(branch.undone or branch.note for branch in residuals.branches)


def test_what_is_inside_a_pre_norm_block() -> None:
    attention, mlp = found(Transformer("pre", depth=1)).branches
    assert set(attention.inside) == set(layer(*(f"blocks.0.{n}" for n in ("n1", "q", "k", "v"))))
    assert set(mlp.inside) == set(layer("blocks.0.n2", "blocks.0.up"))


def test_the_norms_of_a_post_norm_block_are_the_trunks() -> None:
    inside = {name for branch in found(Transformer("post")).branches for name in branch.inside}
    assert not any(".n1." in name or ".n2." in name for name in inside)


@pytest.mark.parametrize(("bottleneck", "last"), [(False, 1), (True, 2)])
def test_resnets_end_in_their_last_batch_norm(bottleneck: bool, last: int) -> None:
    residuals = found(ResNet((2, 2, 1), bottleneck=bottleneck))
    assert residuals.additions == (5,)
    assert [b.ends for b in residuals.branches] == [layer(f"blocks.{i}.norms.{last}") for i in range(5)]
    touched = {name for b in residuals.branches for name in (*b.ends, *b.inside)}
    assert not any("shortcut" in name for name in touched)  # a block that changes its shape: the shortcut is the trunk
    assert {b.kind for b in residuals.branches} == {(last + 1, frozenset({"conv2d"}), False)}


def test_a_gate_that_reads_the_end_takes_the_factor_back() -> None:
    for i, branch in enumerate(found(ResNet(squeeze=True)).branches):
        assert branch.ends == layer(f"blocks.{i}.norms.1")
        assert branch.undone == (f"blocks.{i}.squeeze.weight",)


def test_vit_with_layer_scale() -> None:
    residuals = found(Vit(depth=2))
    assert [b.ends for b in residuals.branches] == [(f"blocks.{i}.ls{j}",) for i in range(2) for j in (1, 2)]


def test_experts() -> None:
    residuals = found(NETWORKS["mixture"](1.0))
    assert [b.ends for b in residuals.branches] == [layer(*(f"experts.{i}.{j}.2" for j in range(3))) for i in range(2)]


def test_a_looped_block_counts_every_time() -> None:
    residuals = found(Transformer("pre", depth=5, looped=True))
    assert residuals.additions == (10,)
    assert {b.ends for b in residuals.branches} == {layer("blocks.0.o"), layer("blocks.0.down")}


def test_an_encoder_and_a_decoder_have_a_trunk_each() -> None:
    model = nn.Transformer(8, 2, 2, 3, 16, batch_first=True)
    residuals = found(model, (torch.randn(2, 5, 8), torch.randn(2, 5, 8)))
    assert residuals.additions == (2 * 2, 3 * 3)
    cross = next(b for b in residuals.branches if b.ends == layer("decoder.layers.0.multihead_attn.out_proj"))
    assert set(cross.inside) == {f"decoder.layers.0.multihead_attn.in_proj_{n}" for n in ("weight", "bias")}


TOLD: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "dropout": lambda m, x: x + F.dropout(m.c(m.b(x).relu()), 0.5),
    "mean": lambda m, x: x + m.c(m.b(x).relu()).mean(-1, keepdim=True),
    "minus": lambda m, x: x - m.c(m.b(x).relu()),
    "constant": lambda m, x: 0.9 * x + 0.1 * m.c(m.b(x).relu()),
    "in place": lambda m, x: x.clone().add_(m.c(m.b(x).relu())),
    "a long skip besides": lambda m, x: x + (x + m.c(m.b(x).relu())),
    "gate before": lambda m, x: x + m.c(m.b(x).sigmoid() * m.d(x)),
    "gate of the trunk": lambda m, x: x * m.b(x).sigmoid() + m.c(m.d(x).relu()),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_comes_between_the_end_and_the_addition(name: str) -> None:
    (branch,) = written(TOLD[name]).branches
    assert branch.ends == layer("c")


def blocks(m: Any, x: Tensor) -> Tensor:
    x = x + m.b(x.relu())
    return x + m.c(x.relu())


def with_scores(m: Any, x: Tensor) -> Tensor:
    """Attention over channels whose scores are added up from block to block."""
    scores = m.b(x).unsqueeze(-1) * m.d(x).unsqueeze(-2)
    x = x + (scores.softmax(-1) @ x.unsqueeze(-1)).squeeze(-1)
    scores = scores + m.c(x).unsqueeze(-1) * m.n(x).unsqueeze(-2)
    return x + (scores.softmax(-1) @ x.unsqueeze(-1)).squeeze(-1)


READ: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "probabilities at its end": (lambda m, x: blocks(m, x).softmax(-1), 2),
    "log-probabilities at its end": (lambda m, x: blocks(m, x).log_softmax(-1), 2),
    "its own shares as a gate": (lambda m, x: (x := blocks(m, x)) + m.d(x) * x.softmax(-1), 3),
    "its own shares as weights of a mean": (lambda m, x: m.d(((x := blocks(m, x)) * x.softmax(0)).sum(0)), 2),
    "scores that are added up": (with_scores, 2),
}
"""Softmax readers of residual streams, and the number of residual additions."""


@pytest.mark.parametrize("name", READ)
def test_a_trunk_may_be_read_by_a_softmax(name: str) -> None:
    function, additions = READ[name]
    model = Written(function)
    model.e = nn.Identity()
    assert found(model, torch.randn(2, 8)).additions == (additions,)


NOT_FOLDED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "tanh": (lambda m, x: x + m.b(x).tanh(), "ends in 'tanh'"),
    "norm without gain": (lambda m, x: x + F.layer_norm(m.b(x), (8,)), "norm without gain"),
    "computed gain": (lambda m, x: x + m.gain.exp() * m.b(x).tanh(), "what is computed from it"),
    "shared": (lambda m, x: m.b((x + m.b(m.c(x).relu())).relu()), "b.bias is used elsewhere too"),
    "highway": (lambda m, x: x * (1 - m.b(x).sigmoid()) + m.c(x).tanh() * m.b(x).sigmoid(), "ends in"),
    "read elsewhere": (lambda m, x: x + (y := m.b(x)) + m.c(y.tanh()), "is read by 'tanh' too"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_FOLDED)
def test_what_cannot_be_folded_is_named(name: str) -> None:
    function, text = NOT_FOLDED[name]
    (branch,) = written(function).branches
    assert text in branch.note
    assert branch.ends == branch.undone == ()


NONE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a chain": lambda m, x: m.c(m.b(x).relu()),
    "concatenation": lambda m, x: torch.cat([x[:, :4], m.b(x)[:, 4:].relu()], 1),
    "linear layers side by side": lambda m, x: m.b(x) + m.c(x),
    "the same twice": lambda m, x: (y := m.b(x).relu()) + y,
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_branch(name: str) -> None:
    assert written(NONE[name]) == Residuals(())


def test_a_trunk_that_cannot_be_told_is_said() -> None:
    residuals = written(lambda m, x: m.b(x.relu()) + m.c(x.tanh()))
    assert not residuals.branches
    assert len(residuals.unclear) == 1


class Modulated(nn.Module):
    """Layers whose outputs get a gain and a shift that are made of another input: FiLM [Perez et al. 2018]."""

    def __init__(self, depth: int, halves: bool) -> None:
        super().__init__()
        self.halves, self.embedding, self.stem, self.head = halves, nn.Linear(5, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
        self.shifts = nn.ModuleList(nn.Linear(8, 16 if halves else 8) for _ in range(depth))
        self.gains = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h, c = self.stem(x).relu(), self.embedding(c).relu()
        for layer, shift, gain in zip(self.layers, self.shifts, self.gains, strict=True):
            a, b = shift(c).chunk(2, 1) if self.halves else (gain(c), shift(c))
            h = (layer(h) * (1 + a) + b).relu()
        return self.head(h)  # type: ignore[no-any-return]


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("halves", [True, False])
def test_a_gain_and_a_shift_of_another_input_make_no_residual_network(depth: int, halves: bool) -> None:
    residuals = find_branches(dagscale.trace(Modulated(depth, halves), (torch.randn(2, 6), torch.randn(2, 5))))
    assert residuals.branches == ()
    assert len(residuals.unclear) == depth


def test_a_gated_block_beside_a_projection_is_a_branch() -> None:
    (branch,) = written(lambda m, x: m.c(y := m.n(x).relu()) + m.b(y) * m.d(y).sigmoid()).branches
    assert set(branch.ends) == set(layer("b"))


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells_have_no_branch_that_folds(cell: Callable[..., nn.Module]) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = cell(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            state: Any = None
            for t in range(3):
                state = self.cell(x[:, t], state)
            out: Tensor = self.out(state[0] if isinstance(state, tuple) else state)
            return out

    assert all(branch.note for branch in found(Recurrent(), torch.randn(2, 3, 4)).branches)


def test_roles() -> None:
    found = roles(graph(Transformer("pre", depth=1)))
    assert {name: role for name, role in found.items() if "blocks" not in name} == {
        "embed.weight": "embedding", "position": "vector", "last.weight": "norm", "last.bias": "norm",
        "readout.weight": "readout",
    }  # fmt: skip
    inside = {name.removeprefix("blocks.0."): role for name, role in found.items() if "blocks" in name}
    assert {n for n, role in inside.items() if role == "hidden"} == {
        f"{n}.weight" for n in ("q", "k", "v", "o", "up", "down")
    }
    assert {n for n, role in inside.items() if role == "bias"} == {
        f"{n}.bias" for n in ("q", "k", "v", "o", "up", "down")
    }
    assert {n for n, role in inside.items() if role == "norm"} == set(layer("n1", "n2"))
    assert roles(graph(ResNet()))["stem.weight"] == "input"


def test_attention() -> None:
    attentions = find_attention(graph(Transformer("pre", depth=2, width=16, head=8)))
    assert [set(a.queries) for a in attentions] == [set(layer(f"blocks.{i}.q")) for i in range(2)]
    assert {a.head for a in attentions} == {8}
    assert find_attention(graph(ResNet(squeeze=True))) == ()


# --- other people's models -----------------------------------------------------------------------------------


def theirs(target: str) -> list[Branch]:
    library = {"timm": "timm", "hf": "transformers"}[target.split(":")[0]]
    declare_torchvision_ops()
    pytest.importorskip(library)
    residuals = find_branches(dagscale.trace(*load(target)))
    assert not residuals.unclear
    assert len(residuals.additions) <= 1
    return list(residuals.branches)


SMALL = "width=32&layers=3&heads=2&vocab=50"
LIBRARIES = {
    f"hf:gpt2?{SMALL}": (("attn.c_proj",), ("mlp.c_proj",)),
    f"hf:llama?{SMALL}&kv_heads=1&mlp=48": (("self_attn.o_proj.weight",), ("mlp.down_proj.weight",)),
    f"hf:bert?{SMALL}&mlp=48": (("attention.output.dense",), ("output.dense",)),
    "hf:gptj?layers=3&heads=2&width=128&vocab=50": (("attn.out_proj.weight", "mlp.fc_out"),),
    f"hf:mixtral?{SMALL}&kv_heads=2&mlp=48&experts=3": (("self_attn.o_proj.weight",), ("mlp.experts.down_proj",)),
    "hf:mamba?width=32&layers=3&vocab=50": (("mixer.out_proj.weight",),),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", LIBRARIES)
def test_transformers(target: str) -> None:
    branches = theirs(target)
    ends = LIBRARIES[target]
    assert len(branches) == 3 * len(ends)
    for i, branch in enumerate(branches):
        assert not branch.note
        listed = {
            n for end in ends[i % len(ends)] for n in ((end,) if end.endswith(("weight", "down_proj")) else layer(end))
        }
        assert len(branch.ends) == len(listed)
        assert all(any(name.endswith(n) for n in listed) and f".{i // len(ends)}." in name for name in branch.ends)


@pytest.mark.filterwarnings("ignore")
def test_t5() -> None:
    """Encoder and decoder, relative positions shared by all layers, the embedding shared by both."""
    declare_torchvision_ops()
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        d_model=16, d_ff=24, d_kv=8, num_layers=2, num_decoder_layers=3, num_heads=2, vocab_size=20
    )
    tokens = torch.zeros(2, 5, dtype=torch.long)
    model = transformers.T5ForConditionalGeneration(config)
    residuals = found(model, {"input_ids": tokens, "decoder_input_ids": tokens})
    assert residuals.additions == (2 * 2, 3 * 3)
    assert [b.ends[0].rpartition(".layer.")[2] for b in residuals.branches[4:7]] == [
        "0.SelfAttention.o.weight", "1.EncDecAttention.o.weight", "2.DenseReluDense.wo.weight",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("target", "additions", "end"),
    [
        ("timm:resnet18", 8, ".bn2."),
        ("timm:resnet50", 16, ".bn3."),
        ("timm:resnetv2_50", 16, ".conv3."),
        ("timm:seresnet18", 8, ".bn2."),
        ("timm:convnext_tiny", 18, ".gamma"),
        ("timm:mixer_s32_224", 16, ".fc2."),
        ("timm:vit_tiny_patch16_224", 24, "."),
        ("timm:swin_tiny_patch4_window7_224", 24, "."),
        ("timm:cait_xxs24_224", 51, ".gamma_"),
        ("timm:densenet121", 0, ""),
    ],
)
def test_timm(target: str, additions: int, end: str) -> None:
    branches = theirs(target)
    assert len(branches) == additions
    assert all(end in name for branch in branches for name in branch.ends)
    assert all(branch.ends and not branch.note for branch in branches)


@pytest.mark.filterwarnings("ignore")
def test_gains_that_are_stored_as_an_offset() -> None:
    """Gemma 2 ends its branches in norms with a gain 1 + w."""
    branches = theirs(f"hf:gemma2?{SMALL}&kv_heads=1&mlp=48")
    ends = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
    assert [b.ends for b in branches] == [(f"model.model.layers.{i}.{end}",) for i in range(3) for end in ends]


class Experts(nn.Module):
    """Every expert answers, by matrices and biases of all in one."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.up_bias = (nn.Parameter(torch.randn(3, 8, 16)), nn.Parameter(torch.randn(3, 16)))
        self.down, self.down_bias = (nn.Parameter(torch.randn(3, 4, 16)), nn.Parameter(torch.randn(3, 4)))
        self.table = nn.Parameter(torch.randn(5, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        each = [(x @ self.up[i] + self.up_bias[i] + self.table).relu() for i in range(3)]
        return sum(h @ self.down[i].T + self.down_bias[i] for i, h in enumerate(each))


def test_a_bias_for_each_of_several_stacked_weights_is_a_bias() -> None:
    found = roles(dagscale.trace(Experts(), torch.randn(2, 5, 8)))
    assert found["up_bias"] == found["down_bias"] == "bias"
    assert found["table"] == "vector"


class Halves(nn.Module):
    """One layer makes two signals: a norm written out on the one, an activation written out on the other, and a gate
    of the third by the fourth."""

    def __init__(self) -> None:
        super().__init__()
        self.all, self.gain = nn.Linear(8, 32), nn.Parameter(torch.ones(8))
        self.first, self.second, self.third = (nn.Linear(8, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c, d = self.all(x).chunk(4, -1)
        a = a * (a.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.gain
        out: torch.Tensor = self.first(a) + self.second(b * b.sigmoid()) + self.third(c * d.sigmoid())
        return out


def test_a_function_of_one_part_of_a_signal_is_one_op() -> None:
    graph = dagscale.trace(Halves(), torch.randn(2, 5, 8))
    before = {
        use.name: [op.kind for op in graph.edges[use.edge].ops if op.kind in ("norm", "activation")]
        for use in graph.layers
    }
    assert before == {"all": [], "first": ["norm"], "second": ["activation"], "third": []}
    assert [v.kind for v in graph.vertices] == ["input", "fork", "product", "sum", "output"]
    assert roles(graph)["gain"] == "norm"
