"""What is declared for a release: dependencies, extras, version, and that the command line's faces agree with it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dagscale

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "dagscale"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

IMPORTED_AS = {"pillow": "PIL", "scikit-learn": "sklearn", "torch-lr-finder": "torch_lr_finder"}
"""Distribution → the module that it is imported as, where they differ."""

OF_ROOM = {
    "bench": ("bench", "dist", "images", "models", "peers", "plot"),
    "checking": ("plot",),
    "integrations": ("huggingface", "lightning", "logging", "models", "tuning"),
    "models": ("models",),
    "pictures": ("plot",),
    "planning": ("plot",),
}
"""Room → the extras whose packages it may import when a function needs them."""

BROUGHT = {"torchvision": "timm"}
"""Module → the distribution of which it is a requirement."""


def modules(requirements: list[str]) -> set[str]:
    """What can be imported once these are installed, extras of our own included."""
    found: set[str] = set()
    for requirement in requirements:
        own = re.fullmatch(r"dagscale\[(.*)\]", requirement)
        if own:
            found.update(*(modules(EXTRAS[extra]) for extra in own[1].split(",")))
            continue
        name = re.match(r"[A-Za-z0-9_.-]+", requirement)[0]  # type: ignore[index]
        found.add(IMPORTED_AS.get(name, name))
    return found


def third_party(file: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether importing the file imports it) of every import of somebody else's."""

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            names: list[str] = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom) and child.module is not None and child.level == 0:
                names = [child.module]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top != "dagscale":
                    yield top, not inside
            typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            later = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or typing
            yield from visit(child, inside or later)

    yield from visit(ast.parse(file.read_text()), False)


CORE = modules(PROJECT["dependencies"])


@pytest.mark.parametrize("room", sorted({file.relative_to(SOURCE).parts[0] for file in SOURCE.rglob("*.py")}))
def test_imports_are_declared(room: str) -> None:
    """What a module imports at its top is in the core; what its functions import, in the core or the room's extras.

    A bridge to a trainer is there for its package, which it may import at its top."""
    allowed = CORE | modules([name for extra in OF_ROOM.get(room, ()) for name in EXTRAS[extra]])
    allowed |= {name for name, by in BROUGHT.items() if by in allowed}
    for file in [SOURCE / room] if room.endswith(".py") else (SOURCE / room).rglob("*.py"):
        for name, at_once in third_party(file):
            assert name in (CORE if at_once and room != "integrations" else allowed), f"{file} imports {name}"


def test_core_dependencies_are_used_outside_of_bench() -> None:
    files = [file for file in SOURCE.rglob("*.py") if "bench" not in file.relative_to(SOURCE).parts]
    assert {name for file in files for name, _ in third_party(file)} >= CORE


def test_missing_packages_are_told_by_the_extra_that_brings_them() -> None:
    from dagscale.cli import EXTRAS as told

    for module, extra in told.items():
        assert module in modules(EXTRAS[extra])
    named = {text for file in SOURCE.rglob("*.py") for text in re.findall(r"dagscale\[(\w+)\]", file.read_text())}
    assert named <= EXTRAS.keys()


def test_messages_send_nobody_to_files_that_an_installed_package_lacks() -> None:
    for file in SOURCE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # what documents the code
        told = [
            node.value for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone
        ]  # fmt: skip
        assert not [text for text in told if "docs/" in text], file


def test_version_stands_in_one_place() -> None:
    assert PROJECT["dynamic"] == ["version"]
    written = [file.name for file in SOURCE.rglob("*.py") if f'"{dagscale.__version__}"' in file.read_text()]
    assert written == ["__about__.py"]
    assert f"\nversion: {dagscale.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {dagscale.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_public_names_are_the_same_for_readers_and_for_types() -> None:
    """The names that are imported when first used, those that a type checker sees, and ``__all__``."""
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (alias.name, (node.module or "").removeprefix("dagscale."))
        for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip
    assert seen == set(dagscale._HOME.items())
    assert {name for name, _ in seen} == set(dagscale.__all__)
    for name in dagscale.__all__:
        assert getattr(dagscale, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dagscale.nothing  # noqa: B018


def test_help_lists_every_kind_of_target() -> None:
    from dagscale.cli.app import TARGETS
    from dagscale.models import SPACES

    assert {name.partition(":")[0] for name in TARGETS} == {*SPACES, "file.py", "package.module"}


def test_workflows_run_what_the_makefile_has() -> None:
    """Everything that is run anywhere is a ``make`` target, so that it runs the same everywhere."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        for line in re.findall(r"- run: (.*)", file.read_text()):
            command, *asked = line.split()
            assert command == "make"
            assert set(asked) <= targets
    text = (ROOT / ".github" / "workflows" / "checks.yml").read_text()
    assert all(f'"3.{minor}"' in text for minor in (10, 11, 12, 13))
    for versions in re.findall(r"torch-[0-9.]+", text):
        assert (ROOT / ".github" / "constraints" / f"{versions.rstrip('.')}.txt").is_file()
