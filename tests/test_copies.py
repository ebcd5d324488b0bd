"""Working copies: only those that are models of their own are trusted; else the model is borrowed and given back."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tests.fixtures.oracle import of_model, of_process
from tests.fixtures.uncopyable import BORROWED, COPYABLE, Plain, Sparse, Tied, WeightNorm
from torch import Tensor, nn
from torch.nn import functional as F

import dagscale
from dagscale.errors import CopyError
from dagscale.network import Network
from dagscale.planning.prepare import traced
from dagscale.training import copies
from dagscale.training.copies import WorkingCopy, all_put_back
from dagscale.training.draws import Fill

torch.manual_seed(0)
X = torch.randn(96, 10)
Y = (X @ torch.randn(10, 4)).argmax(1)
NETWORKS = {**BORROWED, **COPYABLE}


def plain() -> Plain:
    torch.manual_seed(1)
    return Plain()


def search(model: nn.Module, **more: Any) -> dagscale.Base:
    given = {"steps": 16, "batch_size": 16, "seeds": 1, **more}
    return dagscale.search(model, (X, Y), **given)


def plan(model: nn.Module, **more: Any) -> dagscale.Plan:
    return dagscale.plan(model, X[:4], data=(X, Y), loss=F.cross_entropy, steps=16, batch_size=16, **more)


@pytest.fixture(scope="module")
def right() -> tuple[float, float]:
    """The rates of search and plan for the plain network."""
    return search(plain()).lr, plan(plain()).lr


def octaves(a: float, b: float) -> float:
    return abs(math.log2(a / b))


def fingerprint(model: nn.Module) -> Any:
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        return {n: type(p) for n, p in model.named_parameters()}
    return of_model(model), of_process()["random"]


@pytest.mark.parametrize("name", NETWORKS)
def test_search_and_plan_agree_with_those_of_a_plain_twin(name: str, right: tuple[float, float]) -> None:
    factor = 4 if name == "slowed" else 1
    for call, rate in zip((search, plan), right, strict=True):
        model = NETWORKS[name](plain())
        x = X.clone()
        before = fingerprint(model)
        assert octaves(call(model).lr, factor * rate) < 0.51
        assert fingerprint(model) == before
        assert torch.equal(X, x)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_is_trusted_only_if_it_is_a_model_of_its_own(name: str) -> None:
    model = NETWORKS[name](plain())
    before = fingerprint(model)
    made = WorkingCopy(model, lambda m: m(X[:4].clone()))
    assert made.borrowed == (name in BORROWED)
    assert bool(made.why) == made.borrowed
    assert fingerprint(model) == before


@pytest.fixture(scope="module")
def right_check() -> str:
    return str(check(plain()))


def check(model: nn.Module) -> dagscale.Report:
    pair, more = (model, X[:4]), {"labels": ["small", "large"], "sizes": [1, 2], "init": "keep", "law": "none"}
    return dagscale.check([pair, pair], data=(X, Y), loss=F.cross_entropy, base_lr=0.1, steps=2, seeds=2, **more)


@pytest.mark.parametrize("name", sorted({*NETWORKS} - {"lazy", "slowed"}))
def test_check_agrees_with_that_of_a_plain_twin(name: str, right_check: str) -> None:
    model = NETWORKS[name](plain())
    before = fingerprint(model)
    assert str(check(model)) == right_check
    assert fingerprint(model) == before


@pytest.mark.parametrize(("tie", "borrowed"), [("parameter", False), ("data", True), ("new", True)])
def test_ties_made_by_hand_stay(tie: str, borrowed: bool) -> None:
    torch.manual_seed(2)
    twin = Tied()
    model = Tied(tie)
    with torch.no_grad():
        for name in ("first", "one", "out"):
            getattr(model, name).load_state_dict(getattr(twin, name).state_dict())
        model.two.bias.copy_(twin.two.bias)
    before = fingerprint(model)
    assert WorkingCopy(model, lambda m: m(X[:4])).borrowed == borrowed
    assert octaves(search(model, init="keep").lr, search(twin, init="keep").lr) < 0.51
    assert fingerprint(model) == before


def test_parameters_that_lie_partly_over_one_another_are_not_copied_apart() -> None:
    class Overlapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            store = torch.randn(30)
            self.a, self.b = nn.Parameter(store[:20].view(10, 2)), nn.Parameter(store[10:].view(10, 2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x @ self.a, x @ self.b], 1)

    assert WorkingCopy(Overlapping(), lambda m: m(X[:4])).borrowed
    apart = nn.LSTM(4, 4)
    assert not WorkingCopy(apart, lambda m: m(torch.randn(3, 2, 4))).borrowed


def test_old_weight_norm_is_as_the_new_one() -> None:
    models = []
    for old in (True, False):
        torch.manual_seed(3)
        models.append(WeightNorm(old))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = of_model(models[0])["tensors"]
        rates = [search(model).lr for model in models]
        assert octaves(*rates) < 0.51
        assert of_model(models[0])["tensors"] == before


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", ["csr", "coo"])
def test_sparse_buffers(layout: str) -> None:
    rates = []
    for kind in (layout, "dense"):
        torch.manual_seed(4)
        rates.append((search(Sparse(kind)).lr, plan(Sparse(kind)).lr))
    assert max(map(octaves, *rates)) < 0.51


def test_a_loss_that_uses_the_model_itself_trains_it_and_gives_it_back() -> None:
    model = plain()

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y) + 0.5e-2 * sum(p.square().sum() for p in model.parameters())  # type: ignore

    before = fingerprint(model)
    rate = search(model, loss=loss).lr
    assert fingerprint(model) == before
    assert all(p.grad is None for p in model.parameters())
    decayed = search(plain(), weight_decay=1e-2).lr
    assert octaves(rate, decayed) < 0.51

    def strong(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y) + 50 * sum(p.square().sum() for p in model.parameters())  # type: ignore

    assert search(model, loss=strong).lr < 0.02, "such a penalty diverges above 2/100"


def test_a_loan_within_a_loan_is_not_given_back_too_late() -> None:
    """As when an interrupt leaves a generator, whose end comes only with the garbage collector."""
    model = BORROWED["with_lock"](plain())
    before = fingerprint(model)
    with all_put_back():  # neither is given back
        WorkingCopy(model).reset({"a.weight": Fill(0.0, 1.0)})
        inner = WorkingCopy(model)
        inner.reset()
    assert fingerprint(model) == before
    inner.give_back()
    assert fingerprint(model) == before


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("again", [False, True])
def test_a_loan_within_a_loan_whose_end_is_interrupted(
    again: bool, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is over before the loan around it is, or else it would bring back what the model was during that one."""
    model = BORROWED["closure"](plain())
    before, fill, writing = fingerprint(model), {"a.weight": Fill(0.0, 1.0)}, copies._write
    outer, writes = WorkingCopy(model, lambda m: m(X[:4])), itertools.count(1)

    def interrupted(tensor: Tensor, values: Tensor) -> None:
        writing(tensor, values)
        if next(writes) == number:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt), all_put_back():
        try:
            outer.reset(fill, 1)
            inner = WorkingCopy(model, lambda m: m(X[:4]))
            try:
                inner.reset(fill, 2)
                monkeypatch.setattr(copies, "_write", interrupted)
                if again:
                    inner.reset({}, but=["a.weight"])
            finally:
                inner.give_back()
        finally:
            outer.give_back()
    assert next(writes) > number, "it was interrupted"
    assert fingerprint(model) == before


@pytest.mark.parametrize("number", range(1, 5))
def test_looking_at_a_copy_within_a_loan_is_interrupted(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = BORROWED["closure"](plain())
    before, putting, puts = fingerprint(model), copies.put_storage, itertools.count(1)
    outer = WorkingCopy(model, lambda m: m(X[:4]))

    def interrupted(storage: torch.UntypedStorage, values: torch.UntypedStorage) -> None:
        if next(puts) == number:
            raise KeyboardInterrupt
        putting(storage, values)

    with suppress(KeyboardInterrupt), all_put_back():
        try:
            outer.reset({"a.weight": Fill(0.0, 1.0)}, 1)
            outer.model(X)
            monkeypatch.setattr(copies, "put_storage", interrupted)
            WorkingCopy(model, lambda m: m(X[:4]))
        finally:
            outer.give_back()
    assert next(puts) > number, "it was interrupted"
    assert fingerprint(model) == before


def test_what_we_keep_ourselves_is_nothing_that_a_loss_uses() -> None:
    """A program's functions may name ours, whose books lead to every model that is lent at present."""
    model = plain()

    def loss(out: Tensor, y: Tensor) -> Tensor:
        assert all_put_back
        return F.cross_entropy(out, y)

    with all_put_back():
        WorkingCopy(model).reset()
        assert not WorkingCopy(model, beside=(loss,)).borrowed


def test_a_training_step_that_uses_the_model_by_its_name() -> None:
    model = plain()

    def step(given: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    before = fingerprint(model)
    found = search(model, train_step=step)
    assert len({point.loss for point in found.curve}) > 3
    assert fingerprint(model) == before


class Boom(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Boom])
@pytest.mark.parametrize("name", ["closure", "keeps", "hook_fed", "method"])
@pytest.mark.parametrize("call", [search, plan])
def test_given_back_after_any_exception(name: str, error: type[BaseException], call: Callable[..., Any]) -> None:
    model = NETWORKS[name](plain())
    calls, last = itertools.count(1), 0  # an iterator is not put back

    def loss(out: Tensor, y: Tensor) -> Tensor:
        if next(calls) == last:
            raise error("here")
        return F.cross_entropy(out, y)

    def run() -> None:
        if call is search:
            dagscale.search(model, (X, Y), loss=loss, steps=8, batch_size=16, seeds=1)
        else:
            dagscale.plan(model, X[:4], data=(X, Y), loss=loss, steps=8, batch_size=16)

    for last in (1, 2, 9, 40):
        calls = itertools.count(1)
        before = fingerprint(model)
        if error is RuntimeError and last > 1:  # under another draw of the weights, or at a rate: that says something
            with suppress(dagscale.DagscaleError):
                run()
        else:
            with pytest.raises(dagscale.DagscaleError if error is RuntimeError else error):
                run()
        assert fingerprint(model) == before


@pytest.mark.parametrize("call", [plan, search, None], ids=["plan", "search", "measure"])
def test_an_interrupt_in_place_of_giving_back(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the end of a loan does not come to, the guard around it does; `Base.measure` has one too."""
    model = BORROWED["with_lock"](plain())
    recipe = dagscale.Recipe((X, Y), F.cross_entropy, steps=4, batch_size=16)
    base = dagscale.Base.given(traced(model, X[:4], recipe, 0), 0.1)
    before = fingerprint(model)

    def interrupted(self: WorkingCopy) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkingCopy, "give_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(model) if call is not None else base.measure("short-run")
    assert fingerprint(model) == before


SEEN: list[int] = []


class Noting(Plain):
    """Notes in a list of its module's how many examples it was given."""

    counts: ClassVar[dict[str, int]] = {"calls": 0}

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(len(x))
        self.counts["calls"] += 1
        return super().forward(x)


@pytest.mark.parametrize("call", [search, plan, check])
def test_what_copies_write_elsewhere_is_put_back(call: Callable[[nn.Module], Any]) -> None:
    call(Noting())
    assert (SEEN, Noting.counts) == ([], {"calls": 0})


class Running(nn.Module):
    """A loss that keeps a mean of itself, in a buffer, and a count."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(()))
        self.calls = 0

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        value = F.cross_entropy(out, y)
        self.calls += 1
        self.mean.mul_(0.9).add_(0.1 * value.detach())  # type: ignore[operator, union-attr]
        return value / self.mean


@pytest.mark.parametrize("call", ["search", "plan", "check"])
def test_what_a_loss_keeps_is_its_own_again_before_each_run(call: str) -> None:
    loss, lone = Running(), Running()
    pair = (plain(), X[:4])
    words: dict[str, Any] = {"loss": loss, "batch_size": 16}
    if call == "search":
        found = dagscale.search(plain(), (X, Y), steps=8, seeds=1, **words)
        best = found.curve[[point.lr for point in found.curve].index(found.argmin)]
        once = dagscale.search(plain(), (X, Y), steps=8, seeds=1, grid=[best.lr], widen=0, **{**words, "loss": lone})
        assert once.curve[0].losses == best.losses, "whichever rates were tried before"
    elif call == "plan":
        dagscale.plan(plain(), X[:4], data=(X, Y), steps=8, **words)
    else:
        dagscale.check([pair, pair], data=(X, Y), sizes=[1, 2], steps=1, seeds=1, base_lr=0.1, law="none", **words)
    assert (loss.calls, loss.mean.item()) == (0, 1.0)


def test_what_a_training_step_keeps_is_put_back() -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
        step.calls = getattr(step, "calls", 0) + 1  # type: ignore[attr-defined]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    search(plain(), train_step=step)
    assert not hasattr(step, "calls")


def test_measuring_a_base_says_what_does_not_fit() -> None:
    """As a plan does, before anything is measured."""

    def square(out: Tensor, y: Tensor) -> Tensor:
        return (out - y).square().mean()

    recipe = dagscale.Recipe((X, X[:, 0]), square, steps=4, batch_size=4)
    base = dagscale.Base.given(traced(plain(), X[:4], recipe, 0), 0.1)
    with pytest.raises(dagscale.DagscaleError, match="together they spread"):
        base.measure("short-run")


def test_half_precision_that_cannot_be_copied_is_refused_in_one_line() -> None:
    model = BORROWED["with_lock"](plain()).bfloat16()
    with pytest.raises(CopyError, match=r"cannot be copied .*half precision") as caught:
        search(model)
    assert "\n" not in str(caught.value)


def test_lazy_layers_that_cannot_be_copied_say_to_run_once() -> None:
    model = BORROWED["with_lock"](COPYABLE["lazy"](plain()))  # type: ignore[arg-type]
    with pytest.raises(CopyError, match="run its forward once first"):
        WorkingCopy(model, lambda m: m(X[:4]))


# --- how many, and how much memory ----------------------------------------------------------------------------------


def test_one_copy_serves_a_whole_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []
    real = copy.deepcopy

    def counted(x: Any, memo: Any = None) -> Any:
        if isinstance(x, Plain) and not (memo and id(x) in memo):
            made.append(x)
        return real(x, memo)

    monkeypatch.setattr(copy, "deepcopy", counted)
    base, target = plain(), Plain()
    found = search(base)
    dagscale.plan(target, X[:4], base=found)
    assert [sum(m is model for m in made) for model in (base, target)] == [1, 1]


@pytest.mark.parametrize("law", ["short-run", "curvature", "none"])
def test_nothing_of_a_plan_waits_for_the_garbage_collector(law: str) -> None:
    """A cycle would keep a copy of the weights, and its gradients, for as long as the collector likes."""
    dagscale.trace(plain(), X[:4])  # PyTorch imports things at the first trace, and an error of theirs keeps frames
    model, settings = plain(), {"law": law, "base_lr": 0.1, "base": (plain(), X[:4])}
    gc.collect()
    gc.disable()
    try:
        before = {id(o) for o in gc.get_objects()}
        made = plan(model, **settings)
        left = [o for o in gc.get_objects() if issubclass(type(o), Tensor) and id(o) not in before]
        assert [tuple(t.shape) for t in left] == [], made
    finally:
        gc.enable()


def peak(what: str) -> float:
    """In copies of the weights, beside the user's own; of a process of its own."""
    script = Path(__file__).parent / "fixtures" / "memory.py"
    command = [sys.executable, "-W", "ignore", str(script), what, "adamw", "1500"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout)


@pytest.mark.slow
def test_memory_is_that_of_a_training_step_and_one_copy_of_the_weights() -> None:
    """Weights of 36 MB; a quarter of them for what the allocator and small things take."""
    step, planned = peak("step"), peak("plan")
    assert step > 2.9, "a gradient and two states, or it was not measured"
    assert planned < step + 1.25, f"{planned:.2f} copies of the weights, a step {step:.2f}"


def test_a_base_is_measured_as_it_was_searched() -> None:
    """What is done to the model afterwards changes nothing."""
    model = plain()
    network = traced(model, X[:4], dagscale.Recipe((X, Y), loss=F.cross_entropy, batch_size=16, steps=4), 0)
    before = network.copy.reset().a.weight.detach().clone()  # type: ignore[union-attr, operator]
    network.give_back()
    with torch.no_grad():
        model.a.weight.zero_()
    for _ in range(2):
        trained = network.copy.reset()
        assert torch.equal(trained.a.weight, before)  # type: ignore[arg-type]
        with torch.no_grad():
            trained.a.weight.add_(1)  # type: ignore[operator, union-attr]
        network.give_back()
    assert isinstance(network, Network)


def test_a_model_that_changes_while_its_copy_trains_is_told_of() -> None:
    model = plain()
    made = WorkingCopy(model)
    made.reset()
    with torch.no_grad():
        model.a.weight.add_(1)
    with pytest.raises(CopyError, match="must use the model that they are given"):
        made.reset()


def test_a_loan_that_somebody_else_holds_is_left_to_them() -> None:
    model = BORROWED["with_lock"](plain())
    held = WorkingCopy(model)
    with torch.no_grad():
        held.reset().a.weight.add_(1)  # type: ignore[union-attr, operator]
    before = of_model(model)["tensors"]
    plan(plain())
    assert of_model(model)["tensors"] == before
    held.give_back()


def test_no_graph_of_the_user_is_spoilt() -> None:
    model = BORROWED["with_lock"](plain())
    loss = F.cross_entropy(model(X), Y)
    right = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    made = WorkingCopy(model, lambda m: m(X[:4]))
    made.reset(train=False)
    made.give_back()
    again = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(right, again, strict=True))


width = 1  # a global variable of the user's by a name that the model's code has for something else
SEEN: list[int] = []


class Wide(nn.Module):
    """Its code speaks of ``width``, an attribute; it keeps a list, and may be one that cannot be copied."""

    times = 2.0

    def __init__(self, own: int, copied: bool = True) -> None:
        super().__init__()
        self.width, self.layer, self.copied = own, nn.Linear(4, own), copied
        self.head = nn.Linear(own, 2)

    def __deepcopy__(self, memo: Any) -> Any:
        if not self.copied:
            raise RuntimeError("not this one")
        new = Wide(self.width)
        new.load_state_dict(self.state_dict())
        return new

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        SEEN.append(self.width)
        out: torch.Tensor = self.head(self.times * self.layer(x).relu()[:, : self.width])
        return out


@pytest.mark.parametrize("copied", [True, False])
def test_what_the_user_changes_between_two_calls_stays_as_changed(copied: bool) -> None:
    """A base is measured on again when a target is planned: nothing goes back to how it was when that was searched."""
    global width
    width = 1
    SEEN.clear()
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    recipe = dagscale.Recipe((x, (x[:, 0] > 0).long()), F.cross_entropy, "sgd", steps=30, batch_size=16)
    small = Wide(8, copied)
    found = dagscale.search(small, recipe, seeds=1)
    width, Wide.times, small.note = 2, 3.0, "mine"  # type: ignore[assignment]
    SEEN.append(7)
    small.head = nn.Linear(8, 2)
    with torch.no_grad():
        small.layer.weight.fill_(0.5)
        small.head.weight.fill_(0.25)
    try:
        for own in (16, 32):
            width = own
            plan = dagscale.plan(Wide(own, copied), base=found, law="short-run")
            assert plan.forwards > 0
            assert (width, Wide.times, small.note, SEEN) == (own, 3.0, "mine", [7])
            assert bool((small.layer.weight == 0.5).all())
            assert bool((small.head.weight == 0.25).all())
    finally:
        Wide.times = 2.0


@pytest.mark.parametrize("write", ["fused", "data"])
def test_a_base_is_measured_as_it_was_searched_however_its_model_was_trained_since(write: str) -> None:
    """Fused optimisers and writes to ``.data`` count no version up."""
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    recipe = dagscale.Recipe((x, (x[:, 0] > 0).long()), F.cross_entropy, "sgd", steps=30, batch_size=16)
    rates = []
    for change in (False, True):
        torch.manual_seed(0)
        small, large = Wide(8), Wide(16)
        found = dagscale.search(small, recipe, seeds=1, init="keep")
        if change and write == "data":
            small.layer.weight.data.mul_(5)
        elif change:
            optimizer = torch.optim.Adam(small.parameters(), lr=1.0, fused=True)
            F.cross_entropy(small(x), (x[:, 0] > 0).long()).backward()
            optimizer.step()
        rates.append(dagscale.plan(large, base=found, law="short-run").lr)
    assert rates[0] == rates[1]


def test_after_a_copy_was_spoilt_another_is_made() -> None:
    """The original was changed while it was lent: what the copy's code keeps is put back once, and no later again."""
    global width
    width = 1
    small = Plain()
    x = torch.randn(8, 10)
    network = traced(small, x, dagscale.Recipe(optimizer="sgd"), 0)
    spoilt = network.copy
    with all_put_back():
        spoilt.reset()
        with torch.no_grad():
            next(small.parameters()).add_(1)
        with pytest.raises(CopyError, match="while a copy of it was trained"):
            spoilt.reset()
    width = 2
    assert network.copy is not spoilt
    network.copy.reset()
    network.copy.give_back()
    spoilt.give_back()
    assert width == 2


class Counting(nn.Module):
    """Compiled, it keeps its attributes in C++."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.drop = nn.Linear(10, 10), nn.BatchNorm1d(10), nn.Dropout(0.5)
        self.calls, self.seen = 0, [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        return self.drop(self.norm(self.inner(x)))


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
@pytest.mark.parametrize("compiled", ["a part", "all", "all, traced"])
def test_compiled_modules_come_back_in_the_mode_that_they_were_in(compiled: str) -> None:
    part = Counting() if compiled == "all, traced" else torch.jit.script(Counting())
    model = nn.Sequential(nn.Linear(10, 10), part, nn.Linear(10, 4)).eval()
    if compiled == "all":
        model = torch.jit.script(model).eval()
    elif compiled == "all, traced":
        model = torch.jit.trace(model, X)
    before, right = {name: t.clone() for name, t in model.state_dict().items()}, model(X)
    seen = list(model[1].seen) if compiled == "a part" else []
    recipe = dagscale.Recipe((X, Y), loss=F.cross_entropy, optimizer="adamw", batch_size=32, steps=4)
    dagscale.search(model, recipe, seeds=1)
    dagscale.plan(model, recipe=recipe)
    assert not any(module.training for module in model.modules())
    assert not seen or list(model[1].seen) == seen
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(model(X), right)
