"""Small random models of every transformers family, and inputs for them, from the configuration's own names."""

from __future__ import annotations

import inspect
import math
import re
from functools import partial
from typing import Any

import torch
from forks import in_a_fork

SIZES: list[tuple[str, int]] = [
    (r"(^|_)vocab(ulary)?_size$|^vocab_size_or_config_json_file$", 128),
    (r"num_key_value_heads$|num_kv_heads$", 2),
    (r"(^|_)(num_)?(attention_)?heads$|n_head(s)?$|attention_heads$", 4),
    (r"^head_dim$|attention_head_size$|attention_head_dim$|v_head_dim$", 16),
    (r"qk_rope_head_dim$|qk_nope_head_dim$", 8),
    (r"kv_lora_rank$|q_lora_rank$", 16),
    (r"(intermediate|ffn|ff)_(size|dim)$|^d_ff$|n_inner$|ffn_hidden_size$|moe_intermediate_size$", 96),
    (r"^(hidden_size|d_model|n_embd|embed_dim|hidden_dim|dim|embedding_size|emb_dim)$", 64),
    (r"hidden_size$|hidden_dim$|embed_dim$|projection_dim$|embed_size$|pooler_output_size$", 64),
    (r"^d_kv$", 16),
    (r"(^|_)(num_)?(hidden_)?layers$|n_layer(s)?$|^depth$|num_blocks$", 2),
    (r"num_(local_|routed_)?experts$|n_routed_experts$|moe_num_experts$", 4),
    (r"num_experts_per_tok$|moe_top_?k$|num_selects$", 2),
    (r"^n_group$|^topk_group$|^num_groups_experts$", 1),
    (r"max_position_embeddings$|n_positions$|max_target_positions$|n_ctx$", 256),
    (r"num_queries$", 10),
    (r"^(image_size|img_size)$", 64),
]
LENGTH = 16
"""Tokens a sequence."""


def families() -> list[str]:
    """Every model type with a base model class."""
    from dagscale.models.timm import declare_torchvision_ops

    declare_torchvision_ops()
    import transformers.models.bert.modeling_bert  # noqa: F401  what all models import, once, before the forks
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return list(MODEL_MAPPING_NAMES)


def sub_configs(config: Any) -> list[Any]:
    from transformers import PretrainedConfig

    return [v for v in vars(config).values() if isinstance(v, PretrainedConfig)]


def shrink(config: Any, sizes: list[tuple[str, int]] = SIZES) -> None:
    """Make ``config`` small in place, sub-configurations included."""
    for key, value in list(vars(config).items()):
        if isinstance(value, bool):
            continue
        if isinstance(value, int) and value > 0:
            for pattern, size in sizes:
                if re.search(pattern, key):
                    if value > size:
                        set_(config, key, size)
                    break
    if getattr(config, "qk_rope_head_dim", None) and getattr(config, "head_dim", None):
        set_(config, "head_dim", config.qk_rope_head_dim)  # the part of a head that is rotated
        set_(config, "num_key_value_heads", config.num_attention_heads)
    elif hasattr(config, "head_dim") and config.head_dim is None and getattr(config, "num_attention_heads", None):
        set_(config, "head_dim", config.hidden_size // config.num_attention_heads)
    vocabulary = getattr(config, "vocab_size", None)
    for key, value in list(vars(config).items()):
        if key.endswith(("token_id", "token_index")) and isinstance(value, int) and vocabulary and value >= vocabulary:
            set_(config, key, vocabulary - 1)
    layers = getattr(config, "num_hidden_layers", None)
    for key in ("layer_types", "mlp_layer_types", "indexer_types", "layers_block_type"):
        kinds = getattr(config, key, None)
        if isinstance(kinds, list) and isinstance(layers, int):
            distinct = list(dict.fromkeys(kinds))
            set_(config, key, (distinct + kinds)[:layers])
    for child in sub_configs(config):
        shrink(child, sizes)


def set_(config: Any, key: str, value: Any) -> None:
    try:
        setattr(config, key, value)
    except Exception:  # a computed attribute
        vars(config)[key] = value


def find(config: Any, *names: str, default: Any = None) -> Any:
    """The first of ``names`` in ``config`` or its sub-configurations."""
    for name in names:
        for part in (config, *sub_configs(config), *(c for s in sub_configs(config) for c in sub_configs(s))):
            value = getattr(part, name, None)
            if isinstance(value, (int, list, tuple)) and not isinstance(value, bool):
                return value
    return default


def inputs_for(model: Any, device: str, images: bool) -> dict[str, Any]:
    """Keyword arguments for the forward, by the names in its signature."""
    config = model.config
    names = set(inspect.signature(model.forward).parameters)
    generator = torch.Generator().manual_seed(0)
    vocabulary = min(int(find(config, "vocab_size", default=50)), 50)
    made: dict[str, Any] = {}

    def ids(*shape: int) -> Any:
        return torch.randint(3, max(vocabulary - 5, 4), shape, generator=generator).to(device)

    def floats(*shape: int) -> Any:
        return torch.randn(shape, generator=generator).to(device)

    main = model.main_input_name
    text = "input_ids" in names
    if text:
        made["input_ids"] = ids(2, LENGTH)
    if text and "attention_mask" in names and device == "cpu":
        made["attention_mask"] = torch.ones(2, LENGTH, dtype=torch.int64)
    if "decoder_input_ids" in names and getattr(config, "is_encoder_decoder", False):
        made["decoder_input_ids"] = ids(2, LENGTH)
    if "bbox" in names:
        made["bbox"] = torch.sort(torch.randint(0, 100, (2, LENGTH, 4), generator=generator)).values.to(device)
    if "pixel_values" in names and (main == "pixel_values" or not text or images):
        size = find(config, "image_size", "img_size", "input_size", default=64)
        high, wide = (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))
        channels = find(config, "num_channels", "in_channels", "in_chans", default=3)
        channels = channels if isinstance(channels, int) else 3
        frames = find(config, "num_frames")
        made["pixel_values"] = floats(2, *([frames] if frames else []), channels, high, wide)
    grid = next((name for name in ("grid_thw", "image_grid_thw") if name in names and not text), None)
    if grid is not None:  # an image is a list of patches, as its processor makes them
        patch = find(config, "patch_size", default=14) ** 2 * find(config, "temporal_patch_size", default=1)
        channels = find(config, "in_channels", "num_channels", default=3)
        where = "hidden_states" if "hidden_states" in names else "pixel_values"
        made[where] = floats(16, channels * patch)
        if "kimi" in config.model_type:
            made[where] = floats(16, channels, config.patch_size, config.patch_size)
        made[grid] = torch.tensor([[1, 4, 4]], device=device)
        if "merge_sizes" in names:
            made["merge_sizes"] = torch.tensor([1], device=device)
    if "spatial_shapes" in names:
        patches = find(config, "num_patches", default=256)
        made["pixel_values"] = floats(2, patches, 3 * find(config, "patch_size", default=16) ** 2)
        made["pixel_attention_mask"] = torch.ones(2, patches, dtype=torch.int64, device=device)
        made["spatial_shapes"] = torch.tensor([[math.isqrt(patches)] * 2] * 2, device=device)
    if "pixel_position_ids" in names:
        made["pixel_values"] = floats(2, 16, 3 * find(config, "patch_size", default=16) ** 2)
        made["pixel_position_ids"] = torch.cartesian_prod(*[torch.arange(4)] * 2).expand(2, 16, 2).to(device)
    if "pixel_values_videos" in names and main == "pixel_values_videos":
        size = find(config, "image_size", "crop_size", default=64)
        made["pixel_values_videos"] = floats(2, find(config, "num_frames", "frames_per_clip", default=4), 3, size, size)
    if "input_features" in names and (main == "input_features" or not text):
        bins = find(config, "num_mel_bins", "feature_size", "input_feat_per_channel", "feature_projection_input_dim",
                    "n_mels", default=80)  # fmt: skip
        length = find(config, "max_source_positions", default=0)
        if "whisper" in config.model_type or "audio" in config.model_type:
            made["input_features"] = floats(2, bins, 2 * (length or 50))
        elif config.model_type.startswith(("qwen3_asr", "qwen3_omni", "qwen2_audio", "voxtral", "fun_asr")):
            made["input_features"] = floats(2, bins, 2 * length or 200)
        else:
            made["input_features"] = floats(2, 128, bins)
    if "input_features_mask" in names and "input_features" in made:
        frames = made["input_features"].shape[-1 if made["input_features"].shape[1] == bins else 1]
        made["input_features_mask"] = torch.ones(2, frames, dtype=torch.int64, device=device)
    if "input_values" in names and (main == "input_values" or not text):
        bins = find(config, "num_mel_bins")
        spectrum = "ast" in config.model_type.split("-") or config.model_type == "audio-spectrogram-transformer"
        made["input_values"] = floats(2, find(config, "max_length", default=128), bins) if spectrum else floats(2, 8000)
    if "past_values" in names:
        length = find(config, "context_length", "prediction_length", default=32)
        lags = max(find(config, "lags_sequence", default=[0]) or [0])
        channels = find(config, "num_input_channels", default=0)
        shape = (2, length + lags, *([channels] if channels else []))
        made["past_values"] = floats(*shape)
        if "past_time_features" in names:
            features = max(find(config, "num_time_features", default=0), 0)
            made["past_time_features"] = floats(2, length + lags, features)
            made["past_observed_mask"] = torch.ones(shape, device=device)
            made["future_values"] = floats(2, find(config, "prediction_length", default=8))
            made["future_time_features"] = floats(2, find(config, "prediction_length", default=8), features)
    if "visual_feats" in names:
        made["visual_feats"] = floats(2, 5, find(config, "visual_feat_dim", default=2048))
        made["visual_pos"] = floats(2, 5, find(config, "visual_pos_dim", default=4))
    return made


def attempt(model: Any, inputs: dict[str, Any]) -> str:
    """What a forward raises."""
    try:
        with torch.no_grad():
            model(**inputs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def build(name: str, device: str) -> tuple[Any, dict[str, Any]]:
    """A model of family ``name`` and inputs that it takes, the smallest way that runs.

    Raises:
        Exception: the forward's, where no way runs.
    """
    families()
    from transformers import CONFIG_MAPPING, AutoModel

    first: Exception | None = None
    layers = [pair for pair in SIZES if "layers" in pair[0]]
    places = [("cpu", SIZES), ("meta", layers)]
    ways = [(*place, images, cached) for place in places for cached in (True, False) for images in (True, False)]
    for where, sizes, images, cached in ways:
        if device == "meta" and where == "cpu":
            continue
        torch.manual_seed(0)
        config = CONFIG_MAPPING[name]()
        try:
            shrink(config, sizes)
            for part in (config, *sub_configs(config)) if not cached else ():
                part.use_cache = False
            with torch.device(where):
                model = AutoModel.from_config(config, dtype=torch.float32).eval()
            if sum(p.numel() for p in model.parameters()) > 3e8 and where == "cpu":
                continue
            inputs = inputs_for(model, where, images)
            if error := in_a_fork(partial(attempt, model, inputs)):  # here, it never ran
                raise RuntimeError(error)
        except Exception as error:
            if first is None:
                first = error
            continue
        return model, inputs
    assert first is not None
    raise first
