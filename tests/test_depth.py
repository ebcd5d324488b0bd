"""Depth and head rules: the published tables, the published training step, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from tests.fixtures.residual import Mlp, ResNet, Transformer, example, losses, redraw
from torch import Tensor, nn
from torch.nn import functional as F

import dagscale
from dagscale.errors import DagscaleError, OptimizerError, PlanError, UnknownNameError
from dagscale.graph import Graph
from dagscale.graph.branches import find_branches
from dagscale.models.timm import declare_torchvision_ops
from dagscale.scaling.depth import DEPTH_RULES, DepthScaling, depth_scaling, own_scaling
from dagscale.scaling.folding import Factors
from dagscale.scaling.heads import head_scaling
from dagscale.training.optimizers import Optimizer, resolve

M = 4
"""Growth of depth in most tests: 2 blocks → 8."""


def graph(model: nn.Module, x: Any = None) -> Graph:
    return dagscale.trace(model, example(model)[0] if x is None else x)


@cache
def pair(kind: str = "pre") -> tuple[Graph, Graph]:
    return graph(Transformer(kind, 2)), graph(Transformer(kind, 2 * M))


def scaled(optimizer: str | Optimizer, *args: Any, **options: Any) -> dict[str, DepthScaling]:
    return depth_scaling(*pair(), resolve(optimizer), *args, **options)


# --- the tables ----------------------------------------------------------------------------------------------------

TABLE = {  # optimiser, α: of a branch's end, and of what is inside
    ("adamw", 1.0): (Factors(1 / M, 1 / M, 1, M), Factors(1, 1, 1 / M, 1)),
    ("adamw", 0.5): (Factors(M**-0.5, 1 / M, 1, M**0.5), Factors(1, M**-0.5, M**-0.5, 1)),
    ("adam", 1.0): (Factors(1 / M, 1 / M, 1, M**2), Factors(1, 1, 1 / M, 1)),
    ("muon", 1.0): (Factors(1 / M, 1 / M, 1, M), Factors(1, 1, 1 / M, 1)),
    ("lion", 1.0): (Factors(1 / M, 1 / M, 1, M), Factors(1, 1, 1, 1)),
    ("sgd", 0.5): (Factors(M**-0.5, 1 / M, 1, M), Factors(1, 1, 1, 1)),
    ("momentum", 1.0): (Factors(1 / M, 1 / M, 1, M**2), Factors(1, M, 1, 1)),
    ("adafactor", 1.0): (Factors(1 / M, 1, 1, 1), Factors(1, 1, 1, 1)),
}
"""[docs/how/depth.md; CompleteP's Table 1 folded]"""

TABLE = {key: rows for key, rows in TABLE.items() if key[0] in dagscale.OPTIMIZERS}  # before torch 2.5 one is missing


def close(one: Factors, other: Factors) -> bool:
    return all(math.isclose(getattr(one, f), getattr(other, f)) for f in ("init", "lr", "eps", "weight_decay"))


@pytest.mark.parametrize(("optimizer", "alpha"), TABLE)
def test_factors_are_the_table(optimizer: str, alpha: float) -> None:
    end, inside = TABLE[optimizer, alpha]
    found = scaled(optimizer, alpha=alpha)
    assert set(found) == {p.name for p in pair()[1].parameters}
    for name, scaling in found.items():
        if ".o." in name or ".down." in name:
            assert close(scaling.factors, end), name
            assert math.isclose(scaling.fold, M**-alpha)
            assert "end of a residual branch" in scaling.note
        elif "blocks" in name and name.rsplit(".", 2)[-2] in ("n1", "n2", "q", "k", "v", "up"):
            assert close(scaling.factors, inside), name
            assert (scaling.fold, scaling.note) == (1, "")
        else:
            assert scaling == DepthScaling(), name


def test_alpha_by_default() -> None:
    for optimizer, alpha in (("adamw", 1.0), ("muon", 1.0), ("lion", 1.0), ("sgd", 0.5), ("nesterov", 0.5)):
        assert scaled(optimizer) == scaled(optimizer, alpha=alpha)
    assert scaled("adamw", "depth-mup") == scaled("adamw", alpha=0.5)
    assert set(DEPTH_RULES) == {"completep", "completedp", "depth-mup", "plain"}


def test_equal_depth_changes_nothing_and_back_is_the_inverse() -> None:
    base, target = pair()
    for optimizer in ("adamw", "sgd"):
        assert set(depth_scaling(base, base, resolve(optimizer)).values()) == {DepthScaling()}
        deeper, shallower = (
            depth_scaling(base, target, resolve(optimizer)),
            depth_scaling(target, base, resolve(optimizer)),
        )
        for name, scaling in shallower.items():
            assert close(scaling.factors * deeper[name].factors, Factors())


def test_a_base_that_is_deeper_is_told_of() -> None:
    base, target = pair()
    back = {s.note for s in depth_scaling(target, base, resolve("adamw")).values() if s.fold > 1 and s.note}
    assert len(back) == 1
    assert back.pop().endswith("the base is the deeper one, and what is known of the rule is for deeper targets")
    assert not any("deeper" in s.note for s in depth_scaling(base, target, resolve("adamw")).values())


def test_each_trunk_has_its_own_growth() -> None:
    def make(encoder: int, decoder: int) -> Graph:
        return graph(
            nn.Transformer(8, 2, encoder, decoder, 16, batch_first=True), (torch.randn(2, 5, 8), torch.randn(2, 5, 8))
        )

    found = depth_scaling(make(1, 1), make(2, 6), resolve("adamw"))
    assert found["encoder.layers.1.linear2.weight"].depth_mult == 2
    assert found["decoder.layers.1.linear2.weight"].depth_mult == 6
    assert found["decoder.layers.1.multihead_attn.in_proj_weight"].factors.eps == 1 / 6


class Nested(nn.Module):
    """Residual blocks, each with a residual network of ``inner`` blocks inside."""

    def __init__(self, outer: int, inner: int) -> None:
        super().__init__()
        self.stem, self.readout = nn.Linear(16, 8), nn.Linear(8, 4)
        self.down, self.up = (nn.ModuleList(nn.Linear(8, 8) for _ in range(outer)) for _ in range(2))
        self.inner = nn.ModuleList(nn.ModuleList(Mlp(inner).children()) for _ in range(outer))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for down, up, (_, _, firsts, seconds) in zip(self.down, self.up, self.inner, strict=True):
            y = down(x)
            for first, second in zip(firsts, seconds, strict=True):
                y = y + second(first(y).relu())
            x = x + up(y.relu())
        out: Tensor = self.readout(x)
        return out


def test_a_residual_network_inside_a_branch_has_its_own_growth() -> None:
    def factors(outer: int, inner: int) -> dict[str, DepthScaling]:
        x = torch.randn(2, 16)
        return depth_scaling(graph(Nested(2, 2), x), graph(Nested(outer, inner), x), resolve("adamw"))

    deeper, wider = factors(6, 2), factors(2, 8)
    assert deeper["up.0.weight"].depth_mult == deeper["inner.0.3.0.weight"].depth_mult == 3
    assert deeper["up.0.weight"].fold == 1 / 3
    assert deeper["inner.0.3.0.weight"].fold == 1  # inside a branch, and no end of one whose number has grown
    assert wider["up.0.weight"] == DepthScaling()
    assert wider["inner.0.3.0.weight"].fold == 1 / 4


def test_a_gate_behind_the_end_is_undone() -> None:
    found = depth_scaling(graph(ResNet((1, 1), squeeze=True)), graph(ResNet((2, 2), squeeze=True)), resolve("adamw"))
    scaling = found["blocks.0.squeeze.weight"]
    assert (scaling.factors.init, scaling.fold) == (2, 2)
    assert "takes back" in scaling.note


def test_what_cannot_be_folded_is_left_as_it_is_and_noted() -> None:
    class Ungated(nn.Module):
        """Begins with sums of x and gelu(W x), which no multiplier can be folded into."""

        def __init__(self, depth: int) -> None:
            super().__init__()
            self.first, self.body = nn.ModuleList(nn.Linear(16, 16) for _ in range(depth)), Mlp(depth)

        def forward(self, x: Tensor) -> Tensor:
            for first in self.first:
                x = x + F.gelu(first(x))
            out: Tensor = self.body(x)
            return out

    x = torch.randn(2, 16)
    found = depth_scaling(graph(Ungated(2), x), graph(Ungated(5), x), resolve("adamw"))
    assert found["first.0.weight"].factors == Factors()
    assert "ends in 'gelu'" in found["first.0.weight"].note
    assert found["body.v.0.weight"].fold < 1


class Once(nn.Module):
    """A transformer of convolutional positions or other residuals that it has once, however deep it is."""

    def __init__(self, kind: str, depth: int) -> None:
        super().__init__()
        self.kind, self.body = kind, nn.TransformerEncoder(encoder_layer(), depth, enable_nested_tensor=False)
        self.embed, self.norm, self.readout = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.position = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def once(self, x: Tensor) -> Tensor:
        if "conv" in self.kind:
            y: Tensor = self.position(x.transpose(1, 2)).transpose(1, 2)
            return F.gelu(y) if "gelu" in self.kind else y
        out: Tensor = self.down(F.relu(self.up(self.norm(x))))
        return out

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for i, block in enumerate(self.body.layers):
            if i == ("after one" in self.kind):
                x = x + self.once(x)
            x = block(x)
        if "head" in self.kind:
            x = x + self.once(x)
        out: Tensor = self.readout(x.mean(1))
        return out


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)


@pytest.mark.parametrize("kind", ["conv", "conv gelu", "conv after one", "mlp", "mlp head"])
def test_what_stands_once_is_no_depth(kind: str) -> None:
    """The last two have the type of a block's own branch."""
    x = torch.randn(2, 5, 6)
    found = depth_scaling(graph(Once(kind, 2), x), graph(Once(kind, 6), x), resolve("adamw"))
    once = "position.weight" if "conv" in kind else "down.weight"
    assert found[once] == DepthScaling(note="in a residual branch that does not recur: left as it is")
    assert {s.depth_mult for name, s in found.items() if "layers" in name} == {3}
    assert found["body.layers.5.linear2.weight"].fold == 1 / 3


def test_layers_that_have_not_all_grown_alike_count_together() -> None:
    """The first layer has another kind of MLP than the others: four additions are eight."""

    class First(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.attend, self.mlp = (nn.ModuleList(nn.Linear(8, 8) for _ in range(depth)) for _ in range(2))
            self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth - 1))
            self.stem, self.readout = nn.Linear(16, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for i, (attend, mlp) in enumerate(zip(self.attend, self.mlp, strict=True)):
                x = x + attend(torch.tanh(x))
                x = x + mlp(F.gelu(x)) * (self.experts[i - 1](x) if i else 1)
            out: Tensor = self.readout(x)
            return out

    x = torch.randn(2, 16)
    found = depth_scaling(graph(First(2), x), graph(First(4), x), resolve("adamw"))
    assert {s.depth_mult for name, s in found.items() if name[:4] in ("atte", "mlp.", "expe")} == {2}


# --- the published step ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 0.75])
@pytest.mark.parametrize("kind", ["pre", "post"])
def test_training_is_completep_s(kind: str, alpha: float) -> None:
    """As EleutherAI/nanoGPT-mup's branch ``completep`` writes it, at equal width: ``x + m^-α f(x)``; the rate of what
    is in blocks × m^(α-1), its eps × m^-α; embedding, final norm and readout as they are."""
    edited, plain = Transformer(kind, 2 * M, c=M**-alpha).double(), Transformer(kind, 2 * M).double()
    redraw(edited)
    redraw(plain)
    found = depth_scaling(*pair(kind), resolve("adamw"), alpha=alpha)
    with torch.no_grad():
        for name, p in plain.named_parameters():
            p.mul_(found[name].factors.init)
    lr, eps, decay = 3e-3, 1e-2, 0.3
    trunk = ("embed", "position", "last", "readout", *((".n1.", ".n2.") if kind == "post" else ()))
    theirs, ours = [], []
    for name, p in edited.named_parameters():
        in_block = not any(part in name for part in trunk)
        theirs.append(
            {
                "params": [p],
                "lr": lr * M ** (alpha - 1 if in_block else 0),
                "eps": eps * M ** (-alpha if in_block else 0),
            }
        )
    for name, p in plain.named_parameters():
        f = found[name].factors
        ours.append({"params": [p], "lr": lr * f.lr, "eps": eps * f.eps, "weight_decay": decay * f.weight_decay})
    published = losses(edited, torch.optim.AdamW(theirs, weight_decay=decay))
    assert (losses(plain, torch.optim.AdamW(ours)) - published).abs().max() < 1e-9
    assert (published[0] - published[-1]).abs() > 1e-2


def moved(depth: int, optimizer: str, alpha: float | None) -> float:
    """How far the output of a residual MLP without norms moves in three steps of the branches' parameters."""
    torch.manual_seed(0)
    model, record = Mlp(depth, 48), resolve(optimizer)
    x, y = example(model, 32)
    found = depth_scaling(graph(Mlp(2, 48)), graph(model), record, alpha=alpha)
    groups = []
    for name, p in model.named_parameters():
        f = found[name].factors if alpha else Factors()
        with torch.no_grad():
            p.normal_(0, p[0].numel() ** -0.5).mul_(f.init) if p.dim() > 1 else p.zero_()
        p.requires_grad_(name.startswith(("v.", "w.")))
        groups.append({"params": [p], "lr": (0.1 if optimizer == "sgd" else 2e-3) * f.lr})
    before = model(x).detach()
    made = record.make(groups)
    for _ in range(3):
        made.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        made.step()
    return float((model(x) - before).square().mean().sqrt().detach())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_change_per_step_does_not_grow_with_depth(optimizer: str) -> None:
    """The derivation of both kinds of row: from 4 blocks to 32 the change stays within a factor of 2 under either α,
    where without factors it grows more than tenfold."""
    for alpha in (0.5, 1.0):
        assert 1 / 2 < moved(32, optimizer, alpha) / moved(4, optimizer, alpha) < 2
    assert not moved(32, optimizer, None) / moved(4, optimizer, None) < 10  # or it has overflowed


# --- the model's own scaling -----------------------------------------------------------------------------------------


def rms(model: nn.Module) -> dict[str, float]:
    return {name: float(p.detach().double().square().mean().sqrt()) for name, p in model.named_parameters()}


@pytest.mark.filterwarnings("ignore")
def test_gpt2_s_own_scaling_is_found_and_only_the_rest_applied() -> None:
    declare_torchvision_ops()
    transformers = pytest.importorskip("transformers")

    def make(layers: int, width: int) -> nn.Module:
        config = transformers.GPT2Config(n_layer=layers, n_embd=width, n_head=2, vocab_size=50, use_cache=False)
        torch.manual_seed(0)
        model: nn.Module = transformers.GPT2LMHeadModel(config)
        return model

    tokens = torch.zeros(2, 8, dtype=torch.long)
    base, target = make(2, 32), make(8, 64)
    graphs = graph(base, tokens), graph(target, tokens)
    own = own_scaling(*graphs, rms(base), rms(target))
    ends = {name for branch in find_branches(graphs[1]).branches for name in branch.ends}
    assert set(own) == ends
    assert all(value == pytest.approx(0.5, rel=0.03) for value in own.values())  # 1/√4, from some 10^4 draws a place
    for alpha in (1.0, 0.5):
        found = depth_scaling(*graphs, resolve("adamw"), alpha=alpha, own=own)
        end = found["transformer.h.0.mlp.c_proj.weight"].factors
        assert end.init == pytest.approx(4 ** (0.5 - alpha), rel=0.03)
        assert end.lr == pytest.approx(1 / 4)


def test_an_init_without_scaling_or_that_starts_at_zero_has_none() -> None:
    torch.manual_seed(0)
    small, large = Mlp(2), Mlp(8, 32)
    graphs = graph(small), graph(large)
    assert own_scaling(*graphs, rms(small), rms(large)) == {}
    zero = {name: 0.0 if name.startswith("v.") else value for name, value in rms(large).items()}
    assert own_scaling(*graphs, rms(small), zero) == {}


def test_gains_that_shrink_with_depth_are_found() -> None:
    base, target = pair("layer scale")
    before = {p.name: 1.0 for p in base.parameters}
    after = {p.name: 0.25 if ".ls" in p.name else 1.0 for p in target.parameters}
    own = own_scaling(base, target, before, after)
    assert own == {f"blocks.{i}.ls{j}": pytest.approx(0.25) for i in range(2 * M) for j in (1, 2)}


OWN: dict[str, Callable[[str, float], float]] = {
    "GPT-2": lambda name, depth: 0.02 / ((2 * depth) ** 0.5 if name in ("o", "down") else 1),
    "T-Fixup, DeepNorm": lambda name, depth: (8 * depth) ** -0.25 if name in ("v", "o", "up", "down") else 1.0,
    "Fixup": lambda name, depth: 0.0 if name in ("o", "down") else depth**-0.5 if name in ("v", "up") else 1.0,
    "none": lambda name, depth: 1.0,
}
"""Init → standard deviation of a layer of a block, times fan-in^-½ but for GPT-2's.
[Radford et al. 2019; Huang et al. 2020; Wang et al. 2022, arXiv 2203.00555; Zhang et al. 2019, arXiv 1901.09321]"""


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("init", OWN)
def test_what_an_init_does_for_depth_by_itself_is_measured(init: str, width: int) -> None:
    """Each place's growth is taken back; what the width does to it is not."""

    def drawn(depth: int, width: int) -> nn.Module:
        torch.manual_seed(0)
        model = Transformer("pre", depth, width)
        for name, p in model.named_parameters():
            place = name.rsplit(".", 2)[-2] if "blocks" in name else ""
            if p.dim() > 1 and place:
                scale = 1.0 if init == "GPT-2" else p.shape[1] ** -0.5
                nn.init.normal_(p, 0.0, OWN[init](place, depth) * scale)
        return model

    small, large = drawn(2, 32), drawn(2 * M, width)
    own = own_scaling(graph(small), graph(large), rms(small), rms(large))
    for place in ("q", "k", "v", "o", "up", "down"):
        was, now = OWN[init](place, 2), OWN[init](place, 2 * M)
        expected = now / was if was else 1.0
        assert own.get(f"blocks.3.{place}.weight", 1.0) == pytest.approx(expected, rel=0.04), place


class Experts(nn.Module):
    """Residual blocks of two experts whose first layers are one stack, ``experts × in × out``, as are the second."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, width), nn.Linear(width, 4)
        for name, into, out in (("up", width, 2 * width), ("down", 2 * width, width)):
            setattr(self, name, nn.ParameterList(torch.randn(2, into, out) * into**-0.5 for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            y = F.layer_norm(x, x.shape[-1:])
            x = x + torch.einsum("ebh,eho->bo", torch.einsum("bi,eih->ebh", y, up).relu(), down)
        out: Tensor = self.head(x)
        return out


def test_what_the_width_does_to_experts_in_one_stack_is_not_taken_back() -> None:
    torch.manual_seed(0)
    base, target, x = Experts(2, 16), Experts(8, 64), torch.randn(4, 8)
    assert own_scaling(graph(base, x), graph(target, x), rms(base), rms(target)) == {}


# --- refusals ------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[Any, type[DagscaleError], str]] = [
    (lambda: scaled("adamw", alpha=0.4), PlanError, "between ½ .* and 1"),
    (lambda: scaled("adamw", alpha=1.1), PlanError, "between ½ .* and 1"),
    (lambda: scaled("adamw", "depth-mup", alpha=1.0), PlanError, "has α = 0.5"),
    (lambda: scaled("adamw", "completeP"), UnknownNameError, "did you mean 'completep'"),
    (lambda: scaled(lambda groups: torch.optim.SGD(groups)), OptimizerError, "kind of step"),  # type: ignore[arg-type]
    (lambda: depth_scaling(graph(nn.Linear(4, 4), torch.randn(2, 4)), pair()[1], resolve("sgd")), PlanError,
     "the base has no residual branch and the target has 16"),
    (lambda: depth_scaling(pair()[0], graph(nn.Linear(4, 4), torch.randn(2, 4)), resolve("sgd")), PlanError,
     "the target has no residual branch"),
    (lambda: depth_scaling(graph(ResNet()), graph(ResNet(bottleneck=True)), resolve("sgd")), PlanError,
     "of a type that the base has none of: 3 deep in conv2d, against 2 deep in conv2d"),
    (lambda: depth_scaling(pair()[0], graph(ResNet()), resolve("sgd")), PlanError, "give a base of the same blocks"),
    (lambda: depth_scaling(*[graph(Unclear(), torch.randn(2, 4))] * 2, resolve("sgd")), PlanError,
     "told to be the trunk"),
    (lambda: depth_scaling(*[graph(Gated(), torch.randn(2, 4))] * 2, resolve("sgd")), PlanError,
     "because it ends in 'tanh'"),
]  # fmt: skip


class Unclear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        out: Tensor = self.b(x.relu()) + self.c(x.tanh())
        return out


class Gated(Unclear):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return x + self.b(x).tanh()


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_refused_in_one_line(case: int) -> None:
    call, error, text = REFUSED[case]
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- head size -----------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    """Attention whose logits are multiplied by ``c``; fused projections, grouped queries, norms on queries and keys."""

    def __init__(self, head: int, c: float = 1.0, norm: str = "", fused: int = 0, groups: int = 1) -> None:
        super().__init__()
        width = 2 * head
        self.c, self.head, self.groups = c, head, groups
        self.embed, self.o, self.readout = nn.Embedding(11, width), nn.Linear(width, width), nn.Linear(width, 11)
        if fused:
            self.qkv = nn.Linear(width, fused * width)
        else:
            self.q, self.k, self.v = nn.Linear(width, width), *(nn.Linear(width, width // groups) for _ in range(2))
        self.norm_q = nn.LayerNorm(head, elementwise_affine=norm == "gain") if norm else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        made = self.qkv(x).split(2 * self.head, -1) if hasattr(self, "qkv") else (self.q(x), self.k(x), self.v(x))
        q, k, v, *more = made
        q, k, v = (t.unflatten(-1, (-1, self.head)).transpose(1, 2) for t in (q, k, v))
        q, k, v = self.norm_q(q), *(t.repeat_interleave(self.groups, 1) for t in (k, v))
        half = self.head // 2
        q, k = (t * 0.8 + torch.cat([-t[..., half:], t[..., :half]], -1) * 0.6 for t in (q, k))  # rotated
        weights = (self.c * q @ k.transpose(-1, -2) / self.head**0.5).softmax(-1)
        x = x + self.o((weights @ v).transpose(1, 2).flatten(2))
        out: Tensor = self.readout(x + more[0].tanh() if more else x)
        return out


TOKENS = torch.zeros(2, 6, dtype=torch.long)


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"norm": "gain"}, {"fused": 3}])
def test_heads_that_grow_are_folded_into_the_queries(options: dict[str, Any], optimizer: str) -> None:
    """Plain model with factors = edited model with logits over d, in float64, 30 steps."""
    record = resolve(optimizer, {"eps": 1e-2} if optimizer == "adamw" else {})
    found = head_scaling(graph(Heads(4, **options), TOKENS), graph(Heads(16, **options), TOKENS), record)
    where = "norm_q" if "norm" in options else "qkv" if "fused" in options else "q"
    if "fused" in options:  # the square root in each of queries, keys and values, and back in what reads the values
        assert {n: s.fold for n, s in found.items()} == {
            name: pytest.approx(c)
            for name, c in (("qkv.weight", 0.5**0.5), ("qkv.bias", 0.5**0.5), ("o.weight", 2**0.5))
        }
    else:
        assert {n: s.fold for n, s in found.items()} == {f"{where}.weight": 0.5, f"{where}.bias": 0.5}
    seen = []
    for model in (Heads(16, 0.5, **options).double(), Heads(16, **options).double()):
        redraw(model)
        groups = []
        for name, p in model.named_parameters():
            f = found[name].factors if model.c == 1 and name in found else Factors()
            with torch.no_grad():
                p.mul_(f.init)
            group = {"params": [p], "lr": 1e-2 * f.lr, "weight_decay": 0.3 * f.weight_decay}
            groups.append({**group, "eps": 1e-2 * f.eps} if record.eps else group)
        seen.append(_train(model, record.make(groups)))
    assert (seen[0] - seen[1]).abs().max() < 1e-9
    assert (seen[0][0] - seen[0][-1]).abs() > 1e-2


def _train(model: nn.Module, optimizer: Any) -> Tensor:
    found = []
    for step in range(30):
        tokens, words = torch.randint(11, (2, 4, 6), generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(model(tokens).flatten(0, 1), words.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


def test_heads_of_one_size_need_nothing() -> None:
    assert head_scaling(*pair(), resolve("adamw")) == {}
    wide = graph(Transformer(width=16), None)
    assert head_scaling(pair()[0], wide, resolve("adamw")) == {}


class Queries(nn.Module):
    """A decoder whose queries are learned, so that its first layer's attentions have no signal for a query, behind an
    encoder or not."""

    def __init__(self, width: int, depth: int, encoder: bool) -> None:
        super().__init__()
        self.stem, self.query, self.head = nn.Linear(3, width), nn.Embedding(4, width), nn.Linear(width, 2)
        sizes: dict[str, Any] = {"dim_feedforward": width, "dropout": 0.0, "batch_first": True}
        self.encoder = nn.TransformerEncoderLayer(width, 2, **sizes) if encoder else nn.Identity()
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(width, 2, **sizes), depth)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(self.stem(x))
        out: Tensor = self.head(self.decoder(self.query.weight.expand(len(x), -1, -1), h))
        return out


@pytest.mark.parametrize("encoder", [True, False])
def test_attention_that_the_base_lacks_has_heads_as_all_others_or_is_noted(encoder: bool) -> None:
    x = torch.randn(2, 5, 3)
    base, target = (dagscale.trace(Queries(w, d, encoder), x) for w, d in ((8, 1), (32, 3)))
    found = head_scaling(base, target, resolve("adamw"))
    deeper = [s for name, s in found.items() if name.startswith("decoder.layers.1") and "in_proj_weight" in name]
    assert len(deeper) == 2
    if encoder:
        known = found["encoder.self_attn.in_proj_weight"]
        assert all(s.factors == known.factors != Factors() for s in deeper)
    else:
        assert all(s.factors == Factors() and "the base has no attention to compare" in s.note for s in deeper)


@pytest.mark.parametrize(
    ("options", "text"), [({"fused": 4}, "makes more than them"), ({"norm": "no gain"}, "norm without gain")]
)
def test_queries_that_cannot_be_scaled_are_noted(options: dict[str, Any], text: str) -> None:
    found = head_scaling(graph(Heads(4, **options), TOKENS), graph(Heads(16, **options), TOKENS), resolve("adamw"))
    assert found
    assert all(s.factors == Factors() and text in s.note for s in found.values())


def test_notes_of_a_graph_reach_every_branch() -> None:
    """Every parameter of the target that is in some branch has the growth of its trunk."""
    _, target = pair()
    touched = {name for b in find_branches(target).branches for name in (*b.ends, *b.inside)}
    assert {name for name, s in scaled("adamw").items() if s.depth_mult == M} == touched
