"""One recipe for whatever the data come as and whatever the loss takes; each mistake is one line with its mend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import dagscale
from dagscale.errors import DagscaleError, ForwardError, OptimizerError, PlanError, RecipeError
from dagscale.training.engine import train
from dagscale.training.recipe import Recipe, differences

X = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Again:
    """Batches that can be iterated again."""

    def __init__(self, *batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


@dataclass
class Answer:
    logits: Tensor
    loss: Tensor | None


class Labelled(nn.Module):
    """Takes features and labels by name, and answers with its own loss, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.layer(features)
        return Answer(logits, None if labels is None else F.cross_entropy(logits, labels))


def net(out: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, out))


def tokens() -> nn.Module:
    return nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))


def detection(batch: Any) -> tuple[Tensor, Tensor]:
    """A list of (features, {"label": …}), an example each."""
    return torch.stack([x for x, _ in batch]), torch.stack([own["label"] for _, own in batch])


LIST = [(X[i : i + 16], Y[i : i + 16]) for i in (0, 16, 32)]
IDS = torch.randint(5, (32, 6), generator=torch.Generator().manual_seed(0))
DETECTED = [[(X[i + j], {"label": Y[i + j]}) for j in range(8)] for i in (0, 8, 16)]
COMES: dict[str, tuple[Any, Recipe]] = {
    "tensors": (net, Recipe((X, Y), batch_size=16)),
    "x and y": (net, Recipe(SimpleNamespace(x=X, y=Y), batch_size=16)),
    "dataset": (net, Recipe(TensorDataset(X, Y), batch_size=16)),
    "loader": (net, Recipe(DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True))),
    "list of batches": (net, Recipe(LIST)),
    "iterable": (net, Recipe(Again(*LIST))),
    "labels": (Labelled, Recipe(Again(*({"features": x, "labels": y} for x, y in LIST)))),
    "no target": (net, Recipe(Again(*(x for x, _ in LIST)), lambda out: (out - 1).square().mean())),
    "detection": (net, Recipe(DETECTED, unpack=detection)),
    "regression": (lambda: net(1), Recipe((X, X[:, :1]), F.mse_loss, batch_size=16)),
    "multi-label": (net, Recipe((X, (X[:, :2] > 0).float()), F.binary_cross_entropy_with_logits, batch_size=16)),
    "per pixel": (
        lambda: nn.Conv2d(1, 3, 3, padding=1),
        Recipe((torch.randn(16, 1, 6, 6), torch.randint(3, (16, 6, 6))), F.cross_entropy, batch_size=8),
    ),
    "token targets": (
        tokens,
        Recipe((IDS, IDS.roll(-1, 1)), lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten()), batch_size=16),
    ),
}


@pytest.mark.parametrize("name", COMES)
def test_whatever_the_data_come_as_it_trains_and_is_planned(name: str) -> None:
    make, recipe = COMES[name]
    model = make()
    run = train(model, recipe.changed(steps=30), [{"params": list(model.parameters()), "lr": 0.1}])
    assert run.steps == 30
    assert run.loss < run.losses[0]
    plan = dagscale.plan(make(), recipe=recipe.changed(steps=8), law="short-run")
    assert (plan.law, plan.init) == ("short-run", "moments")
    assert 1e-4 < plan.lr < 1e3


class FromLabels(Labelled):
    """An encoder–decoder in little: without labels it has nothing to decode."""

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Any:
        if labels is None:
            raise ValueError("give labels")
        return super().forward(features + F.one_hot(labels, 4), labels)


def test_labels_are_among_the_example_inputs_where_the_model_cannot_do_without() -> None:
    recipe = Recipe([{"features": x, "labels": y} for x, y in LIST], steps=8)
    assert dagscale.plan(FromLabels(), recipe=recipe, law="short-run").init == "moments"
    with pytest.raises(ForwardError, match="forward of FromLabels raised ValueError: give labels"):
        dagscale.plan(FromLabels(), {"features": X[:2]}, recipe=recipe)


@pytest.mark.parametrize(("given", "steps"), [({}, 3), ({"epochs": 4}, 12), ({"steps": 7}, 7), ({"accumulate": 3}, 1)])
def test_the_length_of_a_run_follows_from_the_data(given: dict[str, Any], steps: int) -> None:
    for data, size in (((X, Y), 16), (DataLoader(TensorDataset(X, Y), batch_size=16), None), (LIST, None)):
        assert Recipe(data, batch_size=size, **given).total_steps == steps


def test_changes_keep_the_rest_and_descriptions_tell_them_apart() -> None:
    recipe = Recipe((X, Y), F.cross_entropy, torch.optim.AdamW, betas=(0.9, 0.95), batch_size=16, clip=1.0)
    other = recipe.changed(batch_size=8)
    assert (other.clip, other.optimizer.settings["betas"]) == (1.0, (0.9, 0.95))
    assert differences(recipe.describe(), other.describe()) == ["batch_size 8, the base's 16"]
    assert differences(recipe.describe(), recipe.changed().describe()) == []


def test_a_changed_length_takes_the_place_of_the_one_before() -> None:
    passes, steps = Recipe((X, Y), batch_size=16, epochs=2), Recipe((X, Y), batch_size=16, steps=30)
    assert (passes.changed(steps=5).total_steps, steps.changed(epochs=2).total_steps) == (5, 6)
    assert (passes.changed(batch_size=8).epochs, steps.changed(steps=None).total_steps) == (2, 3)


class Endless(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Tensor]:
        return iter(X)


def first(data: Any, **more: Any) -> Any:
    return Recipe(data, **more).example


def passes(data: Any) -> None:
    source = Recipe(data).source.batches(0)
    for _ in range(10):
        next(source)


class Once(Again):
    """Says that it can be iterated again, and cannot."""

    def __iter__(self) -> Iterator[Any]:
        batches, self.batches = self.batches, ()
        return iter(batches)


def planned(data: Any = (X, Y), **more: Any) -> Any:
    return dagscale.plan(net(), recipe=Recipe(data, batch_size=16, steps=4, **more), law="short-run")


def searched(**more: Any) -> Any:
    return dagscale.search(net(), Recipe((X, Y), F.cross_entropy, batch_size=16, **{"steps": 16, **more}), seeds=1)


WRONG: dict[str, tuple[Any, str]] = {
    "empty loader": (lambda: first(DataLoader(TensorDataset(X[:0], Y[:0]))), "the data hold no batch"),
    "iterator": (lambda: first(iter(LIST)), "iterated once only .*give what makes it anew, such as a list"),
    "once after all": (lambda: passes(Once(*LIST)), "iterated once only: give what makes them anew"),
    "changing": (lambda: passes([LIST[0], {"x": X}]), "batches change their structure: .* give a collate_fn"),
    "batch size twice": (
        lambda: first(DataLoader(TensorDataset(X, Y), batch_size=16), batch_size=8),
        "batch_size=8, and the DataLoader has 16: leave batch_size out",
    ),
    "iterable dataset": (lambda: first(Endless()), "has no batches yet: wrap it, DataLoader"),
    "text": (lambda: first("cifar10"), "not str"),
    "number": (lambda: first(7), "not int"),
    "dict": (lambda: first({"x": X, "y": Y}), "not dict"),
    "three things": (
        lambda: first([(X, Y, Y)]),
        r"is 3 things: .* unpack=.*, as in \(tuple\(batch\[:-1\]\), batch\[-1\]\)",
    ),
    "unpack raises": (lambda: first(LIST, unpack=lambda b: b["x"]), r"unpack raised TypeError: .*\(inputs, target\)"),
    "unpack is none": (lambda: first(LIST, unpack="x"), "unpack must be a function, not str"),
    "loss": (lambda: Recipe((X, Y), "mse"), "loss must be a function, not str"),
    "clip": (lambda: Recipe((X, Y), clip=-1.0), "clip must be a positive number, got -1.0"),
    "decay": (lambda: Recipe((X, Y), weight_decay=float("nan")), "weight_decay must be 0 or more, got"),
    "accumulate": (lambda: Recipe((X, Y), accumulate=0.5), "accumulate must be a whole number, got 0.5"),
    "autocast": (lambda: Recipe((X, Y), autocast="bf16"), "autocast must be a type such as torch.bfloat16"),
    "step and clip": (lambda: Recipe((X, Y), step=print, clip=1.0), "step= is the whole training step"),
    "unknown word": (lambda: Recipe((X, Y), batchsize=3), "'batchsize' is no setting .*did you mean 'batch_size'"),
    "no length": (lambda: Recipe(Again(*LIST)).total_steps, "do not say how many batches .*give steps="),
    "no data": (lambda: Recipe().source, "needs data"),
    "float classes": (
        lambda: dagscale.plan(net(), recipe=Recipe((X, X[:, 0]), batch_size=16), law="short-run"),
        "no class labels: give loss=, such as torch.nn.functional.mse_loss",
    ),
    "one number an example": (
        lambda: dagscale.search(nn.Sequential(nn.Linear(X.shape[1], 1), nn.Flatten(0)), (X, X[:, 0]), steps=4),
        "no class labels.*mse_loss",
    ),
    "negative classes": (lambda: planned((X, X[:, :2]), loss=nn.CrossEntropyLoss()), "no class labels.*mse_loss"),
    "no target, no loss": (
        lambda: dagscale.plan(net(), recipe=Recipe(Again(X[:16], X[16:]), steps=8), law="short-run"),
        "the batches have no target .*give loss=.*lambda out: out where that is the loss",
    ),
    "no target, loss of two": (
        lambda: dagscale.plan(net(), recipe=Recipe(Again(X[:16], X[16:]), torch.dist, steps=8), law="short-run"),
        "the batches have no target, so that the loss is given the output alone",
    ),
    "loss as a class": (
        lambda: Recipe((X, Y), nn.CrossEntropyLoss),
        "is the class CrossEntropyLoss: give one of it",
    ),
    "loss of two numbers": (
        lambda: planned(loss=lambda out, y: (out.sum(), 1)),
        "is tuple: return a tensor, and it",
    ),
    "loss of three": (lambda: planned(loss=lambda out, y, w: out.sum()), r"called as loss\(output, target\)"),
    "loss turned round": (lambda: planned(loss=lambda y, out: F.cross_entropy(out, y)), r"as loss\(output, target\)"),
    "whole labels of several": (
        lambda: planned((X, F.one_hot(Y, 2)), loss=F.binary_cross_entropy_with_logits),
        r"no class labels must be floating, y.float\(\)",
    ),
    "whole labels of a kind": (lambda: planned((X, Y.int())), r"class labels must be int64, y.long\(\)"),
    "labels that are all ignored": (
        lambda: planned((X, torch.full_like(Y, -100))),
        "the loss is not a number and has no gradient: it is a mean over nothing, as where all labels",
    ),
    "labels in a column": (lambda: planned((X, Y[:, None])), r"class labels have one dimension, y.squeeze\(1\)"),
    "more labels than outputs": (
        lambda: planned((X, Y + 100)),
        "labels of this batch go from 100 to 101, and the output has to have as many classes",
    ),
    "labels as numbers": (
        lambda: planned(loss=F.mse_loss),
        r"(?:must match the|Using a target) size .* class labels take a loss of classes; leave loss out",
    ),
    "classes last": (
        lambda: dagscale.plan(tokens(), data=(IDS, IDS.roll(-1, 1)), loss=F.cross_entropy, steps=4, law="short-run"),
        r"classes in the second dimension; .* cross_entropy\(out.flatten\(0, -2\), y.flatten\(\)\)",
    ),
    "two lengths": (lambda: Recipe((X, Y), steps=30, epochs=7), "steps and epochs both say how long a run is"),
    "two lengths in a search": (
        lambda: dagscale.search(net(), (X, Y), steps=3, epochs=2),
        "steps and epochs both say how long a run is: give one",
    ),
    "two new lengths": (lambda: Recipe((X, Y), epochs=7).changed(steps=3, epochs=2), "steps and epochs both say"),
    "decay of none": (lambda: Recipe((X, Y), no_decay=("bias",)), "give weight_decay= too"),
    "no schedule": (lambda: searched(schedule=lambda o, n: None), "schedule gave a NoneType, which has no step"),
    "several schedules": (
        lambda: searched(schedule=lambda o, n: [torch.optim.lr_scheduler.StepLR(o, 3)]),
        "schedule gave a list, which has no step",
    ),
    "schedule of another length": (
        lambda: searched(schedule=lambda o, n: torch.optim.lr_scheduler.LambdaLR(o, lambda s: 1 / (n - 4))),
        "raised ZeroDivisionError: .*, for a run of 4 steps: .* for runs of any length",
    ),
    "schedule that wants a loss": (
        lambda: searched(schedule=lambda o, n: torch.optim.lr_scheduler.ReduceLROnPlateau(o)),
        "step.. raised TypeError: .* called without arguments after every optimiser step",
    ),
    "step with a closure": (lambda: searched(optimizer=torch.optim.LBFGS), "training step that gives it one.* step="),
    "step of one": (
        lambda: Recipe((X, Y), step=lambda batch: 0.0),
        r"called as step\(model, optimizer, inputs, target\), .*<lambda> does not take these",
    ),
}


def test_a_training_step_that_does_not_step_is_asked_about() -> None:
    with pytest.raises(PlanError, match="the labels and the training step, which must step the optimizer that it is"):
        planned(step=lambda model, optimizer, x, y: F.cross_entropy(model(x), y).item())


@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_is_one_line_with_its_mend(name: str) -> None:
    call, words = WRONG[name]
    with pytest.raises(DagscaleError, match=words) as caught:
        call()
    assert isinstance(caught.value, RecipeError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param([{"image": x, "target": y} for x, y in LIST], id="named"),
        pytest.param([((x, x), y) for x, y in LIST], id="two inputs"),
    ],
)
def test_batches_that_the_forward_does_not_take_say_how_to_unpack_them(data: Any) -> None:
    with pytest.raises(DagscaleError, match=r"of a batch of the data it is given .* recipe unpack=") as error:
        dagscale.search(net(), data, steps=4)
    assert "\n" not in str(error.value)


def test_batches_of_a_step_of_ones_own_say_what_unpack_is_to_return() -> None:
    """A dict's names stand in the message; with a training step, all that the forward does not take goes there."""
    named = [{"image": x, "mask": y, "file": ["a.png", "b.png"]} for x, y in LIST]
    with pytest.raises(DagscaleError, match=r"'file': '2 strings'.*, as in \(batch\['image'\], batch\['mask'\]\)"):
        dagscale.search(net(), named, steps=4)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, one: Tensor, other: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(one), model(other) + 1)
        loss.backward()
        optimizer.step()
        return loss

    views = [((x, x + 0.1), y) for x, y in LIST]
    recipe = Recipe(views, optimizer="adam", steps=8, step=step)
    with pytest.raises(
        DagscaleError, match=r"unpack=lambda batch: \(inputs, rest\).*step\(model, optimizer, inputs, rest"
    ):
        dagscale.search(net(), recipe, seeds=1)
    assert dagscale.search(net(), recipe.changed(unpack=lambda batch: batch[0]), seeds=1).lr > 0


@pytest.mark.parametrize("clip", [None, 1.0])
def test_gradients_of_sparse_embeddings(clip: float | None) -> None:
    class Bag(nn.Module):
        def __init__(self, sparse: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.bag, self.out = nn.EmbeddingBag(5, 8, sparse=sparse), nn.Linear(8, 2)

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.out(self.bag(ids))
            return out

    recipe = Recipe((IDS, IDS[:, 0] % 2), F.cross_entropy, batch_size=16, steps=8, clip=clip)
    found, right = (dagscale.search(Bag(sparse), recipe, seeds=1) for sparse in (True, False))
    assert found.lr == pytest.approx(right.lr, rel=1e-3)


class Arc(nn.Module):
    """A loss with a vector a class."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.eye(2))

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out @ self.centres, y)


def test_parameters_of_the_loss_are_told_of() -> None:
    arc, teacher = Arc(), Arc()
    arc.centres.grad = torch.ones(2, 2)

    def with_a_teacher(out: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            teacher(out, y)
        return F.cross_entropy(out, y)

    for loss, noted in ((arc, True), (lambda out, y: arc(out, y), True), (with_a_teacher, False)):
        recipe = Recipe((X, Y), loss, batch_size=16, steps=8)
        for result in (dagscale.search(net(), recipe, seeds=1), dagscale.plan(net(), recipe=recipe, law="short-run")):
            assert any("the loss has parameters of its own, of shape (2, 2)" in note for note in result.notes) == noted
    assert torch.equal(arc.centres.grad, torch.ones(2, 2))


def squares(out: Tensor, y: Tensor) -> Tensor:
    return (out - y).square().mean()


@pytest.mark.parametrize(
    ("loss", "y", "told"),
    [
        (F.mse_loss, 300 + 40 * X[:, :1], True),
        (F.l1_loss, 300 + 40 * X[:, :1], True),
        (squares, 1e5 * X[:, :1], True),
        (F.mse_loss, (300 + 40 * X[:, :1]).long(), True),
        (F.mse_loss, X[:, :1], False),
        (F.mse_loss, 5 * X[:, :1], False),
        (F.mse_loss, 1e-3 * X[:, :1], True),
        (F.l1_loss, 1e-3 * X[:, :1], True),
        (F.mse_loss, 0.3 * X[:, :1], False),
        (F.poisson_nll_loss, (30 * X[:, :1].abs()).round(), False),  # the output is a logarithm
        (lambda out, y: F.mse_loss(out, y / 300), 300 * X[:, :1], False),  # the loss scales them itself
        (lambda out, y: F.mse_loss(out, 300 * y), X[:, :1] / 300, False),
    ],
)  # fmt: skip
def test_targets_far_from_outputs_in_size_are_told_of(loss: Callable[..., Tensor], y: Tensor, told: bool) -> None:
    torch.manual_seed(0)
    small, model = (nn.Sequential(nn.Linear(X.shape[1], n), nn.ReLU(), nn.Linear(n, 1)) for n in (8, 16))
    recipe = Recipe((X, y), loss, "adam", batch_size=16, steps=8)
    results = (
        dagscale.search(model, recipe, seeds=1),
        dagscale.plan(model, recipe=recipe, base=small, base_lr=1e-3, law="short-run"),
        dagscale.check([small, model], recipe=recipe, init="moments", base_lr=1e-3),
    )
    for result in results:
        assert sum("standardise them" in note for note in result.notes) == told


@pytest.mark.parametrize("momentum", ["", "x", None, []])
def test_settings_of_a_wrong_type_are_refused(momentum: object) -> None:
    with pytest.raises(OptimizerError, match=r"do not hold together|cannot be"):
        Recipe(None, optimizer="sgd", momentum=momentum)


def undecayed(model: nn.Module, **said: Any) -> set[str]:
    """What a base of the model and its plan leave without decay."""
    recipe = Recipe((torch.randn(16, 4), Y[:16]), optimizer="adamw", batch_size=8, steps=2, weight_decay=0.1, **said)
    plan = dagscale.plan(model, base=dagscale.search(model, recipe, seeds=1), law="none")
    for group in (groups := plan.optimizer(model).param_groups):
        assert group["weight_decay"] in (0.0, 0.1)
    assert dagscale.Plan.from_json(plan.to_json()).param_groups(model, no_decay=said.get("no_decay"))
    return {name for group in groups for name in group["param_names"] if not group["weight_decay"]}


@pytest.mark.parametrize(
    ("given", "names"),
    [("bias", {"0.bias", "2.bias"}), (["norm"], {"1.weight", "1.bias"}), ("2", {"2.weight", "2.bias"}),
     (("*.weight", "norm"), {"0.weight", "1.weight", "2.weight", "1.bias"}), ((), set()),
     (lambda name, parameter: parameter.ndim > 1, {"0.weight", "2.weight"})],
)  # fmt: skip
def test_what_does_not_decay_is_said_by_roles_names_patterns_or_a_function(given: Any, names: set[str]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert undecayed(model, no_decay=given) == names
    groups = dagscale.plan(model, torch.randn(2, 4), base_lr=0.1, law="none").param_groups(
        model, weight_decay=0.5, no_decay=given, only="2"
    )
    assert {n for g in groups for n in g["param_names"] if not g["weight_decay"]} == {n for n in names if n[0] == "2"}


@pytest.mark.parametrize("given", [("norms",), ["bias", "LayerNorm.weight"], [3], None])
def test_what_names_nothing_that_decays_is_told(given: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    said = (
        r"no_decay='(norms|LayerNorm\.weight)' is no role \(embedding, .*, vector\) and names no parameter of the model"
        r", which has 0\.weight, .* as in '\*|no_decay= (holds 3|is of type NoneType)"
    )
    with pytest.raises(RecipeError, match=said):
        undecayed(model, no_decay=given)
    if given is not None:
        plan = dagscale.plan(model, torch.randn(2, 4), base_lr=0.1, law="none")
        with pytest.raises(RecipeError, match=said):
            plan.param_groups(model, weight_decay=0.1, no_decay=given)


def test_names_of_tied_parameters_are_theirs() -> None:
    model = Tied()
    assert undecayed(model, no_decay="other.weight") == {"one.weight"}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.other(self.one(x).relu()).relu())
        return out


def test_parameters_that_their_author_marked_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].weight._no_weight_decay = True  # type: ignore[union-attr, assignment]
    assert undecayed(model) == {"0.weight", "0.bias", "1.bias"}
    assert undecayed(model, no_decay=()) == {"0.weight"}
    recipe = Recipe((torch.randn(16, 4), Y[:16]), optimizer="adamw", batch_size=8, steps=2, weight_decay=0.1)
    seen = []

    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> Any:
        seen.append([group["weight_decay"] for group in optimizer.param_groups])
        return dagscale.constant()(optimizer, steps)

    dagscale.search(model, recipe.changed(schedule=schedule), seeds=1)
    assert all(decays == [0.0, 0.1] for decays in seen), "the copies that are trained lose the mark"


def test_a_rule_of_decay_that_raises_is_told_in_one_line() -> None:
    recipe = Recipe((X, Y), steps=2, weight_decay=0.1, no_decay=lambda name, parameter: 1 / 0)
    with pytest.raises(RecipeError, match="the function no_decay raised ZeroDivisionError"):
        dagscale.search(net(), recipe, seeds=1)


def test_the_loss_is_computed_under_autocast_too() -> None:
    """As in the usual loop, where losses that need it come out in single precision."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        value = F.cross_entropy(out, y)
        assert (out.dtype, value.dtype) == (torch.bfloat16, torch.float32)
        return value

    recipe = Recipe((X, Y), loss=loss, optimizer="adamw", batch_size=16, steps=4, autocast=torch.bfloat16)
    dagscale.search(net(), recipe, seeds=1, grid=[1e-3, 2e-3])


def test_tensors_in_memory_are_unpacked_too() -> None:
    recipe = Recipe((X, Y), batch_size=16, steps=4, unpack=lambda batch: (2 * batch[0], 1 - batch[1] % 2))
    plain = Recipe((2 * X, 1 - Y % 2), batch_size=16, steps=4)
    for one, other in zip(recipe.source.batches(3), plain.source.batches(3), strict=False):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.target, other.target)
        break
    found = [dagscale.search(net(), how, seeds=1, grid=[1e-2, 2e-2]).curve for how in (recipe, plain)]
    assert found[0] == found[1]


def test_a_loss_that_differentiates_by_its_input_says_how_it_gets_one_that_it_can() -> None:
    """A physics-informed loss: batches ask for no gradients, and the forward may."""

    def residual(u: Tensor, x: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return (slope - x[:, :1].cos()).square().mean()

    class Returning(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.u = nn.Sequential(*(p for _ in range(depth) for p in (nn.Linear(4, 4), nn.Tanh())), nn.Linear(4, 1))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = x.detach().requires_grad_()
            return self.u(x), x

    how: dict[str, Any] = {"optimizer": "adam", "batch_size": 16, "steps": 6}
    with pytest.raises(RecipeError, match=r"let the forward call requires_grad_\(\) on it and return it"):
        dagscale.search(net(), Recipe((X, X), loss=residual, **how), seeds=1)
    recipe = Recipe((X, X), loss=lambda out, _: residual(*out), **how)
    found = dagscale.search(Returning(1), recipe, seeds=1, grid=[1e-3, 1e-2])
    assert dagscale.plan(Returning(2), base=found).lr > 0


class OwnLoss(nn.Module):
    """A network that answers with its loss where it gets labels, as its way of answering says."""

    def __init__(self, answer: Callable[[Tensor, Tensor | None], Any]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        self.answer = answer

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        return self.answer(self.net(x), labels)


def whole_answer(out: Tensor, labels: Tensor | None) -> Tensor | None:
    return None if labels is None else nn.functional.cross_entropy(out, labels)


@pytest.mark.parametrize(
    ("answer", "loss"),
    [
        (whole_answer, None),
        (whole_answer, lambda out: out),
        (whole_answer, lambda out, labels: out),
        (lambda out, labels: (out, whole_answer(out, labels)), lambda out: out[1]),
        (lambda out, labels: {"logits": out, "loss": whole_answer(out, labels)}, None),
    ],
)
def test_a_models_own_loss_is_the_loss_of_its_outputs(answer: Any, loss: Any) -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    y = x[:, :4].argmax(1)
    batches = [{"x": a, "labels": b} for a, b in zip(x.split(16), y.split(16), strict=True)]

    def planned(model: nn.Module, recipe: Recipe) -> dagscale.Plan:
        return dagscale.plan(model, recipe=recipe, law="short-run")

    def made(answer: Any) -> nn.Module:
        torch.manual_seed(0)
        return OwnLoss(answer)

    own = planned(made(answer), Recipe(batches, loss, "adamw", steps=10))
    plain = planned(made(lambda out, labels: out), Recipe(batches, nn.functional.cross_entropy, "adamw", steps=10))
    assert own.lr == pytest.approx(plain.lr, rel=1e-5)
    assert {n: p.init_std for n, p in own.parameters.items()} == {n: p.init_std for n, p in plain.parameters.items()}


def test_one_number_for_a_batch_beside_targets_is_asked_about() -> None:
    x, y = torch.randn(32, 8), torch.randint(0, 4, (32,))
    model = OwnLoss(lambda out, labels: out.square().mean())
    with pytest.raises(RecipeError, match="the model returns one number for the whole batch: if that is its loss"):
        dagscale.plan(model, recipe=Recipe((x, y), optimizer="sgd", steps=5, batch_size=8), law="short-run")
    plan = dagscale.plan(model, recipe=Recipe((x, y), lambda out: out, "sgd", steps=5, batch_size=8), law="short-run")
    assert plan.lr > 0


class Flow(nn.Module):
    """Couplings whose scales grow as the square of what layers put out; of a tenth of it, if ``bounded``."""

    def __init__(self, bounded: bool, blocks: int = 2) -> None:
        super().__init__()
        self.bounded = bounded
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 4)) for _ in range(blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, 1)
        volume = x.new_zeros(len(x))
        for net in self.nets:
            scale, shift = net(a).chunk(2, 1)
            if self.bounded:
                scale, shift = 0.1 * scale.tanh(), 0.1 * shift
            a, b = b * (1 + 4 * scale.square()) + shift, a
            volume = volume + scale.sum(1)
        return torch.cat([a, b], 1), volume


@pytest.mark.parametrize("bounded", [True, False])
def test_a_loss_that_begins_far_above_the_models_own_is_told(bounded: bool) -> None:
    torch.manual_seed(0)
    model, x = Flow(bounded), torch.randn(64, 4)
    recipe = Recipe((x, x), lambda out, x: (out[0].square().sum(1) / 2 - out[1]).mean(), "adam", steps=5, batch_size=16)
    before = {name: p.clone() for name, p in model.named_parameters()}
    plan = dagscale.plan(model, recipe=recipe, init="moments", law="short-run")
    told = [note for note in plan.notes if "under init 'moments' the loss begins between" in note]
    assert bool(told) is not bounded
    assert all("init=['moments', 'keep']" in note for note in told)
    assert not any("the loss begins" in note for note in dagscale.plan(model, recipe=recipe, init="keep").notes)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_a_warm_up_that_the_run_does_not_outlast_is_refused() -> None:
    with pytest.raises(RecipeError, match="the warm-up takes 100 steps, and the run has 10"):
        Recipe((torch.randn(16, 4), Y[:16]), steps=10, schedule=dagscale.cosine(warmup=100))
    Recipe((torch.randn(16, 4), Y[:16]), steps=10, schedule=dagscale.cosine(warmup=0.5))
