"""The verify study: its arithmetic on made-up curves, its peers, and the command end to end."""

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dagscale.bench.sweep import Run
from dagscale.bench.verify import study as study_module
from dagscale.bench.verify.methods import Method, by_width, law_methods, narrow
from dagscale.bench.verify.peers import PEERS, in_mup
from dagscale.bench.verify.report import row
from dagscale.bench.verify.runs import KINDS, execute
from dagscale.bench.verify.study import choose, named, verify
from dagscale.bench.verify.suites import SUITES
from dagscale.bench.verify.truth import Truth
from dagscale.bench.verify.verdict import Judge, Verdict
from dagscale.cli.verify import NAMES
from dagscale.errors import DagscaleError, SweepError, TargetError, UnknownNameError
from dagscale.models import load

GRID = tuple(2.0**k for k in range(-6, 1))


def valley(best: float, *shifts: float) -> Truth:
    """Losses with their minimum at ``best``; each seed's is shifted so many octaves up, two unshifted ones if none."""
    return Truth(GRID, tuple(tuple(1 + 0.1 * abs(math.log2(lr / best) - s) for s in shifts or (0, 0)) for lr in GRID))


def judged(truths: Sequence[Truth], rates: Sequence[float]) -> Verdict:
    names = tuple(map(str, range(len(truths))))
    judge = Judge({"i": dict(zip(names, truths, strict=True))}, ("0",), names, {})
    answers = {name: [{"lr": lr, "steps": 7}] for name, lr in zip(names, rates, strict=True)}
    return judge.method(Method("m", "i", {}), answers)


# --- truth and statistics ------------------------------------------------------------------------------------------


def test_truth_reads_band_and_argmin_off_the_curve() -> None:
    truth = valley(2.0**-3)
    assert truth.argmin == 2.0**-3
    assert truth.edge == pytest.approx(2.0**-2.5)
    assert truth.middle == pytest.approx(2.0**-3)
    assert not truth.at_end
    assert valley(1.0).at_end
    assert truth.regret(truth.at(2.0**-3)) == 0
    assert truth.regret(truth.at(2.0**-1.5)) == pytest.approx(0.15)
    assert truth.at(2.0**9) == truth.losses[-1]
    assert truth.at(2.0**-9) == truth.losses[0]


def test_a_perfect_prediction_scores_perfectly_and_a_shifted_one_shows_it() -> None:
    truth = [valley(2.0**k) for k in (-5, -4, -3, -2, -1)]
    perfect = row("s", judged(truth, [t.middle for t in truth]))
    assert perfect.pearson_r == pytest.approx(1)
    assert perfect.slope == pytest.approx(1)
    assert perfect.slope_interval == (pytest.approx(1), pytest.approx(1))
    assert perfect.pearson_r_edge == pytest.approx(1)
    assert (perfect.rms_octaves, perfect.within_half_octave) == (pytest.approx(0), 1)
    assert perfect.regret_max == pytest.approx(0)
    assert perfect.regret_cv_mean == pytest.approx(0)
    assert row("s", judged(truth, [t.middle for t in truth])) is perfect  # resampled once for table, files and pictures
    shifted = row("s", judged(truth[:-1], [4 * t.middle for t in truth[:-1]]))
    assert shifted.pearson_r == pytest.approx(1)
    assert shifted.rms_octaves == pytest.approx(2)
    assert shifted.within_half_octave == 0
    assert shifted.regret_mean == pytest.approx(0.2)


def test_one_rate_for_all_has_no_correlation() -> None:
    found = row("s", judged([valley(2.0**k) for k in (-5, -3, -1)], [0.1] * 3))
    assert found.pearson_r is None
    assert found.slope is None


def test_diverged_predictions_have_no_finite_regret() -> None:
    curve = valley(2.0**-3)
    lost = Truth(GRID, (*curve.losses[:-1], (math.inf, math.inf)))
    found = row("s", judged([lost] * 3, [1.0, 2.0**-0.5, 2.0**-3]))
    assert (found.regret_max, found.regret_cv_mean, found.excess_mean, found.diverged) == (None, None, None, 2)


def test_cross_validated_regret_is_not_biased_by_the_choice() -> None:
    """Pure noise: no rate is better, yet the least of noisy losses is below any rate fixed beforehand."""
    noise = 1 + 0.1 * torch.randn(400, len(GRID), 4, generator=torch.Generator().manual_seed(0)).double()
    curves = [Truth(GRID, tuple(map(tuple, one.tolist()))) for one in noise]
    plain = torch.tensor([t.regret(t.at(GRID[3])) for t in curves]).mean()
    crossed = torch.tensor([t.regret_cv(t.at(GRID[3])) for t in curves]).mean()
    assert plain > 0.05
    assert abs(crossed) < 0.015  # standard error below 0.1 / √400 = 0.005


def test_excess_is_over_the_best_init() -> None:
    good, bad = valley(2.0**-3), Truth(GRID, tuple(tuple(2 * loss for loss in row) for row in valley(2.0**-3).losses))
    judge = Judge({"good": {"a": good}, "bad": {"a": bad}}, ("a",), ("a",), {("bad", "a"): 70})
    verdict = judge.method(Method("m", "bad", {}), {"a": [{"factor": 1.0, "steps": 7}]})
    assert verdict.rates == (pytest.approx(2.0**-3),)
    assert verdict.steps == 77
    assert verdict.regrets == (pytest.approx(0),)
    assert verdict.excesses == (pytest.approx(1),)


def test_several_bases_give_the_mean_and_are_not_reported_on() -> None:
    """The law says that rates fall by an octave from a to b and by two to c; they fall by two and two."""
    curves = {"a": valley(2.0**-1), "b": valley(2.0**-3), "c": valley(2.0**-3)}
    spent = {("i", "a"): 70, ("i", "b"): 80, ("i", "c"): 90}
    answers = {"b": [{"factor": 0.5, "steps": 3}], "c": [{"factor": 0.25, "steps": 4}]}
    alone = Judge({"i": curves}, ("a",), ("b", "c"), spent).method(Method("m", "i", {}), answers)
    both = Judge({"i": curves}, ("a", "b"), ("c",), spent).method(Method("m", "i", {}), answers)
    assert alone.rates == (pytest.approx(2.0**-2), pytest.approx(2.0**-3))
    assert both.rates == (pytest.approx(2.0**-3.5),)  # between 2⁻³ from a and 2⁻⁴ from b
    assert both.found == (pytest.approx(2.0**-3),)
    assert (alone.steps, both.steps) == (77, 157)
    finder = {"b": [{"lr": 0.5, "steps": 3}], "c": [{"lr": 0.25, "steps": 4}]}
    assert Judge({"i": curves}, ("a", "b"), ("c",), spent).method(Method("f", "i", {}), finder).steps == 4


def test_a_search_is_judged_by_the_seeds_that_it_did_not_see() -> None:
    """Seeds that disagree by two octaves: each half chooses the other's loss two octaves off."""
    curves = {str(k): valley(2.0**k, 0, 2) for k in (-5, -4, -3)}
    verdict, middle = Judge(
        {"i": curves, "same": curves}, ("-5",), tuple(curves), dict.fromkeys((("i", a) for a in curves), 7)
    ).searches()
    found = row("s", verdict)
    assert (verdict.method, verdict.steps) == ("grid / i", 21)
    assert found.pearson_r == pytest.approx(1)
    assert found.rms_octaves == pytest.approx(2)
    assert found.regret_cv_mean == pytest.approx(0)  # the best by one half is as far off as the middle of its band
    assert found.regret_mean == pytest.approx(1.2 / 1.1 - 1)
    assert (middle.method, middle.rates) == ("middle / i", None)
    assert middle.regrets == pytest.approx((0, 0, 0))  # two valleys' sum is flat between them


# --- suites and methods --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", list(SUITES))
def test_suites_have_distinct_members_that_can_be_built(suite: str) -> None:
    family = SUITES[suite]
    members = (family.base, *family.members(6, 0))
    assert len(set(members)) == 7
    for member in members:
        load(member)


def test_suites_say_what_they_are() -> None:
    assert SUITES["lm"].summary == "lm:2?width=32, lm:4?width=32, …: recipe language"
    assert SUITES["resnet-depth"].summary.endswith("resnet:14?width=8&stride=2&norm=none, …: a constant rate")


def test_options_stand_in_place_of_the_suites_own() -> None:
    family = SUITES["cnn-dag"].adapted("width=8&downsample=2")
    assert family.base == "cnn:2?width=8&downsample=2"
    assert [m.partition("?")[2] for m in family.members(3, 0)] == [
        f"width=8&kernel={k}&downsample=2" for k in (3, 5, 7)
    ]
    assert SUITES["cnn-dag"].adapted("") is SUITES["cnn-dag"]
    with pytest.raises(TargetError, match="unknown option 'widht'"):
        verify("mlp-dag", options="widht=8", data="digits", store="unused.sqlite", architectures=3)


def test_the_help_names_every_suite() -> None:
    real, _, plain = NAMES.replace(" (each also -gelu)", "").partition(". At a constant rate: ")
    named = {word.strip(" .") for word in (real.partition(": ")[2] + ", " + plain).split(",")}
    assert named | {f"{name}-gelu" for name in ("mlp-depth", "mlp-dag", "cnn-dag")} == set(SUITES)
    assert {word.strip() for word in real.partition(": ")[2].split(",")} == {n for n in SUITES if SUITES[n].recipe}


def test_methods_are_those_that_cover_the_optimiser() -> None:
    by_sgd, by_adamw = ({m.name for m in choose((), o)[0]} for o in ("sgd", "adamw"))
    assert by_sgd >= {"paths / in-degree", "curvature / moments", "released / released", "one-rate", "mup", "prodigy"}
    assert by_sgd - by_adamw == {m.name for m in law_methods() if m.optimizers}
    assert [m.name for m in choose(("curvature/keep", "curvature / keep"), "sgd")[0]] == ["curvature / keep"]
    with pytest.raises(UnknownNameError, match="did you mean 'curvature'"):
        named("curvatur/moments")
    assert "short-run / moments / mup" in {m.name for m in choose((), "sgd", SUITES["width"].extra)[0]}
    with pytest.raises(UnknownNameError, match=r"write LAW/INIT, LAW/INIT/mup, LAW/INIT/mup.completep or one of"):
        named("none/moments/mu")
    with pytest.raises(UnknownNameError, match="did you mean 'lr-finder'"):
        named("lr-finde")
    with pytest.raises(DagscaleError, match="covariance / keep left out: it is for momentum, nesterov, sgd, not adam"):
        choose(("covariance/keep",), "adam")


def test_a_method_whose_package_is_missing_is_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    chosen, notes = choose(("none/moments", "prodigy"), "sgd")
    assert [m.name for m in chosen] == ["none / moments"]
    assert "pip install --no-deps prodigyopt" in notes[0]


# --- peers ---------------------------------------------------------------------------------------------------------


def run_of(peer: str, architecture: str = "mlp:2_02?width=64", **options: object) -> Run:
    method = PEERS[peer]
    common = {"data": "digits", "limit": 256, "batch_size": 32, "seed": 3}
    return Run(architecture, 0.1, method.init, options={**method.options, **options}, **common)  # type: ignore[arg-type]


def train_at(lr: float) -> float:
    """The final loss of the network of `run_of` at a rate."""
    return float(execute(replace(run_of("one-rate"), lr=lr, options={"kind": "train"}))["loss"])


def test_mup_at_the_bases_width_is_a_plain_run() -> None:
    assert narrow("vit:4?width=64&heads=4", "vit:2?width=32&heads=2") == "vit:4?width=32&heads=2"
    assert narrow("mlp:2_02?width=64&act=gelu", "mlp:2?width=16") == "mlp:2_02?width=16&act=gelu"
    assert in_mup("mlp:2_02?width=16", "mlp:2?width=16") == {"kind": "train"}
    assert by_width("mlp:2_02?width=16", "mlp:2?width=16") == {"kind": "train"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_mup_trains_other_than_pytorch_where_the_width_grows(optimizer: str) -> None:
    pytest.importorskip("mup")
    architecture = "mlp:2_02?width=64"

    def loss(options: dict[str, object]) -> float:
        run = Run(architecture, 0.02, "keep", optimizer, "digits", 256, 32, options=options)
        return float(execute(run)["loss"])

    options = dict(in_mup(architecture, "mlp:2?width=16"))
    assert options == {"kind": "mup", "shapes": "mlp:2_02?width=16"}
    plain = loss({"kind": "train"})
    assert loss(options) != pytest.approx(plain, rel=1e-3)
    # With base shapes of its own size, every factor is 1.
    assert loss({"kind": "mup", "shapes": architecture}) == pytest.approx(plain, rel=1e-5)


def test_lr_finder_suggests_a_rate_on_its_path_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch_lr_finder")
    run = run_of("lr-finder")
    found = KINDS["lr-finder"](run)
    assert capfd.readouterr() == ("", "")
    assert found == KINDS["lr-finder"](run)
    path = 1e-7 * 1e8 ** (torch.arange(100) / 99)  # a hundred rates, geometrically from 1e-7 to 10
    assert min(abs(found["lr"] / path - 1)) < 0.03
    assert found["steps"] > int((path < found["lr"]).sum())
    assert math.isinf(train_at(1e3 * found["lr"]))  # steepest descent lies below the rates that destroy
    assert train_at(found["lr"]) < 3


def test_prodigy_trains_without_a_rate() -> None:
    pytest.importorskip("prodigyopt")
    found = KINDS["prodigy"](run_of("prodigy"))
    assert found["steps"] == 8
    assert found == KINDS["prodigy"](replace(run_of("prodigy"), lr=7.0))
    longer = KINDS["prodigy"](replace(run_of("prodigy"), epochs=8))
    assert longer["loss"] < found["loss"] - 0.3 < train_at(1e-12) - 0.3  # it moves without a rate, slowly at first


# --- the study -----------------------------------------------------------------------------------------------------


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown suite"):
        verify("mlp-dags", store=tmp_path / "s")
    with pytest.raises(UnknownNameError, match="unknown optimizer"):
        verify("mlp-dag", optimizer="adan", store=tmp_path / "s")
    with pytest.raises(DagscaleError, match="give the lower exponent first"):
        verify("mlp-dag", grid=(-2, -8), store=tmp_path / "s")
    with pytest.raises(DagscaleError, match="at least 3 architectures"):
        verify("mlp-dag", architectures=2, store=tmp_path / "s")
    with pytest.raises(DagscaleError, match="3 architectures beside further bases"):
        verify("mlp-dag", architectures=3, bases=2, store=tmp_path / "s")
    with pytest.raises(DagscaleError, match="bases must be at least 1"):
        verify("mlp-dag", bases=0, store=tmp_path / "s")
    with pytest.raises(DagscaleError, match="diverged; give a grid of lower rates"):
        verify("mlp-dag", methods=["one-rate"], architectures=3, limit=64, grid=(20, 22), jobs=1, store=tmp_path / "s")


@pytest.mark.parametrize(
    ("suite", "optimizer", "methods", "grid"),
    [
        ("vit-depth", "adamw", ["none/moments", "function-change/moments", "prodigy"], (-9, -8)),
        ("resnet-depth-bn", "sgd", ["paths/in-degree", "one-rate"], (-4, -3)),
        ("width", "adamw", ["mup", "one-rate", "lr-finder", "none/moments", "none/moments/mup"], (-8, -6)),
    ],
)
def test_suites_run_in_small(
    suite: str, optimizer: str, methods: list[str], grid: tuple[float, float], tmp_path: Path
) -> None:
    study = verify(
        suite, methods=methods, optimizer=optimizer, architectures=3, limit=64, grid=grid, jobs=1, store=tmp_path / "s"
    )
    found = {v.method: row(suite, v) for v in study.verdicts}
    chosen = [named(name) for name in methods]
    searched = {f"{kind} / {m.truth}" for m in chosen for kind in ("grid", "middle")}
    assert {m.name for m in chosen} <= set(found) <= {m.name for m in chosen} | searched
    rates = study.truths[chosen[0].truth][SUITES[suite].base].rates
    whole = len(rates) * 2 * 2  # rates × seeds × steps a run: 64 examples in batches of 32
    for m in chosen:
        verdict, base = next(v for v in study.verdicts if v.method == m.name), study.truths[m.truth]
        if m.options.get("law") == "none":
            assert verdict.rates == pytest.approx((base[SUITES[suite].base].middle,) * 3)
            assert verdict.steps == whole
        if verdict.rates is not None:  # losses between those of the grid, so none is below its best
            wanted = [base[a].regret(base[a].at(lr)) for a, lr in zip(study.architectures, verdict.rates, strict=True)]
            assert verdict.regrets == pytest.approx(wanted)
            assert min(verdict.regrets) >= -1e-9
    assert all(found[name].steps == 3 * whole for name in found if name.startswith(("grid", "middle")))
    if suite == "width":
        ours, theirs = (next(v for v in study.verdicts if v.method == name) for name in ("one-rate", "mup"))
        assert ours.rates == theirs.rates  # the base has its own width, so both parametrisations agree on it
        assert ours.found != theirs.found
        scaled = study.truths["moments / mup"], study.truths["moments"]
        assert [a for a, t in scaled[0].items() if t == scaled[1][a]] == [
            a for a in scaled[0] if a.endswith("width=32")
        ]
    if "prodigy" in methods:
        assert found["prodigy"].pearson_r is None
        assert found["prodigy"].rms_octaves is None
        assert found["prodigy"].steps == 3 * 2  # the mean of the seeds for each network


@pytest.mark.parametrize(
    ("suite", "optimizer", "digest"),
    [
        ("mlp-dag", "sgd", "426955bcbe8795a5"),
        ("width", "adamw", "92c4845dc529b134"),
        ("vit-depth", "adamw", "28c76c9f402df279"),
        ("resnet-depth-bn", "momentum", "4514c6d66e990d88"),
    ],
)
def test_runs_keep_their_keys(suite: str, optimizer: str, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs are, but for the code that they were made by, so that stores outlive changes that concern other
    suites."""
    asked: list[Run] = []

    def note(runs: list[Run], *_: object, **__: object) -> None:
        asked.extend(runs)
        raise KeyboardInterrupt

    monkeypatch.setattr(study_module, "sweep", note)
    methods = ["none/moments", "short-run/moments", "none/moments/mup", "one-rate", "mup", "lr-finder", "prodigy"]
    for package in ("mup", "torch_lr_finder", "prodigyopt"):
        pytest.importorskip(package)
    with pytest.raises(KeyboardInterrupt):
        verify(suite, optimizer=optimizer, methods=methods, architectures=3, limit=64, store="out/unused.sqlite")
    keys = sorted(replace(run, version="v").key for run in asked)
    assert hashlib.sha256("".join(keys).encode()).hexdigest()[:16] == digest


@pytest.mark.slow
def test_quick_runs_every_method_and_resumes_to_the_same_answer(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dagscale", "verify", "mlp-depth", "--quick", "--json", "--out", str(tmp_path)]
    runs = [
        subprocess.run(
            [*command, "--store", str(tmp_path / "runs.sqlite")], capture_output=True, text=True, timeout=600
        )
        for _ in range(2)
    ]
    assert runs[0].returncode == 0, runs[0].stderr
    assert runs[0].stdout == runs[1].stdout
    rows = json.loads(runs[0].stdout)
    methods = [row["method"] for row in rows]
    assert set(methods) >= {m.name for m in choose((), "sgd")[0]} | {"grid / moments", "middle / keep"}
    assert len(set(methods)) == len(methods)
    wanted = {"suite", "method", "pearson_r", "slope", "rms_octaves", "regret_mean", "regret_max", "steps"}
    assert all(wanted <= set(row) for row in rows)
    assert json.loads((tmp_path / "results.json").read_text()) == rows
    points = json.loads((tmp_path / "points.json").read_text())
    assert len(points) == 3 * len(rows)
    assert all((tmp_path / name).read_bytes()[1:4] == b"PNG" for name in ("scatter.png", "regret.png"))


SMALL: dict[str, object] = {
    "methods": ["none/in-degree"], "architectures": 3, "limit": 32, "grid": (-4, -2), "jobs": 1, "spacing": 1.0,
}  # fmt: skip


def test_results_are_those_of_the_data_and_not_of_their_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: str, seed: int) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        rng = np.random.default_rng(seed)
        path = tmp_path / folder / "train.npz"
        np.savez(path, x=rng.integers(0, 256, (64, 8, 8), dtype=np.uint8), y=rng.integers(0, 3, 64))
        return str(path)

    store = tmp_path / "s"
    executed: list[str] = []
    own = study_module.execute
    monkeypatch.setattr(study_module, "execute", lambda run: executed.append(run.key) or own(run))
    first = verify("mlp-depth", data=write("a", 0), store=store, **SMALL)  # type: ignore[arg-type]
    count = len(executed)
    moved = verify("mlp-depth", data=write("b", 0), store=store, **SMALL)  # type: ignore[arg-type]
    assert len(executed) == count, "the same data elsewhere were trained on again"
    assert moved.truths == first.truths
    other = verify("mlp-depth", data=write("a", 1), store=store, **SMALL)  # type: ignore[arg-type]
    assert len(executed) == 2 * count
    assert other.truths != first.truths


def test_data_that_go_away_spoil_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    path = tmp_path / "train.npz"
    np.savez(path, x=rng.integers(0, 256, (64, 8, 8), dtype=np.uint8), y=rng.integers(0, 3, 64))
    own = study_module.execute

    def gone(run: Run) -> dict[str, object]:
        if path.exists():
            path.rename(tmp_path / "away.npz")
        return own(run)

    with monkeypatch.context() as patch:
        patch.setattr(study_module, "execute", gone)
        with pytest.raises(SweepError, match=r"no data at .*none is recorded"):
            verify("mlp-depth", data=str(path), store=tmp_path / "s", **SMALL)  # type: ignore[arg-type]
    (tmp_path / "away.npz").rename(path)
    assert verify("mlp-depth", data=str(path), store=tmp_path / "s", **SMALL).verdicts  # type: ignore[arg-type]


def test_what_failed_is_executed_again_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Run) -> dict[str, object]:
        raise RuntimeError("no memory just now")

    with monkeypatch.context() as patch:
        patch.setattr(study_module, "execute", fail)
        with pytest.raises(DagscaleError, match="--retry-failed executes them again"):
            verify("mlp-depth", store=tmp_path / "s", **SMALL)  # type: ignore[arg-type]
    with pytest.raises(DagscaleError, match="runs failed"):
        verify("mlp-depth", store=tmp_path / "s", **SMALL)  # type: ignore[arg-type]
    assert verify("mlp-depth", store=tmp_path / "s", retry_failed=True, **SMALL).verdicts  # type: ignore[arg-type]
