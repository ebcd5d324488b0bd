"""The documentation's pages agree with each other, with the results, with the code, and with the line length."""

from __future__ import annotations

import ast
import contextlib
import csv
import importlib
import importlib.util
import io
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dagscale import INITS, LAWS, OPTIMIZERS
from dagscale.tracing.meaning import OPS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
LONGEST = 120

FIRST = ("index", "start", "concepts", "when-not")
"""Pages that a newcomer reads first, beside the folders of guides."""

LONG_ROWS = frozenset({"data.md", "replay.md", "real-recipes.md"})
"""Pages with rows that a command makes, or that hold names of files."""


def each_page() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The ids of a page's headings, as GitHub and MyST write them."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@each_page()
def test_links_resolve(page: Path) -> None:
    text = without_code(page.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"\{download\}`[^<`]*<([^>]+)>`", text)
    for link in links:
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), f"{page.relative_to(ROOT)}: no file {link}"
        assert not anchor or anchor in anchors(file), f"{page.relative_to(ROOT)}: no heading {link}"


@each_page()
def test_lines_are_short(page: Path) -> None:
    """But for tables with links, whose rows cannot be broken."""
    lines = list(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    long = [n for n, line in lines if len(line) > LONGEST and not (line.startswith("|") and "](" in line)]
    if page.name in LONG_ROWS:
        long = [n for n in long if not lines[n - 1][1].startswith("|")]
    assert not long, f"{page.relative_to(ROOT)}: lines {long} are longer than {LONGEST}"


@each_page()
def test_no_line_is_taken_for_a_comment(page: Path) -> None:
    """A line that begins with a percent sign is a comment in MyST, and its text would be lost."""
    lines = without_code(page.read_text(encoding="utf-8")).splitlines()
    assert not [line for line in lines if line.lstrip().startswith("%")]


@each_page()
def test_scripts_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:benchmarks|docs|examples|tests|src/dagscale)/[\w/]+\.py\b", text))
    assert not [name for name in named if not (ROOT / name).is_file()]


@pytest.mark.parametrize("folder", ["benchmarks", "tests", "src", "examples"])
def test_pages_that_a_script_names_exist(folder: str) -> None:
    for script in sorted((ROOT / folder).rglob("*.py")):
        named = re.findall(r"\bdocs/[\w/-]+\.md\b", script.read_text(encoding="utf-8"))
        assert not [name for name in named if not (ROOT / name).is_file()], script.name


@pytest.mark.parametrize("folder", ["benchmarks", "docs", "examples"])
def test_what_scripts_import_from_the_package_is_there(folder: str) -> None:
    for script in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dagscale"):
                continue
            module = importlib.import_module(str(node.module))
            for name in node.names:
                part = hasattr(module, "__path__") and importlib.util.find_spec(f"{node.module}.{name.name}")
                assert hasattr(module, name.name) or part, f"{script.name}: {node.module} has no {name.name}"


def test_suites_that_pages_name_exist() -> None:
    from dagscale.bench.verify.suites import SUITES

    named = {
        suite for page in PAGES for suite in re.findall(r"dagscale verify +([a-z][\w-]*)", page.read_text("utf-8"))
    }
    assert len(named) > 5
    assert named <= set(SUITES)


def docs_module(name: str) -> ModuleType:
    """A script of the documentation's folder, as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        return importlib.import_module(name)


def tables() -> ModuleType:
    return docs_module("tables")


def test_tables_are_those_of_the_results() -> None:
    written = tables().written
    texts = {page: page.read_text("utf-8") for page in (ROOT / "README.md", *PAGES)}
    differ = [page.name for page, text in texts.items() if written(text) != text]
    assert not differ, f"run make evidence: {differ}"


def test_a_changed_figure_would_be_found() -> None:
    text = (DOCS / "evidence" / "mlp-dags.md").read_text("utf-8")
    assert "| 0.89 | 0.23 |" in text
    assert tables().written(text.replace("| 0.89 | 0.23 |", "| 0.98 | 0.23 |")) == text


def test_a_changed_figure_of_a_study_would_be_found() -> None:
    text = (DOCS / "evidence" / "transfer.md").read_text("utf-8")
    assert "| 2.326 |" in text
    assert tables().written(text.replace("| 2.326 |", "| 2.236 |")) == text


@pytest.mark.parametrize("name", ["families.svg", "transfer.svg", "contests.svg", "demo.svg", "nas-retraining.svg"])
def test_pictures_are_those_of_the_results(name: str, tmp_path: Path) -> None:
    """To the byte, where matplotlib is the version that drew them."""
    kept = (DOCS / "evidence" / "pictures" / name).read_bytes()
    matplotlib = pytest.importorskip("matplotlib")
    if f"Matplotlib v{matplotlib.__version__}".encode() not in kept:
        pytest.skip("drawn by another version of matplotlib")
    docs_module("picture").PICTURES[name](tmp_path / name)
    assert (tmp_path / name).read_bytes() == kept, "run make evidence"


@pytest.mark.parametrize("study", ["gains", "which_init"])
def test_tables_of_inits_are_those_of_their_results(study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    try:
        results = DOCS / "evidence" / "results" / f"{study.replace('_', '-')}.json"
        sheets = importlib.import_module(study).tables(json.loads(results.read_text("utf-8")))
    finally:
        for script in (ROOT / "benchmarks").glob("*.py"):
            sys.modules.pop(script.stem, None)
    for name, rows in sheets.items():
        with open(DOCS / "evidence" / "tables" / f"{name}.csv", newline="", encoding="utf-8") as file:
            assert list(csv.DictReader(file)) == rows, f"run python benchmarks/{study}.py report --write"


def test_a_diverged_network_of_the_demo_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    studies = docs_module("studies")
    made = {"target": "cnn:2?width=12", "lr": {"plan": 0.5, "grid": 0.25}, "loss": {"plan": None, "grid": 1.25}}
    monkeypatch.setattr(studies, "demo_outcomes", lambda: [studies.demo.Outcome(**made, band=(0.1, 0.2))])
    assert studies.demo_table("networks").endswith("| `cnn:2` | – | – | diverged (0.5) | 1.250 (0.25) |\n")


def test_every_file_of_results_is_on_a_page() -> None:
    shown = "".join(page.read_text("utf-8") for page in PAGES)
    assert not [
        file.name for file in (DOCS / "evidence" / "tables").glob("*.csv") if f"tables/{file.name}" not in shown
    ]


def test_results_of_a_study_become_a_file_of_results() -> None:
    made = {
        "suite": "s", "method": "short-run / moments / mup", "pearson_r": 0.987, "pearson_r_interval": [0.9, 0.999],
        "slope": 1.03, "rms_octaves": 0.25, "within_half_octave": 0.875, "regret_mean": 0.0123,
        "regret_mean_interval": None, "regret_max": None, "regret_cv_mean": -0.001, "excess_mean": 0.02, "steps": 7,
    }  # fmt: skip
    row = tables().summarised(made)
    assert [row[name] for name in ("rule", "init", "width", "correlation", "correlation_low")] == [
        "short-run", "moments", "mup", "0.99", "0.90",
    ]  # fmt: skip
    assert (row["regret_mean_percent"], row["regret_low_percent"], row["regret_worst_percent"]) == (
        "1.2",
        "",
        "diverged",
    )
    assert tables().summarised({**made, "method": "prodigy"})["init"] == "keep"
    kept = tables().rows("mlp-dag-sgd")[0]
    assert list(row) == list(kept)


EXAMPLE = re.compile(r"<!-- runs -->\n```python\n(.*?)```\n\nIt prints\n\n```\n(.*?)```", re.DOTALL)
GOES_ON = re.compile(r"<!-- runs on -->\n```python\n(.*?)```", re.DOTALL)


def examples(page: Path) -> list[tuple[str, str, list[str]]]:
    """Of each block that runs as it stands: its code, what it prints, and the blocks below that go on from it."""
    text = page.read_text("utf-8")
    blocks = list(EXAMPLE.finditer(text))
    ends = [*(block.start() for block in blocks), len(text)][1:]
    spans = zip(blocks, ends, strict=True)
    return [(block[1], block[2], GOES_ON.findall(text, block.end(), end)) for block, end in spans]


FOR_USERS = [
    page for page in PAGES if page.parent.name in ("howto", "guide") or (page.parent == DOCS and page.stem in FIRST)
]
EXAMPLES = [
    pytest.param(*example, id=f"{page.relative_to(DOCS).as_posix()}-{number}")
    for page in PAGES
    for number, example in enumerate(examples(page))
]


@pytest.mark.parametrize("page", FOR_USERS, ids=lambda page: page.name)
def test_every_block_of_a_page_for_users_runs_or_says_why_not(page: Path) -> None:
    """Above each block of Python stands one of: that it runs, that it goes on from the one that runs above it, the test
    that takes it from the page, or the reason why it does not run."""
    text = page.read_text("utf-8")
    for found in re.finditer(r"^(.*)\n```python\n(.*)$", text, re.MULTILINE):
        said = re.fullmatch(r"<!-- (runs|runs on|run by (.*)|not run: .+) -->", found[1])
        assert said, f"{page.name}: nothing says whether the block {found[2]!r} runs"
        for test in re.findall(r"tests/test_\w+\.py", said[0]):
            assert (ROOT / test).is_file()
        if said[2]:
            assert f'"{page.name}"' in (ROOT / said[2]).read_text("utf-8"), f"{said[2]} does not read the page"
    assert len(re.findall("<!-- runs(?: on)? -->", text)) == sum(1 + len(on) for _, _, on in examples(page))


def test_the_readme_runs_and_prints_what_it_says() -> None:
    """Its example is the file that it names, and every printed line that it shows is a true one but for its figures,
    which differ a little between machines and versions of torch."""
    readme = (ROOT / "README.md").read_text("utf-8")
    code, shown = re.findall(r"```python\n(.*?)```\n.*?\n```\n(.*?)```", readme, flags=re.DOTALL)[0]
    assert (ROOT / "examples" / "first_plan.py").read_text("utf-8").endswith(code)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})

    def words(text: str) -> list[list[str]]:
        return [re.findall(r"[^\W\d]\w*", line) for line in text.splitlines() if "…  " not in line]

    printed = words(out.getvalue())
    assert [line for line in words(shown) if line not in printed] == []
    found = [re.findall(r"^learning rate ([\d.]+) = base", text, re.MULTILINE) for text in (shown, out.getvalue())]
    rates = [float(rate) for (rate,) in found]
    assert 0.7 < rates[0] / rates[1] < 1.4


def test_the_plan_that_a_guide_reads_line_by_line_is_the_readmes() -> None:
    shown = re.search(r"\nlearning rate .*\n(law .*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert shown
    assert f"```\n{shown[1]}```" in (DOCS / "guide" / "plan.md").read_text("utf-8")


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize(("code", "printed", "on"), EXAMPLES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_examples_run_and_print_what_the_page_says(
    code: str, printed: str, on: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an example registers is gone after it. ``python docs/outputs.py`` writes what they print today."""
    monkeypatch.chdir(tmp_path)
    out, own = io.StringIO(), dict[str, Any]()
    with contextlib.ExitStack() as stack:
        for registry in (LAWS, INITS, OPTIMIZERS, OPS):
            stack.enter_context(registry.temporarily())
        stack.enter_context(contextlib.redirect_stdout(out))
        exec(compile(code, "example", "exec"), own)
        assert out.getvalue() == printed
        for more in on:
            exec(compile(more, "example", "exec"), own)
