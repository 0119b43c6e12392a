"""Makes small models that read pictures, with random weights, a tokenizer without merges and the files of
transformers' processor. Equal seeds give equal models."""

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridrl.errors import ModelError
from hybridrl.models.folder import write_json, write_once
from hybridrl.models.tiny import character_tokenizer, fill_folder

SHAPES = string.digits + "=lr"
"""Characters of task shapes."""

PLACES = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
"""The tokens around and in place of a picture."""

_SPECIAL = ("<eos>", "<pad>", "<unk>", *PLACES, "<|video_pad|>")
_MERGE, _FRAMES = 2, 2
_KINDS = {
    "qwen3_vl": ("Qwen3VL", "Qwen3VLForConditionalGeneration", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "qwen3_vl_moe": ("Qwen3VL", "Qwen3VLMoeForConditionalGeneration", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        "Qwen2_5_VLForConditionalGeneration",
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
_TEXT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 192,
}
_TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 4}
_SECTIONS = (2, 3, 3)
"""Pairs of dims for time, rows and columns; they add up to half of head_dim."""


def qwen3_vl_shapes(folder: Path, seed: int) -> None:
    """Write an untrained Qwen3-VL model of 0.17 M weights with a tokenizer for the characters of SHAPES.

    A token of a picture is 8 x 8 pixels. There is no chat template.
    """
    vision_model(folder, "qwen3_vl", seed, std=0.05, norm_std=0.0)


def vision_model(
    folder: Path,
    kind: str,
    seed: int,
    *,
    std: float = 0.1,
    norm_std: float = 0.2,
    tied: bool = False,
    text: Mapping[str, int] | None = None,
    tower: Mapping[str, Any] | None = None,
) -> None:
    """Write a very small model of a kind that reads pictures.

    Args:
        std, norm_std: standard deviations of matrices, and of norms and biases.
        text, tower: keys of text_config and vision_config that replace those of _TEXT and _TOWER.

    Raises:
        ModelError: there is no such kind.
    """
    if kind not in _KINDS:
        raise ModelError(f"no small model of kind {kind!r}", fix=f"use one of {', '.join(_KINDS)}")
    config = _config(kind, {**_TEXT, **(text or {})}, {**_TOWER, **(tower or {})}, tied=tied)

    def fill(made: Path) -> None:
        fill_folder(
            made,
            config=config,
            tokenizer=character_tokenizer(SHAPES, _SPECIAL),
            chat_template=None,
            seed=seed,
            std=std,
            norm_std=norm_std,
        )
        _write_processor(made, kind, config["vision_config"]["patch_size"])

    write_once(folder, fill)


def _config(kind: str, text: Mapping[str, Any], tower: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    ids = {token: i for i, token in enumerate([*SHAPES, *_SPECIAL])}
    ends = {"eos_token_id": ids["<eos>"], "pad_token_id": ids["<pad>"]}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(_SECTIONS)}
    return {
        "architectures": [_KINDS[kind][1]],
        "model_type": kind,
        "text_config": {
            "model_type": f"{kind}_text",
            **text,
            **(_EXPERTS if kind == "qwen3_vl_moe" else {}),
            **ends,
            "bos_token_id": None,
            "vocab_size": len(ids),
            "hidden_act": "silu",
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-6,
            "rope_parameters": rope | ({"mrope_interleaved": True} if kind.startswith("qwen3") else {}),
            "attention_dropout": 0.0,
        },
        "vision_config": {
            "model_type": f"{kind}_vision" if kind == "qwen2_5_vl" else kind,
            **tower,
            **_tower_switches(kind, tower),
            "in_channels": 3,
            "spatial_merge_size": _MERGE,
            "temporal_patch_size": _FRAMES,
            "out_hidden_size": text["hidden_size"],
        },
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": tied,
        **ends,
        "dtype": "float32",
    }


def _tower_switches(kind: str, tower: Mapping[str, Any]) -> dict[str, Any]:
    if kind.startswith("qwen3"):
        deep: Sequence[int] = tower.get("deepstack_visual_indexes", range(tower["depth"] - 1))
        return {
            "hidden_act": "gelu_pytorch_tanh",
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": list(deep),
        }
    side = _MERGE * tower["patch_size"]
    return {"hidden_act": "silu", "window_size": 4 * side, "fullatt_block_indexes": [tower["depth"] - 1]}


def _write_processor(folder: Path, kind: str, patch: int) -> None:
    name, _, mean, std = _KINDS[kind]
    area = (patch * _MERGE) ** 2
    image = {
        "processor_class": f"{name}Processor",
        "patch_size": patch,
        "merge_size": _MERGE,
        "temporal_patch_size": _FRAMES,
        "image_mean": list(mean),
        "image_std": list(std),
        "size": {"shortest_edge": area, "longest_edge": 64 * area},
    }
    video = "Qwen3VLVideoProcessor" if kind.startswith("qwen3") else "Qwen2VLVideoProcessor"
    write_json(folder / "preprocessor_config.json", image | {"image_processor_type": "Qwen2VLImageProcessor"})
    write_json(folder / "video_preprocessor_config.json", image | {"video_processor_type": video})
