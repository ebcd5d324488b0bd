"""Replay: what finished runs say of laws and rules, against runs whose best rates are known by construction."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dagscale
from dagscale.bench.replay.networks import Decoder, build_decoder, build_residual
from dagscale.bench.replay.optima import Optimum, find, optima
from dagscale.bench.replay.pairs import across_horizons, across_networks, surfaces
from dagscale.bench.replay.rules import RULES, Context, fitted_exponents
from dagscale.bench.replay.runs import LAYOUTS, Architecture, Metric, Run, Setting, read_runs
from dagscale.bench.replay.sheets import markdown, page, save_all, sheets
from dagscale.bench.replay.study import replay
from dagscale.bench.replay.transfer import (
    any_base,
    at_best_batch,
    carry,
    exponent,
    from_smallest,
    ratio_interval,
    scores,
)
from dagscale.errors import DataError
from dagscale.graph.paths import effective_depth

LOSS = Metric("loss", "nats", 0.5)
RATES = [2.0 ** (k / 2) for k in range(-24, 5)]
CURVATURE = 0.01
"""Nats that one octave off costs in the runs made here."""


def run(setting: Setting, rate: float, best: float, least: float = 2.0, noise: float = 0.0) -> Run:
    return Run(setting, rate, {"loss": least + CURVATURE * math.log2(rate / best) ** 2 + noise})


def runs(settings: Iterable[Setting], best: Callable[[Setting], float], least: float = 2.0) -> list[Run]:
    return [run(s, rate, best(s), least) for s in settings for rate in RATES]


def net(depth: int, width: int = 1, network: str = "") -> Architecture:
    return Architecture(f"{depth}x{width}", depth, width, float(depth * width**2), network)


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def own(path: Path, header: str = "lr,loss,depth", depths: Sequence[int] = (2, 4, 8)) -> Path:
    """A user's file: best rates fall like 1/√depth."""
    rows = [(lr, run(Setting(net(d)), lr, 0.1 / math.sqrt(d)).costs["loss"], d) for d in depths for lr in RATES]
    return write(path, header.split(","), rows)


# --- best rates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("best", [0.03, 0.04, 0.0411])
def test_the_lowest_point_of_a_parabola_is_found(best: float) -> None:
    found = find(Setting(net(2)), [(r, run(Setting(net(2)), r, best).costs["loss"]) for r in RATES], LOSS.cliff)
    assert found.kind == "inner"
    assert found.rate == pytest.approx(best)
    assert found.cost == pytest.approx(2.0)
    assert found.curve.at(2 * best) - found.cost == pytest.approx(CURVATURE)


def test_a_curve_that_does_not_depend_on_the_rate_is_no_answer() -> None:
    found = find(Setting(net(2)), [(rate, 2.0) for rate in RATES], LOSS.cliff)
    assert found.kind != "inner"


@pytest.mark.parametrize("best", [2.0**-14, 2.0**5])
def test_a_best_rate_at_the_end_of_the_grid_is_flagged(best: float) -> None:
    found = find(Setting(net(2)), [(r, run(Setting(net(2)), r, best).costs["loss"]) for r in RATES], LOSS.cliff)
    assert found.kind == "edge"


def test_a_best_rate_beside_divergence_is_at_the_edge_and_rates_beyond_diverge() -> None:
    points = [(r, run(Setting(net(2)), r, 4.0).costs["loss"] if r <= 0.25 else math.inf) for r in RATES]
    found = find(Setting(net(2)), points, LOSS.cliff)
    assert (found.kind, found.rate) == ("edge", 0.25)
    assert math.isinf(found.curve.at(0.3))
    assert math.isfinite(found.curve.at(0.2))


def test_a_rate_at_which_one_of_two_runs_diverged_counts_as_diverged() -> None:
    settings, rates = Setting(net(2)), RATES[10:20]
    fine = [run(settings, rate, 0.05) for rate in rates]
    gone = [replace(one, costs={"loss": math.inf}) for one in fine]
    assert optima([*fine, *gone], LOSS) == []
    (found,) = optima([*fine, gone[-1]], LOSS)
    assert math.isinf(found.curve.at(rates[-1] * 0.999))
    best = min(fine, key=lambda one: one.costs["loss"])
    (beside,) = optima([*fine, replace(best, costs={"loss": math.inf})], LOSS)
    assert best.rate not in {2.0**x for x, cost in beside.curve.levels if math.isfinite(cost)}


def test_a_cliff_in_the_window_does_not_bend_the_parabola() -> None:
    points = [(r, run(Setting(net(2)), r, 0.05).costs["loss"] if r < 0.1 else 7.0) for r in RATES]
    assert find(Setting(net(2)), points, LOSS.cliff).rate == pytest.approx(0.05)


def test_rates_that_nearly_agree_do_not_make_a_parabola() -> None:
    """Three rates of which two are a tenth of an octave apart: what bends the curve there is noise."""
    points = [(1.0, 2.0), (1.07, 2.1), (0.25, 2.5), (0.5, 4.0), (3.0, 4.0)]
    assert find(Setting(net(2)), points, LOSS.cliff).kind == "unclear"


# --- rules and scores -----------------------------------------------------------------------------------------------


def found_in(settings: Iterable[Setting], best: Callable[[Setting], float]) -> list[Optimum]:
    return optima(runs(settings, best), LOSS)


def root_of_depth(setting: Setting) -> float:
    return 0.1 / math.sqrt(setting.architecture.depth or 1)


FAMILIES = [
    Setting(net(depth, width), (("data", data),)) for data in "abcdef" for depth in (2, 4, 8) for width in (1, 2)
]


def test_the_right_rule_loses_nothing_and_one_rate_what_the_parabola_says() -> None:
    carried, silent = carry(found_in(FAMILIES, root_of_depth), "network", LAYOUTS["own"], pairs=from_smallest)
    by = {score.rule: score for score in scores(carried)}
    assert by["depth^-1/2"].lost == pytest.approx(0, abs=1e-9)
    assert by["depth^-1/2"].octaves == pytest.approx(0, abs=1e-6)
    # From 2x1: to 2x2, 4x1, 4x2, 8x1, 8x2, whose best rates lie 0, ½, ½, 1, 1 octaves lower.
    assert by["one rate"].pairs == 6 * 5
    assert by["one rate"].lost == pytest.approx(CURVATURE * (0 + 2 * 0.25 + 2 * 1) / 5)
    assert by["one rate"].worst == pytest.approx(CURVATURE)
    assert by["one rate"].bias == pytest.approx(0.6)
    assert by["fitted elsewhere"].lost == pytest.approx(0, abs=1e-9)
    assert "30 of 30 pairs" in silent["covariance"]
    assert "column 'network'" in silent["covariance"]


def test_a_yardstick_is_not_fitted_to_the_recipe_that_it_is_scored_on() -> None:
    """Half of the data sets follow depth^-1/2 and the other half do not: what is fitted to the others is wrong."""

    def best(setting: Setting) -> float:
        return root_of_depth(setting) if dict(setting.recipe)["data"] == "a" else 0.1

    found = found_in([s for s in FAMILIES if dict(s.recipe)["data"] in "ab"], best)
    carried, _ = carry(found, "network", LAYOUTS["own"], pairs=from_smallest)
    by = {score.rule: score for score in scores(carried)}
    assert by["fitted elsewhere"].lost == pytest.approx(CURVATURE * (2 * 0.25 + 2 * 1) / 5)


def test_a_rate_outside_the_grid_is_counted_and_one_that_diverges_is_no_number() -> None:
    base, target = Setting(net(1), decay=1e-4), Setting(net(1), decay=1e-8)
    points = [run(base, r, 0.1) for r in RATES] + [
        replace(run(target, r, 0.1), costs={"loss": math.inf} if r > 1 else run(target, r, 0.1).costs) for r in RATES
    ]
    carried, _ = carry(optima(points, LOSS), "decay", LAYOUTS["own"], pairs=lambda m: [(m[1], m[0])])
    by = {score.rule: score for score in scores(carried)}
    assert by["product"].outside == 1
    assert by["product"].diverged == 1
    assert math.isinf(by["product"].lost)
    assert by["one rate"].diverged == 0


@pytest.mark.parametrize("variable", ["depth", "width", "decay", "batch", "examples"])
def test_exponents_are_found_within_groups_whatever_sets_the_groups_apart(variable: str) -> None:
    powers = {"depth": -0.5, "width": 0.25, "decay": -0.8, "batch": 0.5, "examples": -0.3}

    def best(setting: Setting) -> float:
        sizes = {**vars(setting.architecture)} if hasattr(setting.architecture, "__dict__") else {}
        sizes |= {name: getattr(setting, name) for name in ("decay", "batch", "examples")}
        sizes |= {name: getattr(setting.architecture, name) for name in ("depth", "width")}
        return 0.003 * float(np.prod([sizes[name] ** power for name, power in powers.items()]))

    settings = [
        Setting(net(d, w), (), decay, batch, examples)
        for d, w, decay, batch, examples in itertools.product((1, 3), (1, 2), (0.3, 1.0), (1.0, 4.0), (1.0, 2.5))
    ]
    found = exponent(found_in(settings, best), variable)
    assert found is not None
    assert found.value == pytest.approx(powers[variable])
    assert found.median == pytest.approx(powers[variable])
    assert found.groups == 16


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """A ratio of sums over 25 groups, 300 times: BCa holds it in 95 % of cases, a little less with so few groups.

    The standard error of the share is 1.3 points; tolerance: three of them, and 2 points for the few groups.
    """
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        weights = rng.uniform(0.5, 2, 25)
        interval = ratio_interval(weights * (1 + rng.normal(0, 0.5, 25)), weights)
        assert interval is not None
        held += interval[0] <= 1 <= interval[1]
    assert 0.95 - 0.02 - 0.039 <= held / 300 <= 0.95 + 0.039


def test_few_groups_have_no_interval() -> None:
    assert ratio_interval(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4)) is None
    assert ratio_interval(np.ones(9), np.ones(9)) is None


def test_the_best_batch_size_of_each_horizon_is_taken_where_both_may_change() -> None:
    settings = [Setting(net(1), (), None, 2.0**b, float(d)) for d in (1, 4) for b in range(-1, 6)]

    def worth(setting: Setting) -> float:
        best = 4.0 if setting.examples == 1 else 8.0
        return 2 + 0.1 * abs(math.log2((setting.batch or 0) / best))

    made = [run(s, r, 0.01 * (s.batch or 1) ** 0.5, worth(s)) for s in settings for r in RATES]
    found = optima(made, LOSS)
    assert {(o.setting.examples, o.setting.batch) for o in at_best_batch(found)} == {(1.0, 4.0), (4.0, 8.0)}
    carried, _ = carry(found, "horizon, batch", LAYOUTS["own"], pairs=from_smallest)
    by = {score.rule: score for score in scores(carried)}
    assert by["sqrt"].lost == pytest.approx(0, abs=1e-9)
    assert by["linear"].bias == pytest.approx(0.5)


def test_underdetermined_exponents_are_refused() -> None:
    with pytest.raises(dagscale.DagscaleError, match="does not say the decay"):
        fitted_exponents(tuple(found_in(FAMILIES, root_of_depth)), ("decay",))
    one_width = [s for s in FAMILIES if s.architecture.width == 1]
    with pytest.raises(dagscale.DagscaleError, match=r"too few other runs to fit exponents of depth, width$"):
        fitted_exponents(tuple(found_in(one_width, root_of_depth)), ("depth", "width"))


# --- rate and decay together ----------------------------------------------------------------------------------------

DECAYS = (2.5e-4, 5e-4, 1e-3, 2e-3)


def pair_cost(rate: float, decay: float, product: float = 1e-4, decay_best: float = 1e-3) -> float:
    return 2 + CURVATURE * (math.log2(rate * decay / product) ** 2 + 0.5 * math.log2(decay / decay_best) ** 2)


def plane(settings: Iterable[Setting], cost: Callable[[Setting, float, float], float]) -> list[Optimum]:
    made = [
        Run(replace(s, decay=decay), rate, {"loss": cost(s, rate, decay)})
        for s in settings
        for decay in DECAYS
        for rate in (2.0 ** (k / 2) for k in range(-24, 8))
    ]
    return optima(made, LOSS)


def test_a_valley_along_the_product_is_followed_by_the_product() -> None:
    found = plane([Setting(net(1)), Setting(net(2))], lambda s, rate, decay: pair_cost(rate, decay))
    by = {score.rule: score for score in scores(across_networks(surfaces(found)))}
    assert by["the base's pair"].lost == pytest.approx(0, abs=1e-9)
    assert by["base's product, decay 0.0005"].lost == pytest.approx(by["rate tuned, decay 0.0005"].lost, abs=1e-9)
    assert by["rate tuned, decay 0.0005"].lost == pytest.approx(0.5 * CURVATURE)
    assert by["base's rate, decay 0.0005"].lost == pytest.approx(1.5 * CURVATURE)
    carried, _ = carry(found, "decay", LAYOUTS["own"], pairs=any_base)
    assert {s.rule: s for s in scores(carried)}["product"].lost == pytest.approx(0, abs=1e-9)


def test_between_two_decays_a_surface_follows_the_valley() -> None:
    (surface,) = surfaces(plane([Setting(net(1))], lambda s, rate, decay: pair_cost(rate, decay)))
    between = math.sqrt(5e-4 * 1e-3)
    ends = [pair_cost(1e-4 / decay, decay) for decay in (5e-4, 1e-3)]
    assert surface.at(1e-4 / between, between) == pytest.approx(sum(ends) / 2)
    assert surface.at(0.1, 1e-3) == pytest.approx(pair_cost(0.1, 1e-3))
    assert math.isnan(surface.at(0.1, 1e-5))
    assert math.isnan(surface.at(0.1, 1e-2))


def test_a_longer_run_whose_product_falls_with_its_length_is_followed_by_the_rules_that_say_so() -> None:
    settings = [Setting(net(1), (("data", data),), examples=d) for d in (1.0, 2.5) for data in "ab"]
    found = plane(settings, lambda s, rate, decay: pair_cost(rate, decay, 1e-4 / (s.examples or 1)))
    by = {score.rule: score for score in scores(across_horizons(surfaces(found)))}
    assert by["rate / m_D"].lost == pytest.approx(0, abs=1e-9)
    assert by["pair as it is"].lost == pytest.approx(CURVATURE * math.log2(2.5) ** 2)
    assert len({score.pairs for score in by.values()}) == 1


# --- the networks of the known files --------------------------------------------------------------------------------


def test_residual_networks_are_those_of_the_paper() -> None:
    """0.27 M parameters at depth 20, 0.85 M at 56 [He et al. 2016, Table 6], and a little for the projections."""
    for network, millions, depth in (("20x1", 0.27, 13), ("56x1", 0.85, 31)):
        graph = dagscale.trace(*build_residual(network))
        assert sum(p.numel for p in graph.parameters) / 1e6 == pytest.approx(millions, abs=0.008)
        assert effective_depth(graph) == depth
    # Widened stages beside a stem that keeps its 16 channels: the first block has a projection too.
    wide = dagscale.trace(*build_residual("20x4"))
    assert wide.parameter["stem.0.weight"].shape == (16, 3, 3, 3)
    assert wide.parameter["stages.0.0.skip.0.weight"].shape == (64, 16, 1, 1)
    assert effective_depth(wide) == 14


@pytest.mark.parametrize(
    ("network", "parameters"),
    [("7x960x15x9368", 214_663_680), ("10x1280x10x9472", 429_260_800), ("16x2048x16x8192", 1_073_741_824)],
)
def test_decoders_have_the_parameters_that_the_file_says(network: str, parameters: int) -> None:
    model, _ = build_decoder(network)
    assert isinstance(model, Decoder)
    blocks = [p for name, p in model.named_parameters() if name.startswith("blocks") and "norm" not in name]
    assert sum(p.numel() for p in blocks) == parameters


def test_a_decoder_runs_and_is_causal() -> None:
    import torch

    torch.manual_seed(0)
    model = Decoder(2, 16, 2, 24)
    tokens = torch.randint(0, 100, (1, 8))
    changed = tokens.clone()
    changed[0, 5:] += 1
    before, after = model(tokens), model(changed)
    assert torch.equal(before[0, :5], after[0, :5])
    assert not torch.equal(before[0, 5:], after[0, 5:])


def test_graph_rules_are_what_plan_says() -> None:
    """There and back is 1; effective depth to the power -3/2 of its own definition; μP's hidden rate is 1 under SGD."""
    context = Context(LAYOUTS["resnet-cifar-grid"])
    small, deep, wide = (Setting(Architecture(n, network=n)) for n in ("20x1", "56x1", "20x4"))
    for name in ("covariance", "paths", "effective-depth"):
        factor = RULES[name].factor
        assert factor(small, deep, context) * factor(deep, small, context) == pytest.approx(1)
        assert factor(small, deep, context) < 1
    assert RULES["effective-depth"].factor(small, deep, context) == pytest.approx((31 / 13) ** -1.5)
    assert RULES["μP (CompleteP)"].factor(small, deep, context) == pytest.approx(1)
    assert RULES["μP (CompleteP)"].factor(small, wide, context) == pytest.approx(1, abs=0.1)
    made = dagscale.plan(*build_residual("56x1"), base=build_residual("20x1"), base_lr=1.0, law="covariance",
                         optimizer="momentum")  # fmt: skip
    assert RULES["covariance"].factor(small, deep, context) == pytest.approx(made.lr)


def test_maximal_update_of_a_decoder_under_adam_is_nearly_one_over_width() -> None:
    context = Context(LAYOUTS["step-law"])
    narrow, wide = (Setting(Architecture(n, network=n)) for n in ("2x64x2x256", "2x128x2x512"))
    assert RULES["μP (CompleteP)"].factor(narrow, wide, context) == pytest.approx(0.5, rel=0.5)


# --- files ----------------------------------------------------------------------------------------------------------


def grid(path: Path, drop: str = "") -> Path:
    """A file in the layout of the residual grid: best lr/(1 - momentum) ∝ decay^-1 depth^-1/2, one run diverged."""
    header = ["data", "depth", "width", "ne", "lr", "mo", "wd", "done", "loss", "acc", "nll"]
    rows = []
    for data, depth, ne, lr, mo, wd in itertools.product(
        ("CIFAR10_x32", "CIFAR100_x32"), (20, 56), (200, 500), (0.3, 0.1, 0.03, 0.01), (0.7, 0.9, 0.97, 0.99),
        (3e-4, 1e-3),
    ):  # fmt: skip
        best = 0.8 * (1e-3 / wd) * (9 / ((depth - 2) // 2)) ** 0.5
        error = 0.07 + 0.006 * math.log2(lr / (1 - mo) / best) ** 2 + (0.1 if mo == 0.99 else 0)
        gone = lr == 0.3 and mo == 0.97 and wd == 1e-3
        loss, acc = ("nan", 0.0928) if gone else (1e-3, max(1 - error, 0.01))
        rows.append((data, depth, 1, ne, lr, mo, wd, not gone, loss, acc, 0.3))
    keep = [i for i, column in enumerate(header) if column != drop]
    return write(path, [header[i] for i in keep], [[row[i] for i in keep] for row in rows])


def test_the_residual_layout_is_known_by_its_header_and_scored(tmp_path: Path) -> None:
    done = replay(grid(tmp_path / "runs.csv"))
    assert done.runs.name == "resnet-cifar-grid"
    assert len(done.runs.runs) == 2 * 2 * 2 * 4 * 3 * 2  # without momentum 0.99
    assert any("8 of 192 runs diverged" in note for note in done.runs.notes)
    main = done.judged[0]
    assert main.metric.name == "validation error"
    found = {one.part: one.found.value for one in main.exponents}
    assert found["decay"] == pytest.approx(-1, abs=0.03)
    assert found["depth"] == pytest.approx(-0.5, abs=0.03)
    assert found["examples"] == pytest.approx(0, abs=0.03)
    by = {score.rule: score for axis in main.axes if axis.axis == "network" for score in axis.smallest}
    assert by["depth^-1/2"].lost < 0.02 < by["one rate"].lost < by["covariance"].lost < by["paths"].lost
    assert by["one rate"].lost == pytest.approx(0.6 * math.log2(math.sqrt(3)) ** 2, rel=0.05)


def test_all_of_it_is_plain_data_and_can_be_shown(tmp_path: Path) -> None:
    done = replay(grid(tmp_path / "runs.csv"))
    document = json.loads(json.dumps(done.to_dict(), allow_nan=False))
    assert document["format"] == 1
    assert {axis["axis"] for axis in document["metrics"][0]["axes"]} == {"network", "horizon", "decay"}
    assert len(document["metrics"][0]["best_rates"]) == 2 * 2 * 2 * 2
    text = page(done.to_dict())
    assert text.count("### ") == len(list(sheets(document)))
    assert {path.name for path in save_all(document, tmp_path)} == {"replay.json", "tables.md", "lost.png", "rates.png"}
    for name in ("lost.png", "rates.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "tables.md").read_text() == text


def test_a_users_own_file_needs_few_columns(tmp_path: Path) -> None:
    done = replay(own(tmp_path / "mine.csv"))
    assert done.runs.name == "own"
    by = {score.rule: score for score in done.judged[0].axes[0].smallest}
    assert by["depth^-1/2"].lost == pytest.approx(0, abs=1e-9)
    assert by["one rate"].lost > 0
    text = page(done.to_dict())
    silent = "covariance; effective-depth; paths; μP (CompleteP); μP, depth^-1/2 for 6 of 6 pairs"
    assert f"Nothing is said by {silent}: the file does not say how to build the networks" in text
    assert text.count("how to build the networks") == 1
    assert "step-law for 6 of 6 pairs: the Step Law is fitted to language models under AdamW" in text


def test_the_file_that_the_page_shows_is_scored_by_error_and_by_loss(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```\n(lr,.*?)```", (EVIDENCE / "replay.md").read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "runs.csv"
    file.write_text(shown, encoding="utf-8")
    judged = replay(file).judged
    assert [one.metric.name for one in judged] == ["error", "loss"]
    assert all("depth^-1/2" in {score.rule for score in one.axes[0].smallest} for one in judged)


def test_a_file_of_two_networks_has_one_pair_and_says_what_does_not_differ(tmp_path: Path) -> None:
    rows = [(f"resnet:{d}", lr, run(Setting(net(d)), lr, 0.05).costs["loss"]) for d in (8, 14) for lr in RATES]
    text = page(replay(write(tmp_path / "mine.csv", ["network", "lr", "loss"], rows)).to_dict())
    assert "all others: 1 pair, 1 group." in text
    assert "no number that differs, of depth, width, decay, batch, examples" in text


def test_columns_of_a_users_own_file_may_have_capitals(tmp_path: Path) -> None:
    done = replay(own(tmp_path / "mine.csv", "LR, Loss,Depth"))
    assert done.to_dict() == replay(own(tmp_path / "mine.csv")).to_dict()


@pytest.mark.parametrize("yes", ["yes", "Y", "TRUE", "1", " ", ""])
def test_finished_is_a_question_of_yes_or_no(tmp_path: Path, yes: str) -> None:
    rows = [(2.0**k, abs(k) + 1, yes) for k in range(-3, 4)] + [(2.0**9, 1, no) for no in ("no", "N", "False", "0")]
    read = read_runs(write(tmp_path / "mine.csv", ["lr", "loss", "finished"], rows))
    assert len(read.runs) == 7
    assert "4 of 11 runs did not come to their end: left out" in read.notes


def test_networks_named_as_targets_are_built_and_laws_read_them(tmp_path: Path) -> None:
    rows = [
        (f"resnet:{d}", lr, run(Setting(net(d)), lr, 0.05).costs["loss"], "momentum") for d in (8, 14) for lr in RATES
    ]
    done = replay(write(tmp_path / "mine.csv", ["network", "lr", "loss", "optimizer"], rows))
    by = {score.rule: score for score in done.judged[0].axes[0].smallest}
    made = dagscale.plan(*LAYOUTS["own"].build("resnet:14"), base=LAYOUTS["own"].build("resnet:8"), base_lr=1.0,  # type: ignore[misc]
                         law="covariance", optimizer="momentum")  # fmt: skip
    assert by["covariance"].bias == pytest.approx(math.log2(made.lr))
    assert by["one rate"].lost == pytest.approx(0, abs=1e-9)


def test_accuracy_momentum_and_steps_are_read(tmp_path: Path) -> None:
    rows = [(lr, 0.9, 0.9 - 0.01 * math.log2(10 * lr / 0.1) ** 2, d, 32, 100, 1) for d in (1, 2) for lr in RATES[8:20]]
    header = ["lr", "momentum", "accuracy", "depth", "batch", "steps", "seed"]
    read = read_runs(write(tmp_path / "mine.csv", header, rows))
    first = read.runs[0]
    assert first.rate == pytest.approx(10 * RATES[8], rel=1e-5)
    assert first.setting.examples == 3200
    assert first.costs["error"] == pytest.approx(100 * (1 - rows[0][2]))
    (best,) = {round(o.rate, 3) for o in optima(read.runs, read.layout.metrics[0])}
    assert best == 0.1


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (["rate", "loss"], [(1, 2)], "lacks the column lr: it has rate, loss; a file of your own needs lr, and"),
        (["lr;loss"], [("1;2",)], "is it separated by ';'"),
        (["lr;loss"], [("1,5;2",)], "is it separated by ';'"),
        (["lr", "depth"], [(1, 2)], "no column 'loss' or 'accuracy' among lr, depth"),
        (["lr", "loss", "loss"], [(1, 2, 3)], "'loss' stands twice"),
        (["lr", "loss"], [], "has no runs"),
        (["lr", "loss"], [(1, 2, 3)], "line 2: not as many values"),
        (["lr", "loss"], [(1,)], "line 2: not as many values"),
        (["lr", "loss"], [("fast", 2)], "line 2: column 'lr' holds 'fast', which is no number"),
        (["lr", "loss"], [(-1, 2)], "column 'lr' holds -1: it must be a positive number"),
        (["lr", "loss"], [(1, "low")], "column 'loss' holds 'low'"),
        (["lr", "accuracy"], [(1, 93.1)], "write it as a share of 1"),
        (["lr", "loss", "momentum"], [(1, 2, 1)], "column 'momentum' holds 1"),
        (["lr", "loss", "momentum"], [(1, 2, "heavy")], "line 2: column 'momentum' holds 'heavy', which is no number"),
        (["lr", "loss", "decay"], [(1, 2, -1)], "line 2: column 'decay' holds -1: it must be a positive number or 0"),
        (["lr", "loss", "finished"], [(1, 2, "yes"), (1, 2, "done")], "line 3: column 'finished' holds 'done': write"),
        (["lr", "loss", "finished"], [(1, 2, "yes"), (2, 2, "no")], r"three \(1 of 2 runs did not come to their end"),
        (
            ["lr", "loss", "finished"],
            [*((2.0**k, 1 + 0.1 * k * k, "yes") for k in (-2, -1, 0, 1, 2)), (8, 1, "no")],
            r"the file has 1 setting with a best rate .*\(1 of 6 runs did not come to their end: left out\)",
        ),
        (["lr", "loss"], [(1, 2)], "one rate only"),
        (["lr", "loss", "depth"], [(1, 2, 1), (1, 2, 2), (1, 3, 4)], "one rate only"),
        (["lr", "loss"], [(1, 2), (2, 3)], "two rates only"),
        (["lr", "loss", "finished"], [(1, 2, "no"), (2, 3, "no")], "no run that came to its end"),
        (["lr", "loss"], [(1, 2), (2, 1), (4, 2)], "nothing to carry a rate between"),
        (["lr", "loss", "depth"], [(r, "nan", d) for r in (1, 2, 4) for d in (1, 2)], "nothing to carry a rate"),
        (["lr", "loss"], [(1, 2), (2, 1), (4, 2), (1, 4)], "mixed recipes: two runs of the network at rate 1"),
        (
            ["lr", "loss", "warmup"],
            [(2.0**k, 2 + k % 3, w) for k in range(4) for w in (0, 100)],
            r"mixed recipes: column 'warmup' \(0, 100\)",
        ),
    ],
)  # fmt: skip
def test_bad_files_get_one_line(
    tmp_path: Path, header: list[str], rows: list[tuple[object, ...]], message: str
) -> None:
    path = write(tmp_path / "runs.csv", header, rows)
    with pytest.raises(DataError, match=message) as error:
        replay(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00binary\x80", b'lr,loss\n"1,2\n'])
def test_what_is_no_table_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    with pytest.raises(DataError):
        replay(path)
    with pytest.raises(DataError, match="no file"):
        replay(tmp_path / "none.csv")


@pytest.mark.parametrize("drop", ["wd", "mo", "acc"])
def test_a_known_file_that_lacks_a_column_is_not_taken_for_another(tmp_path: Path, drop: str) -> None:
    with pytest.raises(DataError, match=f"lacks the column {drop} of layout 'resnet-cifar-grid'"):
        replay(grid(tmp_path / "runs.csv", drop=drop))


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    path = own(tmp_path / "runs.csv", "lr,loss,depth")
    rows = list(csv.reader(path.read_text().splitlines()))
    more = [[*rows[0], "finished", "seconds"], *([*row, "yes", str(i)] for i, row in enumerate(rows[1:]))]
    more += [["0.5", "1.0", "2", "no", "-1"], ["0.1", "nan", "16", "yes", "-2"], ["0.2", "nan", "16", "yes", "-3"]]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(more)
    done = replay(path)
    told = " / ".join(done.runs.notes)
    assert "1 of 90 runs did not come to their end" in told
    assert "columns that are not read: seconds" in told
    assert "2 of 89 runs diverged" in told
    assert "1 skipped (fewer than three rates, or always diverged)" in page(done.to_dict())


# --- the command ----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dagscale", "verify", *arguments], capture_output=True, text=True)


def test_the_command_prints_tables_and_writes_files(tmp_path: Path) -> None:
    path = own(tmp_path / "runs.csv")
    done = command("--runs", str(path), "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["layout"] == "own"
    assert len(list((tmp_path / "out").iterdir())) == 4
    assert done.stderr.count("wrote ") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a SUITE to train, or a file of finished runs with --runs"),
        (("mlp-dag", "--runs", "x.csv"), "SUITE is about runs to train"),
        (("--runs", "x.csv", "--batch-size", "3"), "--batch-size is about runs to train"),
        (("--runs", "x.csv"), "no file 'x.csv'"),
    ],
)
def test_the_command_refuses_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


# --- the page -------------------------------------------------------------------------------------------------------

EVIDENCE = Path(__file__).parent.parent / "docs" / "evidence"
RESULTS = EVIDENCE / "results"


def test_every_table_of_the_page_is_made_from_the_kept_results() -> None:
    page_ = (EVIDENCE / "replay.md").read_text(encoding="utf-8")
    made = {}
    for name in ("resnet-cifar", "step-law"):
        for sheet in sheets(json.loads((RESULTS / f"replay-{name}.json").read_text(encoding="utf-8"))):
            made[name, sheet.title] = markdown(sheet)
    for key, text in made.items():
        assert text in page_ or key == ("step-law", "By base"), key
    shown = [block for block in page_.split("\n\n") if block.startswith("| ") and not block.startswith("| column ")]
    assert sorted(shown) == sorted(text for text in made.values() if text in page_)


def test_figures_in_the_pages_words_are_those_of_its_tables() -> None:
    """What the summary says, against the numbers behind it."""
    nets, texts = (
        json.loads((RESULTS / f"replay-{name}.json").read_text(encoding="utf-8"))["metrics"][0]
        for name in ("resnet-cifar", "step-law")
    )

    def lost(judged: dict[str, Any], axis: str, rule: str) -> float:
        (scored,) = [one for one in judged["axes"] if one["axis"] == axis]
        (score,) = [one for one in scored["smallest"] if one["rule"] == rule]
        return float(score["lost"])

    def pair(rule: str) -> float:
        (score,) = [one for one in nets["network_pairs"] if one["rule"] == rule]
        return float(score["lost"])

    words = " ".join((EVIDENCE / "replay.md").read_text(encoding="utf-8").split())
    for said, value, form in (
        ("It loses {} points of accuracy", lost(nets, "network", "one rate"), ".2f"),
        ("`effective-depth` {},", lost(nets, "network", "effective-depth"), ".1f"),
        ("`covariance` {},", lost(nets, "network", "covariance"), ".2f"),
        ("(the paper's Σ L³) {} points", lost(nets, "network", "paths"), ".0f"),
        ("an octave off costs {} points", nets["octave"], ".1f"),
        ("while the decay changes loses {} points", lost(nets, "decay", "one rate"), ".0f"),
        ("keeping rate × decay {}.", lost(nets, "decay", "product"), ".1f"),
        ("loses {} points on the others", pair("the base's pair"), ".2f"),
        ("leaving the decay at 1e-4 loses {}.", pair("rate tuned, decay 0.0001"), ".1f"),
        ("as the formula that was: {} against", lost(texts, "network", "μP, depth^-1/2"), ".4f"),
        ("against {} nats", lost(texts, "network", "step-law"), ".4f"),
        ("where an octave off costs {}", texts["octave"], ".3f"),
        ("and one rate {}.", lost(texts, "network", "one rate"), ".3f"),
    ):
        assert said.format(format(value, form)) in words
