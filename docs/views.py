"""Tables of the evidence pages that show some rows and columns of one file of results, a `View` each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Row = dict[str, str]
Cell = Callable[[Row], str]


@dataclass(frozen=True)
class View:
    """Which rows of a file in ``evidence/tables/`` a page shows, and how.

    Attributes:
        file: its name.
        columns: heading → cell; a text has names of the file's columns in braces.
        keep: which rows.
        left: how many columns stand to the left; the others are figures.
    """

    file: str
    columns: Mapping[str, str | Cell]
    keep: Callable[[Row], bool] = lambda row: True
    left: int = 1

    def cells(self, row: Row) -> list[str]:
        """One row of the page's table."""
        made = (column.format(**row) if isinstance(column, str) else column(row) for column in self.columns.values())
        return [minus(cell) for cell in made]


def minus(text: str) -> str:
    """With a minus sign in front of negative figures in place of a hyphen."""
    return re.sub(r"(?<![\w`?:-])-(?=\d)", "−", text)


def lost(mean: str, worst: str = "") -> Cell:
    """Columns of a mean and a worst loss in percent, as ``0.46 % (1.1 %)``."""

    def cell(row: Row) -> str:
        values = [row[name] for name in (mean, worst) if name]
        if values[0] == "diverged":
            return "diverged"
        return f"{values[0]} %" + (f" ({values[1]} %)" if worst else "")

    return cell


def within(name: str) -> Cell:
    """A figure with the half width of its interval; a dash where there is none."""
    return lambda row: f"{row[name]} ± {row[name + '_half_width_95']}" if row[name] else "–"


def init(row: Row) -> str:
    """An init's name."""
    return "PyTorch's own" if row["init"] in ("keep", "PyTorch's own") else f"`{row['init']}`"


# --- several bases, without a base, run length --------------------------------------------------------------

TWO_BASES = View(
    "two-bases",
    {
        "networks": "{family}",
        "law, init": lambda row: f"`{row['rule']}`, {init(row)}",
        "octaves, 1 base": "{one_base_octaves}",
        "2 bases": "{two_bases_octaves}",
        "loss, 1 base": lost("one_base_mean_percent", "one_base_worst_percent"),
        "2 bases ": lost("two_bases_mean_percent", "two_bases_worst_percent"),
    },
    left=2,
)


WITHOUT_A_BASE = View(
    "without-a-base",
    {
        "data, network": "{data}, `{network}`",
        "batch": "{batch}",
        "optimiser": "{optimizer}",
        "found rate": "{found_lr}",
        "off by": "{short_run_octaves}",
        "loss above best": lost("short_run_loss_percent"),
    },
)

RUN_LENGTH = View(
    "run-length",
    {
        "family": "{family}",
        "steps": "{steps}",
        "one rate for all": lost("one_rate_mean_percent"),
        "correlation": "{correlation}",
        "slope": "{slope}",
        "power ½": lost("power_1_2_mean_percent"),
        "power ¾": lost("power_3_4_mean_percent"),
        "power 1": lost("power_1_mean_percent"),
    },
)

# --- closed forms, curvature, kernels -----------------------------------------------------------------------


def law(row: Row) -> str:
    name, comma, rest = row["law"].partition(",")
    return f"`{name.split(' (')[0]}`{comma}{rest}"


CLOSED_FORMS = View(
    "closed-forms",
    {
        "law": law,
        "graphs": "{graphs} ({count})",
        "mean: correlation": "{mean_correlation}",
        "octaves off": "{mean_octaves_rms}",
        "typical: correlation": "{typical_correlation}",
        "octaves off ": "{typical_octaves_rms}",
    },
    left=2,
)

SHOWN = (
    "mlp:2?width=64",
    "mlp:2_22_202_2222?width=64",
    "mlp:2_02_002?width=64&norm=batch",
    "cnn:2_22_022?width=12&kernel=5&downsample=4",
    "vit:4?width=32",
)
CURVATURE = View(
    "curvature-examples",
    {
        "network": "`{network}`",
        "optimiser": "{optimizer}",
        **{
            title: f"{{examples_{count}_seed_0}}, {{examples_{count}_seed_1}}"
            for title, count in (("256 examples", 256), ("512", 512), ("1,024", 1024), ("2,048", 2048))
        },
    },
    keep=lambda row: row["network"] in SHOWN,
    left=2,
)


def kernels(sizes: str, columns: Mapping[str, str]) -> View:
    """Exponents over kernels of these sizes, of the rows that have some."""
    return View(
        "kernels",
        {"signal": "{signal}", "init": init, **{title: within(name) for title, name in columns.items()}},
        keep=lambda row: row["kernels"] == sizes and any(row[name] for name in columns.values()),
        left=2,
    )


AT_START = {"Δz, last convolution": "dz_last_convolution", "Δz, output": "dz_output", "λ": "lambda"}
IN_TRAINING = {"middle": "middle", "upper end": "edge", "λ after 32 steps": "lambda_after_32_steps"}

# --- how the short run was tuned ----------------------------------------------------------------------------

BY = {"one rate for all": "one rate for all", "covariance": "`covariance`", "mean": "short run",
      "mean × covariance": "both"}  # fmt: skip


def at_power(row: Row) -> str:
    """The loss at the power ¾; one rate for all has no power, and its loss stands under the first."""
    power = "power_1_2" if row["measured_by"] == "one rate for all" else "power_3_4"
    return lost(f"{power}_mean_percent", f"{power}_worst_percent")(row)


TUNING = View(
    "short-run-tuning",
    {
        "family": "{family}",
        "steps": lambda row: row["steps"] or "–",
        "by": lambda row: BY[row["measured_by"]],
        "scatter": lambda row: row["scatter_octaves"] or "–",
        "octaves off": "{octaves_rms}",
        "loss at power ¾": at_power,
    },
    keep=lambda row: row["measured_by"] in BY and row["steps"] != "96",
)

VIEWS = {
    "two-bases": TWO_BASES,
    "without-a-base": WITHOUT_A_BASE,
    "run-length": RUN_LENGTH,
    "closed-forms": CLOSED_FORMS,
    "curvature": CURVATURE,
    "kernels-start-1": kernels("1 3 5 7", AT_START),
    "kernels-start-3": kernels("3 5 7", AT_START),
    "kernels-training-1": kernels("1 3 5 7", IN_TRAINING),
    "kernels-training-3": kernels("3 5 7", IN_TRAINING),
    "short-run-tuning": TUNING,
}
