"""Suites: families of architectures, each with one base, that ``dagscale verify`` trains."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from dagscale.bench.bounds import check_count, check_number
from dagscale.errors import DagscaleError
from dagscale.models import sample
from dagscale.rates import rates_between
from dagscale.registry import Registry
from dagscale.training.optimizers import OPTIMIZERS

AFFECTS_TRAINING = False

Exponents = tuple[float, float]


@dataclass(frozen=True)
class Suite:
    """A family of architectures with one base.

    Attributes:
        base: the base network's TARGET.
        members: (count, seed) → as many TARGETs, none of them the base.
        count: how many by default.
        grids: optimiser → exponents of 2, lowest and highest, of the grid of rates; where there is none, that of
            the optimiser.
        extra: methods that only this suite has by default.
        recipe: name of the recipe that it trains under (`dagscale.bench.verify.recipes`); where there is none, runs
            are at a constant rate, under an optimiser that is chosen for each study.
        plan: under a recipe, the method that `dagscale.plan` chooses by itself for these networks: base and targets
            differ in size, or else in how they are wired.
    """

    base: str
    members: Callable[[int, int], tuple[str, ...]]
    count: int = 12
    grids: Mapping[str, Exponents] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    recipe: str = ""
    plan: str = "none/moments/mup+completep"

    @property
    def summary(self) -> str:
        """One line for people: its base, its first member, and how it trains."""
        trained = f"recipe {self.recipe}" if self.recipe else "a constant rate"
        return f"{self.base}, {', '.join(self.members(1, 0))}, …: {trained}"

    def rates(self, optimizer: str, grid: Exponents | None = None, spacing: float = 0.5) -> tuple[float, ...]:
        """The rates to train at, ascending, ``spacing`` octaves apart; ``grid`` in place of the suite's exponents.

        Raises:
            DagscaleError: if the grid runs downwards, its exponents are beyond 100, or it has over 1,000 rates.
        """
        check_number("spacing", spacing, 0.01, 100)
        low, high = grid or self.grids.get(optimizer) or OPTIMIZERS[optimizer].grid
        rates = rates_between(low, high, spacing)
        check_count("the grid's number of rates", len(rates), 1, 1000)
        return rates

    def adapted(self, options: str) -> Suite:
        """With these options, as ``norm=batch&width=128``, on every TARGET in place of its own of the same names.

        Raises:
            DagscaleError: if an option is empty.
        """
        if not options:
            return self
        if not all(options.split("&")):
            raise DagscaleError(f"options {options!r} name nothing between two &: write NAME=VALUE&NAME=VALUE")
        return replace(
            self,
            base=with_options(self.base, options),
            members=lambda count, seed: tuple(with_options(m, options) for m in self.members(count, seed)),
        )


def with_options(target: str, options: str) -> str:
    """A TARGET with options in place of its own of the same names."""
    code, _, query = target.partition("?")
    named = {item.partition("=")[0]: item for text in (query, options) for item in text.split("&") if item}
    return f"{code}?{'&'.join(named.values())}"


SUITES: Registry[Suite] = Registry("suite")


def chains(options: str) -> Callable[[int, int], tuple[str, ...]]:
    """MLPs with 3, 4, … hidden layers, the stem included; the base has 2."""

    def members(count: int, seed: int) -> tuple[str, ...]:
        codes = ("_".join("0" * v + "2" for v in range(n)) for n in range(2, count + 2))
        return tuple(f"mlp:{code}?{options}" for code in codes)

    return members


def dags(space: str, *options: str) -> Callable[[int, int], tuple[str, ...]]:
    """Random DAGs of five vertices; several texts of options are taken in turn."""

    def members(count: int, seed: int) -> tuple[str, ...]:
        codes = sample(space, vertices=5, count=count, seed=seed)
        return tuple(f"{code}?{options[i % len(options)]}" for i, code in enumerate(codes))

    return members


def depths(text: str, first: int, step: int) -> Callable[[int, int], tuple[str, ...]]:
    """``text`` with ``{}`` replaced by ``first``, ``first + step``, …"""
    return lambda count, seed: tuple(text.format(first + step * k) for k in range(count))


def sizes(text: str, depth: tuple[int, int], width: tuple[int, int]) -> Suite:
    """Networks deeper and wider than the base, the nearest first.

    Args:
        text: a TARGET with ``{depth}`` and ``{width}``, perhaps ``{heads}``, in its place.
        depth, width: of the base, and how far apart they are.
    """

    def target(deeper: int, wider: int) -> str:
        wide = width[0] + width[1] * wider
        return text.format(depth=depth[0] + depth[1] * deeper, width=wide, heads=wide // 16)

    def members(count: int, seed: int) -> tuple[str, ...]:
        grown = ((total - wider, wider) for total in itertools.count(1) for wider in range(total + 1))
        return tuple(target(*pair) for pair in itertools.islice(grown, count))

    return Suite(target(0, 0), members)


MLP = {"sgd": (-9.0, 2.0), "momentum": (-12.0, -1.0), "adam": (-15.0, -4.0), "adamw": (-15.0, -4.0)}
CNN = {"sgd": (-8.0, 3.0), "momentum": (-11.0, 0.0), "adam": (-13.0, -2.0), "adamw": (-13.0, -2.0)}

for _name, _more in (("", ""), ("-gelu", "&act=gelu")):
    _options = f"width=64{_more}"
    SUITES.add(f"mlp-depth{_name}")(Suite(f"mlp:2?{_options}", chains(_options), 8, MLP))
    SUITES.add(f"mlp-dag{_name}")(Suite(f"mlp:2?{_options}", dags("mlp", _options), 12, MLP))
    _kernels = (f"width=12&kernel={k}{_more}" for k in (3, 5, 7))
    SUITES.add(f"cnn-dag{_name}")(Suite(f"cnn:2?width=12{_more}", dags("cnn", *_kernels), 12, CNN))

SUITES.add("mlp-dag-bn")(Suite("mlp:2?width=64&norm=batch", dags("mlp", "width=64&norm=batch"), 12, CNN))

_widths = dags("mlp", *(f"width={w}" for w in (32, 64, 128, 256)))
_scaled = ("none/moments/mup", "short-run/moments/mup", "combined/moments/mup")
SUITES.add("width")(Suite("mlp:2?width=32", _widths, 12, MLP, _scaled))

for _name, _norm in (("", "none"), ("-bn", "batch")):
    _text = "resnet:{}?width=8&stride=2&norm=" + _norm
    SUITES.add(f"resnet-depth{_name}")(Suite(_text.format(8), depths(_text, 14, 6), 8, CNN))

_grids = {**CNN, "adam": (-15.0, -4.0), "adamw": (-15.0, -4.0)}
SUITES.add("vit-depth")(Suite("vit:1?width=32", depths("vit:{}?width=32", 2, 1), 8, _grids))

_adamw = {"adamw": (-11.0, -4.0)}
for _name, _text, _recipe in (
    ("lm", "lm:{depth}?width={width}", "language"),
    ("lm-no-norm", "lm:{depth}?width={width}&norm=none", "language"),
    ("vit", "vit:{depth}?width={width}&heads={heads}", "vit"),
    ("mixer", "mixer:{depth}?width={width}", "vit"),
):
    SUITES.add(_name)(replace(sizes(_text, (2, 2), (32, 16)), recipe=_recipe, grids=_adamw))

_resnets = sizes("resnet:{depth}?width={width}&stride=2", (8, 6), (8, 4))
SUITES.add("resnet")(replace(_resnets, recipe="residual", grids={"nesterov": (-7.0, 0.0)}))

for _name in ("mlp", "cnn"):
    _dags = SUITES[f"{_name}-dag"]
    SUITES.add(_name)(replace(_dags, recipe="plain", plan="combined/moments"))
    SUITES.add(f"{_name}-adam")(replace(_dags, recipe="plain-adam", plan="short-run/moments"))
