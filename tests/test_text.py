"""Text as data for language models: windows, tokens, what is read of long texts, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.bench.data import text as reading
from dagscale.bench.data.text import read_text
from dagscale.errors import DagscaleError, DataError, RecipeError

STORY = "".join(f"Line {k}: the hare and the tortoise, é and 漢.\n" for k in range(200))


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text(STORY)
    return path


def test_windows_are_the_text_and_targets_the_next_byte(story: Path) -> None:
    data = read_text(story, context=16)
    whole = STORY.encode()
    assert data.shape == (16,)
    assert data.classes == 256
    assert len(data) == len(whole) // 17
    assert torch.equal(data.x[:, 1:], data.y[:, :-1])
    rows = {bytes([*x.tolist(), y[-1].item()]) for x, y in zip(data.x, data.y, strict=True)}
    assert rows == {whole[k : k + 17] for k in range(0, len(whole) - 16, 17)}


def test_a_limit_is_a_draw_from_all_of_the_text(story: Path) -> None:
    whole = " ".join(f"{k:06d}" for k in range(2_000)).encode()  # no two places are alike
    story.write_bytes(whole)
    few = read_text(story, context=16, limit=20)
    assert len(few) == 20
    starts = sorted(whole.find(bytes(x.tolist())) for x in few.x)
    assert starts[0] < len(whole) / 10
    assert starts[-1] > len(whole) * 9 / 10
    assert torch.equal(few.x, read_text(story, context=16, limit=20).x)


def test_of_a_long_text_only_so_much_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse file of terabytes: reading all of it would not end, and its zeros are no text."""
    monkeypatch.setattr(reading, "MOST_READ", 2_000)
    (tmp_path / "a.txt").write_text(STORY * 5)
    data = read_text(tmp_path / "a.txt", context=16)
    assert 90 <= len(data) <= 2_000 // 17
    with (tmp_path / "huge.txt").open("w") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"no text in UTF-8: byte 0x00 at 0;"):
        read_text(tmp_path / "huge.txt", context=16)


def test_a_folder_is_one_text_in_the_order_of_its_paths(tmp_path: Path) -> None:
    book = tmp_path / "book"
    (book / "b").mkdir(parents=True)
    (book / ".hidden").mkdir()
    for name, content in (
        ("a.txt", "abc"),
        ("b/c.txt", "def" * 9),
        (".hidden/x.txt", "no"),
        (".x", "no"),
        ("z.md", "no"),
    ):
        (book / name).write_text(content)
    data = read_text(book, context=5, files="*.txt")
    joined = b"abc" + b"def" * 9
    assert {bytes(x.tolist()) for x in data.x} == {joined[k : k + 5] for k in range(0, 30, 6)}


def test_a_tokenizer_of_ones_own(story: Path, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"hare": 0, "tortoise": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    data = read_text(story, context=8, tokenizer=str(tmp_path / "tokenizer.json"))
    assert data.classes == 3
    assert torch.bincount(data.x.flatten()).argmax() == 2
    assert abs(int((data.x == 0).sum()) - int((data.x == 1).sum())) <= len(data)
    assert len(read_text(story, context=8, tokenizer=str(tmp_path / "tokenizer.json"), limit=7)) == 7


def test_a_text_that_is_read_whole_is_encoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No word and no character is cut in parts of it."""
    seen: list[bytes] = []

    def encode(parts: list[bytes]) -> list[torch.Tensor]:
        seen.extend(parts)
        return [torch.frombuffer(bytearray(part), dtype=torch.uint8).long() for part in parts]

    monkeypatch.setattr(reading, "_tokenizer", lambda name: (encode, 256))
    (tmp_path / "a.txt").write_text(STORY)
    read_text(tmp_path / "a.txt", context=16, tokenizer="any")
    assert seen == [STORY.encode()]


def test_the_loss_is_that_of_the_next_token(story: Path) -> None:
    data = read_text(story, context=16)
    scores = torch.randn(4, 16, 256)
    wanted = torch.stack([cross_entropy(s, y) for s, y in zip(scores, data.y[:4], strict=True)]).mean()
    assert torch.allclose(data.loss(scores, data.y[:4]), wanted)
    for wrong in (torch.randn(4, 256), torch.randn(4, 16, 8)):
        with pytest.raises(RecipeError, match="causal language model"):
            data.loss(wrong, data.y[:4])


class Bigram(nn.Module):
    """Scores of the next byte from the last."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(256, 8)
        self.head = nn.Linear(8, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(x))


def test_a_model_learns_from_it(story: Path) -> None:
    data = read_text(story, context=16, limit=40)
    recipe = dagscale.Recipe(data, loss=data.loss, optimizer="adamw", batch_size=8, steps=10)
    found = dagscale.search(Bigram(), recipe, seeds=1)
    assert found.loss < torch.log(torch.tensor(256.0))


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (b"\x89PNG\r\n\x1a\n\x00" * 99, {}, "no text in UTF-8: byte 0x89 at 0"),
        (b"plain" * 99 + b"\0", {}, "byte 0x00 at 495"),
        ("ß".encode("latin1") * 99, {}, "byte 0xdf at 0"),
        (("a" * 200 + "é").encode()[:-1], {}, "byte 0xc3 at 200"),
        (b"", {}, "too short, 0 tokens"),
        (b"short", {}, "too short, 5 tokens: two examples of context=16 need 34"),
        (b"long enough " * 99, {"context": 0}, "context and limit must be at least 1"),
        (b"long enough " * 99, {"limit": 0}, "context and limit must be at least 1"),
        (b"long enough " * 99, {"tokenizer": "./absent"}, "there is no tokenizer './absent'"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_in_one_line(
    tmp_path: Path, content: bytes, options: dict[str, str], said: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DagscaleError) as caught:
        read_text(path, **{"context": 16, **options})  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused = {
        "": "name a file of text", tmp_path / "none": "no text at", tmp_path / "pipe": "a pipe",
        "~nobody-here/a": "no data at", "a\0b": "no (data|text) at", "/dev/zero": "a device",
        tmp_path: "holds no files named '*'",
    }  # fmt: skip
    for path, said in refused.items():
        with pytest.raises(DataError, match=said.replace("*", r"\*")):
            read_text(path)


def test_language_models_take_their_vocabulary_and_length_from_it(story: Path) -> None:
    pytest.importorskip("transformers")
    from dagscale.models import load

    data = read_text(story, context=12)
    model, tokens = load("hf:gpt2?layers=1&width=8&heads=1", data=data)
    assert tokens.shape == (2, 12)
    assert model(tokens).shape == (2, 12, 256)
    for target, said in (("hf:gpt2?vocab=9", "leave vocab out"), ("hf:t5?layers=1", "does not predict the next token"),
                         ("mlp:2", "this takes images")):  # fmt: skip
        with pytest.raises(DagscaleError, match=said):
            load(target, data=data)


def test_a_model_that_sees_both_ways_does_not_see_the_token_it_predicts(story: Path) -> None:
    pytest.importorskip("transformers")
    from dagscale.models import load

    data = read_text(story, context=12)
    model, _ = load("hf:bert?layers=1&width=8&heads=1&mlp=8", data=data)
    model.eval()
    changed = data.x[:1].clone()
    changed[:, -1] = (changed[:, -1] + 1) % 256
    assert torch.equal(model(data.x[:1])[:, :-1], model(changed)[:, :-1])
