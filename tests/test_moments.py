"""The moments init: the second moment that arrives at every vertex."""

import copy
import math

import pytest
import torch
from torch import nn

import dagscale
from dagscale.errors import PlanError
from dagscale.graph.roles import log_scales
from dagscale.models import targets
from dagscale.tracing import forward
from dagscale.tracing.calls import LayerCalls
from dagscale.tracing.recorder import tensors_in


def arriving(model: nn.Module, plan: dagscale.Plan, x: torch.Tensor, seeds: int = 8) -> list[float]:
    """Mean over seeds of each weight operator's output second moment, in forward order."""
    totals: list[float] = []
    for seed in range(seeds):
        plan.init_(model, seed=seed)
        values: list[torch.Tensor] = []
        calls = LayerCalls(model, after=lambda use, out: values.append(next(tensors_in(out))))  # noqa: B023
        with forward.plain_eager(), torch.no_grad(), calls:
            model(x)
        moments = [v.square().mean().item() / seeds for v in values]
        totals = [a + b for a, b in zip(totals or [0.0] * len(moments), moments, strict=True)]
    return totals


class Odd(nn.Module):
    """Grouped, transposed and padded convolutions, a gate, an embedding, attention, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(8, 64, 3, padding=1, groups=4)
        self.transposed = nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.gate = nn.Linear(32, 128)
        self.value = nn.Linear(32, 128)
        self.qkv = nn.Linear(128, 384)
        self.out = nn.Linear(128, 128)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.transposed(self.grouped(x).relu())).flatten(2).transpose(1, 2)
        h = self.gate(h).sigmoid() * self.value(h)
        q, k, v = self.qkv(h).chunk(3, -1)
        h = h + self.out((q @ k.transpose(1, 2) / 128**0.5).softmax(-1) @ v)
        return self.head(h.mean(1))


def test_any_layer_gets_the_moment_wanted() -> None:
    """Wanted: 1/d_in, whatever lies behind. Sampling error of a seed is about sqrt(2/units) < 0.2 (0.45 for the
    ten outputs); over 8 seeds within 0.25 (0.6)."""
    model, x = Odd(), torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    plan = dagscale.plan(model, x, base_lr=1.0, law="none", init="moments")
    wanted = [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0]
    for moment, goal, tolerance in zip(arriving(model, plan, x), wanted, [0.25] * 6 + [0.6], strict=True):
        assert moment / goal == pytest.approx(1, abs=tolerance)


def test_pytorch_default_init_is_far_from_it() -> None:
    model, x = Odd(), torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    plan = dagscale.plan(model, x, base_lr=1.0, law="none", init="keep")
    assert min(arriving(model, plan, x, seeds=1)) < 0.3


def test_moments_of_a_relu_chain_are_he_initialisation() -> None:
    """A stem on unit-variance input, then ReLU layers: std sqrt(2/n) within the batch's own fluctuation."""
    model, _ = targets.load("mlp:2_02?width=256")
    x = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plan = dagscale.plan(model, x, base_lr=1.0, law="none", init="moments", data=(x, x))
    for name in ("cells.0.edges.0_1.linear.weight", "cells.0.edges.1_2.linear.weight"):
        assert plan.parameters[name].init_std == pytest.approx(math.sqrt(2 / 256), rel=0.1)
    assert plan.parameters["readout.linear.weight"].init_std == pytest.approx(math.sqrt(2 / 256), rel=0.1)


class TiedAround(nn.Module):
    """The readout is the embedding; between them a layer that reads what the embedding brings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.layer, self.norm = nn.Embedding(50, width), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(self.embed(x)).relu()).mean(1) @ self.embed.weight.T  # type: ignore[no-any-return]


@pytest.mark.parametrize("width", [16, 256])
def test_a_layer_follows_when_tied_weights_shrink(width: int) -> None:
    """The readout asks for embeddings of moment near 1/width, and the layer between still gives 1."""
    model, x = TiedAround(width), torch.randint(0, 50, (256, 6), generator=torch.Generator().manual_seed(0))
    plan = dagscale.plan(model, x, base_lr=1.0, law="none", init="moments")
    layer, readout = arriving(model, plan, x)[-2:]
    assert layer == pytest.approx(1, abs=0.3)
    assert readout == pytest.approx(1, abs=0.3)


def test_a_model_in_evaluation_mode_is_measured_as_it_will_train() -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 4))
    plans = [
        dagscale.plan(model, x, base_lr=1.0, law="none", init="moments", data=(x, x)) for model in (net, net.eval())
    ]
    assert plans[0].parameters == plans[1].parameters
    assert not net.training


def test_deterministic_and_the_model_is_left_alone() -> None:
    model, x = Odd(), torch.randn(4, 8, 6, 6)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    torch.manual_seed(0)
    first = dagscale.plan(model, x, base_lr=1.0, law="none", init="moments")
    torch.manual_seed(1)
    assert dagscale.plan(model, x, base_lr=1.0, law="none", init="moments") == first
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_layer_of_one_output_is_drawn_too() -> None:
    """Its weight has as many entries as a vector; a constant would add up what a layer norm has centred, to nothing."""
    model = nn.Sequential(nn.Linear(8, 64), nn.LayerNorm(64), nn.Linear(64, 1))
    plan = dagscale.plan(model, torch.randn(32, 8), base_lr=1.0, law="none", init="moments")
    assert plan.parameters["2.weight"].init_mean == 0
    assert plan.parameters["2.weight"].init_std == pytest.approx(1 / 8, rel=0.05)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 64)
        self.mix = nn.Linear(64, 64)
        self.head = nn.Linear(64, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.embed(ids)))


def test_a_tied_weight_takes_the_smaller_of_its_uses() -> None:
    """As an embedding it would be drawn with std 1, as a readout of unit signals with 1/8."""
    plan = dagscale.plan(Tied(), torch.arange(32).view(4, 8), base_lr=1.0, law="none", init="moments")
    assert plan.parameters["embed.weight"].init_std == pytest.approx(1 / 8, rel=0.15)


class SeesZeros(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(x.clamp(min=100.0) - 100.0)


def test_a_layer_that_sees_only_zeros_stays_and_is_reported() -> None:
    model = SeesZeros()
    plan = dagscale.plan(model, torch.randn(2, 4), base_lr=1.0, law="none", init="moments")
    assert plan.parameters["b.weight"].init_std is None
    assert any("b.weight" in note for note in plan.notes)


def test_meta_models_are_refused_in_one_line() -> None:
    with pytest.raises(PlanError, match="to_empty"):
        dagscale.plan(nn.Linear(2, 2, device="meta"), torch.empty(1, 2, device="meta"), base_lr=1, law="none",
                      init="moments")  # fmt: skip


class Computed(nn.Module):
    """Weights that are computed: by weight_norm, by standardisation with a gain, by standardisation alone, as a
    scaled parameter, from a constant; and one that is a sum, proportional to none of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(32, 128))
        self.raw = nn.Parameter(torch.randn(128, 128))
        self.gain = nn.Parameter(torch.full((128, 1), 0.3))
        self.alone = nn.Parameter(torch.randn(128, 128))
        self.scaled = nn.Parameter(torch.randn(128, 128))
        self.positions = nn.Linear(16, 128, bias=False)
        self.frozen, self.adapter = nn.Linear(128, 10, bias=False), nn.Parameter(torch.randn(10, 128) / 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.normed(x).relu()
        h = nn.functional.linear(h, nn.functional.layer_norm(self.raw, (128,)) * self.gain).relu()
        h = nn.functional.linear(h, nn.functional.layer_norm(self.alone, (128,))).relu()
        h = nn.functional.linear(h, self.scaled * 0.01)
        encoded = torch.arange(64.0).view(4, 16).sin()
        h = h.relu() * (h @ self.positions(encoded).t()).mean(-1, keepdim=True)
        return nn.functional.linear(h, self.frozen.weight + self.adapter)


def test_a_computed_weight_is_set_by_the_parameter_it_is_proportional_to() -> None:
    """Sampling error of a seed is about sqrt(5/128) = 0.2 at each of the first layers, so over 8 seeds within 0.3."""
    torch.manual_seed(0)
    model, x = Computed(), torch.randn(16, 32)
    plan = dagscale.plan(model, x, base_lr=1.0, law="none", init="moments")
    stds = {n: (p.init_mean, p.init_std) for n, p in plan.parameters.items()}
    left = {n for n, (_, std) in stds.items() if std is None}
    assert left == {"normed.parametrizations.weight.original1", "raw", "alone", "frozen.weight", "adapter"}
    assert all(any(n in note for note in plan.notes) for n in left)
    for gain in ("normed.parametrizations.weight.original0", "gain"):
        mean, std = stds[gain]
        assert mean is not None
        assert std == 0
        assert mean > 0
    totals = [0.0, 0.0, 0.0]
    for seed in range(8):
        plan.init_(model, seed=seed)
        with torch.no_grad():
            first = model.normed(x)
            second = nn.functional.linear(first.relu(), nn.functional.layer_norm(model.raw, (128,)) * model.gain)
            third = nn.functional.linear(second.relu(), nn.functional.layer_norm(model.alone, (128,)))
            fourth = nn.functional.linear(third.relu(), model.scaled * 0.01)
        for i, z in enumerate((first, second, fourth)):
            totals[i] += z.square().mean().item() / 8
    assert totals == pytest.approx([1, 1, 1], abs=0.3)


class Queries(nn.Module):
    """Learned queries that look at a sequence, and are added to what they find, as in a detector's decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 32))
        self.ask, self.key, self.out = (nn.Linear(32, 32, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.key(x) @ self.ask(self.queries).T
        return self.out(scores.softmax(1).mT @ x + self.queries)


def test_what_a_computed_weight_is_proportional_to_stays_where_it_is_used_elsewhere_too() -> None:
    plan = dagscale.plan(Queries(), torch.randn(4, 8, 32), base_lr=1.0, law="none", init="moments")
    assert plan.parameters["queries"].init_std is None
    assert plan.parameters["ask.weight"].init_std or 0 > 0


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 8)
        self.b.requires_grad_(False)
        nn.init.normal_(self.b.weight, std=3.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


def test_frozen_parameters_stay_and_the_next_layer_makes_up_for_them() -> None:
    model, x = Frozen(), torch.randn(64, 16)
    before = model.b.weight.clone(), model.b.bias.clone()
    plan = dagscale.plan(model, x, base_lr=1.0, law="none", init="moments")
    moments = arriving(model, plan, x, seeds=16)
    assert torch.equal(model.b.weight, before[0])
    assert torch.equal(model.b.bias, before[1])
    assert moments[1] > 100  # 64 · 9 · ½
    assert moments[2] == pytest.approx(1, abs=0.5)  # sqrt(2/8/16 + …) = 0.14 a sigma


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 48, padding_idx=0)
        self.rnn = kind(48, 96, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(192, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embed(ids))[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_weights_are_settled_by_the_step_that_needs_the_least(kind: type[nn.Module]) -> None:
    """The input's product is read by every step: 1; the recurrent one is a summand of two: ½ where the state is
    largest, less elsewhere. An RNN adds both in one operator. Sampling error of a seed is at most
    sqrt(2/96) in each of some tens of uses: over 8 seeds within 0.2."""
    model, ids = Recurrent(kind), torch.randint(1, 40, (16, 9), generator=torch.Generator().manual_seed(0))
    plan = dagscale.plan(model, ids, base_lr=1.0, law="none", init="moments")
    weights = [n for n in plan.parameters if "weight" in n]
    assert len(weights) == 10
    assert all((plan.parameters[n].init_std or 0) > 0 for n in weights)
    assert all(p.init_std == 0 for n, p in plan.parameters.items() if "bias" in n)
    moments = arriving(model, plan, ids)
    assert moments[0] == pytest.approx(1, abs=0.1)
    assert max(moments[1:-1]) == pytest.approx(1.5 if kind is nn.RNN else 1.0, abs=0.2)
    assert moments[-1] == pytest.approx(1, abs=0.5)


def test_the_padding_row_of_an_embedding_stays_zero() -> None:
    model = Recurrent(nn.GRU)
    plan = dagscale.plan(model, torch.ones(2, 5, dtype=torch.int64), base_lr=1.0, law="none", init="moments")
    plan.init_(model)
    assert not model.embed.weight[0].any()
    assert model.embed.weight[1:].any(1).all()


def test_a_layer_used_by_no_example_keeps_the_models_own_weight_in_the_measurement() -> None:
    """What only zeros reach is not drawn: the branch's layer stays, and with its bias 0 adds nothing to the sum."""
    model = SeesZeros()
    before = model.b.weight.clone()
    x = torch.randn(64, 4)
    plan = dagscale.plan(model, x, base_lr=1.0, law="none", init="moments")
    plan.init_(model)
    assert torch.equal(model.b.weight, before)
    assert plan.parameters["a.weight"].init_std == pytest.approx(math.sqrt(1 / (2 * 4)), rel=0.2)


def test_without_data_example_inputs_of_zeros_are_refused() -> None:
    """Every layer would see zeros, and be left as it is while the plan names the init."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(PlanError, match=r"the example inputs are all 0.*give data, or example inputs"):
        dagscale.plan(model, torch.zeros(2, 4), base_lr=1.0, law="none", init="moments")
    tokens = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 2))
    plan = dagscale.plan(tokens, torch.zeros(2, 4, dtype=torch.long), base_lr=1.0, law="none", init="moments")
    assert plan.parameters["0.weight"].init_std is not None


class Spectral(nn.Module):
    """A complex product of Fourier coefficients, its weight kept in one of three ways."""

    def __init__(self, kept: str) -> None:
        super().__init__()
        w = torch.randn(3, 48, 8, dtype=torch.complex64)
        self.kept, self.head = kept, nn.Linear(48, 4)
        self.w = nn.Parameter(torch.view_as_real(w).clone() if kept == "two real numbers" else w)

    def coefficients(self, x: torch.Tensor) -> torch.Tensor:
        if self.kept == "read as real numbers":
            real = torch.view_as_real(self.w).flatten(2)
            return torch.einsum("bim,iom->bom", x[..., : real.shape[-1]], real)
        w = torch.view_as_complex(self.w) if self.kept == "two real numbers" else self.w
        return torch.einsum("bim,iom->bom", torch.fft.rfft(x)[..., :8], w)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.coefficients(x).abs().relu().mean(-1))


@pytest.mark.parametrize("kept", ["a complex number", "two real numbers", "read as real numbers"])
def test_complex_weights_bring_the_magnitude_to_one(kept: str) -> None:
    """E|z|² = 1, whichever of weight and parameter is complex; by hand s² = 1/Σ|x|² over the inputs of an output."""
    torch.manual_seed(0)
    model, x = Spectral(kept), torch.randn(64, 3, 32)
    plan = dagscale.plan(model, x, base_lr=1.0, law="none", init="moments")
    with torch.no_grad():
        sizes = [plan.init_(model, seed=k).coefficients(x).abs().square().mean().item() for k in range(4)]
    assert sum(sizes) / 4 == pytest.approx(1, rel=0.1)


def test_a_complex_parameter_is_drawn_complex() -> None:
    """Both parts are normal with half of the variance, and the model's own are drawn as a loaded plan's are."""
    model, x = Spectral("a complex number"), torch.randn(64, 3, 32)
    plan = dagscale.plan(model, x, base_lr=1.0, law="none", init="moments")
    std = plan.parameters["w"].init_std
    assert std is not None
    first = dagscale.Plan.from_json(plan.to_json()).init_(model).w.detach().clone()
    assert [part.std().item() for part in (first.real, first.imag)] == pytest.approx([std / 2**0.5] * 2, rel=0.05)
    assert torch.equal(first, plan.init_(Spectral("a complex number")).w)


class Holding(nn.Module):
    """It holds an example of its inputs, as Lightning's modules do."""

    def __init__(self, example: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.example_input_array = example

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.layer(x).relu())
        return out


def test_inputs_that_the_model_holds_too_are_no_constants() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    model = Holding(x)
    fills = {
        name: dagscale.plan(model, given, base_lr=1.0, law="none", optimizer="adam", init="moments").parameters
        for name, given in (("held", model.example_input_array), ("apart", x.clone()))
    }
    for name in ("layer.weight", "head.weight"):
        assert fills["held"][name].init_std is not None
        assert fills["held"][name].init_std == pytest.approx(fills["apart"][name].init_std)
    seen = []
    with torch.no_grad(), LayerCalls(model, after=lambda use, out: seen.extend(use.names), inputs=x):
        model(x)
    assert seen == ["layer.weight", "head.weight"]


class Hyper(nn.Module):
    """One network makes the weights of every layer, each from a code of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16 * 16))
        self.codes = nn.ParameterList([nn.Parameter(torch.randn(8)) for _ in range(3)])
        self.stem, self.head = nn.Linear(10, 16), nn.Linear(16, 4)

    def weight(self, k: int) -> torch.Tensor:
        return self.make(self.codes[k]).view(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for k in range(3):
            x = nn.functional.linear(x.relu(), self.weight(k))
        return self.head(x.relu())


def test_what_weights_are_worked_out_from_is_no_gain() -> None:
    """Codes of a hypernetwork stay as they are: as one constant each they would make all layers the same."""
    torch.manual_seed(0)
    model, x = Hyper(), torch.randn(64, 10)
    codes = [code.detach().clone() for code in model.codes]
    plan = dagscale.plan(model, x, base_lr=0.1, law="none", init="moments")
    plan.init_(model)
    assert all(torch.equal(a, b) for a, b in zip(model.codes, codes, strict=True))
    weights = torch.stack([model.weight(k).flatten() for k in range(3)])
    assert torch.corrcoef(weights).triu(1).abs().max() < 0.9


class ActNorm(nn.Module):
    """Shift and scale are set by the first batch, in buffers or in attributes alone."""

    def __init__(self, buffers: bool) -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.zeros(32)), nn.Parameter(torch.ones(32))
        self.buffers_ = buffers
        self.began = False
        self.register_buffer("begun", torch.tensor(False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and not (self.begun if self.buffers_ else self.began):
            with torch.no_grad():
                self.shift.copy_(-x.mean(0))
                self.scale.copy_(1 / x.std(0))
                self.begun.fill_(True)
            self.began = True
        return (x + self.shift) * self.scale


class Averaging(nn.Module):
    """Takes a running mean away that it keeps in a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        return x - self.mean


@pytest.mark.parametrize("made", [lambda: ActNorm(True), lambda: ActNorm(False), Averaging])
def test_what_a_forward_has_written_is_not_there_at_the_next_draw(made: object) -> None:
    """Training begins with buffers as they are given, and so does every measurement."""
    torch.manual_seed(0)
    parts = [(nn.Linear(32, 32), made(), nn.ReLU()) for _ in range(4)]  # type: ignore[operator]
    model = nn.Sequential(*(part for group in parts for part in group), nn.Linear(32, 4))
    x = torch.randn(512, 32) + 1
    recipe = dagscale.Recipe((x, torch.zeros(512).long()), loss=nn.functional.cross_entropy, batch_size=256, steps=4)
    plan = dagscale.plan(model, recipe=recipe, base_lr=0.1, law="none", init="moments")
    found = []
    for seed in range(8):
        fresh = copy.deepcopy(model).train()
        plan.init_(fresh, seed=seed)
        moments: list[float] = []
        for layer in fresh:
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(lambda _, __, out, to=moments: to.append(float(out.square().mean().log())))
        with torch.no_grad():
            fresh(x[:256])
        found.append(moments)
    assert torch.tensor(found).mean(0).abs().max() < 0.2
    assert not any(float(t.float().abs().sum()) for t in model.buffers())


def test_a_bilinear_layer_gets_the_moment_wanted() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(10, 24), nn.Linear(10, 32)
            self.both, self.head = nn.Bilinear(24, 32, 40), nn.Linear(40, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.both(self.a(x), self.b(x)).tanh())

    torch.manual_seed(0)
    model, x = Two(), torch.randn(256, 10)
    moments = arriving(model, dagscale.plan(model, x, base_lr=0.1, law="none", init="moments"), x)
    assert moments == pytest.approx([1.0] * 4, rel=0.25)


class Coupling(nn.Module):
    """Half of the numbers scale and shift the others, in turns; ``written`` says how the scale is made."""

    def __init__(self, written: str, depth: int = 2) -> None:
        super().__init__()
        self.written = written
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 8)) for _ in range(depth)
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        volume = torch.zeros(len(x))
        for net in self.nets:
            a, b = x.chunk(2, 1)
            s, shift = net(a).chunk(2, 1)
            scale = {
                "exp": lambda s: s.exp(),
                "half": lambda s: (0.5 * s).exp(),
                "bounded": lambda s: (2 * s.tanh()).exp(),
                "clamped": lambda s: s.clamp(-5, 3).exp(),
                "inverse": lambda s: (-s).exp(),
                "sigmoid": lambda s: (s + 2).sigmoid(),
                "sigmoid by hand": lambda s: 1 / (1 + (-s).exp()),
                "softplus": lambda s: nn.functional.softplus(s),
                "softmax": lambda s: s.exp() / s.exp().sum(1, keepdim=True),
                "decay": lambda s: (-nn.functional.softplus(s)).exp(),
            }[self.written](s)  # fmt: skip
            x, volume = torch.cat([b * scale + shift, a], 1), volume + s.sum(1)
        return x, volume


@pytest.mark.parametrize("init", ["moments", "small-readout"])
@pytest.mark.parametrize(
    ("written", "small"),
    [(w, True) for w in ("exp", "half", "bounded", "clamped", "inverse")]
    + [(w, False) for w in ("sigmoid", "sigmoid by hand", "softplus", "softmax", "decay")],
)
def test_logarithms_of_scales_begin_small(written: str, small: bool, init: str) -> None:
    """A signal that is multiplied by the exponential of one of second moment 1 grows by e at each layer."""
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    graph = dagscale.trace(Coupling(written), x)
    assert log_scales(graph) == ({"nets.0.2.weight", "nets.1.2.weight"} if small else set())
    plan = dagscale.plan(Coupling(written), x, base_lr=1.0, law="none", init=init)
    stds = {name: p.init_std for name, p in plan.parameters.items() if name.endswith("2.weight")}
    expected = 1 / 16 * (2 / 32) ** 0.5  # of what a ReLU leaves of 32 units
    assert all((std < 1.5 * expected) == small for std in stds.values())


def test_a_flow_keeps_its_signals_at_any_depth() -> None:
    model, x = Coupling("exp", 24), torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    dagscale.plan(model, x, base_lr=1.0, law="none", init="moments").init_(model)
    out, volume = model(x)
    assert 0.5 < out.square().mean() < 2
    assert volume.abs().max() < 24


@pytest.mark.filterwarnings("ignore")
def test_weights_whose_range_the_forward_keeps_are_drawn() -> None:
    """PyTorch's own quantisation-aware training averages the range of each weight over the forwards."""
    quantized = pytest.importorskip("torch.ao.quantization")
    model = nn.Sequential(quantized.QuantStub(), nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    model.train().qconfig = quantized.get_default_qat_qconfig("fbgemm")
    quantized.prepare_qat(model, inplace=True)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    plan = dagscale.plan(model, x, base_lr=1.0, law="none", init="moments", data=(x, x[:, 0]))
    first, last = (plan.parameters[f"{i}.weight"].init_std for i in (1, 3))
    assert first == pytest.approx(8**-0.5, rel=0.1)
    assert last == pytest.approx((2 / 64) ** 0.5, rel=0.15)
