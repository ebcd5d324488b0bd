"""What importing the package costs."""

import subprocess
import sys

HEAVY = (
    "matplotlib", "rich", "typer", "sklearn", "joblib", "networkx", "pyarrow", "PIL", "pandas", "scipy",
    "distributed", "torchvision", "timm", "transformers", "hypothesis", "torch._dynamo", "torch._inductor",
)  # fmt: skip


def test_import_brings_nothing_that_torch_does_not() -> None:
    code = (
        "import sys, torch\nbefore = set(sys.modules)\nimport dagscale\n"
        f"print(*[m for m in {HEAVY!r} if m in sys.modules and m not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
