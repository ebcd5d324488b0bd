"""The tables of ``dagscale inspect``, against files; UPDATE_GOLDEN=1 in the environment renews them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from dagscale.graph import Graph
from dagscale.graph.facts import tables
from dagscale.graph.paths import path_sums
from dagscale.graph.repeats import fold, fold_rows
from dagscale.models import load
from dagscale.tracing import trace

GOLDEN = Path(__file__).parent / "golden"
TARGETS = (
    "mlp:1_01_001",
    "mlp:2_22_222",
    "mlp:2_02_102?order=pre&norm=batch",
    "mlp:2_22_222?depth=6",
    "cnn:2_02_002?kernel=5",
    "cnn:2_22_222?norm=batch&depth=2",
    "timm:resnet18",
    "timm:resnet50",
    "timm:densenet121",
    "timm:efficientnet_b0",
    "timm:convnext_tiny",
    "timm:vit_tiny_patch16_224",
    "timm:swin_tiny_patch4_window7_224",
    "hf:llama?layers=4&width=64&heads=4&kv_heads=4&mlp=96&vocab=100",
    "hf:gpt2?layers=3&width=64&heads=4&vocab=100",
    "hf:bert?layers=3&width=64&heads=4&mlp=96&vocab=100",
)


def table(graph: Graph, title: str, full: bool = False) -> str:
    console = Console(width=110, color_system=None)
    with console.capture() as capture:
        console.print(tables(graph, title, full=full))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip() + "\n"


def traced(target: str) -> Graph:
    library = {"timm": "timm", "hf": "transformers"}.get(target.split(":")[0])
    if library is not None:
        from dagscale.models.timm import declare_torchvision_ops

        declare_torchvision_ops()
        pytest.importorskip(library)
    return trace(*load(target))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", TARGETS)
def test_table(target: str) -> None:
    text = table(traced(target), target)
    file = GOLDEN / (re.sub(r"\W+", "-", target) + ".txt")
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


def test_full_table_has_a_row_for_each_layer() -> None:
    graph = traced("mlp:2_22_222?depth=6")
    assert len(table(graph, "", full=True).splitlines()) == len(graph.layers) + 2 + 1 + 5
    assert "×6" in table(graph, "")


# --- folding ----------------------------------------------------------------------------------------------


def folded(*names: str, figures: list[int] | None = None) -> list[str]:
    rows = fold_rows(names, figures or [0] * len(names))
    return [f"{row.name} ×{row.times}" if row.times > 1 else row.name for row in rows]


def test_rows_fold_by_running_number() -> None:
    assert folded("stem", "a.0.x", "a.0.y", "a.1.x", "a.1.y", "a.2.x", "a.2.y", "head") == [
        "stem", "a.0–2.x ×3", "a.0–2.y ×3", "head",
    ]  # fmt: skip


def test_rows_with_other_figures_do_not_fold() -> None:
    assert folded("a.0", "a.1", "a.2", figures=[3, 4, 4]) == ["a.0", "a.1–2 ×2"]


def test_gaps_and_other_layers_do_not_fold() -> None:
    assert folded("a.0.x", "a.2.x", "b.3.x") == ["a.0.x", "a.2.x", "b.3.x"]
    assert folded("a.0.x", "a.1.x", "a.1.y") == ["a.0.x", "a.1.x", "a.1.y"]


def test_blocks_in_blocks() -> None:
    names = [f"a.{i}.b.{j}.c" for i in range(2) for j in range(3)]
    assert folded(*names) == ["a.0–1.b.0–2.c ×6"]
    assert folded(*names, "a.2.b.0.c") == ["a.0–1.b.0–2.c ×6", "a.2.b.0.c"]


class Residual(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return x


def test_a_folded_graph_shows_one_block() -> None:
    graph = trace(Residual(200), torch.randn(2, 4))
    small = fold(graph)
    assert len(small.vertices) == 4
    assert [v.label for v in small.vertices] == ["input", "fork", "add ×200", "output"]
    assert [use.name for use in small.layers] == ["stem", "blocks.0–199"]
    assert path_sums(small).paths == 2
    assert fold(small) == small


class CrossReading(nn.Module):
    """Decoder blocks that all read what an encoder made: h + a(h) · b(memory)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 8)
        self.start = nn.Linear(4, 8)
        self.a = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))
        self.b = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory, h = self.encoder(x), self.start(x)
        for a, b in zip(self.a, self.b, strict=True):
            h = h + a(h) * b(memory)
        return h


def test_blocks_that_read_one_memory_fold() -> None:
    small = fold(trace(CrossReading(), torch.randn(2, 4)))
    assert [v.label for v in small.vertices] == ["input", "fork", "fork", "mul", "add ×12", "output"]
    assert [use.name for use in small.layers] == ["encoder", "start", "a.0–11", "b.0–11"]


def test_a_graph_without_repetition_is_not_changed() -> None:
    graph = traced("mlp:2_22_222")
    assert fold(graph) is graph
