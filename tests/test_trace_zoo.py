"""A sample of the zoo (``benchmarks/zoo.py``): traced, reached as gradients say, nothing changed, nothing unknown."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

TIMM = ("resnetv2_50", "regnety_002", "mobilenetv3_small_100", "efficientvit_b0", "ghostnet_100", "hrnet_w18_small",
        "dla34", "nfnet_l0", "mixer_s32_224", "gmlp_s16_224", "cait_xxs24_224", "coat_tiny", "crossvit_tiny_240",
        "deit3_small_patch16_224", "levit_128s", "maxvit_nano_rw_256", "poolformer_s12", "pvt_v2_b0", "twins_svt_small",
        "volo_d1_224", "xcit_nano_12_p16_224", "vgg11", "inception_resnet_v2", "sknet18", "resnest14d")  # fmt: skip
TRANSFORMERS = ("albert", "bart", "bloom", "clip", "deberta-v2", "distilbert", "electra", "falcon", "gemma2",
                "gpt_neox", "mamba", "mistral", "mixtral", "opt", "phi", "qwen3", "qwen3_moe", "swin", "vit",
                "wav2vec2", "whisper", "xlnet", "roberta")  # fmt: skip


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


zoo = load("zoo")


def check(library: str, name: str) -> None:
    load("zoo_transformers")
    row = zoo.check(*zoo.build(library, name))
    assert row["traced"], row["error"]
    assert row["runs"], row["forward_error"]
    assert (row["survivors"], row["outputs_changed"]) == (0, False)
    assert (row["only_graph"], row["only_gradient"], row["changed"], row["unknown"]) == ([], [], [], [])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    from dagscale.models.timm import declare_torchvision_ops

    declare_torchvision_ops()
    timm = pytest.importorskip("timm")
    if not timm.is_model(name):
        pytest.skip("not in this timm")
    check("timm", name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    from dagscale.models.timm import declare_torchvision_ops

    declare_torchvision_ops()
    auto = pytest.importorskip("transformers.models.auto.modeling_auto")
    if name not in auto.MODEL_MAPPING_NAMES:
        pytest.skip("not in this transformers")
    check("transformers", name)
