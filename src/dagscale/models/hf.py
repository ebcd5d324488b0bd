"""The space ``hf:NAME``: a random-weight model of transformers, from the configuration class of a model type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from dagscale.errors import TargetError
from dagscale.models.options import Option
from dagscale.models.targets import EXAMPLES, SPACES, Setting, Space
from dagscale.models.timm import declare_torchvision_ops
from dagscale.registry import did_you_mean

LARGE = 10**9
"""Models of more parameters than this are left on ``meta``: a graph needs no weights."""
SPOKEN = 64
"""Frames of a spectrogram, where the model does not say how many it takes."""
_SPELLINGS = {
    "width": ("hidden_size", "d_model", "n_embd", "dim"),
    "layers": ("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    "heads": ("num_attention_heads", "num_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads",),
    "mlp": ("intermediate_size", "d_ff", "n_inner", "ffn_dim"),
    "vocab": ("vocab_size",),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
}
"""Our option → the names that configurations use for it."""
_BOTH = {
    "layers": ("encoder_layers", "decoder_layers", "num_decoder_layers"),
    "heads": ("encoder_attention_heads", "decoder_attention_heads"),
    "mlp": ("encoder_ffn_dim", "decoder_ffn_dim"),
}
"""Of a model with an encoder and a decoder, names that are set besides."""


class Logits(nn.Module):
    """A language model or encoder that returns one tensor: its logits, or its last hidden state."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, decoder_input_ids: torch.Tensor | None = None) -> torch.Tensor:
        """x: token ids (batch, length), pixels (batch, channels, height, width) or a spectrogram (batch, bands,
        frames); decoder_input_ids: (batch, length), where there is a decoder besides."""
        out = self.model(x) if decoder_input_ids is None else self.model(x, decoder_input_ids=decoder_input_ids)
        found = next(v for k in ("logits", "last_hidden_state") if (v := getattr(out, k, None)) is not None)
        assert isinstance(found, torch.Tensor)
        return found


def _read(name: str, options: Mapping[str, Any], setting: Setting) -> Callable[[], tuple[nn.Module, Any]]:
    declare_torchvision_ops()
    try:
        import transformers
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            MODEL_FOR_MASKED_LM_MAPPING_NAMES,
            MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
            MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
            MODEL_MAPPING_NAMES,
        )
    except ImportError as error:
        raise TargetError(f"transformers cannot be imported ({error}); install it: pip install transformers") from None
    if name not in MODEL_MAPPING_NAMES:
        hint = did_you_mean(name, MODEL_MAPPING_NAMES)
        raise TargetError(f"transformers has no model type {name!r}{hint} (as llama, gpt2, bert, vit)")
    given = dict(options)
    if setting.tokens:
        if given.setdefault("vocab", setting.classes) < setting.classes:
            raise TargetError(f"vocab={given['vocab']}, and the data have {setting.classes:,} tokens: leave vocab out")
        given.setdefault("length", *setting.shape)
    length = given.pop("length", 16)

    def make() -> tuple[nn.Module, Any]:
        config = transformers.CONFIG_MAPPING[name]()
        for option, value in given.items():
            known = [key for key in _SPELLINGS[option] if getattr(config, key, None) is not None][:1]
            known += [key for key in _BOTH.get(option, ()) if getattr(config, key, None) is not None]
            if not known:
                raise TargetError(f"{name!r} has no option {option!r}")
            for key in known:
                setattr(config, key, value)
        config.use_cache = False
        if setting.tokens and name in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            config.is_decoder = True  # else it sees the token that it is to predict
        both = getattr(config, "is_encoder_decoder", False)
        heads = {
            "AutoModelForSeq2SeqLM": both and name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
            "AutoModelForSpeechSeq2Seq": both and name in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
            "AutoModelForCausalLM": not both and name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            "AutoModel": True,
        }
        head = next(head for head, fits in heads.items() if fits)
        if setting.tokens and head != "AutoModelForCausalLM":
            raise TargetError("the data are text, and this model does not predict the next token: take one as gpt2")
        auto = getattr(transformers, head)
        with torch.device("meta"):
            model = auto.from_config(config)
        device = "meta"
        if sum(p.numel() for p in model.parameters()) <= LARGE:
            model, device = auto.from_config(config), "cpu"
        tokens = torch.zeros(EXAMPLES, length, dtype=torch.int64, device=device)
        if model.main_input_name == "input_ids":
            return Logits(model), (tokens, tokens.clone()) if both else tokens
        bands = getattr(config, "num_mel_bins", getattr(config, "input_feat_per_channel", None))
        if model.main_input_name == "input_features" and both and bands:
            frames = 2 * config.max_source_positions if name == "whisper" else SPOKEN
            sound = (bands, frames) if name == "whisper" else (frames, bands)
            return Logits(model), (torch.randn(EXAMPLES, *sound, device=device), tokens)
        size = getattr(config, "image_size", 224)
        if model.main_input_name != "pixel_values" or not size:
            raise TargetError(f"{name!r} takes {model.main_input_name}: write a callable that returns (module, inputs)")
        high, wide = (size, size) if isinstance(size, int) else size
        return Logits(model), torch.randn(EXAMPLES, getattr(config, "num_channels", 3), high, wide, device=device)

    return make


SPACES.add("hf")(
    Space(
        read=_read,
        parameters=1 << 40,  # large ones stay on meta
        tokens=True,
        options=(
            Option("width", "int", "hidden size", low=1, high=8192),
            Option("layers", "int", "number of blocks", low=1, high=1000),
            Option("heads", "int", "attention heads", low=1, high=8192),
            Option("kv_heads", "int", "key and value heads", low=1, high=8192),
            Option("mlp", "int", "width of the MLP", low=1, high=65_536),
            Option("vocab", "int", "size of the vocabulary", low=1, high=1_000_000),
            Option("experts", "int", "experts of a block", low=1, high=1024),
            Option("length", "int", "tokens of an example", low=1, high=65_536),
        ),
    )
)
