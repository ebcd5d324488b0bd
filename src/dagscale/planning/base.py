"""A base: a network whose best learning rate is known, and how it was found."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagscale.arguments import checked
from dagscale.errors import DagscaleError, PlanError
from dagscale.graph import Graph
from dagscale.inits import INITS
from dagscale.laws.estimate import Estimate
from dagscale.network import Network
from dagscale.pictures.files import save
from dagscale.planning.examples import Examples
from dagscale.planning.files import Saved, check_training, is_number, read_document, told
from dagscale.planning.trained import own_rms
from dagscale.planning.validate import check_gradient, rehearse
from dagscale.rates import WIDEST, find_band, narrowed
from dagscale.shown import Tabled, finite, load_rich
from dagscale.training.copies import all_put_back
from dagscale.training.draws import Fill
from dagscale.training.groups import Relative
from dagscale.training.recipe import Recipe
from dagscale.typed import check_types

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

FORMAT = 1
"""Of the JSON document; a document of a later format is refused."""

FLAT = (
    "the loss hardly depends on the learning rate: more than {octaves:g} octaves of rates end within {asked} of the "
    "best loss, so the band holds those within {own}; longer runs tell rates apart better"
)

ONE_LOSS = (
    "the lowest loss, {loss:.4g}, is the very same at rates {octaves:.3g} octaves apart, so that none of these can be "
    "preferred; if that is the loss of a network which says the same of all examples, try lower rates, or another loss"
)

LARGEST_DRAW, LARGEST_LOGARITHM = 1e38, 1e6
"""The largest mean or standard deviation of a draw that single precision holds, and the largest logarithm of a rate
that a file may have."""


@dataclass(frozen=True)
class Point:
    """One learning rate that a search has tried, and the losses that training ended with there.

    Args:
        lr: learning rate, per optimiser step.
        losses: final training loss of each seed that was run; ``inf`` if it diverged.
        loss: mean over all seeds; where some were not run, estimated (`dagscale.searching.fast.estimates`).
    """

    lr: float
    losses: tuple[float, ...]
    loss: float


@dataclass(frozen=True)
class Pair:
    """A weight decay, and the best of the rates tried with it.

    Args:
        weight_decay: as the recipe takes it.
        lr: learning rate, per optimiser step.
        loss: final loss of the first seed there.
    """

    weight_decay: float
    lr: float
    loss: float


@checked(PlanError)
@dataclass(frozen=True, repr=False)
class Base(Saved, Tabled):
    """A network whose best learning rate is known: what a search returns, and what a plan carries a rate over from.

    It serves any number of targets: what a law measures on it is measured once. Rates are per optimiser step, losses
    are final training losses. It can be pickled, copied and written to a file; then it keeps its graph and what was
    measured on it, and leaves the model, the data and functions of the user's behind.

    Attributes:
        lr: the rate to recommend: the geometric middle of the band.
        recipe: how it was trained, as plain data (`dagscale.Recipe.describe`).
        init: the init under which the rate was found.
        edge: the maximal learning rate: the upper end of the band.
        argmin: of the rates that were tried, the one with the lowest mean loss.
        loss: the mean loss at ``argmin``; None for a rate that was given.
        band: lower and upper end of the rates near the best one (`dagscale.rates.find_band`).
        curve: all rates tried, ascending; empty for a rate that was given.
        at_edge: whether an end of the band is the first or last rate tried, so that the true end may lie beyond it.
        widened: how often the grid was widened.
        steps: optimiser steps of all runs together.
        seeds: training runs at each rate; with method ``fast``, at the rates that decide.
        tolerance: how far above the best loss the band reaches at most: 0.05 is 5 %, less where it would be wide.
        notes: what a reader should know, such as parameters that the init leaves as they were.
        method: how it was found, a name in ``METHODS``; ``given`` for a rate that was.
        pairs: the weight decays tried, ascending, each with its best rate; empty where the recipe's own was kept
            (`dagscale.search` with ``decay=True``). The curve is for the one in ``recipe``.
        examples: what a run saw of the data, in examples; None where nobody knows.
        data: what these examples are like; None where nobody knows.
        network: the network itself.
    """

    lr: float
    recipe: dict[str, Any]
    init: str | None
    edge: float
    argmin: float
    loss: float | None
    band: tuple[float, float]
    curve: tuple[Point, ...] = ()
    at_edge: bool = False
    widened: int = 0
    steps: int = 0
    seeds: int = 0
    tolerance: float = 0.0
    notes: tuple[str, ...] = ()
    method: str = "given"
    pairs: tuple[Pair, ...] = ()
    examples: int | None = None
    data: Examples | None = field(default=None, compare=False)
    network: Network | None = field(default=None, compare=False)

    @classmethod
    def given(cls, network: Network, lr: float) -> Base:
        """A base whose best learning rate the user knows already, so that no search was made."""
        recipe = network.recipe
        return cls(lr, recipe.describe(), None, lr, lr, None, (lr, lr), examples=recipe.examples, network=network)

    @classmethod
    def found(
        cls,
        network: Network,
        init: str | None,
        curve: Sequence[Point],
        tolerance: float,
        *,
        start: float = math.inf,
        widened: int,
        steps: int,
        seeds: int,
        notes: tuple[str, ...],
        method: str,
        pairs: Sequence[Pair] = (),
        data: Examples | None = None,
    ) -> Base:
        """The base that a search has found.

        Args:
            curve: the rates that were tried, ascending; at least one of them has a finite loss.
            tolerance: relative width of the band in the loss.
            start: the loss before training, ``inf`` where nobody knows (`dagscale.rates.limit_of`).
            data: what the examples are like.
        """
        if init is not None and not INITS[init].draws:
            network = replace(network, own_rms=own_rms(network))
        best = min(curve, key=lambda point: point.loss)
        rates, losses = [point.lr for point in curve], [point.loss for point in curve]
        own = narrowed(rates, losses, tolerance, start)
        low, high = find_band(rates, losses, own, start)
        if tolerance > own > 1e-6:
            notes = (*notes, FLAT.format(octaves=WIDEST, asked=_percent(tolerance), own=_percent(own)))
        elif tolerance > own == 0 and best.loss:
            notes = (*notes, ONE_LOSS.format(loss=best.loss, octaves=math.log2(high / low)))
        return cls(
            lr=math.sqrt(low * high),
            recipe=network.recipe.describe(),
            init=init,
            edge=high,
            argmin=best.lr,
            loss=best.loss,
            band=(low, high),
            curve=tuple(curve),
            at_edge=any(sides(curve, tolerance, start)),
            widened=widened,
            steps=steps,
            seeds=seeds,
            tolerance=tolerance,
            notes=notes,
            method=method,
            pairs=tuple(pairs),
            examples=network.recipe.examples,
            data=data,
            network=network,
        )

    @property
    def live(self) -> Recipe | None:
        """The recipe with its data and functions; None for a base that was read from a file."""
        return None if self.network is None or self.network.model is None else self.network.recipe

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True, default=str))

    def __getstate__(self) -> dict[str, Any]:
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**state, "network": None if self.network is None else _light(self.network)}

    def __repr__(self) -> str:
        low, high = self.band
        name = self.recipe.get("optimizer", {}).get("name")
        return f"Base(lr={self.lr:.4g}, band=({low:.3g}, {high:.3g}), optimizer={name!r}, method={self.method!r})"

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON, without data and network; the loss of a diverged run is ``None``."""
        apart = ("data", "network", "curve", "pairs")
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
        return {
            **own,
            "loss": finite(self.loss),
            "band": list(self.band),
            "notes": list(self.notes),
            "curve": [{"lr": p.lr, "loss": finite(p.loss), "losses": finite(p.losses)} for p in self.curve],
            "pairs": [finite(asdict(pair)) for pair in self.pairs],
        }

    def to_json(self) -> str:
        """One JSON document, with the network's graph and what was measured; :meth:`from_json` reads it back."""
        network = self.network
        more: dict[str, Any] = {}
        if network is not None:
            more = {
                "seed": network.seed,
                "graph": network.graph.to_dict(),
                "fills": {name: [fill.mean, fill.std] for name, fill in network.fills.items()},
                "ratios": network.ratios,
                "own_rms": dict(network.own_rms),
                "measured": {k: asdict(v) for k, v in network.memo.items() if isinstance(v, Estimate)},
            }
        data = None if self.data is None else asdict(self.data)
        return json.dumps({"format": FORMAT, **self.to_dict(), "data": data, "network": more or None}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Base:
        """The base that :meth:`to_json` wrote.

        Raises:
            PlanError: if the text is no such document, or a later version of dagscale wrote it.
        """
        mend = "write one with Base.save, or `dagscale search TARGET --save base.json`"
        raw = read_document(text, "base", FORMAT, mend)
        try:
            more = raw.pop("network")
            curve = tuple(Point(p["lr"], tuple(map(_loss, p["losses"])), _loss(p["loss"])) for p in raw.pop("curve"))
            pairs = tuple(Pair(p["weight_decay"], p["lr"], _loss(p["loss"])) for p in raw.pop("pairs", ()))
            known = {"band": tuple(raw["band"]), "notes": tuple(raw["notes"]), "curve": curve, "pairs": pairs}
            like = None if raw.get("data") is None else Examples.from_dict(raw["data"])
            base = cls(**{**raw, **known, "data": like})
            for part in (base, *curve, *pairs):
                check_types(part)
            check_training(base.recipe)
            if not all(is_number(n) and n > 0 for n in (base.lr, base.edge, base.argmin, *base.band)):
                raise ValueError("its rates are no positive numbers")
            counts = (base.widened, base.steps, base.seeds, base.examples or 0, base.tolerance)
            if min(counts) < 0 or base.band[0] > base.band[1]:
                raise ValueError("a count or its tolerance is negative, or its band ends before it begins")
            if not all(point.lr > 0 and point.losses for point in curve):
                raise ValueError("a point of its curve has no positive rate, or no loss")
            if more is None:
                return base
            network = Network(
                Graph.from_dict(more["graph"]),
                Recipe(),
                seed=more["seed"],
                init=base.init or "",
                fills={name: Fill(mean, std) for name, (mean, std) in more["fills"].items()},
                relative={name: Relative(float(ratio)) for name, ratio in more.get("ratios", {}).items()},
                role="base",
                own_rms=more.get("own_rms", {}),
                memo={name: Estimate(**own) for name, own in more["measured"].items()},
            )
            _check_numbers(network)
            return replace(base, network=network)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, DagscaleError) as error:
            raise PlanError(f"this is no base ({told(error)}); {mend}") from None

    def measure(self, law: str) -> Base:
        """Measure what a law needs of this base, so that a copy read from a file knows it too. Returns itself.

        Raises:
            UnknownNameError: for an unknown law.
            PlanError: if nothing can be measured.
            RecipeError, ForwardError: if data, loss and model do not fit, as for :func:`dagscale.plan`.
        """
        from dagscale.laws import LAWS

        rule = LAWS[law]
        network = self.network
        if network is None:
            raise PlanError("this base knows no network: make it with dagscale.search")
        with all_put_back():
            if rule.measured and network.model is not None:
                rehearse(network)
                check_gradient(network)
            rule(network)
        return self

    def __str__(self) -> str:
        low, high = self.band
        edge = "; still at the edge of the grid, the true band may reach beyond it" if self.at_edge else ""
        count = sum(len(point.losses) for point in self.curve)
        runs = f"{count} runs" + (f" with up to {self.seeds} seeds" if self.seeds > 1 else "")
        wider = f", grid widened {self.widened}×" if self.widened else ""
        tried = ", ".join(f"{pair.weight_decay:.3g}" for pair in self.pairs)
        decay = f" and weight decay {self.recipe['weight_decay']:.3g} (of {tried})" if self.pairs else ""
        return (
            f"learning rate {self.lr:.3g}{decay} (band {low:.3g} to {high:.3g}; best {self.argmin:.3g}, loss "
            f"{self.loss:.4g}; {len(self.curve)} rates, {runs}, {self.steps:,} steps{wider}{edge})"
        )

    def table(self) -> Table:
        """The curve as a rich table, the band marked. A mean with ≈ is estimated: not all seeds were run there."""
        load_rich()
        from rich.table import Table
        from rich.text import Text

        caption = Text("\n".join([str(self), *(f"note: {note}" for note in self.notes)]))
        table = Table(title="final training loss by learning rate", caption=caption, caption_justify="left")
        for name in ("lr", "mean loss", "lowest", "highest", "seeds"):
            table.add_column(name, justify="right")
        table.add_column("")
        for point in self.curve:
            inside = self.band[0] <= point.lr <= self.band[1]
            mark = "◀ best" if point.lr == self.argmin else "in the band" if inside else ""
            guessed = len(point.losses) < self.seeds and math.isfinite(point.loss)
            table.add_row(
                f"{point.lr:.3g}",
                "≈ " * guessed + _loss_text(point.loss),
                _loss_text(min(point.losses)),
                _loss_text(max(point.losses)),
                str(len(point.losses)),
                mark,
                style="bold" if inside else "",
            )
        return table

    def plot(self, path: str | Path) -> None:
        """Draw loss against rate into a ``.png``, ``.svg`` or ``.pdf`` file.

        Raises: DagscaleError if matplotlib is missing, the suffix is another, or the file cannot be written.
        """
        save(self._figure, path)

    def _figure(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        finite = [point for point in self.curve if math.isfinite(point.loss)]
        axes.axvspan(*self.band, alpha=0.15, label="band of good rates")
        axes.axvline(self.lr, linestyle="--", label=f"middle of the band, {self.lr:.3g}")
        axes.plot([point.lr for point in finite], [point.loss for point in finite], marker="o")
        axes.fill_between(
            [point.lr for point in finite],
            [min(point.losses) if len(point.losses) == self.seeds else point.loss for point in finite],
            [max(point.losses) if len(point.losses) == self.seeds else point.loss for point in finite],
            alpha=0.3,
        )
        lost = [point.lr for point in self.curve if not math.isfinite(point.loss)]
        if lost:
            top = max(point.loss for point in finite)
            axes.plot(lost, [top] * len(lost), marker="x", linestyle="", color="tab:red", label="diverged")
        axes.set(xlabel="learning rate", ylabel="final training loss", title=f"up to {self.seeds} seeds a rate")
        axes.set_xscale("log", base=2)
        axes.legend()
        return figure


def _check_numbers(network: Network) -> None:
    """See that a network from a file has numbers that a network can have.

    Raises:
        ValueError: if not.
    """
    draw, log, many = LARGEST_DRAW, LARGEST_LOGARITHM, 1e300
    bounded: list[tuple[Any, float, float]] = []
    for fill in network.fills.values():
        bounded += [(fill.mean, -draw, draw), (fill.std, 0, draw)]
    for own in network.memo.values():
        bounded += [(own.log_rate, -log, log), (own.error, 0, log), (own.seeds, 0, many), (own.forwards, 0, many)]
    bounded += [(own.lr, 1 / many, many) for own in network.relative.values()]
    bounded += [(rms, 0, draw) for rms in network.own_rms.values()]
    for value, low, high in bounded:
        if not is_number(value) or not low <= value <= high:
            raise ValueError(f"no number of its network can be {value!r}")
    if type(network.seed) is not int:
        raise ValueError(f"seed cannot be {network.seed!r}")


def _light(network: Network) -> Network:
    """The network without model, data and functions, which may not be picklable."""
    memo = {name: value for name, value in network.memo.items() if isinstance(value, Estimate)}
    relative = {name: Relative(ratio) for name, ratio in network.ratios.items()}
    return Network(
        network.graph, Recipe(), seed=network.seed, fills=dict(network.fills), relative=relative, role=network.role,
        by_layer=network.by_layer, own_rms=network.own_rms, memo=memo,
    )  # fmt: skip


def sides(curve: Sequence[Point], tolerance: float, start: float = math.inf) -> tuple[bool, bool]:
    """Whether the band (or, where all diverged, the answer) reaches the lower, the upper end of the curve."""
    losses = [point.loss for point in curve]
    if all(math.isinf(loss) for loss in losses):
        return True, False
    low, high = find_band([point.lr for point in curve], losses, tolerance, start)
    return low <= curve[0].lr, high >= curve[-1].lr


def _percent(share: float) -> str:
    """With two digits at least, without an exponent."""
    return f"{100 * share:.{max(0, 1 - math.floor(math.log10(100 * share)))}f} %"


def _loss(value: Any) -> float:
    """A loss as it stands in JSON, where null is that of a diverged run."""
    return math.inf if value is None else float(value)


def _loss_text(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "diverged"
