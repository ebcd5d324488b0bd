"""Sizes and colours: lengths in inches, font sizes in points."""

Point = tuple[float, float]

MARGIN = 0.3
BEND = 0.09
GAP = 0.11
"""Least distance between two things in a rank."""
RADIUS = 0.17
DOT = 0.045
TEXT = 8.0
SMALL = 6.5
MAX_NAME = 22
"""Characters of a name; longer ones are elided."""

INK = "#25303b"
PALE = "#b4bcc4"
THIN = "#7b8794"
PLAIN_ROW = ("#5b6670", "#f3f5f7")
ROW_COLOURS = {  # kind of op: text, background
    "weight": ("#0b3d78", "#d3e5fa"),
    "activation": ("#8a4300", "#fde6cc"),
    "norm": ("#1c5c3a", "#dff2e6"),
    "unknown": ("#a01c1c", "#fbdcdc"),
}
VERTEX_COLOURS = {  # kind of vertex: line, fill
    "input": (INK, "#e6eaee"),
    "output": (INK, "#e6eaee"),
    "sum": (INK, "#ffffff"),
    "product": ("#6b2d8b", "#f2e4f9"),
    "concat": ("#0d6670", "#dbf1f3"),
    "select": ("#8a6d00", "#fbf3d0"),
    "fork": (INK, INK),
}


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Width in inches of ``text`` in DejaVu Sans, by classes of characters: good to about a tenth."""
    em = 0.0
    for c in text:
        em += 0.34 if c in "ijl.,:;'|!I() " else 0.44 if c in "frt-/" else 0.95 if c in "mwMW@…" else 0.63
    return em * size / 72 * (1.1 if bold else 1.0)


def elide(text: str) -> str:
    """At most :data:`MAX_NAME` characters, the middle left out; of a dotted name whole words, no number."""
    if len(text) <= MAX_NAME:
        return text
    if "." in text:
        head, *middle, tail = text.split(".")
        short = f"{'.'.join([head, *filter(str.isdecimal, middle)])}…{tail}"
        if len(short) <= MAX_NAME:
            return short
    keep = MAX_NAME - 1
    return f"{text[: keep // 3]}…{text[keep // 3 - keep :]}"
