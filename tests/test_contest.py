"""Suites under recipes that people use: arithmetic on made-up trainings, recipes, rivals, and the study in small."""

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dagscale
from dagscale.bench.data import Dataset
from dagscale.bench.sweep import Run
from dagscale.bench.verify import contest as contest_module
from dagscale.bench.verify import curves
from dagscale.bench.verify.compute import Contest, Entry, Trial
from dagscale.bench.verify.contest import contest
from dagscale.bench.verify.methods import folded
from dagscale.bench.verify.recipes import RECIPES, examples
from dagscale.bench.verify.rivals import calibrate
from dagscale.bench.verify.runs import built, dataset, execute, planned, recipe_of
from dagscale.bench.verify.study import named, verify
from dagscale.bench.verify.suites import SUITES
from dagscale.cli.app import app
from dagscale.errors import DagscaleError, DataError, TargetError, UnknownNameError
from dagscale.models import targets

REAL = [name for name in SUITES if SUITES[name].recipe]
PLAN = SUITES["lm"].plan


def tried(*losses: float, steps: int = 10, valid: float = 1.0) -> tuple[Trial, ...]:
    """Trainings that ended with these losses, and ``valid`` above them when validated."""
    return tuple(Trial(0.1 * 2**i, loss, loss + valid, 0.5, steps) for i, loss in enumerate(losses))


def made(**entries: Entry) -> Contest:
    named = {name.replace("_", " "): entry for name, entry in entries.items()}
    return Contest(
        "s", "b", "r", {"batch_size": 2}, "d", 10,
        tuple(Entry(name, e.base, e.measured, e.trials) for name, e in named.items()), "plan",
    )  # fmt: skip


def entry(trials: dict[str, tuple[tuple[Trial, ...], ...]], base: int = 0, measured: float = 0.0) -> Entry:
    return Entry("", base, measured, trials)


PLANNED = entry({"x": (tried(2.2),), "y": (tried(1.1),)}, base=45, measured=5)
GRID = entry({"x": (tried(4.0, 2.0, 3.0),), "y": (tried(1.0, 8.0, math.inf),)})
RANDOM = entry({"x": (tried(3.0, 4.0, 2.5, 1.0, 1.0, 2.0),), "y": (tried(math.inf, 2.0, 1.5, 3.0, 2.0, 1.2),)})


# --- arithmetic ----------------------------------------------------------------------------------------------------


def test_steps_count_until_there_is_a_trained_network() -> None:
    found = made(plan=PLANNED, grid_keep=GRID, random=RANDOM)
    plan = found.entry("plan")
    assert plan.spent() == 45 + 5 + 10
    assert plan.spent(2) == 22.5 + 5 + 10
    assert found.budgets() == {"shared": 3, "alone": 6}
    assert found.entry("random").spent(count=3) == 30
    assert found.entry("grid keep").spent() == 30


def test_losses_are_held_against_the_lowest_of_the_grids_and_the_best_training_so_far() -> None:
    found = made(plan=PLANNED, grid_keep=GRID, random=RANDOM)
    plan = found.score(found.entry("plan"))
    assert (plan.loss, plan.loss_worst) == (pytest.approx(0.1), pytest.approx(0.1))
    assert plan.valid == pytest.approx((3.2 / 3 + 2.1 / 2) / 2 - 1)
    random = found.entry("random")
    losses = [found.score(random, count).loss for count in (1, 2, 3, 4, 6)]
    assert losses == [math.inf, *(pytest.approx(v) for v in (0.75, 0.375, 0.0, -0.15))]
    assert found.score(random, 3).loss_worst == pytest.approx(0.5)
    two = made(plan=PLANNED, grid_a=GRID, grid_b=entry({"x": (tried(1.0),), "y": (tried(1.0),)}))
    assert two.score(two.entry("plan")).loss_worst == pytest.approx(1.2)


def test_a_rate_that_another_seed_chose_is_no_lucky_one() -> None:
    grid = entry({"x": (tried(2.0, 1.0), tried(1.0, 3.0))})
    plan = entry({"x": (tried(2.2), tried(2.4))})
    found = made(plan=plan, grid_keep=grid)
    assert [found.chosen_by_others("x", k) for k in (0, 1)] == [2.0, 3.0]
    score = found.score(found.entry("plan"))
    assert score.cross_validated == pytest.approx((0.1 - 0.2) / 2)
    assert score.loss == pytest.approx((1.2 + 1.4) / 2)
    two = made(plan=plan, grid_a=grid, grid_b=entry({"x": (tried(0.5, 9.0), tried(0.7, 9.0))}))
    assert [two.chosen_by_others("x", k) for k in (0, 1)] == [0.5, 0.7]
    lone = made(plan=PLANNED, grid_keep=GRID)
    assert lone.score(lone.entry("plan")).cross_validated is None


def test_a_method_that_diverged_somewhere_has_no_mean() -> None:
    lost = entry({"x": ((Trial(0.1, math.inf, math.inf, None, 3),),), "y": (tried(1.0),)})
    found = made(plan=PLANNED, grid_keep=GRID, lost=lost)
    score = found.score(found.entry("lost"))
    assert (score.loss, score.valid, score.accuracy) == (math.inf, math.inf, None)
    shown = next(row for row in curves.rows(found) if row.method == "lost")
    assert (shown.loss, shown.accuracy) == (None, None)
    assert "| lost | 1 | diverged |" in curves.markdown(found).replace("\u00a0", " ")


def test_a_contest_comes_back_from_json() -> None:
    found = made(plan=PLANNED, grid_keep=GRID, random=RANDOM)
    again = Contest.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again == found
    assert curves.markdown(again) == curves.markdown(found)


# --- recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", [name for name in REAL if "completep" in SUITES[name].plan])
def test_a_suite_grows_in_depth_and_in_width(suite: str) -> None:
    members = SUITES[suite].members(12, 0)
    width = {int(m.partition("width=")[2].partition("&")[0]) for m in members}
    depth = {int(m.partition(":")[2].partition("?")[0]) for m in members}
    assert (len(width), len(depth), len(set(members))) == (4, 5, 12)


@pytest.mark.parametrize("suite", REAL)
def test_a_suite_has_what_its_study_needs(suite: str) -> None:
    assert RECIPES[SUITES[suite].recipe].optimizer.name in SUITES[suite].grids
    assert named(SUITES[suite].plan).carried


@pytest.mark.parametrize("suite", ["mlp", "vit"])
def test_a_suites_plan_is_what_a_plan_chooses_by_itself(suite: str) -> None:
    """What the study calls the plan is what a user gets who asks for nothing."""
    family = SUITES[suite]
    run = run_of(suite, {"kind": "train"})
    data, recipe = dataset(run), recipe_of(run)
    small, large = (targets.load(name, data=data)[0] for name in (family.base, family.members(1, 0)[0]))
    found = dagscale.plan(large, base=small, base_lr=0.1, recipe=recipe)
    law, init, *scaling = family.plan.split("/")
    assert (found.law, found.init) == (law, init)
    assert (found.width, found.depth) == (tuple(scaling[0].split("+")) if scaling else ("none", "none"))


def run_of(suite: str, kind: dict[str, Any], *, architecture: str = "", lr: float = 0.01, **more: Any) -> Run:
    """A run of a suite on data that come with the package, four steps long."""
    family = SUITES[suite]
    practice = RECIPES[family.recipe]
    said = {"init": "keep", "limit": 128, "batch_size": 16, "epochs": None, "steps": 4, "seed": 0, **more}
    return Run(
        architecture or family.base, lr, optimizer=practice.optimizer.name, data=practice.data,
        options={"recipe": family.recipe, **kind}, **said,
    )  # fmt: skip


def test_the_recipes_say_what_people_do() -> None:
    language, residual, vit = (
        recipe_of(run_of(suite, {"kind": "train"})).describe() for suite in ("lm", "resnet", "vit")
    )
    assert language["optimizer"] == {"name": "adamw", "settings": {"betas": [0.9, 0.95]}}
    assert (language["weight_decay"], language["clip"], language["no_decay"]) == (0.1, 1.0, ["norm", "bias"])
    assert language["schedule"] == vit["schedule"] == {"shape": "cosine", "warmup": 0.05, "final": 0.0}
    assert residual["optimizer"] == {"name": "nesterov", "settings": {"momentum": 0.9, "nesterov": True}}
    assert (residual["weight_decay"], residual["no_decay"], residual["clip"]) == (5e-4, [], None)
    assert residual["schedule"] == {"shape": "cosine", "warmup": 0.0, "final": 0.0}
    assert (vit["optimizer"]["name"], vit["weight_decay"], vit["clip"]) == ("adamw", 0.05, 1.0)


@pytest.mark.parametrize(("suite", "decaying"), [("lm", "matrices"), ("resnet", "all")])
def test_decay_is_on_what_the_recipe_says(suite: str, decaying: str) -> None:
    run = run_of(suite, {"kind": "train"})
    model = built(run)
    for group in planned(run).param_groups(model, lr=1.0):
        for parameter in group["params"]:
            wanted = decaying == "all" or parameter.ndim > 1
            assert bool(group["weight_decay"]) == wanted


def test_images_are_cropped_and_coloured_ones_flipped() -> None:
    """Every image is one of the windows of its padded original, mirrored or not; both happen, in an order that a seed
    fixes."""
    x = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8) + 1
    coloured = Dataset("c", x, torch.tensor([0, 1]), 2)
    grey = Dataset("g", x[:, :1], torch.tensor([0, 1]), 2)
    practice = RECIPES["residual"]
    for data in (coloured, grey):
        recipe = practice.recipe(data, 1, 2)
        padded = nn.functional.pad(data.x, (1, 1, 1, 1))
        windows = {
            (k, flip, i, j): part.flip(-1) if flip else part
            for k, i, j in product(range(2), range(3), range(3))
            for part in [padded[k, :, i : i + 8, j : j + 8]]
            for flip in (False, True)
        }
        seen = set()
        for _, batch in zip(range(40), recipe.source.batches(0), strict=False):
            for image, label in zip(batch.inputs, batch.target.tolist(), strict=True):
                seen |= {key for key, part in windows.items() if key[0] == label and torch.equal(part, image)}
        assert len({key[2:] for key in seen}) == 9
        assert {key[1] for key in seen} == ({False, True} if data is coloured else {False})
        first, again = (next(recipe.source.batches(3)).inputs for _ in range(2))
        assert torch.equal(first, again)


def test_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    digits = examples("digits")
    assert (len(digits.train), len(digits.held)) == (1437, 360)
    assert len(examples("digits", 100).train) == 100
    (tmp_path / "a.txt").write_text("".join(chr(33 + i % 90) + str(i) for i in range(4000)))
    text = examples(f"text:{tmp_path / 'a.txt'}?context=20")
    trained, held = ({tuple(row) for row in part.x.tolist()} for part in (text.train, text.held))
    assert len(held) == len(text.held) == (len(trained) + len(held)) // 10
    assert not trained & held
    cut = examples(f"text:{tmp_path / 'a.txt'}?context=20", 10)
    assert torch.equal(cut.held.x, text.held.x)
    assert cut.digest != text.digest
    (tmp_path / "b.txt").write_text("x" * 70)
    with pytest.raises(DataError, match="too few to hold a tenth out"):
        examples(f"text:{tmp_path / 'b.txt'}?context=20")


def test_a_run_is_validated_on_what_is_held_out() -> None:
    """Loss and accuracy by hand, of the same network trained the same way."""
    run = run_of("vit", {"kind": "train"}, lr=0.01)
    found = execute(run)
    assert found == execute(run)
    model = built(run)
    from dagscale.training.engine import train

    train(model, recipe_of(run), planned(run).param_groups(model, lr=run.lr), seed=run.seed)
    held = examples("digits", 128).held
    model.eval()
    with torch.no_grad():
        output = model(held.x)
    assert found["valid"] == pytest.approx(nn.functional.cross_entropy(output, held.y).item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((output.argmax(1) == held.y).float().mean().item())
    lost = execute(run_of("vit", {"kind": "train"}, lr=1e30))
    assert (lost["loss"], lost["valid"], lost["accuracy"]) == (math.inf, math.inf, None)


# --- methods and rivals --------------------------------------------------------------------------------------------


def test_the_folded_plan_scales_layers_by_width_and_by_depth() -> None:
    method = named(PLAN)
    assert (method.init, method.truth, method.carried) == ("moments", "moments / mup+completep", True)
    assert method.training("lm:2?width=32", "lm:2?width=32") == {"kind": "train"}
    kind = dict(folded("lm:4?width=64", "lm:2?width=32"))
    assert kind == {"kind": "train", "scaled_from": "lm:2?width=32", "depth": "completep"}
    run = run_of("lm", kind, architecture="lm:4?width=64", init="moments")
    groups = planned(run).param_groups(built(run), lr=1.0)
    assert min(group["lr"] for group in groups) == pytest.approx(1 / 4)  # an end of a branch: 1/m_N · 1/m_L
    assert max(group["lr"] for group in groups) == 1
    assert execute(run_of("lm", {**named(PLAN).options, "base": "lm:2?width=32"}, architecture="lm:4?width=64",
                          init="moments")) == {"factor": 1.0, "steps": 0}  # fmt: skip


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_searches_on_the_target_train_it_as_often_as_they_may(sampler: str) -> None:
    pytest.importorskip("optuna")
    run = run_of("mixer", {"kind": "direct", "sampler": sampler, "trials": 5, "low": 2.0**-9, "high": 2.0**-5})
    found = execute(run)
    rates = [trial["lr"] for trial in found["trials"]]
    assert len(set(rates)) == 5
    assert all(2.0**-9 <= rate <= 2.0**-5 for rate in rates)
    assert found["steps"] == 5 * 4
    first = execute(run_of("mixer", {"kind": "train"}, lr=rates[0]))
    assert found["trials"][0] == {"lr": rates[0], **first}
    assert found == execute(run)


def test_a_rival_may_start_from_another_init() -> None:
    method = named("tpe / moments")
    assert (method.name, method.init, method.options) == ("tpe / moments", "moments", named("tpe").options)
    with pytest.raises(UnknownNameError, match="unknown init"):
        named("tpe/moment")
    with pytest.raises(UnknownNameError, match="unknown law 'tpe'"):
        named("tpe/moments/mup")
    assert curves.searches(Entry("tpe / moments", 0, 0.0, {}))
    assert not curves.searches(Entry("grid / keep", 0, 0.0, {}))


def test_a_base_may_choose_of_several_inits() -> None:
    method = named("dagscale / moments,keep")
    assert (method.name, method.init, method.searched, method.carried) == (
        "dagscale / moments,keep", "moments,keep", True, False,
    )  # fmt: skip
    with pytest.raises(UnknownNameError, match="unknown init 'kept'"):
        named("dagscale / moments,kept")
    with pytest.raises(UnknownNameError, match="unknown init 'moments,keep'"):
        named("tpe / moments,keep")
    one, other, both = (
        execute(run_of("mixer", {"kind": "base", "seeds": 1}, init=init))
        for init in ("moments", "keep", "moments,keep")
    )
    assert both["steps"] == one["steps"] + other["steps"]
    assert both["init"] in ("moments", "keep")
    assert both["lr"] == {"moments": one, "keep": other}[both["init"]]["lr"]
    assert execute(run_of("mixer", {"kind": "base", "seeds": 1}, init="default")) == one


def test_dagscale_by_itself_is_what_a_user_gets_from_two_calls() -> None:
    target, base = "mixer:2?width=48", "mixer:2?width=32"
    run = run_of("mixer", {"kind": "plan", "base": base, "lr": 0.02}, architecture=target, init="moments")
    found, data = execute(run), dataset(run)
    (model, inputs), small = targets.load(target, data=data), targets.load(base, data=data)
    plan = dagscale.plan(model, inputs, recipe=recipe_of(run), base=small, base_lr=0.02)
    assert plan.law == "short-run", "its mixing of tokens has a size that stays"
    trained = execute(run_of("mixer", {"kind": "train"}, architecture=target, init="moments", lr=plan.lr))
    assert found == {**trained, "steps": 4 + round(plan.forwards / 3)}


def test_schedule_free_learns_and_renews_batch_norms() -> None:
    pytest.importorskip("schedulefree")
    run = run_of("resnet", {"kind": "schedule-free"}, limit=64, steps=8)
    found = execute(run)
    start = execute(run_of("resnet", {"kind": "train"}, lr=1e-12, limit=64, steps=8))
    assert found["loss"] < start["loss"]
    assert found["steps"] == 8 + round(50 / 3)
    model = built(run)
    mean = model.stem.norm.running_mean.clone()
    assert calibrate(model, recipe_of(run), run) == 50
    assert not torch.equal(mean, model.stem.norm.running_mean)
    plain = run_of("vit", {"kind": "schedule-free"})
    assert calibrate(built(plain), recipe_of(plain), plain) == 0


# --- the study -----------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "architectures": 2, "steps": 4, "batch_size": 16, "limit": 64, "spacing": 4.0, "grid": (-11, -3), "jobs": 1,
    "methods": [PLAN, "dagscale/keep,moments", "one-rate", "lr-finder", "prodigy", "random-search"],
}  # fmt: skip


def test_a_contest_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    executed: list[str] = []
    own = contest_module.execute
    monkeypatch.setattr(contest_module, "execute", lambda run: executed.append(run.key) or own(run))
    found = contest("mixer", store=tmp_path / "s", **SMALL)
    assert len(executed) == len(set(executed))
    assert found.targets == ("mixer:4?width=32", "mixer:2?width=48")
    plan, direct = found.entry("none / moments / mup+completep"), found.entry("random-search")
    assert plan.base % 1 == 0
    assert plan.base > 4 * 4  # a search is several trainings
    assert (plan.measured, plan.count) == (0, 1)
    assert direct.count == found.budgets()["alone"] == (plan.base + 4) // 4
    assert found.budgets()["shared"] == (plan.base // 2 + 4) // 4
    assert direct.spent() <= plan.spent()
    rates = [
        {row[0].lr for rows in found.entry(name).trials.values() for row in rows}
        for name in ("none / moments / mup+completep", "one-rate")
    ]
    assert [len(own) for own in rates] == [1, 1]  # the base's rate, on every target
    for truth in ("keep", "moments / mup+completep"):
        grid = found.entry(f"grid / {truth}")
        assert [trial.lr for trial in grid.trials[found.targets[0]][0]] == [2.0**-11, 2.0**-7, 2.0**-3]
        assert found.score(grid).loss >= 0
    chosen = found.entry("dagscale / keep,moments")
    assert (
        chosen.base
        == found.searched["keep,moments"]["steps"]
        == sum(found.searched[init]["steps"] for init in ("keep", "moments"))
    )
    assert chosen.spent() > chosen.base + 4  # one of its targets is wider, where it measures
    assert found.entry("prodigy").trials[found.targets[0]][0][0].lr is None
    assert found.entry("lr-finder").measured > 4
    shown = {(row.method, row.trainings) for row in curves.rows(found)}
    assert {("random-search", found.budgets()["shared"]), ("random-search", direct.count)} <= shown
    assert [path.name for path in curves.save_all(found, tmp_path)] == ["contest.json", "curves.png"]
    assert Contest.from_dict(json.loads((tmp_path / "contest.json").read_text())) == found

    count = len(executed)
    assert contest("mixer", store=tmp_path / "s", **SMALL) == found
    assert len(executed) == count, "finished runs were executed again"


def test_a_run_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Run) -> dict[str, object]:
        raise RuntimeError("no memory just now")

    monkeypatch.setattr(contest_module, "execute", fail)
    with pytest.raises(DagscaleError, match=r"first mixer:2.width=32 .kind base.*--retry-failed executes them again"):
        contest("mixer", store=tmp_path / "s", **SMALL)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DagscaleError, match="suite mlp-dag has no recipe"):
        contest("mlp-dag", store=tmp_path / "s")
    with pytest.raises(DagscaleError, match="suite lm trains under a recipe of its own"):
        verify("lm", optimizer="adamw", store=tmp_path / "s")
    with pytest.raises(DagscaleError, match="tpe is held against plans with equal steps"):
        verify("mlp-dag", methods=["tpe"], store=tmp_path / "s")
    with pytest.raises(DagscaleError, match=r"no method carries a rate over.* add one, as none/moments"):
        contest("mixer", methods=["prodigy"], limit=64, store=tmp_path / "s")
    for name in ("steps", "batch_size"):
        with pytest.raises(DagscaleError, match=f"{name} must be at least 1, got 0"):
            contest("mixer", limit=64, store=tmp_path / "s", **{name: 0})
    with pytest.raises(TargetError, match="takes token ids"):
        contest("lm", data="digits", store=tmp_path / "s")
    with pytest.raises(TargetError, match="the data are token ids"):
        contest("vit", data="text", limit=64, store=tmp_path / "s")
    with pytest.raises(TargetError, match="heads=2 does not divide width=1"):
        contest("vit", options="width=1", store=tmp_path / "s")
    with pytest.raises(DataError, match="at least 2 examples"):
        contest("lm", limit=1, store=tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lm", "--optimizer", "sgd"], "suite lm trains under the recipe language"),
        (["resnet", "--epochs", "2"], "suite resnet trains under the recipe residual"),
        (["mlp-dag", "--steps", "9"], "suite mlp-dag trains for whole epochs"),
    ],
)
def test_options_that_do_not_serve_a_suite_are_refused(arguments: list[str], message: str) -> None:
    from typer.testing import CliRunner

    import dagscale.cli.verify  # noqa: F401  puts the command on the application

    result = CliRunner().invoke(app, ["verify", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", "").split())


def test_what_is_said_beside_quick_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    import dagscale.cli.verify as command

    asked: dict[str, Any] = {}
    monkeypatch.setattr(command, "parts", lambda recipe: (lambda suite, **said: asked.update(said), None))
    CliRunner().invoke(app, ["verify", "resnet", "--quick", "--architectures", "5"])
    assert (asked["architectures"], asked["steps"]) == (5, 10)


def test_the_command_prints_json_of_every_method(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    import dagscale.cli.verify  # noqa: F401

    pytest.importorskip("optuna")
    result = CliRunner().invoke(
        app, ["verify", "mixer", "--json", "--jobs", "1", "--store", str(tmp_path / "s"), "--out", str(tmp_path),
              "--method", PLAN, "--method", "random-search", "--architectures", "1", "--steps", "3", "--limit", "64",
              "--grid", "-9", "-5", "--spacing", "4"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert (shown["suite"], shown["recipe"], shown["steps"]) == ("mixer", "vit", 3)
    names = {row["name"] for row in shown["rows"]}
    assert names == {"folded plan", "random search", "grid, folded start", "grid, author's init"}
    assert (tmp_path / "curves.png").read_bytes()[1:4] == b"PNG"
