"""Retraining: rules against brute force, statistics against what was put in, and the command on digits."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from torch import nn
from typer.testing import CliRunner

import dagscale.cli.retrain  # noqa: F401  puts the command on the application
from dagscale.bench.data import Dataset
from dagscale.bench.data.augment import Augment
from dagscale.bench.nas import retrain, retrain_run, retrain_study, samples
from dagscale.bench.nas.comparison import compare, table
from dagscale.bench.nas.isomorphism import canonical
from dagscale.bench.nas.paper_code import NAME, depth_sum
from dagscale.bench.nas.recipes import PRESETS, RECIPES, differences
from dagscale.bench.nas.tables import read_table
from dagscale.bench.sweep import Run, Store
from dagscale.cli.app import app
from dagscale.errors import DagscaleError, DataError, GraphError
from dagscale.inits import INITS
from dagscale.laws import LAWS
from dagscale.laws.base import Law
from dagscale.laws.estimate import Estimate
from dagscale.models.nb201 import EDGES, NB201, Nb201
from dagscale.network import Network
from dagscale.planning.prepare import traced
from dagscale.training import recipe as training

SOME = [a for a in Nb201.enumerate() if a.kind == "convolutional"][::110]


def paths(arch: Nb201, at: int = 0) -> list[int]:
    """Convolutions on each path of the cell from ``at`` on, by brute force."""
    if at == 3:
        return [0]
    steps = [(v, op) for (u, v), op in zip(EDGES, arch.ops, strict=True) if u == at and op]
    return [n + (op in (2, 3)) for v, op in steps for n in paths(arch, v)]


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["3_33_333", "1_01_001", "0_00_300", "3_02_143", "4_44_444"])
def test_released_rate_counts_convolutions_of_one_cell(code: str) -> None:
    arch = Nb201.parse(code)
    assert depth_sum(arch) == sum((1 + n) ** 3 for n in paths(arch))


def test_released_init_divides_by_the_source_vertex() -> None:
    model = NB201(Nb201.parse("3_13_032"), channels=4, cells=1)
    fills = INITS[NAME](traced(model, torch.zeros(2, 3, 8, 8), training.Recipe(), 0))
    stds = {name: fill.std for name, fill in fills.items()}
    cell = "stages.1.0.edges"
    assert stds["stem.conv.weight"] == pytest.approx(math.sqrt(2 / 27))
    assert stds[f"{cell}.0_1.conv.weight"] == pytest.approx(math.sqrt(2 / 72))  # from the cell's input
    assert stds[f"{cell}.1_2.conv.weight"] == pytest.approx(math.sqrt(2 / 72))  # vertex 1 has one edge in
    assert stds[f"{cell}.2_3.conv.weight"] == pytest.approx(math.sqrt(2 / (2 * 8)))  # vertex 2 has two
    assert stds["reductions.0.first.conv.weight"] == pytest.approx(math.sqrt(2 / (2 * 36)))
    assert stds["reductions.0.second.conv.weight"] == pytest.approx(math.sqrt(2 / 72))
    assert stds["reductions.0.shortcut.conv.weight"] == pytest.approx(math.sqrt(2 / (2 * 4)))
    assert stds["readout.linear.weight"] == pytest.approx(2 / 16)
    assert set(fills) == {name for name, _ in model.named_parameters()}


def test_the_published_optimiser_and_schedule() -> None:
    recipe = RECIPES["benchmark"]
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    groups = [{"params": [w], "lr": lr, "weight_decay": 5e-4} for w, lr in zip(weights, (1, 3), strict=True)]
    asked = retrain_run._training(recipe, Dataset("blank", torch.zeros(4, 3, 8, 8), torch.zeros(4).long(), 2))
    made = asked.optimizer.make(groups)
    assert asked.schedule is not None
    schedule = asked.schedule(made, 10)
    for step in range(10):
        seen = [group["lr"] for group in made.param_groups]
        assert seen == pytest.approx([lr * (1 + math.cos(math.pi * step / 10)) / 2 for lr in (1, 3)])
        made.step()
        schedule.step()
    assert {(g["momentum"], g["nesterov"], g["weight_decay"]) for g in made.param_groups} == {(0.9, True, 5e-4)}


def test_two_inits_times_two_ways_to_a_rate() -> None:
    """Four recipes tell what an init does from what a law does, and differ in nothing else."""
    square = {("keep", "none"): "tuned", ("moments", "none"): "tuned-moments",
              ("keep", "short-run"): "plan-kept", ("moments", "short-run"): "plan"}  # fmt: skip
    for (init, law), name in square.items():
        assert RECIPES[name] == replace(RECIPES["tuned"], init=init, law=law)


def test_augmentation_crops_and_flips_in_train_mode_only() -> None:
    torch.manual_seed(0)
    x = torch.arange(3 * 2 * 6 * 6.0).reshape(3, 2, 6, 6) + 1
    padded = nn.functional.pad(x, (2,) * 4)
    crop = Augment(("crop",), 2)
    seen = set()
    for _ in range(40):
        for image, wide in zip(crop(x), padded, strict=True):
            places = [(d, r) for d in range(5) for r in range(5) if torch.equal(image, wide[:, d : d + 6, r : r + 6])]
            assert len(places) == 1
            seen.update(places)
    assert len(seen) == 25
    both = torch.stack([Augment(("flip",), 2)(x)[0] for _ in range(60)])
    flipped = [torch.equal(image, x[0].flip(2)) for image in both]
    assert all(f or torch.equal(image, x[0]) for f, image in zip(flipped, both, strict=True))
    assert 15 < sum(flipped) < 45
    assert crop.eval()(x) is x


def test_every_difference_from_the_published_recipe_is_named() -> None:
    assert len(differences(PRESETS["full"], 32)) == 2  # the schedule's granularity, and dead operations
    named = " ".join(differences(PRESETS["small-6"], 16))
    for text in ("epochs 6", "batch 64", "C 4", "N 1", "side of the images 16", "crop 2", "3,000 images"):
        assert text in named


# --- which architectures --------------------------------------------------------------------------


def test_draws_one_of_each_class_of_rank() -> None:
    values = np.random.default_rng(0).permutation(len(SOME)) / 2
    ranking = table(SOME, values[:, None], "cifar10", "T").select(seed="mean")
    order = sorted(ranking.archs, key=lambda a: -ranking.values[ranking.archs.index(a)])
    drawn = samples.draw(10, 3, ranking=ranking)
    classes = np.array_split(np.arange(len(order)), 10)
    assert all(order.index(arch) in rows for arch, rows in zip(drawn, classes, strict=True))
    assert all(order.index(arch) < len(order) / 4 for arch in samples.draw(5, ranking=ranking, top=25))
    assert len({canonical(arch) for arch in samples.draw(300, once=True)}) == 300
    assert all(arch.graph.has_path for arch in samples.draw(300))
    for wrong in ({"count": 0}, {"count": 500, "ranking": ranking}, {"count": 2, "top": 10}):
        with pytest.raises(DataError):
            samples.draw(**wrong)


# --- statistics -----------------------------------------------------------------------------------


def accuracies(shift: float = 0, new: float = 0, noise: float = 0.5, seed: int = 0) -> Any:
    """(architectures, 2 seeds) of one fixed truth, moved by ``shift``, and by ``new`` at random an architecture."""
    rng = np.random.default_rng(seed)
    truth = 60 + 20 * np.random.default_rng(99).random(len(SOME))
    moved = truth + shift + new * np.random.default_rng(7).standard_normal(len(SOME))
    return moved[:, None] + noise * rng.standard_normal((len(SOME), 2))


def test_a_shift_is_a_gain_and_no_new_ranking() -> None:
    columns = {"benchmark": accuracies(), "plan": accuracies(shift=2, seed=1)}
    found = compare(SOME, columns, "benchmark", "cifar10", bootstrap=30)
    (pair,) = found.pairs
    everything, tenth, hundredth = pair.gains
    assert everything.gain.low < 2 < everything.gain.high  # type: ignore[operator]
    assert everything.gain.high - everything.gain.low < 0.4  # type: ignore[operator]
    assert tenth.gain.n == round(len(SOME) / 10)
    assert hundredth.gain.low is None  # one architecture
    for k in (100, 50):
        assert pair.excess[k].low <= 0 <= pair.excess[k].high  # type: ignore[operator]
        assert pair.means[k].value > pair.between[k].value
    assert set(found.reports) == {"plan"}
    assert found.published == {}


def test_a_new_ranking_lies_below_the_floor_of_the_seeds() -> None:
    columns = {"benchmark": accuracies(), "plan": accuracies(new=5, seed=1)}
    published = table(SOME, accuracies(noise=0), "cifar10", "published").select(seed="mean")
    found = compare(SOME, columns, "benchmark", "cifar10", published, bootstrap=30)
    (pair,) = found.pairs
    assert pair.excess[100].low > 0.05  # type: ignore[operator]
    assert found.chosen_by == "published"
    assert found.published["benchmark"][100].value > 0.9 > found.published["plan"][100].value
    with pytest.raises(DataError, match="lacks 1 of the"):
        compare([*SOME, Nb201.parse("0_00_100")], {n: np.vstack([c, c[:1]]) for n, c in columns.items()}, "benchmark",
                "cifar10", published)  # fmt: skip


# --- the command ----------------------------------------------------------------------------------


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["retrain", *arguments])


TINY = ("--data", "digits", "--preset", "tiny-1", "--limit", "100", "--jobs", "1", "--bootstrap", "20")


def test_command_trains_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known = {"3_03_101": 91, "1_11_111": 80, "4_44_444": 70, "2_02_022": 85, "3_00_300": 87, "0_00_000": 10}
    Path("table.csv").write_text(
        "code,dataset,seed,test_acc\n" + "".join(f"{code},digits,mean,{value}\n" for code, value in known.items())
    )
    Path("archs.txt").write_text("\n".join(known))
    asked = (*TINY, "--benchmark", "table.csv", "--partial", "--architectures", "archs.txt", "--store", "runs.sqlite",
             "--recipes", "one-rate,released,mup", "--json")  # fmt: skip
    done = command(*asked, "--out", "out")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert [a["code"] for a in document["architectures"]] == [
        "3_03_101",
        "1_11_111",
        "4_44_444",
        "2_02_022",
        "3_00_300",
    ]
    assert document["left_out"] == [{"arch": "0_00_000", "kind": "no path", "reason": "nothing to train: no path"}]
    assert {a["kind"] for a in document["architectures"]} == {"convolutional", "skip connections only", "pooling only"}
    first = document["architectures"][0]["recipes"]
    assert set(first) == {"benchmark", "one-rate", "released", "mup"}
    assert first["benchmark"]["lr"] == 0.1
    assert first["one-rate"]["lr"] == document["bases"]["one-rate"]["lr"]
    expected = document["bases"]["released"]["lr"] / math.sqrt(depth_sum(Nb201.parse("3_03_101")))
    assert first["released"]["lr"] == pytest.approx(expected)
    assert document["bases"]["mup"]["target"] == "nb201:0_00_300?channels=2&cells=1"
    assert {decay for decay, _, _ in document["bases"]["one-rate"]["curve"]} == {5e-4}
    assert {decay for decay, _, _ in document["bases"]["mup"]["curve"]} == set(RECIPES["mup"].decays)
    assert len(document["pairs"]) == 6
    assert document["pairs"][0]["tau"]["between"]["100"]["n"] == 5
    assert set(document["published"]) == {"benchmark", "one-rate", "released", "mup"}
    page = Path("out/retrain.html").read_text()
    assert page.count("data:image/png;base64,") == 9
    assert "n too small" in page
    assert "epochs 1, published 200" in page
    own = read_table("out/released.csv").select("digits", "test_acc", "1", partial=True)
    assert own.values[own.archs.index(Nb201.parse("3_03_101"))] == pytest.approx(first["released"]["test_acc"][1])

    def never(run: Run) -> dict[str, Any]:
        raise AssertionError(f"executed again: {run}")

    monkeypatch.setattr(retrain_study, "execute", never)
    again = json.loads(command(*asked).stdout)
    assert {k: v for k, v in again.items() if k != "files"} == {k: v for k, v in document.items() if k != "files"}
    shown = command(*[a for a in asked if a != "--json"])
    assert shown.exit_code == 0, shown.output
    assert "Kendall" in shown.stdout
    with Store("runs.sqlite") as book:
        assert book.status().counts.failed == 0


def test_the_search_looks_at_no_test_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    execute, load = retrain_study.execute, retrain_run.load_named

    def watched(run: Run) -> dict[str, Any]:
        retrain_run.read.cache_clear()
        seen.append(run.options["kind"])
        return execute(run)

    def loaded(source: str, **options: Any) -> Any:
        seen.append(options["split"])
        return load(source, **options)

    monkeypatch.setattr(retrain_study, "execute", watched)
    monkeypatch.setattr(retrain_run, "load_named", loaded)
    archs = (Nb201.parse("0_00_200"),)
    found = retrain.retrain(archs, data="digits", recipes=["one-rate"], preset="tiny-1", store=tmp_path / "s", jobs=1)
    assert found.accuracies["one-rate"].shape == (1, 2)
    searched = seen[seen.index("search") : seen.index("piece")]
    assert searched.count("search") == 2  # one a seed, each with all rates
    assert "test" not in searched
    assert seen[-1] == "test"


def test_what_a_law_cannot_serve_is_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(network: Network) -> dict[str, Estimate]:
        if network.model.arch.kind != "convolutional":  # type: ignore[union-attr]
            raise GraphError("no rate for this")
        return {"one": Estimate(0.0)}

    monkeypatch.setitem(LAWS._entries, "none", Law("none", picky))
    archs = tuple(map(Nb201.parse, ("4_44_444", "0_00_200")))
    retrain_run._network.cache_clear()
    found = retrain.retrain(archs, data="digits", recipes=["one-rate"], preset="tiny-1", store=tmp_path / "s", jobs=1)
    assert [a.code for a in found.archs] == ["0_00_200"]
    (left,) = found.left_out
    assert (left.arch, left.kind, left.reason) == (
        "4_44_444",
        "pooling only",
        "no rate under one-rate: target: no rate for this",
    )
    with pytest.raises(DataError, match="no architecture can be trained under every recipe"):
        retrain.retrain(archs[:1], data="digits", recipes=["one-rate"], preset="tiny-1", store=tmp_path / "s", jobs=1)


@pytest.mark.slow
def test_the_plans_factor_of_the_base_itself_is_one(tmp_path: Path) -> None:
    size = PRESETS["tiny-1"]
    study = retrain_study.Study("digits", size, (0,), tmp_path / "s", 1, None, False)
    arch = Nb201.parse("0_00_300")
    (answer,) = study.factors([arch], {"plan": RECIPES["plan"]})["plan", arch]
    assert answer["factor"] == pytest.approx(1)
    assert answer["forwards"] > 100


def test_one_of_a_thing_has_no_plural() -> None:
    found = compare([Nb201.parse("3_03_101")], {"a": np.ones((1, 2)), "b": np.ones((1, 2))}, "a", "digits")
    assert "no ranking of 1 architecture: τ and pairs need 5 or more" in found.notes
    assert "over 1 epoch," in replace(RECIPES["benchmark"], epochs=1).trained()


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("code,dataset,seed,test_acc\n3_03_101,digits,mean,91\n1_11_111,cifar10,mean,80\n")
    archs = ("--architectures", "3_03_101,1_11_111")
    for arguments, text in (
        ((*TINY, *archs, "--recipes", "planned"), "unknown recipe 'planned'"),
        ((*TINY, *archs, "--preset", "short"), "unknown preset 'short'"),
        ((*TINY, *archs, "--recipes", "benchmark"), "needs another recipe than benchmark"),
        ((*TINY, "--architectures", "0_00_000"), "nothing to train"),
        ((*TINY, "--architectures", "3_03"), "'3_03' is neither a file nor a code (architecture code '3_03' has 2"),
        ((*TINY, "--architectures", "3_03_101,3_03_101"), "3_03_101 is given twice"),
        ((*TINY, "--top", "10"), "--top 10"),
        ((*TINY, *archs, "--benchmark", "t.csv", "--partial"), "lacks 1 of the 2 architectures"),
        ((*TINY, *archs, "--benchmark", "t.csv"), "pass --partial"),
        (("--data", "absent", *archs), "no data at 'absent'"),
    ):
        done = command(*arguments)
        assert isinstance(done.exception, DagscaleError), (arguments, done.output)
        assert text in str(done.exception)
        assert "\n" not in str(done.exception)
        assert done.stdout == ""


def test_data_without_a_test_split_are_refused(tmp_path: Path) -> None:
    images = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (4, 8, 8)) + bytes(range(256))
    (tmp_path / "mine-images-idx3-ubyte").write_bytes(images)
    (tmp_path / "mine-labels-idx1-ubyte").write_bytes(
        b"\x00\x00\x08\x01" + (4).to_bytes(4, "big") + bytes([0, 1, 0, 1])
    )
    with pytest.raises(DataError, match="has no test split"):
        retrain.retrain([Nb201.parse("3_03_101")], data=str(tmp_path / "mine-images-idx3-ubyte"), store=tmp_path / "s")
