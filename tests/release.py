"""What a release must do: install into an empty environment without extras, and run the README's lines there.

``make release-check`` runs it on what ``make dist`` built. It is no part of the test suite, since it installs torch.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = """
import dagscale, sys
assert "site-packages" in dagscale.__file__, dagscale.__file__
assert "torch" not in sys.modules
from importlib.metadata import version
assert dagscale.__version__ == version("dagscale"), (dagscale.__version__, version("dagscale"))
for name in dagscale.__all__:
    getattr(dagscale, name)
"""


def readme_lines() -> str:
    """The README's first Python block."""
    found = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None, "the README has no lines to run"
    return found[1]


def check(archive: Path, folder: Path, constraint: str) -> None:
    """Install one archive into an environment of its own, and use it from an empty folder."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    binaries = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    python = binaries / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--constraint", constraint, archive], check=True)
    subprocess.run([*pip, "check"], check=True)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()

    def run(*command: str | Path, status: int = 0) -> str:
        done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
        assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if status == 0 else done.stderr

    listed = json.loads(subprocess.run([*pip, "list", "--format=json"], check=True, capture_output=True).stdout)
    names = sorted(entry["name"] for entry in listed)
    print(f"{archive.name}: {len(names)} packages: {', '.join(names)}")
    run(python, "-c", HOME)
    command = binaries / "dagscale"
    for arguments in (["--version"], ["--help"], ["plan", "--help"], ["list", "targets"]):
        print(run(command, *arguments).strip().splitlines()[0])
    asked = run(command, "inspect", "mlp:2_22_222", "--picture", "graph.svg", status=2)
    assert "pip install" in asked, asked
    assert len(asked.splitlines()) == 1, asked
    print(asked.strip())
    print(run(python, "-c", readme_lines()))


def fields(wheel: Path) -> None:
    """What a package index shows of it."""
    import zipfile

    with zipfile.ZipFile(wheel) as members:
        name = next(name for name in members.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(members.read(name).decode())
        inside = members.namelist()
    for field in ("Version", "License-Expression", "Author", "Keywords", "Project-URL", "Requires-Python", "Summary"):
        assert metadata[field], f"the wheel has no {field}"
    for needed in ("dagscale/py.typed", "dagscale/bench/data/digits.npz"):
        assert needed in inside, f"the wheel has no {needed}"
    assert all(name.startswith(("dagscale/", "dagscale-")) for name in inside), "the wheel holds what is not dagscale's"


def main() -> None:
    """Check every archive in a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", type=Path)
    parser.add_argument("--constraint", default=str(ROOT / "constraints.txt"))
    options = parser.parse_args()
    (wheel,) = options.dist.glob("*.whl")
    (source,) = options.dist.glob("*.tar.gz")
    fields(wheel)
    for archive in (wheel, source):
        with tempfile.TemporaryDirectory() as folder:
            check(archive.resolve(), Path(folder), str(Path(options.constraint).resolve()))


if __name__ == "__main__":
    main()
