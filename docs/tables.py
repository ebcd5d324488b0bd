"""Writes the tables of the evidence pages from the results in ``evidence/tables/``.

A page holds a marker, ``<!-- results: FILE -->`` or ``<!-- results: FILE: rule/init, rule/init -->`` for some of its
rows, and a line ``<!-- end -->``. What stands between the two is written here, so no figure is typed twice.
``<!-- summary: all -->`` is one row a family, ``<!-- summary: key, key -->`` some of them. ``<!-- csv: FILE -->`` is a
file as it stands, ``<!-- csv: FILE: word, word -->`` those of its rows whose first cell is one of the words.

Run ``python docs/tables.py`` after a file of results has changed; ``tests/test_docs.py`` finds pages that differ.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

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

MARKER = re.compile(r"<!-- (results|summary|csv): ([\w-]+)((?:[:,] ?[^>]*?)?) -->\n.*?<!-- end -->\n", re.DOTALL)


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


def table(head: list[str], body: list[list[str]]) -> str:
    """Markdown, figures to the right."""
    align = ["---" if i < 2 else "---:" for i in range(len(head))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, align, *body))


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


def summary(keys: list[str]) -> str:
    """One row a family: mean and worst loss above the best of the grid."""
    body = []
    for key in keys:
        label, name, init, default, page = FAMILIES[key]
        found = {method(row): row for row in rows(name)}
        one_rate = found.get(f"none/{init}") or found[f"one-rate/{init}"]
        cells = [one_rate, *(found[f"{rule}/{init}"] for rule in (default, "grid", "middle"))]
        losses = []
        for row in cells:
            mean, worst = percent(row["regret_mean_percent"]), percent(row["regret_worst_percent"])
            losses.append(mean if mean == worst else f"{mean} ({worst})")
        body.append([f"[{label}]({page}.md)", INITS[init], *losses])
    head = ["networks", "initialisation", "one rate for all", "the plan", "grid search", "the found rate itself"]
    return table(head, body)


def sheet(name: str, chosen: str) -> str:
    """A file as it stands, or some of its rows."""
    words = [word.strip() for word in chosen.split(",")] if chosen else []
    found = [row for row in rows(name) if not words or next(iter(row.values())).strip("`") in words]
    return table([*found[0]], [[cell.replace(" %", "\u00a0%").replace("-", "−") if cell[:1] in "+-0123456789" else cell
                               for cell in row.values()] for row in found])  # fmt: skip


def written(text: str) -> str:
    """A page with its tables as the results have them."""

    def block(match: re.Match[str]) -> str:
        kind, first, rest = match.groups()
        marker = match.group(0).split("-->", 1)[0] + "-->"
        if kind == "csv":
            made = sheet(first, rest.lstrip(": "))
        elif kind == "results":
            made = results(first, rest.lstrip(": "))
        else:
            keys = list(FAMILIES) if first == "all" else [key.strip() for key in (first + rest).split(",")]
            made = summary(keys)
        return f"{marker}\n\n{made}\n<!-- end -->\n"

    return MARKER.sub(block, text)


def main() -> None:
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := written(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(DOCS))


if __name__ == "__main__":
    main()
