"""What importing the package costs."""

import subprocess
import sys

import pytest

HEAVY = (
    "matplotlib", "rich", "typer", "sklearn", "joblib", "networkx", "pyarrow", "PIL", "pandas", "scipy",
    "distributed", "torchvision", "timm", "transformers", "hypothesis", "torch._dynamo", "torch._inductor",
)  # fmt: skip


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_brings_nothing_that_torch_does_not() -> None:
    found = run(
        "import sys, torch\nbefore = set(sys.modules)\nimport dagscale\n"
        "for name in dagscale.__all__:\n    getattr(dagscale, name)\n"
        f"print(*[m for m in {HEAVY!r} if m in sys.modules and m not in before])"
    )
    assert found.split() == []


def test_import_itself_brings_nothing() -> None:
    assert run("import sys, dagscale\nprint(dagscale.__version__ and 'torch' in sys.modules)").strip() == "False"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["plan", "--help"], ["retrain", "--help"], ["list", "targets"], ["plan", "--nothing"]],
)
def test_help_needs_neither_torch_nor_numpy(arguments: list[str]) -> None:
    code = (
        f"import sys\nsys.argv = ['dagscale', *{arguments!r}]\nfrom dagscale.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('\\n', *[m for m in ('torch', 'numpy', 'scipy', 'transformers') if m in sys.modules], 'end')"
    )
    assert run(code).splitlines()[-1].split() == ["end"]
