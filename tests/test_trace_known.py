"""Well-known architectures, their path counts, depths and in-degrees worked out by hand.

Models are built on ``meta``, where size costs nothing. Skipped where timm or transformers is missing.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from dagscale.graph import Graph
from dagscale.graph.paths import PathSums, path_sums
from dagscale.tracing import trace

pytestmark = pytest.mark.filterwarnings("ignore")


def from_timm(name: str) -> tuple[Graph, PathSums]:
    from dagscale.models.timm import declare_torchvision_ops

    declare_torchvision_ops()
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name)
    graph = trace(model, torch.empty(2, *model.pretrained_cfg["input_size"], device="meta"))
    assert all(p.reached for p in graph.parameters)
    assert not graph.notes
    return graph, path_sums(graph)


def in_degrees(graph: Graph) -> dict[int, int]:
    """In-degree → number of layer uses that have it."""
    return dict(Counter(use.in_degree for use in graph.layers))


def vertices(graph: Graph) -> Counter[str]:
    return Counter(v.kind for v in graph.vertices)


def test_resnet18() -> None:
    """8 blocks x → relu(x + conv relu conv x). Each block doubles the paths: 2^8. Every path has the stem's
    activation and each block's last (9), and one more per branch taken (17). Branches: the second convolution
    of each block and the 3 downsamplings stand before a sum of two; the other 10 (the stem, 8 first
    convolutions, the readout) do not."""
    graph, sums = from_timm("resnet18")
    assert (sums.paths, sums.min_depth, sums.max_depth) == (2**8, 9, 17)
    assert in_degrees(graph) == {1: 1 + 8 + 1, 2: 8 + 3}
    assert vertices(graph)["sum"] == 8
    assert [use.name for use in graph.layers if use.readout] == ["fc"]


def test_resnet50() -> None:
    """16 bottlenecks of three convolutions: 2^16 paths; 1 + 16 activations on all, two more per branch. Before
    a sum: 16 third convolutions, 4 downsamplings; not: stem, 32 others, readout."""
    graph, sums = from_timm("resnet50")
    assert (sums.paths, sums.min_depth, sums.max_depth) == (2**16, 17, 17 + 2 * 16)
    assert in_degrees(graph) == {1: 1 + 32 + 1, 2: 16 + 4}


def test_densenet121() -> None:
    """58 dense layers x → [x, f(x)], each doubles the paths: 2^58. On all: the stem, 3 transitions, the last
    norm's activation (5); f has two. Concatenation adds no in-degree."""
    graph, sums = from_timm("densenet121")
    assert (sums.paths, sums.min_depth, sums.max_depth) == (2**58, 5, 5 + 2 * 58)
    assert in_degrees(graph) == {1: 121}
    assert {u.name: u.layer.fan_in for u in graph.layers}["features.denseblock4.denselayer16.conv1"] == 512 + 15 * 32


def test_inception_v3() -> None:
    """Blocks by branches: A 1×1 | 5×5 | double 3×3 | pool (three blocks, depth 1 to 3); B 3×3 | double 3×3 | max
    pool (0 to 3); C 1×1 | 7×7 | double 7×7 | pool (four blocks, 1 to 5); D 3×3 | 7×7 then 3×3 | max pool (0 to 4);
    E 1×1 | 3×3 split in two | double 3×3 split in two | pool (two blocks, 6 paths, 1 to 3). Stem of 5."""
    graph, sums = from_timm("inception_v3")
    assert sums.paths == 4**3 * 3 * 4**4 * 3 * 6**2
    assert sums.min_depth == 5 + 3 * 1 + 0 + 4 * 1 + 0 + 2 * 1
    assert sums.max_depth == 5 + 3 * 3 + 3 + 4 * 5 + 4 + 2 * 3
    assert in_degrees(graph) == {1: 95}


def test_efficientnet_b0() -> None:
    """16 blocks, each with a gate by squeeze and excitation (two factors: 2 paths), 9 of them with a residual
    branch (2 + 1). Activations: stem and head 1 each; the first block 1, the others 2; the gate 2 more."""
    graph, sums = from_timm("efficientnet_b0")
    assert sums.paths == 2**7 * 3**9
    assert sums.min_depth == 1 + 1 + 6 * 2 + 9 * 0 + 1
    assert sums.max_depth == 1 + (1 + 2) + 15 * (2 + 2) + 1
    assert vertices(graph)["product"] == 16
    assert in_degrees(graph)[2] == 9
    depthwise = next(u for u in graph.layers if u.name == "blocks.1.0.conv_dw")
    assert (depthwise.layer.fan_in, depthwise.layer.groups) == (9, 96)


def test_convnext_tiny() -> None:
    """18 blocks x + γ · W₂ gelu(W₁ norm(depthwise x)): 2^18 paths with 0 to 18 activations; W₂ before the sum."""
    graph, sums = from_timm("convnext_tiny")
    assert (sums.paths, sums.min_depth, sums.max_depth) == (2**18, 0, 18)
    assert in_degrees(graph) == {1: 1 + 3 + 18 * 2 + 1, 2: 18}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_vision_transformers(name: str) -> None:
    """12 blocks, each (1 + 3) · (1 + 1) = 8 paths: past or through attention by q, k or v, past or through the
    MLP, whose GELU is the one activation. Two products (q·k, then ·v) and two sums a block."""
    graph, sums = from_timm(name)
    assert (sums.paths, sums.min_depth, sums.max_depth) == (8**12, 0, 12)
    assert vertices(graph)["product"] == 2 * 12
    assert vertices(graph)["sum"] == 2 * 12
    assert in_degrees(graph)[2] == 2 * 12  # attn.proj and mlp.fc2


# --- language models: N blocks each -----------------------------------------------------------------------

IDS = torch.randint(3, 50, (2, 8))


def from_transformers(kind: str, layers: int, inputs: Any = IDS, **config: Any) -> tuple[Graph, PathSums]:
    from dagscale.models.timm import declare_torchvision_ops

    declare_torchvision_ops()  # transformers imports torchvision where it is installed
    transformers = pytest.importorskip("transformers")
    model_class, config_class = getattr(transformers, kind.split()[0]), getattr(transformers, kind.split()[1])
    torch.manual_seed(0)
    model = model_class(config_class(vocab_size=99, **config)).eval()

    def select(out: Any) -> Any:
        return out.logits if hasattr(out, "logits") else out.last_hidden_state

    graph = trace(model, inputs, select=select)
    return graph, path_sums(graph)


SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize("layers", [1, 3])
def test_bert(layers: int) -> None:
    """8 paths a block, as in a ViT; the pooler's output is not selected."""
    graph, sums = from_transformers("BertModel BertConfig", layers, num_hidden_layers=layers, **SMALL)
    assert (sums.paths, sums.min_depth, sums.max_depth) == (8**layers, 0, layers)
    assert [p.name for p in graph.parameters if not p.reached] == ["pooler.dense.weight", "pooler.dense.bias"]
    assert in_degrees(graph) == {1: 1 + 4 * layers, 2: 2 * layers}


@pytest.mark.parametrize("layers", [1, 3])
def test_gpt2(layers: int) -> None:
    """8 paths a block; q, k and v come from one layer; the readout is the embedding's weight, tied."""
    graph, sums = from_transformers(
        "GPT2LMHeadModel GPT2Config", layers, n_embd=32, n_layer=layers, n_head=2, n_positions=16
    )
    assert (sums.paths, sums.min_depth, sums.max_depth) == (8**layers, 0, layers)
    assert in_degrees(graph) == {1: 1 + 2 * layers + 1, 2: 2 * layers}
    assert graph.parameter["lm_head.weight"].name == "transformer.wte.weight"
    assert [use.name for use in graph.layers if use.readout] == ["transformer.wte"]


@pytest.mark.parametrize("layers", [1, 3])
def test_llama(layers: int) -> None:
    """(1 + 3) · (1 + 2) = 12 paths a block: the MLP is a product silu(gate) · up. Rotary embedding moves one
    signal and adds no path; RMS norm is one op."""
    graph, sums = from_transformers(
        "LlamaForCausalLM LlamaConfig", layers, num_hidden_layers=layers, num_key_value_heads=1, **SMALL
    )
    assert (sums.paths, sums.min_depth, sums.max_depth) == (12**layers, 0, layers)
    assert vertices(graph)["product"] == 3 * layers
    assert in_degrees(graph) == {1: 1 + 5 * layers + 1, 2: 2 * layers}  # in 2: o_proj, down_proj


@pytest.mark.parametrize("layers", [1, 2])
def test_t5(layers: int) -> None:
    """Encoder blocks have 8 paths, E = 8^N in all. A decoder block maps the D paths so far to
    ((D + 3D) + (4D [by q] + 2E [by k, v])) · 2 = 16 D + 4 E, D = 1 at first. Activations: one ReLU a block."""
    graph, sums = from_transformers(
        "T5ForConditionalGeneration T5Config", layers, {"input_ids": IDS, "decoder_input_ids": IDS},
        d_model=32, d_kv=16, d_ff=64, num_layers=layers, num_heads=2,
    )  # fmt: skip
    encoder, decoder = 8**layers, 1
    for _ in range(layers):
        decoder = 16 * decoder + 4 * encoder
    assert len(graph.inputs) == 2
    assert (sums.paths, sums.min_depth, sums.max_depth) == (decoder, 0, 2 * layers)
    assert in_degrees(graph)[2] == 2 * layers + 3 * layers
    assert graph.parameter["lm_head.weight"].name == "shared.weight"


@pytest.mark.parametrize("layers", [1, 2])
def test_mixtral(layers: int) -> None:
    """A block: (1 + 3) · (1 + 2 + 1) = 16 paths, past or through attention, past or through the experts by gate
    or up, or by the router, whose probabilities are a factor on the experts' output."""
    graph, sums = from_transformers(
        "MixtralForCausalLM MixtralConfig", layers, num_hidden_layers=layers, num_key_value_heads=1,
        num_local_experts=4, **SMALL,
    )  # fmt: skip
    assert (sums.paths, sums.min_depth, sums.max_depth) == (16**layers, 0, layers)
    assert vertices(graph)["product"] == 4 * layers
    assert not graph.notes  # the experts' grouped product needs no values
    assert all(p.reached for p in graph.parameters)
