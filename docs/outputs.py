"""Run the examples of the pages, and write what they print today below them.

    python docs/outputs.py [PAGE …]

An example is a Python block after ``<!-- runs -->``; the block after "It prints" is what it printed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent
EXAMPLE = re.compile(r"(<!-- runs -->\n```python\n)(.*?)(```\n\nIt prints\n\n```\n)(.*?)(```)", re.DOTALL)


def rewritten(text: str) -> str:
    """The page with each example's output as it is now."""

    def one(found: re.Match[str]) -> str:
        ran = subprocess.run([sys.executable, "-c", found[2]], capture_output=True, text=True, check=True)
        return f"{found[1]}{found[2]}{found[3]}{ran.stdout}{found[5]}"

    return EXAMPLE.sub(one, text)


if __name__ == "__main__":
    for page in [Path(name) for name in sys.argv[1:]] or sorted(DOCS.rglob("*.md")):
        text = page.read_text("utf-8")
        if (now := rewritten(text)) != text:
            page.write_text(now, "utf-8")
            print(page)
