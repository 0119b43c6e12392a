"""Makes a small model of the same kind as another one: same family and switches, small sizes, random weights.

It is meant for checks of code, which does not depend on sizes. The sizes divide over two ranks of every kind
of parallelism, except the vocabulary, so that its padding is exercised.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from hybridrl.models import spec
from hybridrl.models.folder import write_json, write_once
from hybridrl.models.fused_experts import fused
from hybridrl.models.spec import ModelSpec
from hybridrl.models.table import Parameter, is_norm
from hybridrl.models.vision import text_config

LAYERS = 4
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "head_dim": 8,
    "vocab_size": 61,
    "query_pre_attn_scalar": 8,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 20,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "sliding_window": 8,
}
"""New values of the keys that are set in a config.json. Keys that are 0 or null are switches and stay."""

LIMITS = {
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "sliding_window_pattern": 2,
}
"""Upper limits of other keys."""

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of tokens that are beyond the end of the small vocabulary."""


def shrink(config: Mapping[str, Any], folder: Path, seed: int) -> None:
    """Write a small model of the kind in a config.json, without a tokenizer. Equal seeds give equal models.

    Raises:
        ModelError: no model table describes it.
    """
    write_once(folder, lambda made: _fill(made, small(config), seed))


def small(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the small model."""
    if "vision_config" in config:
        return _small_with_tower(config)
    changes: dict[str, Any] = {key: size for key, size in SIZES.items() if config.get(key)}
    changes |= {key: min(config[key], most) for key, most in LIMITS.items() if config.get(key)}
    heads = config["num_attention_heads"]
    if kv_heads := config.get("num_key_value_heads"):
        changes["num_key_value_heads"] = {heads: 4, 1: 1}.get(kv_heads, 2)
    if kinds := config.get("layer_types"):
        changes["layer_types"] = _pick(kinds)
    if config.get("qk_rope_head_dim") and config.get(
        "head_dim"
    ):  # transformers uses both names for this size.
        changes["head_dim"] = SIZES["qk_rope_head_dim"]
    if config.get("mlp_only_layers"):
        changes["mlp_only_layers"] = [0]
    changes |= {key: None for key in _SPECIAL if config.get(key) is not None}
    return {**config, **changes, "dtype": "float32"}


_TOWER = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [1],
}
"""New values of the keys that are set in a vision_config."""

_PLACES = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


_OF_WHOLE = ("architectures", "model_type")
"""Keys that say what the whole model is, and not its text model."""


def _small_with_tower(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a model that reads pictures, whose text model may be beside its tower or inside."""
    text = small(text_config(config))
    rope = text.pop("rope_scaling", None) or text.pop("rope_parameters", {})
    half = text.get("head_dim", text["hidden_size"] // text["num_attention_heads"]) // 2
    rope = {"rope_theta": text.get("rope_theta", 10000.0), **rope, "rope_type": "default"}
    text["rope_parameters"] = {**rope, "mrope_section": [half - half // 2, half // 4, half // 4]}
    own = config["vision_config"]
    tower = {**own, **{key: value for key, value in _TOWER.items() if own.get(key)}}
    vocab = text["vocab_size"]
    return {
        **{key: value for key, value in config.items() if key not in text or key in _OF_WHOLE},
        "text_config": {key: value for key, value in text.items() if key != "architectures"},
        "vision_config": {**tower, "out_hidden_size": text["hidden_size"]},
        "tie_word_embeddings": text.get("tie_word_embeddings", False),
        **{key: vocab - 1 - place for place, key in enumerate(_PLACES)},
        "dtype": "float32",
    }


def _pick(kinds: list[str]) -> list[str]:
    """The kinds of the small model's layers: those of the first layers, with every kind present."""
    rare = [kind for kind in dict.fromkeys(kinds) if kind not in kinds[:LAYERS]]
    return [*kinds[: LAYERS - len(rare)], *rare]


def _fill(folder: Path, config: dict[str, Any], seed: int) -> None:
    write_json(folder / "config.json", config)
    rng, model = np.random.default_rng(seed), spec.read(folder)
    tensors: dict[str, np.ndarray] = {}
    for parameter in spec.parameters(model):
        for name, rows in parameter.checkpoint_tensors():
            tensors[name] = _values(parameter, rows, rng, model)
    save_file(fused(tensors, model, np.empty), folder / "model.safetensors", metadata={"format": "pt"})


def _values(parameter: Parameter, rows: int, rng: np.random.Generator, model: ModelSpec) -> np.ndarray:
    """Random values. Their spread is large enough that a misplaced weight changes the output, and small
    enough that rounding errors do not grow from layer to layer."""
    shape = parameter.shape or ((rows,) if parameter.cols is None else (rows, parameter.cols))
    noise = rng.standard_normal(shape, np.float32)
    if parameter.cols is None:
        return np.float32(0.2) * noise + np.float32(_middle(parameter, model))
    if parameter.name == "embed":
        return noise * np.float32(0.1 if model.tied else 1.0)
    return noise * np.float32(0.5 / np.sqrt(parameter.cols))


def _middle(parameter: Parameter, model: ModelSpec) -> float:
    """Mean of a vector's values. It is smaller for a norm after a layer, which scales what the layer adds."""
    if not is_norm(parameter):
        return 0.0
    scale = 0.3 if parameter.name.startswith("layers.*.post_") else 1.0
    return scale - 1.0 if model.centred_norms else scale
