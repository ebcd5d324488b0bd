"""A base serves any number of targets, keeps to its recipe, and can be kept in a file."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.errors import DagscaleError, PlanError
from dagscale.planning.examples import Examples, unlike
from dagscale.training.recipe import Recipe

X = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
RECIPE = Recipe((X, Y), cross_entropy, batch_size=16, steps=8)


def net(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))


@pytest.fixture(scope="module")
def base() -> dagscale.Base:
    return dagscale.search(net(), RECIPE, grid=[0.05, 0.1, 0.2, 0.4], seeds=1)


def test_twelve_targets_measure_their_base_once(base: dagscale.Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by the networks that a law is asked about, and by the models that are copied."""
    asked: list[str] = []
    copied: list[int] = []
    deepcopy = copy.deepcopy

    def counting(value: Any, *more: Any) -> Any:
        if isinstance(value, nn.Module) and not more:
            copied.append(id(value))
        return deepcopy(value, *more)

    def size(network: dagscale.Network) -> dict[str, dagscale.Estimate]:
        return {"size": counted(network)}

    @dagscale.network.remembered
    def counted(network: dagscale.Network) -> dagscale.Estimate:
        asked.append(network.role)
        with network.probe(network.seed) as probe:
            return dagscale.Estimate(float(len(probe.parameters)))

    monkeypatch.setattr(copy, "deepcopy", counting)
    targets = [net(width) for width in range(9, 21)]
    with dagscale.LAWS.temporarily():
        dagscale.law("size", measured=True)(size)
        plans = [dagscale.plan(target, base=base, law="size") for target in targets]
    assert asked.count("base") == 1
    assert asked.count("target") == 12
    assert all(plan.lr == pytest.approx(base.lr) for plan in plans)
    assert max(copied.count(id(target)) for target in targets) <= 2
    assert len(copied) <= 2 * 13


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"recipe": RECIPE.changed(batch_size=32)}, "not that of the base.*batch_size 32, the base's 16"),
        ({"steps": 99}, "steps 99, the base's 8"),
        ({"optimizer": "adamw"}, "optimizer adamw, the base's sgd"),
        ({"init": "in-degree"}, "found under init 'moments', and the plan is for init 'in-degree': search"),
    ],
)
def test_a_base_found_otherwise_is_refused(base: dagscale.Base, given: dict[str, Any], text: str) -> None:
    with pytest.raises(PlanError, match=text) as caught:
        dagscale.plan(net(16), base=base, **given)
    assert "\n" not in str(caught.value)


KEPT: dict[str, Callable[[dagscale.Base], Any]] = {
    "base": lambda base: base,
    "plan": lambda base: dagscale.plan(net(16), base=base, law="none"),
    "graph": lambda base: dagscale.trace(net(), X[:2]),
}


@pytest.mark.parametrize("kind", KEPT)
def test_results_are_values(base: dagscale.Base, kind: str) -> None:
    value = KEPT[kind](base)
    for other in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value), copy.copy(value)):
        assert other == value
        assert hash(other) == hash(value)


@pytest.mark.parametrize("kind", ["base", "plan"])
def test_files_hold_results_whole(base: dagscale.Base, kind: str, tmp_path: Any) -> None:
    value = KEPT[kind](base)
    value.save(tmp_path / "it.json")
    assert type(value).load(tmp_path / "it.json") == value
    later = {**json.loads(value.to_json()), "format": 99}
    with pytest.raises(PlanError, match=r"format 99, of a later version .*upgrade dagscale"):
        type(value).from_json(json.dumps(later))
    for text in ("", "[]", "{}", "null", '{"format": 1}', '{"format": "1"}', "[" * 100_000):
        with pytest.raises(PlanError, match=f"this is no {kind}") as caught:
            type(value).from_json(text)
        assert "\n" not in str(caught.value)
    (tmp_path / "cut.json").write_text(value.to_json()[:-9])
    with pytest.raises(PlanError, match=f"cut.json: this is no {kind}"):
        type(value).load(tmp_path / "cut.json")
    with pytest.raises(PlanError, match="cannot read"):
        type(value).load(tmp_path / "none.json")
    with pytest.raises(PlanError, match="cannot write"):
        value.save(tmp_path / "no" / "it.json")


def test_a_document_of_another_kind_is_told_as_what_it_is(base: dagscale.Base) -> None:
    plan = KEPT["plan"](base)
    with pytest.raises(PlanError, match=r"this is a plan, and no base; write one with Base\.save"):
        dagscale.Base.from_json(plan.to_json())
    with pytest.raises(PlanError, match=r"this is a base, and no plan; write one with Plan\.save"):
        dagscale.Plan.from_json(base.to_json())
    for given in ("base.json", ["base.json", "other.json"]):
        with pytest.raises(PlanError, match=r"got str: read a file with dagscale\.Base\.load"):
            dagscale.plan(net(16), base=given)  # type: ignore[arg-type]


def test_a_base_from_a_file_brings_its_recipe_as_far_as_that_says_it(base: dagscale.Base) -> None:
    again = dagscale.Base.from_json(base.to_json())
    for said in ({}, {"data": (X, Y)}, {"data": (X, Y), "loss": cross_entropy}):
        planned = dagscale.plan(net(16), X[:2], base=again, law="none", **said)
        assert planned.recipe == dagscale.plan(net(16), X[:2], base=base, law="none").recipe
    own = dagscale.search(net(), RECIPE.changed(loss=lambda out, y: cross_entropy(out, y)), grid=[0.1, 0.2], seeds=1)
    own = dagscale.Base.from_json(own.to_json())
    with pytest.raises(DagscaleError, match=r"loss none, the base's .*its file does not tell in full: give recipe="):
        dagscale.plan(net(16), X[:2], base=own)


def test_a_base_of_another_kind_is_told_of(base: dagscale.Base) -> None:
    target = nn.Sequential(
        nn.Linear(4, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)
    )
    (note,) = [n for n in dagscale.plan(target, base=base, law="none").notes if "another kind" in n]
    assert note.startswith("the target has norms, and the base none")
    assert not any("another kind" in n for n in dagscale.plan(net(16), base=base, law="none").notes)


def test_what_is_not_measured_for_lack_of_data_is_told_of() -> None:
    settings = {"base": (net(), X[:2]), "base_lr": 0.1, "optimizer": "adamw"}
    assert any("without data" in note for note in dagscale.plan(net(16), X[:2], **settings).notes)
    assert not any("without data" in note for note in dagscale.plan(net(16), X[:2], law="none", **settings).notes)


def test_a_base_from_a_file_still_serves_what_was_measured(base: dagscale.Base) -> None:
    again = dagscale.Base.from_json(base.to_json())
    one, two = (dagscale.plan(net(16), X[:2], base=b, recipe=RECIPE, law="paths") for b in (base, again))
    assert one == two


BROKEN: list[tuple[str, Any]] = [
    *[(name, value) for name in ("lr", "base_lr") for value in (None, "0.1", 0, -1.0, True, [0.1], 1e400)],
    ("seed", -1), ("seed", 0.5), ("law", 3), ("init", None), ("width", 7), ("notes", 3), ("notes", [1]),
    ("factors", [1]), ("factors", {"a": -1.0}), ("factors", {"a": "x"}), ("recipe", None), ("recipe", [1]),
    ("forwards", -1), ("lr_interval", [0.1]), ("lr_interval", "ab"), ("parameters", None),
    ("parameters", {"0.weight": 3}),
]  # fmt: skip
BROKEN_PARAMETER: list[tuple[str, Any]] = [
    ("shape", "ab"), ("shape", [8, -4]), ("shape", 3), ("shape", [8.0, 4]), ("init_mean", "x"), ("init_mean", None),
    ("init_std", -1.0), ("init_std", None), ("lr", None), ("lr", -0.1), ("lr", "x"), ("weight_decay", "x"), ("eps", -1),
    ("role", "head"), ("role", 3), ("more", 1),
]  # fmt: skip


@pytest.mark.parametrize(("where", "name", "value"), [
    *[("plan", *one) for one in BROKEN], *[("parameter", *one) for one in BROKEN_PARAMETER],
])  # fmt: skip
def test_what_was_edited_by_hand_is_refused_in_one_line(base: dagscale.Base, where: str, name: str, value: Any) -> None:
    document = json.loads(KEPT["plan"](base).to_json())
    (document if where == "plan" else document["parameters"]["0.weight"])[name] = value
    with pytest.raises(DagscaleError, match="this is no plan") as caught:
        dagscale.Plan.from_json(json.dumps(document))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [
    ("lr", 0), ("lr", "x"), ("band", [1]), ("band", 3), ("curve", 3), ("curve", [{"lr": 1}]), ("notes", 3),
    ("network", 3), ("network", {}), ("more", 1), ("recipe", 3), ("init", 3), ("edge", None), ("argmin", -1),
    ("format", 0), ("format", -1), ("seeds", -1), ("steps", -1), ("examples", -3), ("tolerance", -0.5),
    ("band", [1.0, 0.1]), ("data", 3), ("data", {}), ("data", {"parts": [3]}), ("data", {"parts": [], "classes": "x"}),
    *[("data", {"parts": [{"name": "input", "kind": "whole", "shape": [4], **own}]})
      for own in ({"kind": "green"}, {"shape": 4}, {"shape": ["4"]}, {"size": -1.0}, {"size": 0.0}, {"chance": None})],
])  # fmt: skip
def test_a_base_that_was_edited_by_hand_is_refused_in_one_line(base: dagscale.Base, name: str, value: Any) -> None:
    document = json.loads(base.to_json())
    document[name] = value
    with pytest.raises(DagscaleError, match="this is no base") as caught:
        dagscale.Base.from_json(json.dumps(document))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("part", "value"), [
    ("fills", {"0.weight": [0.0, 1e200]}), ("fills", {"0.weight": [1e200, 0.0]}), ("fills", {"0.weight": [0.0, -1.0]}),
    ("fills", {"0.weight": ["0", 1.0]}), ("measured", {"a": {"log_rate": 1e300}}), ("seed", 0.5),
    ("measured", {"a": {"log_rate": 0.0, "error": -1.0}}), ("measured", {"a": {"log_rate": 0.0, "seeds": -1}}),
])  # fmt: skip
def test_no_number_of_a_base_s_network_is_beyond_those_of_networks(
    base: dagscale.Base, part: str, value: Any
) -> None:  # fmt: skip
    document = json.loads(base.to_json())
    document["network"][part] = value
    with pytest.raises(DagscaleError, match="this is no base"):
        dagscale.Base.from_json(json.dumps(document))


@pytest.mark.parametrize(("what", "name"), [("plan", "notes"), ("base", "network")])
def test_a_name_that_a_document_lacks_is_told_as_missing(base: dagscale.Base, what: str, name: str) -> None:
    document = json.loads(KEPT[what](base).to_json())
    del document[name]
    with pytest.raises(PlanError, match=f"this is no {what} \\('{name}' is missing\\)"):
        type(KEPT[what](base)).from_json(json.dumps(document))


def test_a_name_that_stands_in_a_document_twice_is_refused(base: dagscale.Base) -> None:
    text = base.to_json().rstrip()[:-1] + ', "lr": 7.0}'
    with pytest.raises(PlanError, match="'lr' stands there twice"):
        dagscale.Base.from_json(text)


def test_a_base_whose_layers_have_lost_their_parameters_is_planned_from(base: dagscale.Base) -> None:
    document = json.loads(base.to_json())
    for _, _, ops in document["network"]["graph"]["edges"]:
        for op in ops:
            op["params"] = []
    known = dagscale.Base.from_json(json.dumps(document))
    for law in ("covariance", "walk", "paths", "effective-depth"):
        assert dagscale.plan(net(16), X[:2], base=known, recipe=RECIPE, law=law).lr > 0


def test_rates_that_no_float_holds_are_refused_in_one_line(base: dagscale.Base) -> None:
    def far(network: dagscale.Network) -> dict[str, dagscale.Estimate]:
        return {"far": dagscale.Estimate(-1e4 if network.role == "base" else 0.0)}

    def overflows(network: dagscale.Network) -> dict[str, dagscale.Estimate]:
        return {"far": dagscale.Estimate((1e200 * len(network.graph.vertices)) ** 2)}

    with dagscale.LAWS.temporarily():
        for name, rule in (("far", far), ("overflows", overflows)):
            dagscale.law(name)(rule)
            with pytest.raises(DagscaleError, match="no float holds"):
                dagscale.plan(net(16), X[:2], base=base, recipe=RECIPE, law=name)


def test_a_plan_that_does_not_fit_leaves_the_model_untouched(base: dagscale.Base) -> None:
    document = json.loads(KEPT["plan"](base).to_json())
    document["parameters"]["4.bias"]["shape"] = [3]
    model = net(16)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PlanError, match="another model"):
        dagscale.Plan.from_json(json.dumps(document)).init_(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("training", "scale"),
    [
        ({"optimizer": "muon"}, None),
        ({"optimizer": "adamw", "weight_decay": 3.0}, None),
        ({"optimizer": "adamw"}, {"2": 0.02}),
    ],
)
def test_a_model_that_is_its_own_base_has_the_rate_that_was_found(training: dict[str, Any], scale: Any) -> None:
    """The base is measured as the target is: with Muon's matrices, without decay on biases, at its parameters' ratios.

    Nothing is carried over, so the interval is that of the search alone; and in a file too.
    """
    recipe = dagscale.Recipe((X, Y), loss=cross_entropy, batch_size=16, steps=8, **training)
    found = dagscale.search(net(), recipe, seeds=1, grid=[2.0**-k for k in range(3, 10)], lr_scale=scale)
    measured = dagscale.plan(net(), base=found, law="short-run", lr_scale=scale)
    assert measured.factors == {"short-run": 1.0}
    taken = dagscale.plan(net(), base=found, lr_scale=scale)
    assert (taken.law, taken.lr) == ("none", found.lr)
    assert "this very network" in taken.notes[0]
    assert set(taken.lr_errors) == {"base"}
    read = dagscale.plan(net(), base=dagscale.Base.from_json(found.to_json()), recipe=recipe, lr_scale=scale)
    assert (read.law, read.lr_interval) == ("none", taken.lr_interval)
    other = dagscale.plan(net(), base=found, law="none", lr_scale={"0": 0.5})
    assert "law" in other.lr_errors, "at other ratios the rate is another one"


def test_a_rate_that_is_given_in_place_of_the_one_that_was_found_is_told_of(base: dagscale.Base) -> None:
    """And is as sure as one that comes with a model alone."""
    text = f"base_lr 0.5 in place of {base.lr:.4g}, the rate that the search of the base has found"
    told = dagscale.plan(net(16), base=base, base_lr=0.5, law="none")
    alone = dagscale.plan(net(16), base=net(), base_lr=0.5, law="none", recipe=RECIPE, init=base.init)
    assert text in told.notes
    assert (told.lr, told.lr_interval, told.lr_errors) == (alone.lr, alone.lr_interval, alone.lr_errors)
    itself = dagscale.plan(net(), base=base, base_lr=0.5)
    assert {text, "the base is this very network: its rate is taken as it was given"} <= set(itself.notes)
    several = dagscale.plan(net(16), base=[base, base], base_lr=[base.lr, 0.5], law="none")
    assert sum("in place of" in note for note in several.notes) == 1
    same = dagscale.plan(net(16), base=base, base_lr=base.lr, law="none")
    assert same == dagscale.plan(net(16), base=base, law="none")


def test_a_base_prints_what_was_run(base: dagscale.Base) -> None:
    runs = sum(len(point.losses) for point in base.curve)
    assert f"; {len(base.curve)} rates, {runs} runs, {base.steps} steps" in str(base)
    assert ("widened" in str(base)) == bool(base.widened)
    seeds = dagscale.search(net(), RECIPE, grid=[0.05, 0.1, 0.2, 0.4], seeds=2, widen=0)
    assert "runs with up to 2 seeds" in str(seeds)
    marked = ["≈" in text for text in seeds.table().columns[1]._cells]
    assert marked == [len(point.losses) < 2 for point in seeds.curve]


def searched(data: Any, **more: Any) -> tuple[dagscale.Base, Recipe]:
    """A base as it is read from a file, since in one process the data may be the very same."""
    recipe = Recipe(data, cross_entropy, "adamw", steps=8, **{"batch_size": 16, **more})
    found = dagscale.search(of(data), recipe, grid=[0.003, 0.01, 0.03], seeds=1, widen=0, init="moments")
    read = dagscale.Base.from_json(found.to_json())
    assert read.data == found.data is not None
    return read, recipe


def of(data: Any, width: int = 8) -> nn.Module:
    """A network for data: as many inputs, and as many classes."""
    features = data[0].shape[1]
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, 2 if features == 4 else 3))


WIDER = torch.randn(128, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        ((WIDER, Y), [r"input of shape \(4,\) there, \(6,\) here; 2 classes there, 3 here"]),
        ((5 * X, Y), ["input of root mean square [01].* there, [45].* here"]),
        ((X, nn.functional.one_hot(Y, 2).float()), ["target of whole numbers there, of floating numbers here"]),
        ((1.2 * X.flip(0), Y.flip(0)), []),
    ],
)
def test_a_base_that_was_searched_on_other_data_is_told_of(data: Any, texts: list[str]) -> None:
    found, recipe = searched((X, Y))
    plan = dagscale.plan(of(data, 16), base=found, recipe=recipe.changed(data=data))
    told = [note for note in plan.notes if "other data" in note]
    assert len(told) == len(texts)
    for note, text in zip(told, texts, strict=True):
        assert re.search(text, note), note
    before = json.loads(found.to_json())
    del before["data"]  # as files were written before
    older = dagscale.Base.from_json(json.dumps(before))
    for given in ({"base": older}, {"base": of((X, Y)), "base_lr": 0.01}):
        plan = dagscale.plan(of((X, Y), 16), recipe=recipe.changed(data=(2.5 * X, Y)), **given)
        assert not any("other data" in note for note in plan.notes)


def test_data_that_come_in_another_order_or_of_other_lengths_are_no_other_data() -> None:
    """The first batch of a loader is another one under each order, and sizes of few examples differ by chance."""

    def heavy(seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return (2 * torch.randn(128, 4, generator=generator)).exp(), Y

    found, recipe = searched(heavy(0), batch_size=4)
    for seed in range(1, 4):
        plan = dagscale.plan(of(heavy(seed), 16), base=found, recipe=recipe.changed(data=heavy(seed)))
        assert not any("other data" in note for note in plan.notes)

    def padded(length: int) -> Any:
        return [(torch.randint(5, (4, length)), torch.zeros(4, dtype=torch.long)) for _ in range(4)]

    graph = dagscale.trace(nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.LazyLinear(2)), padded(9)[0][0])
    short, longer, longest = (Examples.of(Recipe(padded(n), batch_size=None), graph) for n in (9, 14, 40))
    assert not unlike(short, longer)
    assert unlike(short, longest) == ["input of shape (9,) there, (40,) here"]
