"""The second moment at every weight layer, and at every sum, of a freshly initialised network, over the zoo.

    python benchmarks/moments.py run [--limit N] [--only REGEX] [--again] [--seconds S]   # resumable: out/moments.jsonl
    python benchmarks/moments.py report                                           # the tables of docs/evidence/inits.md

Models of at most 30 million parameters: the smallest of each timm family, torchvision's classifiers, small
transformers of every type, and the package's own spaces; in the mode in which the zoo traces them (timm and
torchvision training, transformers evaluation), on standard-normal images and uniform tokens. Standard deviations are
fitted on one batch with seed 0; the weights that are measured are drawn with other seeds, on the same batch.

A layer's ratio is ``max(m/w, w/m)``: ``m`` the mean square of what its operator gives (over batch, positions and
units; the largest of its uses where a weight is used several times), ``w`` what is wanted, ``1/d_in``.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import signal
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from math import exp, inf, isfinite, log
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dagscale.inits import INITS
from dagscale.inits.base import zeros_and_ones
from dagscale.planning.prepare import traced
from dagscale.tracing import forward, recorder, reduction
from dagscale.tracing.calls import Use
from dagscale.training.copies import apply_fills
from dagscale.training.recipe import Recipe

sys.path.insert(0, str(Path(__file__).parent))
OUT = Path("out/moments.jsonl")
LARGEST = 30_000_000
DRAWS = 8
"""Fresh draws that the averaged columns take the geometric mean over."""
FRESH = 1000
"""Seed of the first fresh draw; the fit uses seeds 0 to 3."""

TIMM = ("test_vit", "test_byobnet", "halonet_h1", "poolformerv2_s12", "cait_xxs24_224", "coat_tiny", "test_coatnet",
        "convit_tiny", "convmixer_768_32", "test_convnext", "cpubone_nano", "crossvit_tiny_240", "cs3darknet_focus_s",
        "csatv2", "cspnext_tiny", "davit_tiny", "deit_tiny_patch16_224", "densenet121", "dla46x_c", "test_nfnet",
        "dpn48b", "ese_vovnet19b_slim_dw", "test_resnet", "edgenext_xx_small", "efficientformer_l1",
        "efficientformerv2_s0", "test_efficientnet", "efficientvim_m1", "efficientvit_b0", "efficientvit_m0",
        "vit_tiny_patch16_dinov3_qkvb", "fasternet_t0", "fastvit_t8", "mobilenetv3_small_050", "focalnet_tiny_srf",
        "gcvit_xxtiny", "ghostnet_050", "gmlp_ti16_224", "hardcorenas_b", "hgnetv2_b0", "hiera_tiny_224",
        "sam2_hiera_tiny", "hrnet_w18_small", "iformer_t", "inception_next_atto", "inception_v3", "lcnetv2_small",
        "legacy_seresnet18", "legacy_xception", "levit_128s", "lowformer_b0", "test_mambaout", "mobilevit_xxs",
        "mvitv2_tiny", "nest_tiny", "pit_ti_224", "pvt_v2_b0", "rdnet_tiny", "regnetx_002", "repghostnet_050",
        "repvit_m1", "res2next50", "resnest14d", "resnetv2_18", "rexnet_100", "sequencer2d_s", "shvit_s1",
        "skresnet18", "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_tiny_window16_256",
        "swinv2_cr_tiny_224", "test_vit_relpos", "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "twins_svt_small",
        "visformer_tiny", "vit_tiny_r_s16_p8_224", "vitamin_small_224", "volo_d1_224", "xception41p",
        "xcit_nano_12_p8_224")  # fmt: skip
"""The smallest of each family, of those that have one small enough."""
TORCHVISION = ("convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "mnasnet0_5",
               "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf",
               "regnet_y_400mf", "resnet18", "resnet34", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5",
               "shufflenet_v2_x1_0", "squeezenet1_0", "squeezenet1_1", "swin_t", "swin_v2_t",
               "lraspp_mobilenet_v3_large")  # fmt: skip
SPACES = ("mlp:2", "mlp:2_22_222", "mlp:2_02_002_0002", "mlp:2_21_012_1022?act=gelu", "mlp:2_12_112_2222?order=pre",
          "mlp:2_22_222?norm=layer", "cnn:2_22_222?width=16", "cnn:2_02_002?width=16&kernel=5",
          "cnn:2_21_012?width=16&norm=batch", "nb201:3_33_333", "nb201:1_24_342", "nb201:2_20_441")  # fmt: skip
TORCH: dict[str, Callable[[torch.Tensor], Any]] = {"he": nn.init.kaiming_normal_, "xavier": nn.init.xavier_normal_}
INIT_NAMES = ("moments", "in-degree-standard", "in-degree", "released", "he", "xavier", "keep")


# --- what there is ----------------------------------------------------------------------------------------


def cases() -> Iterator[tuple[str, str]]:
    import zoo_transformers

    yield from (("spaces", name) for name in SPACES)
    yield from (("torchvision", name) for name in TORCHVISION)
    yield from (("timm", name) for name in TIMM)
    yield from (("transformers", name) for name in zoo_transformers.families())


def build(library: str, name: str) -> tuple[nn.Module, Any]:
    """The model and a small batch.

    Raises:
        ValueError: if it has more than ``LARGEST`` parameters.
        Exception: the library's, where it cannot be built or run here.
    """
    torch.manual_seed(0)
    if library == "spaces":
        from dagscale.models import targets

        model, example = targets.load(name)
        return model.train(), torch.randn(32, *example.shape[1:])
    if library == "transformers":
        import zoo_transformers

        return zoo_transformers.build(name, "cpu")
    from dagscale.models.timm import declare_torchvision_ops

    declare_torchvision_ops()
    return images(_timm_model if library == "timm" else _torchvision_model, name)


def _timm_model(name: str, size: int | None) -> tuple[nn.Module, tuple[int, ...]]:
    import timm

    shape = tuple(timm.models.get_pretrained_cfg(name).input_size)
    if size is None:
        return timm.create_model(name), shape
    try:
        return timm.create_model(name, img_size=size), (shape[0], size, size)
    except TypeError:
        return timm.create_model(name), (shape[0], size, size)


def _torchvision_model(name: str, size: int | None) -> tuple[nn.Module, tuple[int, ...]]:
    from torchvision import models

    options = {"weights_backbone": None} if "segmentation" in models.get_model_builder(name).__module__ else {}
    return models.get_model(name, weights=None, **options), (3, size or 224, size or 224)


def images(make: Callable[[str, int | None], tuple[nn.Module, tuple[int, ...]]], name: str) -> tuple[nn.Module, Any]:
    """The model in training mode at the smallest of a few image sizes that it takes."""
    first: Exception | None = None
    for size in (64, 128, None):
        try:
            torch.manual_seed(0)
            model, shape = make(name, size)
            if sum(p.numel() for p in model.parameters()) > LARGEST:
                raise ValueError("too large")
            inputs = torch.randn(8 if size else 2, *shape)
            with torch.no_grad():
                copy.deepcopy(model).train()(inputs)
            return model.train(), inputs
        except Exception as error:
            if str(error) == "too large":
                raise
            first = first or error
    assert first is not None
    raise first


# --- measuring --------------------------------------------------------------------------------------------


class Meter(recorder.Recorder):
    """Records, by node, the mean square of every layer's and every sum's value.

    Args:
        stds: the weights' standard deviations. With them ``expected`` has the mean square over all weights that the
            layer might have drawn, its input given; a computed weight is taken as it is.
    """

    def __init__(self, stds: dict[str, float]) -> None:
        super().__init__()
        self.stds = stds
        self.moments: dict[int, float] = {}
        self.expected: dict[int, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.func = func
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _record(self, operator: Any, meaning: Any, named: Any, known: Any, out: Any) -> None:
        before = len(self.nodes)
        super()._record(operator, meaning, named, known, out)
        head = next((t for t in recorder.tensors_in(out) if t.is_floating_point()), None)
        for node in self.nodes[before:] if head is not None else ():
            if node.kind in ("weight", "sum"):
                self.moments[node.id] = head.detach().double().square().mean().item()
            if node.kind == "weight" and self.stds:
                place = meaning.weight if not self.nodes[known[meaning.weight][0][0]].signal else meaning.data[0]
                name = self.nodes[known[place][0][0]].name
                use = Use(self.func, meaning, named, place, frozenset({name}), own=name in self.stds)
                self.expected[node.id] = use.moment() * self.stds.get(name, 1.0) ** 2


Moments = dict[tuple[str, ...], list[tuple[float, float]]]


def measure(
    model: nn.Module, inputs: Any, seed: int, stds: dict[str, float]
) -> tuple[Moments, list[float], list[float]]:
    """Second moments of one forward.

    Returns:
        The moments of each weight's uses, as they are and as expected (else as they are), by the names of the
        parameters that the weight is made of; those of sums of layers alone; and those of the other sums.
    """
    meter = Meter(stds)
    args, kwargs = forward.bind_inputs(model, inputs)
    torch.manual_seed(seed)
    with torch.no_grad():
        outputs = forward.run_real(meter, model, forward.plain_parameters(model), args, kwargs, lambda out: out).outputs
    nodes = meter.nodes
    live = reduction._reaching(nodes, outputs)
    reduction._fold_functions(nodes, live)
    live = reduction._reaching(nodes, outputs)
    reduction._melt_sums(nodes, outputs, live)
    live = reduction._reaching(nodes, outputs)
    readers = reduction._consumers(nodes, outputs, live)
    seen: dict[int, tuple[str, ...]] = {}
    layers: Moments = {}
    pure, mixed = [], []
    for node in nodes:
        if not live[node.id] or node.id not in meter.moments:
            continue
        value = meter.moments[node.id]
        if node.kind == "weight":
            places = [n for n, place in zip(node.params, node.places, strict=True) if place == "weight"]
            names = tuple(name for n in places for name in reduction._parameters_of(nodes, n, seen))
            layers.setdefault(names, []).append((value, meter.expected.get(node.id, value)))
        elif node.kind == "sum" and len(node.parents) > 1:
            (pure if all(_is_layer(nodes, readers, p) for p in node.parents) else mixed).append(value)
    return layers, pure, mixed


def _is_layer(nodes: list[recorder.Node], readers: list[int], n: int) -> bool:
    """Whether what stands at ``n`` is a layer's output that nothing else reads, moved about at most."""
    while nodes[n].kind == "pass" and len(nodes[n].parents) == 1 and readers[n] == 1:
        n = nodes[n].parents[0]
    return nodes[n].kind == "weight" and readers[n] == 1


def torch_init(model: nn.Module, weights: list[str], draw: Callable[[torch.Tensor], Any], seed: int) -> None:
    """``draw`` on all of ``weights`` that have a fan, biases zero."""
    torch.manual_seed(seed)
    for name, parameter in forward.plain_parameters(model).items():
        if not parameter.requires_grad:
            continue
        if name in weights and parameter.dim() >= 2:
            draw(parameter.data)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter.data)


def check(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """One model under every init."""
    network = traced(model, inputs, Recipe(), 0)
    graph = network.graph
    parameters = forward.plain_parameters(model)
    wanted: dict[tuple[str, ...], float] = {}
    for use in graph.layers:
        names = tuple(p.name for p in use.op.params if p.role == "weight")
        wanted[names] = min(1 / use.in_degree, wanted.get(names, 1.0))
    fitted = INITS["moments"](network)
    known = zeros_and_ones(graph)
    shared = Counter(name for names in wanted for name in names)  # a computed weight is set by a parameter of its own
    own = {name for name in fitted if name not in known}
    covered = {n for n in wanted if any(name in own and (len(n) == 1 or shared[name] == 1) for name in n)}
    weights = [name for names in wanted for name in names]
    row: dict[str, Any] = {
        "parameters": sum(p.numel() for p in parameters.values()),
        "layers": len(covered),
        "left": [", ".join(n) for n in wanted if n not in covered],
    }
    if not covered:
        return row | {"skipped": "no weight layer that an init sets"}
    for init in INIT_NAMES:
        draws = []
        for k in range(DRAWS if init == "moments" else 1):
            fresh = copy.deepcopy(model)
            fills = fitted if init == "moments" else {} if init in TORCH else INITS[init](network)
            if init in TORCH:
                torch_init(fresh, weights, TORCH[init], FRESH + k)
            apply_fills(fresh, fills, FRESH + k)
            draws.append(measure(fresh, inputs, FRESH + k, {n: f.std for n, f in fills.items() if f.std > 0}))
        ratios = {n: max(m for m, _ in draws[0][0].get(n, [(0.0, 0.0)])) / w for n, w in wanted.items() if n in covered}
        row[init] = summary(ratios)
        if init == "moments":
            row["pure"], row["mixed"] = draws[0][1:]
            row |= over_draws([layers for layers, _, _ in draws], {n: wanted[n] for n in covered})
    return row


def over_draws(draws: list[Moments], wanted: dict[tuple[str, ...], float]) -> dict[str, Any]:
    """What is left when the noise of single draws is averaged out, and whether expectation and draws agree."""
    expected, errors, realised = {}, {}, {}
    uses = 0
    for names, w in wanted.items():
        used = [max(layers.get(names, [(0.0, 0.0)]), key=lambda use: use[1]) for layers in draws]
        uses += any(len(layers.get(names, ())) > 1 for layers in draws)
        logs = [log(e / w) if 0 < e < inf else inf for _, e in used]
        expected[names] = exp(statistics.fmean(logs)) if inf not in logs else inf
        errors[", ".join(names)] = statistics.stdev(logs) / len(logs) ** 0.5 if inf not in logs else 0.0
        if inf not in logs:
            realised[", ".join(names)] = statistics.fmean(m / e for m, e in used)
    found = summary(expected)
    surely = [n for n, m in found["all"].items() if abs(log(m)) - 2 * errors[n] > log(1.1)]
    return {"averaged": found, "surely": {n: found["all"][n] for n in surely}, "uses": uses, "realised": realised}


def summary(ratios: dict[tuple[str, ...], float]) -> dict[str, Any]:
    """Over layers: the worst and the median of ``max(m/w, w/m)``, how many are within 10 %, and each ``m/w``."""
    found = {", ".join(names): min(max(m, 1e-30), 1e30) if isfinite(m) else 1e30 for names, m in ratios.items()}
    sizes = [max(m, 1 / m) for m in found.values()]
    return {
        "worst": max(sizes),
        "median": statistics.median(sizes),
        "within": sum(r <= 1.1 for r in sizes),
        "all": found,
    }


# --- the run and the report -------------------------------------------------------------------------------


def rows() -> list[dict[str, Any]]:
    """The latest row of each case."""
    if not OUT.exists():
        return []
    latest = {(r["library"], r["name"]): r for r in map(json.loads, OUT.read_text().splitlines())}
    return list(latest.values())


class TooSlow(BaseException):
    """A model took more processor time than it was given; no ``except Exception`` on the way is to swallow it."""


def _give_up(*_: Any) -> None:
    raise TooSlow


def run(limit: int, only: str, again: bool, seconds: float) -> None:
    """Every case that has no row yet, until ``limit`` models have been measured, each within ``seconds``."""
    signal.signal(signal.SIGPROF, _give_up)
    import logging

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    OUT.parent.mkdir(exist_ok=True)
    finished = set() if again else {(r["library"], r["name"]) for r in rows()}
    measured = 0
    for library, name in cases():
        if measured >= limit:
            break
        if (library, name) in finished or not re.search(only, f"{library}/{name}"):
            continue
        row: dict[str, Any] = {"library": library, "name": name}
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            row |= attempt(library, name)
        except TooSlow:
            row["skipped"] = "too slow"
        signal.setitimer(signal.ITIMER_PROF, 0)
        measured += "moments" in row
        row["seconds"] = round(time.process_time() - start, 1)
        with OUT.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(library, name, row["seconds"], "s:", verdict(row), flush=True)


def attempt(library: str, name: str) -> dict[str, Any]:
    """What can be said of one model."""
    try:
        model, inputs = build(library, name)
        if sum(p.numel() for p in model.parameters()) > LARGEST:
            raise ValueError("too large")
    except Exception as error:
        return {"skipped": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    try:
        return check(model, inputs)
    except Exception as error:
        return {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


def verdict(row: dict[str, Any]) -> str:
    if "moments" not in row:
        return str(row.get("skipped") or row.get("failed"))
    parts = []
    for key in ("moments", "averaged", "keep"):
        s = row[key]
        parts.append(f"{key} worst {s['worst']:.3g} median {s['median']:.3g} within {s['within']}/{row['layers']}")
    return "; ".join([*parts, f"surely off {len(row['surely'])}, left {len(row['left'])}, used again {row['uses']}"])


def report() -> None:
    """The tables of docs/evidence/inits.md, then every exception by name."""
    every = rows()
    measured = [r for r in every if "moments" in r]
    libraries = Counter(r["library"] for r in measured)
    layers = sum(r["layers"] for r in measured)
    seconds = sum(r["seconds"] for r in every)
    print(f"{len(measured)} models ({', '.join(f'{n} {k}' for k, n in libraries.items())}), {layers} layers, "
          f"{seconds / 60:.0f} minutes of processor time, torch {torch.__version__}\n")  # fmt: skip
    print("| init | worst layer of a model: median, 90 %, worst | median layer: likewise | layers within 10 % |")
    print("|---|---|---|---|")
    for init in ("averaged", *INIT_NAMES):
        cells = []
        for key in ("worst", "median"):
            values = sorted(r[init][key] for r in measured)
            cells.append(" · ".join(_short(v) for v in (statistics.median(values), _share(values, 0.9), values[-1])))
        within = sum(r[init]["within"] for r in measured) / layers
        print(f"| {init} | {' | '.join(cells)} | {100 * within:.1f} % |")
    worst = sorted(r["averaged"]["worst"] for r in measured)
    print(f"\nmoments, averaged: every layer within 10 % in {sum(v <= 1.1 for v in worst)} models, within 25 % in "
          f"{sum(v <= 1.25 for v in worst)}, nine layers of ten within 10 % in "
          f"{sum(r['averaged']['within'] >= 0.9 * r['layers'] for r in measured)}")  # fmt: skip
    realised = [v for r in measured for v in r["realised"].values()]
    print(f"realised over expected second moment, mean over layers: {statistics.fmean(realised):.3f}")
    for kind, text in (("pure", "sums of layers alone"), ("mixed", "other sums (identity edges, activations)")):
        values = sorted(v for r in measured for v in r[kind] if isfinite(v))
        spread = ", ".join(f"{_short(_share(values, q))} ({100 * q:.0f} %)" for q in (0.05, 0.5, 0.95))
        print(f"{text}: {len(values)}, second moment {spread}")
    print("\nsurely off by more than 10 % (beyond two standard errors of 8 draws):")
    for r in measured:
        if r["surely"]:
            named = ", ".join(f"{n[:80]} {_short(v)}" for n, v in list(r["surely"].items())[:4])
            print(f"- `{r['name']}` {len(r['surely'])} of {r['layers']}: {named}")
    print("\nleft as they were:")
    for r in measured:
        if r["left"]:
            named = "; ".join(n[:80] for n in r["left"][:3])
            print(f"- `{r['name']}` {len(r['left'])} of {len(r['left']) + r['layers']}: {named}")
    print("\nused several times:", ", ".join(f"`{r['name']}` {r['uses']}" for r in measured if r["uses"]))
    print("\nfailed:", [(r["name"], r["failed"]) for r in every if "failed" in r])
    reasons = [r["skipped"] for r in every if "skipped" in r]
    skipped = Counter(next((k for k in ("too large", "too slow") if k in s), "not built") for s in reasons)
    print("skipped:", dict(skipped))


def _share(values: list[float], q: float) -> float:
    """The ``q`` quantile of sorted ``values``."""
    return values[min(int(q * len(values)), len(values) - 1)]


def _short(value: float) -> str:
    return "∞" if value > 9e29 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--limit", type=int, default=10**6, help="models to measure")
    parser.add_argument("--only", default="", help="regular expression on library/name")
    parser.add_argument("--again", action="store_true", help="also those that have a row already")
    parser.add_argument("--seconds", type=float, default=60.0, help="processor time a model")
    options = parser.parse_args()
    if options.command == "run":
        run(options.limit, options.only, options.again, options.seconds)
    else:
        report()


if __name__ == "__main__":
    main()
