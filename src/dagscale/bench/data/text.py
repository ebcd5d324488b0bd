"""Text for language models: bytes, or the tokens of a tokenizer, in windows whose targets are the next ones."""

from __future__ import annotations

import codecs
import os
import sysconfig
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dagscale.bench.data.dataset import digested, shuffled
from dagscale.bench.data.files import home_expanded, open_plain
from dagscale.errors import DataError, RecipeError
from dagscale.plain import check_plain
from dagscale.shown import reason

CONTEXT = 256
"""Tokens of an example, where nobody says it."""

MOST_READ, MOST_FILES = 1 << 24, 100_000
"""Bytes that are read, and files that are looked at, at most."""

LONG_TOKEN = 8
"""Bytes of text that are read for every token wanted; tokens of usual tokenizers have 3 to 5."""

BYTES = 256
"""Size of the vocabulary without a tokenizer."""

Encode = Callable[[Sequence[bytes]], list[Tensor]]


@dataclass(frozen=True, eq=False)
class Text:
    """Windows of a text, in a fixed shuffled order, so that any first n are a fair draw.

    Attributes:
        name: what messages and tables call it.
        x: token ids, (n, context), int64.
        y: the ids one place further on, (n, context), int64.
        classes: size of the vocabulary.
    """

    name: str
    x: Tensor
    y: Tensor
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(context,), the shape of one example."""
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def digest(self) -> str:
        """The sha256 of what the examples are, in short, wherever they lie and whatever they are called."""
        return digested((tuple(self.x.shape), self.classes), self.x, self.y[:, -1])  # the others are in the inputs

    def rows(self, part: slice) -> Text:
        """Some of the examples."""
        return Text(self.name, self.x[part], self.y[part], self.classes)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean cross-entropy of the next token.

        Args:
            output: scores, (batch, context, vocabulary).
            target: token ids, (batch, context).

        Raises:
            RecipeError: if the output has another shape.
        """
        if not isinstance(output, Tensor) or output.shape[:-1] != target.shape or output.shape[-1] < self.classes:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise RecipeError(
                f"the output is {found}, and the next of {self.classes:,} tokens needs (batch, {self.shape[0]}, "
                f"{self.classes}): give a causal language model with a head over the vocabulary, or another --loss"
            )
        return cross_entropy(output.flatten(0, -2), target.flatten())


def read_text(
    path: str | Path,
    *,
    context: int = CONTEXT,
    tokenizer: str | None = None,
    files: str = "*",
    limit: int | None = None,
) -> Text:
    """Read a file of text, or all files of a folder and the folders in it as one text in the order of their paths.

    Windows do not overlap. Of a text of more than 16 MiB, or more than ``limit`` windows, only stretches are read that
    lie evenly all over it.

    Args:
        context: tokens of an example.
        tokenizer: name or folder of a tokenizer of transformers, or its ``tokenizer.json``; None for bytes.
        files: which names in a folder count, as ``*.py``; those that begin with a dot do not.
        limit: at most so many examples.

    Raises:
        DataError: in one line, if there is no text, a file is none, it is too short, or there is no such tokenizer.
    """
    if not str(path):
        raise DataError("no path to a text: name a file of text, or a folder of such files, as text:PATH")
    path = home_expanded(path)
    if context < 1 or (limit is not None and limit < 1):
        raise DataError(f"context and limit must be at least 1, got {context} and {limit}")
    encode, classes = (_bytes, BYTES) if tokenizer is None else _tokenizer(tokenizer)
    window = context + 1  # inputs and, one place further on, targets
    stretch = window * (1 if tokenizer is None else LONG_TOKEN)
    try:
        corpus = _Corpus(_find(path, files))
        wanted = min(MOST_READ, MOST_READ if limit is None else limit * stretch)
        whole = corpus.size <= wanted
        length, count = (corpus.size, 1) if whole else (stretch, max(1, wanted // stretch))
        starts = [k * (corpus.size - length) // max(1, count - 1) for k in range(count)]
        pieces = encode([corpus.read(start, length) for start in starts])
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from error
    cut = [_windows(piece, window) for piece in pieces]
    rows = torch.cat(cut) if cut else torch.empty(0, window)
    if len(rows) < 2:
        tokens = sum(map(len, pieces))
        raise DataError(
            f"{path} is too short, {tokens:,} tokens: two examples of context={context} need {2 * window:,}; give a "
            f"longer text, or a smaller context, as text:PATH?context={max(1, min(context - 1, tokens // 4))}"
        )
    return _text(path.resolve().name, rows, classes, limit)


def named_text(source: str, limit: int | None = None, context: int = CONTEXT) -> Text:
    """`read_text` of what a person writes after ``text:``, such as ``PATH?context=128&files=*.py``.

    Args:
        context: tokens of an example, where the options do not say it.
    """
    from dagscale.models.options import Option, parse_options

    known = (
        Option("context", "int", "tokens of an example", low=1, high=65_536),
        Option("tokenizer", "str", "name or path of a tokenizer of transformers"),
        Option("files", "str", "names of files that count, as *.txt"),
    )
    path, mark, query = source.rpartition("?")
    if not mark or os.path.exists(source):
        path, query = source, ""
    return read_text(path, limit=limit, **{"context": context, **parse_options(query, known, "text:PATH")})


def library_text(context: int, *, held: bool = False, limit: int | None = None) -> Text:
    """Bytes of the sources of Python's standard library: text that is there wherever Python is.

    Args:
        held: every tenth of its modules, rather than the nine others.
    """
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    chosen = [file for i, file in enumerate(files) if (i % 10 == 0) == held]
    (raw,) = _bytes([b"".join(file.read_bytes() for file in chosen)])
    return _text("Python's standard library", _windows(raw, context + 1), BYTES, limit)


def _windows(tokens: Tensor, length: int) -> Tensor:
    """A text cut into windows, (n, length), without what is left over."""
    return tokens[: len(tokens) - len(tokens) % length].view(-1, length)


def _text(name: str, windows: Tensor, classes: int, limit: int | None) -> Text:
    """Of each window all but the last as input, all but the first as target; shuffled, at most ``limit`` of them."""
    rows = windows[torch.from_numpy(shuffled(len(windows))[:limit])]
    return Text(name, rows[:, :-1], rows[:, 1:], classes)


def _find(path: Path, pattern: str) -> list[Path]:
    """The files of a text, in the order of their paths."""
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"no text at {str(path)!r}: name a file of text, or a folder of such files")
        if not path.is_file():
            raise DataError(f"{path} is no plain file but a pipe or a device: name one that holds text")
        return [path]
    found: list[Path] = []
    for folder, below, names in os.walk(path):
        below[:] = [name for name in below if not name.startswith(".")]
        inside = [Path(folder, name) for name in names if fnmatch(name, pattern) and not name.startswith(".")]
        found += [file for file in inside if file.is_file()]
        if len(found) > MOST_FILES:
            raise DataError(f"{path} holds over {MOST_FILES:,} files: name a smaller folder, or text:PATH?files=*.txt")
    if not found:
        raise DataError(f"{path} holds no files named {pattern!r}: name a folder of text files")
    return sorted(found)


class _Corpus:
    """Files one after the other, as one text that can be read anywhere."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.sizes = [file.stat().st_size for file in files]
        self.ends = list(accumulate(self.sizes))

    @property
    def size(self) -> int:
        """In bytes."""
        return self.ends[-1]

    def read(self, start: int, count: int) -> bytes:
        """At most ``count`` bytes from ``start`` on.

        Raises:
            DataError: if they are no text.
        """
        parts, number = [], bisect_right(self.ends, start)
        while count > 0 and number < len(self.files):
            begin = start - (self.ends[number] - self.sizes[number])
            with open_plain(self.files[number]) as file:
                file.seek(begin)
                part = file.read(min(count, self.sizes[number] - begin))
            _check(part, self.files[number], begin, begin + len(part) < self.sizes[number])
            parts.append(part)
            count -= len(part)
            start = self.ends[number]
            number += 1
        return b"".join(parts)


def _check(part: bytes, file: Path, begin: int, goes_on: bool) -> None:
    """Refuse what is no UTF-8; a character may be cut where the part begins or ends inside the file."""
    skip = 0
    while begin and skip < min(3, len(part)) and part[skip] & 0xC0 == 0x80:
        skip += 1
    try:
        codecs.getincrementaldecoder("utf-8")().decode(part[skip:], final=not goes_on)
        bad = part.find(b"\0")
    except UnicodeDecodeError as error:
        bad = skip + error.start
    if bad >= 0:
        raise DataError(
            f"{file} is no text in UTF-8: byte 0x{part[bad]:02x} at {begin + bad:,}; convert it (iconv -t UTF-8), or "
            "choose files in a folder, as text:PATH?files=*.txt"
        )


def _bytes(pieces: Sequence[bytes]) -> list[Tensor]:
    return [torch.frombuffer(bytearray(piece), dtype=torch.uint8).long() for piece in pieces if piece]


def _tokenizer(name: str) -> tuple[Encode, int]:
    """What turns text into token ids, and the size of its vocabulary."""
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
    except ImportError as error:
        raise DataError(f"a tokenizer needs transformers ({error}): pip install dagscale[models]") from None
    try:
        if os.path.exists(name):
            check_plain(Path(name), DataError)
        file = name.endswith(".json")
        made = PreTrainedTokenizerFast(tokenizer_file=name) if file else AutoTokenizer.from_pretrained(name)
        vocabulary = len(made)
    except DataError:
        raise
    except Exception as error:  # the kinds of what goes wrong on a hub, a disk or in a file are many
        raise DataError(
            f"there is no tokenizer {name!r} ({reason(error)}): name one of the Hugging Face hub, its folder, or a "
            "tokenizer.json"
        ) from None

    def encode(pieces: Sequence[bytes]) -> list[Tensor]:
        texts = [piece.decode(errors="ignore") for piece in pieces if piece]
        ids = made(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        return [torch.tensor(row, dtype=torch.int64) for row in ids]

    return encode, vocabulary
