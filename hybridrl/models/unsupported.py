"""What a config.json may say that no model table covers."""

from collections.abc import Mapping
from typing import Any

from hybridrl.errors import ModelError
from hybridrl.models.config_json import rope_options
from hybridrl.models.table import Family


def refuse_unsupported(config: Mapping[str, Any], family: Family, where: str) -> None:
    """
    Args:
        config: of the text model, with the defaults of its architecture or without.

    Raises:
        ModelError: the model has another activation, sliding windows by a switch, or angles along three axes
            without a vision tower.
    """
    key = "hidden_activation" if config.get("hidden_activation") else "hidden_act"
    if config.get(key, family.activation) != family.activation:
        raise ModelError(
            f"{key} = {config[key]} is not supported",
            where=where,
            fix=f"use a model with {family.activation}",
        )
    if family.tower is None and rope_options(config).get("mrope_section"):
        raise ModelError(
            "mrope_section in config.json: the model belongs to one that reads pictures",
            where=where,
            fix="use that model, or remove mrope_section to train on text as with plain rotary embedding",
        )
    if config.get("use_sliding_window", False):
        raise ModelError(
            "use_sliding_window = true is not supported",
            where=where,
            fix="use a model with full attention",
        )


def refuse_unknown_tower(config: Mapping[str, Any], architecture: str, where: str) -> None:
    """
    Args:
        architecture: one without a model table.

    Raises:
        ModelError: the model reads pictures. transformers could describe its tensors, but not where features
            go and which places tokens have.
    """
    if not isinstance(config.get("vision_config"), Mapping):
        return
    why = _TOWERS.get(architecture, "no model table describes how")
    raise ModelError(
        f"{architecture} reads pictures, and {why}",
        where=where,
        fix="use Qwen3-VL or Qwen2.5-VL, or a model of text, as Gemma 3 is as Gemma3ForCausalLM",
    )


_TOWERS = {
    "Gemma3ForConditionalGeneration": "its pictures' tokens attend to each other in both directions, which "
    "attention over packed sequences cannot compute",
}
"""Architecture -> why it cannot be trained."""


def refuse_quantised(config: Mapping[str, Any], where: str) -> None:
    """
    Raises:
        ModelError: its weights are quantised.
    """
    if config.get("quantization_config"):
        raise ModelError("the checkpoint is quantised", where=where, fix="use its bf16 or fp32 version")
