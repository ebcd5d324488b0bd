"""Writes the tables of the evidence pages from the results in ``evidence/tables/`` and ``evidence/results/``.

A page holds a marker and a line ``<!-- end -->``. What stands between the two is written here, so no figure is typed
twice. The markers are

- ``<!-- results: FILE -->``, or ``<!-- results: FILE: rule/init, rule/init -->`` for some of its rows;
- ``<!-- summary: all -->``, one row a family, or ``<!-- summary: key, key -->``, some of them; ``short`` in the README;
- ``<!-- csv: FILE -->``, a file as it stands; ``<!-- csv: FILE: word, word -->``, rows whose first cell is such a word;
- ``<!-- view: NAME -->``, some columns of a file (``views.py``);
- ``<!-- transfer: FAMILY -->``, ``<!-- contest: SUITE -->`` and others of ``studies.py``.

``make evidence`` runs this and draws the pictures; ``tests/test_docs.py`` finds pages that differ. ::

    python docs/tables.py                          # write the tables into the pages
    python docs/tables.py add RESULTS.json NAME    # what `dagscale verify --out` wrote, as evidence/tables/NAME.csv
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

from cells import table
from studies import STUDIES
from views import VIEWS

DOCS = Path(__file__).parent
RESULTS = DOCS / "evidence" / "tables"

RULES = {
    "none": "one rate for all",
    "one-rate": "one rate for all",
    "grid": "grid search, one seed",
    "middle": "the found rate itself",
    "lr-finder": "learning-rate finder",
    "prodigy": "Prodigy",
    "mup": "one rate for all",
}
INITS = {"moments": "`moments`", "in-degree": "`in-degree`", "keep": "PyTorch's own", "released": "released code's"}
WIDTHS = {"": "", "mup": ", μP by layer", "mup-package": ", `mup`"}

FAMILIES = {
    # key: (what is trained and how, file, init, rule of the default plan, page)
    "mlp-keep": ("SGD, 60 MLP DAGs", "mlp-dag-sgd", "keep", "short-run", "mlp-dags"),
    "mlp": ("SGD, 60 MLP DAGs", "mlp-dag-sgd", "moments", "combined", "mlp-dags"),
    "mlp-in-degree": ("SGD, 60 MLP DAGs", "mlp-dag-sgd", "in-degree", "combined", "mlp-dags"),
    "mlp-momentum": ("momentum, 30 MLP DAGs", "mlp-dag-momentum", "moments", "short-run", "mlp-dags"),
    "mlp-adamw-keep": ("AdamW, 30 MLP DAGs", "mlp-dag-adamw", "keep", "short-run", "mlp-dags"),
    "mlp-adamw": ("AdamW, 30 MLP DAGs", "mlp-dag-adamw", "moments", "short-run", "mlp-dags"),
    "mlp-bn-keep": ("SGD, 30 MLP DAGs, batch norm", "mlp-dag-bn-sgd", "keep", "short-run", "mlp-dags-norm"),
    "mlp-bn": ("SGD, 30 MLP DAGs, batch norm", "mlp-dag-bn-sgd", "moments", "short-run", "mlp-dags-norm"),
    "mlp-bn-adamw-keep": ("AdamW, 30 MLP DAGs, batch norm", "mlp-dag-bn-adamw", "keep", "short-run", "mlp-dags-norm"),
    "mlp-bn-adamw": ("AdamW, 30 MLP DAGs, batch norm", "mlp-dag-bn-adamw", "moments", "short-run", "mlp-dags-norm"),
    "depth-keep": ("SGD, 8 MLP depths", "mlp-depth-sgd", "keep", "short-run", "mlp-depth"),
    "depth": ("SGD, 8 MLP depths", "mlp-depth-sgd", "moments", "combined", "mlp-depth"),
    "depth-in-degree": ("SGD, 8 MLP depths", "mlp-depth-sgd", "in-degree", "combined", "mlp-depth"),
    "width": ("SGD, 12 MLP DAGs, widths 32 to 256", "width-sgd", "moments", "combined", "widths"),
    "cnn-keep": ("SGD, 30 CNN DAGs", "cnn-dag-sgd-keep", "keep", "short-run", "cnn-dags"),
    "cnn": ("SGD, 30 CNN DAGs", "cnn-dag-sgd-moments", "moments", "combined", "cnn-dags"),
    "cnn-in-degree": ("SGD, 30 CNN DAGs", "cnn-dag-sgd-in-degree", "in-degree", "combined", "cnn-dags"),
    "cnn-momentum": ("momentum, 12 CNN DAGs", "cnn-dag-momentum", "moments", "short-run", "cnn-dags"),
    "cnn-adamw": ("AdamW, 30 CNN DAGs", "cnn-dag-adamw", "moments", "short-run", "cnn-dags"),
    "resnet": ("SGD, 8 residual CNNs, no norms", "resnet-sgd", "moments", "combined", "residual-cnns"),
    "resnet-bn-keep": ("SGD, 8 residual CNNs, batch norm", "resnet-bn-sgd", "keep", "short-run", "residual-cnns"),
    "resnet-bn": ("SGD, 8 residual CNNs, batch norm", "resnet-bn-sgd", "moments", "short-run", "residual-cnns"),
    "resnet-bn-momentum": (
        "momentum, 5 residual CNNs, batch norm", "resnet-bn-momentum", "moments", "short-run", "residual-cnns",
    ),
    "resnet-bn-adamw": (
        "AdamW, 8 residual CNNs, batch norm", "resnet-bn-adamw", "moments", "short-run", "residual-cnns",
    ),
    "gelu-keep": ("SGD, 30 MLP DAGs, GELU", "mlp-dag-gelu-sgd", "keep", "short-run", "gelu"),
    "gelu": ("SGD, 30 MLP DAGs, GELU", "mlp-dag-gelu-sgd", "moments", "combined", "gelu"),
    "depth-gelu-keep": ("SGD, 8 MLP depths, GELU", "mlp-depth-gelu-sgd", "keep", "short-run", "gelu"),
    "depth-gelu": ("SGD, 8 MLP depths, GELU", "mlp-depth-gelu-sgd", "moments", "combined", "gelu"),
    "cnn-gelu": ("SGD, 12 CNN DAGs, GELU", "cnn-dag-gelu-sgd", "moments", "combined", "gelu"),
    "vit-keep": ("SGD, 8 vision transformers", "vit-sgd-keep", "keep", "short-run", "transformers"),
    "vit": ("SGD, 8 vision transformers", "vit-sgd-moments", "moments", "short-run", "transformers"),
    "vit-adamw-keep": ("AdamW, 8 vision transformers", "vit-adamw", "keep", "short-run", "transformers"),
    "vit-adamw": ("AdamW, 8 vision transformers", "vit-adamw", "moments", "short-run", "transformers"),
    "digits": ("digits: SGD, 30 MLP DAGs", "digits-mlp-dag-sgd", "moments", "combined", "digits"),
    "digits-bn": ("digits: SGD, 30 MLP DAGs, batch norm", "digits-mlp-dag-bn-sgd", "moments", "short-run", "digits"),
    "digits-adamw": ("digits: AdamW, 30 MLP DAGs", "digits-mlp-dag-adamw", "moments", "short-run", "digits"),
    "digits-cnn": ("digits: SGD, 12 CNN DAGs", "digits-cnn-dag-sgd", "moments", "combined", "digits"),
}  # fmt: skip

KINDS = "|".join(("results", "summary", "short", "csv", "view", *STUDIES))
MARKER = re.compile(rf"<!-- ({KINDS}): ([\w-]+)((?:[:,] ?[^>]*?)?) -->\n.*?<!-- end -->\n", re.DOTALL)


def rows(name: str) -> list[dict[str, str]]:
    """One file of results, a dict a row."""
    with open(RESULTS / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def percent(value: str) -> str:
    """``0.6`` → ``0.6 %``, held together by a space that does not break; a word stays."""
    return f"{float(value):.1f}\u00a0%".replace("-", "−") if re.fullmatch(r"-?[\d.]+", value) else value


def method(row: dict[str, str]) -> str:
    """How a page names a row: ``rule/init`` or ``rule/init/width``."""
    return "/".join(part for part in (row["rule"], row["init"], row["width"]) if part)


def results(name: str, chosen: str) -> str:
    """The short table of one file."""
    found = {method(row): row for row in rows(name)}
    names = [one.strip() for one in chosen.split(",")] if chosen else list(found)
    body = []
    for one in names:
        row = found[one]
        body.append([
            RULES.get(row["rule"], f"`{row['rule']}`"),
            INITS[row["init"]] + WIDTHS[row["width"]],
            percent(row["regret_mean_percent"]),
            percent(row["regret_worst_percent"]),
            (row["correlation"] or "–").replace("-", "−"),
            row["octaves_rms"] or "–",
        ])  # fmt: skip
    heads = ["learning rate from", "initialisation", "loss above best", "worst", "correlation", "octaves off"]
    return table(heads, body)


def judged(key: str) -> list[dict[str, str]]:
    """The rows of one family: one rate, the plan, grid search, the middle."""
    _, name, init, default, _ = FAMILIES[key]
    found = {method(row): row for row in rows(name)}
    one_rate = found.get(f"none/{init}") or found[f"one-rate/{init}"]
    return [one_rate, *(found[f"{rule}/{init}"] for rule in (default, "grid", "middle"))]


def losses(key: str) -> list[str]:
    """Mean and worst loss above the best of the grid, of the rows of one family."""
    cells = []
    for row in judged(key):
        mean, worst = percent(row["regret_mean_percent"]), percent(row["regret_worst_percent"])
        cells.append(mean if mean == worst else f"{mean} ({worst})")
    return cells


def summary(keys: list[str]) -> str:
    """One row a family, with a link to its page."""
    body = [[f"[{FAMILIES[key][0]}]({FAMILIES[key][4]}.md)", INITS[FAMILIES[key][2]], *losses(key)] for key in keys]
    head = ["networks", "initialisation", "one rate for all", "the plan", "grid search", "the found rate itself"]
    return table(head, body)


def sheet(name: str, chosen: str) -> str:
    """A file as it stands, or some of its rows."""
    words = [word.strip() for word in chosen.split(",")] if chosen else []
    found = [row for row in rows(name) if not words or next(iter(row.values())).strip("`") in words]
    return table([*found[0]], [[cell.replace(" %", "\u00a0%").replace("-", "−") if cell[:1] in "+-0123456789" else cell
                               for cell in row.values()] for row in found])  # fmt: skip


def plain(label: str) -> str:
    """A family's name for readers who have not met DAGs."""
    return label.replace("DAGs", "graphs").replace(", batch", " with batch")


def short(keys: list[str]) -> str:
    """One row a family, for the README."""
    body = [[plain(FAMILIES[key][0]), *losses(key)[:3]] for key in keys]
    return table(["networks", "same rate everywhere", "dagscale", "full grid search"], body, left=1)


def view(name: str) -> str:
    """Some rows and columns of a file."""
    shown = VIEWS[name]
    body = [shown.cells(row) for row in rows(shown.file) if shown.keep(row)]
    return table([head.strip() for head in shown.columns], body, shown.left)


def written(text: str) -> str:
    """A page with its tables as the results have them."""

    def block(match: re.Match[str]) -> str:
        kind, first, rest = match.groups()
        marker = match.group(0).split("-->", 1)[0] + "-->"
        if kind == "csv":
            made = sheet(first, rest.lstrip(": "))
        elif kind == "results":
            made = results(first, rest.lstrip(": "))
        elif kind == "view":
            made = view(first)
        elif kind in STUDIES:
            made = STUDIES[kind](first)
        else:
            keys = list(FAMILIES) if first == "all" else [key.strip() for key in (first + rest).split(",")]
            made = summary(keys) if kind == "summary" else short(keys)
        return f"{marker}\n\n{made}\n<!-- end -->\n"

    return MARKER.sub(block, text)


# --- from a study's results ---------------------------------------------------------------------------------

COLUMNS = {
    # column: (field of a row of results, end of an interval, factor, digits)
    "correlation": ("pearson_r", None, 1, 2),
    "correlation_low": ("pearson_r_interval", 0, 1, 2),
    "correlation_high": ("pearson_r_interval", 1, 1, 2),
    "slope": ("slope", None, 1, 2),
    "octaves_rms": ("rms_octaves", None, 1, 2),
    "within_half_octave_percent": ("within_half_octave", None, 100, 0),
    "regret_mean_percent": ("regret_mean", None, 100, 1),
    "regret_low_percent": ("regret_mean_interval", 0, 100, 1),
    "regret_high_percent": ("regret_mean_interval", 1, 100, 1),
    "regret_cross_validated_percent": ("regret_cv_mean", None, 100, 1),
    "regret_worst_percent": ("regret_max", None, 100, 1),
    "excess_percent": ("excess_mean", None, 100, 1),
}  # fmt: skip
"""Of a file in ``evidence/tables/``, after ``rule``, ``init`` and ``width`` and before ``steps``."""


def summarised(row: dict[str, Any]) -> dict[str, str]:
    """One row of a study's ``results.json`` as one of a file of results."""
    parts = [part.strip() for part in row["method"].split("/")]
    rule, init, width = [*parts, "", ""][:3] if len(parts) > 1 else [parts[0], "keep", ""]
    if rule == "mup":
        width = "mup-package"
    cells = {}
    for column, (field, end, factor, digits) in COLUMNS.items():
        value = row[field] if end is None or row[field] is None else row[field][end]
        lost = "diverged" if field in ("regret_mean", "regret_max") else ""
        cells[column] = lost if value is None else f"{factor * value:.{digits}f}"
    return {"rule": rule, "init": init, "width": width, **cells, "steps": str(row["steps"])}


def add(path: Path, name: str) -> None:
    """What ``dagscale verify --out`` wrote, as a file of results."""
    found = [summarised(row) for row in json.loads(path.read_text(encoding="utf-8"))]
    with open(RESULTS / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


def main() -> None:
    if sys.argv[1:2] == ["add"]:
        add(Path(sys.argv[2]), sys.argv[3])
    for page in [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        if (new := written(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(DOCS.parent))


if __name__ == "__main__":
    main()
